"""The reasoning graphs of each namespace: records of the store, and what is wrong with a graph on this daemon.

Above: `graph_order`, which pins runs to graphs, and ReasoningService. Below: the store, the rules of `reasoning`, the
catalog of tools, which knows the operators that are functions of extensions, and the reader of JSON Schema.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from behest.v1.graph_pb2 import Graph, GraphNode, GraphProblem, GraphProblemKind
from behest.v1.operator_pb2 import Operator
from behestd.errors import GraphInvalid, GraphNotFound, InvalidRequest
from behestd.log.store import Record, Store
from behestd.reasoning.graph import validate
from behestd.tools.catalog import Catalog
from behestd.tools.schema import Validators

KIND = "graph"
VERSION_KIND = "graph_version"
"""Records by id of the graph: its newest version, and by `ID/VERSION` every version."""
_PLACE_CHARACTERS = 64


def version_name(graph_id: str, version: int) -> str:
    """The id of a version's record: no graph's id holds a slash."""
    return f"{graph_id}/{version}"


def graph_in(record: Record) -> Graph:
    """The graph in a record of its newest version."""
    graph = Graph.FromString(record.body)
    graph.version = record.version
    return graph


async def graph_of(store: Store, namespace: str, graph_id: str, version: int = 0) -> Graph:
    """A graph at a version, 0 being the newest. Raises GraphNotFound."""
    record = await store.record(namespace, KIND, graph_id, 0)
    if record is None or version > record.version:
        raise GraphNotFound(graph_id, version)
    if version in (0, record.version):
        return graph_in(record)
    earlier = await store.record(namespace, VERSION_KIND, version_name(graph_id, version), 0)
    if earlier is None:
        raise GraphNotFound(graph_id, version)
    return Graph.FromString(earlier.body)


class Place(NamedTuple):
    """A node that names an operator."""

    graph: Graph
    """The graph that it stands in."""
    node: GraphNode
    path: str
    """Its id, with the subgraphs that it is in."""


def places(graph: Graph, prefix: str = "") -> Iterator[Place]:
    """The nodes of a graph and of its subgraphs that name operators, in order."""
    for node in graph.nodes:
        kind = node.WhichOneof("work")
        if kind == "operator":
            yield Place(graph, node, prefix + node.id)
        elif kind == "subgraph":
            yield from places(node.subgraph, f"{prefix}{node.id}/")


def completed(graph: Graph, extensions: Mapping[str, Operator]) -> Graph:
    """A graph with the operators of extensions that its nodes name; the same one when they name none."""
    if not extensions or all(place.node.operator not in extensions for place in places(graph)):
        return graph
    made = Graph()
    made.CopyFrom(graph)
    for within, node, _ in places(made):
        if node.operator in extensions and all(own.name != node.operator for own in within.operators):
            within.operators.append(extensions[node.operator])
    return made


def problems_of(graph: Graph, catalog: Catalog, tools: Collection[str] | None) -> list[GraphProblem]:
    """Everything that is wrong with a completed graph. `tools` are the names of the run's tools; None: not known."""
    return validate(graph, tools) or list(_schema_problems(graph, catalog.validators))


def check(graph: Graph, catalog: Catalog, tools: Collection[str] | None, path: str) -> None:
    """Refuse a completed graph that is not valid; `path` is its name for the caller. Raises GraphInvalid."""
    found = problems_of(graph, catalog, tools)
    if found:
        raise invalid(found, path)


def invalid(problems: Sequence[GraphProblem], path: str) -> GraphInvalid:
    """Make the error of problems, of which there is one at least."""
    first = problems[0]
    rule = GraphProblemKind.Name(first.kind).removeprefix("GRAPH_PROBLEM_KIND_")
    violations = tuple((_place(problem, path), problem.message) for problem in problems)
    return GraphInvalid(first.node, first.edge, rule, violations)


def _place(problem: GraphProblem, path: str) -> str:
    """The field that a problem is of, nodes by their ids; the problem of an edge names the node that it leaves."""
    node = problem.node
    if len(node) > _PLACE_CHARACTERS:  # A longer place would be cut behind its bracket.
        node = node[:_PLACE_CHARACTERS] + "…"
    if not problem.edge:
        return f"{path}.nodes[{node}]" if node else path
    above = node.rpartition("/")[0]
    return f"{path}{f'.nodes[{above}].subgraph' if above else ''}.edges[{problem.edge - 1}]"


def _schema_problems(graph: Graph, validators: Validators, prefix: str = "") -> Iterator[GraphProblem]:
    """Schemas of replies that are not taken."""
    for operator in graph.operators:
        problem = _refusal(validators, operator.reply_schema_json)
        if problem:
            kind, text = GraphProblemKind.GRAPH_PROBLEM_KIND_BAD_OPERATOR, f"operator {operator.name}: {problem}"
            yield GraphProblem(kind=kind, node=prefix.removesuffix("/"), message=text)
    for node in graph.nodes:
        problem = _refusal(validators, node.reply_schema_json)
        if problem:
            kind = GraphProblemKind.GRAPH_PROBLEM_KIND_BAD_NODE
            yield GraphProblem(kind=kind, node=prefix + node.id, message=problem)
        if node.HasField("subgraph"):
            yield from _schema_problems(node.subgraph, validators, f"{prefix}{node.id}/")


def _refusal(validators: Validators, schema_json: str) -> str:
    """Why a schema is not taken; empty when it is, or there is none."""
    try:
        if schema_json:
            validators.check_answer("reply_schema_json", schema_json)
    except InvalidRequest as refused:
        return refused.message
    return ""
