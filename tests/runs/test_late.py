"""Answers that come when the time of their attempt is over, in both modes. Semantics 3.3 #29."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from behest.v1.tool_pb2 import Executed, SideEffect, ToolPolicy, ToolTimeouts
from behestd.core.times import duration
from behestd.runtime.attached import Attached
from tests.runs.bank import MODES, NAME, RECEIPT, banking
from tests.runs.scenes import events_of, kinds, only, until_kind

SHORT = ToolTimeouts(start_to_close=duration(0.5))
PAYMENT = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_NON_IDEMPOTENT, timeouts=SHORT)
LOOK_UP = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE, timeouts=SHORT, max_attempts=1)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("mode", MODES)
async def test_a_late_answer_settles_a_call_whose_outcome_is_unknown(mode: str) -> None:  # matrix row 29
    async with banking(mode, PAYMENT) as place:
        place.link.hold_at(RECEIPT.encode())
        run = await place.served.client.run("/tool pay {} /next /say done")
        events = await until_kind(run, "run_waiting")
        assert kinds(events)[-2:] == ["tool_outcome_unknown", "run_waiting"]
        place.link.release()
        events = await events_of(run)
        (resolved,) = only(events, "tool_resolved")
        assert (resolved.by, resolved.executed) == ("late_reply", Executed.EXECUTED_YES)
        assert resolved.result.parts[0].text.text == RECEIPT
        assert kinds(events)[-1] == "run_completed"
        assert len(place.bank.calls) == 1
        assert place.served.daemon.rooms.late.statistics().settled == 1


@pytest.mark.parametrize("mode", MODES)
async def test_a_late_answer_to_a_call_that_somebody_settled_is_dropped_and_counted(mode: str) -> None:
    async with banking(mode, PAYMENT) as place:
        place.link.hold_at(RECEIPT.encode())
        client = place.served.client
        run = await client.run("/tool pay {} /next /say done")
        (unknown,) = only(await until_kind(run, "run_waiting"), "tool_outcome_unknown")
        await client.tool_calls.resolve(unknown.call_id, Executed.EXECUTED_YES, reason="the bank says so")
        before = await events_of(run)
        place.link.release()
        await until(lambda: place.served.daemon.rooms.late.statistics().dropped == 1)
        assert await events_of(client.watch(run.run_id)) == before
        assert [resolved.by for resolved in only(before, "tool_resolved")] != ["late_reply"]
        assert place.served.daemon.rooms.late.statistics().settled == 0


@pytest.mark.parametrize("mode", MODES)
async def test_an_error_of_a_call_that_was_told_to_stop_settles_nothing(mode: str) -> None:  # matrix row 29
    """The tool is stopped where it waits, and its server says so: how far it had come nobody knows."""
    async with banking(mode, PAYMENT) as place:
        run = await place.served.client.run("/tool ponder {} /next /say done")
        events = await until_kind(run, "run_waiting")
        await until(lambda: place.served.daemon.rooms.late.statistics().dropped == 1)
        record = await place.served.client.runs.get(run.run_id)
        assert kinds(events)[-2:] == ["tool_outcome_unknown", "run_waiting"]
        assert record.head_sequence == events[-1].sequence


async def test_a_late_answer_that_nobody_waits_for_is_counted_as_a_stray() -> None:  # matrix row 29
    async with banking("attached", LOOK_UP) as place:
        place.link.hold_at(RECEIPT.encode())
        run = await place.served.client.run("/tool pay {} /next /say done")
        events = await events_of(run)
        assert only(events, "tool_failed")[-1].is_final
        bank = place.served.daemon.rooms.registry.named("default", NAME)
        assert isinstance(bank, Attached)
        assert bank.remote.strays == 0
        place.link.release()
        await until(lambda: bank.remote.strays == 1)
        assert place.served.daemon.rooms.late.statistics() == type(place.served.daemon.rooms.late.statistics())(0, 0)
