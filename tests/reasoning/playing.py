"""Plays a graph on the fold of nodes and the scheduler alone: no models, no runs; visits end as an oracle says.

What is played is held against what every graph must keep: room, parallelism, and that the moves are valid together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from behest.v1.definition_pb2 import RunDefinition
from behest.v1.graph_pb2 import Graph
from behest.v1.node_event_pb2 import (
    NodeCompleted,
    NodeFailed,
    NodeOutcome,
    NodeSkipped,
    NodeSkipReason,
    NodeStarted,
)
from behest.v1.run_event_pb2 import RunCreated
from behest.v1.task_pb2 import Goal, StepStatus, Task, TaskArtifact, TaskArtifactKind, TaskDelta, TaskStep
from behestd.core.nodes import FOLDS, NodeStatus, Scope, begin
from behestd.core.task import TaskState
from behestd.reasoning.schedule import Answered, Begin, Completed, Ending, Failed, Move, ending, moves
from tests.reasoning.oracle import Done, Key, Oracle

Say = Callable[[str, int], Done]
Pick = Callable[[Sequence[int]], int]
"""Which of the visits at work ends next."""
OVER = NodeSkipReason.NODE_SKIP_REASON_OVER
MOST_EVENTS = 20_000


class Play:
    """One run of a graph, played to its end."""

    def __init__(self, graph: Graph, say: Say | None = None, *, room: int = 16) -> None:
        self.graph = graph
        self.say = say or Oracle(0, failed=0, failure=0)
        self.room = room
        made = begin(RunDefinition(graph=graph), RunCreated(task=Task(goal=Goal(description="find out"))))
        assert made is not None
        self.nodes = made
        self.events: list[Any] = []
        self.keys: dict[int, Key] = {}
        self.counts: Counter[str] = Counter()
        self.end: Ending | None = None
        self.most_at_work = 0
        self.looks = 0

    # --- playing ---

    def play(self, pick: Pick = min) -> Play:
        """Play to the end."""
        self.follow()
        while self.end is None:
            assert self.nodes.lanes, "something is at work until the end"
            assert len(self.events) < MOST_EVENTS, "the graph ends"
            self.finish(pick(tuple(self.nodes.lanes)))
            self.follow()
        return self

    def finish(self, number: int) -> None:
        """End a visit as the oracle says."""
        path, count = self.keys[number]
        said = self.say(path, count)
        name = self.nodes.visit(number).started.operator
        answers = name == "answer" and said.outcome != "failed"
        artifact = TaskArtifact(kind=TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER, content=f"{path} {count}")
        self._leave(number, said, [artifact] if answers else [])

    def follow(self) -> None:
        """Do all that follows."""
        while self.end is None and any(self._follow_in(number) for number in sorted(self.nodes.scopes, reverse=True)):
            pass

    def _follow_in(self, number: int) -> bool:
        scope = self.nodes.scopes.get(number)
        if scope is None or self.end is not None:
            return False
        shape, nodes = self.nodes.shape_of(number), self.nodes
        early = ending(shape, scope, nodes.after, nodes.score) if scope.answer else None
        found = [] if early else moves(shape, scope, nodes.after, nodes.score, self.room - len(nodes.lanes))
        self._check(scope, found)
        for move in found:
            self._take(self.nodes.scopes[number], move)
        if found:
            return True
        end = early or ending(shape, scope, nodes.after, nodes.score)
        if end is None:
            assert scope.at_work or len(nodes.lanes) >= self.room, f"the graph {scope.path or '.'} is stuck"
            return False
        self._end(scope, end)
        return True

    def _check(self, scope: Scope, found: list[Move]) -> None:
        self.looks += 1
        begun = [move for move in found if isinstance(move, Begin)]
        stopped = {move.node for move in found if not isinstance(move, Begin) and move.visit}
        assert len({move.node for move in found}) == len(found), "a node moves once"
        assert len(begun) <= max(self.room - len(self.nodes.lanes), 0), "there is room"
        for move in found:
            record = scope.nodes.get(move.node)
            if isinstance(move, Begin):
                assert record is None or move.node in move.again, "what begins has not begun"
                assert all(self.nodes.visit(one).status != NodeStatus.RUNNING for one in move.inputs)
                assert set(move.again) & set(scope.at_work) == stopped, "what begins anew is not at work"
            else:
                visit = record.visit if record is not None and record.status is NodeStatus.RUNNING else 0
                assert move.visit == visit and (record is None or visit), "what is left out has not ended"
        shape = self.nodes.shape_of(scope.visit)
        at_work = Counter(
            edge.source
            for name in (*scope.at_work, *(move.node for move in begun))
            for edge in shape.entering(name)
            if edge.kind == "fan_out"
        )
        for source, count in at_work.items():
            width = next(edge.message.fan_out.parallelism for edge in shape.leaving(source) if edge.kind == "fan_out")
            assert count <= width, "no more are at work beside each other than the FanOut says"

    def _take(self, scope: Scope, move: Move) -> None:
        path = scope.path + move.node
        shape = self.nodes.shape.at(scope.path)
        if not isinstance(move, Begin):
            if move.visit:
                self._stop(move.visit, move.reason)
            else:
                self.note(NodeSkipped(node=path, scope=scope.visit, reason=move.reason))
            return
        number = len(self.nodes.visits) + 1
        within = "{}#{}/".format(*self.keys[scope.visit]) if scope.visit else ""
        self.counts[within + move.node] += 1
        self.keys[number] = (within + move.node, self.counts[within + move.node])
        self.note(
            NodeStarted(
                visit=number,
                node=path,
                scope=scope.visit,
                inputs=move.inputs,
                edge=move.edge,
                again=move.again,
                iteration=move.iteration,
                operator=shape.nodes[move.node].operator,
            )
        )
        self.most_at_work = max(self.most_at_work, len(self.nodes.lanes))

    def _end(self, scope: Scope, end: Ending) -> None:
        for number in self._at_work(scope.visit):
            self._stop(number, OVER)
        if not scope.visit:
            self.end = end
        else:
            self._leave(scope.visit, Done("failed" if isinstance(end, Failed) else "success"), [])

    def _at_work(self, scope: int) -> list[int]:
        numbers = {*self.nodes.lanes, *(number for number in self.nodes.scopes if number)}
        return [number for number in sorted(numbers) if self.nodes.visit(number).started.scope == scope]

    def _stop(self, number: int, reason: Any) -> None:
        for inner in self._at_work(number):
            self._stop(inner, OVER)
        started = self.nodes.visit(number).started
        self.note(NodeSkipped(visit=number, node=started.node, scope=started.scope, reason=reason))

    def _leave(self, number: int, said: Done, artifacts: list[TaskArtifact]) -> None:
        (path, count), node = self.keys[number], self.nodes.visit(number).started.node
        status = StepStatus.STEP_STATUS_FAILED if said.outcome == "failed" else StepStatus.STEP_STATUS_COMPLETED
        delta = TaskDelta(steps=[TaskStep(output=f"{path} {count}", status=status)], artifacts=artifacts)
        if said.outcome == "failed":
            self.note(NodeFailed(visit=number, node=node, delta=delta, reason="TOOL_FAILED"))
            return
        is_well = said.outcome == "success"
        outcome = NodeOutcome.NODE_OUTCOME_SUCCESS if is_well else NodeOutcome.NODE_OUTCOME_FAILURE
        self.note(NodeCompleted(visit=number, node=node, delta=delta, outcome=outcome, score=said.score))

    def note(self, event: Any) -> None:
        """Fold an event."""
        kind = {NodeStarted: "started", NodeCompleted: "completed", NodeFailed: "failed", NodeSkipped: "skipped"}
        self.nodes = FOLDS[f"node_{kind[type(event)]}"](self.nodes, event, len(self.events) + 1)
        self.events.append(event)

    # --- what came of it ---

    @property
    def reason(self) -> str:
        """How it ended: "answered", "completed" or a reason."""
        if isinstance(self.end, Failed):
            return self.end.reason
        return "answered" if isinstance(self.end, Answered) else "completed"

    @property
    def visits(self) -> list[tuple[Key, tuple[Key, ...], int]]:
        """The visits, each with those whose tasks it began with, and its round."""
        return [
            (self.keys[visit.number], tuple(self.keys[one] for one in visit.started.inputs), visit.started.iteration)
            for visit in self.nodes.visits
        ]

    @property
    def steps(self) -> frozenset[Key]:
        """What the task went through that it ended with."""
        if isinstance(self.end, Answered):
            return went_through(self.nodes.after(self.end.visit))
        if isinstance(self.end, Completed):
            return frozenset[Key]().union(*(went_through(self.nodes.after(one)) for one in self.end.visits))
        return frozenset()

    @property
    def story(self) -> str:
        """The visits in short: nodes in the order in which they began."""
        return " ".join(visit.started.node for visit in self.nodes.visits)

    def fate(self, name: str) -> str:
        """What became of a node of the outermost graph in the end; "pending" for nothing."""
        record = self.nodes.scopes[0].nodes.get(name)
        return record.status.name.lower() if record is not None else "pending"


def went_through(task: TaskState) -> frozenset[Key]:
    """The visits that a task went through."""
    pairs = (step.output.rpartition(" ") for step in task.steps)
    return frozenset((path, int(count)) for path, _, count in pairs)
