"""Shapes: graphs of reasoning as they are walked. Above: `nodes` (the fold), the room `reasoning`. Below: the contract.

A shape is made once for a graph, in time linear in its size, and answers at once what precedes and what follows a
node. It knows nothing of runs. It is made of valid graphs alone: what is wrong with others is told before one runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from behest.v1.graph_pb2 import FanInMode, Graph, GraphEdge, GraphNode
from behestd.values import dataclass

BACK = ("loop", "retry")
_STRIDE = 0.6180339887498949
"""Of the golden ratio: its multiples, without what is whole in them, are spread evenly."""


@dataclass(frozen=True)
class Edge:
    """An edge of a graph."""

    place: int
    """In its graph, from 1."""
    message: GraphEdge
    source: str
    target: str
    kind: str
    """The name of its field in the contract: "pipeline"."""

    @property
    def is_back(self) -> bool:
        """Whether it goes back to what was done before."""
        return self.kind in BACK


@dataclass(frozen=True)
class Joint:
    """How a node is joined to others."""

    entering: tuple[Edge, ...] = ()
    leaving: tuple[Edge, ...] = ()
    back: tuple[Edge, ...] = ()
    successors: tuple[str, ...] = ()
    predecessors: tuple[str, ...] = ()
    is_pivot: bool = False
    takes_first: bool = False


class Shape:
    """A valid graph, its nodes by their ids and its edges by the nodes that they join."""

    def __init__(self, graph: Graph, path: str = "") -> None:
        """Make the shape of a graph, and of its subgraphs; `path` stands before the ids of its nodes: "inner/"."""
        self.graph = graph
        self.path = path
        self.nodes: Mapping[str, GraphNode] = {node.id: node for node in graph.nodes}
        self.order: Mapping[str, int] = {name: place for place, name in enumerate(self.nodes)}
        self.edges = edges_of(graph)
        self.inner: Mapping[str, Shape] = {
            name: Shape(node.subgraph, f"{path}{name}/")
            for name, node in self.nodes.items()
            if node.HasField("subgraph")
        }
        self._joints = _joints(self.nodes, self.edges)
        self.fans: Mapping[str, str] = {
            name: joint.entering[0].source for name, joint in self._joints.items() if _is_fan(joint)
        }
        """The nodes that follow another over a FanOut edge and over no other edge, with the one that they follow."""
        self._loops = (around(self.nodes, self.edges), tuple(edge.source for edge in turns(self.edges)))
        self._memo: dict[object, tuple[str, ...]] = {}

    @property
    def start(self) -> str:
        """The node that begins."""
        return self.graph.start or next(iter(self.nodes))

    def at(self, path: str) -> Shape:
        """The shape of the graph whose nodes' ids stand behind a path: "" for this one, "inner/" for a subgraph."""
        shape = self
        for name in path.removeprefix(self.path).split("/")[:-1]:
            shape = shape.inner[name]
        return shape

    def entering(self, node: str) -> tuple[Edge, ...]:
        """The edges that lead forward to a node, as they were declared."""
        return self._joints[node].entering

    def leaving(self, node: str) -> tuple[Edge, ...]:
        """The edges that leave a node, forward and back, as they were declared."""
        return self._joints[node].leaving

    def back(self, node: str) -> tuple[Edge, ...]:
        """The edges that go back from a node, as they were declared."""
        return self._joints[node].back

    def successors(self, node: str) -> tuple[str, ...]:
        """The nodes that edges lead forward to from a node, each once."""
        return self._joints[node].successors

    def predecessors(self, node: str) -> tuple[str, ...]:
        """The nodes that edges lead forward from to a node, each once.

        They are shuffled, always in the same way: who looks for one that is still missing finds it soon, in whatever
        order they end.
        """
        return self._joints[node].predecessors

    def is_pivot(self, node: str) -> bool:
        """Whether more depends on how a node ends than what follows it: a loop, racers, others that are waited for."""
        return self._joints[node].is_pivot

    def takes_first(self, node: str) -> bool:
        """Whether a node begins with the first of several."""
        return self._joints[node].takes_first

    def below(self, node: str) -> tuple[str, ...]:
        """The nodes that can be gone forward to from a node, and itself, in the order of the graph."""
        key = ("below", node)
        if key not in self._memo:
            self._memo[key] = self._ordered(self._reached(node))
        return self._memo[key]

    def body(self, edge: Edge) -> tuple[str, ...]:
        """The nodes that begin anew when a Loop or Retry edge is gone back over, in the order of the graph.

        They are those on forward ways from where it leads to where it leaves, both included.
        """
        key = ("body", edge.source, edge.target)
        if key not in self._memo:
            below = self._reached(edge.target)
            found = {edge.source}
            todo = [edge.source]
            while todo:
                for name in self.predecessors(todo.pop()):
                    if name in below and name not in found:
                        found.add(name)
                        todo.append(name)
            self._memo[key] = self._ordered(found)
        return self._memo[key]

    def guards(self, edge: Edge) -> tuple[str, ...]:
        """The nodes that must have ended for good before an edge is followed that leads out of what they go back to.

        What leads out of a loop is followed when the loop is over, whoever else is at work: else it would depend on
        who is faster whether it sees the first round or the last. A loop is over when neither its end goes back nor
        what goes back to that.
        """
        around, sources = self._loops
        if not around:
            return ()
        key = ("guards", edge.place)
        if key not in self._memo:
            left = left_by(edge, around, sources)
            waits = dict.fromkeys(source for place, source in enumerate(sources) if left >> place & 1)
            self._memo[key] = tuple(name for name in waits if name != edge.source)
        return self._memo[key]

    def _reached(self, node: str) -> set[str]:
        found = {node}
        todo = [node]
        while todo:
            for name in self.successors(todo.pop()):
                if name not in found:
                    found.add(name)
                    todo.append(name)
        return found

    def _ordered(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(names, key=self.order.__getitem__))


def edges_of(graph: Graph) -> tuple[Edge, ...]:
    """The edges of any graph, valid or not, as they were declared."""
    return tuple(
        Edge(place, message, getattr(message, "from"), message.to, message.WhichOneof("kind") or "")
        for place, message in enumerate(graph.edges, start=1)
    )


def is_first(edge: Edge) -> bool:
    """Whether an edge leads to a node that begins with the first of several."""
    return edge.kind == "fan_in" and edge.message.fan_in.mode == FanInMode.FAN_IN_MODE_FIRST


def turns(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """The edges that go back to another node."""
    return tuple(edge for edge in edges if edge.is_back and edge.source != edge.target)


def around(names: Iterable[str], edges: Sequence[Edge]) -> Mapping[str, int]:
    """The edges that nodes begin anew with: bit N of a node's number is that of the edge at N of the `turns`.

    Nodes must not follow each other in a circle of forward edges. Empty: nothing goes back to another node.
    """
    backs = turns(edges)
    if not backs:
        return {}
    order = ordered(names, edges)
    down = Counter[str]()
    up = Counter[str]()
    for place, edge in enumerate(backs):
        up[edge.source] |= 1 << place
        down[edge.target] |= 1 << place
    forward = _by((edge.source, edge) for edge in edges if not edge.is_back)
    for name in order:
        for edge in forward.get(name, ()):
            down[edge.target] |= down[name]
    for name in reversed(order):
        for edge in forward.get(name, ()):
            up[name] |= up[edge.target]
    return {name: down[name] & up[name] for name in order}


def left_by(edge: Edge, around: Mapping[str, int], sources: Sequence[str]) -> int:
    """The `turns` whose loops a forward edge leads out of, numbered as in `around`; `sources` are where they leave.

    A loop is left with one when it goes back to where that one goes back from.
    """
    outside = ~around[edge.target]
    found = todo = around[edge.source] & outside
    while todo:
        place = todo.bit_length() - 1
        more = around[sources[place]] & outside & ~found
        found |= more
        todo = todo & ~(1 << place) | more
    return found


def ordered(names: Iterable[str], edges: Iterable[Edge]) -> list[str]:
    """The nodes, each behind all that lead forward to it."""
    forward = _by((edge.source, edge) for edge in edges if not edge.is_back)
    missing = Counter(edge.target for group in forward.values() for edge in group)
    found = [name for name in names if not missing[name]]
    for name in found:  # which grows meanwhile
        for edge in forward.get(name, ()):
            missing[edge.target] -= 1
            if not missing[edge.target]:
                found.append(edge.target)
    return found


def _joints(names: Iterable[str], edges: Sequence[Edge]) -> Mapping[str, Joint]:
    entering = _by((edge.target, edge) for edge in edges if not edge.is_back)
    leaving = _by((edge.source, edge) for edge in edges)
    return {name: _joint(entering.get(name, ()), leaving.get(name, ())) for name in names}


def _joint(entering: tuple[Edge, ...], leaving: tuple[Edge, ...]) -> Joint:
    turns_others = any(edge.kind == "loop" or is_first(edge) for edge in leaving)
    return Joint(
        entering=entering,
        leaving=leaving,
        back=tuple(edge for edge in leaving if edge.is_back),
        successors=tuple(dict.fromkeys(edge.target for edge in leaving if not edge.is_back)),
        predecessors=_shuffled(tuple(dict.fromkeys(edge.source for edge in entering))),
        is_pivot=turns_others or any(edge.kind == "race" for edge in entering),
        takes_first=any(is_first(edge) for edge in entering),
    )


def _is_fan(joint: Joint) -> bool:
    return len(joint.entering) == 1 and joint.entering[0].kind == "fan_out"


def _shuffled(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(names[place] for place in sorted(range(len(names)), key=lambda place: place * _STRIDE % 1))


def _by(pairs: Iterable[tuple[str, Edge]]) -> Mapping[str, tuple[Edge, ...]]:
    """The edges by names, each group in the order in which they come."""
    groups: defaultdict[str, list[Edge]] = defaultdict(list)
    for name, edge in pairs:
        groups[name] += [edge]
    return {name: tuple(edges) for name, edges in groups.items()}
