"""Tells what is wrong with the nodes of a graph and with its own operators. Above: `graph`. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase

from behest.v1.graph_pb2 import Graph, GraphNode, GraphProblem, GraphProblemKind
from behest.v1.operator_pb2 import Operator, ReplyTarget, ToolUse
from behestd.core.times import duration_ns
from behestd.reasoning.operators import operator_of
from behestd.values import dataclass

MAX_OPERATORS, MAX_ATTEMPTS, MAX_TURNS, MAX_SCHEMA_BYTES = 64, 16, 64, 65_536
_TEXTS = (("prompt", 16_384), ("instructions", 16_384), ("reply_schema_json", MAX_SCHEMA_BYTES))

_BAD_NODE = GraphProblemKind.GRAPH_PROBLEM_KIND_BAD_NODE
_BAD_OPERATOR = GraphProblemKind.GRAPH_PROBLEM_KIND_BAD_OPERATOR
_UNDECLARED_TOOL = GraphProblemKind.GRAPH_PROBLEM_KIND_UNDECLARED_TOOL
_OUT_OF_RANGE = GraphProblemKind.GRAPH_PROBLEM_KIND_OUT_OF_RANGE
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OPERATOR_NAME = re.compile(r"[a-z0-9_]{1,64}")
_MUST_CALL = (ToolUse.TOOL_USE_RESULTS, ToolUse.TOOL_USE_REPORT)
_NEEDED: Mapping[int, str] = {
    ReplyTarget.REPLY_TARGET_FACTS: "facts",
    ReplyTarget.REPLY_TARGET_PLAN: "steps",
    ReplyTarget.REPLY_TARGET_REVISED_PLAN: "steps",
    ReplyTarget.REPLY_TARGET_PLAN_ORDER: "order",
    ReplyTarget.REPLY_TARGET_SELECTION: "choice",
    ReplyTarget.REPLY_TARGET_SCORE: "score",
    ReplyTarget.REPLY_TARGET_VERDICT: "passed",
}
"""What a schema of a reply must ask for, by where the reply goes."""
_ELSEWHERE = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
"""Where a schema may say it in a way that is not looked into."""

_Found = Iterator[tuple[GraphProblemKind.ValueType, str]]


@dataclass(frozen=True)
class Place:
    """A node as it stands in its graph."""

    graph: Graph
    node: GraphNode
    path: str
    """Its id, with the subgraphs that it is in."""
    is_double: bool
    """Whether a node before it has its id."""


def node_problems(place: Place, tools: Collection[str] | None) -> Iterator[GraphProblem]:
    """Tell what is wrong with a node, what is in its subgraph left out; `tools` as in `graph.validate`."""
    node = place.node
    operator = operator_of(place.graph, node.operator) if node.operator else None
    found = [*_of_name(place), *_of_numbers(node)]
    if node.operator and operator is None:
        found.append((_BAD_OPERATOR, f"there is no operator {node.operator!r}"))
    target = operator.target if operator is not None else ReplyTarget.REPLY_TARGET_UNSPECIFIED
    found += [(_BAD_NODE, text) for text in _of_schema(node.reply_schema_json, target)]
    if operator is not None and tools is not None:
        found += [(_UNDECLARED_TOOL, text) for text in _of_tools(node, operator, tools)]
    for kind, text in found:
        yield GraphProblem(kind=kind, node=place.path, message=f"node {place.path or 'without an id'}: {text}")


def _of_name(place: Place) -> _Found:
    if not _IDENTIFIER.fullmatch(place.node.id):
        yield _BAD_NODE, "its id must match [A-Za-z0-9_-]{1,64}"
    if place.is_double:
        yield _BAD_NODE, "its id is that of another node"
    if not place.node.operator and not place.node.HasField("subgraph"):
        yield _BAD_NODE, "it has neither an operator nor a subgraph"


def _of_numbers(node: GraphNode) -> _Found:
    if node.HasField("max_attempts") and not 1 <= node.max_attempts <= MAX_ATTEMPTS:
        yield _OUT_OF_RANGE, f"max_attempts is {node.max_attempts}, and must be 1 to {MAX_ATTEMPTS}"
    if node.HasField("max_turns") and not 1 <= node.max_turns <= MAX_TURNS:
        yield _OUT_OF_RANGE, f"max_turns is {node.max_turns}, and must be 1 to {MAX_TURNS}"
    if node.HasField("timeout") and duration_ns(node.timeout) <= 0:
        yield _OUT_OF_RANGE, "timeout must be more than nothing"
    if (size := len(node.reply_schema_json.encode())) > MAX_SCHEMA_BYTES:
        yield _OUT_OF_RANGE, f"reply_schema_json of {size} bytes exceeds the limit of {MAX_SCHEMA_BYTES} bytes"


def _of_tools(node: GraphNode, operator: Operator, tools: Collection[str]) -> Iterator[str]:
    for pattern in node.tools:
        if not any(fnmatchcase(name, pattern) for name in tools):
            yield f"the run has no tool {pattern!r}"
    if operator.tool and operator.tool not in tools:
        yield f"the run has no tool {operator.tool!r}, which operator {operator.name} is"
    if operator.tool_use in _MUST_CALL and not tools:
        yield f"operator {operator.name} calls tools, and the run has none"


def _of_schema(text: str, target: ReplyTarget.ValueType) -> Iterator[str]:
    """What is wrong with the schema of a reply; nothing when there is none, or it is too large to be looked at."""
    if not text or len(text.encode()) > MAX_SCHEMA_BYTES:
        return
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        yield "reply_schema_json is not a JSON object"
        return
    needed, properties = _NEEDED.get(target, ""), schema.get("properties")
    asked = properties if isinstance(properties, dict) else {}
    if needed and needed not in asked and not _ELSEWHERE & schema.keys():
        yield f"reply_schema_json does not ask for {needed!r}, which {ReplyTarget.Name(target)} needs"


def operator_problems(graph: Graph, path: str) -> Iterator[GraphProblem]:
    """Tell what is wrong with the operators of a graph itself."""
    where = path.removesuffix("/")
    if len(graph.operators) > MAX_OPERATORS:
        message = f"{len(graph.operators)} operators exceed the limit of {MAX_OPERATORS}"
        yield GraphProblem(kind=_OUT_OF_RANGE, node=where, message=message)
    names = Counter(operator.name for operator in graph.operators)
    for operator in graph.operators:
        found = list(_of_operator(operator))
        if names[operator.name] > 1:
            found.append((_BAD_OPERATOR, "its name is that of another operator"))
        for kind, text in found:
            yield GraphProblem(kind=kind, node=where, message=f"operator {operator.name or 'without a name'}: {text}")


def _of_operator(operator: Operator) -> _Found:
    if not _OPERATOR_NAME.fullmatch(operator.name):
        yield _BAD_OPERATOR, "its name must match [a-z0-9_]{1,64}"
    if not operator.prompt and not operator.tool:
        yield _BAD_OPERATOR, "it has neither a prompt nor a tool"
    is_known = operator.target in ReplyTarget.values()
    if not is_known or operator.target == ReplyTarget.REPLY_TARGET_UNSPECIFIED:
        yield _BAD_OPERATOR, "it has no target"
    if operator.tool_use not in ToolUse.values():
        yield _BAD_OPERATOR, f"there is no tool use {operator.tool_use}"
    if operator.tool and operator.tool_use != ToolUse.TOOL_USE_UNSPECIFIED:
        yield _BAD_OPERATOR, "it is a tool, and so calls none"
    if operator.HasField("max_turns") and not 1 <= operator.max_turns <= MAX_TURNS:
        yield _OUT_OF_RANGE, f"max_turns is {operator.max_turns}, and must be 1 to {MAX_TURNS}"
    for field, most in _TEXTS:
        size = len(getattr(operator, field).encode())
        if size > most:
            yield _OUT_OF_RANGE, f"{field} of {size} bytes exceeds the limit of {most} bytes"
    target = operator.target if is_known else ReplyTarget.REPLY_TARGET_UNSPECIFIED
    yield from ((_BAD_OPERATOR, text) for text in _of_schema(operator.reply_schema_json, target))
