"""The end of runs by somebody's wish: promised, bounded, accounted for."""

from __future__ import annotations

import asyncio
import time

import pytest

from behest.client import Client
from behest.errors import RunCancelledError
from behest.v1.run_state_pb2 import CancelCause, RunState
from behestd.runtime.house import Limits
from tests import daemons
from tests.daemons import Served, refused
from tests.runs.scenes import (
    NON_IDEMPOTENT,
    OPEN,
    PURE,
    Ledger,
    check_pairs,
    events_of,
    finished,
    kinds,
    only,
    tools,
    until_kind,
)


async def test_a_cancel_in_the_middle_of_a_model_call_ends_the_run_at_once(stored: Served) -> None:  # C056
    run = await stored.client.run("/stall")
    await until_kind(run, "model_requested")
    begun = time.monotonic()

    shown = await run.cancel(reason="no longer needed")
    with pytest.raises(RunCancelledError):
        await run.result()

    assert time.monotonic() - begun < 2.0
    assert shown.state in (RunState.RUN_STATE_CANCELLING, RunState.RUN_STATE_CANCELLED)
    events = await events_of(stored.client.watch(run.run_id))
    assert kinds(events)[-3:] == ["run_cancel_requested", "model_superseded", "run_cancelled"]
    requested = only(events, "run_cancel_requested")[0]
    assert (requested.cause, requested.principal) == (CancelCause.CANCEL_CAUSE_CLIENT, "local")
    assert requested.reason == "no longer needed"
    assert (await run.cancel()).state == RunState.RUN_STATE_CANCELLED
    session_id = (await run.get()).session_id
    await asyncio.wait_for((await stored.client.run("next", session_id=session_id)).result(), 5)


async def test_a_cancel_in_the_middle_of_a_pure_tool_stops_it() -> None:  # C056
    ledger = Ledger()

    async def ponder() -> str:
        """Ponder."""
        return await ledger.work("ponder")

    async with daemons.serve(tools=tools((ponder, PURE))) as served:
        run = await served.client.run("/tool ponder {}")
        await asyncio.wait_for(ledger.reached.wait(), 5)
        assert (await run.cancel()).state == RunState.RUN_STATE_CANCELLED
        got = await finished(served.client, run.run_id)

    assert ledger.stopped == ["ponder"]
    check_pairs(got.messages)


async def test_a_cancelled_payment_is_told_to_stop_and_its_doubt_is_on_the_receipt() -> None:  # C056 N04
    ledger = Ledger()

    async def pay() -> str:
        """Pay."""
        return await ledger.work("pay")

    async with daemons.serve(tools=tools((pay, NON_IDEMPOTENT)), operator=OPEN) as served:
        run = await served.client.run("/tool pay {}")
        await asyncio.wait_for(ledger.reached.wait(), 5)
        assert (await run.cancel()).state == RunState.RUN_STATE_CANCELLING
        events = await events_of(served.client.watch(run.run_id))
        messages = (await run.get()).messages

    (ended,) = only(events, "run_cancelled")
    (receipt,) = ended.receipts
    assert (receipt.acknowledged, receipt.in_doubt) == (True, True)
    assert receipt.call_id == only(events, "tool_started")[0].call_id
    check_pairs(messages)


async def test_a_payment_that_finishes_within_the_grace_is_in_no_doubt() -> None:  # N04
    ledger = Ledger()

    async def pay() -> str:
        """Pay, whoever wants it to stop."""
        try:
            return await ledger.work("pay")
        except asyncio.CancelledError:
            return "paid all the same"

    async with daemons.serve(tools=tools((pay, NON_IDEMPOTENT)), operator=OPEN) as served:
        run = await served.client.run("/tool pay {}")
        await asyncio.wait_for(ledger.reached.wait(), 5)
        await run.cancel()
        events = await events_of(served.client.watch(run.run_id))

    assert kinds(events)[-1] == "run_cancelled"
    started = kinds(events)[kinds(events).index("run_cancel_requested") :]
    assert not {"model_requested", "tool_started"} & set(started)


async def test_a_tool_that_does_not_stop_is_waited_for_as_long_as_the_grace_says() -> None:  # N04
    ledger = Ledger()

    def pay() -> str:
        """Pay in a thread, which cannot be stopped."""
        ledger.calls.append("pay")
        time.sleep(1.5)
        return "paid"

    limits = Limits(cancel_grace_seconds=0.3)
    async with daemons.serve(tools=tools((pay, NON_IDEMPOTENT)), operator=OPEN, limits=limits) as served:
        run = await served.client.run("/tool pay {}")
        async with asyncio.timeout(30):
            while not ledger.calls:
                await asyncio.sleep(0.01)
        begun = time.monotonic()
        await run.cancel()
        events = await events_of(served.client.watch(run.run_id))
        assert time.monotonic() - begun < 1.2

    (ended,) = only(events, "run_cancelled")
    assert [receipt.in_doubt for receipt in ended.receipts] == [True]
    assert only(events, "tool_outcome_unknown")


async def test_a_forced_cancel_ends_in_its_own_commit() -> None:  # C056 N04
    ledger = Ledger()

    async def pay() -> str:
        """Pay."""
        return await ledger.work("pay")

    async with daemons.serve(tools=tools((pay, NON_IDEMPOTENT)), operator=OPEN) as served:
        run = await served.client.run("/tool pay {}")
        await asyncio.wait_for(ledger.reached.wait(), 5)
        shown = await run.cancel(force=True)
        events = await events_of(served.client.watch(run.run_id))

    assert shown.state == RunState.RUN_STATE_CANCELLED
    assert kinds(events)[-3:] == ["run_cancel_requested", "tool_outcome_unknown", "run_cancelled"]


async def test_many_cancels_at_once_are_one(stored: Served) -> None:  # C056
    run = await stored.client.run("/stall")
    shown = await asyncio.gather(*(stored.client.runs.cancel(run.run_id, force=n % 3 == 0) for n in range(30)))
    events = await events_of(stored.client.watch(run.run_id))

    assert {each.state for each in shown} <= {RunState.RUN_STATE_CANCELLING, RunState.RUN_STATE_CANCELLED}
    assert kinds(events).count("run_cancel_requested") == 1


async def test_cancels_that_race_the_end_find_one_end(stored: Served) -> None:  # C056
    for number in range(40):
        run = await stored.client.run("/say short", run_id=f"race-{number}")
        shown = await stored.client.runs.cancel(run.run_id)
        got = await finished(stored.client, run.run_id)
        assert got.state in (RunState.RUN_STATE_CANCELLED, RunState.RUN_STATE_COMPLETED)
        assert shown.state in (got.state, RunState.RUN_STATE_CANCELLING)


async def test_an_unknown_run_cannot_be_cancelled(served: Served) -> None:
    assert (await refused(served.client.runs.cancel("nowhere"))).reason == "RUN_NOT_FOUND"


@pytest.mark.parametrize("cancels", [True, False])
async def test_a_client_that_goes_away_cancels_only_the_run_that_it_asked_for_so(
    stored: Served, cancels: bool
) -> None:  # C057
    limits = Limits(disconnect_grace_seconds=0.1)
    async with daemons.serve(stored.daemon.log.store.name, limits=limits) as served:
        async with Client(served.client.address) as leaving:
            handle = leaving.stream("/delay 30 /words 10", cancel_on_disconnect=cancels)
            await until_kind(handle, "model_requested")
        got = await finished(served.client, handle.run_id)

    if cancels:
        assert got.state == RunState.RUN_STATE_CANCELLED
    else:
        assert got.state == RunState.RUN_STATE_COMPLETED
        assert got.output.text.endswith("word10")


async def test_a_watcher_that_goes_away_cancels_nothing(served: Served) -> None:  # C057
    run = await served.client.run("/delay 10 /words 10", cancel_on_disconnect=True)
    async with Client(served.client.address) as leaving:
        await until_kind(leaving.watch(run.run_id), "model_requested")
    assert (await finished(served.client, run.run_id)).state == RunState.RUN_STATE_COMPLETED
