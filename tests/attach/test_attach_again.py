"""Attached servers that are lost and come back: calls joined, never seen or in doubt, windows, drains, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.client import Client
from behest.runs import RunHandle
from behest.v1.definition_pb2 import PermissionAction
from behest.v1.registry_service_pb2 import AttachCall, AttachEnd
from behest.v1.tool_pb2 import Executed, SideEffect, ToolPolicy, ToolTimeouts
from behest.v1.tool_service_pb2 import CallState, CallToolResponse, GetCallStatusResponse
from behestd.core.definition import Operator
from behestd.core.times import duration
from behestd.runtime.house import Limits
from tests import daemon_process
from tests.attach.peer import WAIT_SECONDS, attached, keys, result
from tests.attach.scenes import AWAY, GONE, READY, address, call_tool, registration, until, until_state
from tests.daemons import Served, serve
from tests.runs.scenes import IDEMPOTENT, OPEN, PURE, events_of, kinds, only
from tests.service.edges import reason

DAYS = duration(72 * 3600)
QUERYABLE = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE)
CONFIG = """
[permissions]
default = "allow"
"""


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A daemon that asks for no approvals."""
    async with serve(operator=OPEN) as made:
        yield made


async def ends_well(run: RunHandle, text: str = "paid") -> list[Any]:
    """Wait for a run whose one call has this result, and give its events."""
    events = await events_of(run, seconds=WAIT_SECONDS)
    assert kinds(events)[-1] == "run_completed"
    [completed] = only(events, "tool_completed")
    assert completed.result.parts[0].text.text == text
    return events


# --- within the window ---


@pytest.mark.parametrize("is_done", [False, True])
async def test_a_call_that_is_reported_is_joined_and_not_executed_again(served: Served, is_done: bool) -> None:  # C025
    async with attached(address(served)) as peer:
        run = await served.client.run("/tool pay {}")
        first = await peer.call()
        await peer.accept(first)
        # What came in part comes again as a whole.
        await peer.reply(first.call_number, call_tool=CallToolResponse(chunk=b"half of it"))
    await until_state(served, "till", AWAY)
    assert (await served.client.tools.get("pay")).name == "pay"
    held = keys(first, done=is_done)
    async with attached(address(served), held=held, lease_id=peer.welcome.lease_id) as again:
        assert again.welcome.lease_id == peer.welcome.lease_id
        joined = await again.call()
        assert joined.call_tool == first.call_tool
        assert joined.deadline == first.deadline
        await again.finish(joined)
        events = await ends_well(run)
        assert len(only(events, "tool_started")) == 1


async def test_a_call_that_the_same_process_does_not_report_was_never_seen_and_is_sent_again(served: Served) -> None:
    async with attached(address(served)) as peer:
        run = await served.client.run("/tool pay {}")
        first = await peer.call()
    async with attached(address(served), lease_id=peer.welcome.lease_id) as again:
        second = await again.call()
        assert second.call_tool.idempotency_key == first.call_tool.idempotency_key
        assert (first.call_tool.attempt, second.call_tool.attempt) == (1, 2)
        await again.finish(second)
        events = await ends_well(run)
        [failed] = only(events, "tool_failed")
        assert failed.executed == Executed.EXECUTED_NO


async def test_the_silence_of_another_process_proves_nothing(served: Served) -> None:
    async with attached(address(served)) as peer:
        run = await served.client.run("/tool pay {}")
        await peer.call()
    async with attached(address(served)) as other:
        assert other.welcome.lease_id != peer.welcome.lease_id
        events = await until(run, "run_waiting")
        assert only(events, "tool_outcome_unknown")


@pytest.mark.parametrize("policy", [PURE, IDEMPOTENT])
async def test_another_process_gets_again_what_may_be_repeated(served: Served, policy: ToolPolicy) -> None:
    await served.client.servers.register(registration(tool_policies={"pay": policy}))
    async with attached(address(served), dedupe_retention=DAYS) as peer:
        run = await served.client.run("/tool pay {}")
        first = await peer.call()
    async with attached(address(served), dedupe_retention=DAYS) as other:
        second = await other.call()
        assert second.call_tool.attempt == 2
        assert second.call_tool.idempotency_key == first.call_tool.idempotency_key
        await other.finish(second)
        await ends_well(run)


async def test_another_process_is_asked_for_the_state_of_a_call_that_can_be_asked_for(served: Served) -> None:
    await served.client.servers.register(registration(tool_policies={"pay": QUERYABLE}))
    async with attached(address(served), dedupe_retention=DAYS) as peer:
        run = await served.client.run("/tool pay {}")
        first = await peer.call()
    async with attached(address(served), dedupe_retention=DAYS) as other:
        asked = await other.call()
        assert asked.get_call_status.idempotency_key == first.call_tool.idempotency_key
        told = GetCallStatusResponse(state=CallState.CALL_STATE_DONE, result=result("paid"))
        await other.reply(asked.call_number, get_call_status=told)
        await other.reply(asked.call_number, end=AttachEnd())
        events = await events_of(run, seconds=WAIT_SECONDS)
        [resolved] = only(events, "tool_resolved")
        assert (resolved.by, resolved.result.parts[0].text.text) == ("status_query", "paid")


async def test_a_second_stream_of_a_name_ends_the_first_and_takes_over_its_calls(served: Served) -> None:  # C025
    async with attached(address(served)) as first:
        run = await served.client.run("/tool pay {}")
        call = await first.call()
        held = keys(call, done=False)
        async with attached(address(served), held=held, lease_id=first.welcome.lease_id) as second:
            error = await first.broken()
            assert (error.code(), reason(error)) == (grpc.StatusCode.ABORTED, "TOOL_SERVER_REPLACED")
            joined = await second.call()
            assert joined.call_tool == call.call_tool
            await second.finish(joined)
            await ends_well(run)
            assert (await served.client.servers.get(second.welcome.server.id)).state == READY


async def test_a_call_that_is_cancelled_while_its_server_is_away_is_cancelled_when_it_is_back(served: Served) -> None:
    async with attached(address(served)) as peer:
        run = await served.client.run("/tool pay {}")
        call = await peer.call()
    await until_state(served, "till", AWAY)
    await run.cancel()
    await until(run, "run_cancel_requested")
    held = keys(call, done=False)
    async with attached(address(served), held=held, lease_id=peer.welcome.lease_id) as again:
        joined = await again.call()
        frame = await again.next()
        assert frame.cancel.call_number == joined.call_number
        await again.finish(joined, "paid all the same")
        events = await events_of(run, seconds=WAIT_SECONDS)
        assert kinds(events)[-1] == "run_cancelled"
        assert only(events, "tool_completed")[0].result.parts[0].text.text == "paid all the same"


async def test_the_time_of_a_call_stands_still_while_its_server_is_away(served: Served) -> None:
    short = ToolPolicy(timeouts=ToolTimeouts(start_to_close=duration(4.0), heartbeat=duration(3.0)))
    await served.client.servers.register(registration(tool_policies={"pay": short}))
    async with attached(address(served)) as peer:
        run = await served.client.run("/tool pay {}")
        call = await peer.call()
    await until_state(served, "till", AWAY)
    started = only(await until(run, "tool_started"), "tool_started")[0]
    async with asyncio.timeout(WAIT_SECONDS):
        while served.daemon.house.clock.now_ns() < started.deadline.ToNanoseconds():
            await asyncio.sleep(0.05)
    async with attached(address(served), held=keys(call, done=True), lease_id=peer.welcome.lease_id) as again:
        await again.finish(await again.call())
        await ends_well(run)


async def test_the_very_arguments_that_were_approved_are_sent_and_joined() -> None:  # N03
    asks = Operator(default_permission=PermissionAction.PERMISSION_ACTION_ASK)
    async with serve(operator=asks) as served:
        async with attached(address(served)) as peer:
            run = await served.client.run('/tool pay {"amount": 700}')
            await until(run, "run_waiting")
            [asked] = [approval async for approval in served.client.approvals.list()]
            edited = '{ "amount":7 }'
            await served.client.approvals.approve(asked, arguments_json=edited)
            call = await peer.call()
            assert call.call_tool.arguments_json == edited
        async with attached(address(served), held=keys(call, done=True), lease_id=peer.welcome.lease_id) as again:
            joined = await again.call()
            assert joined.call_tool.arguments_json == edited
            await again.finish(joined)
            events = await ends_well(run)
            [started] = only(events, "tool_started")
            assert started.args_hash == sha256(edited.encode()).digest()


# --- the window ---


async def test_when_the_window_is_over_the_tools_are_gone_and_calls_are_in_doubt() -> None:  # C025
    async with serve(operator=OPEN, limits=Limits(reconnect_seconds=0.3)) as served:
        async with attached(address(served)) as peer:
            server_id = peer.welcome.server.id
            run = await served.client.run("/tool pay {}")
            await peer.call()
        events = await until(run, "run_waiting")
        assert only(events, "tool_outcome_unknown")
        server = await until_state(served, "till", GONE)
        assert (server.id, list(server.tool_names)) == (server_id, [])
        assert [found.name async for found in served.client.tools.list()] == []
        async with attached(address(served), lease_id=peer.welcome.lease_id) as again:
            assert (again.welcome.server.id, list(again.welcome.server.tool_names)) == (server_id, ["pay"])


async def test_a_server_that_is_unregistered_while_it_is_away_is_given_up_at_once(served: Served) -> None:
    async with attached(address(served)) as peer:
        run = await served.client.run("/tool pay {}")
        await peer.call()
    await until_state(served, "till", AWAY)
    await served.client.servers.unregister(peer.welcome.server.id)
    assert only(await until(run, "run_waiting"), "tool_outcome_unknown")


async def test_a_result_that_comes_after_the_window_settles_a_call_that_is_still_in_doubt() -> None:  # C025
    async with serve(operator=OPEN, limits=Limits(reconnect_seconds=0.3)) as served:
        async with attached(address(served)) as peer:
            run = await served.client.run("/tool pay {} /next /say thanks")
            call = await peer.call()
        await until(run, "run_waiting")
        await until_state(served, "till", GONE)
        async with attached(address(served), held={"another": True}):
            await until_state(served, "till", READY)
        async with attached(address(served), held=keys(call, done=True)) as again:
            joined = await again.call()
            assert same(joined, call)
            await again.finish(joined)
            events = await events_of(run, seconds=WAIT_SECONDS)
            assert kinds(events)[-1] == "run_completed"
            [resolved] = only(events, "tool_resolved")
            assert (resolved.by, resolved.result.parts[0].text.text) == ("late_reply", "paid")
            assert len(only(events, "tool_started")) == 1


async def test_a_server_that_is_silent_is_given_up_and_hears_heartbeats_until_then() -> None:
    async with serve(operator=OPEN, limits=Limits(attach_heartbeat_seconds=0.2)) as served:
        async with attached(address(served)) as peer:
            beats = 0
            with pytest.raises(grpc.aio.AioRpcError) as broken:
                async with asyncio.timeout(WAIT_SECONDS):
                    while frame := await peer.stream.read():
                        beats += frame.WhichOneof("frame") is None
            assert beats > 0
            assert (broken.value.code(), reason(broken.value)) == (
                grpc.StatusCode.UNAVAILABLE,
                "TRANSPORT_STREAM_BROKEN",
            )
            await until_state(served, "till", AWAY)


# --- drain ---


async def test_a_server_that_drains_gets_no_more_calls_until_it_says_hello_again(served: Served) -> None:  # C025
    await served.client.servers.register(registration(tool_policies={"pay": PURE}))
    async with attached(address(served)) as peer:
        calling = asyncio.ensure_future(call_tool(served))
        call = await peer.call()
        await peer.drain()
        server = served.daemon.rooms.registry.named("default", "till")
        assert server is not None
        async with asyncio.timeout(WAIT_SECONDS):
            while server.standing().is_there:
                await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(call_tool(served))
        await peer.finish(call)
        assert (await calling).parts[0].text.text == "paid"
        # Were the call on its way, it would come before the welcome.
        await peer.hello()
        await peer.finish(await peer.call())
        assert (await waiting).parts[0].text.text == "paid"


async def test_a_daemon_that_stops_drains_its_servers_and_refuses_new_ones() -> None:
    async with serve(operator=OPEN, drain_seconds=WAIT_SECONDS) as served, attached(address(served)) as peer:
        calling = asyncio.ensure_future(call_tool(served, idempotency_key="mine"))
        call = await peer.call()
        leaving = asyncio.ensure_future(served.daemon.__aexit__(None, None, None))
        frame = await peer.next()
        assert frame.WhichOneof("frame") == "drain"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async with attached(address(served), "other"):
                pass
        assert reason(refused.value) == "RUNTIME_DRAINING"
        # The result alone: with it the daemon has nothing left to wait for, and may be gone before an end is sent.
        await peer.reply(call.call_number, call_tool=CallToolResponse(result=result("paid")))
        assert (await calling).parts[0].text.text == "paid"
        error = await peer.broken()
        assert (error.code(), reason(error)) == (grpc.StatusCode.UNAVAILABLE, "RUNTIME_DRAINING")
        await leaving


# --- the daemon dies ---


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("policy", [None, IDEMPOTENT, QUERYABLE, PURE])
async def test_no_result_is_lost_and_nothing_done_twice_when_the_daemon_is_killed(
    tmp_path: Path, policy: ToolPolicy | None, is_done: bool
) -> None:  # C025
    async with daemon_process.running(tmp_path, config=CONFIG) as daemon, Client(daemon.address) as client:
        if policy is not None:
            await client.servers.register(registration(tool_policies={"pay": policy}))
        async with attached(daemon.address, dedupe_retention=DAYS) as peer:
            run = await client.run("/tool pay {} /next /say thanks")
            first = await peer.call()
            await peer.accept(first)
            await daemon.kill()
        await daemon.start()
        held, lease = keys(first, done=is_done), peer.welcome.lease_id
        async with attached(daemon.address, held=held, lease_id=lease, dedupe_retention=DAYS) as again:
            assert again.welcome.server.id == peer.welcome.server.id
            joined = await again.call()
            assert same(joined, first)
            await again.finish(joined)
            events = await ends_well(client.watch(run.run_id))
            assert len(only(events, "tool_started")) == 1
            # Nothing else was called: a welcome comes after everything that was on its way.
            await again.hello()


async def test_a_call_that_never_reached_the_server_before_the_daemon_was_killed_is_sent_again(tmp_path: Path) -> None:
    async with daemon_process.running(tmp_path, config=CONFIG) as daemon, Client(daemon.address) as client:
        async with attached(daemon.address) as peer:
            run = await client.run("/tool pay {} /next /say thanks")
            first = await peer.call()
            await daemon.kill()
        await daemon.start()
        async with attached(daemon.address, lease_id=peer.welcome.lease_id) as again:
            second = await again.call()
            assert second.call_tool.idempotency_key == first.call_tool.idempotency_key
            assert second.call_tool.attempt == 2
            await again.finish(second)
            events = await ends_well(client.watch(run.run_id))
            assert len(only(events, "tool_started")) == 2


async def test_a_call_is_in_doubt_when_daemon_and_server_were_killed(tmp_path: Path) -> None:
    async with daemon_process.running(tmp_path, config=CONFIG) as daemon, Client(daemon.address) as client:
        async with attached(daemon.address) as peer:
            run = await client.run("/tool pay {} /next /say thanks")
            await peer.call()
            await daemon.kill()
        await daemon.start()
        async with attached(daemon.address) as other:
            events = await until(client.watch(run.run_id), "run_waiting")
            assert only(events, "tool_outcome_unknown")
            # No call was on its way.
            await other.hello()


def same(one: AttachCall, other: AttachCall) -> bool:
    """Whether two calls are the same but for the owner of the run, who has another number."""
    first, second = one.call_tool, other.call_tool
    return (first.idempotency_key, first.attempt, first.arguments_json, first.tool_name) == (
        second.idempotency_key,
        second.attempt,
        second.arguments_json,
        second.tool_name,
    )
