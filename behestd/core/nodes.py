"""What became of the nodes of a run's graph: visits, scopes and lanes, folded from the events of nodes.

Above: `run`, whose table calls the fold; `lanes`, which looks at a lane as at a run; the room `reasoning`, which
decides what follows. Below: `shape` and `task`. Decisions are in the events, so the fold asks nothing of the scheduler:
it puts together what each visit starts from and what it leaves, and keeps the border at which the graph goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from enum import IntEnum

from behest.v1.definition_pb2 import RunDefinition
from behest.v1.message_pb2 import Message
from behest.v1.node_event_pb2 import NodeCompleted, NodeFailed, NodeSkipped, NodeStarted
from behest.v1.run_event_pb2 import RunCreated
from behest.v1.task_pb2 import Fact, Provenance, TaskArtifactKind, TaskDelta
from behest.v1.tool_pb2 import Tool
from behestd.core.shape import Shape
from behestd.core.state import Attempt, Call, Spend, Step, Turns, replace
from behestd.core.task import TaskState, extended, given, merged
from behestd.core.times import nanoseconds, timestamp
from behestd.values import dataclass


class NodeStatus(IntEnum):
    """Where a node is; one without a record is pending."""

    RUNNING = 1
    COMPLETED = 2
    FAILED = 3
    SKIPPED = 4


@dataclass(frozen=True)
class NodeRecord:
    """The latest visit of a node, since it last began anew."""

    status: NodeStatus
    visit: int
    """0: it was skipped before it began."""
    outcome: int = 0
    """A NodeOutcome."""


@dataclass(frozen=True)
class Scope:
    """How far one graph is: the run's own, or that of a subgraph's visit."""

    visit: int
    """Of the node that is the subgraph. 0: the run's own graph."""
    path: str
    """What stands before the ids of its nodes: "" or "inner/"."""
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    taken: Mapping[int, int] = field(default_factory=dict)
    """How often Loop and Retry edges, by their place from 1, were gone back over since they began anew."""
    iteration: int = 1
    """The latest round that a node of it is in."""
    border: tuple[str, ...] = ()
    """Nodes without a record that follow one that has ended, in the order of the graph; at first the start."""
    answer: int = 0
    """The first visit that gave an answer. 0: none yet."""
    at_work: tuple[str, ...] = ()
    """The nodes that are at work, in the order in which they began."""
    open: tuple[str, ...] = ()
    """The nodes that failed, and the pivots that completed, until all that follows them has begun or is left out."""


@dataclass(frozen=True)
class Lane:
    """The conversation of a visit: what a run without a graph has one of."""

    visit: int
    step: Step = Step()
    transcript: tuple[Message, ...] = ()
    """Answers, calls and results. What the model was asked is composed from the visit's task."""
    turns: Turns = Turns()


@dataclass(frozen=True)
class Visit:
    """One visit of a node."""

    number: int
    started: NodeStarted
    task: TaskState
    """What it starts from."""
    start_ns: int
    status: NodeStatus = NodeStatus.RUNNING
    outcome: int = 0
    score: float | None = None
    after: TaskState | None = None
    """The task as it leaves it. None: not yet."""
    delta: TaskDelta | None = None
    end_ns: int = 0
    spend: Spend = Spend()
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Nodes:
    """What became of the nodes so far."""

    shape: Shape = field(compare=False)
    task: TaskState
    """What the graph starts from."""
    scopes: Mapping[int, Scope]
    """The graphs that are at work, by the visits of the nodes that they are; the run's own is 0."""
    visits: tuple[Visit, ...] = ()
    """All of them; the visit with number N is at N - 1."""
    lanes: Mapping[int, Lane] = field(default_factory=dict)
    """The conversations of the visits that are at work, by their numbers, in the order in which they began."""
    skipped: tuple[NodeSkipped, ...] = ()
    """The nodes that were left out before they began."""
    tools: Mapping[str, Tool] = field(default_factory=dict)
    """The run's tools, by name."""
    said: tuple[Fact, ...] = ()
    """What was said to the run; nodes that begin later know it."""

    def visit(self, number: int) -> Visit:
        """A visit by its number."""
        return self.visits[number - 1]

    def after(self, number: int) -> TaskState:
        """The task as a visit left it, or found it when it left nothing."""
        visit = self.visits[number - 1]
        return visit.after or visit.task

    def score(self, number: int) -> float | None:
        """How good a visit was judged to be."""
        return self.visits[number - 1].score

    def task_of(self, started: NodeStarted) -> TaskState:
        """What a visit starts from."""
        task = replace(_start_of(self, started), iteration=started.iteration)
        new = tuple(fact for fact in self.said if fact not in task.facts)
        return replace(task, facts=task.facts + new) if new else task

    def shape_of(self, scope: int) -> Shape:
        """The graph of a scope."""
        return self.shape.at(self.scopes[scope].path)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls of all lanes, in the order of their visits."""
        return tuple(call for lane in self.lanes.values() for call in lane.step.calls)

    @property
    def attempts(self) -> tuple[tuple[int, Attempt], ...]:
        """The open model attempts of all lanes, each with the number of its step."""
        return tuple((lane.step.number, lane.step.open) for lane in self.lanes.values() if lane.step.open is not None)

    def each_step(self, change: Callable[[Step], Step]) -> Nodes:
        """The same with the open step of each lane changed."""
        lanes = {number: replace(lane, step=change(lane.step)) for number, lane in self.lanes.items()}
        return replace(self, lanes=lanes)

    def within(self, visit: int) -> Iterable[int]:
        """A visit and those of the subgraphs that it is in, innermost first."""
        while visit:
            yield visit
            visit = self.visits[visit - 1].started.scope


def begin(definition: RunDefinition, created: RunCreated) -> Nodes | None:
    """What a run begins with; None for a run without a graph. A fork goes on from the nodes of its source."""
    if not definition.HasField("graph"):
        return None
    shape = Shape(definition.graph)
    tools = {tool.name: tool for tool in definition.tools}
    nodes = Nodes(shape, given(created.task), {0: Scope(0, "", border=(shape.start,))}, tools=tools)
    for event in created.forked_from.nodes:
        kind = event.WhichOneof("payload")
        if kind is not None:
            nodes = FOLDS[f"node_{kind}"](nodes, getattr(event, kind), nanoseconds(event.time))
    # Steps were counted in the source: those of the fork begin anew.
    return nodes.each_step(lambda step: replace(step, number=0))


def heard(nodes: Nodes, message: Message) -> Nodes:
    """Somebody says something to the run."""
    text = "".join(part.text.text for part in message.parts)
    return replace(nodes, said=(*nodes.said, Fact(text=text))) if text else nodes


def closed(nodes: Nodes, now_ns: int) -> Nodes:
    """The run has ended: what was at work has been stopped."""
    visits = tuple(
        replace(visit, status=NodeStatus.SKIPPED, end_ns=now_ns) if visit.status is NodeStatus.RUNNING else visit
        for visit in nodes.visits
    )
    return replace(nodes, visits=visits)


# --- one function a kind of event ---


def started(nodes: Nodes, payload: NodeStarted, now_ns: int) -> Nodes:
    """A visit begins, with a lane of its own or, for a subgraph, a scope."""
    scope = nodes.scopes[payload.scope]
    shape = nodes.shape.at(scope.path)
    name = payload.node[len(scope.path) :]
    task = nodes.task_of(payload)
    if payload.again:
        scope = _anew(scope, shape, payload)
    scope = replace(
        scope,
        nodes={**scope.nodes, name: NodeRecord(NodeStatus.RUNNING, payload.visit)},
        border=tuple(other for other in scope.border if other != name),
        iteration=max(scope.iteration, payload.iteration),
        at_work=(*scope.at_work, name),
    )
    scope = _settled(scope, shape)
    scopes = {**nodes.scopes, scope.visit: scope}
    lanes = nodes.lanes
    if name in shape.inner:
        inner = shape.inner[name]
        scopes[payload.visit] = Scope(payload.visit, inner.path, border=(inner.start,))
    else:
        lanes = {**lanes, payload.visit: Lane(payload.visit, _first_step(nodes, payload))}
    visit = Visit(payload.visit, payload, task, now_ns)
    return replace(nodes, scopes=scopes, lanes=lanes, visits=(*nodes.visits, visit))


def _start_of(nodes: Nodes, payload: NodeStarted) -> TaskState:
    if payload.inputs:
        return merged([nodes.after(number) for number in payload.inputs])
    if not payload.scope:
        return nodes.task
    task = nodes.visit(payload.scope).task
    kept = tuple(artifact for artifact in task.artifacts if artifact.kind != TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER)
    return replace(task, artifacts=kept)


def _first_step(nodes: Nodes, payload: NodeStarted) -> Step:
    """The step that a lane begins with: the call of the tool that does the work, or none yet."""
    if not payload.HasField("call"):
        return Step()
    call = Call(payload.call, nodes.tools.get(payload.call.name))
    return Step(number=payload.step, answered=True, calls=(call,))


def _anew(scope: Scope, shape: Shape, payload: NodeStarted) -> Scope:
    """The scope when some of its nodes begin anew, over a back edge or from the start of the graph's loop."""
    again = frozenset(payload.again)
    records = {name: record for name, record in scope.nodes.items() if name not in again}
    taken = {
        place: count
        for place, count in scope.taken.items()
        if not {shape.edges[place - 1].source, shape.edges[place - 1].target} <= again
    }
    if payload.edge:
        taken[payload.edge] = scope.taken.get(payload.edge, 0) + 1
    border = {name for name in scope.border if name not in again}
    for name in again:
        if any(edge.source in records and is_over(records[edge.source]) for edge in shape.entering(name)):
            border.add(name)
    ordered = tuple(sorted(border, key=shape.order.__getitem__))
    still_open = tuple(name for name in scope.open if name not in again)
    return replace(scope, nodes=records, taken=taken, border=ordered, open=still_open)


def is_over(record: NodeRecord) -> bool:
    """Whether a node has ended, one way or another."""
    return record.status is not NodeStatus.RUNNING


def completed(nodes: Nodes, payload: NodeCompleted, now_ns: int) -> Nodes:
    """A visit ended well."""
    score = payload.score if payload.HasField("score") else None
    record = NodeRecord(NodeStatus.COMPLETED, payload.visit, payload.outcome)
    return _ended(nodes, record, payload, now_ns, outcome=payload.outcome, score=score)


def failed(nodes: Nodes, payload: NodeFailed, now_ns: int) -> Nodes:
    """A visit came to nothing."""
    record = NodeRecord(NodeStatus.FAILED, payload.visit)
    return _ended(nodes, record, payload, now_ns, reason=payload.reason, message=payload.message)


def _ended(
    nodes: Nodes, record: NodeRecord, payload: NodeCompleted | NodeFailed, now_ns: int, **facts: object
) -> Nodes:
    visit = nodes.visit(record.visit)
    score = payload.score if isinstance(payload, NodeCompleted) and payload.HasField("score") else None
    source = Provenance(
        node=payload.node, visit=payload.visit, time=timestamp(now_ns), usage=payload.usage, score=score
    )
    after = extended(visit.task, payload.delta, source)
    visit = replace(visit, status=record.status, after=after, delta=payload.delta, end_ns=now_ns, **facts)
    answers = any(artifact.kind == TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER for artifact in payload.delta.artifacts)
    return _left(nodes, visit, record, has_answer=answers)


def skipped(nodes: Nodes, payload: NodeSkipped, now_ns: int) -> Nodes:
    """A node is left out, or stopped when it was at work."""
    record = NodeRecord(NodeStatus.SKIPPED, payload.visit)
    if payload.visit:
        visit = replace(nodes.visit(payload.visit), status=NodeStatus.SKIPPED, end_ns=now_ns)
        return _left(nodes, visit, record, has_answer=False)
    scope = nodes.scopes[payload.scope]
    name = payload.node[len(scope.path) :]
    scope = _with(scope, nodes.shape.at(scope.path), name, record)
    return replace(nodes, scopes={**nodes.scopes, scope.visit: scope}, skipped=(*nodes.skipped, payload))


def _left(nodes: Nodes, visit: Visit, record: NodeRecord, *, has_answer: bool) -> Nodes:
    """A visit is at work no more."""
    number = visit.number
    scope = nodes.scopes[visit.started.scope]
    scope = _with(scope, nodes.shape.at(scope.path), visit.started.node[len(scope.path) :], record)
    if has_answer and not scope.answer:
        scope = replace(scope, answer=number)
    scopes = {key: other for key, other in nodes.scopes.items() if key != number}
    scopes[scope.visit] = scope
    lanes = {key: lane for key, lane in nodes.lanes.items() if key != number}
    visits = (*nodes.visits[: number - 1], visit, *nodes.visits[number:])
    return replace(nodes, scopes=scopes, lanes=lanes, visits=visits)


def _with(scope: Scope, shape: Shape, name: str, record: NodeRecord) -> Scope:
    """The scope after the end of a node: what follows it is at the border."""
    records = {**scope.nodes, name: record}
    new = [other for other in shape.successors(name) if other not in records and other not in scope.border]
    border = tuple(other for other in scope.border if other != name)
    if new:
        border = tuple(sorted((*border, *new), key=shape.order.__getitem__))
    at_work = tuple(other for other in scope.at_work if other != name)
    decides = record.status is NodeStatus.FAILED or (record.status is NodeStatus.COMPLETED and shape.is_pivot(name))
    still_open = (*scope.open, name) if decides else scope.open
    return _settled(replace(scope, nodes=records, border=border, at_work=at_work, open=still_open), shape)


def _settled(scope: Scope, shape: Shape) -> Scope:
    """The scope without what is open no more."""
    if not scope.open:
        return scope
    still_open = tuple(name for name in scope.open if not _is_followed(scope, shape, name))
    return scope if len(still_open) == len(scope.open) else replace(scope, open=still_open)


def _is_followed(scope: Scope, shape: Shape, name: str) -> bool:
    followers = shape.successors(name)
    return bool(followers) and all(other in scope.nodes for other in followers)


def spent(nodes: Nodes, visit: int, before: Spend, after: Spend) -> Nodes:
    """Count what a run's spend grew by as a visit's, and as that of the subgraphs that it is in."""
    if after is before:
        return nodes
    grown = {name: getattr(after, name) - getattr(before, name) for name in Spend.__dataclass_fields__}
    visits = list(nodes.visits)
    for number in nodes.within(visit):
        old = visits[number - 1]
        spend = Spend(**{name: getattr(old.spend, name) + more for name, more in grown.items()})
        visits[number - 1] = replace(old, spend=spend)
    return replace(nodes, visits=tuple(visits))


FOLDS: dict[str, Callable[..., Nodes]] = {
    "node_started": started,
    "node_completed": completed,
    "node_failed": failed,
    "node_skipped": skipped,
}
