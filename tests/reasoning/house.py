"""Graphs, and daemons that hold runs of graphs before they begin, for tests of what is asked of a daemon."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from behest.v1 import run_service_pb2 as runs
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.graph_pb2 import Graph, GraphEdge, GraphNode, Pipeline
from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_event_pb2 import RunCreated
from behest.v1.run_pb2 import Run
from behest.v1.run_spec_pb2 import RunSpec
from tests.daemons import Served


def edge(source: str, target: str, **kind: Any) -> GraphEdge:
    """An edge, which says that a node follows unless it says something else."""
    return GraphEdge(**{"from": source}, to=target, **(kind or {"pipeline": Pipeline()}))


def chain(*nodes: GraphNode, **fields: Any) -> Graph:
    """A graph of nodes one after the other."""
    pairs = itertools.pairwise(node.id for node in nodes)
    return Graph(nodes=nodes, edges=[edge(*pair) for pair in pairs], **fields)


def simple(**fields: Any) -> Graph:
    """The least that is worth being called a graph."""
    return chain(GraphNode(id="think", operator="reason"), GraphNode(id="say", operator="answer"), **fields)


def said(text: str = "/say hello", **fields: Any) -> RunSpec:
    """An order of a text."""
    return RunSpec(input=[Part(text=TextPart(text=text))], **fields)


@dataclass(frozen=True, slots=True)
class Queued:
    """A run that waits for its session, and what it is pinned to."""

    run: Run
    created: RunCreated
    definition: RunDefinition


async def queue(served: Served, spec: RunSpec, request_id: str = "") -> Queued:
    """Order a run behind another one that goes on for ever, so that it is created and does not begin."""
    stubs = served.client.stubs.runs
    busy = said("/delay 600000 /say never", agent_id="default")
    behind = RunSpec()
    behind.CopyFrom(spec)
    if not spec.session_id:
        behind.session_id = (await stubs.CreateRun(runs.CreateRunRequest(spec=busy))).run.session_id
    made = (await stubs.CreateRun(runs.CreateRunRequest(spec=behind, request_id=request_id))).run
    return await read(served, made)


async def read(served: Served, run: Run) -> Queued:
    """A run, what it began with, and what it is pinned to."""
    definition = await served.daemon.log.store.definition(run.definition_hash)
    assert definition is not None
    async for frame in served.client.stubs.runs.WatchRun(runs.WatchRunRequest(run_id=run.id)):
        for event in frame.events:
            return Queued(run, event.run_created, RunDefinition.FromString(definition))
    raise AssertionError("a run without events")
