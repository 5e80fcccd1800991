"""The four limits of time of a tool, and what follows by class when one is over, in both modes."""

from __future__ import annotations

import asyncio

import pytest

from behest.v1.event_pb2 import Event
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.server_pb2 import ServerState
from behest.v1.tool_pb2 import Executed, SideEffect, ToolPolicy, ToolTimeouts
from behestd.core.times import duration, nanoseconds
from tests.runs.bank import MODES, RECEIPT, banking
from tests.runs.scenes import events_of, kind_of, kinds, only, until_kind

SERVER_READY = ServerState.SERVER_STATE_READY
PURE = SideEffect.SIDE_EFFECT_PURE
IDEMPOTENT = SideEffect.SIDE_EFFECT_IDEMPOTENT
QUERYABLE = SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE
PAYMENT = SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
SECOND = 1_000_000_000


def policy(side_effect: SideEffect.ValueType, attempts: int = 3, **seconds: float) -> ToolPolicy:
    limits = ToolTimeouts(**{name: duration(value) for name, value in seconds.items()})
    return ToolPolicy(side_effect=side_effect, timeouts=limits, max_attempts=attempts)


def span_seconds(events: list[Event]) -> float:
    """From the first dispatch to the deadline of the last one."""
    started = [event for event in events if kind_of(event) == "tool_started"]
    return (nanoseconds(started[-1].tool_started.deadline) - nanoseconds(started[0].record_time)) / SECOND


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side_effect", [PAYMENT, IDEMPOTENT], ids=["payment", "idempotent"])
async def test_a_connection_that_does_not_stand_in_time_is_not_sent_and_tried_again_by_any_class(
    mode: str, side_effect: SideEffect.ValueType
) -> None:  # C028
    async with banking(mode, policy(side_effect, attempts=2, connect=0.2)) as place:
        await place.leave.aclose()
        if mode == "attached":
            # Until the daemon knows, a call would go onto the stream that is lost, and its fate would not be known.
            async with asyncio.timeout(20):
                while SERVER_READY in [server.state async for server in place.served.client.servers.list()]:
                    await asyncio.sleep(0.02)
        events = await events_of(await place.served.client.run("/tool pay {} /next /say done"), seconds=60)
        failures = only(events, "tool_failed")
        assert [failed.executed for failed in failures] == [Executed.EXECUTED_NO] * 2
        assert {failed.failure_class for failed in failures} == {FailureClass.FAILURE_CLASS_NOT_SENT}
        assert [failed.is_final for failed in failures] == [False, True]
        assert kinds(events)[-1] == "run_completed"
        assert place.bank.calls == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side_effect", [PURE, IDEMPOTENT], ids=["pure", "idempotent"])
async def test_an_attempt_that_outlasts_its_time_is_repeated_where_the_class_allows_it_with_the_same_key(
    mode: str, side_effect: SideEffect.ValueType
) -> None:  # C028
    async with banking(mode, policy(side_effect, start_to_close=1.0)) as place:
        events = await events_of(await place.served.client.run("/tool hesitate {} /next /say done"), seconds=60)
        started = only(events, "tool_started")
        first = only(events, "tool_failed")[0]
        assert (first.reason, first.executed, first.is_final) == ("TOOL_TIMEOUT", Executed.EXECUTED_UNKNOWN, False)
        assert len({call.key for call in started}) == 1
        assert [call.attempt for call in started] == list(range(1, len(started) + 1))
        assert kinds(events)[-1] == "run_completed"
        assert place.bank.calls[0] == (started[0].key, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tool", ["ponder", "drip"])
async def test_a_payment_that_outlasts_its_time_is_in_doubt_and_progress_gives_it_no_more(mode: str, tool: str) -> None:
    async with banking(mode, policy(PAYMENT, start_to_close=0.5, heartbeat=20.0)) as place:
        run = await place.served.client.run(f"/tool {tool} {{}} /next /say done")
        events = await until_kind(run, "run_waiting")
        (unknown,) = only(events, "tool_outcome_unknown")
        assert (unknown.attempt, unknown.reason) == (1, "TOOL_TIMEOUT")
        assert only(events, "tool_failed") == []
        assert len(place.bank.calls) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_a_payment_that_shows_no_sign_of_life_is_in_doubt_and_has_not_failed(mode: str) -> None:  # C028
    async with banking(mode, policy(PAYMENT, start_to_close=3600.0, schedule_to_close=7200.0, heartbeat=0.3)) as place:
        run = await place.served.client.run("/tool ponder {} /next /say done")
        events = await until_kind(run, "run_waiting")
        (unknown,) = only(events, "tool_outcome_unknown")
        assert unknown.reason == "TOOL_TIMEOUT"
        assert only(events, "tool_failed") == []
        assert len(place.bank.calls) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_shows_signs_of_life_goes_on_beyond_its_heartbeat(mode: str) -> None:  # C028
    async with banking(mode, policy(PAYMENT, start_to_close=60.0, heartbeat=5.0)) as place:
        run = await place.served.client.run("/tool drip {} /next /say done")
        await until_kind(run, "tool_started")
        # Longer than the longest silence that is allowed.
        await asyncio.sleep(6.0)
        place.bank.opened.set()
        events = await events_of(run)
        assert only(events, "tool_completed")[0].result.parts[0].text.text == RECEIPT


@pytest.mark.parametrize("mode", MODES)
async def test_what_its_server_can_be_asked_about_is_asked_when_the_time_is_over(mode: str) -> None:  # C028
    async with banking(mode, policy(QUERYABLE, start_to_close=0.5)) as place:
        place.link.hold_at(RECEIPT.encode())
        run = await place.served.client.run("/tool pay {} /next /say done")
        await until_kind(run, "tool_failed")
        place.link.release()
        events = await events_of(run)
        assert kinds(events)[-1] == "run_completed"
        assert len(place.bank.calls) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_all_attempts_together_have_one_limit(mode: str) -> None:  # C028
    limits = policy(IDEMPOTENT, attempts=50, start_to_close=0.3, schedule_to_close=1.5)
    async with banking(mode, limits) as place:
        events = await events_of(await place.served.client.run("/tool persist {} /next /say done"), seconds=60)
        assert only(events, "tool_failed")[-1].is_final
        assert len(only(events, "tool_started")) < 50
        assert span_seconds(events) <= 1.5
        assert kinds(events)[-1] == "run_completed"


@pytest.mark.parametrize("mode", MODES)
async def test_one_attempt_does_not_outlast_the_limit_of_all(mode: str) -> None:  # C028
    limits = policy(PAYMENT, start_to_close=3600.0, schedule_to_close=0.5)
    async with banking(mode, limits) as place:
        run = await place.served.client.run("/tool ponder {} /next /say done")
        events = await until_kind(run, "run_waiting")
        assert only(events, "tool_outcome_unknown")[0].reason == "TOOL_TIMEOUT"
        assert span_seconds(events) <= 0.5
