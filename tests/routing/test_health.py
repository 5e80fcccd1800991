"""What attempts tell of their endpoints, and what decisions get to see of it."""

from __future__ import annotations

import asyncio

import pytest

from behestd.core.circuit import WELL, CircuitPolicy
from behestd.core.times import SECOND
from behestd.providers.failure import NOT_SENT, ProviderFailure
from behestd.runtime.health import Endpoints
from behestd.runtime.model_limits import Allowance
from tests.routing.test_circuit import HandClock

POLICY = CircuitPolicy(failures=2, cool_down_seconds=60.0, retries=1.0, retries_per_second=0.001)
DOWN = ProviderFailure("PROVIDER_UNAVAILABLE", "as the test said")


async def attempt(endpoints: Endpoints, outcome: BaseException | None = None, *, is_retry: bool = False) -> None:
    async with endpoints.attempt("a/m", 2**62, is_retry=is_retry, tokens=0):
        if outcome is not None:
            raise outcome


async def opened(clock: HandClock, allowance: Allowance | None = None) -> Endpoints:
    """Endpoints of which one has failed until its circuit opened."""
    endpoints = Endpoints(clock, POLICY, {"a/m": allowance} if allowance is not None else None)
    for _ in range(2):
        with pytest.raises(ProviderFailure):
            await attempt(endpoints, DOWN)
    return endpoints


async def test_health_is_one_value_while_all_is_well_and_again_when_it_is() -> None:
    endpoints = Endpoints(HandClock(), POLICY)
    well = endpoints.health("default")
    await attempt(endpoints)
    assert endpoints.health("default") is well
    assert endpoints.success_ns("a/m") > 0
    with pytest.raises(ProviderFailure):
        await attempt(endpoints, DOWN)
    await attempt(endpoints)
    assert endpoints.health("default") is well
    assert endpoints.condition("a/m") is WELL


async def test_nothing_leaves_for_an_endpoint_that_is_left_alone_and_that_is_no_failure_of_its_own() -> None:
    clock = HandClock()
    endpoints = await opened(clock)
    before = endpoints.condition("a/m")
    with pytest.raises(ProviderFailure) as caught:
        await attempt(endpoints)
    assert caught.value.failure_class == NOT_SENT
    assert caught.value.retry_after_seconds == pytest.approx(60.0, abs=5)
    assert endpoints.condition("a/m") == before
    assert endpoints.health("default").open_until_ns["a/m"] == before.open_until_ns


@pytest.mark.parametrize("ending", [asyncio.CancelledError(), GeneratorExit(), ValueError()])
async def test_a_probe_that_is_given_up_leaves_its_place_to_the_next(ending: BaseException) -> None:
    clock = HandClock()
    endpoints = await opened(clock)
    clock.ahead_seconds += 61
    with pytest.raises(type(ending)):
        await attempt(endpoints, ending)
    async with endpoints.attempt("a/m", 2**62, is_retry=False, tokens=0):
        with pytest.raises(ProviderFailure):
            await attempt(endpoints)
    await attempt(endpoints)


async def test_a_call_that_is_given_up_tells_nothing_of_its_endpoint() -> None:
    endpoints = Endpoints(HandClock(), POLICY)
    for _ in range(5):
        with pytest.raises(asyncio.CancelledError):
            await attempt(endpoints, asyncio.CancelledError())
    assert endpoints.condition("a/m") is WELL
    assert endpoints.success_ns("a/m") == 0


async def test_a_spent_budget_is_seen_by_decisions_until_time_or_successes_fill_it() -> None:
    clock = HandClock()
    endpoints = Endpoints(clock, POLICY)
    await attempt(endpoints, is_retry=True)
    spent_until_ns = endpoints.health("default").spent_until_ns["a/m"]
    assert spent_until_ns == pytest.approx(clock.now_ns() + 900 * SECOND, abs=10 * SECOND)
    for _ in range(10):
        await attempt(endpoints)
    assert not endpoints.health("default").spent_until_ns


async def test_an_attempt_that_may_not_leave_gives_its_turn_back() -> None:
    clock = HandClock()
    endpoints = await opened(clock, Allowance(calls=1, wait_seconds=0.0))
    for _ in range(3):
        with pytest.raises(ProviderFailure) as caught:
            await attempt(endpoints)
        assert caught.value.reason == "PROVIDER_UNAVAILABLE"
    clock.ahead_seconds += 61
    await attempt(endpoints)
