"""Each operator in a run of a graph whose models and tools are scripted: what its visit adds, to the letter."""

from __future__ import annotations

import pytest

from behest.v1.graph_pb2 import Graph, GraphEdge, GraphNode, Pipeline
from behest.v1.task_pb2 import TaskDelta, TaskStep
from behestd.core.nodes import Visit
from behestd.core.task import message
from tests.core.stage import tool
from tests.reasoning.graph_stage import ERROR, GraphStage, Reply, pinned
from tests.reasoning.test_operators import CASES, COMPLETED, START, Case


# C121
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id or case.name)
def test_a_visit_of_an_operator_adds_exactly_what_it_is_for(case: Case) -> None:
    def says(visit: Visit, turn: int) -> Reply:
        if case.uses and turn == 1 and visit.number == 1:
            return tuple((use.tool, use.input_json) for use in case.uses)
        return case.reply if visit.number == 1 else "done"

    outputs = {use.tool: ERROR * use.is_error + use.output for use in case.uses}
    end = GraphNode(id="end", operator="answer")
    graph = Graph(
        nodes=[GraphNode(id="work", operator=case.name), end],
        edges=[GraphEdge(to="end", pipeline=Pipeline(), **{"from": "work"})],
    )
    definition = pinned(graph, *(tool(name) for name in outputs))
    stage = GraphStage(definition, says, does=lambda name, _: outputs[name], task=message(START)).play()

    step = TaskStep(operator=case.name, input=case.about, output=case.output or case.reply, status=COMPLETED)
    first = next(event.node_completed for event, _ in stage.log if event.WhichOneof("payload") == "node_completed")
    assert first.delta == TaskDelta(steps=[step], **case.adds)
    assert first.outcome == case.outcome
    assert (first.score if first.HasField("score") else None) == case.score
    assert stage.state == "COMPLETED"
