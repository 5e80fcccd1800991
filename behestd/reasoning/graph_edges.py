"""Tells what is wrong with the edges of a graph, each for itself and beside those that it must agree with. Pure.

Above: `graph`. Below: `graph_ways`, which tells what is wrong with where they lead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from behest.v1.graph_pb2 import Branch, BranchCondition, FanInMode, Graph, GraphProblem, GraphProblemKind
from behestd.core.shape import Edge, edges_of
from behestd.reasoning.expression import Unreadable, read
from behestd.reasoning.graph_ways import shown, way_problems

MAX_PARALLELISM, MAX_ITERATIONS, MAX_ATTEMPTS = 64, 1_000, 100

_BAD_EDGE = GraphProblemKind.GRAPH_PROBLEM_KIND_BAD_EDGE
_BAD_BRANCH = GraphProblemKind.GRAPH_PROBLEM_KIND_BAD_BRANCH
_NO_PARALLELISM = GraphProblemKind.GRAPH_PROBLEM_KIND_NO_PARALLELISM
_OUT_OF_RANGE = GraphProblemKind.GRAPH_PROBLEM_KIND_OUT_OF_RANGE
_Found = tuple[GraphProblemKind.ValueType, str]


def edge_problems(graph: Graph, path: str) -> Iterator[GraphProblem]:
    """Tell what is wrong with the edges of a graph, then with where they lead."""
    edges = edges_of(graph)
    subgraphs = {node.id: node.HasField("subgraph") for node in graph.nodes}
    firsts: dict[object, Edge] = {}
    for edge in edges:
        found = [*_of_ends(edge, subgraphs), *_of_kind(edge), *_of_others(edge, firsts)]
        for kind, text in found:
            yield GraphProblem(kind=kind, node=path + edge.source, edge=edge.place, message=f"{shown(edge)}: {text}")
    sound = [edge for edge in edges if edge.kind and edge.source in subgraphs and edge.target in subgraphs]
    yield from way_problems(graph, path, sound)


def _of_ends(edge: Edge, subgraphs: Mapping[str, bool]) -> Iterator[_Found]:
    for field, name in (("from", edge.source), ("to", edge.target)):
        if name not in subgraphs:
            yield _BAD_EDGE, f"its `{field}` is no node of the graph"
    if edge.kind == "subgraph" and not subgraphs.get(edge.target, True):
        yield _BAD_EDGE, f"{edge.target} is no subgraph"


def _of_kind(edge: Edge) -> Iterator[_Found]:
    """What is wrong with the settings of an edge."""
    message = edge.message
    match edge.kind:
        case "":
            yield _BAD_EDGE, "it is of no kind"
        case "branch":
            yield from _of_branch(message.branch)
        case "loop":
            yield from _of_range("max_iterations", message.loop.max_iterations, 1, MAX_ITERATIONS)
            if message.loop.until and (text := _unreadable(message.loop.until)):
                yield _BAD_BRANCH, f"its `until`: {text}"
        case "retry":
            yield from _of_range("max_attempts", message.retry.max_attempts, 2, MAX_ATTEMPTS)
        case "fan_out" if message.fan_out.parallelism < 1:
            yield _NO_PARALLELISM, f"its parallelism is {message.fan_out.parallelism}; nothing could be at work"
        case "fan_out":
            yield from _of_range("parallelism", message.fan_out.parallelism, 1, MAX_PARALLELISM)
        case "fan_in" if message.fan_in.mode not in FanInMode.values()[1:]:
            yield _BAD_EDGE, "it has no mode"


def _of_branch(branch: Branch) -> Iterator[_Found]:
    if branch.condition not in BranchCondition.values()[1:]:
        yield _BAD_BRANCH, "it has no condition"
    elif branch.condition != BranchCondition.BRANCH_CONDITION_EXPRESSION:
        if branch.expression:
            yield _BAD_BRANCH, "it has an expression, and its condition is not EXPRESSION"
    elif text := _unreadable(branch.expression):
        yield _BAD_BRANCH, f"its expression: {text}"


def _unreadable(expression: str) -> str:
    """Why an expression cannot be read; empty when it can."""
    try:
        read(expression)
    except Unreadable as refused:
        return str(refused)
    return ""


def _of_range(name: str, value: int, least: int, most: int) -> Iterator[_Found]:
    if not least <= value <= most:
        yield _OUT_OF_RANGE, f"{name} is {value}, and must be {least} to {most}"


def _of_others(edge: Edge, firsts: dict[object, Edge]) -> Iterator[_Found]:
    """What is wrong with an edge beside those before it, of which `firsts` holds the first of each sort."""
    if edge.kind == "fan_out":
        first = firsts.setdefault(("fan_out", edge.source), edge)
        if first.message.fan_out.parallelism != edge.message.fan_out.parallelism:
            yield _BAD_EDGE, f"its parallelism is not that of edge {first.place}, which leaves the same node"
    if edge.kind == "fan_in":
        first = firsts.setdefault(("fan_in", edge.target), edge)
        if first.message.fan_in.mode != edge.message.fan_in.mode:
            yield _BAD_EDGE, f"its mode is not that of edge {first.place}, which leads to the same node"
    if edge.kind and edge.kind != "branch":
        first = firsts.setdefault((edge.kind, edge.source, edge.target), edge)
        if first is not edge:
            yield _BAD_EDGE, f"it is there twice: see edge {first.place}"
