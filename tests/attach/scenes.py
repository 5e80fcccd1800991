"""What the tests of attached servers share: a daemon's address, registrations, calls, and how to wait."""

from __future__ import annotations

import asyncio
from typing import Any

from behest.runs import RunHandle
from behest.v1.event_pb2 import Event
from behest.v1.message_pb2 import ToolResult
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer, ServerState
from behest.v1.tool_service_pb2 import CallToolRequest
from tests.attach.peer import WAIT_SECONDS
from tests.daemons import Served
from tests.runs.scenes import kind_of, kinds

READY, AWAY, GONE = (
    ServerState.SERVER_STATE_READY,
    ServerState.SERVER_STATE_RECONNECTING,
    ServerState.SERVER_STATE_DISCONNECTED,
)


def address(served: Served) -> str:
    return served.daemon.addresses[0]


def registration(name: str = "till", **more: Any) -> Server:
    offers = [ServerOffer.SERVER_OFFER_TOOLS]
    return Server(name=name, connection=ServerConnection.SERVER_CONNECTION_ATTACHED, offers=offers, **more)


async def until_state(served: Served, name: str, state: ServerState.ValueType) -> Server:
    server = served.daemon.rooms.registry.named("default", name)
    assert server is not None
    async with asyncio.timeout(WAIT_SECONDS):
        while server.report().state != state:
            await asyncio.sleep(0.01)
    return server.report()


async def until(run: RunHandle, kind: str) -> list[Event]:
    """Follow a run until it has had an event of a kind."""
    seen: list[Event] = []
    async with asyncio.timeout(WAIT_SECONDS):
        async for event in run.events():
            seen.append(event)
            if kind_of(event) == kind:
                return seen
    raise AssertionError(f"no {kind} in {kinds(seen)}")


async def call_tool(served: Served, name: str = "pay", arguments: str = "{}", **fields: Any) -> ToolResult:
    """Call a tool directly. Raises AioRpcError."""
    request = CallToolRequest(tool_name=name, arguments_json=arguments, **fields)
    async for frame in served.client.stubs.tools.CallTool(request, timeout=WAIT_SECONDS):
        if frame.WhichOneof("frame") == "result":
            return frame.result
    raise AssertionError("no result")
