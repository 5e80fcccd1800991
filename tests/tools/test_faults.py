"""What one attempt says of its own failure: class, whether the tool took effect, reason."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from behest.v1.message_pb2 import ImagePart, JsonPart, Part, TextPart, ToolResult
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed, Progress, Tool
from behest.v1.tool_service_pb2 import CallToolResponse, CancelCallRequest, CancelCallResponse, ListToolsResponse
from behestd.tools.tool import CannotTell, Done, NeverSeen, ToolFailure
from tests import ports
from tests.tools.calls import call, dialled, limits, nowhere, process

NO, YES, UNKNOWN = Executed.EXECUTED_NO, Executed.EXECUTED_YES, Executed.EXECUTED_UNKNOWN
NOT_SENT = FailureClass.FAILURE_CLASS_NOT_SENT
THROTTLED = FailureClass.FAILURE_CLASS_THROTTLED
TRANSIENT = FailureClass.FAILURE_CLASS_TRANSIENT
AMBIGUOUS = FailureClass.FAILURE_CLASS_AMBIGUOUS
PERMANENT = FailureClass.FAILURE_CLASS_PERMANENT
MALFORMED = FailureClass.FAILURE_CLASS_MALFORMED
LIMIT = FailureClass.FAILURE_CLASS_LIMIT
TOOL = Tool(name="act")

Answer = Callable[[Any], Awaitable[None]]


class Rogue(grpc.GenericRpcHandler):
    """A server written by hand: CallTool sends whatever bytes it is told to, and cancellations are counted."""

    def __init__(self, answer: Answer, methods: dict[str, Callable[[], bytes]]) -> None:
        self.answer = answer
        self.methods = methods
        self.cancelled: list[str] = []
        self.asked: list[dict[str, Any]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        name = details.method.rpartition("/")[2]
        self.asked.append(dict(details.invocation_metadata or ()))
        if name == "CallTool":
            return grpc.unary_stream_rpc_method_handler(self.call)
        if name == "CancelCall":
            return grpc.unary_unary_rpc_method_handler(self.cancel)
        if name in self.methods:
            return grpc.unary_unary_rpc_method_handler(self.other(name))
        return None

    async def call(self, _request: bytes, context: Any) -> None:
        await self.answer(context)

    async def cancel(self, request: bytes, _context: Any) -> bytes:
        self.cancelled.append(CancelCallRequest.FromString(request).idempotency_key)
        return CancelCallResponse(acknowledged=True).SerializeToString()

    def other(self, name: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def answer(_request: bytes, _context: Any) -> bytes:
            return self.methods[name]()

        return answer


@asynccontextmanager
async def rogue(answer: Answer, **methods: Callable[[], bytes]) -> AsyncIterator[tuple[str, Rogue]]:
    handler = Rogue(answer, methods)
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port(ports.address())
    await server.start()
    try:
        async with asyncio.timeout(20):
            yield f"127.0.0.1:{port}", handler
    finally:
        await server.stop(0)


async def failure(address: str, link: dict[str, Any] | None = None, **changes: Any) -> ToolFailure:
    async with dialled(address, **(link or {})) as remote:
        with pytest.raises(ToolFailure) as failed:
            await remote.bind(TOOL).call(call(**changes), nowhere)
    return failed.value


def told(failed: ToolFailure) -> tuple[int, int, str]:
    return failed.failure_class, failed.executed, failed.reason


def frame(*parts: Part, **fields: Any) -> bytes:
    return CallToolResponse(result=ToolResult(parts=parts, **fields)).SerializeToString()


def sends(*frames: bytes) -> Answer:
    async def answer(context: Any) -> None:
        for data in frames:
            await context.write(data)

    return answer


@contextmanager
def silent_port() -> Iterator[str]:
    """A port that takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", ports.reserved()))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


async def test_a_closed_port_is_not_sent_at_once() -> None:  # matrix row 26
    with silent_port() as address:
        pass
    failed = await failure(address)
    assert told(failed) == (NOT_SENT, NO, "TOOL_UNAVAILABLE")


async def test_a_connection_that_never_stands_is_not_sent_after_its_own_limit() -> None:  # matrix row 26
    with silent_port() as address:
        failed = await failure(address, timeouts=limits(connect_seconds=0.3, start_to_close_seconds=9.0))
    assert told(failed) == (NOT_SENT, NO, "TOOL_UNAVAILABLE")


async def test_a_server_that_comes_back_is_reached_again_by_the_next_attempt() -> None:  # matrix row 26
    async with rogue(sends(frame(Part(text=TextPart(text="back"))))) as (address, _):
        pass
    async with dialled(address) as remote:
        with pytest.raises(ToolFailure):
            await remote.bind(TOOL).call(call(), nowhere)
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((Rogue(sends(frame(Part(text=TextPart(text="back")))), {}),))
        server.add_insecure_port(address)
        await server.start()
        ended = await remote.bind(TOOL).call(call(attempt=2), nowhere)
        await server.stop(0)
    assert ended.parts[0].text.text == "back"


@pytest.mark.parametrize("tool", ["die", "act"])
async def test_death_in_the_middle_is_no_proof_of_anything(tool: str, tmp_path: Path) -> None:  # matrix row 27
    ledger = tmp_path / "ledger"
    ledger.touch()
    async with process("tools/faulty_tools.py", str(ledger), str(tmp_path / "calls")) as (address, _):
        async with dialled(address) as remote:
            with pytest.raises(ToolFailure) as failed:
                then = '{"then": "die"}' if tool == "act" else "{}"
                await remote.bind(Tool(name=tool)).call(call(arguments_json=then), nowhere)
    assert told(failed.value) == (AMBIGUOUS, UNKNOWN, "TOOL_UNAVAILABLE")
    assert ledger.read_text() == ("key-1 1 1\n" if tool == "act" else "")


async def test_a_call_lost_in_a_death_is_never_executed_again_by_itself(tmp_path: Path) -> None:  # matrix row 31
    arguments = (str(tmp_path / "ledger"), str(tmp_path / "calls"))
    dying = call(arguments_json='{"then": "die"}')
    async with process("tools/faulty_tools.py", *arguments) as (address, _), dialled(address) as remote:
        with pytest.raises(ToolFailure):
            await remote.bind(TOOL).call(dying, nowhere)
    async with process("tools/faulty_tools.py", *arguments) as (address, _), dialled(address) as remote:
        with pytest.raises(ToolFailure) as failed:
            await remote.bind(TOOL).call(dying, nowhere)
        assert told(failed.value) == (AMBIGUOUS, UNKNOWN, "TOOL_OUTCOME_UNKNOWN")
        # Its own word, which does not change when it is asked again.
        assert isinstance(await remote.bind(TOOL).status("key-1", 1), CannotTell)
        assert isinstance(await remote.bind(TOOL).status("key-2", 1), NeverSeen)
    assert (tmp_path / "ledger").read_text() == "key-1 1 1\n"


async def test_what_was_done_and_buried_before_a_restart_is_still_known_after_it(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "ledger"), str(tmp_path / "calls"))
    async with process("tools/faulty_tools.py", *arguments) as (address, started), dialled(address) as remote:
        await remote.bind(TOOL).call(call(), nowhere)
        assert isinstance(await remote.bind(TOOL).status("key-2", 7), NeverSeen)
        started.kill()
    async with process("tools/faulty_tools.py", *arguments) as (address, _), dialled(address) as remote:
        assert isinstance(await remote.bind(TOOL).status("key-1", 1), Done)
        again = await remote.bind(TOOL).call(call(attempt=2), nowhere)
        with pytest.raises(ToolFailure) as failed:
            await remote.bind(TOOL).call(call(key="key-2", epoch=7), nowhere)
    assert again.parts[0].text.text == "done"
    assert failed.value.executed == NO
    assert (tmp_path / "ledger").read_text() == "key-1 1 1\n"


async def test_a_frozen_process_is_given_up_at_the_limit(tmp_path: Path) -> None:  # C028, matrix row 28
    arguments = (str(tmp_path / "ledger"), str(tmp_path / "calls"))
    async with process("tools/faulty_tools.py", *arguments) as (address, started):
        frozen = call(arguments_json='{"then": "stop"}', timeouts=limits(start_to_close_seconds=0.5))
        async with dialled(address) as remote:
            with pytest.raises(ToolFailure) as failed:
                await remote.bind(TOOL).call(frozen, nowhere)
        os.kill(started.pid, signal.SIGCONT)
    assert told(failed.value) == (AMBIGUOUS, UNKNOWN, "TOOL_TIMEOUT")


async def test_an_end_without_a_result_leaves_the_outcome_open() -> None:  # matrix row 27
    progress = CallToolResponse(progress=Progress(text="almost")).SerializeToString()
    for answer in (sends(), sends(progress)):
        async with rogue(answer) as (address, _):
            assert told(await failure(address)) == (AMBIGUOUS, UNKNOWN, "TOOL_UNAVAILABLE")


async def test_the_first_of_two_results_counts() -> None:  # matrix row 30
    first, second = (frame(Part(text=TextPart(text=text))) for text in ("first", "second"))
    async with rogue(sends(first, second)) as (address, _), dialled(address) as remote:
        ended = await remote.bind(TOOL).call(call(), nowhere)
    assert ended.parts[0].text.text == "first"


async def test_a_frame_over_the_limit_of_a_message_was_executed() -> None:  # C024, matrix row 32
    async with rogue(sends(frame(Part(text=TextPart(text="x" * 20_000_000))))) as (address, _):
        assert told(await failure(address)) == (LIMIT, YES, "TOOL_RESULT_TOO_LARGE")


async def test_chunks_without_end_are_cut_off_and_the_call_is_cancelled() -> None:  # C024, matrix row 32
    chunk = CallToolResponse(chunk=b"x" * 100_000).SerializeToString()
    async with rogue(sends(*[chunk] * 1_000)) as (address, handler):
        assert told(await failure(address, {"result_limit_bytes": 1_000_000})) == (LIMIT, YES, "TOOL_RESULT_TOO_LARGE")
        assert handler.cancelled == ["key-1"]


async def test_progress_without_end_is_cut_off_and_the_call_is_cancelled() -> None:  # matrix row 35
    progress = CallToolResponse(progress=Progress(text="x" * 10_000)).SerializeToString()
    async with rogue(sends(*[progress] * 2_000)) as (address, handler):
        failed = await failure(address, {"progress_limit_bytes": 1_000_000})
        assert told(failed) == (AMBIGUOUS, UNKNOWN, "TOOL_RESULT_TOO_LARGE")
        assert handler.cancelled == ["key-1"]


INVALID: dict[str, tuple[bytes, ...]] = {
    "garbage": (b"\xff\xff\xff\xff",),
    "invalid UTF-8 in a text": (
        CallToolResponse(result=ToolResult(parts=[Part(text=TextPart(text="ABCD"))])).SerializeToString().replace(
            b"ABCD", b"AB\xff\xff"
        ),
    ),
    "invalid UTF-8 in chunks": (
        CallToolResponse(chunk=b"\xff\xff").SerializeToString(),
        frame(Part(text=TextPart())),
    ),
    "chunks of no part": (CallToolResponse(chunk=b"x").SerializeToString(), frame()),
    "chunks of a part with content": (
        CallToolResponse(chunk=b"x").SerializeToString(),
        frame(Part(text=TextPart(text="full"))),
    ),
    "JSON that is none": (frame(Part(json=JsonPart(json="{"))),),
    "JSON too deep": (frame(Part(json=JsonPart(json="[" * 100_000))),),
    "an artifact of somebody": (frame(Part(image=ImagePart(artifact_id="a"))),),
    "a result within a result": (frame(Part(tool_result=ToolResult())),),
    "another form than promised": (frame(Part(json=JsonPart(json="[1]"))),),
}  # fmt: skip


@pytest.mark.parametrize("frames", INVALID.values(), ids=INVALID)
async def test_an_answer_that_makes_no_sense_was_executed(frames: tuple[bytes, ...]) -> None:  # matrix row 33
    promised = Tool(name="act", output_schema_json='{"type": "object"}')
    async with rogue(sends(*frames)) as (address, _), dialled(address) as remote:
        with pytest.raises(ToolFailure) as failed:
            await remote.bind(promised).call(call(), nowhere)
    assert told(failed.value) == (MALFORMED, YES, "TOOL_RESULT_INVALID")


CODES = {
    grpc.StatusCode.UNAVAILABLE: (AMBIGUOUS, "TOOL_UNAVAILABLE"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (AMBIGUOUS, "TOOL_TIMEOUT"),
    grpc.StatusCode.CANCELLED: (AMBIGUOUS, "TOOL_CANCELLED"),
    grpc.StatusCode.INTERNAL: (AMBIGUOUS, "TOOL_FAILED"),
    grpc.StatusCode.UNKNOWN: (AMBIGUOUS, "TOOL_FAILED"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (THROTTLED, "TOOL_UNAVAILABLE"),
    grpc.StatusCode.NOT_FOUND: (PERMANENT, "TOOL_NOT_FOUND"),
    grpc.StatusCode.PERMISSION_DENIED: (PERMANENT, "TOOL_FAILED"),
    grpc.StatusCode.UNIMPLEMENTED: (PERMANENT, "TOOL_FAILED"),
    grpc.StatusCode.INVALID_ARGUMENT: (PERMANENT, "TOOL_FAILED"),
}


def aborts(code: grpc.StatusCode, reason: str = "", *, proof: bool = False, retry_seconds: int = 0) -> Answer:
    async def answer(context: Any) -> None:
        details = [AnyMessage(), AnyMessage()]
        details[0].Pack(ErrorInfo(reason=reason, domain="behest"))
        details[1].Pack(RetryInfo(retry_delay=Duration(seconds=retry_seconds)))
        status = Status(code=code.value[0], details=details[: 2 if retry_seconds else 1])
        trailers: list[tuple[str, Any]] = [("grpc-status-details-bin", status.SerializeToString())] if reason else []
        trailers += [("behest-not-executed", "1")] if proof else []
        await context.abort(code, "it said s3cret-token\x1b[31m and more", tuple(trailers))

    return answer


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
async def test_no_code_alone_proves_that_nothing_was_executed(code: grpc.StatusCode) -> None:
    failure_class, reason = CODES[code]
    async with rogue(aborts(code)) as (address, _):
        failed = await failure(address, {"token": lambda: "s3cret-token"})
    assert told(failed) == (failure_class, UNKNOWN, reason)
    assert failed.message == "it said *** [31m and more"


async def test_the_trailer_proves_it_whatever_the_code() -> None:
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL):
        async with rogue(aborts(code, proof=True)) as (address, _):
            failed = await failure(address)
        assert (failed.failure_class, failed.executed) == (TRANSIENT, NO)


async def test_reason_and_delay_come_from_the_status() -> None:
    busy = aborts(grpc.StatusCode.RESOURCE_EXHAUSTED, "RUNTIME_OVERLOADED", retry_seconds=7)
    async with rogue(busy) as (address, _):
        failed = await failure(address)
    assert told(failed) == (THROTTLED, UNKNOWN, "RUNTIME_OVERLOADED")
    assert failed.retry_seconds == 7.0
    async with rogue(aborts(grpc.StatusCode.INVALID_ARGUMENT, "TOOL_ARGUMENTS_INVALID", proof=True)) as (address, _):
        assert told(await failure(address)) == (MALFORMED, NO, "TOOL_ARGUMENTS_INVALID")
    async with rogue(aborts(grpc.StatusCode.INTERNAL, "MADE_UP")) as (address, _):
        assert (await failure(address)).reason == "TOOL_FAILED"


async def test_key_attempt_epoch_and_trace_travel_in_the_metadata_too() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with rogue(sends(frame())) as (address, handler), dialled(address, token=lambda: "abc") as remote:
        await remote.bind(TOOL).call(call(attempt=2, epoch=3, traceparent=trace), nowhere)
    [asked] = handler.asked
    assert asked["behest-idempotency-key"] == "key-1"
    assert (asked["behest-attempt"], asked["behest-epoch"]) == ("2", "3")
    assert asked["traceparent"] == trace
    assert asked["authorization"] == "Bearer abc"


async def test_a_server_without_memory_and_without_cancellation_says_so() -> None:
    async with rogue(sends()) as (address, _), dialled(address) as remote:
        assert isinstance(await remote.bind(TOOL).status("key-1", 1), CannotTell)


async def test_a_list_without_end_or_sense_is_refused() -> None:
    endless = ListToolsResponse(next_page_token="again").SerializeToString()
    async with rogue(sends(), ListTools=lambda: endless) as (address, _), dialled(address) as remote:
        with pytest.raises(ToolFailure) as failed:
            await remote.list_tools()
        assert failed.value.reason == "TOOL_RESULT_TOO_LARGE"
    async with rogue(sends(), ListTools=lambda: b"\xff") as (address, _), dialled(address) as remote:
        with pytest.raises(ToolFailure) as failed:
            await remote.list_tools()
        assert failed.value.reason == "TOOL_RESULT_INVALID"


async def test_a_server_that_resets_the_connection_after_it_was_asked_is_ambiguous() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The shortest HTTP/2 greeting; then the stream is read until the call is in, and the line is cut.
        writer.write(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        await writer.drain()
        seen = b""
        while b"CallTool" not in seen and b"tool_name" not in seen and b"act" not in seen:
            data = await reader.read(65_536)
            if not data:
                break
            seen += data
        writer.transport.abort()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    async with server:
        failed = await failure(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert told(failed) == (AMBIGUOUS, UNKNOWN, "TOOL_UNAVAILABLE")
