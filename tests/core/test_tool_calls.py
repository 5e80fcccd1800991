"""Tool calls: what is sent, how often, what becomes of an attempt by class, proof and moment."""

from __future__ import annotations

from typing import Any

import pytest

from behest.v1.definition_pb2 import Limits
from behest.v1.run_event_pb2 import ClaimReason, RunCancelRequested
from behest.v1.tool_pb2 import ToolTimeouts
from behestd.core.decide import decide
from behestd.core.run import apply
from behestd.core.signals import AskStatus, CallTool, CancelTool, Claim, StatusKnown, ToolBroke, ToolEnded
from behestd.core.state import Phase
from behestd.core.times import SECOND, duration, nanoseconds
from behestd.core.wanted import alarm_ns, wanted
from tests.core.stage import (
    AMBIGUOUS,
    CLASSES,
    IDEMPOTENT,
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


def test_a_call_without_room_is_sent_when_others_end_and_not_by_time() -> None:
    stage = Stage(definition(tool("free"), tool("alone", exclusive=True)))
    stage.model("", ("free", "{}"), ("alone", "{}"))
    stage.tool_breaks(0, executed=NO)
    assert phases(stage) == [Phase.BACKOFF, Phase.STARTED]
    assert alarm_ns(stage.run, 0) == T0 + 3600 * SECOND
    assert stage.wait(10) == []
    stage.tool(1)
    assert phases(stage) == [Phase.STARTED, Phase.DONE]


def test_a_call_behind_one_without_room_is_not_sent_by_time_either() -> None:
    stage = Stage(definition(tool("free"), tool("alone", exclusive=True)))
    stage.model("", ("free", "{}"), ("alone", "{}"), ("free", '{"n":1}'))
    stage.tool(0)
    stage.tool_breaks(1, executed=NO, retry_after_ns=5 * SECOND)
    assert phases(stage) == [Phase.DONE, Phase.BACKOFF, Phase.STARTED]
    assert alarm_ns(stage.run, 0) == T0 + 3600 * SECOND
    stage.tool(2)
    assert alarm_ns(stage.run, 0) == T0 + 5 * SECOND
    stage = Stage(definition(tool("free"), tool("alone", exclusive=True), limits=Limits(max_parallel_tool_calls=3)))
    stage.model("", ("free", "{}"), ("free", '{"n":1}'), ("alone", "{}"), ("free", '{"n":2}'))
    stage.tool_breaks(1, executed=NO)
    assert phases(stage) == [Phase.STARTED, Phase.BACKOFF, Phase.NEW, Phase.NEW]
    stage.wait_for_alarm()
    assert phases(stage) == [Phase.STARTED, Phase.STARTED, Phase.NEW, Phase.NEW]
