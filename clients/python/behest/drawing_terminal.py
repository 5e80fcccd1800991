"""A graph as text for the terminal: a tree of what follows what, in which each node stands once.

Above: `behest.drawing`. A node stands below the node that every way to it goes through (its dominator: Cooper, Harvey,
Kennedy, "A Simple, Fast Dominance Algorithm", 2001). What follows a node alone stands right below it, ways that part
stand side by side, and what they come together in stands below them all; any other edge is an arrow to a name. So each
edge is seen at the node that it leaves:

    ○ question    analyze
    ├─○ sample_1  solve    fan-out, 2 at once
    │ └→ vote     fan-in, all
    └─○ sample_2  solve    fan-out, 2 at once
      └→ vote     fan-in, all
    ○ vote        select
    │
    ○ answer      answer
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from behest.drawing_facts import BACK, Facts, clean, edge_words, facts, start_of, title, work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from behest.v1.graph_pb2 import Graph, GraphEdge, GraphNode
    from behest.v1.run_pb2 import Reasoning

_MARKS = {"pending": "○", "running": "▶", "completed": "✔", "failed": "✘", "skipped": "–"}
_MOST_WIDTH = 60


@dataclass(frozen=True, slots=True)
class _Row:
    """One line: a node, or an edge that has a line of its own."""

    tree: str
    words: str
    """What is said of the edge."""
    work: str = ""
    """What a node does. Empty: it is an edge."""
    told: str = ""
    """What the run tells of a node."""


def terminal(graph: Graph, reasoning: Reasoning | None = None) -> str:
    """Draw a graph, or a run of it, on lines of its own."""
    rows = list(_Drawing(graph, "", facts(reasoning)).rows(""))
    columns = ([row.tree for row in rows], [row.work for row in rows], [row.told for row in rows])
    widths = [min(max(map(len, column), default=0), _MOST_WIDTH) for column in columns]
    return "\n".join([title(graph), *(_line(row, *widths) for row in rows)]) + "\n"


def _line(row: _Row, tree: int, work: int, told: int) -> str:
    """Put a row into columns of these widths; an edge has its words in the first of them."""
    cells = [row.tree.ljust(tree)]
    if row.work:
        cells += [row.work.ljust(work), row.told.ljust(told)] if told else [row.work.ljust(work)]
    return "  ".join([*cells, row.words]).rstrip()


@dataclass(frozen=True, slots=True)
class _Tree:
    """Who stands below whom."""

    order: list[str]
    """The nodes that can be reached, each behind all that lead to it."""
    below: dict[str, list[str]]
    alone: frozenset[str] = field(default_factory=frozenset)
    """The nodes that only the node above them leads to."""


@dataclass(frozen=True, slots=True)
class _Stand:
    """Where a node stands: what is before it on its line and on the lines below it, and how it is come to."""

    node_id: str
    before: str
    behind: str
    words: str = ""


class _Drawing:
    """One graph as rows, those in it included."""

    def __init__(self, graph: Graph, path: str, told: Facts) -> None:
        self._path = path
        self._told = told
        self._loop_start = graph.loop_start
        self._nodes: dict[str, GraphNode] = {}
        for node in graph.nodes:
            self._nodes.setdefault(node.id, node)
        self._leaving: dict[str, list[tuple[int, GraphEdge]]] = defaultdict(list)
        for place, edge in enumerate(graph.edges, start=1):
            self._leaving[getattr(edge, "from")].append((place, edge))
        self._tree = _grown(start_of(graph), self._nodes, self._leaving)

    def rows(self, prefix: str) -> Iterator[_Row]:
        """Yield the rows, what cannot be reached last."""
        if self._tree.order:
            yield from self._from(self._tree.order[0], prefix)
        reached = set(self._tree.order)
        for node_id in self._nodes:
            if node_id not in reached:
                yield from self._node(_Stand(node_id, prefix, prefix, "cannot be reached"))
                for place, edge in self._leaving[node_id]:
                    yield self._arrow(prefix, "└→ ", place, edge)

    def _from(self, start: str, prefix: str) -> Iterator[_Row]:
        """Yield a node and what stands below it. A list of what is left, since chains may be long."""
        left: list[_Row | _Stand] = [_Stand(start, prefix, prefix)]
        while left:
            item = left.pop()
            if isinstance(item, _Stand):
                yield from self._node(item)
                left += reversed(list(self._below(item.node_id, item.behind)))
            else:
                yield item

    def _below(self, node_id: str, prefix: str) -> Iterator[_Row | _Stand]:
        """Yield what leaves a node, then what its ways come together in."""
        children = self._tree.below.get(node_id, [])
        branches = [child for child in children if child in self._tree.alone]
        edges = self._leaving[node_id]
        drawn = self._drawn(edges, branches)
        if len(branches) == 1:
            (place,) = drawn
            yield from (self._arrow(prefix, "├→ ", *each) for each in edges if each[0] != place)
            yield _Row(prefix + "│", edge_words(drawn[place]))
            yield _Stand(branches[0], prefix, prefix)
        else:
            for number, (place, edge) in enumerate(edges, start=1):
                is_last = number == len(edges)
                if place in drawn:
                    start, behind = ("└─", "  ") if is_last else ("├─", "│ ")
                    yield _Stand(edge.to, prefix + start, prefix + behind, edge_words(edge))
                else:
                    yield self._arrow(prefix, "└→ " if is_last else "├→ ", place, edge)
        yield from (_Stand(child, prefix, prefix) for child in children if child not in branches)

    def _drawn(self, edges: list[tuple[int, GraphEdge]], branches: list[str]) -> dict[int, GraphEdge]:
        """Choose the edges that are drawn as lines, by their places: the first one to each node that stands below."""
        first: dict[str, tuple[int, GraphEdge]] = {}
        for place, edge in edges:
            if edge.to in branches and edge.WhichOneof("kind") not in BACK:
                first.setdefault(edge.to, (place, edge))
        return dict(first.values())

    def _node(self, stand: _Stand) -> Iterator[_Row]:
        """Yield a node, and the graph in it."""
        node = self._nodes[stand.node_id]
        told = self._told.of(self._path + stand.node_id)
        mark = _MARKS.get(told.state, "?") if told else "○"
        words = [stand.words] if stand.words else []
        if stand.node_id == self._loop_start:
            words.append("rounds begin here")
        name = f"{stand.before}{mark} {clean(stand.node_id)}"
        yield _Row(name, "; ".join(words), work(node), told.words() if told else "")
        if node.HasField("subgraph"):
            yield from _Drawing(node.subgraph, f"{self._path}{stand.node_id}/", self._told).rows(stand.behind + "┊ ")

    def _arrow(self, prefix: str, connector: str, place: int, edge: GraphEdge) -> _Row:
        words = edge_words(edge, self._told.backs.get((self._path, place), 0))
        if edge.to not in self._nodes:
            words = f"{words}; no such node" if words else "no such node"
        return _Row(f"{prefix}{connector}{clean(edge.to)}", words)


def _grown(start: str, nodes: dict[str, GraphNode], leaving: dict[str, list[tuple[int, GraphEdge]]]) -> _Tree:
    """Find the tree. Edges that close a circle are left out, as are those that go back."""
    if start not in nodes:
        return _Tree([], {})
    onward, order = _walked(start, nodes, leaving)
    index = {node_id: number for number, node_id in enumerate(order)}
    entering: dict[str, list[str]] = defaultdict(list)
    for node_id in order:
        for target in onward[node_id]:
            entering[target].append(node_id)
    above: dict[str, str] = {start: start}
    for node_id in order[1:]:
        first, *others = entering[node_id]
        for other in others:
            while first != other:
                if index[first] > index[other]:
                    first = above[first]
                else:
                    other = above[other]
        above[node_id] = first
    below: dict[str, list[str]] = defaultdict(list)
    for node_id in order[1:]:
        below[above[node_id]].append(node_id)
    alone = frozenset(node_id for node_id in order[1:] if set(entering[node_id]) == {above[node_id]})
    return _Tree(order, below, alone)


def _walked(
    start: str, nodes: dict[str, GraphNode], leaving: dict[str, list[tuple[int, GraphEdge]]]
) -> tuple[dict[str, list[str]], list[str]]:
    """Walk deep first: where one gets from each node without going in circles, and the nodes in topological order."""
    onward: dict[str, list[str]] = {}
    finished: list[str] = []
    open_nodes: set[str] = set()
    left = [(start, False)]
    while left:
        node_id, is_done = left.pop()
        if is_done:
            open_nodes.discard(node_id)
            finished.append(node_id)
        elif node_id not in onward:
            open_nodes.add(node_id)
            targets = dict.fromkeys(
                edge.to for _, edge in leaving[node_id] if edge.WhichOneof("kind") not in BACK and edge.to in nodes
            )
            onward[node_id] = [target for target in targets if target not in open_nodes]
            left.append((node_id, True))
            left += ((target, False) for target in onward[node_id] if target not in onward)
    return onward, finished[::-1]
