"""Tool calls at once: the limits of a run and of the daemon, and that both leave others their share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager

import pytest

from behest.v1.agent_pb2 import Agent
from behest.v1.definition_pb2 import Limits as RunLimits
from behest.v1.run_state_pb2 import RunState
from behest.v1.tool_pb2 import Executed, SideEffect, ToolPolicy, ToolTimeouts
from behestd.core.times import duration
from behestd.runtime.house import Limits
from behestd.runtime.slots import Slots, Statistics, Turn
from tests import daemons
from tests.runs.scenes import (
    NON_IDEMPOTENT,
    OPEN,
    PURE,
    Ledger,
    events_of,
    finished,
    kinds,
    only,
    put_agent,
    tools,
    until_kind,
)

GREEDY = Agent(id="greedy", tools=["*"], limits=RunLimits(max_parallel_tool_calls=100))
ONE = ("default", "one")
TWO = ("default", "two")


def look_up(key: str) -> str:
    """Look a thing up."""
    return f"{key} is 42"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the tools of a test do."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def calls_of(tool: str, count: int) -> str:
    return " ".join(f'/tool {tool} {{"n": {n}}}' for n in range(count))


async def test_a_run_with_many_slow_tools_leaves_the_half_of_the_places_to_others() -> None:  # C030
    ledger = Ledger()

    async def slow(n: int) -> str:
        """Work for long."""
        return await ledger.work(f"slow {n}")

    limits = Limits(tool_calls=4)
    async with daemons.serve(tools=tools((slow, PURE), (look_up, PURE)), limits=limits) as served:
        await put_agent(served, GREEDY)
        greedy = await served.client.run(calls_of("slow", 20), agent_id="greedy")
        await until_kind(served.client.watch(greedy.run_id), "tool_started", 20)
        await until(lambda: ledger.running == 2)
        for number in range(3):
            output = await (await served.client.run(f'/tool look_up {{"key": "{number}"}}')).result()
            assert output.text == f"look_up: {number} is 42"
        assert (ledger.running, len(ledger.calls)) == (2, 2), "the others ran while these were held"
        ledger.opened.set()
        events = await events_of(greedy, seconds=20)

    assert ledger.most_at_once == 2
    assert len(only(events, "tool_completed")) == 20


async def test_all_runs_together_have_no_more_calls_at_once_than_the_daemon_allows() -> None:  # C030
    ledger = Ledger()

    async def slow(n: int) -> str:
        """Work for long."""
        return await ledger.work(f"slow {n}")

    async with daemons.serve(tools=tools((slow, PURE)), limits=Limits(tool_calls=6)) as served:
        runs = [await served.client.run(calls_of("slow", 4)) for _ in range(5)]
        for run in runs:
            await until_kind(served.client.watch(run.run_id), "tool_started", 4)
        await until(lambda: ledger.running == 6)
        ledger.opened.set()
        for run in runs:
            await events_of(run, seconds=20)

    assert (ledger.most_at_once, len(ledger.calls)) == (6, 20)


async def test_a_call_that_finds_no_place_in_its_time_did_not_leave() -> None:  # C030 C032
    ledger = Ledger()

    async def slow(n: int) -> str:
        """Work for long."""
        return await ledger.work(f"slow {n}")

    timeouts = ToolTimeouts(start_to_close=duration(0.3))
    impatient = ToolPolicy(
        side_effect=SideEffect.SIDE_EFFECT_NON_IDEMPOTENT, timeouts=timeouts, max_attempts=1, doom_loop_exempt=True
    )

    async def pay() -> str:
        """Pay."""
        raise AssertionError("it had no place")

    offered = tools((slow, PURE), (pay, impatient))
    async with daemons.serve(tools=offered, operator=OPEN, limits=Limits(tool_calls=1)) as served:
        holder = await served.client.run(calls_of("slow", 1))
        await asyncio.wait_for(ledger.reached.wait(), 20)
        events = await events_of(await served.client.run("/tool pay {} /next /say later"), seconds=20)
        ledger.opened.set()
        await holder.result()

    (failed,) = only(events, "tool_failed")
    assert (failed.reason, failed.executed) == ("TOOL_TIMEOUT", Executed.EXECUTED_NO)
    assert kinds(events)[-1] == "run_completed"


async def test_a_call_that_is_cancelled_while_it_waits_for_a_place_is_in_no_doubt() -> None:  # C030 N04
    ledger = Ledger()

    async def slow(n: int) -> str:
        """Work for long."""
        return await ledger.work(f"slow {n}")

    async def pay() -> str:
        """Pay."""
        raise AssertionError("it had no place")

    offered = tools((slow, PURE), (pay, NON_IDEMPOTENT))
    async with daemons.serve(tools=offered, operator=OPEN, limits=Limits(tool_calls=1)) as served:
        holder = await served.client.run(calls_of("slow", 1))
        await asyncio.wait_for(ledger.reached.wait(), 20)
        run = await served.client.run("/tool pay {}")
        await until_kind(served.client.watch(run.run_id), "tool_started")
        await run.cancel()
        got = await finished(served.client, run.run_id)
        events = await events_of(served.client.watch(run.run_id))
        ledger.opened.set()
        await holder.result()

    assert got.state == RunState.RUN_STATE_CANCELLED
    (failed,) = only(events, "tool_failed")
    assert (failed.reason, failed.executed) == ("TOOL_CANCELLED", Executed.EXECUTED_NO)
    assert [(each.acknowledged, each.in_doubt) for each in only(events, "run_cancelled")[0].receipts] == [(True, False)]


# --- the places themselves ---


@asynccontextmanager
async def waiting(slots: Slots, run: tuple[str, str], call: str, order: list[str] | None = None):  # type: ignore[no-untyped-def]
    """Have a task wait for a place, and note when it has it."""

    async def wait() -> Turn:
        turn = await slots.take(run, call, 60)
        if order is not None:
            order.append(call)
        return turn

    task = asyncio.ensure_future(wait())
    before = slots.statistics().waiting
    await until(lambda: slots.statistics().waiting > before)
    try:
        yield task
    finally:
        task.cancel()


async def test_a_free_place_goes_to_the_run_that_holds_fewest() -> None:  # C030
    slots = Slots(4)
    order: list[str] = []
    for run in (ONE, ONE, TWO, ("default", "three")):
        assert await slots.take(run, "a", 1) is Turn.TAKEN
    async with waiting(slots, TWO, "two", order) as two, waiting(slots, ("default", "four"), "four", order) as four:
        slots.give(ONE)
        assert await four is Turn.TAKEN
        slots.give(("default", "three"))
        assert await two is Turn.TAKEN
    assert order == ["four", "two"]
    assert slots.statistics() == Statistics(4, 0)


async def test_a_run_at_its_share_waits_although_places_are_free() -> None:  # C030
    slots = Slots(2)
    assert await slots.take(ONE, "a", 1) is Turn.TAKEN
    async with waiting(slots, ONE, "b") as second:
        assert await slots.take(TWO, "a", 1) is Turn.TAKEN
        slots.give(TWO)
        assert not second.done()
        slots.give(ONE)
        assert await second is Turn.TAKEN


@pytest.mark.parametrize("seconds", [0.0, 0.01])
async def test_waiting_ends_with_the_time_or_when_the_call_is_sent_away(seconds: float) -> None:
    slots = Slots(1)
    assert await slots.take(ONE, "a", 1) is Turn.TAKEN
    assert await slots.take(TWO, "b", seconds) is Turn.EXPIRED
    async with waiting(slots, TWO, "c") as task:
        assert slots.send_away(TWO, "c")
        assert not slots.send_away(TWO, "c")
        assert await task is Turn.SENT_AWAY
    assert slots.statistics() == Statistics(1, 0)


async def test_a_place_given_to_a_task_that_is_cancelled_is_not_lost() -> None:
    slots = Slots(1)
    assert await slots.take(ONE, "a", 1) is Turn.TAKEN
    async with waiting(slots, TWO, "b") as task:
        slots.give(ONE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert slots.statistics() == Statistics(0, 0)
    assert await slots.take(ONE, "c", 1) is Turn.TAKEN
