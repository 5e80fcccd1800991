"""An attached tool server, frame by frame: what it says, what it does when the stream breaks, and when it stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from behest.errors import BehestError
from behest.tool_attach import Attachment
from behest.tools import Context, ToolServer
from behest.v1.registry_service_pb2 import AttachArguments, AttachCall, AttachServerResponse
from behest.v1.tool_service_pb2 import CallState, CallToolRequest
from tests.sdk.daemon import status
from tests.sdk.desk import SECONDS, Desk, Stream, serving

FAST = Duration(nanos=100_000_000)


@asynccontextmanager
async def attached(server: ToolServer, desk: Desk, **terms: Any) -> AsyncIterator[tuple[Attachment, Stream]]:
    """Attach a server to a desk, with the terms of its welcome."""
    async with serving(desk) as port, server:
        async with asyncio.TaskGroup() as group:
            attaching = group.create_task(server.attach(f"127.0.0.1:{port}", name="calc"))
            stream = await desk.stream()
            await stream.welcomed(**terms)
        yield attaching.result(), stream


class Gate:
    """A tool that counts how often it is executed, and waits until it may go on."""

    def __init__(self) -> None:
        self.executions = 0
        self.begun = asyncio.Event()
        self.opened = asyncio.Event()

    async def call(self, context: Context) -> str:
        self.executions += 1
        self.begun.set()
        await self.opened.wait()
        return f"done by attempt {context.attempt}"


def gated(**options: Any) -> tuple[ToolServer, Gate]:
    server, gate = ToolServer(**options), Gate()
    server.tool(name="t")(gate.call)
    return server, gate


async def test_the_hello_tells_who_attaches_and_what_it_serves(tmp_path: Path) -> None:  # C025
    desk = Desk()
    server = ToolServer(dedupe=str(tmp_path / "calls"), retention_seconds=172_800)
    server.tool(name="b")(lambda: 1)
    server.tool(name="a")(lambda: 1)
    async with serving(desk) as port, server, asyncio.TaskGroup() as group:
        target = f"127.0.0.1:{port}"
        group.create_task(server.attach(target, name="calc", token="s3cret", max_concurrent_calls=3))
        stream = await desk.stream()
        hello = await stream.welcomed()
    assert hello.server_name == "calc"
    assert [tool.name for tool in hello.tools] == ["a", "b"]
    assert hello.dedupe_retention == Duration(seconds=172_800)
    assert hello.max_concurrent_calls == 3
    assert hello.takes_chunked_arguments
    assert not hello.lease_id
    assert not hello.held
    assert stream.metadata["authorization"] == "Bearer s3cret"


async def test_a_server_that_forgets_promises_no_retention() -> None:
    desk = Desk()
    server, _ = gated()
    async with serving(desk) as port, server, asyncio.TaskGroup() as group:
        group.create_task(server.attach(f"127.0.0.1:{port}", name="calc"))
        assert not (await (await desk.stream()).welcomed()).HasField("dedupe_retention")


async def test_a_call_is_accepted_shown_answered_and_ended() -> None:  # C025
    server, seen = ToolServer(), []

    @server.tool(name="t")
    async def work(context: Context, a: int) -> int:
        seen.append((context.idempotency_key, context.attempt, context.run_id, context.traceparent))
        context.progress("half", current=1, total=2)
        await asyncio.sleep(0)
        return a + 1

    async with attached(server, Desk()) as (attachment, stream):
        assert attachment.is_attached
        number = await stream.call(idempotency_key="k", attempt=2, run_id="run_1", arguments_json='{"a": 4}')
        replies = await stream.answer(number)
    assert [reply.WhichOneof("response") for reply in replies] == ["accepted", "call_tool", "call_tool", "end"]
    assert replies[1].call_tool.progress.text == "half"
    assert replies[2].call_tool.result.parts[0].json.json == "5"
    assert not replies[3].end.HasField("error")
    assert seen == [("k", 2, "run_1", "00-trace")]


async def test_a_refusal_is_an_end_with_its_reason_and_proof() -> None:
    server, gate = gated()
    async with attached(server, Desk()) as (_, stream):
        number = await stream.call(tool_name="nothing")
        [reply] = await stream.answer(number)
        assert reply.end.not_executed
        assert reply.end.error.code == grpc.StatusCode.NOT_FOUND.value[0]
        number = await stream.ask("unknown")
        [reply] = await stream.answer(number)
        assert reply.end.error.code == grpc.StatusCode.UNIMPLEMENTED.value[0]
        assert not reply.end.not_executed
    assert gate.executions == 0


async def test_the_state_of_a_key_is_told_over_the_stream(tmp_path: Path) -> None:
    server, gate = gated(dedupe=str(tmp_path / "calls"))
    async with attached(server, Desk()) as (_, stream):
        states = []
        for key in ("never", "k"):
            if key == "k":
                first = await stream.call(idempotency_key="k")
                assert (await stream.reply()).HasField("accepted")
                await gate.begun.wait()
            [reply, _] = await stream.answer(await stream.ask(key))
            states.append(reply.get_call_status.state)
        gate.opened.set()
        await stream.result(first)
        [reply, _] = await stream.answer(await stream.ask("k"))
    assert states == [CallState.CALL_STATE_NEVER_SEEN, CallState.CALL_STATE_RUNNING]
    assert reply.get_call_status.state == CallState.CALL_STATE_DONE


async def test_large_results_come_in_chunks_that_fit_the_frame() -> None:  # C025
    server = ToolServer()
    text = "grüße " * 40_000
    server.tool(name="t")(lambda: text)
    async with attached(server, Desk(), max_frame_bytes=64 * 1024) as (_, stream):
        replies = await stream.answer(await stream.call(idempotency_key="k"))
    assert max(reply.ByteSize() for reply in replies) <= 64 * 1024
    chunks = b"".join(reply.call_tool.chunk for reply in replies)
    assert chunks.decode() == text
    assert replies[-2].call_tool.result.parts[0].HasField("text")


async def test_a_result_that_cannot_be_cut_is_an_error_result_and_no_broken_stream() -> None:
    server = ToolServer()

    @server.tool(name="t")
    def both(context: Context) -> int:
        context.write("x" * 200_000)
        return 1

    async with attached(server, Desk(), max_frame_bytes=64 * 1024) as (_, stream):
        assert (await stream.result(await stream.call(idempotency_key="k"))).is_error


async def test_large_arguments_come_in_parts() -> None:  # C025
    server = ToolServer()
    server.tool(name="t")(_measure)
    document = '{"text": "' + "ü" * 100_000 + '"}'
    data = document.encode()
    async with attached(server, Desk()) as (_, stream):
        request = CallToolRequest(tool_name="t", idempotency_key="k", attempt=1, epoch=1)
        await stream.send(AttachServerResponse(call=AttachCall(call_number=1, call_tool=request, more=True)))
        # Cut within a character.
        for start in range(0, len(data), 65_537):
            part = AttachArguments(call_number=1, chunk=data[start : start + 65_537], more=start + 65_537 < len(data))
            await stream.send(AttachServerResponse(arguments=part))
        assert (await stream.result(1)).parts[0].json.json == "100000"


async def test_arguments_that_are_no_text_are_refused_with_proof() -> None:
    server, gate = gated()
    async with attached(server, Desk()) as (_, stream):
        request = CallToolRequest(tool_name="t", idempotency_key="k", attempt=1, epoch=1)
        await stream.send(AttachServerResponse(call=AttachCall(call_number=1, call_tool=request, more=True)))
        await stream.send(AttachServerResponse(arguments=AttachArguments(call_number=1, chunk=b"{\xff}")))
        [reply] = await stream.answer(1)
    assert reply.end.not_executed
    assert gate.executions == 0


def _measure(text: str) -> int:
    return len(text)


async def test_a_cancelled_call_is_stopped_and_ended() -> None:  # C025
    server, gate = gated()
    plain_saw = threading.Event()

    @server.tool
    def plain(context: Context) -> str:
        while not context.is_cancelled:
            threading.Event().wait(0.01)
        plain_saw.set()
        return "stopped"

    async with attached(server, Desk()) as (_, stream):
        number = await stream.call(idempotency_key="k")
        assert (await stream.reply()).HasField("accepted")
        await stream.cancel(number)
        assert (await stream.result(number)).is_error
        number = await stream.call(tool_name="plain")
        assert (await stream.reply()).HasField("accepted")
        await stream.cancel(number)
        assert (await stream.result(number)).parts[0].text.text == "stopped"
        await stream.cancel(99)
    assert gate.executions == 1
    assert plain_saw.is_set()


async def test_more_calls_than_were_agreed_are_refused_with_proof() -> None:  # C025
    server, gate = gated()
    async with attached(server, Desk(), max_concurrent_calls=1) as (_, stream):
        first = await stream.call(idempotency_key="k1")
        assert (await stream.reply()).HasField("accepted")
        second = await stream.call(idempotency_key="k2")
        [reply] = await stream.answer(second)
        assert reply.end.not_executed
        assert reply.end.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        gate.opened.set()
        await stream.result(first)
        await stream.result(await stream.call(idempotency_key="k2"))


async def test_a_call_goes_on_while_the_stream_is_broken_and_is_joined_on_the_next() -> None:  # C025
    desk = Desk()
    server, gate = gated()
    async with attached(server, desk) as (attachment, stream):
        await stream.call(idempotency_key="running")
        assert (await stream.reply()).HasField("accepted")
        await gate.begun.wait()
        stream.break_off()
        stream = await desk.stream()
        hello = await stream.welcomed()
        assert hello.lease_id == "lease-1"
        assert [(held.idempotency_key, held.is_done) for held in hello.held] == [("running", False)]
        number = await stream.call(idempotency_key="running")
        assert (await stream.reply()).HasField("accepted")
        gate.opened.set()
        assert (await stream.result(number)).parts[0].text.text == "done by attempt 1"
        assert attachment.is_attached
    assert gate.executions == 1


async def test_a_result_that_was_finished_meanwhile_is_held_and_given_without_executing_again() -> None:  # C025
    desk = Desk()
    server, gate = gated()
    async with attached(server, desk) as (_, stream):
        await stream.call(idempotency_key="k")
        assert (await stream.reply()).HasField("accepted")
        stream.break_off()
        stream = await desk.stream()
        gate.opened.set()
        # Broken off again before a welcome: the server keeps what it has.
        first = await stream.hello()
        stream.break_off()
        stream = await desk.stream()
        hello = await stream.welcomed()
        while not hello.held[0].is_done:
            stream.break_off()
            stream = await desk.stream()
            hello = await stream.welcomed()
        assert (await stream.result(await stream.call(idempotency_key="k"))).parts[0].text.text == "done by attempt 1"
    assert [held.idempotency_key for held in (*first.held, *hello.held)] == ["k", "k"]
    assert gate.executions == 1


async def test_a_key_whose_result_was_surely_taken_is_reported_no_more() -> None:
    desk = Desk()
    server, gate = gated()
    gate.opened.set()
    async with attached(server, desk, heartbeat=Duration(seconds=1)) as (_, stream):
        await stream.result(await stream.call(idempotency_key="k"))
        beating = asyncio.ensure_future(_beats(stream))
        # More than three heartbeats of the server are more than three of the daemon.
        for _ in range(9):
            async with asyncio.timeout(SECONDS):
                await stream.frames.get()
        stream.break_off()
        beating.cancel()
        hello = await (await desk.stream()).welcomed()
    assert not hello.held


async def _beats(stream: Stream) -> None:
    while not stream.over.done():
        await stream.send(AttachServerResponse())
        await asyncio.sleep(0.03)


async def test_the_keys_of_a_file_are_reported_by_the_next_process_too(tmp_path: Path) -> None:
    path = str(tmp_path / "calls")
    server, gate = gated(dedupe=path)
    async with attached(server, Desk()) as (_, stream):
        gate.opened.set()
        await stream.result(await stream.call(idempotency_key="done"))
        gate.opened.clear()
        await stream.call(idempotency_key="lost")
        assert (await stream.reply()).HasField("accepted")
    desk = Desk()
    server, gate = gated(dedupe=path)
    async with serving(desk) as port, server, asyncio.TaskGroup() as group:
        group.create_task(server.attach(f"127.0.0.1:{port}", name="calc"))
        stream = await desk.stream()
        hello = await stream.welcomed()
        [reply] = await stream.answer(await stream.call(idempotency_key="lost"))
        result = await stream.result(await stream.call(idempotency_key="done"))
    assert {(held.idempotency_key, held.is_done) for held in hello.held} == {("done", True), ("lost", False)}
    # What it did before it was lost is not known, and is not done again.
    assert reply.end.error.code == grpc.StatusCode.ABORTED.value[0]
    assert not reply.end.not_executed
    assert result.parts[0].text.text == "done by attempt 1"
    assert gate.executions == 0


async def test_heartbeats_come_in_time_and_a_silent_daemon_is_left() -> None:  # C025
    desk = Desk()
    server, _ = gated()
    async with attached(server, desk, heartbeat=FAST) as (_, stream):
        async with asyncio.timeout(SECONDS):
            frame = await stream.frames.get()
        assert frame is not None
        assert frame.WhichOneof("frame") is None
        # It says nothing more: after three heartbeats the server opens another stream.
        await (await desk.stream()).welcomed()


async def test_a_daemon_that_drains_gets_what_is_left_and_is_attached_to_again() -> None:
    desk = Desk()
    server, gate = gated()
    async with attached(server, desk) as (_, stream):
        number = await stream.call(idempotency_key="k")
        assert (await stream.reply()).HasField("accepted")
        await stream.drain()
        gate.opened.set()
        assert not (await stream.result(number)).is_error
        assert await stream.next() is None
        await (await desk.stream()).welcomed()


async def test_a_server_that_drains_finishes_what_it_has_and_ends() -> None:  # C025
    server, gate = gated()
    async with attached(server, Desk()) as (attachment, stream):
        first = await stream.call(idempotency_key="k")
        assert (await stream.reply()).HasField("accepted")
        draining = asyncio.ensure_future(server.drain())
        frame = await stream.next()
        assert frame is not None
        assert frame.HasField("drain")
        [refused] = await stream.answer(await stream.call(idempotency_key="too late"))
        assert refused.end.not_executed
        gate.opened.set()
        assert not (await stream.result(first)).is_error
        assert await stream.next() is None
        async with asyncio.timeout(SECONDS):
            await draining
            await server.wait()
            await attachment.ended()
    assert gate.executions == 1


async def test_a_server_that_drains_gives_its_last_result_on_the_next_stream() -> None:  # C025
    desk = Desk()
    server, gate = gated()
    async with attached(server, desk) as (_, stream):
        await stream.call(idempotency_key="k")
        assert (await stream.reply()).HasField("accepted")
        stream.break_off()
        draining = asyncio.ensure_future(server.drain())
        stream = await desk.stream()
        await stream.welcomed()
        frame = await stream.next()
        assert frame is not None
        assert frame.HasField("drain")
        gate.opened.set()
        assert not (await stream.result(await stream.call(idempotency_key="k"))).is_error
        assert await stream.next() is None
        async with asyncio.timeout(SECONDS):
            await draining
    assert gate.executions == 1


async def test_a_drain_that_takes_too_long_is_cut() -> None:
    server, gate = gated()
    async with attached(server, Desk()) as (_, stream):
        await stream.call(idempotency_key="k")
        await gate.begun.wait()
        async with asyncio.timeout(SECONDS):
            await server.drain(grace_seconds=0.1)
            await server.wait()


async def test_a_refusal_is_raised_by_attach_and_a_later_one_by_wait() -> None:
    desk = Desk()
    server, _ = gated()
    taken = status(grpc.StatusCode.ALREADY_EXISTS, "TOOL_NAME_TAKEN")
    replaced = status(grpc.StatusCode.ABORTED, "TOOL_SERVER_REPLACED")
    async with serving(desk) as port, server:
        async with asyncio.TaskGroup() as group:
            attaching = group.create_task(_refusal(server.attach(f"127.0.0.1:{port}", name="calc")))
            stream = await desk.stream()
            await stream.hello()
            stream.refuse(taken)
        assert attaching.result() == "TOOL_NAME_TAKEN"
        async with asyncio.TaskGroup() as group:
            group.create_task(server.attach(f"127.0.0.1:{port}", name="calc"))
            stream = await desk.stream()
            await stream.welcomed()
        stream.refuse(replaced)
        assert await _refusal(server.wait()) == "TOOL_SERVER_REPLACED"


async def test_a_refusal_counts_although_a_write_fails_at_the_same_time() -> None:
    desk = Desk()
    server = ToolServer()
    replaced = status(grpc.StatusCode.ABORTED, "TOOL_SERVER_REPLACED")

    @server.tool(name="t")
    async def talk(context: Context) -> None:
        while True:
            context.progress("x" * 1_000)
            await asyncio.sleep(0)

    async with attached(server, desk) as (_, stream):
        await stream.call(idempotency_key="k")
        for _ in range(20):
            await stream.reply()
        stream.refuse(replaced)
        assert await _refusal(server.wait()) == "TOOL_SERVER_REPLACED"


async def _refusal(call: Any) -> str:
    async with asyncio.timeout(SECONDS):
        with pytest.raises(BehestError) as refused:
            await call
    return refused.value.reason


async def test_attaching_waits_for_a_daemon_that_is_not_there_yet() -> None:
    desk = Desk()
    server, _ = gated()
    async with serving(desk) as port:
        pass
    async with server, asyncio.TaskGroup() as group:
        attaching = group.create_task(server.attach(f"127.0.0.1:{port}", name="calc"))
        await asyncio.wait([attaching], timeout=0.3)
        assert not attaching.done()
        async with serving(desk, port):
            await (await desk.stream()).welcomed()
            async with asyncio.timeout(SECONDS):
                await attaching


async def test_an_artifact_is_stored_once_for_all_attempts(tmp_path: Path) -> None:
    server, desk = ToolServer(), Desk()

    @server.tool(name="t")
    async def report(context: Context) -> dict[str, str]:
        stored = await context.artifact(b"%PDF", name="report.pdf", media_type="application/pdf")
        return {"artifact_id": stored.id}

    async with attached(server, desk) as (_, stream):
        made = await stream.result(await stream.call(idempotency_key="k", session_id="ses_1"))
        await stream.result(await stream.call(session_id="ses_1"))
        await stream.result(await stream.call(session_id="ses_1"))
    assert made.parts[0].json.json == '{"artifact_id": "art_1"}'
    (header, content), *others = desk.artifacts
    assert (header.session_id, header.name, content) == ("ses_1", "report.pdf", b"%PDF")
    assert len({header.request_id for header, _ in desk.artifacts}) == 3
    assert len(others) == 2
