"""Calls that never reached their server, and how attempts in doubt are accounted for."""

from __future__ import annotations

from behest.v1.tool_pb2 import ToolErrorPolicy
from behestd.core.signals import Resolution
from behestd.core.state import Phase
from tests.core.stage import NO, NON_IDEMPOTENT, QUERYABLE, YES, Stage, definition, tool

FAIL_RUN = ToolErrorPolicy.TOOL_ERROR_POLICY_FAIL_RUN


def called(side_effect: int = QUERYABLE, **policy: object) -> Stage:
    """A run with one call in flight."""
    stage = Stage(definition(tool("act", side_effect, **policy)))  # type: ignore[arg-type]
    stage.model("", ("act", "{}"))
    return stage


def test_a_call_that_was_never_seen_is_sent_again_in_the_same_epoch_as_another_attempt_with_its_key() -> None:
    stage = called()
    first = stage.last("tool_started")
    stage.tool_breaks()
    stage.status(found=False)
    again = stage.last("tool_started")
    assert (first.attempt, again.attempt, again.key) == (1, 2, first.key)
    assert stage.call().epoch == 1
    stage.tool()
    assert stage.run.step.number == 2


def test_a_call_that_never_arrives_is_given_up_after_its_attempts_and_known_not_to_be_executed() -> None:
    stage = called(max_attempts=2)
    for _ in range(2):
        assert stage.call().phase is Phase.STARTED
        stage.tool_breaks()
        stage.status(found=False)
    failed = stage.last("tool_failed")
    assert (failed.reason, failed.executed, failed.is_final) == ("TOOL_UNAVAILABLE", NO, True)
    assert stage.run.step.number == 2, "the model is told"


def test_a_call_that_never_arrives_is_given_up_when_its_time_is_over() -> None:
    stage = called()
    stage.tool_breaks()
    stage.wait(301)
    stage.status(found=False)
    assert (stage.last("tool_failed").executed, stage.kinds.count("tool_started")) == (NO, 1)


def test_a_call_that_never_arrives_ends_the_run_where_the_operator_says_so() -> None:
    stage = called(max_attempts=1, on_error=FAIL_RUN)
    stage.tool_breaks()
    stage.status(found=False)
    assert (stage.state, stage.reason) == ("FAILED", "TOOL_UNAVAILABLE")


def test_a_doubt_says_why_the_attempt_brought_no_answer() -> None:  # C032
    stage = called(NON_IDEMPOTENT)
    stage.tool_breaks()
    assert stage.last("tool_outcome_unknown").reason == "TOOL_UNAVAILABLE"


def test_a_doubt_after_a_crash_claims_no_end_that_nobody_saw() -> None:  # C032
    stage = called(NON_IDEMPOTENT)
    stage.crash()
    unknown = stage.last("tool_outcome_unknown")
    assert (unknown.reason, unknown.HasField("elapsed")) == ("", False)


def test_the_word_that_settles_a_doubt_keeps_its_reason() -> None:
    stage = called(NON_IDEMPOTENT)
    stage.tool_breaks()
    call = stage.call()
    stage.do(Resolution(call.call.id, "ann", YES, None, "seen in the books"))
    resolved = stage.last("tool_resolved")
    assert (resolved.by, resolved.reason) == ("ann", "seen in the books")
