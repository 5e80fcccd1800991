"""A graph whose nodes work beside each other, and the run of it, for tests of what is seen of several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from behest.v1 import run_service_pb2 as runs
from behest.v1.graph_pb2 import FanIn, FanInMode, FanOut, Graph, GraphNode
from behest.v1.run_pb2 import Run
from tests.daemons import Served
from tests.reasoning.house import edge, said

ALL = FanInMode.FAN_IN_MODE_ALL
WORK = ("reason", "generate", "explain")
SAYS: Mapping[str, str] = {
    "analyze": "/say it is known",
    "reason": "/say for a reason",
    "generate": "/say something new",
    "explain": "/say so that all know",
    "answer": "/say here it is",
}


def wide(*work: str, mode: FanInMode.ValueType = ALL, **fields: Any) -> Graph:
    """Analyse; then these operators beside each other, each a node of its name; then answer."""
    names: Sequence[str] = work or WORK
    nodes = [GraphNode(id=name, operator=name) for name in ("analyze", *names, "answer")]
    out = [edge("analyze", name, fan_out=FanOut(parallelism=len(names))) for name in names]
    into = [edge(name, "answer", fan_in=FanIn(mode=mode)) for name in names]
    return Graph(nodes=nodes, edges=[*out, *into], **fields)


async def begin(served: Served, graph: Graph, **fields: Any) -> Run:
    """Create a run of a graph."""
    spec = said("find out", graph=graph, **fields)
    return (await served.client.stubs.runs.CreateRun(runs.CreateRunRequest(spec=spec))).run


async def got(served: Served, run_id: str) -> Run:
    """A run as GetRun shows it."""
    return (await served.client.stubs.runs.GetRun(runs.GetRunRequest(run_id=run_id))).run
