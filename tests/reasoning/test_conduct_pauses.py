"""Pauses and backoffs of graph runs, on the stage: nodes rest alone, and the run when all of them do."""

from __future__ import annotations

import pytest

from behest.v1.context_pb2 import ContextSource, ContextSourceKind
from behest.v1.definition_pb2 import PermissionRule
from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_state_pb2 import WaitReason
from behestd.core.pauses import MODEL, NAMESPACE, NONE, TOOL, Key, Pause, Pauses
from behestd.core.route import Health
from behestd.core.signals import (
    CallModel,
    CallTool,
    Decision,
    Held,
    ModelBroke,
    ToolBroke,
    ToolEnded,
    Wake,
)
from behestd.core.sources import HISTORY_SOURCE
from behestd.core.times import SECOND
from tests.core.stage import (
    ASK,
    NO,
    NON_IDEMPOTENT,
    THROTTLED,
    TRANSIENT,
    UNKNOWN,
    result,
    tool,
)
from tests.reasoning.graph_stage import GraphStage, pinned
from tests.reasoning.test_conduct import fan, models, node, says
from tests.reasoning.test_conduct_waits import beside, calling, calls_of, of_each_class


def pause(stage: GraphStage, key: Key) -> None:
    stage.givens["pauses"] = Pauses({key: Pause(key[1], key[2], "an incident")})


def lift(stage: GraphStage) -> None:
    stage.givens["pauses"] = NONE
    stage.do(Wake())


def test_a_paused_model_of_one_node_lets_the_others_work_and_goes_on_when_it_is_lifted() -> None:
    graph = beside(node("x", model="m/x"), node("y"))
    stage = GraphStage(pinned(graph, models=["m/a"]), says)
    pause(stage, ("default", MODEL, "m/x"))
    calling(stage, "start")
    assert stage.state == "RUNNING"
    assert [effect.endpoint for effect in models(stage)] == ["m/a"]
    calling(stage, "y")
    assert stage.state == "WAITING"
    assert stage.last("run_waiting").reason == WaitReason.WAIT_REASON_PAUSED
    assert stage.last("run_waiting").subject == "model m/x"
    before = len(stage.log)
    stage.do(Wake())
    assert len(stage.log) == before, "what waits on leaves no trace"
    lift(stage)
    assert stage.play().state == "COMPLETED"


def test_a_paused_tool_holds_back_its_calls_and_no_others() -> None:
    graph = beside(node("x", "act"), node("y", "act"))
    stage = GraphStage(
        pinned(graph, tool("x"), tool("y")),
        lambda visit, turn: ((visit.started.node, "{}"),) if visit.started.operator == "act" else says(visit, turn),
    )
    pause(stage, ("default", TOOL, "x"))
    calling(stage, "start", "x", "y")
    assert stage.state == "RUNNING"
    (effect,) = stage.effects
    stage.end(effect)
    assert stage.state == "WAITING"
    assert stage.last("run_waiting").subject == "tool x"
    lift(stage)
    assert stage.play().state == "COMPLETED"


def test_a_pause_of_everything_waits_for_what_is_in_flight_and_for_nothing_else() -> None:
    stage = GraphStage(pinned(fan(3, 2)), says)
    calling(stage, "start")
    pause(stage, ("default", NAMESPACE, "default"))
    calling(stage, "n0")
    assert stage.state == "RUNNING"
    calling(stage, "n1")
    assert stage.state == "WAITING"
    stage.crash()
    assert stage.state == "WAITING"
    lift(stage)
    assert stage.play().state == "COMPLETED"
    assert stage.visited == ["start", "n0", "n1", "n2", "answer"]


def test_a_pause_that_nobody_lifts_ends_the_run() -> None:
    stage = GraphStage(pinned(fan(2, 2)), says)
    pause(stage, ("default", NAMESPACE, "default"))
    stage.end(stage.effects[0])
    assert stage.state == "WAITING"
    stage.wait_for_alarm()
    assert (stage.state, stage.reason) == ("FAILED", "RUNTIME_PAUSED")


@pytest.mark.parametrize("kind", [CallModel, CallTool])
def test_what_was_held_back_before_it_left_is_taken_back_for_its_node_alone(kind: type) -> None:
    stage = GraphStage(pinned(beside(node("x", "act"), node("y")), tool("look", NON_IDEMPOTENT)), says)
    calling(stage, "start", *(["x"] if kind is CallTool else []))
    effect = next(effect for effect in stage.effects if isinstance(effect, kind))
    assert isinstance(effect, CallModel | CallTool)
    pause(stage, ("default", NAMESPACE, "default"))
    stage.do(Held(effect))
    assert len(stage.effects) == 1
    assert stage.state == "RUNNING"
    stage.end(stage.effects[0])
    assert stage.state == "WAITING"
    lift(stage)
    assert stage.play().state == "COMPLETED"
    assert "tool_outcome_unknown" not in stage.kinds


def test_a_node_that_is_held_back_asks_no_context_sources() -> None:
    news = ContextSource(name="news", kind=ContextSourceKind.CONTEXT_SOURCE_KIND_FUNCTION)
    graph = beside(node("x", model="m/x"), node("y"))
    stage = GraphStage(pinned(graph, models=["m/a"], sources=[HISTORY_SOURCE, news]), says)
    pause(stage, ("default", MODEL, "m/x"))
    calling(stage, "start")
    assert [type(effect) for effect in stage.effects] == [CallModel]
    lift(stage)
    assert stage.play().state == "COMPLETED"


# --- backoffs ---


def test_a_long_backoff_parks_the_run_when_all_nodes_rest() -> None:
    stage = GraphStage(pinned(fan(2, 2)), says)
    calling(stage, "start")
    first, second = models(stage)
    long = ModelBroke(first.step, first.attempt, THROTTLED, "PROVIDER_THROTTLED", "later", 100 * SECOND)
    stage.do(long)
    assert stage.state == "RUNNING"
    stage.do(ModelBroke(second.step, second.attempt, THROTTLED, "PROVIDER_THROTTLED", "later", 200 * SECOND))
    assert stage.state == "WAITING"
    assert stage.last("run_waiting").reason == WaitReason.WAIT_REASON_BACKOFF
    assert stage.run.life.wait is not None
    assert stage.run.life.wait.until_ns <= stage.now_ns + 101 * SECOND, "it waits for the first of them"
    stage.wait_for_alarm()
    assert stage.state == "RUNNING"
    assert len(models(stage)) == 1
    stage.end(models(stage)[0])
    while stage.state == "WAITING":
        stage.wait_for_alarm()
    assert stage.play().state == "COMPLETED"


@pytest.mark.parametrize("why", ["barred", "paused"])
def test_a_node_that_rests_for_its_model_wakes_the_run_when_it_can_go_on_and_not_before(why: str) -> None:
    stage = GraphStage(pinned(beside(node("x"), node("y", model="m/y"))), says)
    calling(stage, "start")
    first = models(stage)[0]
    stage.do(ModelBroke(first.step, first.attempt, TRANSIENT, "PROVIDER_UNAVAILABLE", "later"))
    assert stage.alarm_ns() < stage.now_ns + 10 * SECOND
    if why == "barred":
        stage.givens["health"] = Health({"scripted/a": stage.now_ns + 100 * SECOND})
    else:
        pause(stage, ("default", MODEL, "scripted/a"))
    stage.wait(10)
    assert stage.state == "RUNNING"
    assert stage.alarm_ns() > stage.now_ns + 60 * SECOND, "no loop is busy"
    if why == "barred":
        stage.wait_for_alarm()
    else:
        lift(stage)
    assert len(models(stage)) == 2
    assert stage.play().state == "COMPLETED"


def test_a_long_backoff_of_a_tool_waits_beside_an_approval_and_both_go_on() -> None:
    graph = beside(node("x", "act"), node("y", "act"))
    permissions = [PermissionRule(tool="x", action=ASK)]
    stage = GraphStage(
        pinned(graph, tool("x"), tool("y"), operator_permissions=permissions),
        lambda visit, turn: ((visit.started.node, "{}"),) if visit.started.operator == "act" else says(visit, turn),
    )
    found = calling(stage, "start", "x", "y")
    broke = ToolBroke(found["y"].call.id, 1, TRANSIENT, NO, "TOOL_UNAVAILABLE", "later", 100 * SECOND)
    stage.do(broke)
    assert stage.state == "WAITING"
    stage.wait_for_alarm()
    assert stage.state == "RUNNING"
    assert [type(effect) for effect in stage.effects] == [CallTool]
    stage.end(stage.effects[0])
    assert stage.state == "WAITING"
    assert stage.last("run_waiting").reason == WaitReason.WAIT_REASON_APPROVAL
    stage.do(Decision(found["x"].call.id, 1, "ann"))
    assert stage.play().state == "COMPLETED"


def test_a_call_in_doubt_waits_while_other_nodes_work() -> None:
    stage = of_each_class()
    found = calls_of(stage)
    stage.do(ToolBroke(found["once"].call.id, 1, TRANSIENT, UNKNOWN, "TOOL_UNAVAILABLE", "gone"))
    assert stage.state == "RUNNING"
    for name in ("pure", "idem", "query"):
        stage.do(ToolEnded(found[name].call.id, 1, result(found[name])))
    assert stage.state == "WAITING"
    assert stage.last("run_waiting").reason == WaitReason.WAIT_REASON_OUTCOME_UNKNOWN
    late = result(found["once"])
    late.parts.append(Part(text=TextPart(text=" after all")))
    stage.do(ToolEnded(found["once"].call.id, 1, late))
    assert stage.play().state == "COMPLETED"
