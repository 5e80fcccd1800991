"""A tool server that drains while nobody is there any more: it ends, however much runs or is owed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from behest.tools import ToolServer
from behest.v1.tool_service_pb2 import CallToolRequest
from behest.v1.tool_service_pb2_grpc import ToolServiceStub
from tests.sdk.desk import SECONDS, Desk, Stream, serving

ALONE_SECONDS = 0.2
# Much longer than a test may take: what ends in time was not ended by this.
GRACE_SECONDS = 10 * SECONDS


@asynccontextmanager
async def calling(desk: Desk) -> AsyncIterator[tuple[ToolServer, Stream, asyncio.Event]]:
    """A server at a desk, with a call that runs until it may end."""
    server, begun, opened = ToolServer(), asyncio.Event(), asyncio.Event()

    @server.tool(name="t")
    async def work() -> str:
        begun.set()
        await opened.wait()
        return "done"

    async with serving(desk) as port, server:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.attach(f"127.0.0.1:{port}", name="calc"))
            stream = await desk.stream()
            await stream.welcomed()
        await stream.call(idempotency_key="k")
        async with asyncio.timeout(SECONDS):
            await begun.wait()
        yield server, stream, opened


async def test_a_drain_goes_on_as_long_as_the_daemon_answers() -> None:
    desk = Desk()
    async with calling(desk) as (server, stream, opened), asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
        draining = group.create_task(server.drain(GRACE_SECONDS, alone_seconds=5.0))
        for _ in range(2):
            await desk.asked.get()
        assert not draining.done()
        assert (await stream.reply()).HasField("accepted")
        frame = await stream.next()
        assert frame is not None
        assert frame.HasField("drain")
        opened.set()
        result = await stream.result(1)
        stream.over.set_result("")
    assert result.parts[0].text.text == "done"


async def test_a_drain_ends_when_the_daemon_hangs() -> None:
    desk = Desk(is_there=False)
    async with calling(desk) as (server, _, _), asyncio.timeout(SECONDS):
        await server.drain(GRACE_SECONDS, alone_seconds=ALONE_SECONDS)
    assert desk.asked.qsize() >= 1


async def test_a_drain_ends_when_the_daemon_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    async with calling(desk) as (server, stream, _), asyncio.timeout(SECONDS):
        stream.over.set_result(None)
        desk.is_there = False
        await server.drain(GRACE_SECONDS, alone_seconds=ALONE_SECONDS)
    assert "1 calls are cut short" in caplog.text


async def test_a_server_that_owes_nothing_to_a_daemon_that_is_away_ends_at_once() -> None:
    desk = Desk(is_there=False)
    async with serving(desk) as port, ToolServer() as server, asyncio.timeout(SECONDS):
        async with asyncio.TaskGroup() as group:
            attaching = group.create_task(server.attach(f"127.0.0.1:{port}", name="calc"))
            await desk.stream()
            await server.drain(GRACE_SECONDS)
            await attaching
        assert not attaching.result().is_attached


async def test_a_call_that_was_dialled_is_not_waited_for_once_nobody_listens() -> None:
    server, begun = ToolServer(), asyncio.Event()

    @server.tool(name="t")
    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with server, asyncio.timeout(SECONDS):
        port = await server.serve("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            ToolServiceStub(channel).CallTool(CallToolRequest(tool_name="t", arguments_json="{}", idempotency_key="k"))
            await begun.wait()
        await server.drain(GRACE_SECONDS, alone_seconds=ALONE_SECONDS)
