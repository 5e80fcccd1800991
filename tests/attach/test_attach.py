"""Servers that attach themselves: hello and welcome, registration, calls, progress, cancel, credit, large ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status

from behest.v1.delta_pb2 import Delta
from behest.v1.message_pb2 import Part, TextPart, ToolResult
from behest.v1.registry_service_pb2 import AttachEnd, AttachHello, AttachReply, AttachServerRequest
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import Executed, SideEffect, ToolPolicy, ToolTimeouts
from behest.v1.tool_service_pb2 import CallToolRequest, CallToolResponse
from behestd.core.times import duration, nanoseconds
from tests import daemons
from tests.attach.peer import WAIT_SECONDS, Peer, attached, tool
from tests.attach.scenes import AWAY, GONE, READY, address, call_tool, registration, until
from tests.daemons import Served, serve
from tests.runs.scenes import IDEMPOTENT, OPEN, PURE, events_of, kinds, only
from tests.service.edges import metadata, reason

MIB = 1024 * 1024


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A daemon that asks for no approvals."""
    async with serve(operator=OPEN) as made:
        yield made


async def test_a_server_attaches_offers_a_tool_and_serves_a_run(served: Served) -> None:  # C025
    async with attached(address(served), dedupe_retention=duration(72 * 3600), max_concurrent_calls=7) as peer:
        welcome = peer.welcome
        assert (welcome.server.name, welcome.server.state) == ("till", READY)
        assert list(welcome.server.tool_names) == ["pay"]
        assert welcome.server.connection == ServerConnection.SERVER_CONNECTION_ATTACHED
        assert welcome.lease_id
        assert welcome.max_frame_bytes == 4 * MIB
        assert welcome.max_concurrent_calls == 7
        assert welcome.reconnect_window.seconds == 30
        assert welcome.heartbeat.seconds == 10
        listed = await served.client.tools.get("pay")
        assert listed.server_id == welcome.server.id
        assert listed.policy.side_effect == SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
        run = await served.client.run('/tool pay {"amount": 7} /next /say so be it')
        call = await peer.call()
        asked = call.call_tool
        assert (asked.tool_name, json.loads(asked.arguments_json)) == ("pay", {"amount": 7})
        assert (asked.attempt, asked.run_id, len(asked.idempotency_key)) == (1, run.run_id, 64)
        assert asked.epoch > 0
        assert asked.side_effect == SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
        assert nanoseconds(call.deadline) == nanoseconds(asked.deadline) > 0
        await peer.accept(call)
        await peer.finish(call, "paid 7")
        events = await events_of(run, seconds=WAIT_SECONDS)
        [started] = only(events, "tool_started")
        assert started.endpoint == welcome.server.id
        assert started.lease_id.rpartition(":")[0] == welcome.lease_id
        [completed] = only(events, "tool_completed")
        assert completed.result.parts[0].text.text == "paid 7"
        assert kinds(events)[-1] == "run_completed"


async def test_progress_of_an_attached_tool_is_shown_to_watchers(served: Served) -> None:  # C025
    async with attached(address(served)) as peer:
        run = await served.client.run("/tool pay {}")
        call = await peer.call()
        async with asyncio.timeout(WAIT_SECONDS):
            shown: list[str] = []
            await peer.show(call, "half")
            async for update in run.updates():
                if isinstance(update, Delta) and update.HasField("tool_progress"):
                    shown.append(update.tool_progress.text)
                    await peer.finish(call)
        assert shown == ["half"]


async def test_the_trace_and_the_hash_of_a_call_reach_the_server(served: Served) -> None:  # C025
    async with attached(address(served)) as peer:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        request = CallToolRequest(tool_name="pay", idempotency_key="mine")
        stream = served.client.stubs.tools.CallTool(request, timeout=WAIT_SECONDS, metadata=(("traceparent", trace),))
        call = await peer.call()
        assert call.traceparent.split("-")[1] == trace.split("-")[1]
        assert call.call_tool.tool_hash == (await served.client.tools.get("pay")).hash
        await peer.finish(call)
        assert [frame.result.parts[0].text.text async for frame in stream] == ["paid"]


# --- registration ---


async def test_the_same_hello_again_writes_nothing_and_another_offer_replaces_the_first(served: Served) -> None:
    async with attached(address(served)) as peer:
        first = peer.welcome
    before = daemons.writes(served)
    async with attached(address(served)) as peer:
        assert peer.welcome.server.id == first.server.id
        assert daemons.writes(served) == before
        await peer.hello(tools=[tool("refund"), tool("charge")])
        assert list(peer.welcome.server.tool_names) == ["refund", "charge"]
        assert [found.name async for found in served.client.tools.list()] == ["charge", "refund"]
        assert daemons.writes(served) > before


async def test_a_registration_survives_a_restart_and_its_tools_wait_for_the_server(tmp_path: Any) -> None:  # C025
    async with serve("sqlite", data_dir=tmp_path) as served, attached(address(served)) as peer:
        server = peer.welcome.server
    async with serve("sqlite", data_dir=tmp_path) as served:
        known = await served.client.servers.get(server.id)
        assert (known.state, list(known.tool_names)) == (AWAY, ["pay"])
        assert (await served.client.tools.get("pay")).server_id == server.id
        async with attached(address(served), lease_id=peer.welcome.lease_id) as again:
            assert (again.welcome.server.id, again.welcome.server.state) == (server.id, READY)
            assert again.welcome.server.create_time == server.create_time


async def test_policies_of_a_registration_count_as_far_as_the_server_keeps_its_keys(served: Served) -> None:  # C025
    days = duration(48 * 3600)
    asked = registration(tool_policies={"till_pay": IDEMPOTENT}, name_prefix="till_", dedupe_retention=days)
    server = await served.client.servers.register(asked)
    assert server.state == GONE
    assert await served.client.servers.register(asked) == server
    async with attached(address(served), dedupe_retention=duration(3600)) as peer:
        assert list(peer.welcome.server.tool_names) == ["till_pay"]
        policy = (await served.client.tools.get("till_pay")).policy
        assert policy.side_effect == SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
        await peer.hello(dedupe_retention=duration(72 * 3600))
        policy = (await served.client.tools.get("till_pay")).policy
        assert policy.side_effect == SideEffect.SIDE_EFFECT_IDEMPOTENT
        changed = registration(tool_policies={"pay": PURE})
        replaced = await served.client.servers.register(changed, replace=True)
        assert (replaced.id, replaced.state, list(replaced.tool_names)) == (server.id, READY, ["pay"])
        calling = asyncio.ensure_future(call_tool(served))
        call = await peer.call()
        assert call.call_tool.side_effect == SideEffect.SIDE_EFFECT_PURE
        await peer.finish(call)
        assert (await calling).parts[0].text.text == "paid"


@pytest.mark.parametrize(
    ("hello", "expected", "field"),
    [
        ({"name": "a b"}, "REQUEST_INVALID", "server_name"),
        ({"name": ""}, "REQUEST_INVALID", "server_name"),
        ({"tools": [tool("has space")]}, "TOOL_NAME_INVALID", "tools[0].name"),
        ({"tools": [tool(), tool("bad", schema="{")]}, "TOOL_SCHEMA_INVALID", "tools[1].input_schema_json"),
        ({"tools": [tool(), tool()]}, "TOOL_NAME_TAKEN", ""),
        ({"tools": [tool("taken")]}, "TOOL_NAME_TAKEN", ""),
        ({"name": "dialled"}, "TOOL_SERVER_NAME_TAKEN", ""),
        ({"max_concurrent_calls": -1}, "REQUEST_INVALID", "max_concurrent_calls"),
        ({"lease_id": "x" * 129}, "REQUEST_TOO_LARGE", "lease_id"),
        ({"held": {"x" * 129: False}}, "REQUEST_TOO_LARGE", "held[0].idempotency_key"),
        ({"models": [{"id": "has space", "capabilities": {"chat": True}}]}, "REQUEST_INVALID", "models[0].id"),
    ],
)
async def test_a_hello_that_makes_no_sense_is_refused_and_registers_nothing(
    served: Served, hello: dict[str, Any], expected: str, field: str
) -> None:
    dialled = Server(
        name="dialled",
        connection=ServerConnection.SERVER_CONNECTION_DIALLED,
        address="127.0.0.1:1",
        offers=[ServerOffer.SERVER_OFFER_TOOLS],
    )
    await served.client.servers.register(dialled)
    async with attached(address(served), "other", tools=[tool("taken", description="another one")]):
        peer = Peer(served.channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await peer.hello(**hello)
        assert reason(refused.value) == expected
        assert metadata(refused.value).get("field", "").removeprefix("hello.") == field
        assert [server.name async for server in served.client.servers.list()] == ["dialled", "other"]


async def test_a_stream_begins_with_a_hello_and_keeps_its_name(served: Served) -> None:
    for first in (AttachServerRequest(), AttachServerRequest(reply=AttachReply(call_number=1))):
        peer = Peer(served.channel)
        await peer.write(first)
        error = await peer.broken()
        assert (error.code(), reason(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")
    peer = Peer(served.channel)
    await peer.stream.done_writing()
    assert reason(await peer.broken()) == "REQUEST_INVALID"
    async with attached(address(served)) as peer:
        await peer.write(AttachServerRequest(hello=AttachHello(server_name="else")))
        assert reason(await peer.broken()) == "REQUEST_INVALID"


async def test_a_server_that_is_unregistered_is_told_and_gets_no_more_calls(served: Served) -> None:
    async with attached(address(served)) as peer:
        calling = asyncio.ensure_future(call_tool(served))
        call = await peer.call()
        await served.client.servers.unregister(peer.welcome.server.id)
        assert [found.name async for found in served.client.tools.list()] == []
        await peer.finish(call)
        assert (await calling).parts[0].text.text == "paid"
        assert reason(await peer.broken()) == "TOOL_SERVER_NOT_FOUND"
        assert [server.name async for server in served.client.servers.list()] == []


# --- limits of calls ---


async def test_never_more_calls_are_on_a_stream_than_the_server_takes(served: Served) -> None:  # C025
    async with attached(address(served), max_concurrent_calls=2) as peer:
        calling = [asyncio.ensure_future(call_tool(served)) for _ in range(6)]
        waiting = [await peer.call(), await peer.call()]
        for _ in range(4):
            # A welcome comes after everything that was on its way, so no third call was.
            await peer.hello(max_concurrent_calls=2)
            await peer.finish(waiting.pop(0))
            waiting.append(await peer.call())
        for call in waiting:
            await peer.finish(call)
        for task in calling:
            assert (await task).parts[0].text.text == "paid"


async def test_a_call_of_its_own_stops_when_its_time_is_over_and_the_server_is_told(served: Served) -> None:
    short = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE, timeouts=ToolTimeouts(start_to_close=duration(0.3)))
    await served.client.servers.register(registration(tool_policies={"pay": short}))
    async with attached(address(served)) as peer:
        calling = asyncio.ensure_future(daemons.rejection(call_tool(served)))
        call = await peer.call()
        frame = await peer.next()
        assert frame.cancel.call_number == call.call_number
        assert (await calling).reason == "TOOL_TIMEOUT"
        await peer.finish(call)
        again = asyncio.ensure_future(daemons.rejection(call_tool(served)))
        assert (await peer.call()).call_number > call.call_number
        await again


async def test_a_cancelled_run_tells_the_server_and_its_end_is_the_receipt(served: Served) -> None:  # N04
    async with attached(address(served)) as peer:
        run = await served.client.run("/tool pay {}")
        call = await peer.call()
        await peer.accept(call)
        await run.cancel()
        frame = await peer.next()
        assert frame.cancel.call_number == call.call_number
        stopped = Status(code=grpc.StatusCode.CANCELLED.value[0], message="stopped")
        await peer.reply(call.call_number, end=AttachEnd(error=stopped, not_executed=True))
        events = await events_of(run, seconds=WAIT_SECONDS)
        assert kinds(events)[-1] == "run_cancelled"
        [failed] = only(events, "tool_failed")
        assert failed.executed == Executed.EXECUTED_NO
        [receipt] = only(events, "run_cancelled")[0].receipts
        assert (receipt.acknowledged, receipt.in_doubt) == (True, False)


# --- large ones ---


async def test_large_arguments_go_in_chunks_to_a_server_that_takes_them_so(served: Served) -> None:  # C025
    arguments = json.dumps({"text": "ä" * 300_000}, ensure_ascii=False)
    for takes in (True, False):
        async with attached(address(served), takes_chunked_arguments=takes) as peer:
            calling = asyncio.ensure_future(call_tool(served, arguments=arguments))
            call = await peer.call()
            data = call.call_tool.arguments_json.encode()
            assert call.more is takes
            more = call.more
            while more:
                frame = await peer.next()
                assert frame.arguments.call_number == call.call_number
                assert len(frame.arguments.chunk) <= MIB
                data += frame.arguments.chunk
                more = frame.arguments.more
            assert data.decode() == arguments
            await peer.finish(call)
            assert (await calling).parts[0].text.text == "paid"


async def test_a_large_result_comes_in_chunks_and_one_that_is_too_large_is_refused(served: Served) -> None:  # C025
    async with attached(address(served)) as peer:
        text = "x" * (3 * MIB)
        calling = asyncio.ensure_future(call_tool(served, idempotency_key="large"))
        call = await peer.call()
        for start in range(0, len(text), MIB):
            await peer.reply(call.call_number, call_tool=CallToolResponse(chunk=text[start : start + MIB].encode()))
        empty = ToolResult(parts=[Part(text=TextPart())])
        await peer.reply(call.call_number, call_tool=CallToolResponse(result=empty))
        await peer.reply(call.call_number, end=AttachEnd())
        await calling
        run = await served.client.run("/tool pay {}")
        call = await peer.call()
        for _ in range(17):
            await peer.reply(call.call_number, call_tool=CallToolResponse(chunk=bytes(MIB)))
        assert (await peer.next()).cancel.call_number == call.call_number
        await peer.reply(call.call_number, end=AttachEnd())
        [failed] = only(await events_of(run, seconds=WAIT_SECONDS), "tool_failed")
        assert (failed.reason, failed.executed) == ("TOOL_RESULT_TOO_LARGE", Executed.EXECUTED_YES)


# --- failures ---


def ended(code: grpc.StatusCode, *, not_executed: bool = False) -> AttachEnd:
    return AttachEnd(error=Status(code=code.value[0], message="no"), not_executed=not_executed)


async def test_what_was_proved_not_to_be_executed_is_sent_again_with_the_same_key(served: Served) -> None:
    async with attached(address(served)) as peer:
        run = await served.client.run("/tool pay {}")
        first = await peer.call()
        await peer.reply(first.call_number, end=ended(grpc.StatusCode.UNAVAILABLE, not_executed=True))
        second = await peer.call()
        assert second.call_tool.idempotency_key == first.call_tool.idempotency_key
        assert (first.call_tool.attempt, second.call_tool.attempt) == (1, 2)
        await peer.finish(second)
        assert kinds(await events_of(run, seconds=WAIT_SECONDS))[-1] == "run_completed"


@pytest.mark.parametrize("end", [AttachEnd(), ended(grpc.StatusCode.UNAVAILABLE), ended(grpc.StatusCode.UNKNOWN)])
async def test_a_call_that_ends_without_a_result_is_in_doubt(served: Served, end: AttachEnd) -> None:
    async with attached(address(served)) as peer:
        run = await served.client.run("/tool pay {}")
        call = await peer.call()
        await peer.reply(call.call_number, end=end)
        events = await until(run, "run_waiting")
        [unknown] = only(events, "tool_outcome_unknown")
        assert unknown.attempt == 1
