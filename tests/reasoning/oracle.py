"""What becomes of visits in made-up graphs, and what single edges say: told once for all who play them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from behest.v1.graph_pb2 import BranchCondition, Graph, GraphEdge

Key = tuple[str, int]
"""A visit: the node, with the visits of the subgraphs that it is in, and how often it was visited: ("inner#2/a", 1)."""


@dataclass
class Done:
    """The latest visit of a node, ended: "success", "failure" or "failed"; "skipped" when there was none."""

    outcome: str
    score: float = 0.0
    key: Key = ("", 0)
    steps: frozenset[Key] = frozenset()
    """The visits that its task went through, itself included."""
    answers: frozenset[Key] = frozenset()
    attempts: int = 1
    round: int = 1


@dataclass
class Oracle:
    """Says what becomes of a visit, always the same, whoever asks when."""

    seed: int
    failed: float = 0.1
    failure: float = 0.25

    def __call__(self, path: str, count: int) -> Done:
        drawn = Random(f"{self.seed} {path} {count}")
        chance = drawn.random()
        outcome = "failed" if chance < self.failed else "failure" if chance < self.failed + self.failure else "success"
        return Done(outcome, drawn.randrange(5) / 4)


EXPRESSIONS: dict[str, Callable[[Done], bool]] = {
    "steps < 5": lambda done: len(done.steps) < 5,
    "outcome != 'failed' and score >= 0.5": lambda done: done.outcome != "failed" and done.score >= 0.5,
    "outcome == 'failed' or not goal_achieved": lambda done: done.outcome == "failed" or not done.answers,
    "attempts > 1 or steps >= 8": lambda done: done.attempts > 1 or len(done.steps) >= 8,
}
"""Expressions, each with what it means."""


class Way(NamedTuple):
    """An edge, taken apart; `mode` is that of FanIn edges."""

    place: int
    source: str
    target: str
    kind: str
    says: GraphEdge
    mode: int


def ways(graph: Graph) -> tuple[list[Way], list[Way]]:
    """The edges of a graph: those that lead forward, and those that go back."""
    every = [
        Way(place, getattr(edge, "from"), edge.to, edge.WhichOneof("kind") or "", edge, edge.fan_in.mode)
        for place, edge in enumerate(graph.edges)
    ]
    back = [way for way in every if way.kind in ("loop", "retry")]
    return [way for way in every if way not in back], back


def wishes(way: Way, done: Done, taken: Mapping[int, int], is_fixed: bool) -> bool:
    """Whether a Loop or Retry edge is gone back over from a node that ended so, when nothing else is in its way."""
    count = taken.get(way.place, 0)
    if way.kind == "retry":
        return done.outcome == "failed" and count + 1 < way.says.retry.max_attempts
    until = way.says.loop.until
    is_enough = EXPRESSIONS[until](done) if until else bool(done.answers) and not is_fixed
    return done.outcome in ("success", "failure") and not is_enough and count < way.says.loop.max_iterations


def holds(edge: GraphEdge, done: Done) -> bool:
    """Whether an edge is taken from a node that ended so, when nothing else is in its way."""
    if edge.WhichOneof("kind") != "branch":
        return done.outcome != "failed"
    match edge.branch.condition:
        case BranchCondition.BRANCH_CONDITION_SUCCESS:
            return done.outcome == "success"
        case BranchCondition.BRANCH_CONDITION_FAILURE:
            return done.outcome != "success"
        case BranchCondition.BRANCH_CONDITION_GOAL_ACHIEVED:
            return bool(done.answers)
        case BranchCondition.BRANCH_CONDITION_GOAL_NOT_ACHIEVED:
            return not done.answers
        case _:
            return EXPRESSIONS[edge.branch.expression](done)
