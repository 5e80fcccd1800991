"""Graphs made up by hypothesis, and short ways to write them by hand."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import strategies as st

from behest.v1.graph_pb2 import BranchCondition, FanInMode, Graph, GraphEdge, GraphNode
from behestd.reasoning.graph import validate
from tests.reasoning.oracle import EXPRESSIONS

CONDITIONS = {name.removeprefix("BRANCH_CONDITION_").lower(): number for name, number in BranchCondition.items()}
MODES = {name.removeprefix("FAN_IN_MODE_").lower(): number for name, number in FanInMode.items()}


def edge(source: str, target: str, kind: str = "pipeline", **says: Any) -> GraphEdge:
    """An edge: `edge("a", "b", "branch", condition="success")`."""
    values = dict(says)
    if kind == "branch":
        values["condition"] = CONDITIONS[values.get("condition", "expression")]
    if kind == "fan_in":
        values["mode"] = MODES[values.get("mode", "all")]
    made = GraphEdge(**{"from": source}, to=target)
    getattr(made, kind).SetInParent()
    for name, value in values.items():
        setattr(getattr(made, kind), name, value)
    return made


def graph(nodes: str, *edges: GraphEdge, **fields: Any) -> Graph:
    """A graph: `graph("a b z:answer", edge("a", "b"))`; nodes without an operator reason."""
    pairs = [word.partition(":") for word in nodes.split()]
    made = [GraphNode(id=name, operator=operator or "reason") for name, _, operator in pairs]
    return Graph(nodes=made, edges=edges, **fields)


@st.composite
def graphs(draw: st.DrawFn, *, is_fair: bool = False, depth: int = 1) -> Graph:
    """Valid graphs; `is_fair`: without what depends on who is faster."""
    made = made_up(Random(draw(st.integers(0, 2**48))), is_fair=is_fair, depth=depth)
    return made


def made_up(drawn: Random, *, is_fair: bool, depth: int) -> Graph:
    """A graph with ways between nodes as they come, less what makes it invalid."""
    made = Graph()
    count = drawn.randint(2, 8)
    for place in range(count):
        node = made.nodes.add(id=f"n{place}")
        if depth and 0 < place < count - 1 and drawn.random() < 0.15:
            node.subgraph.CopyFrom(made_up(drawn, is_fair=is_fair, depth=depth - 1))
        else:
            node.operator = "answer" if place == count - 1 or drawn.random() < 0.15 else "reason"
    widths = [drawn.randint(1, 3) for _ in range(count)]
    modes = [drawn.choice([2, 3] if is_fair else [1, 2, 3]) for _ in range(count)]
    kinds = [drawn.choice(_kinds(is_fair)) for _ in range(count)]
    for target in range(1, count):
        sources = drawn.sample(range(target), min(target, drawn.choice([1, 1, 1, 2, 2, 3])))
        joins = len(sources) > 1 and drawn.random() < 0.6
        for source in sorted(sources):
            kind = "fan_in" if joins and drawn.random() < 0.85 else kinds[source]
            if kind == "branch" or (kind == "pipeline" and drawn.random() < 0.3):
                made.edges.append(_branch(drawn, source, target))
            elif kind == "fan_out":
                made.edges.append(edge(f"n{source}", f"n{target}", "fan_out", parallelism=widths[source]))
            elif kind == "fan_in":
                made.edges.append(
                    edge(f"n{source}", f"n{target}", "fan_in", mode=FanInMode.Name(modes[target])[12:].lower())
                )
            else:
                made.edges.append(edge(f"n{source}", f"n{target}", kind))
    for _ in range(drawn.choice([0, 1, 1, 2, 3])):
        source = drawn.randrange(count)
        target = source if drawn.random() < 0.3 else drawn.randint(0, source)
        if drawn.random() < 0.5:
            made.edges.append(edge(f"n{source}", f"n{target}", "retry", max_attempts=drawn.randint(2, 3)))
        else:
            until = drawn.choice(["", *EXPRESSIONS])
            loop = edge(f"n{source}", f"n{target}", "loop", max_iterations=drawn.randint(1, 3), until=until)
            made.edges.append(loop)
    _end(drawn, made, is_fair=is_fair)
    return _mended(made)


def _kinds(is_fair: bool) -> Sequence[str]:
    return ["pipeline", "pipeline", "branch", "branch", "fan_out"] + ([] if is_fair else ["race", "race"])


def _branch(drawn: Random, source: int, target: int) -> GraphEdge:
    condition = drawn.choice([name for name in CONDITIONS if name != "unspecified"])
    expression = drawn.choice(list(EXPRESSIONS)) if condition == "expression" else ""
    return edge(f"n{source}", f"n{target}", "branch", condition=condition, expression=expression)


def _end(drawn: Random, made: Graph, *, is_fair: bool) -> None:
    """Say when it ends."""
    if is_fair or drawn.random() < 0.4:
        made.termination.on_goal_achieved = False
    if drawn.random() < 0.3:
        made.loop_start = f"n{drawn.randrange(len(made.nodes))}"
    if drawn.random() < 0.3:
        made.termination.fixed_iterations = drawn.randint(1, 3)
    else:
        made.termination.max_iterations = drawn.randint(1, 6)


def _mended(made: Graph) -> Graph:
    """The graph without the ways back that make it invalid, and with plain edges for others that do."""
    while problems := validate(made):
        bad = {problem.edge for problem in problems}
        assert 0 not in bad or made.loop_start, problems
        if 0 in bad:
            made.loop_start = ""
            continue
        kept = list(made.edges)
        for place in sorted(bad, reverse=True):
            one = kept.pop(place - 1)
            if one.WhichOneof("kind") not in ("loop", "retry"):
                kept.insert(place - 1, edge(getattr(one, "from"), one.to))
        del made.edges[:]
        made.edges.extend(kept)
    return made
