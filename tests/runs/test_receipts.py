"""What a cancel leaves behind: receipts of what was told to stop and what is in doubt, and a log that is sealed."""

from __future__ import annotations

import asyncio
import threading

from behest.client import Client
from behest.v1.run_state_pb2 import CancelCause, RunState
from behest.v1.tool_call_pb2 import ToolCallState
from behestd.runtime.house import Limits
from tests import daemons
from tests.runs.scenes import NON_IDEMPOTENT, OPEN, PURE, Ledger, events_of, finished, kinds, only, tools, until_kind


async def test_a_client_that_goes_away_leaves_a_receipt_for_what_was_in_flight() -> None:  # N04 C057
    ledger = Ledger()

    async def pay() -> str:
        """Pay, and stop when told."""
        return await ledger.work("pay")

    def refund() -> str:
        """Never called."""
        raise AssertionError("nothing begins after a cancel")

    offered = tools((pay, NON_IDEMPOTENT), (refund, NON_IDEMPOTENT))
    limits = Limits(disconnect_grace_seconds=0.1)
    async with daemons.serve("sqlite", tools=offered, operator=OPEN, limits=limits) as served:
        async with Client(served.client.address) as leaving:
            handle = leaving.stream("/tool pay {} /next /tool refund {}", cancel_on_disconnect=True)
            await until_kind(handle, "tool_started")
            await asyncio.wait_for(ledger.reached.wait(), 20)
        got = await finished(served.client, handle.run_id)
        events = await events_of(served.client.watch(handle.run_id))

    assert got.state == RunState.RUN_STATE_CANCELLED
    assert only(events, "run_cancel_requested")[0].cause == CancelCause.CANCEL_CAUSE_DISCONNECT
    (ended,) = only(events, "run_cancelled")
    assert ended.cause == CancelCause.CANCEL_CAUSE_DISCONNECT
    (started,) = only(events, "tool_started")
    assert [(each.call_id, each.acknowledged, each.in_doubt) for each in ended.receipts] == [
        (started.call_id, True, True)
    ]
    assert ledger.stopped == ["pay"]


async def test_a_tool_that_answers_after_the_end_changes_nothing() -> None:  # N04
    begun, may_end, has_ended = threading.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def pay() -> str:
        """Pay in a thread, which cannot be stopped."""
        begun.set()
        may_end.wait(60)
        loop.call_soon_threadsafe(has_ended.set)
        return "paid all the same"

    limits = Limits(cancel_grace_seconds=0.2)
    async with daemons.serve("sqlite", tools=tools((pay, NON_IDEMPOTENT)), operator=OPEN, limits=limits) as served:
        run = await served.client.run("/tool pay {}")
        await asyncio.to_thread(begun.wait, 20)
        await run.cancel()
        got = await finished(served.client, run.run_id)
        events = await events_of(served.client.watch(run.run_id))
        may_end.set()
        await asyncio.wait_for(has_ended.wait(), 20)
        for _ in range(3):  # what the tool said, had it been heard, would be committed with or before these
            await (await served.client.run("another")).result()
        after = await events_of(served.client.watch(run.run_id))
        (unknown,) = only(events, "tool_outcome_unknown")
        record = await served.client.tool_calls.get(unknown.call_id)
        shown = await served.client.runs.get(run.run_id)

    assert [event.SerializeToString() for event in after] == [event.SerializeToString() for event in events]
    assert shown == got
    assert [each.in_doubt for each in only(events, "run_cancelled")[0].receipts] == [True]
    assert record.state == ToolCallState.TOOL_CALL_STATE_OUTCOME_UNKNOWN


async def test_a_model_that_goes_on_after_a_cancel_is_fenced_in_the_cancel_s_own_commit() -> None:  # N04
    async with daemons.serve("sqlite") as served:
        run = await served.client.run("/delay 20 /words 50")
        await until_kind(served.client.watch(run.run_id), "model_requested")
        shown = await run.cancel()
        head = shown.head_sequence
        events = await events_of(served.client.watch(run.run_id))
        row = await served.daemon.log.store.run("default", run.run_id)

    assert kinds(events)[-3:] == ["run_cancel_requested", "model_superseded", "run_cancelled"]
    assert events[-1].sequence == head, "all of it was durable when the cancel was answered"
    assert row is not None
    assert (row.is_ended, row.last_sequence) == (True, head)
    assert not only(events, "model_completed")


async def test_a_call_without_effect_is_stopped_and_needs_no_receipt() -> None:  # N04
    ledger = Ledger()

    async def ponder() -> str:
        """Ponder."""
        return await ledger.work("ponder")

    async with daemons.serve(tools=tools((ponder, PURE))) as served:
        run = await served.client.run("/tool ponder {}")
        await asyncio.wait_for(ledger.reached.wait(), 20)
        await run.cancel()
        events = await events_of(served.client.watch(run.run_id))

    assert list(only(events, "run_cancelled")[0].receipts) == []
    assert kinds(events)[-3:] == ["run_cancel_requested", "tool_failed", "run_cancelled"]
