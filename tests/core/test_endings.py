"""How runs end and are taken over: cancel, deadline, waits that are over, vanished owners, what is said meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from behest.v1.model_event_pb2 import SupersedeReason
from behest.v1.run_event_pb2 import RunWaiting
from behest.v1.run_state_pb2 import CancelCause, CancelMode, WaitReason
from behestd.core.pauses import ALL, EVERYTHING, Pause, Pauses
from behestd.core.run import apply
from behestd.core.signals import Cancel, Start
from behestd.core.times import SECOND, nanoseconds, timestamp
from behestd.core.window import is_valid
from behestd.errors import RunEnding
from tests.core.stage import (
    ASK,
    GRACE_NS,
    IDEMPOTENT,
    NON_IDEMPOTENT,
    PURE,
    QUERYABLE,
    T0,
    THROTTLED,
    TRANSIENT,
    Stage,
    definition,
    kinds,
    text_of,
    tool,
)

ACT = ("act", "{}")


def called(side_effect: Any = IDEMPOTENT, **fields: Any) -> Stage:
    """A run with one call in flight."""
    stage = Stage(definition(tool("act", side_effect)), **fields)
    stage.model("", ACT)
    return stage


# --- cancel ---


def test_cancelling_a_queued_run_ends_it_in_one_commit() -> None:  # C056
    stage = Stage(begun=False)
    assert kinds(stage.cancel()) == ["run_cancel_requested", "run_cancelled"]
    assert stage.state == "CANCELLED"


def test_cancelling_cuts_a_model_call_off() -> None:  # C056
    stage = Stage()
    assert kinds(stage.cancel()) == ["run_cancel_requested", "model_superseded", "run_cancelled"]
    assert stage.last("model_superseded").reason == SupersedeReason.SUPERSEDE_REASON_CANCEL
    assert stage.run.spend.input_tokens > 0


def test_cancelling_waits_for_a_call_that_may_have_an_effect() -> None:  # C056
    stage = called()
    stage.cancel()
    assert stage.state == "CANCELLING"
    assert kinds(stage.tool()) == ["tool_completed", "run_cancelled"]
    assert is_valid(stage.run.transcript)


def test_cancelling_is_bounded_by_its_grace_and_tells_what_is_in_doubt() -> None:  # N04
    stage = called()
    stage.cancel()
    assert stage.wait(9.9) == []
    call_id = stage.call().call.id
    stage.givens["acknowledged"] = frozenset({call_id})
    assert kinds(stage.wait(0.1)) == ["tool_outcome_unknown", "run_cancelled"]
    receipt = stage.last("run_cancelled").receipts[0]
    assert (receipt.call_id, receipt.acknowledged, receipt.in_doubt) == (call_id, True, True)
    assert "not known" in text_of(stage.run.transcript[-1].parts[0].tool_result)


def test_a_call_that_acknowledged_and_answered_is_in_the_receipts() -> None:  # N04
    stage = called()
    stage.cancel()
    stage.givens["acknowledged"] = frozenset({stage.call().call.id})
    stage.tool()
    assert [(receipt.acknowledged, receipt.in_doubt) for receipt in stage.last("run_cancelled").receipts] == [
        (True, False)
    ]


def test_force_ends_the_run_in_the_commit_of_the_request() -> None:
    for side_effect in (PURE, IDEMPOTENT, QUERYABLE, NON_IDEMPOTENT):
        stage = called(side_effect)
        decided = kinds(stage.cancel(force=True))
        assert (decided[0], decided[-1]) == ("run_cancel_requested", "run_cancelled")
        assert stage.call().in_doubt is (side_effect != PURE)


def test_cancelling_again_changes_nothing_and_force_hurries_it() -> None:  # C056
    stage = called()
    stage.cancel()
    assert stage.cancel() == []
    assert kinds(stage.cancel(force=True)) == ["tool_outcome_unknown", "run_cancelled"]
    assert stage.cancel() == []


def test_a_cancel_without_a_cause_is_a_clients() -> None:
    stage = Stage()
    stage.do(Cancel(CancelMode.CANCEL_MODE_GRACEFUL, 0))
    assert stage.last("run_cancelled").cause == CancelCause.CANCEL_CAUSE_CLIENT


def test_the_first_cause_decides_the_end() -> None:
    stage = called(timeout={"seconds": 5})
    stage.wait(5)
    assert stage.state == "CANCELLING"
    stage.cancel()
    stage.tool()
    assert (stage.state, stage.reason) == ("TIMED_OUT", "RUN_DEADLINE_EXCEEDED")
    stage = called(timeout={"seconds": 5})
    stage.cancel()
    assert stage.wait(5) == []
    stage.tool()
    assert stage.state == "CANCELLED"


@pytest.mark.parametrize("way", ["asked", "doubt", "backoff", "quota"])
def test_a_waiting_run_is_cancelled_at_once(way: str) -> None:
    stage = Stage(definition(tool("act", NON_IDEMPOTENT), default_permission=ASK if way == "asked" else 1))
    if way in ("backoff", "quota"):
        stage.model_breaks(THROTTLED, retry_after_ns=99 * SECOND)
    else:
        stage.model("", ACT)
    if way == "doubt":
        stage.tool_breaks()
    assert stage.state == "WAITING"
    assert kinds(stage.cancel()) == ["run_cancel_requested", "run_cancelled"]
    assert stage.call().in_doubt if way == "doubt" else True
    assert is_valid(stage.run.transcript)


# --- deadline ---


@pytest.mark.parametrize("side_effect", [PURE, IDEMPOTENT])
def test_a_run_past_its_deadline_is_timed_out(side_effect: Any) -> None:  # C048
    stage = called(side_effect, timeout={"seconds": 5})
    stage.wait_for_alarm()
    assert stage.now_ns == T0 + 5 * SECOND
    if side_effect == IDEMPOTENT:
        assert stage.state == "CANCELLING"
        stage.wait_for_alarm()
        assert stage.now_ns == T0 + 5 * SECOND + GRACE_NS
    assert (stage.state, stage.reason) == ("TIMED_OUT", "RUN_DEADLINE_EXCEEDED")


def test_a_model_call_past_the_deadline_is_cut_off() -> None:  # C048
    stage = Stage(timeout={"seconds": 5})
    assert nanoseconds(stage.last("model_requested").deadline) == T0 + 5 * SECOND
    assert kinds(stage.wait_for_alarm()) == ["run_deadline_exceeded", "model_superseded", "run_timed_out"]


def test_nothing_new_leaves_after_the_deadline_whatever_comes_first() -> None:  # C048
    stage = called(timeout={"seconds": 5})
    stage.now_ns += 5 * SECOND
    assert kinds(stage.tool()) == ["tool_completed", "run_deadline_exceeded", "run_timed_out"]
    stage = called(timeout={"seconds": 5})
    stage.now_ns += 5 * SECOND
    assert kinds(stage.crash()) == [
        "run_claimed",
        "run_deadline_exceeded",
        "tool_outcome_unknown",
        "run_timed_out",
    ]


def test_the_deadline_stands_still_while_the_run_waits() -> None:  # C048
    stage = Stage(timeout={"seconds": 60})
    stage.now_ns += 10 * SECOND
    stage.model_breaks(THROTTLED, retry_after_ns=1000 * SECOND)
    assert stage.state == "WAITING"
    stage.wait_for_alarm()
    assert nanoseconds(stage.last("run_resumed").deadline) == stage.now_ns + 50 * SECOND


def test_a_run_that_queues_too_long_is_timed_out_in_one_event() -> None:
    stage = Stage(begun=False)
    assert stage.wait(899) == []
    assert kinds(stage.wait(1)) == ["run_timed_out"]
    assert stage.reason == "RUN_QUEUE_EXPIRED"


def test_queueing_counts_only_while_queued() -> None:
    stage = Stage()
    assert stage.wait(1000) == []
    assert stage.do(Start(2)) == []


# --- waits that nothing but a log of a later version begins ---


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (WaitReason.WAIT_REASON_INPUT, "RUN_INPUT_EXPIRED"),
        (WaitReason.WAIT_REASON_PAUSED, "RUNTIME_PAUSED"),
    ],
)
def test_a_wait_for_an_input_or_a_pause_fails_when_its_time_is_over(reason: int, expected: str) -> None:
    stage = parked(reason)
    assert stage.wait(3599) == []
    stage.wait_for_alarm()
    assert (stage.state, stage.reason) == ("FAILED", expected)


def parked(reason: int) -> Stage:
    """A run that waits for a reason, an hour at most."""
    stage = Stage()
    stage.model_breaks(TRANSIENT)
    until = timestamp(stage.now_ns + 3600 * SECOND)
    subject = ""
    if reason == WaitReason.WAIT_REASON_PAUSED:
        stage.givens["pauses"] = Pauses({EVERYTHING: Pause(ALL, "")})
        subject = ALL
    payload = RunWaiting(reason=reason, until=until, subject=subject)  # type: ignore[arg-type]
    stage.commit([payload], apply(stage.run, payload, stage.now_ns))
    return stage


def test_the_input_that_a_run_waits_for_resumes_it() -> None:
    stage = parked(WaitReason.WAIT_REASON_INPUT)
    assert kinds(stage.say("here")) == ["input_received", "run_resumed"]
    stage = parked(WaitReason.WAIT_REASON_PAUSED)
    assert kinds(stage.say("here")) == ["input_received"]


# --- inputs ---


def test_an_input_joins_the_next_model_call_once() -> None:
    stage = called()
    stage.say("also this")
    stage.tool()
    assert [text_of(message) for message in stage.run.transcript][-1] == "also this"
    stage.model("done")
    assert stage.state == "COMPLETED"


def test_an_input_during_a_model_call_asks_for_another_one() -> None:
    stage = Stage()
    stage.say("wait")
    stage.model("hi")
    assert stage.state == "RUNNING"
    assert [text_of(message) for message in stage.run.transcript] == ["hello", "hi", "wait"]


def test_an_input_before_a_retry_is_seen_by_the_retry_and_not_again() -> None:
    stage = Stage()
    stage.say("wait")
    stage.model_breaks(TRANSIENT)
    stage.wait_for_alarm()
    stage.model("both answered")
    assert stage.state == "COMPLETED"
    assert [text_of(message) for message in stage.run.transcript] == ["hello", "wait", "both answered"]


def test_an_input_of_a_queued_run_comes_after_its_order() -> None:
    stage = Stage(begun=False)
    stage.say("and")
    stage.begin()
    assert [text_of(message) for message in stage.run.transcript] == ["hello", "and"]


def test_the_same_input_counts_once() -> None:
    stage = Stage()
    assert stage.say("a", "in_1")
    assert stage.say("a", "in_1") == []
    assert stage.say("a", "in_2")


def test_a_run_that_ends_takes_no_input() -> None:
    stage = called()
    stage.cancel()
    for _ in range(2):
        with pytest.raises(RunEnding) as raised:
            stage.say("too late")
        assert raised.value.reason == "RUN_ENDING"
        if stage.state == "CANCELLING":
            stage.tool()
