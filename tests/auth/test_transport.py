"""TLS: what is spoken to strangers, who believes whom, and certificates that change under open streams."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from behestd.errors import InvalidRequest
from behestd.service import peer_certificate
from behestd.service.call import Call
from behestd.service.credentials import Credentials
from behestd.service.identity import Identity
from behestd.service.listen import AddressRefused
from behestd.service.scopes import Caller
from behestd.service.server import Edge, Plan
from behestd.service.tls import Tls, TlsUnusable, check
from tests.auth.authority import Authority, Pair
from tests.auth.scenes import guest, knowing
from tests.service import edges
from tests.service.edges import failure, reason, serving

CI = "spiffe://example.org/ci"
AUTHORITY, STRANGER = Authority(), Authority("another authority")
GUEST = guest("runs:read")
CERTIFIED = Credentials(certificates={CI: Caller("ci", "default", frozenset({"runs:read"}), f"certificate:{CI}")})


@dataclass(frozen=True, slots=True)
class Secured:
    """What a reload gives the edge."""

    credentials: Credentials
    tls: Tls | None = None


async def answer(request: Any, call: Call) -> bytes:
    """Say who calls."""
    return call.caller.principal.encode()


async def beat(request: Any, call: Call) -> None:
    """Send a frame when the test asks for one by letting the queue of the call have it."""
    for number in range(1, 1_000_000):
        await call.write(str(number).encode())
        await asyncio.sleep(0.02)


def shown(pair: Pair, clients: bytes = b"") -> Tls:
    """What the daemon shows."""
    return Tls(pair.certificate, pair.key, clients)


def secure(edge: Edge, believed: Authority = AUTHORITY, own: Pair | None = None, **options: str) -> grpc.aio.Channel:
    """Open a channel that believes an authority, and shows a certificate of its own."""
    key, certificate = (own.key, own.certificate) if own is not None else (None, None)
    return grpc.aio.secure_channel(
        edge.addresses[0],
        grpc.ssl_channel_credentials(believed.certificate, key, certificate),
        options=(("grpc.use_local_subchannel_pool", 1), *((f"grpc.{key}", value) for key, value in options.items())),
    )


async def spoken(address: str, context: ssl.SSLContext) -> str:
    """Shake hands by a TLS of the test's own, and return the version."""
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    version = writer.get_extra_info("ssl_object").version()
    writer.close()
    return str(version)


def only(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that speaks one version and believes anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if version < ssl.TLSVersion.TLSv1_2:
        # The library refuses the old versions too, unless it is told not to.
        context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, version
    if version >= ssl.TLSVersion.TLSv1_2:
        context.minimum_version = version
    return context


async def test_nobody_talks_to_a_tls_port_in_plaintext() -> None:  # S1
    async with serving({edges.GET: answer}, credentials=knowing(GUEST), tls=shown(AUTHORITY.server())) as edge:
        async with edges.connect(edge) as plain:
            error = await failure(plain.unary_unary(edges.GET)(b"", metadata=GUEST.metadata))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        async with secure(edge) as channel:
            assert await channel.unary_unary(edges.GET)(b"", metadata=GUEST.metadata) == b"guest"


async def test_tls_is_1_2_at_least_and_1_3_where_the_client_can() -> None:  # S1
    async with serving({edges.GET: answer}, credentials=knowing(GUEST), tls=shown(AUTHORITY.server())) as edge:
        address = edge.addresses[0]
        for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.warns(DeprecationWarning):
                context = only(old)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await spoken(address, context)
        assert await spoken(address, only(ssl.TLSVersion.TLSv1_2)) == "TLSv1.2"
        newest = only(ssl.TLSVersion.TLSv1_3)
        newest.minimum_version = ssl.TLSVersion.TLSv1_2
        assert await spoken(address, newest) == "TLSv1.3"


@pytest.mark.parametrize(
    ("pair", "believed"),
    [
        pytest.param(AUTHORITY.server(age=timedelta(days=3)), AUTHORITY, id="expired"),
        pytest.param(AUTHORITY.server("other.example.org"), AUTHORITY, id="wrong name"),
        pytest.param(STRANGER.server(), AUTHORITY, id="signed by a stranger"),
    ],
)
async def test_a_client_believes_no_other_certificate(pair: Pair, believed: Authority) -> None:  # S1
    async with serving({edges.GET: answer}, credentials=knowing(GUEST), tls=shown(pair)) as edge:
        async with secure(edge, believed) as channel:
            error = await failure(channel.unary_unary(edges.GET)(b"", metadata=GUEST.metadata))
            assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("credentials", "tls"),
    [(Credentials(), None), (knowing(GUEST), None), (Credentials(), shown(AUTHORITY.server()))],
    ids=["nothing", "no TLS", "no credentials"],
)
async def test_an_address_that_others_can_reach_needs_tls_and_credentials(  # S1
    credentials: Credentials, tls: Tls | None
) -> None:
    with pytest.raises(AddressRefused):
        Edge(Plan({edges.GET: answer}, ("0.0.0.0:0",), credentials=credentials, tls=tls))


async def test_with_tls_and_credentials_others_may_reach_it() -> None:  # S1
    async with serving(
        {edges.GET: answer}, addresses=("0.0.0.0:0",), credentials=knowing(GUEST), tls=shown(AUTHORITY.server())
    ) as edge:
        port = edge.addresses[0].rpartition(":")[2]
        credentials = grpc.ssl_channel_credentials(AUTHORITY.certificate)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            assert await channel.unary_unary(edges.GET)(b"", metadata=GUEST.metadata) == b"guest"


def test_a_daemon_that_others_could_reach_without_credentials_does_not_start(tmp_path: Path) -> None:  # C139, S1
    ended = subprocess.run(
        [sys.executable, "-m", "behestd", "serve", "--listen", "0.0.0.0:0", "--data-dir", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 78
    assert "server.listen[0]" in ended.stderr
    assert not (tmp_path / "data").exists()


async def test_a_socket_is_plain_beside_tls_and_asks_for_the_token_all_the_same(tmp_path: Path) -> None:  # S1
    addresses = (f"unix:{tmp_path}/behestd.sock", "127.0.0.1:0")
    async with serving(
        {edges.GET: answer}, addresses=addresses, credentials=knowing(GUEST), tls=shown(AUTHORITY.server())
    ) as edge:
        assert (tmp_path / "behestd.sock").stat().st_mode & 0o777 == 0o660
        async with edges.connect(edge) as channel:
            assert await channel.unary_unary(edges.GET)(b"", metadata=GUEST.metadata) == b"guest"
            assert reason(await failure(channel.unary_unary(edges.GET)(b""))) == "AUTH_REQUIRED"


# --- client certificates ---


async def test_a_client_is_known_by_the_uri_of_its_certificate() -> None:  # C139, S2
    tls = shown(AUTHORITY.server(), AUTHORITY.certificate)
    async with serving({edges.GET: answer}, credentials=CERTIFIED, tls=tls) as edge:
        async with secure(edge, own=AUTHORITY.client("https://example.org/x", CI)) as channel:
            assert await channel.unary_unary(edges.GET)(b"") == b"ci"
            error = await failure(channel.unary_unary(edges.CREATE)(b""))
            assert reason(error) in ("AUTH_SCOPE_MISSING", "")


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(None, id="none"),
        pytest.param(STRANGER.client(CI), id="signed by a stranger"),
        pytest.param(AUTHORITY.client(CI, age=timedelta(days=3)), id="expired"),
    ],
)
async def test_a_client_without_a_certificate_of_ours_does_not_get_a_connection(own: Pair | None) -> None:  # S2
    tls = shown(AUTHORITY.server(), AUTHORITY.certificate)
    async with serving({edges.GET: answer}, credentials=CERTIFIED, tls=tls) as edge, secure(edge, own=own) as channel:
        error = await failure(channel.unary_unary(edges.GET)(b""))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(AUTHORITY.client("spiffe://example.org/other"), id="wrong URI"),
        pytest.param(AUTHORITY.client(common_name=CI), id="common name"),
        pytest.param(AUTHORITY.client(CI.upper()), id="other letters"),
    ],
)
async def test_a_certificate_of_ours_that_stands_for_nobody_is_unknown(own: Pair) -> None:  # S2
    tls = shown(AUTHORITY.server(), AUTHORITY.certificate)
    async with serving({edges.GET: answer}, credentials=CERTIFIED, tls=tls) as edge, secure(edge, own=own) as channel:
        error = await failure(channel.unary_unary(edges.GET)(b""))
        assert (error.code(), reason(error)) == (grpc.StatusCode.UNAUTHENTICATED, "AUTH_REQUIRED")


def test_a_certificate_is_read_for_its_uris_and_its_end_and_a_caller_ends_with_it() -> None:  # S2
    seen = peer_certificate.of({"x509_pem_cert": [AUTHORITY.client("https://example.org/x", CI).certificate]})
    assert seen is not None
    assert seen.uris == ("https://example.org/x", CI)
    assert 0 < seen.expires_ns - time.time_ns() <= 24 * 3600 * 1_000_000_000
    assert peer_certificate.of({}) is None
    now = [time.time_ns()]
    identity = Identity(CERTIFIED, is_local=False, now_ns=lambda: now[0])
    known = CERTIFIED.certificates[CI]
    caller = Caller(known.principal, known.namespace, known.scopes, known.credential, seen.expires_ns)
    assert identity.is_valid(caller)
    now[0] = seen.expires_ns
    why = identity.why_not(caller)
    assert why is not None
    assert why.reason == "AUTH_CREDENTIAL_EXPIRED"
    identity.replace(Credentials())
    now[0] = 0
    assert not identity.is_valid(caller)


# --- rotation ---


async def rotated_under(streams: int) -> None:
    """Change the certificate twice under so many streams, on several connections: all go on, new ones see the new."""
    credentials, renewed = knowing(GUEST), Authority("renewed authority")
    async with serving(
        {edges.GET: answer, edges.WATCH: beat}, credentials=credentials, tls=shown(AUTHORITY.server())
    ) as edge:
        async with AsyncExitStack() as stack:
            channels = [await stack.enter_async_context(secure(edge)) for _ in range(max(1, streams // 50))]
            calls = [
                channels[number % len(channels)].unary_stream(edges.WATCH)(b"", metadata=GUEST.metadata)
                for number in range(streams)
            ]
            seen = [int(await call.read()) for call in calls]
            for pair, believed in ((renewed.server(), renewed), (AUTHORITY.server(), AUTHORITY)):
                edge.entrance.prepare(Secured(credentials, shown(pair)))()
                async with secure(edge, believed) as newcomer:
                    assert await newcomer.unary_unary(edges.GET)(b"", metadata=GUEST.metadata) == b"guest"
                for _ in range(3):
                    frames = [int(await call.read()) for call in calls]
                    assert frames == [before + 1 for before in seen]
                    seen = frames
            assert not any(call.done() for call in calls)
            async with secure(edge, renewed) as late:
                assert (await failure(late.unary_unary(edges.GET)(b""))).code() is grpc.StatusCode.UNAVAILABLE
            for call in calls:
                call.cancel()


async def test_a_certificate_changes_under_open_streams_and_none_is_dropped() -> None:  # C135, S2
    await rotated_under(20)


@pytest.mark.proof
async def test_a_certificate_changes_under_200_open_streams_and_none_is_dropped() -> None:  # C135, S2
    await rotated_under(200)


async def test_what_only_a_restart_can_change_is_refused_by_a_reload_and_changes_nothing() -> None:
    tls = shown(AUTHORITY.server())
    async with serving({edges.GET: answer}, credentials=knowing(GUEST), tls=tls) as edge:
        for plan in (
            Secured(Credentials(), tls),
            Secured(knowing(GUEST), None),
            Secured(knowing(GUEST), shown(AUTHORITY.server(), AUTHORITY.certificate)),
        ):
            with pytest.raises(InvalidRequest) as caught:
                edge.entrance.prepare(plan)
            assert caught.value.reason == "RUNTIME_CONFIG_INVALID"
        async with secure(edge) as channel:
            assert await channel.unary_unary(edges.GET)(b"", metadata=GUEST.metadata) == b"guest"


@pytest.mark.parametrize(
    ("tls", "field"),
    [
        (Tls(AUTHORITY.server().certificate, AUTHORITY.server().key), "key"),
        (Tls(b"no certificate", AUTHORITY.server().key), "certificate"),
        (Tls(AUTHORITY.server().certificate, b"no key"), "key"),
        (shown(AUTHORITY.server(), b"no authority"), "client_ca"),
    ],
    ids=["the key of another", "no certificate", "no key", "no authority"],
)
def test_what_cannot_be_served_with_is_found_before_anything_changes(tls: Tls, field: str) -> None:
    with pytest.raises(TlsUnusable) as caught:
        check(tls)
    assert caught.value.field == field


def test_nothing_of_a_key_is_shown() -> None:  # S9
    pair = AUTHORITY.server()
    assert pair.key.decode().splitlines()[1] not in repr(shown(pair))
