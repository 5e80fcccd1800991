"""Attempts at the model: backoff, waits, fallback, quota and open breakers."""

from __future__ import annotations

from typing import Any

import pytest

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.run_state_pb2 import WaitReason
from behestd.core.route import GiveUp, Health, RoutePolicy, Try, WaitUntil, next_attempt, retry_due_ns
from behestd.core.signals import ModelBroke, ModelEnded
from behestd.core.state import Failure
from behestd.core.times import SECOND, duration, nanoseconds
from behestd.core.wanted import alarm_ns
from tests.core.stage import (
    AMBIGUOUS,
    MALFORMED,
    NOT_SENT,
    PERMANENT,
    QUOTA,
    T0,
    THROTTLED,
    TRANSIENT,
    Stage,
    answer,
    definition,
    kinds,
    tool,
)

LIMIT = FailureClass.FAILURE_CLASS_LIMIT


def routed(*models: str, **given: Any) -> Stage:
    """A run that may try these models."""
    return Stage(definition(models=models or ["m/a", "m/b"]), given=given)


def endpoint(stage: Stage) -> str:
    assert stage.run.step.open is not None
    return stage.run.step.open.endpoint


@pytest.mark.parametrize("failure_class", [NOT_SENT, THROTTLED, TRANSIENT, AMBIGUOUS])
def test_two_failures_and_a_success_make_three_attempts(failure_class: int) -> None:  # C017
    stage = routed("m/a")
    for seconds in (0.25, 0.5):
        assert kinds(stage.model_breaks(failure_class)) == ["model_failed"]
        assert nanoseconds(stage.last("model_failed").retry_time) == stage.now_ns + int(seconds * SECOND)
        assert kinds(stage.wait_for_alarm()) == ["model_requested"]
    stage.model("hi")
    assert stage.state == "COMPLETED"
    assert stage.kinds.count("model_requested") == 3


def test_no_attempt_leaves_before_its_time() -> None:
    stage = routed("m/a")
    stage.model_breaks(TRANSIENT)
    assert stage.wait(0.1) == []
    assert kinds(stage.wait(0.15)) == ["model_requested"]


def test_the_delay_that_was_asked_for_is_kept() -> None:  # C017
    stage = routed("m/a")
    stage.model_breaks(THROTTLED, retry_after_ns=20 * SECOND)
    stage.wait_for_alarm()
    assert stage.now_ns == T0 + 20 * SECOND
    assert endpoint(stage) == "m/a"


def test_a_delay_of_thirty_seconds_is_a_timer_and_a_longer_one_a_wait() -> None:
    stage = routed("m/a")
    stage.model_breaks(THROTTLED, retry_after_ns=30 * SECOND)
    assert stage.state == "RUNNING"
    stage = routed("m/a")
    stage.model_breaks(THROTTLED, retry_after_ns=31 * SECOND)
    waiting = stage.last("run_waiting")
    assert (stage.state, waiting.reason) == ("WAITING", WaitReason.WAIT_REASON_BACKOFF)
    assert nanoseconds(waiting.until) == T0 + 31 * SECOND
    assert kinds(stage.wait_for_alarm()) == ["run_resumed", "model_requested"]


def test_a_backoff_is_not_reset_by_a_takeover() -> None:
    for seconds in (20, 300):
        stage = routed("m/a")
        stage.model_breaks(THROTTLED, retry_after_ns=seconds * SECOND)
        stage.now_ns += 5 * SECOND
        assert kinds(stage.crash()) == ["run_claimed"]
        stage.wait_for_alarm()
        assert stage.now_ns == T0 + seconds * SECOND
        assert endpoint(stage) == "m/a"


@pytest.mark.parametrize("failure_class", [PERMANENT, LIMIT])
def test_a_permanent_error_makes_one_attempt(failure_class: int) -> None:  # C018
    stage = routed("m/a")
    stage.model_breaks(failure_class, "PROVIDER_REQUEST_INVALID")
    assert (stage.state, stage.reason) == ("FAILED", "PROVIDER_REQUEST_INVALID")
    assert stage.kinds.count("model_requested") == 1


def test_another_model_answers_when_the_first_is_down() -> None:  # C019
    stage = routed()
    stage.model_breaks(PERMANENT)
    assert endpoint(stage) == "m/b"
    stage.model("hi")
    assert stage.last("model_completed").endpoint == "m/b"
    assert stage.last("model_failed").endpoint == "m/a"


def test_each_model_has_three_attempts_and_a_step_has_five() -> None:
    stage = routed()
    tried = []
    while stage.state == "RUNNING":
        if stage.run.step.open is None:
            stage.wait_for_alarm()
            continue
        tried.append(endpoint(stage))
        stage.model_breaks(TRANSIENT)
    assert tried == ["m/a"] * 3 + ["m/b"] * 2
    assert stage.reason == "PROVIDER_UNAVAILABLE"
    assert not stage.last("model_failed").HasField("retry_time")


def test_the_last_failure_of_a_model_names_no_time_for_another() -> None:
    stage = routed()
    for _ in range(2):
        stage.model_breaks(TRANSIENT)
        stage.wait_for_alarm()
    stage.model_breaks(THROTTLED, retry_after_ns=25 * SECOND)
    assert not stage.last("model_failed").HasField("retry_time")
    assert endpoint(stage) == "m/b"


def test_an_outcome_of_an_attempt_that_is_over_decides_nothing() -> None:
    stage = routed()
    stage.model_breaks(PERMANENT)
    assert stage.do(ModelEnded(1, 1, answer("late"))) == []
    assert stage.do(ModelBroke(1, 1, TRANSIENT, "PROVIDER_UNAVAILABLE", "late")) == []
    assert stage.do(ModelEnded(2, 2, answer("early"))) == []


# --- quota ---


def test_a_spent_quota_waits_for_the_time_that_the_vendor_names_and_tries_once_more() -> None:
    stage = routed("m/a")
    stage.model_breaks(QUOTA, "PROVIDER_QUOTA", retry_after_ns=100 * SECOND)
    assert stage.last("run_waiting").reason == WaitReason.WAIT_REASON_QUOTA
    assert kinds(stage.wait_for_alarm()) == ["run_resumed", "model_requested"]
    assert stage.now_ns == T0 + 100 * SECOND
    stage.model_breaks(QUOTA, "PROVIDER_QUOTA", retry_after_ns=100 * SECOND)
    assert (stage.state, stage.reason) == ("FAILED", "PROVIDER_QUOTA")


def test_a_spent_quota_without_a_time_waits_a_day() -> None:
    stage = routed("m/a")
    stage.model_breaks(QUOTA, "PROVIDER_QUOTA")
    stage.wait_for_alarm()
    assert stage.now_ns == T0 + 86_400 * SECOND
    stage.model("hi")
    assert stage.state == "COMPLETED"


def test_a_spent_quota_goes_to_another_model_first() -> None:
    stage = routed()
    stage.model_breaks(QUOTA, "PROVIDER_QUOTA", retry_after_ns=100 * SECOND)
    assert endpoint(stage) == "m/b"
    stage.model_breaks(QUOTA, "PROVIDER_QUOTA", retry_after_ns=100 * SECOND)
    assert stage.reason == "PROVIDER_QUOTA"


def test_the_last_attempt_after_a_quota_may_fail_otherwise() -> None:
    stage = routed("m/a")
    stage.model_breaks(QUOTA, "PROVIDER_QUOTA", retry_after_ns=SECOND)
    stage.wait_for_alarm()
    stage.model_breaks(TRANSIENT)
    assert stage.reason == "PROVIDER_UNAVAILABLE"


# --- breakers ---


def open_until(seconds: int, *models: str) -> Health:
    return Health(dict.fromkeys(models, T0 + seconds * SECOND))


def test_a_model_whose_breaker_is_open_is_passed_over() -> None:  # C020
    stage = routed(health=open_until(5, "m/a"))
    assert endpoint(stage) == "m/b"


def test_a_run_waits_when_every_breaker_is_open() -> None:  # C020
    stage = routed(health=open_until(4, "m/a", "m/b"))
    assert stage.state == "WAITING"
    # Half of the spread, by a chance of one half: those who wait do not come back together.
    assert nanoseconds(stage.last("run_waiting").until) == T0 + 6 * SECOND
    stage.wait_for_alarm()
    assert endpoint(stage) == "m/a"


def test_a_run_waits_for_models_that_are_left_alone_for_a_day_and_no_longer() -> None:  # C020
    stage = routed("m/a")
    waits = 0
    while stage.state != "FAILED":
        stage.givens["health"] = Health({"m/a": stage.now_ns + 3600 * SECOND})
        if stage.state == "RUNNING":
            stage.model_breaks(TRANSIENT)
        stage.givens["health"] = Health({"m/a": stage.now_ns + 7200 * SECOND})
        stage.wait_for_alarm()
        waits += 1
    assert stage.reason == "PROVIDER_UNAVAILABLE"
    assert 86_400 <= (stage.now_ns - T0) // SECOND <= 86_400 + 7230
    assert waits <= 25


def test_an_answer_ends_the_count_of_a_day_of_waiting() -> None:
    stage = Stage(
        definition(tool(), models=["m/a"]), given={"health": open_until(80_000, "m/a")}, timeout=duration(10**6)
    )
    stage.wait_for_alarm()
    stage.givens["health"] = Health()
    stage.model("", ("look", "{}"))
    assert stage.run.life.backoff_since_ns == 0
    stage.givens["health"] = Health({"m/a": stage.now_ns + 80_000 * SECOND})
    stage.tool()
    assert stage.state == "WAITING"
    stage.wait_for_alarm()
    stage.model("done")
    assert stage.state == "COMPLETED"


def test_a_time_that_no_failure_names_is_kept_by_a_wait() -> None:
    stage = routed()
    stage.givens["health"] = open_until(2, "m/a")
    stage.model_breaks(THROTTLED, retry_after_ns=20 * SECOND)
    assert endpoint(stage) == "m/b"
    stage.model_breaks(TRANSIENT)
    assert alarm_ns(stage.run, 0) == T0 + SECOND // 4
    stage.givens["health"] = open_until(2, "m/b")
    stage.wait_for_alarm()
    assert nanoseconds(stage.last("run_waiting").until) == T0 + 20 * SECOND
    stage.wait_for_alarm()
    assert endpoint(stage) == "m/a"


# --- the pure functions ---


def failure(model: str, failure_class: int = TRANSIENT, due_ns: int = 0) -> Failure:
    return Failure(model, failure_class, "PROVIDER_UNAVAILABLE", "it broke", due_ns)


def test_the_next_attempt_is_the_first_usable_model_that_is_due() -> None:
    policy = RoutePolicy(("a", "b"))
    assert next_attempt(policy, [], Health(), 5) == Try("a")
    assert next_attempt(policy, [failure("a", due_ns=6)], Health(), 5) == WaitUntil(6)
    assert next_attempt(policy, [failure("a", due_ns=6)], Health(), 6) == Try("a")
    assert next_attempt(policy, [failure("a")] * 3, Health(), 5) == Try("b")
    last = failure("b", PERMANENT)
    assert next_attempt(policy, [failure("a", QUOTA), last], Health(), 5) == GiveUp(last)


@pytest.mark.parametrize("random", [0.0, 0.5, 0.999999])
@pytest.mark.parametrize("tries", range(1, 12))
def test_delays_are_full_jitter_under_a_cap(tries: int, random: float) -> None:
    due_ns = retry_due_ns(RoutePolicy(()), TRANSIENT, tries, 0, (T0, random))
    assert due_ns - T0 == int(random * min(30, 0.5 * 2 ** (tries - 1)) * SECOND)


def test_a_malformed_answer_is_asked_for_again_at_once() -> None:
    assert retry_due_ns(RoutePolicy(()), MALFORMED, 1, SECOND, (T0, 0.5)) == 0
    stage = routed("m/a")
    assert kinds(stage.model_breaks(MALFORMED)) == ["model_failed", "model_requested"]
