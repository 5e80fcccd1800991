"""Decisions about what is paused, on a stage: what waits, what goes on, and what a wait leaves in the log."""

from __future__ import annotations

import pytest

from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.definition_pb2 import PermissionRule
from behest.v1.model_event_pb2 import SupersedeReason
from behestd.core.pauses import ALL, EVERYTHING, MODEL, NONE, TOOL, Pause, Pauses
from behestd.core.signals import CallTool, Held, Summarise, Wake
from behestd.core.state import Phase
from behestd.core.times import SECOND
from behestd.core.wanted import wanted
from tests.compaction.test_decisions import TOO_LONG
from tests.compaction.test_decisions import stage as compacting
from tests.core.stage import (
    ASK,
    IDEMPOTENT,
    NO,
    NOT_SENT,
    PERMANENT,
    PURE,
    TRANSIENT,
    Stage,
    definition,
    kinds,
    tool,
)

DAY_NS = 24 * 3600 * SECOND


def paused(*names: tuple[str, str]) -> Pauses:
    """Pauses of tools and models of the namespace."""
    return Pauses({("default", kind, name): Pause(kind, name, "an incident") for kind, name in names})


EVERY = Pauses({EVERYTHING: Pause(ALL, "", "an incident")})
LOOK = ("look", "{}")
READ = ("read", "{}")


def lift(stage: Stage) -> list[object]:
    """Lift every pause, and tell the run."""
    stage.givens["pauses"] = NONE
    return stage.do(Wake())


def test_a_run_that_is_woken_while_it_is_paused_leaves_no_trace() -> None:  # N17
    stage = Stage(given={"pauses": EVERY})
    assert stage.kinds[-1] == "run_waiting"
    assert stage.last("run_waiting").subject == "all"
    before = len(stage.log)
    assert stage.do(Wake()) == []
    stage.now_ns += 3600 * SECOND
    assert stage.do(Wake()) == []
    assert len(stage.log) == before
    assert kinds(lift(stage)) == ["run_resumed", "context_built", "model_requested"]


def test_a_pause_of_a_day_is_the_end_of_a_run_that_waits_for_it() -> None:  # N17
    stage = Stage(given={"pauses": EVERY})
    stage.now_ns += DAY_NS - 1
    assert stage.do(Wake()) == []
    stage.now_ns += 1
    assert kinds(stage.do(Wake())) == ["run_failed"]
    assert (stage.state, stage.reason) == ("FAILED", "RUNTIME_PAUSED")


def test_a_pause_that_was_lifted_while_nobody_drove_the_run_is_no_end_of_it() -> None:  # N17
    stage = Stage(given={"pauses": EVERY})
    stage.now_ns += 2 * DAY_NS
    stage.givens["pauses"] = NONE
    assert kinds(stage.crash()) == ["run_claimed", "run_resumed", "context_built", "model_requested"]


def test_the_deadline_of_a_run_stands_still_while_it_is_paused() -> None:  # N17
    stage = Stage(given={"pauses": EVERY})
    stage.now_ns += DAY_NS // 2
    lift(stage)
    assert stage.run.life.deadline_ns == stage.now_ns + 3600 * SECOND


def test_a_pause_takes_nothing_from_the_time_that_a_call_has() -> None:  # N17
    stage = Stage(definition(tool("look", IDEMPOTENT)))
    stage.model("", LOOK)
    first = stage.call().first_start_ns
    stage.givens["pauses"] = paused((TOOL, "look"))
    stage.tool_breaks(executed=NO, failure_class=NOT_SENT)
    assert stage.state == "WAITING"
    stage.now_ns += 3600 * SECOND
    lift(stage)
    assert stage.call().phase is Phase.STARTED
    assert stage.call().first_start_ns == first + 3600 * SECOND
    assert stage.last("tool_started").deadline.ToNanoseconds() > stage.now_ns


def test_another_pause_is_another_wait() -> None:  # N17
    stage = Stage(given={"pauses": paused((MODEL, "scripted/a"))})
    assert stage.last("run_waiting").subject == "model scripted/a"
    stage.givens["pauses"] = EVERY
    assert kinds(stage.do(Wake())) == ["run_resumed", "run_waiting"]
    assert stage.last("run_waiting").subject == "all"


def test_an_approval_is_waited_for_before_a_pause() -> None:  # N17
    rules = [PermissionRule(tool="look", action=ASK)]
    stage = Stage(definition(tool("look"), tool("read"), operator_permissions=rules))
    stage.givens["pauses"] = paused((TOOL, "look"), (TOOL, "read"))
    stage.model("", LOOK, READ)
    assert stage.state == "WAITING"
    assert not stage.last("run_waiting").subject
    assert stage.do(Wake()) == []
    decided = stage.decision(ApprovalDecision.APPROVAL_DECISION_APPROVED)
    assert kinds(decided) == ["approval_decided", "run_resumed", "run_waiting"]
    assert kinds(lift(stage)) == ["run_resumed", "tool_started", "tool_started"]


def test_a_call_that_is_lifted_goes_on_beside_an_approval() -> None:  # N17
    rules = [PermissionRule(tool="look", action=ASK)]
    stage = Stage(definition(tool("look"), tool("read"), operator_permissions=rules))
    stage.givens["pauses"] = paused((TOOL, "read"))
    stage.model("", LOOK, READ)
    assert stage.state == "WAITING"
    assert kinds(lift(stage)) == ["run_resumed", "tool_started"]


def test_a_call_that_would_be_sent_again_after_a_crash_waits_for_the_pause() -> None:  # N17
    stage = Stage(definition(tool("look", PURE)))
    stage.model("", LOOK)
    stage.givens["pauses"] = paused((TOOL, "look"))
    assert kinds(stage.crash()) == ["run_claimed", "tool_failed", "run_waiting"]
    assert kinds(lift(stage)) == ["run_resumed", "tool_started"]


def test_a_run_with_another_model_waits_for_the_one_that_is_due() -> None:  # N17
    stage = Stage(definition(tool(), models=["m/a", "m/b"]), given={"pauses": paused((MODEL, "m/a"))})
    assert stage.last("run_waiting").subject == "model m/a"
    lift(stage)
    stage.givens["pauses"] = paused((MODEL, "m/b"))
    stage.model_breaks(PERMANENT)
    assert stage.last("run_waiting").subject == "model m/b"


def test_nothing_wakes_a_run_for_a_call_that_is_held_back() -> None:  # N17
    stage = Stage(definition(tool("look", IDEMPOTENT), tool("read")))
    stage.model("", LOOK, READ)
    stage.givens["pauses"] = paused((TOOL, "look"))
    stage.tool_breaks(0, executed=NO, failure_class=TRANSIENT)
    assert stage.state == "RUNNING"
    assert stage.alarm_ns() == stage.run.life.deadline_ns


def test_an_attempt_that_a_pause_stopped_counts_for_none() -> None:  # N17
    stage = Stage(definition(tool("look", IDEMPOTENT, max_attempts=1)))
    stage.model("", LOOK)
    for _ in range(3):
        stage.givens["pauses"] = EVERY
        held = stage.do(Held(CallTool(stage.call().call.id, stage.call().attempt)))
        assert kinds(held) == ["tool_failed", "run_waiting"]
        assert kinds(lift(stage)) == ["run_resumed", "tool_started"]
    assert stage.call().attempt == 4
    stage.tool()
    assert stage.run.spend.tool_calls == 1
    assert stage.state == "RUNNING"


# --- summaries ---


def test_a_summary_is_written_by_the_next_model_that_may() -> None:  # N17
    scene = compacting(model="scripted/other", given={"pauses": paused((MODEL, "scripted/other"))})
    assert scene.last("context_compaction_requested").endpoint == "scripted/a"


def test_a_summary_that_a_refusal_asks_for_waits_for_its_model() -> None:  # N17
    scene = compacting(window=0)
    scene.givens["pauses"] = paused((MODEL, "scripted/a"))
    assert kinds(scene.model_breaks(PERMANENT, TOO_LONG)) == ["model_failed", "run_waiting"]
    assert kinds(lift(scene)) == ["run_resumed", "context_compaction_requested"]


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_summary_that_did_not_leave_is_asked_for_again_and_costs_nothing(repeats: int) -> None:  # N17
    scene = compacting()
    for number in range(1, repeats + 1):
        (effect,) = wanted(scene.run)
        assert isinstance(effect, Summarise)
        scene.givens["pauses"] = EVERY
        assert kinds(scene.do(Held(effect))) == ["context_compaction_failed", "run_waiting"]
        failed = scene.last("context_compaction_failed")
        assert failed.superseded == SupersedeReason.SUPERSEDE_REASON_PAUSED
        assert kinds(lift(scene)) == ["run_resumed", "context_compaction_requested"]
        assert scene.last("context_compaction_requested").attempt == number + 1
    assert scene.run.spend.input_tokens == 0
