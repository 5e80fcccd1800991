"""Local mode and everything beyond it, with whole daemons: what is open, what is asked for, what is taken away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from behest.client import Client
from behest.errors import BehestError
from behest.security import Tls
from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.definition_pb2 import PermissionAction
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behestd.core.definition import Operator
from behestd.service.call import Call
from behestd.service.credentials import NewToken, new_token
from behestd.service.reflection import METHODS
from behestd.service.scopes import ROLES, RULES
from tests.approvals.scenes import PATIENCE_SECONDS, payments
from tests.auth.authority import Authority
from tests.auth.scenes import Guest, Metadata, called, guest, knowing
from tests.auth.test_matrix import contract
from tests.auth.test_transport import only, spoken
from tests.daemon_process import running
from tests.daemons import Served, refused, serve
from tests.service import edges
from tests.service.edges import connect, failure, reason, serving

USER = guest(*ROLES["user"], "runs:approve", principal="ann")
APPROVER = guest(*ROLES["approver"], principal="ben")
ADMIN = guest(*ROLES["admin"], principal="root")
READER = guest(*ROLES["reader"], principal="ron")
TOOLS = guest(*ROLES["tool_server"], principal="tom")
EVERYBODY = knowing(USER, APPROVER, ADMIN, READER, TOOLS)
ASK = PermissionAction.PERMISSION_ACTION_ASK
APPROVED = ApprovalDecision.APPROVAL_DECISION_APPROVED
SERVING = b"\x08\x01"


@asynccontextmanager
async def by(served: Served, who: Guest) -> AsyncIterator[Client]:
    """A client of somebody."""
    async with Client(served.daemon.addresses[0], token=who.text) as client:
        yield client


async def test_on_this_machine_without_credentials_everybody_is_local_and_may_all() -> None:
    async with serve() as served:
        info = await served.client.daemon.info()
        assert info.local_mode
        await served.client.daemon.status()
        assert (await asked_for_the_contract(served.channel)) == ""


async def test_with_credentials_nobody_is_local_on_this_machine_either() -> None:  # S4
    async with serve(credentials=EVERYBODY) as served:
        assert (await refused(served.client.daemon.info())).reason == "AUTH_REQUIRED"
        async with by(served, READER) as client:
            assert not (await client.daemon.info()).local_mode
            assert (await refused(client.daemon.status())).reason == "AUTH_SCOPE_MISSING"


@pytest.mark.parametrize("name", [name for name in contract() if RULES[name].scope == "admin"])
async def test_what_is_for_admins_is_for_nobody_with_scopes_of_runs(name: str) -> None:  # S15
    everything_else = guest(*(rule.scope for rule in RULES.values() if rule.scope and rule.scope != "admin"))

    async def passed(request: Any, call: Call) -> bytes:
        return b""

    async with serving({name: passed}, credentials=knowing(everything_else)) as edge, connect(edge) as channel:
        error = await failure(called(channel, name, everything_else.metadata))
        assert (error.code(), reason(error)) == (grpc.StatusCode.PERMISSION_DENIED, "AUTH_SCOPE_MISSING")


# --- what strangers can learn ---


async def asked_for_the_contract(channel: grpc.aio.Channel, metadata: Metadata = ()) -> str:
    """Ask for the list of services, and return the code of the refusal, empty when there is none."""
    question = ServerReflectionRequest(list_services="").SerializeToString()
    for name in METHODS:
        try:
            answers = await called(channel, name, metadata, question)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        assert b"behest.v1.RunService" in answers[0]
    return ""


async def test_beyond_local_mode_reflection_is_off_unless_asked_for_and_then_for_admins() -> None:  # S14
    async with serve(credentials=EVERYBODY) as served:
        assert await asked_for_the_contract(served.channel, ADMIN.metadata) == "UNIMPLEMENTED"
    async with serve(credentials=EVERYBODY, has_reflection=True) as served:
        assert await asked_for_the_contract(served.channel) == "UNAUTHENTICATED"
        assert await asked_for_the_contract(served.channel, USER.metadata) == "PERMISSION_DENIED"
        assert await asked_for_the_contract(served.channel, ADMIN.metadata) == ""
    async with serve(has_reflection=False) as served:
        assert await asked_for_the_contract(served.channel) == "UNIMPLEMENTED"


async def test_a_stranger_learns_that_the_daemon_is_up_and_nothing_else() -> None:  # S14
    async with serve(credentials=EVERYBODY) as served:
        assert await called(served.channel, "/grpc.health.v1.Health/Check", body=b"") == SERVING
        for name in contract():
            error = await failure(called(served.channel, name, body=b""))
            assert (error.code(), reason(error)) == (grpc.StatusCode.UNAUTHENTICATED, "AUTH_REQUIRED"), name
        for name in ("/behest.v1.RunService/Nothing", "/grpc.channelz.v1.Channelz/GetServers", "/debug/pprof"):
            error = await failure(served.channel.unary_unary(name)(b""))
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED, name


async def test_a_fault_of_ours_is_told_without_a_word_of_it() -> None:  # S14
    async def broken(request: Any, call: Call) -> bytes:
        raise RuntimeError("canary-71c0 in /somewhere/secret.py")

    async with serving({edges.GET: broken}, credentials=knowing(READER)) as edge, connect(edge) as channel:
        error = await failure(channel.unary_unary(edges.GET)(b"", metadata=READER.metadata))
    assert reason(error) == "RUNTIME_INTERNAL"
    told = f"{error.details()} {error.trailing_metadata()} {error.debug_error_string()}"
    assert "canary" not in told
    assert "Traceback" not in told
    assert ".py" not in told


# --- what follows the mode ---


async def decided(served: Served, who: Guest, by_whom: Guest) -> str:
    """Have one order a run that asks, another approve it; returns why that is refused, empty when it is not."""
    async with by(served, who) as client, by(served, by_whom) as other, asyncio.timeout(PATIENCE_SECONDS):
        run = await client.run(f"/tool pay {json.dumps({'to': 'eve', 'amount': 1})}")
        async for event in run.events():
            if event.HasField("approval_requested"):
                break
        call_id = event.approval_requested.call_id
        try:
            await other.approvals.approve(await other.approvals.get(call_id))
        except BehestError as error:
            await run.cancel()
            return error.reason
        await run.result()
        return ""


async def test_beyond_local_mode_nobody_approves_the_calls_of_their_own_runs() -> None:  # S6
    paid: list[tuple[str, int]] = []
    plan = {"tools": payments(paid), "operator": Operator(default_permission=ASK), "credentials": EVERYBODY}
    async with serve(**plan) as served:
        assert await decided(served, USER, USER) == "APPROVAL_FORBIDDEN"
        assert paid == []
        assert await decided(served, USER, APPROVER) == ""
        assert paid == [("eve", 1)]


async def test_beyond_local_mode_an_address_of_this_machine_cannot_be_registered() -> None:  # S8
    server = Server(
        name="near",
        address="127.0.0.1:1",
        connection=ServerConnection.SERVER_CONNECTION_DIALLED,
        offers=[ServerOffer.SERVER_OFFER_TOOLS],
    )
    async with serve(credentials=EVERYBODY) as served, by(served, TOOLS) as client:
        assert (await refused(client.servers.register(server))).reason == "TOOL_ENDPOINT_REFUSED"
        async with by(served, USER) as other:
            assert (await refused(other.servers.register(server))).reason == "AUTH_SCOPE_MISSING"


# --- reloads ---

CONFIG = """
[limits]
drain_seconds = 0.5
[server.tls]
certificate = "file:{home}/server.pem"
key = "file:{home}/server.key"
[auth]
tokens_file = "file:{home}/tokens.toml"
"""


def entry(token: NewToken, principal: str, *, is_revoked: bool = False) -> str:
    """The part of a configuration that knows a token."""
    return (
        f'[[auth.tokens]]\nid = "{token.token_id}"\nhash = "{token.stored}"\nprincipal = "{principal}"\n'
        f'role = "user"\nrevoked = {str(is_revoked).lower()}\n'
    )


async def test_a_handshake_that_fails_writes_nothing_into_the_log(tmp_path: Path) -> None:  # S17
    Authority().server().write(tmp_path, "server")
    (tmp_path / "tokens.toml").write_text(entry(new_token(), "ann"))
    async with running(tmp_path / "daemon", config=CONFIG.format(home=tmp_path)) as daemon:
        with pytest.warns(DeprecationWarning):
            old = only(ssl.TLSVersion.TLSv1_1)
        for _ in range(3):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await spoken(daemon.address, old)
    lines = [line for line in daemon.log.splitlines() if not line.startswith("ready ")]
    assert lines
    assert all(json.loads(line)["event"] for line in lines)


async def test_a_hangup_revokes_a_token_and_renews_the_certificate_and_all_others_go_on(  # C135, C139, S2, S3
    tmp_path: Path,
) -> None:
    old, new = Authority(), Authority()
    first, second = new_token(), new_token()
    old.server().write(tmp_path, "server")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(entry(first, "ann") + entry(second, "ben"))
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(running(tmp_path / "daemon", config=CONFIG.format(home=tmp_path)))

        async def client(token: NewToken, authority: Authority) -> Client:
            tls = Tls(ca=authority.certificate)
            return await stack.enter_async_context(Client(daemon.address, token=token.text, tls=tls))

        ann, ben = await client(first, old), await client(second, old)
        theirs, others = await ann.run("/stall"), await ben.run("/delay 20 /words 120")
        watch, other_watch = aiter(theirs.events()), aiter(others.events())
        await anext(watch)
        await anext(other_watch)
        new.server().write(tmp_path, "server")
        tokens.write_text(entry(first, "ann", is_revoked=True) + entry(second, "ben"))
        os.kill(daemon.pid, signal.SIGHUP)
        async with asyncio.timeout(PATIENCE_SECONDS):
            # The client gives up at once, where it would wait a minute for a daemon that went away.
            with pytest.raises(BehestError) as caught:
                while True:
                    await anext(watch)
            assert caught.value.reason == "AUTH_CREDENTIAL_REVOKED"
            assert (await refused(ann.runs.get(theirs.run_id))).reason == "AUTH_CREDENTIAL_REVOKED"
            assert [event async for event in other_watch][-1].HasField("run_completed")
            newcomer = await client(second, new)
            await newcomer.runs.get(others.run_id)
        log = daemon.log
    assert first.text not in log
    assert second.text not in log
