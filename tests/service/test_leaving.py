"""Clients that leave while their change is committed: the daemon goes by what is stored, as after a restart."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask

from behest.v1 import agent_service_pb2 as agents
from behest.v1 import daemon_service_pb2 as daemon
from behest.v1 import registry_service_pb2 as registry
from behest.v1 import session_service_pb2 as sessions
from behest.v1.agent_pb2 import Agent
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer, ServerState
from behest.v1.session_pb2 import Session
from behest.v1.usage_pb2 import Budget
from behestd.errors import StorageFull
from behestd.log import sqlite_schema
from behestd.runtime.whole import whole
from tests.daemons import Served, serve
from tests.service.edges import Gate, until

ALL = daemon.PauseTarget(all=True)
ATTACHED = Server(
    name="files",
    connection=ServerConnection.SERVER_CONNECTION_ATTACHED,
    offers=[ServerOffer.SERVER_OFFER_TOOLS],
)


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A daemon on SQLite, in a place of its own."""
    async with serve("sqlite", tmp_path / "data") as made:
        yield made


@contextmanager
def held(home: Path) -> Iterator[None]:
    """Let no commit of a daemon come to its end meanwhile."""
    with closing(sqlite3.connect(home / sqlite_schema.FILE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def leave(served: Served, home: Path, method: Any, request: Any) -> None:
    """Ask for a change, and leave when it is being committed. Returns when the daemon has let go of the call."""
    batches = served.daemon.log.statistics().batches
    with held(home):
        call = method(request)
        await until(lambda: served.daemon.log.statistics().batches > batches)
        assert call.cancel()
    admission = served.daemon.edge.admission
    await until(lambda: not any(admission.statistics().in_flight.values()))
    assert await call.code() == grpc.StatusCode.CANCELLED


async def names(served: Served) -> list[str]:
    listed = await served.client.stubs.registry.ListServers(registry.ListServersRequest())
    return [server.name for server in listed.servers]


async def test_an_agent_is_as_it_is_stored(served: Served, tmp_path: Path) -> None:  # N04
    stub = served.client.stubs.agents
    await stub.CreateAgent(agents.CreateAgentRequest(agent=Agent(id="writer", instructions="old")))
    mask = FieldMask(paths=["instructions"])
    request = agents.UpdateAgentRequest(agent=Agent(id="writer", instructions="new"), update_mask=mask)
    await leave(served, tmp_path / "data", stub.UpdateAgent, request)
    assert (await stub.GetAgent(agents.GetAgentRequest(agent_id="writer"))).agent.instructions == "new"
    await leave(served, tmp_path / "data", stub.DeleteAgent, agents.DeleteAgentRequest(agent_id="writer"))
    assert [agent.id for agent in (await stub.ListAgents(agents.ListAgentsRequest())).agents] == ["default"]


async def test_a_session_has_the_budget_that_is_stored(served: Served, tmp_path: Path) -> None:  # N04 N10
    stub = served.client.stubs.sessions
    await served.client.sessions.create(Session(id="chat", budget=Budget(max_total_tokens=1_000)))
    assert (await served.client.sessions.get("chat")).budget_use.budget.max_total_tokens == 1_000
    less = Session(id="chat", budget=Budget(max_total_tokens=10))
    request = sessions.UpdateSessionRequest(session=less, update_mask=FieldMask(paths=["budget"]))
    await leave(served, tmp_path / "data", stub.UpdateSession, request)
    assert (await served.client.sessions.get("chat")).budget_use.budget.max_total_tokens == 10


async def test_a_session_that_is_deleted_has_no_account(served: Served, tmp_path: Path) -> None:  # N04 N10
    stub = served.client.stubs.sessions
    budgeted = Session(id="chat", budget=Budget(max_total_tokens=1_000))
    await served.client.sessions.create(budgeted)
    await served.client.stream("hello", session_id="chat").result()
    assert (await served.client.sessions.get("chat")).budget_use.tokens
    await leave(served, tmp_path / "data", stub.DeleteSession, sessions.DeleteSessionRequest(session_id="chat"))
    await served.client.sessions.create(budgeted)
    assert not (await served.client.sessions.get("chat")).budget_use.tokens


async def test_servers_are_those_that_are_stored(served: Served, tmp_path: Path) -> None:  # N04
    stub = served.client.stubs.registry
    await leave(served, tmp_path / "data", stub.RegisterServer, registry.RegisterServerRequest(server=ATTACHED))
    assert await names(served) == ["files"]
    (made,) = (await stub.ListServers(registry.ListServersRequest())).servers
    request = registry.UnregisterServerRequest(server_id=made.id)
    await leave(served, tmp_path / "data", stub.UnregisterServer, request)
    assert await names(served) == []


async def test_a_registration_is_replaced_by_the_one_that_is_stored(served: Served, tmp_path: Path) -> None:  # N04
    stub = served.client.stubs.registry
    first = (await stub.RegisterServer(registry.RegisterServerRequest(server=ATTACHED))).server
    other = Server(labels={"team": "a"})
    other.MergeFrom(ATTACHED)
    request = registry.RegisterServerRequest(server=other, replace=True)
    await leave(served, tmp_path / "data", stub.RegisterServer, request)
    now = (await stub.GetServer(registry.GetServerRequest(server_id=first.id))).server
    assert dict(now.labels) == {"team": "a"}


@pytest.mark.parametrize("is_paused", [True, False])
async def test_what_is_paused_is_what_is_stored(served: Served, tmp_path: Path, is_paused: bool) -> None:  # N04 N17
    stub = served.client.stubs.daemon
    if not is_paused:
        await stub.SetPaused(daemon.SetPausedRequest(target=ALL, paused=True, reason="test"))
    request = daemon.SetPausedRequest(target=ALL, paused=is_paused, reason="test")
    await leave(served, tmp_path / "data", stub.SetPaused, request)
    assert bool((await served.client.daemon.status()).pauses) is is_paused


async def test_a_server_that_left_before_it_was_welcomed_may_come_back(served: Served, tmp_path: Path) -> None:  # N04
    stub = served.client.stubs.registry
    hello = registry.AttachHello(
        server_name="files", tools=[{"name": "read", "input_schema_json": '{"type": "object"}'}]
    )

    def attach(request: registry.AttachServerRequest) -> Any:
        return stub.AttachServer(iter([request]))

    await leave(served, tmp_path / "data", attach, registry.AttachServerRequest(hello=hello))
    (made,) = (await stub.ListServers(registry.ListServersRequest())).servers
    assert (made.state, list(made.tool_names)) == (ServerState.SERVER_STATE_RECONNECTING, ["read"])


async def test_who_is_cancelled_hears_of_a_failure_first() -> None:
    gate = Gate()

    async def work() -> None:
        await gate.pass_through()
        raise StorageFull

    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_failure_of(work()))
        await gate.reached.wait()
        waiting.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.opened.set()
    assert isinstance(await waiting, StorageFull)


async def test_who_is_cancelled_twice_takes_the_work_along() -> None:
    gate = Gate()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(whole(gate.pass_through()))
        await gate.reached.wait()
        waiting.cancel()
        await asyncio.sleep(0)
        waiting.cancel()
    assert waiting.cancelled()
    assert len(asyncio.all_tasks()) == 1


async def _failure_of(work: Coroutine[Any, Any, None]) -> Exception | None:
    try:
        await whole(work)
    except StorageFull as error:
        return error
    return None
