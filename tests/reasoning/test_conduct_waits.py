"""What graph runs wait for, on the stage: people and owners; and what is stopped while it waits."""

from __future__ import annotations

import pytest

from behest.v1.definition_pb2 import Limits, PermissionRule
from behest.v1.graph_pb2 import FanIn, FanInMode, FanOut, Graph, GraphEdge, GraphNode
from behest.v1.node_event_pb2 import NodeSkipReason
from behest.v1.run_state_pb2 import WaitReason
from behest.v1.tool_pb2 import Tool
from behestd.core.nodes import NodeStatus
from behestd.core.signals import (
    AskStatus,
    CallTool,
    CancelTool,
    Resolution,
    StatusKnown,
    ToolEnded,
)
from behestd.core.state import Call, Phase
from tests.core.stage import (
    ASK,
    IDEMPOTENT,
    NON_IDEMPOTENT,
    PURE,
    QUERYABLE,
    YES,
    result,
    tool,
)
from tests.reasoning.graph_stage import GraphStage, pinned
from tests.reasoning.test_conduct import edge, models, node, says, status_of

CLASSES = {"pure": PURE, "idem": IDEMPOTENT, "query": QUERYABLE, "once": NON_IDEMPOTENT}


def beside(*work: GraphNode, mode: FanInMode.ValueType = FanInMode.FAN_IN_MODE_ALL) -> Graph:
    """A start, nodes beside each other, and an answer."""
    edges: list[GraphEdge] = [edge("start", one.id, fan_out=FanOut(parallelism=8)) for one in work]
    edges += [edge(one.id, "answer", fan_in=FanIn(mode=mode)) for one in work]
    return Graph(nodes=[node("start"), *work, node("answer", "answer")], edges=edges)


def calling(stage: GraphStage, *names: str) -> dict[str, Call]:
    """Have the models of these nodes answer, which act; their calls by node."""
    for name in names:
        stage.end(next(effect for effect in models(stage) if stage.visit_of(effect).started.node == name))
    return calls_of(stage)


def calls_of(stage: GraphStage) -> dict[str, Call]:
    nodes = stage.run.nodes
    assert nodes is not None
    return {nodes.visit(number).started.node: call for number, lane in nodes.lanes.items() for call in lane.step.calls}


def of_each_class(**fields: object) -> GraphStage:
    """A run of which a call of each class is in flight, each in a node of its own."""
    graph = beside(*(node(name, "act") for name in CLASSES))
    tools = [tool(name, each) for name, each in CLASSES.items()]
    stage = GraphStage(
        pinned(graph, *tools, **fields),
        lambda visit, turn: ((visit.started.node, "{}"),) if visit.started.operator == "act" else says(visit, turn),
    )
    calling(stage, "start", *CLASSES)
    assert [call.phase for call in stage.run.calls] == [Phase.STARTED] * 4
    return stage


# --- what is stopped ---


def test_the_first_of_several_stops_the_others_with_all_that_they_do() -> None:  # C126 C131
    first = FanInMode.FAN_IN_MODE_FIRST
    graph = beside(*(node(name, "act") for name in ("asks", "flies", "waits")), node("quick"), mode=first)
    tools = [tool("asks"), tool("flies", NON_IDEMPOTENT), tool("waits", PURE)]
    stage = GraphStage(
        pinned(graph, *tools, operator_permissions=[PermissionRule(tool="asks", action=ASK)]),
        lambda visit, turn: ((visit.started.node, "{}"),) if visit.started.operator == "act" else says(visit, turn),
    )
    found = calling(stage, "start", "asks", "flies", "waits")
    assert [call.phase for call in found.values()] == [Phase.ASKED, Phase.STARTED, Phase.STARTED]
    calling(stage, "quick")
    assert [status_of(stage, name) for name in ("asks", "flies", "waits")] == [NodeStatus.SKIPPED] * 3
    assert stage.last("tool_denied").call_id == found["asks"].call.id
    assert stage.last("tool_outcome_unknown").call_id == found["flies"].call.id
    assert stage.last("tool_failed").reason == "TOOL_CANCELLED"
    assert stage.last("node_skipped").reason == NodeSkipReason.NODE_SKIP_REASON_OUTPACED
    stage.do(ToolEnded(found["flies"].call.id, 1, result(found["flies"])))
    assert stage.play().state == "COMPLETED"
    assert stage.visited == ["start", "asks", "flies", "waits", "quick", "answer"]


def test_a_graceful_cancel_waits_for_what_may_take_effect_in_all_nodes() -> None:  # C131
    stage = of_each_class()
    found = calls_of(stage)
    stage.cancel()
    assert stage.state == "CANCELLING"
    cancelled = {effect.call_id for effect in stage.effects if isinstance(effect, CancelTool)}
    assert cancelled == {found[name].call.id for name in ("idem", "query", "once")}
    for name in ("idem", "query"):
        stage.do(ToolEnded(found[name].call.id, 1, result(found[name])))
    assert stage.state == "CANCELLING"
    stage.do(ToolEnded(found["once"].call.id, 1, result(found["once"])))
    assert stage.state == "CANCELLED"
    assert stage.kinds.count("node_completed") == 1


def test_a_forced_cancel_leaves_all_calls_in_flight_in_doubt() -> None:  # C131
    stage = of_each_class()
    found = calls_of(stage)
    stage.cancel(force=True)
    assert stage.state == "CANCELLED"
    receipts = {receipt.call_id: receipt.in_doubt for receipt in stage.last("run_cancelled").receipts}
    assert receipts == {found[name].call.id: True for name in ("idem", "query", "once")}


def test_a_run_that_waits_for_approvals_of_two_nodes_is_cancelled_at_once() -> None:
    stage = asking()
    stage.cancel()
    assert stage.state == "CANCELLED"


def asking() -> GraphStage:
    """A run of which two nodes wait for approvals."""
    graph = beside(node("x", "act"), node("y", "act"))
    definition = pinned(graph, tool("look"), operator_permissions=[PermissionRule(tool="look", action=ASK)])
    stage = GraphStage(definition, says)
    calling(stage, "start", "x", "y")
    assert stage.state == "WAITING"
    return stage


def test_approvals_that_nobody_gives_expire_in_all_nodes() -> None:
    stage = asking()
    stage.wait_for_alarm()
    assert stage.kinds.count("tool_denied") == 2
    assert stage.play().state == "COMPLETED"


@pytest.mark.parametrize("limit", ["max_steps", "max_tool_calls"])
def test_a_limit_that_one_node_passes_leaves_the_calls_of_the_others_in_doubt(limit: str) -> None:  # C128
    graph = beside(node("x", "act"), node("y", "search"))
    limits = Limits(max_steps=3 if limit == "max_steps" else 9)
    if limit == "max_tool_calls":
        limits.max_tool_calls = 2
    stage = GraphStage(
        pinned(graph, tool("look", NON_IDEMPOTENT), limits=limits),
        lambda visit, turn: (("look", f'{{"turn": {turn}}}'),) if visit.number > 1 else "begin",
    )
    found = calling(stage, "start", "x", "y")
    stage.do(ToolEnded(found["y"].call.id, 1, result(found["y"])))
    while not stage.run.is_ended:
        stage.end(models(stage)[0])
    assert (stage.state, stage.reason) == ("FAILED", "RUN_STEP_LIMIT" if limit == "max_steps" else "RUN_BUDGET")
    assert stage.last("tool_outcome_unknown").call_id == found["x"].call.id


# --- owners ---


def test_a_takeover_treats_the_calls_of_all_nodes_by_their_class() -> None:  # C129
    stage = of_each_class()
    found = calls_of(stage)
    stage.crash()
    after = calls_of(stage)
    assert {name: call.phase for name, call in after.items()} == {
        "pure": Phase.STARTED,
        "idem": Phase.STARTED,
        "query": Phase.ASKING,
        "once": Phase.UNKNOWN,
    }
    assert {name: call.attempt for name, call in after.items()} == {"pure": 2, "idem": 2, "query": 1, "once": 1}
    (asked,) = (effect for effect in stage.effects if isinstance(effect, AskStatus))
    stage.do(StatusKnown(asked.call_id, asked.attempt, result(found["query"])))
    for name in ("pure", "idem"):
        stage.do(ToolEnded(found[name].call.id, 2, result(found[name])))
    assert stage.state == "WAITING"
    assert [status_of(stage, name) for name in CLASSES] == [NodeStatus.COMPLETED] * 3 + [NodeStatus.RUNNING]
    stage.do(Resolution(found["once"].call.id, "ann", YES, result(found["once"])))
    assert stage.play().state == "COMPLETED"
    assert stage.kinds.count("tool_started") == 6


def test_while_the_daemon_stops_nothing_begins_and_what_comes_is_kept() -> None:  # C129
    stage = GraphStage(pinned(beside(node("x", "act"), node("y")), tool("look")), says)
    calling(stage, "start")
    stage.givens["is_draining"] = True
    begun = {kind: stage.kinds.count(kind) for kind in ("model_requested", "tool_started", "node_started")}
    for effect in models(stage):
        stage.end(effect)
    assert {kind: stage.kinds.count(kind) for kind in begun} == begun
    assert (status_of(stage, "x"), status_of(stage, "y")) == (NodeStatus.RUNNING, NodeStatus.COMPLETED)
    assert stage.effects == ()
    assert stage.state == "RUNNING"
    stage.givens["is_draining"] = False
    stage.release()
    assert [type(effect) for effect in stage.effects] == [CallTool]
    assert stage.play().state == "COMPLETED"
    assert stage.kinds.count("model_completed") == 4


def test_an_owner_that_stops_leaves_the_last_node_to_the_next_one() -> None:  # C129
    stage = GraphStage(pinned(beside(node("x"), node("y"))), says)
    calling(stage, "start", "x")
    stage.givens["is_draining"] = True
    calling(stage, "y")
    assert stage.effects == ()
    stage.givens["is_draining"] = False
    stage.crash()
    assert stage.play().state == "COMPLETED"
    assert stage.visited == ["start", "x", "y", "answer"]


# --- people ---


def test_a_question_of_a_node_is_answered_by_what_is_said_while_others_work() -> None:
    question = Tool(name="ask_user", input_schema_json="{}", policy=tool(doom_loop_exempt=True).policy)
    stage = GraphStage(
        pinned(beside(node("asks", "search"), node("works")), question, tool("look")),
        lambda visit, turn: (
            (("ask_user", '{"question": "where?"}'),)
            if visit.started.operator == "search" and turn == 1
            else says(visit, turn)
        ),
    )
    calling(stage, "start", "asks")
    assert stage.state == "RUNNING"
    calling(stage, "works")
    assert stage.state == "WAITING"
    assert stage.run.life.wait is not None
    assert stage.run.life.wait.reason == WaitReason.WAIT_REASON_INPUT
    stage.say("over there")
    assert stage.state == "RUNNING"
    stage.play()
    assert stage.run.nodes is not None
    seen = stage.run.nodes.visits[-1].task
    assert any("over there" in observation.content for observation in seen.observations)
    assert not any("over there" in fact.text for fact in seen.facts), "an answer to a question is no fact for all"
    assert stage.state == "COMPLETED"


def test_a_question_that_nobody_answers_ends_the_run() -> None:
    question = Tool(name="ask_user", input_schema_json="{}", policy=tool().policy)
    stage = GraphStage(
        pinned(beside(node("asks", "search")), question),
        lambda visit, turn: (("ask_user", "{}"),) if visit.started.operator == "search" else says(visit, turn),
    )
    calling(stage, "start", "asks")
    stage.wait_for_alarm()
    assert (stage.state, stage.reason) == ("FAILED", "RUN_INPUT_EXPIRED")
