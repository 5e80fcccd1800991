"""Circuits and budgets of retries: what outcomes make of an endpoint, and what routes make of that."""

from __future__ import annotations

import pytest

from behest.v1.model_event_pb2 import FailureClass
from behestd.core.circuit import (
    COUNTED,
    WELL,
    CircuitPolicy,
    Condition,
    begun,
    dropped,
    failed,
    is_barred,
    spent_until_ns,
    succeeded,
)
from behestd.core.route import Health, RoutePolicy, Try, WaitUntil, next_attempt
from behestd.core.state import Failure
from behestd.core.times import SECOND
from tests.core.stage import MALFORMED, NOT_SENT, PERMANENT, QUOTA, T0, THROTTLED, TRANSIENT

POLICY = CircuitPolicy(failures=3, cool_down_seconds=10.0, longest_cool_down_seconds=35.0, retries=4.0)
DOWN = (TRANSIENT, "PROVIDER_UNAVAILABLE")


def after(failures: int, condition: Condition = WELL, now_ns: int = T0) -> Condition:
    for _ in range(failures):
        condition = failed(condition, POLICY, DOWN, now_ns, is_probe=False)
    return condition


def test_so_many_failures_in_a_row_open_a_circuit_and_fewer_do_not() -> None:  # C020
    assert not is_barred(after(2), T0)
    opened = after(3)
    assert is_barred(opened, T0)
    assert (opened.failures, opened.reason, opened.open_until_ns) == (3, "PROVIDER_UNAVAILABLE", T0 + 10 * SECOND)
    assert not is_barred(opened, T0 + 10 * SECOND)


def test_a_success_in_between_begins_the_count_again() -> None:
    assert succeeded(after(2), POLICY, T0) is WELL
    assert not is_barred(after(2, succeeded(after(2), POLICY, T0)), T0)


@pytest.mark.parametrize("failure_class", [THROTTLED, QUOTA, PERMANENT, MALFORMED, FailureClass.FAILURE_CLASS_LIMIT])
def test_an_endpoint_that_answers_is_up_whatever_it_refuses(failure_class: int) -> None:
    condition = after(2)
    for _ in range(10):
        condition = failed(condition, POLICY, (failure_class, "x"), T0, is_probe=False)
    assert condition == after(2)
    assert failure_class not in COUNTED
    assert {NOT_SENT, TRANSIENT} < COUNTED


def test_one_call_at_a_time_probes_an_endpoint_after_its_cool_down() -> None:
    due_ns = T0 + 10 * SECOND
    probed = begun(after(3), POLICY, due_ns, is_retry=False)
    assert is_barred(probed, due_ns)
    # One that never ends keeps others away for one more cool-down, and not for ever.
    assert not is_barred(probed, due_ns + 10 * SECOND)
    assert succeeded(probed, POLICY, due_ns) is WELL
    assert not is_barred(dropped(probed, due_ns, is_probe=True), due_ns)


def test_a_probe_that_fails_opens_the_circuit_for_twice_as_long_up_to_the_longest() -> None:
    condition, now_ns, waits = after(3), T0, []
    for _ in range(4):
        waits.append((condition.open_until_ns - now_ns) // SECOND)
        now_ns = condition.open_until_ns
        condition = failed(begun(condition, POLICY, now_ns, is_retry=False), POLICY, DOWN, now_ns, is_probe=True)
    assert waits == [10, 20, 35, 35]


def test_a_probe_that_is_refused_lets_the_next_one_through_at_once() -> None:
    due_ns = T0 + 10 * SECOND
    probed = begun(after(3), POLICY, due_ns, is_retry=False)
    refused = failed(probed, POLICY, (PERMANENT, "PROVIDER_REQUEST_INVALID"), due_ns + 1, is_probe=True)
    assert not is_barred(refused, due_ns + 1)
    assert refused.opened


def test_what_began_before_the_circuit_opened_does_not_prolong_it() -> None:
    assert after(5, now_ns=T0).open_until_ns == after(3).open_until_ns
    late = failed(after(3), POLICY, DOWN, T0 + 9 * SECOND, is_probe=False)
    assert late.open_until_ns == after(3).open_until_ns


def test_a_circuit_that_never_opens_still_counts() -> None:
    condition = WELL
    for _ in range(50):
        condition = failed(condition, CircuitPolicy(failures=0), DOWN, T0, is_probe=False)
    assert (condition.failures, condition.opened) == (50, 0)


def test_a_fresh_budget_holds_some_retries_and_time_and_successes_bring_more() -> None:  # row 38
    condition = WELL
    for _ in range(4):
        assert spent_until_ns(condition, POLICY) <= T0
        condition = begun(condition, POLICY, T0, is_retry=True)
    assert spent_until_ns(condition, POLICY) == T0 + 2 * SECOND
    assert spent_until_ns(begun(condition, POLICY, T0 + 2 * SECOND, is_retry=False), POLICY) == T0 + 2 * SECOND
    for _ in range(10):
        condition = succeeded(condition, POLICY, T0)
    assert spent_until_ns(condition, POLICY) <= T0


def test_a_budget_never_holds_more_than_at_the_start() -> None:
    condition = begun(WELL, POLICY, T0, is_retry=True)
    for _ in range(100):
        condition = succeeded(condition, POLICY, T0)
    assert condition is WELL


def test_without_a_budget_every_retry_is_free() -> None:
    policy = CircuitPolicy(retries=0.0)
    condition = WELL
    for _ in range(100):
        condition = begun(condition, policy, T0, is_retry=True)
    assert condition is WELL
    assert spent_until_ns(condition, policy) == 0


def failure(endpoint: str) -> Failure:
    return Failure(endpoint, TRANSIENT, "PROVIDER_UNAVAILABLE", "x")


def test_a_spent_budget_keeps_away_retries_and_nothing_else() -> None:
    policy = RoutePolicy(("a", "b"))
    health = Health(spent_until_ns={"a": T0 + SECOND, "b": T0 + SECOND})
    assert next_attempt(policy, [], health, T0) == Try("a")
    assert next_attempt(policy, [failure("a")], health, T0) == Try("b")
    waits = next_attempt(policy, [failure("a"), failure("b")], health, T0, 0.5)
    assert waits == WaitUntil(T0 + SECOND + 15 * SECOND, is_barred=True)
    assert next_attempt(policy, [failure("a"), failure("b")], health, T0 + SECOND) == Try("a")


@pytest.mark.parametrize("random", [0.0, 0.25, 0.999])
def test_a_wait_for_open_circuits_is_spread_over_as_long_again(random: float) -> None:
    health = Health({"a": T0 + 8 * SECOND, "b": T0 + 4 * SECOND})
    waits = next_attempt(RoutePolicy(("a", "b")), [], health, T0, random)
    assert waits == WaitUntil(T0 + 4 * SECOND + int(random * 4 * SECOND), is_barred=True)
    waits = next_attempt(RoutePolicy(("a", "b"), cap_seconds=1.0), [], health, T0, random)
    assert waits == WaitUntil(T0 + 4 * SECOND + int(random * SECOND), is_barred=True)
