"""Tool calls: what is sent, how often, what becomes of an attempt by class, proof and moment (`semantics.md` 2.6)."""

from __future__ import annotations

from typing import Any

import pytest

from behest.v1.definition_pb2 import Limits, PermissionRule
from behest.v1.run_event_pb2 import ClaimReason, RunCancelRequested
from behest.v1.tool_pb2 import ToolErrorPolicy, ToolTimeouts, ToolUnknownPolicy
from behestd.core.decide import decide
from behestd.core.run import apply
from behestd.core.signals import AskStatus, CallTool, CancelTool, Claim, Resolution, StatusKnown, ToolBroke, ToolEnded
from behestd.core.state import Phase
from behestd.core.times import SECOND, duration, nanoseconds
from behestd.core.wanted import wanted
from behestd.errors import NotFound, RunEnding, WrongState
from tests.core.stage import (
    AMBIGUOUS,
    CLASSES,
    DENY,
    IDEMPOTENT,
    MALFORMED,
    NO,
    NON_IDEMPOTENT,
    NOT_SENT,
    PERMANENT,
    PURE,
    QUERYABLE,
    QUOTA,
    T0,
    TRANSIENT,
    UNKNOWN,
    YES,
    Stage,
    definition,
    kinds,
    result,
    tool,
)

REPORT = ToolUnknownPolicy.TOOL_UNKNOWN_POLICY_REPORT_TO_MODEL
FAIL_UNKNOWN = ToolUnknownPolicy.TOOL_UNKNOWN_POLICY_FAIL_RUN
FAIL_RUN = ToolErrorPolicy.TOOL_ERROR_POLICY_FAIL_RUN
NAMES = {PURE: "pure", IDEMPOTENT: "idempotent", QUERYABLE: "queryable", NON_IDEMPOTENT: "non_idempotent"}


def called(side_effect: Any = PURE, count: int = 1, *, limits: Limits | None = None, **policy: Any) -> Stage:
    """A run with so many equal calls in flight."""
    stage = Stage(definition(tool("act", side_effect, **policy), limits=limits))
    stage.model("", *[("act", f'{{"n":{number}}}') for number in range(count)])
    return stage


def phases(stage: Stage) -> list[Phase]:
    return [call.phase for call in stage.run.step.calls]


# --- dispatch ---


def test_an_intent_says_everything_about_the_call() -> None:
    stage = called(IDEMPOTENT)
    started = stage.last("tool_started")
    assert (started.attempt, started.name, started.arguments_json) == (1, "act", '{"n":0}')
    assert (started.tool_hash, started.side_effect) == (b"act", IDEMPOTENT)
    assert started.allowed_by == "default"
    assert nanoseconds(started.deadline) == T0 + 30 * SECOND
    assert len(started.key) == 64


def test_a_tool_of_no_class_is_taken_as_non_idempotent() -> None:
    stage = called(0)
    assert stage.last("tool_started").side_effect == NON_IDEMPOTENT


def test_an_attempt_ends_with_the_first_of_its_deadlines() -> None:
    timeouts = ToolTimeouts(start_to_close=duration(7), schedule_to_close=duration(9))
    stage = called(PURE, timeouts=timeouts)
    assert nanoseconds(stage.last("tool_started").deadline) == T0 + 7 * SECOND
    stage.now_ns += 5 * SECOND
    stage.tool_breaks(executed=NO, failure_class=NOT_SENT)
    stage.wait_for_alarm()
    assert nanoseconds(stage.last("tool_started").deadline) == T0 + 9 * SECOND
    stage = Stage(definition(tool("act")), timeout=duration(4))
    stage.model("", ("act", "{}"))
    assert nanoseconds(stage.last("tool_started").deadline) == T0 + 4 * SECOND


def test_no_more_calls_are_in_flight_than_the_limit_says() -> None:
    stage = called(PURE, 5, limits=Limits(max_parallel_tool_calls=2))
    assert phases(stage) == [Phase.STARTED] * 2 + [Phase.NEW] * 3
    stage.tool(1)
    assert phases(stage) == [Phase.STARTED, Phase.DONE, Phase.STARTED, Phase.NEW, Phase.NEW]
    for index in (0, 2, 3, 4):
        stage.tool(index)
    assert stage.run.step.number == 2


def test_an_exclusive_tool_runs_alone_and_nobody_overtakes_it() -> None:  # C029
    stage = Stage(definition(tool("free"), tool("alone", exclusive=True)))
    stage.model("", ("free", "{}"), ("alone", "{}"), ("free", '{"n":2}'))
    assert phases(stage) == [Phase.STARTED, Phase.NEW, Phase.NEW]
    stage.tool(0)
    assert phases(stage) == [Phase.DONE, Phase.STARTED, Phase.NEW]
    stage.tool(1)
    assert phases(stage) == [Phase.DONE, Phase.DONE, Phase.STARTED]
    stage.tool(2)
    assert stage.run.step.number == 2


def test_an_answer_of_an_earlier_attempt_or_of_no_call_changes_nothing() -> None:
    stage = called(PURE)
    call = stage.call()
    stage.tool_breaks()
    stage.wait_for_alarm()
    assert stage.do(ToolEnded(call.call.id, 1, result(call))) == []
    assert stage.do(ToolEnded("call_x", 1, result(call))) == []
    assert stage.do(ToolBroke(call.call.id, 1, TRANSIENT, NO, "TOOL_UNAVAILABLE", "late")) == []
    assert stage.do(ToolBroke("call_x", 1, TRANSIENT, NO, "TOOL_UNAVAILABLE", "late")) == []
    assert stage.do(StatusKnown(call.call.id, 2, None)) == []
    assert stage.do(StatusKnown("call_x", 2, None)) == []


def test_the_first_of_two_answers_counts() -> None:
    stage = called(PURE, 2)
    call = stage.call(0)
    stage.tool(0, "first")
    assert stage.do(ToolEnded(call.call.id, 1, result(call, "second"))) == []
    assert stage.do(ToolBroke(call.call.id, 1, TRANSIENT, NO, "TOOL_UNAVAILABLE", "late")) == []


# --- the table of 2.6: what is found, by class, in a running and in a cancelled run ---

REDONE, ASKED, IN_DOUBT, TOLD, DROPPED, KEPT = "redone", "asked", "in doubt", "told", "dropped", "kept"


def outcome(stage: Stage) -> str:
    """What became of the one call."""
    if not stage.run.step.calls:
        return TOLD
    call = stage.call()
    if call.phase is Phase.BACKOFF:
        key = stage.last("tool_started").key
        stage.wait_for_alarm()
        assert stage.last("tool_started").key == key
        assert stage.call().attempt == 2
        return REDONE
    if call.phase is Phase.STARTED:
        return REDONE if call.attempt == 2 else KEPT
    if call.phase is Phase.ASKING:
        assert AskStatus(call.call.id, 1) in wanted(stage.run)
        return ASKED
    return IN_DOUBT if call.in_doubt else TOLD


RUNNING_TABLE = [
    (NO, PURE, REDONE),
    (NO, IDEMPOTENT, REDONE),
    (NO, QUERYABLE, REDONE),
    (NO, NON_IDEMPOTENT, REDONE),
    (UNKNOWN, PURE, REDONE),
    (UNKNOWN, IDEMPOTENT, REDONE),
    (UNKNOWN, QUERYABLE, ASKED),
    (UNKNOWN, NON_IDEMPOTENT, IN_DOUBT),
    (0, PURE, REDONE),
    (0, IDEMPOTENT, REDONE),
    (0, QUERYABLE, ASKED),
    (0, NON_IDEMPOTENT, IN_DOUBT),
    (YES, PURE, REDONE),
    (YES, IDEMPOTENT, REDONE),
    (YES, QUERYABLE, ASKED),
    (YES, NON_IDEMPOTENT, TOLD),
]


@pytest.mark.parametrize(("executed", "side_effect", "expected"), RUNNING_TABLE)
def test_a_failed_attempt_of_a_running_run_goes_by_class_and_proof(
    executed: int, side_effect: int, expected: str
) -> None:
    stage = called(side_effect)
    stage.tool_breaks(executed=executed)
    assert outcome(stage) == expected


CANCELLED_TABLE = [
    (NO, IDEMPOTENT, TOLD),
    (NO, QUERYABLE, TOLD),
    (NO, NON_IDEMPOTENT, TOLD),
    (UNKNOWN, IDEMPOTENT, IN_DOUBT),
    (UNKNOWN, QUERYABLE, ASKED),
    (UNKNOWN, NON_IDEMPOTENT, IN_DOUBT),
    (0, IDEMPOTENT, IN_DOUBT),
    (0, QUERYABLE, ASKED),
    (0, NON_IDEMPOTENT, IN_DOUBT),
    (YES, IDEMPOTENT, TOLD),
    (YES, QUERYABLE, ASKED),
    (YES, NON_IDEMPOTENT, TOLD),
]


@pytest.mark.parametrize(("executed", "side_effect", "expected"), CANCELLED_TABLE)
def test_a_failed_attempt_of_a_cancelled_run_is_never_sent_again(
    executed: int, side_effect: int, expected: str
) -> None:
    stage = called(side_effect)
    stage.cancel()
    assert stage.state == "CANCELLING"
    assert wanted(stage.run) == (CallTool(stage.call().call.id, 1), CancelTool(stage.call().call.id, 1))
    stage.tool_breaks(executed=executed)
    assert outcome(stage) == expected
    if expected == ASKED:
        stage.wait_for_alarm()
        assert stage.call().in_doubt
    assert stage.state == "CANCELLED"


def test_a_pure_call_of_a_cancelled_run_is_dropped_at_once() -> None:
    stage = called(PURE)
    assert kinds(stage.cancel()) == ["run_cancel_requested", "tool_failed", "run_cancelled"]
    assert stage.last("tool_failed").reason == "TOOL_CANCELLED"


@pytest.mark.parametrize(
    ("side_effect", "expected"),
    [(PURE, REDONE), (IDEMPOTENT, REDONE), (QUERYABLE, ASKED), (NON_IDEMPOTENT, IN_DOUBT)],
    ids=NAMES.values(),
)
@pytest.mark.parametrize("way", ["crash", "release"])
def test_a_takeover_of_a_running_run_goes_by_class(side_effect: int, expected: str, way: str) -> None:
    stage = called(side_effect)
    key = stage.last("tool_started").key
    getattr(stage, way)()
    assert outcome(stage) == expected
    assert stage.last("tool_started").key == key
    assert stage.run.head.epoch == 2


@pytest.mark.parametrize(
    ("side_effect", "expected"),
    [(PURE, DROPPED), (IDEMPOTENT, IN_DOUBT), (QUERYABLE, ASKED), (NON_IDEMPOTENT, IN_DOUBT)],
    ids=NAMES.values(),
)
def test_a_takeover_of_a_cancelled_run_goes_by_class(side_effect: int, expected: str) -> None:
    stage = Stage(definition(tool("act", side_effect), tool("other", IDEMPOTENT)))
    stage.model("", ("act", "{}"), ("other", "{}"))
    stage.cancel()
    assert stage.state == "CANCELLING"
    stage.crash()
    if expected == DROPPED:
        assert not stage.call().in_doubt
    else:
        assert outcome(stage) == expected
    if expected == ASKED:
        stage.status(found=True)
        assert not stage.call().in_doubt
    assert stage.state == "CANCELLED"


def test_a_pure_call_found_in_a_cancelled_run_is_dropped() -> None:
    """Only a log of another making holds one: at the cancel itself it is dropped in the same commit."""
    stage = called(PURE)
    run = apply(stage.run, RunCancelRequested(cause=1), stage.now_ns)  # type: ignore[arg-type]
    payloads, after = decide(run, stage.given(), Claim(ClaimReason.CLAIM_REASON_RECOVERY))
    assert kinds(payloads) == ["run_claimed", "tool_failed", "run_cancelled"]
    assert after.is_ended


def test_the_server_that_is_asked_has_the_result() -> None:
    stage = called(QUERYABLE)
    stage.tool_breaks()
    stage.status(found=True)
    assert stage.last("tool_resolved").by == "status_query"
    assert stage.run.step.number == 2


def test_the_server_that_is_asked_never_saw_the_call() -> None:
    stage = called(QUERYABLE)
    stage.tool_breaks()
    stage.status(found=False)
    assert stage.call().attempt == 2
    assert stage.last("tool_resolved").executed == NO


def test_the_server_that_is_asked_cannot_tell() -> None:
    stage = called(QUERYABLE)
    stage.tool_breaks()
    call = stage.call()
    stage.do(ToolBroke(call.call.id, 1, AMBIGUOUS, UNKNOWN, "TOOL_UNAVAILABLE", "no record"))
    assert stage.state == "WAITING"
    assert stage.call().phase is Phase.UNKNOWN


def test_the_server_of_a_cancelled_run_never_saw_the_call() -> None:
    stage = called(QUERYABLE)
    stage.cancel()
    stage.tool_breaks()
    stage.status(found=False)
    assert stage.state == "CANCELLED"
    assert stage.last("tool_failed").executed == NO
    assert list(stage.last("run_cancelled").receipts) == []


def test_a_late_answer_counts_while_its_server_is_asked() -> None:
    stage = called(QUERYABLE)
    stage.tool_breaks()
    stage.tool()
    assert stage.run.step.number == 2


def test_a_result_that_cannot_be_read_is_fetched_again_unless_it_is_the_tools_last_word() -> None:
    stage = called(QUERYABLE)
    stage.tool_breaks(executed=YES, failure_class=PERMANENT)
    assert stage.run.step.number == 2
    stage = called(QUERYABLE)
    stage.tool_breaks(executed=UNKNOWN, failure_class=PERMANENT)
    assert stage.call().phase is Phase.ASKING


@pytest.mark.parametrize("failure_class", [PERMANENT, QUOTA])
@pytest.mark.parametrize("side_effect", CLASSES)
def test_what_will_never_work_is_not_sent_again(side_effect: int, failure_class: int) -> None:
    stage = called(side_effect)
    stage.tool_breaks(executed=NO, failure_class=failure_class)
    assert stage.last("tool_failed").is_final
    assert stage.result_text() == "it broke"


@pytest.mark.parametrize("side_effect", CLASSES)
def test_attempts_are_limited_and_the_model_is_told(side_effect: int) -> None:
    stage = called(side_effect)
    for attempt in (1, 2, 3):
        assert stage.call().attempt == attempt
        stage.tool_breaks(executed=NO, failure_class=NOT_SENT)
        if attempt < 3:
            stage.wait_for_alarm()
    assert stage.run.step.number == 2
    stage = called(side_effect, max_attempts=1)
    stage.tool_breaks(executed=NO, failure_class=NOT_SENT)
    assert stage.run.step.number == 2


def test_no_attempt_begins_after_the_time_for_all_of_them() -> None:
    stage = called(PURE, timeouts=ToolTimeouts(schedule_to_close=duration(10)))
    stage.tool_breaks(retry_after_ns=11 * SECOND)
    assert stage.last("tool_failed").is_final


def test_a_short_backoff_is_a_timer_and_a_long_one_parks_the_run() -> None:
    stage = called(PURE)
    stage.tool_breaks(retry_after_ns=30 * SECOND)
    assert stage.state == "RUNNING"
    assert stage.do(ToolBroke("call_x", 1, TRANSIENT, NO, "TOOL_UNAVAILABLE", "")) == []
    stage.wait_for_alarm()
    assert stage.call().attempt == 2
    stage.tool_breaks(retry_after_ns=31 * SECOND)
    assert stage.state == "WAITING"
    left = stage.last("run_waiting").until
    assert nanoseconds(left) == stage.now_ns + 31 * SECOND
    stage.wait_for_alarm()
    assert (stage.state, stage.call().attempt) == ("RUNNING", 3)
    assert stage.last("run_resumed").expired


def test_a_backoff_survives_a_takeover() -> None:
    stage = called(PURE)
    stage.tool_breaks(retry_after_ns=20 * SECOND)
    stage.now_ns += 5 * SECOND
    stage.crash()
    assert stage.call().phase is Phase.BACKOFF
    stage.wait_for_alarm()
    assert stage.now_ns == T0 + 20 * SECOND
    assert stage.call().attempt == 2


# --- outcome unknown ---


def test_an_unknown_outcome_waits_for_somebody_and_fails_the_run_after_a_day() -> None:
    stage = called(NON_IDEMPOTENT)
    stage.tool_breaks()
    assert stage.state == "WAITING"
    assert nanoseconds(stage.last("run_waiting").until) == T0 + 86_400 * SECOND
    stage.wait(86_399)
    assert stage.state == "WAITING"
    stage.wait_for_alarm()
    assert (stage.state, stage.reason) == ("FAILED", "TOOL_OUTCOME_UNKNOWN")


def test_a_late_answer_settles_an_unknown_outcome() -> None:
    stage = called(NON_IDEMPOTENT)
    stage.tool_breaks()
    stage.tool(0, "it was done")
    assert stage.last("tool_resolved").by == "late_reply"
    assert stage.state == "RUNNING"
    assert stage.result_text() == "it was done"


def test_somebody_gives_the_result_and_its_ids_are_ours() -> None:
    stage = called(NON_IDEMPOTENT)
    stage.tool_breaks()
    other = result(stage.call(), "seen in the books")
    other.call_id = other.name = "other"
    stage.resolution(YES, other)
    found = stage.last("tool_resolved").result
    assert (found.call_id, found.name) == (stage.run.transcript[1].parts[0].tool_call.id, "act")
    assert stage.last("tool_resolved").by == "ann"
    assert stage.state == "RUNNING"


def test_somebody_says_that_the_result_is_lost() -> None:
    stage = called(NON_IDEMPOTENT)
    stage.tool_breaks()
    stage.resolution(YES)
    assert "lost" in stage.result_text()


def test_somebody_has_the_call_sent_again_with_the_same_key() -> None:
    stage = called(NON_IDEMPOTENT)
    key = stage.last("tool_started").key
    stage.tool_breaks()
    stage.resolution(NO)
    assert (stage.state, stage.call().attempt) == ("RUNNING", 2)
    assert stage.last("tool_started").key == key


@pytest.mark.parametrize("executed", [UNKNOWN, 0])
def test_somebody_leaves_it_unknown_and_the_same_call_needs_an_approval(executed: int) -> None:
    stage = called(NON_IDEMPOTENT)
    stage.tool_breaks()
    stage.resolution(executed)
    stage.model("", ("act", '{"n":0}'))
    assert stage.last("approval_requested").rule == "outcome_unknown"


def test_the_model_is_told_of_an_unknown_outcome_and_a_repeat_needs_an_approval() -> None:
    stage = called(NON_IDEMPOTENT, on_unknown=REPORT)
    stage.tool_breaks()
    assert stage.state == "RUNNING"
    assert "not known" in stage.result_text()
    stage.model("", ("act", '{"n":0}'), ("act", '{"n":1}'))
    assert phases(stage) == [Phase.ASKED, Phase.STARTED]
    assert stage.last("approval_requested").rule == "outcome_unknown"


def test_an_unknown_outcome_may_end_the_run() -> None:
    stage = called(NON_IDEMPOTENT, 2, on_unknown=FAIL_UNKNOWN)
    stage.tool_breaks()
    assert (stage.state, stage.reason) == ("FAILED", "TOOL_OUTCOME_UNKNOWN")
    assert [call.in_doubt for call in stage.run.step.calls] == [True, True]


def test_a_takeover_may_end_the_run_and_sends_nothing_after() -> None:
    stage = Stage(definition(tool("act", NON_IDEMPOTENT, on_unknown=FAIL_UNKNOWN), tool("look")))
    stage.model("", ("look", "{}"), ("act", "{}"), ("look", '{"n":1}'))
    stage.crash()
    assert stage.reason == "TOOL_OUTCOME_UNKNOWN"


def test_what_nobody_asked_about_cannot_be_settled() -> None:
    stage = called(NON_IDEMPOTENT)
    with pytest.raises(WrongState) as raised:
        stage.resolution(NO)
    assert raised.value.reason == "TOOL_CALL_RESOLVED"
    stage.tool()
    stage.model("", ("act", "{}"))
    stage.tool_breaks()
    missing = stage.call()
    stage.resolution(YES)
    with pytest.raises(NotFound) as lost:
        stage.do(Resolution(missing.call.id, "ann", YES, None))
    assert lost.value.reason == "TOOL_CALL_NOT_FOUND"
    stage.cancel()
    with pytest.raises(RunEnding):
        stage.do(Resolution(missing.call.id, "ann", YES, None))


def test_one_call_in_doubt_does_not_keep_the_others_from_running() -> None:
    stage = Stage(definition(tool("act", NON_IDEMPOTENT), tool("look"), limits=Limits(max_parallel_tool_calls=1)))
    stage.model("", ("act", "{}"), ("look", "{}"))
    stage.tool_breaks()
    assert stage.state == "RUNNING"
    stage.tool(1)
    assert stage.state == "WAITING"


# --- on_error ---


def test_an_error_result_is_told_to_the_model_or_ends_the_run() -> None:
    stage = called(PURE)
    stage.tool(is_error=True)
    assert stage.run.step.number == 2
    stage = called(PURE, on_error=FAIL_RUN)
    stage.tool(is_error=True)
    assert (stage.state, stage.reason) == ("FAILED", "TOOL_FAILED")


def test_a_failed_call_ends_the_run_with_its_own_reason() -> None:
    stage = called(NON_IDEMPOTENT, on_error=FAIL_RUN)
    stage.tool_breaks(executed=YES, failure_class=MALFORMED)
    assert (stage.state, stage.reason) == ("FAILED", "TOOL_UNAVAILABLE")


def test_an_error_that_comes_late_or_was_asked_for_ends_the_run_too() -> None:
    stage = called(NON_IDEMPOTENT, on_error=FAIL_RUN)
    stage.tool_breaks()
    stage.tool(is_error=True)
    assert (stage.state, stage.reason) == ("FAILED", "TOOL_FAILED")
    stage = called(QUERYABLE, on_error=FAIL_RUN)
    stage.tool_breaks()
    call = stage.call()
    stage.do(StatusKnown(call.call.id, 1, result(call, is_error=True)))
    assert stage.reason == "TOOL_FAILED"


def test_a_run_that_fails_leaves_nothing_in_flight_unsaid() -> None:
    stage = Stage(definition(tool("bad", on_error=FAIL_RUN), tool("look"), tool("act", NON_IDEMPOTENT)))
    stage.model("", ("bad", "{}"), ("look", "{}"), ("act", "{}"))
    assert kinds(stage.tool(0, is_error=True)) == [
        "tool_completed",
        "tool_failed",
        "tool_outcome_unknown",
        "run_failed",
    ]
    assert [call.in_doubt for call in stage.run.step.calls] == [False, False, True]


def test_a_refused_call_that_ends_the_run_ends_it_once() -> None:
    rules = [PermissionRule(tool="act", action=DENY)]
    stage = Stage(definition(tool("act", on_error=FAIL_RUN), operator_permissions=rules))
    stage.model("", ("act", "{}"), ("act", '{"n":1}'))
    assert (stage.state, stage.reason) == ("FAILED", "TOOL_DENIED")
    assert stage.kinds.count("tool_denied") == 1
