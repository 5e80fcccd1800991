"""Tells everything that is wrong with a graph. Pure.

Above: the service and what pins runs to graphs; no graph runs in which something is wrong, so whatever walks one takes
it for valid. Below: `graph_nodes` and `graph_edges`, each of which tells what is wrong with a part, in the order of the
nodes and edges. Work is bounded by the size of the graph, which is looked at first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import islice

from behest.v1.graph_pb2 import Graph, GraphProblem, GraphProblemKind
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behestd.core.shape import edges_of, turns
from behestd.core.times import duration_ns
from behestd.reasoning.graph_edges import edge_problems
from behestd.reasoning.graph_nodes import Place, node_problems, operator_problems
from behestd.reasoning.operators import operator_of

MAX_NODES, MAX_EDGES, MAX_TURNS, MAX_DEPTH = 2_000, 10_000, 200, 8
MAX_PROBLEMS = 200
"""Most problems that are told."""
MAX_PARALLEL, MAX_ITERATIONS, MAX_LABELS, MAX_LABEL_BYTES = 64, 1_000, 32, 256
MAX_DISPLAY_NAME, MAX_DESCRIPTION_BYTES = 128, 4_096
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")

_EMPTY = GraphProblemKind.GRAPH_PROBLEM_KIND_EMPTY
_NO_ANSWER = GraphProblemKind.GRAPH_PROBLEM_KIND_NO_ANSWER
_NO_PARALLELISM = GraphProblemKind.GRAPH_PROBLEM_KIND_NO_PARALLELISM
_BAD_SUBGRAPH = GraphProblemKind.GRAPH_PROBLEM_KIND_BAD_SUBGRAPH
_BAD_OPERATOR = GraphProblemKind.GRAPH_PROBLEM_KIND_BAD_OPERATOR
_OUT_OF_RANGE = GraphProblemKind.GRAPH_PROBLEM_KIND_OUT_OF_RANGE


def validate(graph: Graph, tools: Collection[str] | None = None) -> list[GraphProblem]:
    """Tell what is wrong with a graph, at most `MAX_PROBLEMS` of it. Empty: the graph is valid.

    `tools` are the names of the run's tools. None: they are not known, and not looked up.
    """
    problems = list(_excess(graph))
    if not problems:
        problems = list(islice(_problems(graph, "", tools), MAX_PROBLEMS))
    return problems or list(_clashes(graph))


def _problem(kind: GraphProblemKind.ValueType, message: str, path: str = "") -> GraphProblem:
    return GraphProblem(kind=kind, node=path.removesuffix("/"), message=message)


def _excess(graph: Graph) -> Iterator[GraphProblem]:
    """What makes a graph too large to be looked at."""
    nodes = edges = 0
    todo = [("", graph)]
    for path, each in todo:  # which grows meanwhile
        nodes, edges = nodes + len(each.nodes), edges + len(each.edges)
        if nodes > MAX_NODES:
            yield _problem(_OUT_OF_RANGE, f"{nodes} nodes exceed the limit of {MAX_NODES}", path)
            return
        if edges > MAX_EDGES:
            yield _problem(_OUT_OF_RANGE, f"{edges} edges exceed the limit of {MAX_EDGES}", path)
            return
        if (back := len(turns(edges_of(each)))) > MAX_TURNS:
            message = f"{back} edges lead back to other nodes, and the limit is {MAX_TURNS}"
            yield _problem(_OUT_OF_RANGE, message, path)
            return
        for node in each.nodes:
            if node.HasField("subgraph"):
                name = f"{path}{node.id}/"
                if path.count("/") >= MAX_DEPTH - 1:
                    message = f"the subgraph {name.removesuffix('/')} is deeper than the limit of {MAX_DEPTH}"
                    yield _problem(_BAD_SUBGRAPH, message, name)
                    return
                todo.append((name, node.subgraph))


def _problems(graph: Graph, path: str, tools: Collection[str] | None) -> Iterator[GraphProblem]:
    yield from _of_graph(graph, path)
    yield from operator_problems(graph, path)
    if not graph.nodes:
        yield _problem(
            _EMPTY, f"{'the subgraph ' + path.removesuffix('/') if path else 'the graph'} has no nodes", path
        )
        return
    seen = set[str]()
    for node in graph.nodes:
        yield from node_problems(Place(graph, node, path + node.id, node.id in seen), tools)
        seen.add(node.id)
        if node.HasField("subgraph"):
            inner = list(islice(_problems(node.subgraph, f"{path}{node.id}/", tools), MAX_PROBLEMS))
            if inner:
                message = f"the subgraph {path}{node.id} is not valid: {inner[0].message}"
                yield _problem(_BAD_SUBGRAPH, message, path + node.id)
            yield from inner
    yield from edge_problems(graph, path)
    if not graph.termination.HasField("fixed_iterations") and not _may_answer(graph):
        where = f"the subgraph {path.removesuffix('/')}" if path else "the graph"
        yield _problem(_NO_ANSWER, f"no node of {where} answers", path)


def _may_answer(graph: Graph) -> bool:
    """Whether some node answers, or would if its operator were there."""
    named = [operator_of(graph, node.operator) for node in graph.nodes if node.operator]
    return any(one is None or one.target == ReplyTarget.REPLY_TARGET_ANSWER for one in named)


def _of_graph(graph: Graph, path: str) -> Iterator[GraphProblem]:
    """What is wrong with what a graph says of itself."""
    if graph.id and not _IDENTIFIER.fullmatch(graph.id):
        yield _problem(_OUT_OF_RANGE, "the graph's id must match [A-Za-z0-9_-]{1,64}", path)
    if len(graph.display_name) > MAX_DISPLAY_NAME:
        yield _problem(_OUT_OF_RANGE, f"display_name has more than {MAX_DISPLAY_NAME} characters", path)
    if len(graph.description.encode()) > MAX_DESCRIPTION_BYTES:
        yield _problem(_OUT_OF_RANGE, f"description has more than {MAX_DESCRIPTION_BYTES} bytes", path)
    if len(graph.labels) > MAX_LABELS:
        yield _problem(_OUT_OF_RANGE, f"{len(graph.labels)} labels exceed the limit of {MAX_LABELS}", path)
    if any(len(text.encode()) > MAX_LABEL_BYTES for pair in graph.labels.items() for text in pair):
        yield _problem(_OUT_OF_RANGE, f"a label has more than {MAX_LABEL_BYTES} bytes", path)
    if graph.HasField("max_parallel_nodes"):
        if graph.max_parallel_nodes < 1:
            yield _problem(
                _NO_PARALLELISM, f"max_parallel_nodes is {graph.max_parallel_nodes}; no node could work", path
            )
        elif graph.max_parallel_nodes > MAX_PARALLEL:
            message = f"max_parallel_nodes is {graph.max_parallel_nodes}, and must be 1 to {MAX_PARALLEL}"
            yield _problem(_OUT_OF_RANGE, message, path)
    yield from _of_termination(graph, path)


def _of_termination(graph: Graph, path: str) -> Iterator[GraphProblem]:
    termination = graph.termination
    for field, value in termination.ListFields():
        if field.name.endswith("_iterations") and not 1 <= value <= MAX_ITERATIONS:
            yield _problem(
                _OUT_OF_RANGE, f"termination.{field.name} is {value}, and must be 1 to {MAX_ITERATIONS}", path
            )
        elif field.name.startswith("max_") and value < 1:
            yield _problem(_OUT_OF_RANGE, f"termination.{field.name} is {value}, and must be at least 1", path)
    both = termination.HasField("max_iterations") and termination.HasField("fixed_iterations")
    if both and termination.fixed_iterations > termination.max_iterations:
        yield _problem(_OUT_OF_RANGE, "termination.fixed_iterations is more than termination.max_iterations", path)
    if termination.HasField("timeout") and duration_ns(termination.timeout) <= 0:
        yield _problem(_OUT_OF_RANGE, "termination.timeout must be more than nothing", path)


def _clashes(graph: Graph) -> Iterator[GraphProblem]:
    """Operators that are not the same in all graphs of one, though their nodes name them alike."""
    known: dict[str, Operator] = {}
    todo = [("", graph)]
    for path, each in todo:  # which grows meanwhile
        for node in each.nodes:
            operator = operator_of(each, node.operator) if node.operator else None
            if operator is not None and known.setdefault(node.operator, operator) != operator:
                message = f"operator {node.operator} of node {path}{node.id} is another one than in the graph around it"
                yield _problem(_BAD_OPERATOR, message, path + node.id)
            if node.HasField("subgraph"):
                todo.append((f"{path}{node.id}/", node.subgraph))
