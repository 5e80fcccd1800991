"""Calls of unknown outcome, and errors that end a run: people, late answers, policies."""

from __future__ import annotations

from typing import Any

import pytest

from behest.v1.definition_pb2 import Limits, PermissionRule
from behest.v1.tool_pb2 import ToolErrorPolicy, ToolUnknownPolicy
from behestd.core.signals import Resolution, StatusKnown
from behestd.core.state import Phase
from behestd.core.times import SECOND, nanoseconds
from behestd.errors import NotFound, RunEnding, WrongState
from tests.core.stage import (
    DENY,
    MALFORMED,
    NO,
    NON_IDEMPOTENT,
    PURE,
    QUERYABLE,
    T0,
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


def called(side_effect: Any = PURE, count: int = 1, *, limits: Limits | None = None, **policy: Any) -> Stage:
    """A run with so many equal calls in flight."""
    stage = Stage(definition(tool("act", side_effect, **policy), limits=limits))
    stage.model("", *[("act", f'{{"n":{number}}}') for number in range(count)])
    return stage


def phases(stage: Stage) -> list[Phase]:
    return [call.phase for call in stage.run.step.calls]


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
