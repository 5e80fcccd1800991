"""Says what follows in a graph: which nodes begin, which are left out, how it ends. Pure.

Above: `conduct`, which turns moves into events, has them folded and asks again until nothing moves. Below: `ways`,
which reads the state of edges, and the values of `core`: the shape of the graph and what became of its nodes. Nothing
is kept here and nothing drawn: the same state gives the same moves, so a run that is taken up goes on as it would have
gone. What is brought together never depends on who is faster, save where that is what was asked for (Race, FanIn
FIRST). What is looked at for one event is what is at work, what is open and the border as far as there is room, never
the whole graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

from behest.v1.graph_pb2 import Graph
from behest.v1.node_event_pb2 import NodeSkipReason
from behestd.core.nodes import Scope
from behestd.core.shape import Shape
from behestd.reasoning.ways import After, Score, State, Ways, is_fixed, rounds
from behestd.values import dataclass

MAX_PARALLEL_NODES = 64
"""Most nodes of a graph at work at once, where it says nothing: what the run says holds."""


@dataclass(frozen=True)
class Begin:
    """A node begins."""

    node: str
    inputs: tuple[int, ...]
    """The visits whose tasks it starts from, in this order. Empty: the task that its graph starts from."""
    iteration: int
    """The round that it is in."""
    edge: int = 0
    """The Loop or Retry edge that is gone back over, its place from 1."""
    again: tuple[str, ...] = ()
    """The nodes that begin anew with it. Without an edge the graph begins its next round."""


@dataclass(frozen=True)
class Skip:
    """A node is left out, or stopped."""

    node: str
    visit: int
    """0: it had not begun."""
    reason: NodeSkipReason.ValueType


Move = Begin | Skip


@dataclass(frozen=True)
class Answered:
    """The graph ends with the answer of a visit, which was the first."""

    visit: int


@dataclass(frozen=True)
class Completed:
    """The graph ends well with what the task holds: what these visits left, brought together in this order."""

    visits: tuple[int, ...]


@dataclass(frozen=True)
class Failed:
    """The graph ends badly."""

    reason: str
    message: str
    node: str = ""
    """With the subgraphs that it is in. Empty: it is no node's fault."""
    visit: int = 0
    iteration: int = 0
    """The round of what it ended with."""


Ending = Answered | Completed | Failed


def moves(shape: Shape, scope: Scope, after: After, score: Score, room: int) -> list[Move]:
    """Say what follows now; the moves are valid together.

    `room` is how many more nodes may be at work. Nothing follows when the graph has ended: see `ending`.
    """
    ways = Ways(shape, scope, after, score)
    if _has_answered(shape.graph, scope) or _fault(ways) is not None:
        return []
    room = min(room, _own_room(shape, scope))
    beside = Counter(source for name in scope.at_work for source in ways.fans(name))
    if room > 0 and (turn := _way_back(ways, beside)):
        return turn
    stopped = _late(ways)
    if stopped or room <= 0:
        return stopped
    return _at_border(ways, beside, room) or ([] if scope.at_work else _next_round(ways))


def ending(shape: Shape, scope: Scope, after: After, score: Score) -> Ending | None:
    """Say how a graph ends; None: it goes on. To be asked when nothing moves, and when there is an answer."""
    if _has_answered(shape.graph, scope):
        return Answered(scope.answer)
    ways = Ways(shape, scope, after, score)
    fault = _fault(ways)
    if fault is not None:
        return fault
    if scope.at_work or moves(shape, scope, after, score, room=1):
        return None
    return _at_end(ways)


def _own_room(shape: Shape, scope: Scope) -> int:
    """How many more nodes of the graph itself may be at work, for its own sake; what is a subgraph is not counted."""
    most = shape.graph.max_parallel_nodes if shape.graph.HasField("max_parallel_nodes") else MAX_PARALLEL_NODES
    return most - sum(name not in shape.inner for name in scope.at_work)


def _has_answered(graph: Graph, scope: Scope) -> bool:
    """Whether the graph has ended with an answer, whatever is at work."""
    if not scope.answer or is_fixed(graph):
        return False
    termination = graph.termination
    return termination.on_goal_achieved or not termination.HasField("on_goal_achieved")


def _fault(ways: Ways) -> Failed | None:
    """Why the graph cannot go on: a failure that no edge says what follows, or a round too many."""
    for name in ways.scope.open:
        if ways.is_unhandled(name):
            return _node_failed(ways, name)
        edge = ways.back(name)
        if edge is not None and edge.kind == "loop" and ways.is_last_round(ways.scope.nodes[name]):
            return _too_many(ways)
    return None


def _node_failed(ways: Ways, name: str) -> Failed:
    path = ways.shape.path + name
    message = f"node {path} failed, and no edge says what follows"
    visit = ways.scope.nodes[name].visit
    return Failed("REASONING_NODE_FAILED", message, path, visit, iteration=ways.after(visit).iteration)


def _too_many(ways: Ways) -> Failed:
    limit = rounds(ways.shape.graph)
    message = f"the graph would go into round {limit + 1}, and its limit is {limit}"
    return Failed("REASONING_ITERATION_LIMIT", message, iteration=limit)


def _way_back(ways: Ways, beside: Counter[str]) -> list[Move]:
    """Go back over the first edge that is to be gone back over, and leads to where there is room.

    Of what begins anew some may be at work, where the edge leaves a node that began with the first of several.
    """
    for name in ways.scope.open:
        edge = ways.back(name)
        if edge is not None and all(beside[source] < ways.width(source) for source in ways.fans(edge.target)):
            visit = ways.scope.nodes[name].visit
            iteration = ways.after(visit).iteration + (edge.kind == "loop")
            again = ways.shape.body(edge)
            late = [_outpaced(ways, other) for other in again if other in ways.scope.at_work]
            return [*late, Begin(edge.target, (visit,), iteration, edge.place, again)]
    return []


def _late(ways: Ways) -> list[Move]:
    """Stop who is late: racers when one has won, those whom nobody waits for any more, and who works for them alone."""
    late = [other for name in ways.scope.open for other in ways.late(name)]
    found: dict[str, Move] = {}
    for name in late:
        if name not in found:
            found[name] = _outpaced(ways, name)
            late.extend(other for other in ways.shape.predecessors(name) if _works_for(ways, other, found))
    return sorted(found.values(), key=lambda move: ways.shape.order[move.node])


def _outpaced(ways: Ways, name: str) -> Skip:
    record = ways.scope.nodes.get(name)
    return Skip(name, record.visit if record else 0, NodeSkipReason.NODE_SKIP_REASON_OUTPACED)


def _works_for(ways: Ways, name: str, late: Container[str]) -> bool:
    """Whether a node that has not ended works for those alone that are late, or have gone on without it."""
    return ways.may_be_stopped(name) and all(
        other in late or other in ways.scope.nodes or ways.is_first_decided(other)
        for other in ways.shape.successors(name)
    )


def _at_border(ways: Ways, beside: Counter[str], room: int) -> list[Move]:
    """Begin what can begin, in the order of the graph, and leave out what no way leads to.

    `beside` counts how many nodes are at work that follow the same node over FanOut edges, by that node.
    Behind what is left out nothing begins yet: what follows it may come first. Nor is anything looked at once a FanOut
    has all its nodes at work: those that are left of it are many.
    """
    found: list[Move] = []
    full = {source for source, count in beside.items() if count >= ways.width(source)}
    has_skipped = False
    source_of = ways.shape.fans.get
    for name in [name for name in ways.scope.border if source_of(name) not in full] if full else ways.scope.border:
        state, inputs = ways.entry(name)
        if state is State.DEAD:
            has_skipped = True
            found.append(Skip(name, 0, NodeSkipReason.NODE_SKIP_REASON_NOT_TAKEN))
        elif state is State.TAKEN and full.isdisjoint(fans := ways.fans(name)):
            if has_skipped:
                break
            found.append(Begin(name, inputs, max((ways.after(visit).iteration for visit in inputs), default=1)))
            room -= 1
            beside = beside + Counter(fans)
            if not room or any(beside[source] >= ways.width(source) for source in fans):
                break
    return found


def _next_round(ways: Ways) -> list[Move]:
    """Begin again where the graph says so, when it has run through and a round is left."""
    graph, scope = ways.shape.graph, ways.scope
    if not graph.loop_start or scope.iteration >= rounds(graph) or _dead_end(ways) is not None:
        return []
    if ways.has_answer() and not is_fixed(graph):
        return []
    return [Begin(graph.loop_start, ways.ends(), scope.iteration + 1, again=ways.shape.below(graph.loop_start))]


def _at_end(ways: Ways) -> Ending:
    """How a graph ends that has run through."""
    graph, scope = ways.shape.graph, ways.scope
    if (dead_end := _dead_end(ways)) is not None:
        return dead_end
    if is_fixed(graph) or ways.has_answer():
        return Completed(ways.ends())
    if graph.loop_start:
        return _too_many(ways)
    message = "the graph has run to its end, and no node has answered"
    return Failed("REASONING_NO_ANSWER", message, iteration=scope.iteration)


def _dead_end(ways: Ways) -> Failed | None:
    """The failure for which the graph came to nothing: all that a node waited for have failed, and nobody answered."""
    name = "" if ways.has_answer() else ways.dead_end()
    return _node_failed(ways, name) if name else None
