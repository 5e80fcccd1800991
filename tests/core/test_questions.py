"""Questions to the user: put like a call, answered by the next input, waited for beside everything else."""

from __future__ import annotations

from typing import Any

import pytest

from behest.v1.definition_pb2 import Limits
from behest.v1.run_state_pb2 import WaitReason
from behestd.core.questions import ASK_USER
from behestd.core.signals import Decision
from behestd.core.state import Phase
from behestd.core.times import SECOND, duration, nanoseconds
from behestd.core.wanted import wanted
from tests.core.stage import ASK, IDEMPOTENT, NON_IDEMPOTENT, PURE, T0, UNKNOWN, Stage, definition, kinds, tool
from tests.core.test_permissions import APPROVED, DAY, DENIED, rule

QUESTION = (ASK_USER, '{"question":"who?"}')


def asking(*others: tuple[str, str], questions: int = 1, **fields: Any) -> Stage:
    """A run whose model asks its user, and calls other tools in the same turn."""
    pinned = definition(
        tool(ASK_USER), tool("act", NON_IDEMPOTENT), tool("look", PURE), tool("redo", IDEMPOTENT), **fields
    )
    stage = Stage(pinned)
    stage.model("", *[QUESTION] * questions, *others)
    return stage


def waits_for(stage: Stage) -> int:
    """What the run waits for."""
    assert stage.run.life.wait is not None
    return stage.run.life.wait.reason


def test_a_question_is_started_and_waited_for_and_nothing_leaves() -> None:
    stage = asking()
    assert stage.kinds[-2:] == ["tool_started", "run_waiting"]
    assert nanoseconds(stage.last("tool_started").deadline) == T0 + DAY * SECOND
    assert (stage.last("run_waiting").reason, wanted(stage.run)) == (WaitReason.WAIT_REASON_INPUT, ())
    assert kinds(stage.say("me"))[:3] == ["input_received", "run_resumed", "tool_completed"]
    assert stage.result_text() == "me"
    assert stage.run.step.number == 2


def test_inputs_answer_the_oldest_question_first_and_then_are_inputs_again() -> None:
    stage = asking(questions=2)
    stage.say("one", "in_1")
    assert waits_for(stage) == WaitReason.WAIT_REASON_INPUT
    assert stage.say("one", "in_1") == []
    stage.say("two", "in_2")
    assert [stage.result_text(0), stage.result_text(1)] == ["one", "two"]
    stage.say("three", "in_3")
    assert [len(stage.run.transcript), len(stage.run.step.inputs)] == [3, 1]


def test_a_question_takes_no_room_and_is_answered_while_others_work() -> None:
    alone = tool("look", PURE, exclusive=True)
    stage = Stage(definition(tool(ASK_USER), alone, limits=Limits(max_parallel_tool_calls=1)))
    stage.model("", QUESTION, ("look", "{}"), QUESTION)
    assert [call.phase for call in stage.run.step.calls] == [Phase.STARTED] * 3
    assert len(wanted(stage.run)) == 1
    stage.say("me")
    assert stage.state == "RUNNING"
    stage.tool(1)
    assert waits_for(stage) == WaitReason.WAIT_REASON_INPUT
    stage.say("you", "in_2")
    assert stage.run.step.number == 2


@pytest.mark.parametrize("answers_first", [True, False])
def test_a_question_and_an_approval_are_waited_for_together(answers_first: bool) -> None:
    stage = asking(("act", "{}"), agent_permissions=[rule(ASK, "act")])
    assert waits_for(stage) == WaitReason.WAIT_REASON_APPROVAL
    if answers_first:
        assert kinds(stage.say("me")) == ["input_received", "run_resumed", "tool_completed", "run_waiting"]
        assert waits_for(stage) == WaitReason.WAIT_REASON_APPROVAL
        stage.decision(DENIED, 1)
    else:
        stage.decision(DENIED, 1)
        assert waits_for(stage) == WaitReason.WAIT_REASON_INPUT
        stage.say("me")
    assert stage.run.step.number == 2


def test_a_call_that_is_approved_works_while_the_question_stays_open() -> None:
    stage = asking(("act", "{}"), agent_permissions=[rule(ASK, "act")])
    stage.decision(APPROVED, 1)
    assert stage.state == "RUNNING"
    stage.tool(1)
    assert waits_for(stage) == WaitReason.WAIT_REASON_INPUT


def test_a_doubt_that_is_settled_goes_on_while_the_question_stays_open() -> None:
    stage = asking(("act", "{}"))
    stage.tool_breaks(1, executed=UNKNOWN)
    assert waits_for(stage) == WaitReason.WAIT_REASON_INPUT
    stage.resolution(1, index=1)
    assert (stage.state, stage.call(1).attempt) == ("RUNNING", 2)


@pytest.mark.parametrize("recovers", ["crash", "release"])
def test_a_question_stays_open_when_its_owner_goes(recovers: str) -> None:
    stage = asking(("redo", "{}"))
    getattr(stage, recovers)()
    assert (stage.call(0).phase, stage.call(0).attempt) == (Phase.STARTED, 1)
    stage.tool(1)
    assert waits_for(stage) == WaitReason.WAIT_REASON_INPUT
    getattr(stage, recovers)()
    stage.say("me")
    assert stage.run.step.number == 2


def test_a_question_that_nobody_answers_fails_the_run() -> None:
    stage = asking()
    stage.wait_for_alarm()
    assert stage.now_ns == T0 + DAY * SECOND
    assert (stage.state, stage.reason) == ("FAILED", "RUN_INPUT_EXPIRED")
    assert "tool_failed" in stage.kinds


def test_a_question_expires_while_another_call_works() -> None:
    stage = Stage(definition(tool(ASK_USER), tool("look", PURE)), timeout=duration(3 * DAY))
    stage.model("", QUESTION, ("look", "{}"))
    stage.now_ns += DAY * SECOND
    stage.wait(0)
    assert (stage.state, stage.reason) == ("FAILED", "RUN_INPUT_EXPIRED")


@pytest.mark.parametrize("force", [True, False])
def test_a_run_that_asks_can_be_cancelled_and_waits_for_nobody(force: bool) -> None:
    stage = asking()
    stage.cancel(force=force)
    assert stage.state == "CANCELLED"
    stage = asking(("act", "{}"))
    stage.cancel()
    assert stage.state == "CANCELLING"
    stage.crash()
    stage.wait(10)
    assert stage.state == "CANCELLED"


def test_a_question_that_was_approved_is_put_then() -> None:
    stage = asking(agent_permissions=[rule(ASK, ASK_USER)])
    assert waits_for(stage) == WaitReason.WAIT_REASON_APPROVAL
    assert stage.say("too early") != []
    assert stage.call(0).phase is Phase.ASKED
    stage.do(Decision(stage.call(0).call.id, APPROVED, "ann"))
    assert waits_for(stage) == WaitReason.WAIT_REASON_INPUT
    stage.say("me", "in_2")
    assert stage.result_text() == "me"
    assert stage.run.transcript[-1].parts[0].text.text == "too early"
