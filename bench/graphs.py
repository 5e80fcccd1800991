"""Reasoning graphs: how many nodes a second, what a node costs beside a step of a plain run, and whether size tells.

A step is one model call of a run that goes on: the scripted model is cut by length, so that the run asks it again. A
node is a model call too, and beside it a task that is carried on and a decision about what follows. The large graph has
a thousand nodes in a chain; a node of it must not cost much more than one of a graph of a tenth of its size.
"""

from __future__ import annotations

import itertools
import statistics
import time

import grpc

from behest.v1 import run_service_pb2 as pb
from behest.v1.agent_pb2 import Agent
from behest.v1.agent_service_pb2 import CreateAgentRequest
from behest.v1.agent_service_pb2_grpc import AgentServiceStub
from behest.v1.definition_pb2 import Limits
from behest.v1.graph_pb2 import Graph, GraphEdge, GraphNode, Pipeline
from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_service_pb2_grpc import RunServiceStub
from behest.v1.run_spec_pb2 import RunSpec
from bench.figures import Figures
from bench.load import OPTIONS, rate
from bench.processes import Process, daemon

FLOORS = {"graph_node_vs_step": 0.40, "graph_1000_vs_100": 0.50}
NODES = 20
"""Of a graph whose rate is measured, and steps of the plain runs beside it."""
CALLERS = 16
_STEPS = "/say done /finish length /next " * (NODES - 1) + "/say done"
_NODE = "/begin /say done /end"


def chain(count: int) -> Graph:
    """So many nodes behind each other, the last of which answers."""
    nodes = [GraphNode(id=f"n{place}", operator="reason", prompt=_NODE) for place in range(count - 1)]
    nodes.append(GraphNode(id="answer", operator="answer", prompt=_NODE))
    edges = [
        GraphEdge(to=right.id, pipeline=Pipeline(), **{"from": left.id}) for left, right in itertools.pairwise(nodes)
    ]
    return Graph(nodes=nodes, edges=edges)


def order(text: str = "go on", **fields: object) -> pb.StreamRunRequest:
    """An order of one text."""
    return pb.StreamRunRequest(spec=RunSpec(input=[Part(text=TextPart(text=text))], **fields))  # type: ignore[arg-type]  # names of its fields


async def _end(stub: RunServiceStub, request: pb.StreamRunRequest) -> float:
    """Seconds from the order to the good end of its run."""
    begun, kind = time.perf_counter(), None
    async for frame in stub.StreamRun(request):
        for event in frame.events:
            kind = event.WhichOneof("payload")
    if kind != "run_completed":
        raise RuntimeError(f"the run ended with {kind}")
    return time.perf_counter() - begun


async def through(figures: Figures, rounds: int, seconds: float) -> None:
    """Measure nodes beside steps, in turns, and a large graph beside a small one."""
    with daemon() as process:
        async with grpc.aio.insecure_channel(process.address, options=OPTIONS) as channel:
            stub = RunServiceStub(channel)
            limits = Limits(max_steps=NODES + 1, max_length_recoveries=NODES)
            made = CreateAgentRequest(agent=Agent(id="long", limits=limits))
            await AgentServiceStub(channel).CreateAgent(made)
            await _rates(figures, stub, rounds, seconds)
            await _sizes(figures, stub, process, rounds)


async def _rates(figures: Figures, stub: RunServiceStub, rounds: int, seconds: float) -> None:
    nodes, steps = order(graph=chain(NODES)), order(_STEPS, agent_id="long")
    found = []
    for _ in range(rounds):
        pair = [await rate(lambda each=each: _end(stub, each), CALLERS, seconds) for each in (nodes, steps)]
        found.append([NODES * each for each in pair])
    figures.note(f"graph nodes/s, {CALLERS} callers", max(pair[0] for pair in found))
    figures.note(f"steps of plain runs/s, {CALLERS} callers", max(pair[1] for pair in found))
    figures.ratio("graph_node_vs_step", [pair[0] / pair[1] for pair in found])


async def _sizes(figures: Figures, stub: RunServiceStub, process: Process, rounds: int) -> None:
    small, large = order(graph=chain(100)), order(graph=chain(1_000))
    ratios, costs = [], []
    before = process.memory_bytes()
    for _ in range(rounds):
        first = await _end(stub, small) / 100
        second = await _end(stub, large) / 1_000
        ratios.append(first / second)
        costs.append(second * 1_000)
    figures.note("ms a node, graph of 1,000", statistics.median(costs))
    figures.note("KiB a node of a graph of 1,000", (process.memory_bytes() - before) / rounds / 1_100 / 1024)
    figures.ratio("graph_1000_vs_100", ratios)
