"""Bearer tokens: where they count, how they end, and that nobody but their owner ever has them."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from typing import Any

import grpc
import pytest

from behestd.service.call import Call
from behestd.service.credentials import Credentials, Token, digest, new_token
from behestd.service.identity import Identity
from behestd.service.scopes import ADMIN, LOCAL, Caller, Load
from behestd.service.server import Edge
from behestd.service.settings import Keepalive, Settings
from tests.auth.scenes import Guest, called, guest, kind_of, knowing
from tests.auth.test_transport import Secured
from tests.service import edges
from tests.service.edges import connect, failure, reason, serving, until

READER = guest("runs:read", principal="reader")


async def answer(request: Any, call: Call) -> bytes:
    """Say who calls."""
    return f"{call.caller.principal} {call.caller.namespace} {call.caller.credential}".encode()


async def quiet(request: Any, call: Call) -> None:
    """Say one thing, then nothing."""
    await call.write(b"here")
    await asyncio.Event().wait()


async def stubborn(request: Any, call: Call) -> None:
    """Say one thing, and make something else of being ended."""
    await call.write(b"here")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ValueError("made of a cancellation") from None


async def busy(request: Any, call: Call) -> None:
    """Never stop sending."""
    while True:
        await call.write(b"here")


async def in_a_task_of_its_own(request: Any, call: Call) -> None:
    """Never stop sending, from another task than the call's."""
    async with asyncio.TaskGroup() as group:
        group.create_task(busy(request, call))
        await asyncio.Event().wait()


async def refused(channel: grpc.aio.Channel, *metadata: tuple[str, str], name: str = edges.GET) -> str:
    """Call, and return the reason of the refusal."""
    return reason(await failure(channel.unary_unary(name)(b"", metadata=metadata)))


async def test_a_token_says_who_calls_and_where_it_looks() -> None:  # C139, S3
    acme = guest("runs:read", principal="ann", namespace="acme")
    async with serving({edges.GET: answer}, credentials=knowing(READER, acme)) as edge, connect(edge) as channel:
        method = channel.unary_unary(edges.GET)
        assert await method(b"", metadata=acme.metadata) == f"ann acme token:{acme.token_id}".encode()
        assert await method(b"", metadata=(("authorization", f"bEARER {READER.text}"),)) == (
            f"reader default token:{READER.token_id}".encode()
        )


async def test_a_token_counts_in_the_metadata_authorization_and_nowhere_else() -> None:  # S3
    text = READER.text
    async with serving({edges.GET: answer}, credentials=knowing(READER)) as edge, connect(edge) as channel:
        for elsewhere in (
            ("token", text),
            ("cookie", f"authorization=Bearer {text}"),
            ("x-authorization", f"Bearer {text}"),
            ("proxy-authorization", f"Bearer {text}"),
            ("user", f"Bearer {text}"),
        ):
            assert await refused(channel, elsewhere) == "AUTH_REQUIRED"
        for malformed in (text, f"Basic {text}", f"Bearer  {text}", f"Bearer {text} ", "Bearer", "Bearer ", ""):
            assert await refused(channel, ("authorization", malformed)) in ("AUTH_CREDENTIAL_INVALID", "AUTH_REQUIRED")
        twice = (*READER.metadata, *READER.metadata)
        assert await refused(channel, *twice) == "AUTH_CREDENTIAL_INVALID"
        # A query behind the method makes it another method, which there is not.
        error = await failure(channel.unary_unary(f"{edges.GET}?token={text}")(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "wrong",
    [
        new_token().text,
        f"{READER.text[:-1]}{'A' if READER.text[-1] != 'A' else 'B'}",
        READER.text.upper(),
        READER.text[:-1],
        f"{READER.text}A",
        "sha256:" + digest(READER.text).hex(),
        "behest_",
        "a.b.c",
    ],
    ids=["another", "last letter", "capitals", "shorter", "longer", "its hash", "no token", "signed"],
)
async def test_only_the_whole_token_is_the_token(wrong: str) -> None:  # S3
    async with serving({edges.GET: answer}, credentials=knowing(READER)) as edge, connect(edge) as channel:
        assert await refused(channel, ("authorization", f"Bearer {wrong}")) == "AUTH_CREDENTIAL_INVALID"


async def test_a_revoked_token_fails_with_the_next_call_and_another_of_the_principal_goes_on() -> None:  # C139, S3
    first, second = (guest("runs:read", principal="ann") for _ in range(2))
    async with serving({edges.GET: answer}, credentials=knowing(first, second)) as edge, connect(edge) as channel:
        method = channel.unary_unary(edges.GET)
        await method(b"", metadata=first.metadata)
        edge.entrance.prepare(Secured(knowing(second, revoked=[first])))()
        assert await refused(channel, *first.metadata) == "AUTH_CREDENTIAL_REVOKED"
        await method(b"", metadata=second.metadata)
        edge.entrance.prepare(Secured(knowing(second)))()
        assert await refused(channel, *first.metadata) == "AUTH_CREDENTIAL_INVALID"


async def watching(edge: Edge, channel: grpc.aio.Channel, who: Guest) -> Any:
    """Open a stream that has said one thing."""
    watch = channel.unary_stream(edges.WATCH)(b"", metadata=who.metadata)
    assert await watch.read() == b"here"
    return watch


@pytest.mark.parametrize("handler", [busy, in_a_task_of_its_own])
async def test_a_stream_that_is_ended_while_it_sends_is_told_why(handler: Any) -> None:  # S3
    # A status behind a write that was cut never leaves, and the client waits for ever.
    async with serving({edges.WATCH: handler}, credentials=knowing(READER)) as edge, connect(edge) as channel:
        for _ in range(20):
            edge.identity.replace(knowing(READER))
            watch = await watching(edge, channel, READER)
            edge.entrance.prepare(Secured(knowing(revoked=[READER])))()
            assert reason(await failure(edges.drain(watch))) == "AUTH_CREDENTIAL_REVOKED"


@pytest.mark.parametrize("handler", [quiet, stubborn])
async def test_a_reload_ends_the_streams_of_a_revoked_token_at_once(handler: Any) -> None:  # C139, S3
    other = guest("runs:read", principal="other")
    async with serving({edges.WATCH: handler}, credentials=knowing(READER, other)) as edge, connect(edge) as channel:
        ending, staying = await watching(edge, channel, READER), await watching(edge, channel, other)
        edge.entrance.prepare(Secured(knowing(other, revoked=[READER])))()
        error = await failure(ending.read())
        assert (error.code(), reason(error)) == (grpc.StatusCode.UNAUTHENTICATED, "AUTH_CREDENTIAL_REVOKED")
        assert not staying.done()
        assert edge.entrance.open_calls is not None
        assert len(edge.entrance.open_calls) == 1
        staying.cancel()
        await until(lambda: edge.admission.statistics().in_flight[Load.WATCH] == 0)
        assert len(edge.entrance.open_calls) == 0


@pytest.mark.parametrize("name", [edges.WRITE, edges.ATTACH])
async def test_a_stream_that_listens_to_its_client_is_ended_too(name: str) -> None:  # S3
    both, listening = guest("data:write", "tools:register"), asyncio.Event()

    async def listen(request: Any, call: Call) -> None:
        listening.set()
        async for _ in request:
            pass

    async with serving({name: listen}, credentials=knowing(both)) as edge, connect(edge) as channel:
        open_stream = getattr(channel, kind_of(name))(name)(metadata=both.metadata)
        async with asyncio.timeout(30):
            await listening.wait()
        edge.entrance.prepare(Secured(knowing(revoked=[both])))()
        error = await failure(open_stream if name == edges.WRITE else open_stream.read())
        assert reason(error) == "AUTH_CREDENTIAL_REVOKED"


async def test_a_stream_ends_when_its_scope_is_taken_away_and_not_when_another_is() -> None:  # S3, S4
    wide = guest("runs:read", "runs:create", principal="ann")

    def with_scopes(*scopes: str) -> Credentials:
        caller = Caller("ann", "default", frozenset(scopes), f"token:{wide.token_id}")
        return Credentials(tokens={wide.token_id: Token(wide.token.digest, caller)})

    async with serving({edges.WATCH: quiet}, credentials=knowing(wide)) as edge, connect(edge) as channel:
        watch = await watching(edge, channel, wide)
        edge.entrance.prepare(Secured(with_scopes("runs:read")))()
        assert not watch.done()
        edge.entrance.prepare(Secured(with_scopes("runs:create")))()
        error = await failure(watch.read())
        assert (error.code(), reason(error)) == (grpc.StatusCode.PERMISSION_DENIED, "AUTH_SCOPE_MISSING")


async def test_a_stream_outlives_its_tokens_time_by_no_more_than_a_look() -> None:  # S3
    brief = guest("runs:read", expires_ns=time.time_ns() + 1_000_000_000)
    settings = Settings(keepalive=Keepalive(interval_seconds=60), look_seconds=0.1)
    async with serving({edges.WATCH: quiet, edges.GET: answer}, settings, credentials=knowing(brief)) as edge:
        async with connect(edge) as channel, asyncio.TaskGroup() as group:
            keeping = group.create_task(edge.keep())
            watch = await watching(edge, channel, brief)
            async with asyncio.timeout(30):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await watch.read()
            assert reason(caught.value) == "AUTH_CREDENTIAL_EXPIRED"
            assert time.time_ns() >= brief.token.caller.expires_ns
            assert await refused(channel, *brief.metadata) == "AUTH_CREDENTIAL_EXPIRED"
            keeping.cancel()


def test_open_streams_are_looked_at_every_minute() -> None:  # S3
    assert Settings().look_seconds == 60


def test_a_caller_is_valid_as_long_as_its_credential_is() -> None:
    now = [1_000]
    brief = guest("runs:read", expires_ns=2_000)
    identity = Identity(knowing(READER, brief), is_local=False, now_ns=lambda: now[0])
    assert identity.is_valid(READER.token.caller)
    assert identity.is_valid(brief.token.caller)
    assert not identity.is_valid(guest("runs:read").token.caller)
    assert not identity.is_valid(LOCAL)
    moved = Caller("reader", "elsewhere", READER.token.caller.scopes, READER.token.caller.credential)
    assert not identity.is_valid(moved)
    now[0] = 2_000
    assert not identity.is_valid(brief.token.caller)
    assert Identity(Credentials(), is_local=True).is_valid(LOCAL)


async def test_who_is_not_known_learns_nothing_of_what_is_there() -> None:  # S3, S14
    async with serving({edges.GET: answer}, credentials=knowing(READER)) as edge, connect(edge) as channel:
        served = await failure(called(channel, edges.GET))
        assert reason(served) == "AUTH_REQUIRED"
        # What cannot be read, is too large or has no row is told to nobody before they are known.
        assert reason(await failure(called(channel, edges.GET, body=b"\xff" * 1000))) == "AUTH_REQUIRED"


# --- what is kept of a token ---


def test_a_token_is_256_random_bits_and_never_twice_the_same() -> None:  # S3
    made = [new_token() for _ in range(1000)]
    assert len({each.text for each in made}) == len({each.text[16:] for each in made}) == 1000
    assert all(re.fullmatch(r"behest_[a-z2-7]{8}_[A-Za-z0-9_-]{43}", each.text) for each in made)
    letters = "".join(each.text[16:] for each in made)
    assert len(set(letters)) == 64


def test_of_a_token_its_hash_is_kept_and_nothing_of_it_is_shown() -> None:  # S3, S9
    made = new_token()
    assert made.stored == "sha256:" + hashlib.sha256(made.text.encode()).hexdigest()
    token = Token(digest(made.text), Caller("ann", "default", frozenset({ADMIN})))
    shown = repr((made, token, Credentials(tokens={made.token_id: token})))
    assert made.text not in shown
    assert made.text[16:] not in shown


class Compared:
    """Counts what is compared, in place of the one function that compares."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []

    def __call__(self, left: bytes, right: bytes) -> bool:
        """Compare two digests."""
        self.pairs.append((len(left), len(right)))
        return left == right


def test_every_token_costs_the_same_work_known_or_not(monkeypatch: pytest.MonkeyPatch) -> None:  # S3
    # Not by a clock, which a busy machine makes useless: one hash and one comparison of whole digests, whatever is
    # shown, and that comparison is the standard library's, which takes the same time for all digests.
    known = knowing(READER)
    compared = Compared()
    monkeypatch.setattr("behestd.service.credentials.hmac.compare_digest", compared)
    for text in (READER.text, f"{READER.text[:-2]}AA", new_token().text, "", "x" * 8000):
        known.token(text)
    assert compared.pairs == [(32, 32)] * 5
