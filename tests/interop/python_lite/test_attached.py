"""The attached mode of the pure-Python client, frame by frame, against a registry that the test plays itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from behest.order import duration
from behest.v1.registry_service_pb2 import (
    AttachArguments,
    AttachCall,
    AttachCancel,
    AttachDrain,
    AttachHello,
    AttachReply,
    AttachServerRequest,
    AttachServerResponse,
    AttachWelcome,
)
from behest.v1.registry_service_pb2_grpc import RegistryServiceServicer, add_RegistryServiceServicer_to_server
from behest.v1.tool_service_pb2 import CallToolRequest, GetCallStatusRequest
from tests.interop.python_lite.processes import SECONDS, Program, needed, program

pytestmark = [needed, pytest.mark.timeout(180)]

FRAME_BYTES = 64 * 1024


class Stream:
    """One stream of the server, as the daemon sees it."""

    def __init__(self, requests: AsyncIterator[AttachServerRequest], context: Any) -> None:
        self._requests = requests
        self._context = context
        self.over = asyncio.Event()

    async def send(self, **frame: Any) -> None:
        """Send a frame."""
        await self._context.write(AttachServerResponse(**frame))

    async def hello(self) -> AttachHello:
        """Read the hello and answer it."""
        hello = (await self._next()).hello
        welcome = AttachWelcome(lease_id="lease-1", heartbeat=duration(15), max_frame_bytes=FRAME_BYTES)
        await self.send(welcome=welcome)
        return hello

    async def replies(self) -> list[AttachReply]:
        """Read the replies of the only call there is, up to its end."""
        found: list[AttachReply] = []
        while not found or found[-1].WhichOneof("response") != "end":
            frame = await self._next()
            assert frame.ByteSize() <= FRAME_BYTES
            if frame.HasField("reply"):
                found.append(frame.reply)
        return found

    async def ended(self) -> bool:
        """Read to the end of what the server sends: whether it was nothing but heartbeats and a drain."""
        async with asyncio.timeout(SECONDS):
            return all([frame.WhichOneof("frame") in (None, "drain") async for frame in self._requests])

    async def _next(self) -> AttachServerRequest:
        async with asyncio.timeout(SECONDS):
            while True:
                frame = await anext(self._requests)
                if frame.WhichOneof("frame") is not None:
                    return frame


class Registry(RegistryServiceServicer):
    """The side of the daemon: each stream is given to the test."""

    def __init__(self) -> None:
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()

    async def AttachServer(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        stream = Stream(request_iterator, context)
        await self._streams.put(stream)
        await stream.over.wait()

    async def next(self) -> Stream:
        """Wait for the next stream."""
        async with asyncio.timeout(SECONDS):
            return await self._streams.get()


@asynccontextmanager
async def attached() -> AsyncIterator[tuple[Registry, Program]]:
    """Play a registry, and attach a server to it."""
    registry = Registry()
    server = grpc.aio.server()
    add_RegistryServiceServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with program("server.py", "attach", f"127.0.0.1:{port}") as process:
            yield registry, process
    finally:
        await server.stop(0)


def call(number: int, tool: str, arguments: dict[str, Any], key: str = "", **fields: Any) -> AttachCall:
    """Make a call of a tool."""
    text = json.dumps(arguments) if arguments else ""
    request = CallToolRequest(tool_name=tool, arguments_json=text, idempotency_key=key, attempt=1, epoch=1)
    return AttachCall(call_number=number, call_tool=request, **fields)


def kinds(replies: list[AttachReply]) -> list[str]:
    """Name what each reply holds."""
    return [reply.call_tool.WhichOneof("frame") or reply.WhichOneof("response") or "" for reply in replies]


async def test_arguments_come_in_frames_and_a_large_result_goes_in_chunks() -> None:
    text = "ä" * 40_000
    async with attached() as (registry, _):
        stream = await registry.next()
        hello = await stream.hello()
        assert (hello.server_name, hello.takes_chunked_arguments) == ("lite", True)
        await stream.send(call=call(1, "echo", {}, key="key-1", more=True))
        data = json.dumps({"text": text}, ensure_ascii=False).encode()
        for start in range(0, len(data), 30_001):
            part = AttachArguments(call_number=1, chunk=data[start : start + 30_001], more=start + 30_001 < len(data))
            await stream.send(arguments=part)
        replies = await stream.replies()
        assert (kinds(replies)[0], kinds(replies)[-2:]) == ("accepted", ["result", "end"])
        assert b"".join(reply.call_tool.chunk for reply in replies).decode() == text
        assert not replies[-1].end.HasField("error")


async def test_what_is_held_is_reported_and_joined_not_executed_again() -> None:
    async with attached() as (registry, process):
        first = await registry.next()
        assert not (await first.hello()).held
        await first.send(call=call(1, "count", {}, key="done"))
        done = await first.replies()
        await first.send(call=call(2, "work", {"seconds": 2}, key="running"))
        await process.line("began")
        first.over.set()
        second = await registry.next()
        hello = await second.hello()
        assert hello.lease_id == "lease-1"
        assert {held.idempotency_key: held.is_done for held in hello.held} == {"done": True, "running": False}
        await second.send(call=call(1, "count", {}, key="done"))
        assert (await second.replies())[-2].call_tool.result == done[-2].call_tool.result
        await second.send(call=call(2, "work", {"seconds": 2}, key="running"))
        joined = await second.replies()
        assert joined[-2].call_tool.result.parts[0].text.text.startswith("worked")
    assert sum(line.startswith("began") for line in process.lines) == 1


async def test_a_cancelled_call_ends_and_a_refused_one_carries_the_proof() -> None:
    async with attached() as (registry, process):
        stream = await registry.next()
        await stream.hello()
        await stream.send(call=call(1, "work", {"seconds": 3600}, key="key-1"))
        await process.line("began")
        await stream.send(cancel=AttachCancel(call_number=1))
        assert (await stream.replies())[-2].call_tool.result.is_error
        await stream.send(call=call(2, "no-such-tool", {}, key="key-2"))
        (end,) = await stream.replies()
        assert (end.end.error.message, end.end.not_executed) == ("tool no-such-tool not found", True)
        status = GetCallStatusRequest(idempotency_key="key-3", epoch=1, attempt=1)
        await stream.send(call=AttachCall(call_number=3, get_call_status=status))
        (end,) = await stream.replies()
        assert (end.end.error.code, end.end.not_executed) == (grpc.StatusCode.UNIMPLEMENTED.value[0], False)


async def test_a_drained_stream_is_ended_and_another_one_opened() -> None:
    async with attached() as (registry, process):
        first = await registry.next()
        await first.hello()
        await first.send(call=call(1, "work", {"seconds": 0.5}, key="key-1"))
        await process.line("began")
        await first.send(drain=AttachDrain())
        assert kinds(await first.replies())[-2:] == ["result", "end"]
        assert await first.ended()
        first.over.set()
        second = await registry.next()
        await second.hello()
        await process.line("ready")
        stopping = asyncio.create_task(process.ended())
        assert await second.ended()
        second.over.set()
        assert await stopping == 0
