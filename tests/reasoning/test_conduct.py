"""How graph runs go on, on the stage: what models are asked, what ends nodes and runs, what is stopped, what waits."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from behest.v1.definition_pb2 import Limits, PermissionRule
from behest.v1.graph_pb2 import (
    Branch,
    BranchCondition,
    FanIn,
    FanInMode,
    FanOut,
    Graph,
    GraphEdge,
    GraphNode,
    Loop,
    Pipeline,
    Race,
    Retry,
    SubgraphEntry,
    Termination,
)
from behest.v1.node_event_pb2 import NodeSkipReason
from behest.v1.run_state_pb2 import WaitReason
from behest.v1.task_pb2 import StepStatus
from behest.v1.usage_pb2 import Usage
from behestd.core.nodes import NodeStatus, Visit
from behestd.core.signals import CallModel, CallTool, Decision, ModelBroke, ModelEnded
from tests.core.stage import ASK, DENY, NON_IDEMPOTENT, PERMANENT, TRANSIENT, answer, tool
from tests.reasoning.graph_stage import GraphStage, Reply, as_json, pinned

FAILED = BranchCondition.BRANCH_CONDITION_FAILURE


def node(name: str, operator: str = "reason", **fields: Any) -> GraphNode:
    return GraphNode(id=name, operator=operator, **fields)


def edge(source: str, target: str, **kind: Any) -> GraphEdge:
    return GraphEdge(to=target, **{"from": source}, **(kind or {"pipeline": Pipeline()}))


def chain(*nodes: GraphNode, **fields: Any) -> Graph:
    edges = [edge(left.id, right.id) for left, right in itertools.pairwise(nodes)]
    return Graph(nodes=nodes, edges=[*edges, *fields.pop("edges", ())], **fields)


def says(visit: Visit, turn: int) -> Reply:
    """A text that tells who says it, or a call of the first tool by operators that must call one."""
    if visit.started.operator == "act" and turn == 1:
        return (("look", '{"at": "it"}'),)
    return f"{visit.started.node} says {turn}"


def fan(count: int, parallelism: int, mode: int = FanInMode.FAN_IN_MODE_ALL, **fields: Any) -> Graph:
    """A start, so many nodes side by side, and an answer."""
    names = [f"n{index}" for index in range(count)]
    edges = [edge("start", name, fan_out=FanOut(parallelism=parallelism)) for name in names]
    edges += [edge(name, "answer", fan_in=FanIn(mode=mode)) for name in names]  # type: ignore[arg-type]  # an enum's number
    return Graph(nodes=[node("start"), *map(node, names), node("answer", "answer")], edges=edges, **fields)


def models(stage: GraphStage) -> list[CallModel]:
    return [effect for effect in stage.effects if isinstance(effect, CallModel)]


def status_of(stage: GraphStage, name: str) -> NodeStatus:
    assert stage.run.nodes is not None
    return stage.run.nodes.scopes[0].nodes[name].status


def test_a_fan_out_of_eight_with_three_at_once_takes_three_waves() -> None:  # C127
    stage = GraphStage(pinned(fan(8, 3)), says)
    stage.end(stage.effects[0])
    waves = []
    while len(models(stage)) > 1:
        wave = models(stage)
        waves.append(len(wave))
        for effect in wave:
            stage.end(effect)
    assert waves == [3, 3, 2]
    assert stage.laws.most_at_once == 3
    assert stage.play().text == "answer says 1"


def test_what_parallel_nodes_add_is_in_the_order_of_the_graph_whoever_is_first() -> None:
    forwards = GraphStage(pinned(fan(4, 4)), says).play()
    backwards = GraphStage(pinned(fan(4, 4)), says).play(lambda effects: effects[-1])
    assert forwards.run.nodes is not None
    assert backwards.run.nodes is not None
    found = [
        [step.output for step in stage.run.nodes.visits[-1].task.steps]
        for stage in (forwards, backwards)
        if stage.run.nodes is not None
    ]
    assert found[0] == found[1] == ["start says 1", *(f"n{index} says 1" for index in range(4))]


def test_a_reply_without_its_form_is_asked_for_again_and_read_when_it_has_it() -> None:  # C123
    replies = iter(["", "", as_json(rationale="why", steps=["one"])])
    graph = chain(node("plan", "plan"), node("answer", "answer"))
    stage = GraphStage(pinned(graph), lambda visit, turn: next(replies) if turn and visit.number == 1 else "done")
    stage.play()
    assert stage.state == "COMPLETED"
    assert stage.kinds.count("answer_rejected") == 2


def test_a_third_reply_without_its_form_fails_the_node_and_keeps_the_task() -> None:  # C123
    graph = chain(
        node("first"),
        node("plan", "plan"),
        node("answer", "answer"),
        edges=[edge("plan", "answer", branch=Branch(condition=FAILED))],
    )
    stage = GraphStage(pinned(graph), lambda visit, turn: "" if visit.number == 2 else says(visit, turn)).play()
    failed = stage.last("node_failed")
    assert failed.reason == "REASONING_REPLY_INVALID"
    assert stage.run.nodes is not None
    steps = stage.run.nodes.visits[-1].task.steps
    assert [step.status for step in steps] == [StepStatus.STEP_STATUS_COMPLETED, StepStatus.STEP_STATUS_FAILED]
    assert stage.state == "COMPLETED"


def test_a_node_that_fails_without_an_edge_for_it_fails_the_run() -> None:
    stage = GraphStage(pinned(chain(node("a"), node("answer", "answer"))), says)
    effect = models(stage)[0]
    stage.do(ModelBroke(effect.step, effect.attempt, PERMANENT, "PROVIDER_REQUEST_INVALID", "no"))
    assert (stage.state, stage.reason) == ("FAILED", "REASONING_NODE_FAILED")


def test_a_retry_edge_visits_a_failed_node_again_so_often() -> None:  # C126
    graph = chain(node("a"), node("answer", "answer"), edges=[edge("a", "a", retry=Retry(max_attempts=3))])
    stage = GraphStage(pinned(graph), says)
    for _ in range(2):
        effect = models(stage)[0]
        stage.do(ModelBroke(effect.step, effect.attempt, PERMANENT, "PROVIDER_REQUEST_INVALID", "no"))
    stage.play()
    assert stage.visited == ["a", "a", "a", "answer"]
    assert stage.state == "COMPLETED"


def test_a_race_goes_on_with_the_first_and_stops_the_others() -> None:  # C126
    names = ("x", "y", "z")
    edges = [edge("start", name, race=Race()) for name in names] + [edge(name, "answer") for name in names]
    graph = Graph(nodes=[node("start"), *map(node, names), node("answer", "answer")], edges=edges)
    stage = GraphStage(pinned(graph), says)
    stage.end(models(stage)[0])
    stage.end(models(stage)[1])
    assert [status_of(stage, name) for name in names] == [
        NodeStatus.SKIPPED,
        NodeStatus.COMPLETED,
        NodeStatus.SKIPPED,
    ]
    assert stage.kinds.count("model_superseded") == 2
    assert stage.last("node_skipped").reason == NodeSkipReason.NODE_SKIP_REASON_OUTPACED
    assert stage.play().visited == ["start", "x", "y", "z", "answer"]


def test_a_subgraph_has_its_own_answer_which_is_a_text_outside() -> None:  # C126
    inner = chain(node("think"), node("tell", "answer"))
    graph = Graph(
        nodes=[node("start"), GraphNode(id="inner", subgraph=inner), node("answer", "answer")],
        edges=[edge("start", "inner", subgraph=SubgraphEntry()), edge("inner", "answer")],
    )
    stage = GraphStage(pinned(graph), says).play()
    assert stage.visited == ["start", "inner", "inner/think", "inner/tell", "answer"]
    assert stage.run.nodes is not None
    task = stage.run.nodes.visits[-1].task
    assert [artifact.content for artifact in task.artifacts] == ["inner/tell says 1"]
    assert not task.is_achieved
    assert stage.state == "COMPLETED"


def test_a_spent_budget_fails_the_run_and_not_the_node() -> None:  # C128
    graph = chain(
        node("a"), node("b"), node("answer", "answer"), edges=[edge("b", "answer", branch=Branch(condition=FAILED))]
    )
    stage = GraphStage(pinned(graph, limits=Limits(max_steps=1)), says).play()
    assert (stage.state, stage.reason) == ("FAILED", "RUN_STEP_LIMIT")


def test_fixed_rounds_end_well_with_what_the_task_holds() -> None:  # C128
    graph = chain(
        node("a"),
        node("b"),
        node("answer", "answer"),
        edges=[edge("b", "a", loop=Loop(max_iterations=100))],
        termination=Termination(fixed_iterations=3),
    )
    stage = GraphStage(pinned(graph), says).play()
    assert stage.state == "COMPLETED"
    assert stage.visited.count("b") == 3


def test_two_nodes_that_wait_for_approvals_wait_together_and_go_on_one_by_one() -> None:  # C122
    edges = [edge("start", name, fan_out=FanOut(parallelism=2)) for name in ("x", "y")]
    edges += [edge(name, "answer", fan_in=FanIn(mode=FanInMode.FAN_IN_MODE_ALL)) for name in ("x", "y")]
    graph = Graph(nodes=[node("start"), node("x", "act"), node("y", "act"), node("answer", "answer")], edges=edges)
    definition = pinned(graph, tool("look"), operator_permissions=[PermissionRule(tool="look", action=ASK)])
    stage = GraphStage(definition, says)
    for effect in (models(stage)[0], *models(stage)):
        if effect in stage.effects:
            stage.end(effect)
    while models(stage):
        assert stage.state == "RUNNING"
        stage.end(models(stage)[0])
    assert stage.state == "WAITING"
    assert stage.run.life.wait is not None
    assert stage.run.life.wait.reason == WaitReason.WAIT_REASON_APPROVAL
    first, second = stage.run.calls
    stage.do(Decision(first.call.id, 1, "ann"))
    assert stage.state == "RUNNING"
    stage.end(next(effect for effect in stage.effects if isinstance(effect, CallTool)))
    assert stage.state == "WAITING"
    stage.do(Decision(second.call.id, 1, "ann"))
    assert stage.play().state == "COMPLETED"


def test_a_denied_call_is_an_action_that_failed() -> None:  # C122
    graph = chain(node("act", "act"), node("answer", "answer"))
    definition = pinned(graph, tool("look"), operator_permissions=[PermissionRule(tool="look", action=DENY)])
    stage = GraphStage(definition, says).play()
    assert stage.run.nodes is not None
    actions = stage.run.nodes.visits[-1].task.actions
    assert [action.is_error for action in actions] == [True]
    assert stage.state == "COMPLETED"


def test_a_tool_of_another_node_leaves_no_room_for_more_than_the_run_may_have_in_flight() -> None:
    edges = [edge("start", name, fan_out=FanOut(parallelism=3)) for name in ("x", "y", "z")]
    edges += [edge(name, "answer", fan_in=FanIn(mode=FanInMode.FAN_IN_MODE_ALL)) for name in ("x", "y", "z")]
    nodes = [node("start"), *(node(name, "act") for name in ("x", "y", "z")), node("answer", "answer")]
    definition = pinned(Graph(nodes=nodes, edges=edges), tool("look"), limits=Limits(max_parallel_tool_calls=2))
    stage = GraphStage(definition, says)
    while models(stage):
        stage.end(models(stage)[0])
        assert sum(isinstance(effect, CallTool) for effect in stage.effects) <= 2
    assert stage.play().state == "COMPLETED"


def test_a_call_in_flight_of_a_node_that_is_stopped_is_left_in_doubt() -> None:
    edges = [edge("start", name, race=Race()) for name in ("x", "y")]
    edges += [edge(name, "answer") for name in ("x", "y")]
    graph = Graph(nodes=[node("start"), node("x", "act"), node("y"), node("answer", "answer")], edges=edges)
    stage = GraphStage(pinned(graph, tool("look", NON_IDEMPOTENT)), says)
    stage.end(models(stage)[0])
    stage.end(models(stage)[0])
    assert any(isinstance(effect, CallTool) for effect in stage.effects)
    stage.end(models(stage)[0])
    assert stage.kinds.count("tool_outcome_unknown") == 1
    assert stage.play().state == "COMPLETED"


def test_cancelling_ends_every_node_at_work() -> None:  # C131
    stage = GraphStage(pinned(fan(4, 4)), says)
    stage.end(stage.effects[0])
    assert len(models(stage)) == 4
    stage.cancel()
    assert stage.state == "CANCELLED"
    assert stage.kinds.count("model_superseded") == 4


def test_what_is_said_to_a_run_is_a_fact_to_the_nodes_that_begin_later() -> None:
    stage = GraphStage(pinned(chain(node("a"), node("answer", "answer"))), says)
    stage.say("mind the gap")
    stage.end(models(stage)[0])
    assert stage.run.nodes is not None
    assert [fact.text for fact in stage.run.nodes.visits[-1].task.facts] == ["mind the gap"]


def test_a_crash_voids_what_models_were_asked_and_asks_them_again() -> None:  # C129
    stage = GraphStage(pinned(fan(3, 3)), says)
    stage.end(stage.effects[0])
    stage.crash()
    assert stage.kinds.count("model_superseded") == 3
    assert len(models(stage)) == 3
    assert all(effect.attempt == 2 for effect in models(stage))
    assert stage.play().visited == ["start", "n0", "n1", "n2", "answer"]


def test_a_short_backoff_of_one_node_lets_the_others_work() -> None:
    stage = GraphStage(pinned(fan(2, 2)), says)
    stage.end(stage.effects[0])
    effect = models(stage)[0]
    stage.do(ModelBroke(effect.step, effect.attempt, TRANSIENT, "PROVIDER_UNAVAILABLE", "later"))
    assert stage.state == "RUNNING"
    stage.end(models(stage)[0])
    stage.wait_for_alarm()
    assert stage.play().state == "COMPLETED"


def test_what_a_node_consumed_is_told_when_it_ends() -> None:
    stage = GraphStage(pinned(chain(node("a"), node("answer", "answer"))), says)
    effect = models(stage)[0]
    stage.do(ModelEnded(effect.step, effect.attempt, answer("x", usage=Usage(input_tokens=7, output_tokens=3))))
    assert (stage.last("node_completed").usage.input_tokens, stage.last("node_completed").usage.output_tokens) == (7, 3)


@pytest.mark.parametrize("mode", ["first", "all", "best"])
def test_each_way_of_bringing_together_leads_to_the_answer(mode: str) -> None:  # C126
    stage = GraphStage(pinned(fan(3, 3, FanInMode.Value(f"FAN_IN_MODE_{mode.upper()}"))), says).play()
    assert stage.state == "COMPLETED"
    assert stage.run.nodes is not None
    steps = [step.output for step in stage.run.nodes.visits[-1].task.steps]
    assert len(steps) == (4 if mode == "all" else 2)


def test_calls_of_other_nodes_that_have_not_left_count_for_the_budget_of_calls() -> None:  # C128
    edges = [edge("start", name, fan_out=FanOut(parallelism=3)) for name in ("x", "y", "z")]
    edges += [edge(name, "answer", fan_in=FanIn(mode=FanInMode.FAN_IN_MODE_ALL)) for name in ("x", "y", "z")]
    nodes = [node("start"), *(node(name, "act") for name in ("x", "y", "z")), node("answer", "answer")]
    rules = [PermissionRule(tool="look", action=ASK)]
    limits = Limits(max_tool_calls=2)
    graph = Graph(nodes=nodes, edges=edges)
    stage = GraphStage(pinned(graph, tool("look"), limits=limits, operator_permissions=rules), says)
    while models(stage):
        stage.end(models(stage)[0])
    assert (stage.state, stage.reason) == ("FAILED", "RUN_BUDGET")
