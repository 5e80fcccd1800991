"""How runs end and are taken over: cancel, deadline, waits that are over, vanished owners, what is said meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from behest.v1.definition_pb2 import PermissionRule
from behest.v1.model_event_pb2 import SupersedeReason
from behest.v1.run_event_pb2 import ClaimReason, RunWaiting
from behest.v1.run_state_pb2 import CancelCause, CancelMode, WaitReason
from behestd.core.decide import claim_count
from behestd.core.run import apply
from behestd.core.signals import Cancel, Claim, Input, Release, Start, Wake
from behestd.core.state import Phase
from behestd.core.times import SECOND, nanoseconds, timestamp
from behestd.core.wanted import alarm_ns, wanted
from behestd.core.window import is_valid
from behestd.errors import RunEnding
from tests.core.stage import (
    ASK,
    GRACE_NS,
    IDEMPOTENT,
    NO,
    NON_IDEMPOTENT,
    PURE,
    QUERYABLE,
    T0,
    THROTTLED,
    TRANSIENT,
    Stage,
    definition,
    kinds,
    said,
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
    payload = RunWaiting(reason=reason, until=until)  # type: ignore[arg-type]
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


# --- owners ---


def test_a_takeover_makes_a_new_attempt_of_a_model_call() -> None:
    stage = Stage()
    assert kinds(stage.crash()) == ["run_claimed", "model_superseded", "model_requested"]
    assert stage.last("model_superseded").reason == SupersedeReason.SUPERSEDE_REASON_CRASH
    assert stage.last("model_requested").attempt == 2
    stage = Stage()
    stage.release()
    assert stage.last("model_superseded").reason == SupersedeReason.SUPERSEDE_REASON_RELEASE


def test_a_release_is_all_that_its_commit_holds() -> None:
    stage = called(PURE)
    stage.tool_breaks()
    stage.now_ns += 60 * SECOND
    assert kinds(stage.do(Release())) == ["run_released"]


def test_a_draining_daemon_begins_nothing() -> None:
    stage = called()
    stage.givens["is_draining"] = True
    assert kinds(stage.tool()) == ["tool_completed"]
    assert stage.run.step.number == 1
    assert wanted(stage.run) == ()
    stage.givens.clear()
    stage.release()
    assert stage.run.step.number == 2


def test_the_third_owner_in_a_row_that_vanishes_condemns_the_run() -> None:  # N09
    stage = Stage()
    for count in (1, 2):
        assert claim_count(stage.run) == count
        stage.crash()
    assert claim_count(stage.run) == 3
    assert kinds(stage.crash()) == ["run_claimed", "model_superseded", "run_failed"]
    assert (stage.state, stage.reason) == ("FAILED", "RUN_RECOVERY_LIMIT")


def test_a_condemned_run_says_what_was_in_flight() -> None:
    stage = called()
    for _ in range(3):
        stage.crash()
    assert stage.state == "RUNNING"
    assert kinds(stage.crash()) == ["run_claimed", "tool_outcome_unknown", "run_failed"]


def test_an_owner_that_brings_the_run_forward_or_lets_go_is_not_counted() -> None:
    stage = Stage(definition(tool(), models=["m/a"]))
    for _ in range(2):
        stage.crash()
    stage.model_breaks(TRANSIENT)
    stage.crash()
    assert claim_count(stage.run) == 1
    stage.wait_for_alarm()
    stage.release()
    assert claim_count(stage.run) == 1
    assert stage.state == "RUNNING"


def test_a_failed_attempt_of_a_tool_brings_the_run_forward() -> None:
    stage = called(PURE)
    stage.crash()
    stage.tool_breaks()
    assert claim_count(stage.run) == 0


def test_a_waiting_run_is_never_condemned() -> None:
    stage = Stage(definition(tool("act"), agent_permissions=[PermissionRule(tool="act", action=ASK)]))
    stage.model("", ACT)
    for _ in range(10):
        stage.crash()
    assert stage.state == "WAITING"
    assert claim_count(stage.run) == 0


def test_a_queued_run_is_claimed_without_more() -> None:
    stage = Stage(begun=False)
    for _ in range(5):
        assert kinds(stage.crash()) == ["run_claimed"]
    assert stage.state == "QUEUED"


def test_a_run_that_is_condemned_while_it_is_cancelled_ends_as_it_was_due() -> None:
    stage = called(QUERYABLE)
    stage.cancel()
    for _ in range(3):
        stage.crash()
    assert stage.state == "CANCELLING"
    stage.crash()
    assert (stage.state, stage.reason) == ("CANCELLED", "RUN_RECOVERY_LIMIT")


def test_an_ended_run_takes_no_signal() -> None:
    stage = Stage()
    stage.model("bye")
    for signal in (Claim(ClaimReason.CLAIM_REASON_RECOVERY), Start(1), Release(), Wake(), Cancel(1, 1)):
        assert stage.do(signal) == []
    with pytest.raises(RunEnding):
        stage.do(Input("in_9", said("x")))
    assert alarm_ns(stage.run, GRACE_NS) == 0


# --- every ending leaves a history that any provider takes (C050) and one end (C049) ---

MOMENTS = {
    "queued": lambda: Stage(begun=False),
    "model": lambda: Stage(),
    "tool": called,
    "tools": lambda: mixed(),
    "asked": lambda: mixed(ASK),
    "backoff": lambda: backing_off(),
}


def mixed(permission: Any = 1) -> Stage:
    """A run with a call of each class."""
    tools = [tool(name, side_effect) for name, side_effect in zip("abcd", (1, 2, 3, 4), strict=True)]  # type: ignore[arg-type]
    stage = Stage(definition(*tools, default_permission=permission))
    stage.model("", *[(name, "{}") for name in "abcd"])
    stage.tool(0)
    stage.say("meanwhile")
    return stage


def backing_off() -> Stage:
    stage = called(PURE)
    stage.tool_breaks()
    assert stage.call().phase is Phase.BACKOFF
    return stage


ENDINGS = {
    "cancel": lambda stage: stage.cancel(),
    "force": lambda stage: stage.cancel(force=True),
    "deadline": lambda stage: stage.wait(10**6),
    "crash and cancel": lambda stage: (stage.crash(), stage.cancel()),
    "cancel and crash": lambda stage: (stage.cancel(), stage.crash()),
    "condemned": lambda stage: [stage.crash() for _ in range(4)],
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_every_ending_leaves_one_end_and_a_valid_history(moment: str, ending: str) -> None:  # C049 C050
    stage = MOMENTS[moment]()  # type: ignore[no-untyped-call]
    ENDINGS[ending](stage)  # type: ignore[no-untyped-call]
    for _ in range(20):
        if alarm_ns(stage.run, GRACE_NS):
            stage.wait_for_alarm()
    assert stage.run.is_ended
    assert is_valid(stage.run.transcript)


def test_a_proof_that_nothing_was_executed_outlives_the_cancel() -> None:
    stage = called(NON_IDEMPOTENT)
    stage.cancel()
    stage.tool_breaks(executed=NO)
    assert list(stage.last("run_cancelled").receipts) == []
