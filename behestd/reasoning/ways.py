"""The ways of a graph at one moment: which edges are taken, which lead nowhere, which are still open. Pure.

Above: `schedule`. Below: the values of `core`, and `expression`. An edge is open until its source has ended for good:
it does not go back, has won or lost the race that it is in, and the loops that the edge leads out of are over. So what
a node starts from is the same whoever is faster. From then on the edge stays as it is until its source begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum

from behest.v1.graph_pb2 import BranchCondition, FanInMode, Graph
from behest.v1.node_event_pb2 import NodeOutcome
from behestd.core.nodes import NodeRecord, NodeStatus, Scope
from behestd.core.shape import Edge, Shape, is_first
from behestd.core.task import TaskState
from behestd.reasoning.expression import Seen, read

MAX_ITERATIONS = 10
"""Rounds of a graph that says nothing about them."""

After = Callable[[int], TaskState]
"""The task as a visit left it."""
Score = Callable[[int], float | None]
"""How good a visit was judged to be; None: it was not."""

_ENDED = (NodeStatus.COMPLETED, NodeStatus.FAILED)


class State(IntEnum):
    """What is known of an edge, or of all that lead to a node."""

    OPEN = 1
    TAKEN = 2
    DEAD = 3


def is_fixed(graph: Graph) -> bool:
    """Whether the graph has a number of rounds that it takes whatever comes of them."""
    return graph.termination.HasField("fixed_iterations")


def rounds(graph: Graph) -> int:
    """How many rounds the graph takes at most."""
    termination = graph.termination
    if is_fixed(graph):
        return termination.fixed_iterations
    return termination.max_iterations if termination.HasField("max_iterations") else MAX_ITERATIONS


class Ways:
    """The ways of one graph, as the records of its nodes leave them."""

    def __init__(self, shape: Shape, scope: Scope, after: After, score: Score) -> None:
        self.shape = shape
        self.scope = scope
        self._nodes = scope.nodes
        self.after = after
        self._score = score
        self._back: dict[str, Edge | None] = {}
        self._winner: dict[str, str] = {}

    # --- back ---

    def back(self, name: str) -> Edge | None:
        """The edge that is gone back over from a node now; None when it is not left, or left forward."""
        if name not in self._back:
            edge = self._wish(name)
            self._back[name] = edge if edge is not None and not self._has_lost(name) else None
        return self._back[name]

    def _wish(self, name: str) -> Edge | None:
        """The edge that would be gone back over if the node were in no race."""
        backs, record = self.shape.back(name), self._nodes.get(name)
        if not backs or record is None or record.status not in _ENDED or self._is_followed(name):
            return None
        return next((edge for edge in backs if self._goes_back(edge, record)), None)

    def _goes_back(self, edge: Edge, record: NodeRecord) -> bool:
        taken = self.scope.taken.get(edge.place, 0)
        if edge.kind == "retry":
            return record.status is NodeStatus.FAILED and taken < edge.message.retry.max_attempts - 1
        if record.status is not NodeStatus.COMPLETED or taken >= edge.message.loop.max_iterations:
            return False
        if is_fixed(self.shape.graph) and self.is_last_round(record):
            return False
        until = edge.message.loop.until
        if not until:
            return is_fixed(self.shape.graph) or not self.after(record.visit).is_achieved
        return not self._holds(until, edge.source, record)

    def is_last_round(self, record: NodeRecord) -> bool:
        """Whether no round follows that of a visit."""
        return self.after(record.visit).iteration >= rounds(self.shape.graph)

    def _is_followed(self, name: str) -> bool:
        """Whether all that follow a node have gone on without it, so that it does not go back any more."""
        followers = self.shape.successors(name)
        return bool(followers) and all(other in self._nodes for other in followers)

    def _holds(self, expression: str, name: str, record: NodeRecord) -> bool:
        task = self.after(record.visit)
        attempts = 1 + sum(self.scope.taken.get(edge.place, 0) for edge in self.shape.back(name))
        return read(expression).holds(Seen(task, _outcome(record), self._score(record.visit), attempts))

    # --- races ---

    def _races(self, name: str) -> Iterator[str]:
        """The nodes whose racers a node is one of."""
        for edge in self.shape.entering(name):
            if edge.kind == "race" and self._status(edge.source) is NodeStatus.COMPLETED:
                yield edge.source

    def _racers(self, source: str) -> Iterator[str]:
        return (edge.target for edge in self.shape.leaving(source) if edge.kind == "race")

    def _won_by(self, source: str) -> str:
        """Who has won the race that begins at a node: the first in the order of the edges; empty: nobody yet."""
        if source not in self._winner:
            well = (name for name in self._racers(source) if self._is_well(name) and self._wish(name) is None)
            self._winner[source] = next(well, "")
        return self._winner[source]

    def _is_well(self, name: str) -> bool:
        record = self._nodes.get(name)
        return record is not None and record.status is NodeStatus.COMPLETED and not _is_amiss(record)

    def _has_lost(self, name: str) -> bool:
        return any(self._won_by(source) not in ("", name) for source in self._races(name))

    def _is_racing(self, name: str) -> bool:
        """Whether others may still win the race that a node has not."""
        return any(
            self._won_by(source) == "" and any(other != name and self._may_win(other) for other in self._racers(source))
            for source in self._races(name)
        )

    def _may_win(self, name: str) -> bool:
        return self._status(name) in (None, NodeStatus.RUNNING) or self._wish(name) is not None

    # --- edges ---

    def state(self, edge: Edge) -> State:
        """Whether a forward edge is taken."""
        record = self._nodes.get(edge.source)
        if record is None or record.status is NodeStatus.RUNNING:
            return State.OPEN
        if any(self._is_open(name) for name in self.shape.guards(edge)):
            return State.OPEN
        if record.status is NodeStatus.SKIPPED or self._has_lost(edge.source):
            return State.DEAD
        if self.back(edge.source) is not None or self._is_racing(edge.source):
            return State.OPEN
        return State.TAKEN if self._is_taken(edge, record) else State.DEAD

    def _is_open(self, name: str) -> bool:
        """Whether a node may still go back."""
        return self._status(name) in (None, NodeStatus.RUNNING) or self.back(name) is not None

    def _is_taken(self, edge: Edge, record: NodeRecord) -> bool:
        if edge.kind != "branch":
            return record.status is NodeStatus.COMPLETED
        branch = edge.message.branch
        match branch.condition:
            case BranchCondition.BRANCH_CONDITION_SUCCESS:
                return record.status is NodeStatus.COMPLETED and not _is_amiss(record)
            case BranchCondition.BRANCH_CONDITION_FAILURE:
                return record.status is NodeStatus.FAILED or _is_amiss(record)
            case BranchCondition.BRANCH_CONDITION_GOAL_ACHIEVED:
                return self.after(record.visit).is_achieved
            case BranchCondition.BRANCH_CONDITION_GOAL_NOT_ACHIEVED:
                return not self.after(record.visit).is_achieved
            case _:
                return self._holds(branch.expression, edge.source, record)

    # --- nodes ---

    def _status(self, name: str) -> NodeStatus | None:
        record = self._nodes.get(name)
        return record.status if record is not None else None

    def may_be_stopped(self, name: str) -> bool:
        """Whether a node has not ended."""
        return self._status(name) in (None, NodeStatus.RUNNING)

    def fans(self, name: str) -> list[str]:
        """The nodes that a node follows beside others."""
        return [edge.source for edge in self.shape.entering(name) if edge.kind == "fan_out"]

    def width(self, source: str) -> int:
        """How many of the nodes that follow one beside each other are at work at once."""
        widths = (edge.message.fan_out.parallelism for edge in self.shape.leaving(source) if edge.kind == "fan_out")
        return next(widths)

    def entry(self, name: str) -> tuple[State, tuple[int, ...]]:
        """Whether a node without a record begins, and with the visits whose tasks it starts from."""
        edges = self.shape.entering(name)
        if not edges:
            return State.TAKEN, ()
        needs_all = not self.shape.takes_first(name)
        if needs_all and any(self.may_be_stopped(other) for other in self.shape.predecessors(name)):
            return State.OPEN, ()
        joined = [edge for edge in edges if edge.kind == "fan_in"]
        states = {edge.place: self.state(edge) for edge in edges}
        chosen = self._chosen(joined, states)
        single = [states[edge.place] for edge in edges if edge.kind != "fan_in"]
        if State.OPEN in single or (joined and chosen is None):
            return State.OPEN, ()
        kept = {edge.place for edge in chosen or ()}
        taken = [
            edge
            for edge in edges
            if edge.place in kept or (edge.kind != "fan_in" and states[edge.place] == State.TAKEN)
        ]
        inputs = tuple(dict.fromkeys(self._nodes[edge.source].visit for edge in taken))
        return (State.TAKEN if taken else State.DEAD), inputs

    def _chosen(self, joined: Sequence[Edge], states: dict[int, State]) -> list[Edge] | None:
        """The FanIn edges whose sources' tasks are brought together; None: it is not known yet."""
        taken = [edge for edge in joined if states[edge.place] is State.TAKEN]
        if joined and is_first(joined[0]) and taken:
            return taken[:1]
        if any(states[edge.place] is State.OPEN for edge in joined):
            return None
        if taken and joined[0].message.fan_in.mode == FanInMode.FAN_IN_MODE_BEST:
            return [max(taken, key=self._merit)]
        return taken

    def _merit(self, edge: Edge) -> float:
        score = self._score(self._nodes[edge.source].visit)
        return score if score is not None else -1.0

    # --- what ends of nodes mean ---

    def is_unhandled(self, name: str) -> bool:
        """Whether a node has failed and no edge says what follows."""
        record = self._nodes[name]
        if record.status is not NodeStatus.FAILED or self.back(name) is not None:
            return False
        leaving = self.shape.leaving(name)
        if any(edge.kind == "fan_in" or (edge.kind == "branch" and self._is_taken(edge, record)) for edge in leaving):
            return False
        return not self._has_lost(name) and not self._is_racing(name)

    def late(self, name: str) -> list[str]:
        """The nodes that are stopped or left out since a node has ended as it did: others of its race, and of FIRST."""
        found: list[str] = []
        if self._is_well(name):
            won = [source for source in self._races(name) if self._won_by(source) == name]
            found += [other for source in won for other in self._racers(source) if other != name]
        for edge in self.shape.leaving(name):
            if is_first(edge) and edge.target not in self._nodes and self.is_first_decided(edge.target):
                found += [other.source for other in self.shape.entering(edge.target) if is_first(other)]
        return [other for other in found if self.may_be_stopped(other)]

    def is_first_decided(self, name: str) -> bool:
        """Whether a node that begins with the first of several has it."""
        return any(is_first(edge) and self.state(edge) is State.TAKEN for edge in self.shape.entering(name))

    def ends(self) -> tuple[int, ...]:
        """The visits at the ends of the ways that were taken, in the order of the graph: nothing went on from them."""
        names = sorted(self._nodes, key=self.shape.order.__getitem__)
        return tuple(self._nodes[name].visit for name in names if self._is_end(name))

    def has_answer(self) -> bool:
        """Whether the ways that were taken have led to an answer."""
        return bool(self.scope.answer) and any(self.after(visit).is_achieved for visit in self.ends())

    def _is_end(self, name: str) -> bool:
        if self._status(name) is not NodeStatus.COMPLETED or self._has_lost(name):
            return False
        return not any(not edge.is_back and self.state(edge) is State.TAKEN for edge in self.shape.leaving(name))

    def dead_end(self) -> str:
        """The first node, in the order of the graph, for whose failure the graph came to nothing; empty: none.

        Nobody else was waited for who did better: all that would have gone on with it were left out.
        """
        failed = (name for name, record in self._nodes.items() if record.status is NodeStatus.FAILED)
        return next((name for name in sorted(failed, key=self.shape.order.__getitem__) if self._is_dead_end(name)), "")

    def _is_dead_end(self, name: str) -> bool:
        joined = [edge for edge in self.shape.leaving(name) if edge.kind == "fan_in"]
        left_out = all(self._status(edge.target) is NodeStatus.SKIPPED for edge in joined)
        followed = any(not edge.is_back and self.state(edge) is State.TAKEN for edge in self.shape.leaving(name))
        return bool(joined) and left_out and not followed and not self._has_lost(name)


def _is_amiss(record: NodeRecord) -> bool:
    return record.outcome == NodeOutcome.NODE_OUTCOME_FAILURE


def _outcome(record: NodeRecord) -> str:
    if record.status is NodeStatus.FAILED:
        return "failed"
    return "failure" if _is_amiss(record) else "success"
