"""A control: what it bounds from outside, over all runs that are emitted with it."""

from __future__ import annotations

import asyncio

import pytest

from behest.control import Control
from behest.errors import ControlCancelledError, RunCancelledError, RunTimedOutError
from behest.v1.event_pb2 import Event
from behest.v1.run_state_pb2 import CancelCause
from tests.daemons import Served

SECONDS = 20
ENDLESS = "/delay 20 /words 100000"


async def test_no_more_runs_than_the_limit_are_open_at_once(served: Served) -> None:  # C095
    open_runs: set[str] = set()
    most = 0

    def count(event: Event) -> None:
        nonlocal most
        if event.WhichOneof("payload") == "run_created":
            open_runs.add(event.run_id)
            most = max(most, len(open_runs))
        else:
            open_runs.discard(event.run_id)

    subscription = served.client.on(["run_created", "run_completed"], count)
    control = Control(concurrency=2)
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
        emits = [group.create_task(served.client.emit(f"/delay 5 /words {n}", control=control)) for n in range(1, 9)]
    runs = [emit.result() for emit in emits]
    async with asyncio.timeout(SECONDS):
        texts = [(await run.result()).text for run in runs]
    assert len(set(texts)) == 8
    assert most == 2
    subscription.cancel()


async def test_a_place_is_free_again_once_its_run_has_ended(served: Served) -> None:  # C095
    control = Control(concurrency=1)
    first = await served.client.emit(ENDLESS, control=control)
    waiting = asyncio.ensure_future(served.client.emit("second", control=control))
    await asyncio.wait([waiting], timeout=0.2)
    assert not waiting.done()
    assert control.runs == [first]
    await first.cancel()
    async with asyncio.timeout(SECONDS):
        assert (await (await waiting).result()).text == "second"


async def test_an_order_that_is_refused_keeps_no_place(served: Served) -> None:  # C095
    control = Control(concurrency=1)
    for _ in range(3):
        with pytest.raises(Exception, match="AGENT_NOT_FOUND"):
            await served.client.emit("hello", control=control, agent_id="nobody")
    async with asyncio.timeout(SECONDS):
        await (await served.client.emit("hello", control=control)).result()


async def test_the_timeout_of_a_control_ends_a_run(served: Served) -> None:  # C095
    run = await served.client.emit(ENDLESS, control=Control(timeout_seconds=0.3))
    async with asyncio.timeout(SECONDS):
        with pytest.raises(RunTimedOutError) as ended:
            await run.result()
    assert ended.value.reason == "RUN_DEADLINE_EXCEEDED"


@pytest.mark.parametrize(("of_order", "of_control"), [(0.3, 3600.0), (3600.0, 0.3)])
async def test_the_smaller_of_two_timeouts_counts(of_order: float, of_control: float, served: Served) -> None:  # C095
    run = await served.client.emit(ENDLESS, control=Control(timeout_seconds=of_control), timeout_seconds=of_order)
    async with asyncio.timeout(SECONDS):
        with pytest.raises(RunTimedOutError):
            await run.result()


async def test_cancelling_a_control_ends_its_runs_and_lets_no_more_begin(served: Served) -> None:  # C095
    control = Control(concurrency=2)
    runs = [await served.client.emit(ENDLESS, control=control) for _ in range(2)]
    bystander = await served.client.emit("/delay 5 /words 20")
    waiting = asyncio.ensure_future(served.client.emit("third", control=control))
    await asyncio.wait([waiting], timeout=0.1)
    await control.cancel("enough")
    async with asyncio.timeout(SECONDS):
        for run in runs:
            with pytest.raises(RunCancelledError):
                await run.result()
            event = [event async for event in run.events()][-1]
            assert event.run_cancelled.cause == CancelCause.CANCEL_CAUSE_CLIENT
        with pytest.raises(ControlCancelledError):
            await waiting
        await bystander.result()
    with pytest.raises(ControlCancelledError):
        await served.client.emit("fourth", control=control)
    assert control.is_cancelled
    await control.cancel("again")


def test_a_limit_that_lets_nothing_begin_is_refused() -> None:
    with pytest.raises(ValueError):
        Control(concurrency=0)
