"""An attached TypeScript tool server: its frames with a daemon's end that the tests hold, then with a real daemon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from behest.client import Client
from behest.v1.chat_service_pb2 import StreamChatRequest
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
from behest.v1.tool_service_pb2 import CallState, CallToolRequest, GetCallStatusRequest
from tests.daemon_process import running
from tests.interop.typescript.node import INSTALL_SECONDS, SECONDS, Program, program

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 120)

TOOLS = ["break", "count", "fail", "long", "pay", "wait"]


class Stream:
    """One stream of an attached server, as the daemon's end sees it. It ends when it is told to."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._ended = asyncio.Event()
        self.status: tuple[grpc.StatusCode, str] | None = None
        self.received: asyncio.Queue[AttachServerRequest | None] = asyncio.Queue()
        self._parts: dict[int, list[AttachReply]] = {}

    async def run(self, requests: AsyncIterator[AttachServerRequest]) -> None:
        """Read until the server ends its side, or this side is told to end."""
        reading = asyncio.create_task(self._read(requests))
        await self._ended.wait()
        reading.cancel()

    async def _read(self, requests: AsyncIterator[AttachServerRequest]) -> None:
        async for frame in requests:
            self.received.put_nowait(frame)
        self.received.put_nowait(None)

    async def send(self, **frame: Any) -> None:
        """Send a frame; without fields, a heartbeat."""
        await self._context.write(AttachServerResponse(**frame))

    async def call(self, number: int, name: str, arguments: str = "{}", key: str = "", *, more: bool = False) -> None:
        """Send a call of a tool."""
        request = CallToolRequest(
            tool_name=name, arguments_json=arguments, idempotency_key=key, epoch=1, attempt=1, call_id="call-1"
        )
        await self.send(call=AttachCall(call_number=number, call_tool=request, more=more))

    async def frame(self) -> AttachServerRequest | None:
        """Wait for the next frame that is no heartbeat; None when the server has ended its side."""
        async with asyncio.timeout(SECONDS):
            while (frame := await self.received.get()) is not None and frame.WhichOneof("frame") is None:
                pass
        return frame

    async def hello(self) -> AttachHello:
        """Wait for the hello."""
        frame = await self.frame()
        assert frame is not None and frame.HasField("hello")
        return frame.hello

    async def replies(self, number: int) -> list[AttachReply]:
        """Wait for the end of a call, and give its parts. Those of other calls are kept."""
        parts = self._parts.setdefault(number, [])
        while not parts or not parts[-1].HasField("end"):
            frame = await self.frame()
            assert frame is not None and frame.HasField("reply"), frame
            self._parts.setdefault(frame.reply.call_number, []).append(frame.reply)
        return parts

    def end(self, code: grpc.StatusCode | None = None, reason: str = "") -> None:
        """End the stream, well or with an error."""
        self.status = None if code is None else (code, reason)
        self._ended.set()


class Registry(RegistryServiceServicer):
    """The daemon's end: each stream is handed to the test."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.open: list[Stream] = []

    async def AttachServer(self, requests: AsyncIterator[AttachServerRequest], context: Any) -> None:  # type: ignore[override]
        stream = Stream(context)
        self.open.append(stream)
        self.streams.put_nowait(stream)
        await stream.run(requests)
        if stream.status is not None:
            code, reason = stream.status
            detail = AnyMessage()
            detail.Pack(ErrorInfo(reason=reason, domain="behest"))
            status = Status(code=code.value[0], details=[detail])
            await context.abort(code, "", (("grpc-status-details-bin", status.SerializeToString()),))

    async def next(self) -> tuple[Stream, AttachHello]:
        """Wait for the next stream and its hello."""
        async with asyncio.timeout(SECONDS):
            stream = await self.streams.get()
        return stream, await stream.hello()

    async def attached(self, **welcome: Any) -> tuple[Stream, AttachHello]:
        """Wait for the next stream, and welcome its server."""
        stream, hello = await self.next()
        usual = {"lease_id": "lease-1", "heartbeat": Duration(seconds=20), "max_frame_bytes": 4 * 1024 * 1024}
        await stream.send(welcome=AttachWelcome(**(usual | welcome)))
        return stream, hello


@asynccontextmanager
async def attaching(folder: Path) -> AsyncIterator[tuple[Registry, Program]]:
    """Hold a daemon's end, and start a tool server that attaches to it."""
    registry = Registry()
    server = grpc.aio.server()
    add_RegistryServiceServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        arguments = ("attached", f"127.0.0.1:{port}", str(folder / "ledger"), str(folder / "calls.sqlite3"))
        async with program("tools", *arguments) as process:
            yield registry, process
    finally:
        for stream in registry.open:
            stream.end()
        await server.stop(0)


def executed(folder: Path) -> list[dict[str, Any]]:
    """Read what the server has executed."""
    return [json.loads(line) for line in (folder / "ledger").read_text().splitlines()]


def kinds(parts: list[AttachReply]) -> list[str | None]:
    """Name the parts of an answer; frames of a call by their own kind."""
    return [
        part.call_tool.WhichOneof("frame") if part.HasField("call_tool") else part.WhichOneof("response")
        for part in parts
    ]


def text(part: AttachReply) -> str:
    """Join the texts of a result."""
    return "".join(each.text.text for each in part.call_tool.result.parts)


def reason(part: AttachReply) -> tuple[str, bool]:
    """Read why a call ended, and whether it is proved that nothing was executed."""
    info = ErrorInfo()
    assert part.end.error.details[0].Unpack(info)
    return info.reason, part.end.not_executed


async def test_the_server_says_hello_and_answers_calls(tmp_path: Path) -> None:  # C025
    async with attaching(tmp_path) as (registry, process):
        stream, hello = await registry.attached()
        await process.expect("ready")
        await stream.call(1, "wait", '{"ms": 1}', "key-1")
        waited = await stream.replies(1)
        await stream.call(2, "wait", '{"ms": 1}', "key-1")
        again = await stream.replies(2)
        await stream.call(3, "nothing", key="key-2")
        unknown = await stream.replies(3)
        assert len(executed(tmp_path)) == 1
    assert (hello.server_name, [tool.name for tool in hello.tools]) == ("typescript", TOOLS)
    assert hello.dedupe_retention.seconds >= 48 * 3600
    assert hello.takes_chunked_arguments
    assert (hello.lease_id, list(hello.held)) == ("", [])
    assert kinds(waited) == ["accepted", "progress", "result", "end"]
    assert kinds(again)[-2:] == ["result", "end"]
    assert text(waited[-2]) == text(again[-2]) == "waited 1 ms"
    assert kinds(unknown) == ["end"]
    assert reason(unknown[0]) == ("TOOL_NOT_FOUND", True)


async def test_a_broken_stream_loses_no_result_and_executes_nothing_twice(tmp_path: Path) -> None:  # C025, N02
    async with attaching(tmp_path) as (registry, process):
        first, _ = await registry.attached()
        await first.call(1, "wait", '{"ms": 2000}', "key-1")
        await process.expect("began wait")
        first.end(grpc.StatusCode.UNAVAILABLE)
        second, hello = await registry.attached(lease_id="lease-2")
        assert hello.lease_id == "lease-1"
        assert [(held.idempotency_key, held.is_done) for held in hello.held] == [("key-1", False)]
        await second.call(1, "wait", '{"ms": 2000}', "key-1")
        accepted = await second.frame()
        assert accepted is not None and accepted.reply.HasField("accepted")
        while not hello.held[0].is_done:
            second.end(grpc.StatusCode.UNAVAILABLE)
            second, hello = await registry.attached()
        await second.call(1, "wait", '{"ms": 2000}', "key-1")
        parts = await second.replies(1)
        assert text(parts[-2]) == "waited 2000 ms"
        assert len(executed(tmp_path)) == 1


async def test_another_process_reports_what_the_one_before_has_done(tmp_path: Path) -> None:
    async with attaching(tmp_path) as (registry, process):
        stream, _ = await registry.attached()
        await stream.call(1, "pay", '{"text": "a"}', "done")
        result = (await stream.replies(1))[-2].call_tool.result
        await stream.call(2, "wait", '{"ms": 600000}', "lost")
        await process.expect("began wait")
        await process.kill()
    async with attaching(tmp_path) as (registry, _):
        stream, hello = await registry.attached()
        await stream.call(1, "pay", '{"text": "a"}', "done")
        assert (await stream.replies(1))[-2].call_tool.result == result
        await stream.call(2, "wait", '{"ms": 600000}', "lost")
        unknown = await stream.replies(2)
        assert [line["key"] for line in executed(tmp_path)] == ["done", "lost"]
    assert {held.idempotency_key: held.is_done for held in hello.held} == {"done": True, "lost": False}
    assert reason(unknown[-1]) == ("TOOL_OUTCOME_UNKNOWN", False)


async def test_large_arguments_and_results_travel_in_pieces(tmp_path: Path) -> None:
    arguments = json.dumps({"text": "é" * 3000}, ensure_ascii=False).encode()
    async with attaching(tmp_path) as (registry, _):
        stream, _ = await registry.attached(max_frame_bytes=64 * 1024)
        await stream.call(1, "count", "", "key-1", more=True)
        pieces = [arguments[start : start + 1001] for start in range(0, len(arguments), 1001)]
        for number, chunk in enumerate(pieces, start=1):
            await stream.send(arguments=AttachArguments(call_number=1, chunk=chunk, more=number < len(pieces)))
        counted = (await stream.replies(1))[-2].call_tool.result
        await stream.call(2, "long", '{"size": 40000}', "key-2")
        long = await stream.replies(2)
    assert json.loads(counted.parts[0].json.json) == len(arguments.decode())
    assert b"".join(part.call_tool.chunk for part in long).decode() == "漢字🙂" * 40_000
    assert max(part.ByteSize() for part in long) < 64 * 1024


async def test_calls_are_cancelled_and_bounded_by_the_credit(tmp_path: Path) -> None:
    async with attaching(tmp_path) as (registry, process):
        stream, _ = await registry.attached(max_concurrent_calls=2)
        await stream.call(1, "wait", '{"ms": 600000}', "key-1")
        await process.expect("began wait")
        await stream.call(2, "count", "", "key-2", more=True)
        await stream.call(3, "pay", '{"text": "a"}', "key-3")
        over = await stream.replies(3)
        await stream.send(cancel=AttachCancel(call_number=2))
        unbegun = await stream.replies(2)
        await stream.send(cancel=AttachCancel(call_number=1))
        stopped = await stream.replies(1)
        assert [line["name"] for line in executed(tmp_path)] == ["wait"]
    assert reason(over[-1]) == ("RUNTIME_OVERLOADED", True)
    assert reason(unbegun[-1]) == ("TOOL_CANCELLED", True)
    assert stopped[-2].call_tool.result.is_error


async def test_other_questions_are_answered_and_refused(tmp_path: Path) -> None:
    async with attaching(tmp_path) as (registry, _):
        stream, _ = await registry.attached()
        question = GetCallStatusRequest(idempotency_key="key-1", epoch=1, attempt=1)
        await stream.send(call=AttachCall(call_number=1, get_call_status=question))
        status = await stream.replies(1)
        await stream.send(call=AttachCall(call_number=2, stream_chat=StreamChatRequest()))
        chat = await stream.replies(2)
    assert status[0].get_call_status.state == CallState.CALL_STATE_NEVER_SEEN
    assert reason(chat[-1]) == ("REQUEST_UNSUPPORTED", True)


async def test_both_sides_must_be_heard(tmp_path: Path) -> None:
    async with attaching(tmp_path) as (registry, _):
        stream, _ = await registry.attached(heartbeat=Duration(nanos=300_000_000))
        for _ in range(3):
            async with asyncio.timeout(SECONDS):
                heard = await stream.received.get()
            assert heard is not None and heard.WhichOneof("frame") is None
        _, hello = await registry.next()
    assert hello.lease_id == "lease-1"


async def test_a_daemon_that_drains_gets_its_results_and_a_new_stream(tmp_path: Path) -> None:
    async with attaching(tmp_path) as (registry, process):
        stream, _ = await registry.attached()
        await stream.call(1, "wait", '{"ms": 300}', "key-1")
        await process.expect("began wait")
        await stream.send(drain=AttachDrain())
        assert text((await stream.replies(1))[-2]) == "waited 300 ms"
        assert await stream.frame() is None
        stream.end()
        await registry.attached()


async def test_a_server_that_stops_drains(tmp_path: Path) -> None:
    async with attaching(tmp_path) as (registry, process):
        stream, _ = await registry.attached()
        await process.expect("ready")
        await stream.call(1, "wait", '{"ms": 1000}', "key-1")
        await process.expect("began wait")
        process.process.terminate()
        frames = [await stream.frame() for _ in range(3)]
        assert [frame.WhichOneof("frame") for frame in frames if frame] == ["reply", "reply", "drain"]
        await stream.call(2, "pay", '{"text": "a"}', "key-2")
        refused = await stream.replies(2)
        assert text((await stream.replies(1))[-2]) == "waited 1000 ms"
        assert await stream.frame() is None
        stream.end()
        assert await process.end() == 0
        assert [line["name"] for line in executed(tmp_path)] == ["wait"]
    assert reason(refused[-1]) == ("RUNTIME_DRAINING", True)


async def test_a_server_whose_place_was_taken_does_not_come_back(tmp_path: Path) -> None:
    async with attaching(tmp_path) as (registry, process):
        stream, _ = await registry.attached()
        await process.expect("ready")
        stream.end(grpc.StatusCode.ABORTED, "TOOL_SERVER_REPLACED")
        await process.end()
        assert registry.streams.empty()


async def test_a_server_that_is_refused_at_first_is_told_why(tmp_path: Path) -> None:
    async with attaching(tmp_path) as (registry, process):
        stream, _ = await registry.next()
        stream.end(grpc.StatusCode.PERMISSION_DENIED, "AUTH_SCOPE_MISSING")
        assert await process.end() != 0


@pytest.mark.proof
async def test_a_thousand_calls_in_flight_survive_the_crash_of_the_daemon(tmp_path: Path) -> None:  # C025, N02
    config = "[limits]\ntool_calls = 1000\nactive_runs = 1200\n"
    files = (str(tmp_path / "ledger"), str(tmp_path / "calls.sqlite3"))
    async with running(tmp_path / "daemon", config=config) as daemon, Client(daemon.address) as client:
        async with program("tools", "attached", daemon.address, *files) as process:
            await process.expect("ready")
            runs = [await client.run('/tool wait {"ms": 25000}') for _ in range(1000)]
            for _ in runs:
                await process.expect("began wait")
            await daemon.kill()
            await daemon.start()
            async with asyncio.timeout(10 * SECONDS):
                outputs = [await run.result() for run in runs]
    assert {output.text for output in outputs} == {"wait: waited 25000 ms"}
    assert len({line["key"] for line in executed(tmp_path)}) == len(executed(tmp_path)) == 1000
