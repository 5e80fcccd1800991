"""The operator's limits of a model: calls at once, requests and tokens a minute, in order and without failures."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

import pytest

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.model_pb2 import ModelHealthState
from behest.v1.run_state_pb2 import WaitReason
from behestd.providers.catalog import snapshot
from behestd.providers.failure import ProviderFailure
from behestd.providers.scripted import Scripted
from behestd.runtime.model_limits import Allowance, Gate
from tests import daemons
from tests.daemons import refused
from tests.routing.test_circuit import HandClock, chat
from tests.routing.vendor import Answer, vendor
from tests.runs.scenes import events_of, kinds, only, until_kind

LONG_SECONDS = 1000.0


async def test_calls_beyond_the_limit_wait_in_the_order_in_which_they_came() -> None:
    gate, order = Gate(Allowance(calls=2, wait_seconds=LONG_SECONDS), HandClock()), []

    async def call(number: int) -> None:
        await gate.enter(0, LONG_SECONDS)
        order.append(number)
        await asyncio.sleep(0)
        gate.leave()

    async with asyncio.timeout(30):
        await asyncio.gather(*(call(number) for number in range(50)))
    assert order == list(range(50))


async def test_one_that_gives_up_waiting_holds_up_nobody() -> None:
    gate = Gate(Allowance(calls=1, wait_seconds=LONG_SECONDS), HandClock())
    await gate.enter(0, LONG_SECONDS)
    tasks = [asyncio.ensure_future(gate.enter(0, LONG_SECONDS)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    gate.leave()
    async with asyncio.timeout(30):
        await tasks[1]
        # Cancelled in the same turn of the loop in which it was let through.
        gate.leave()
        tasks[2].cancel()
        await asyncio.wait(tasks)
        await gate.enter(0, LONG_SECONDS)


async def test_a_burst_is_a_tenth_of_a_minute_and_time_brings_more() -> None:
    clock = HandClock()
    gate = Gate(Allowance(requests_per_minute=60, wait_seconds=0.0), clock)
    for _ in range(6):
        await gate.enter(0, LONG_SECONDS)
    with pytest.raises(ProviderFailure) as caught:
        await gate.enter(0, LONG_SECONDS)
    assert caught.value.failure_class == FailureClass.FAILURE_CLASS_THROTTLED
    assert caught.value.retry_after_seconds == pytest.approx(1.0, abs=0.9)
    clock.ahead_seconds += 1
    await gate.enter(0, LONG_SECONDS)
    clock.ahead_seconds += 3600
    for _ in range(6):
        await gate.enter(0, LONG_SECONDS)


async def test_tokens_count_as_estimated_and_then_as_used() -> None:
    clock = HandClock()
    gate = Gate(Allowance(tokens_per_minute=6000, wait_seconds=0.0), clock)
    await gate.enter(100, LONG_SECONDS)
    gate.leave(1400)
    # 1,500 of a burst of 600: the next that needs 10 waits for the 910 that are missing, at 100 a second.
    with pytest.raises(ProviderFailure) as caught:
        await gate.enter(10, LONG_SECONDS)
    assert caught.value.retry_after_seconds == pytest.approx(9.1, abs=0.9)
    clock.ahead_seconds += 9.2
    await gate.enter(10, LONG_SECONDS)
    gate.leave()
    # More than a burst is let in when the burst is there.
    clock.ahead_seconds += 60
    await gate.enter(5000, LONG_SECONDS)


async def test_a_wait_that_is_bound_to_be_too_long_is_refused_at_once_with_its_length() -> None:
    gate = Gate(Allowance(requests_per_minute=1, wait_seconds=LONG_SECONDS), HandClock())
    await gate.enter(0, LONG_SECONDS)
    with pytest.raises(ProviderFailure) as caught:
        await gate.enter(0, 20.0)
    assert caught.value.retry_after_seconds == pytest.approx(60.0, abs=5)


async def test_a_wait_ends_with_what_is_left_of_the_attempt() -> None:
    gate = Gate(Allowance(calls=1, wait_seconds=LONG_SECONDS), HandClock())
    await gate.enter(0, LONG_SECONDS)
    with pytest.raises(ProviderFailure) as caught:
        await asyncio.wait_for(gate.enter(0, 0.05), 10)
    assert caught.value.reason == "PROVIDER_RATE_LIMITED"
    gate.leave()
    await asyncio.wait_for(gate.enter(0, LONG_SECONDS), 10)


def test_waiting_for_a_turn_turns_no_loop() -> None:
    class Counting(selectors.DefaultSelector):
        turns = 0

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            self.turns += 1
            return list(super().select(timeout))

    selector = Counting()

    async def scene() -> None:
        gate = Gate(Allowance(requests_per_minute=600, wait_seconds=LONG_SECONDS), HandClock())
        async with asyncio.timeout(30):
            await asyncio.gather(*(gate.enter(0, LONG_SECONDS) for _ in range(70)))

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(scene())
    # Sixty at once, then one each tenth of a second: a turn or a few for each, not one a millisecond.
    assert selector.turns < 100


# --- through the daemon ---


def limited(at: Any, allowance: Allowance, **more: Any) -> Any:
    models = snapshot([at.provider(), Scripted()], aliases={"pair": "v/m"}, default_model="v/m")
    return daemons.serve(models=models, model_limits={"v/m": allowance}, **more)


async def test_no_more_runs_and_calls_than_allowed_are_at_a_model_at_once_and_all_are_answered() -> None:
    async with vendor() as at:
        async with limited(at, Allowance(calls=2, wait_seconds=30.0)) as served:
            handles = [await served.client.run("hello") for _ in range(10)]
            calls = [served.client.chat.complete(chat()) for _ in range(10)]
            async with asyncio.timeout(30):
                ends = await asyncio.gather(*map(events_of, handles), *calls)
            assert {kinds(events)[-1] for events in ends[:10]} == {"run_completed"}
            assert all(len(only(events, "model_requested")) == 1 for events in ends[:10])
        assert at.requests == 20
        assert at.most_open <= 2


async def test_a_run_over_the_limit_waits_parked_or_falls_back_and_the_model_counts_as_well() -> None:
    fallbacks = {"pair": ["scripted/echo"]}
    async with vendor() as at:
        async with limited(at, Allowance(requests_per_minute=1, wait_seconds=0.01), fallbacks=fallbacks) as served:
            assert kinds(await events_of(await served.client.run("one")))[-1] == "run_completed"
            events = await until_kind(await served.client.run("two"), "run_waiting")
            (failed,), (waiting,) = only(events, "model_failed"), only(events, "run_waiting")
            assert (failed.failure_class, failed.reason) == (
                FailureClass.FAILURE_CLASS_THROTTLED,
                "PROVIDER_RATE_LIMITED",
            )
            assert waiting.reason == WaitReason.WAIT_REASON_BACKOFF
            assert waiting.until == failed.retry_time
            error = await refused(served.client.chat.complete(chat()))
            assert (error.reason, error.code.name) == ("PROVIDER_RATE_LIMITED", "RESOURCE_EXHAUSTED")
            assert error.retry_seconds is not None
            health = (await served.client.models.get("v/m")).health
            assert health.state == ModelHealthState.MODEL_HEALTH_STATE_HEALTHY
        assert at.requests == 1


async def test_a_run_that_is_cancelled_while_it_waits_for_its_turn_lets_the_next_one_through() -> None:
    async with vendor() as at:
        at.says(Answer(hold=(held := asyncio.Event())))
        async with limited(at, Allowance(calls=1, wait_seconds=60.0)) as served:
            first = await served.client.run("first")
            await asyncio.wait_for(at.arrived.wait(), 10)
            second, third = [await served.client.run(said) for said in ("second", "third")]
            await until_kind(third, "model_requested")
            await second.cancel()
            held.set()
            assert kinds(await events_of(first))[-1] == "run_completed"
            assert kinds(await events_of(third))[-1] == "run_completed"
            assert kinds(await events_of(second))[-1] == "run_cancelled"
        assert at.requests == 2
