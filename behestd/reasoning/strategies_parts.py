"""What strategies are made of: nodes, edges, parameters, and the recipe that holds them together. Pure.

Above: the families of strategies. Below: the contract. Everything is built anew, so that nobody's graph is another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

from google.protobuf.message import Message

from behest.v1.graph_pb2 import (
    Branch,
    BranchCondition,
    FanIn,
    FanInMode,
    FanOut,
    Graph,
    GraphEdge,
    GraphNode,
    Loop,
    Pipeline,
    Strategy,
    StrategyParameter,
    Termination,
)
from behestd.values import dataclass

SUCCESS = BranchCondition.BRANCH_CONDITION_SUCCESS
FAILURE = BranchCondition.BRANCH_CONDITION_FAILURE
ALL = FanInMode.FAN_IN_MODE_ALL
BEST = FanInMode.FAN_IN_MODE_BEST
PLAN_DONE = "plan_done >= plan_steps"

Numbers = Mapping[str, int]
"""The values of a strategy's parameters, all of them, each within its range."""


@dataclass(frozen=True)
class Recipe:
    """A strategy and how its graph is made. What `make` leaves out of the graph is filled in: see `graph_of`."""

    strategy: Strategy
    make: Callable[[Numbers], Graph]


def recipe(
    name: str, description: str, papers: str, parameters: Iterable[StrategyParameter], make: Callable[[Numbers], Graph]
) -> Recipe:
    """Make a recipe; the papers are cited behind the description."""
    return Recipe(Strategy(name=name, description=f"{description} {papers}", parameters=parameters), make)


def parameter(name: str, description: str, default: int, minimum: int, maximum: int) -> StrategyParameter:
    """Make a parameter, a whole number."""
    return StrategyParameter(name=name, description=description, default=str(default), minimum=minimum, maximum=maximum)


def parallelism() -> StrategyParameter:
    """Make the parameter that says how much goes on side by side."""
    return parameter("parallelism", "How many nodes are at work at once.", 8, 1, 64)


def graph(nodes: Iterable[GraphNode], edges: Iterable[GraphEdge], *, rounds: int = 1, at_once: int = 0) -> Graph:
    """Make a graph that takes so many rounds at most, and has so many nodes at work at once (0: as many as usual)."""
    return Graph(
        nodes=nodes,
        edges=edges,
        termination=Termination(max_iterations=rounds),
        max_parallel_nodes=at_once or None,
    )


def node(node_id: str, operator: str, prompt: str = "") -> GraphNode:
    """Make a node; without a prompt it has the operator's."""
    return GraphNode(id=node_id, operator=operator, prompt=prompt)


def chain(*names: str) -> list[GraphEdge]:
    """Make pipelines from each node to the next one."""
    return [_edge(source, target, pipeline=Pipeline()) for source, target in pairwise(names)]


def branch(source: str, target: str, condition: BranchCondition.ValueType) -> GraphEdge:
    """Make a branch."""
    return _edge(source, target, branch=Branch(condition=condition))


def again(source: str, target: str, rounds: int, until: str = "") -> list[GraphEdge]:
    """Make the loop that lets a part be gone through so often, the first time included; once needs no loop."""
    return [_edge(source, target, loop=Loop(max_iterations=rounds - 1, until=until))] if rounds > 1 else []


def fan_out(source: str, targets: Iterable[str], at_once: int) -> list[GraphEdge]:
    """Make the edges to nodes that go on side by side."""
    return [_edge(source, target, fan_out=FanOut(parallelism=at_once)) for target in targets]


def fan_in(sources: Iterable[str], target: str, mode: FanInMode.ValueType) -> list[GraphEdge]:
    """Make the edges that bring nodes together."""
    return [_edge(source, target, fan_in=FanIn(mode=mode)) for source in sources]


def _edge(source: str, target: str, **kind: Message) -> GraphEdge:
    # `from` is a word of Python, so it cannot be named as the others are.
    return GraphEdge(**{"from": source, "to": target, **kind})  # type: ignore[arg-type]  # one field of the kinds
