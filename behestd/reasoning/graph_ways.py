"""Tells what is wrong with where the edges of a graph lead: circles, nodes out of reach, ways back that are none. Pure.

Above: `graph_edges`. Below: the shape of graphs. Waiting is looked at too: what leads out of a loop waits for its
end, and racers wait for each other, and nothing may come to wait for itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import and_, or_
from typing import Any

from behest.v1.graph_pb2 import Graph, GraphProblem, GraphProblemKind
from behestd.core.shape import Edge, around, is_first, left_by, turns

MAX_CIRCLES = 10
"""Most circles that are told of one graph."""

_CYCLE = GraphProblemKind.GRAPH_PROBLEM_KIND_CYCLE
_UNREACHABLE = GraphProblemKind.GRAPH_PROBLEM_KIND_UNREACHABLE
_BAD_START = GraphProblemKind.GRAPH_PROBLEM_KIND_BAD_START
_BAD_LOOP_START = GraphProblemKind.GRAPH_PROBLEM_KIND_BAD_LOOP_START
_BAD_EDGE = GraphProblemKind.GRAPH_PROBLEM_KIND_BAD_EDGE

_Follows = Mapping[Any, Collection[Any]]
"""What follows what: nodes by their ids, ends of loops and races by their sort and the place of an edge."""


def shown(edge: Edge) -> str:
    """An edge as problems name it."""
    return f"edge {edge.place} ({edge.source or '?'} to {edge.target or '?'})"


def way_problems(graph: Graph, path: str, edges: Sequence[Edge]) -> Iterator[GraphProblem]:
    """Tell what is wrong with where edges lead; `edges` are those that join nodes of the graph."""
    follows = _follows(graph, edges)
    circles = list(_circles(follows))
    for circle in circles:
        around_it = " to ".join(str(name) for name in (*circle, circle[0]))
        message = f"nodes follow each other in a circle without a Loop or Retry edge: {around_it}"
        yield GraphProblem(kind=_CYCLE, node=f"{path}{circle[0]}", message=message)
    start = graph.start or graph.nodes[0].id
    if start not in follows:
        yield GraphProblem(kind=_BAD_START, node=path + start, message=f"the start {start} is no node of the graph")
    else:
        yield from _of_start(path, start, follows, edges)
    if graph.loop_start and graph.loop_start not in follows:
        message = f"the loop start {graph.loop_start} is no node of the graph"
        yield GraphProblem(kind=_BAD_LOOP_START, node=path + graph.loop_start, message=message)
    if not circles:
        yield from _of_back(graph, path, edges, follows)


def _of_start(path: str, start: str, follows: _Follows, edges: Iterable[Edge]) -> Iterator[GraphProblem]:
    reached = _reached(start, follows)
    before = next(
        (edge for edge in edges if edge.target == start and not edge.is_back and edge.source in reached), None
    )
    if before is not None:
        message = f"the start {start} can be gone to from {before.source}, which follows it"
        yield GraphProblem(kind=_BAD_START, node=path + start, message=message)
    for name in follows:
        if name not in reached:
            message = f"no way leads from the start {start} to node {name}"
            yield GraphProblem(kind=_UNREACHABLE, node=f"{path}{name}", message=message)


def _of_back(graph: Graph, path: str, edges: Sequence[Edge], follows: _Follows) -> Iterator[GraphProblem]:
    """What is wrong with Loop and Retry edges, and with races, in a graph without circles."""
    inside = around(follows, edges)
    bad = False
    for place, edge in enumerate(turns(edges)):
        if not inside[edge.source] >> place & 1:
            bad = True
            message = f"{shown(edge)}: no way leads from {edge.target} to {edge.source}, so it does not go back"
            yield GraphProblem(kind=_BAD_LOOP_START, node=path + edge.source, edge=edge.place, message=message)
    if bad:
        return
    again = _reached(graph.loop_start, follows) if graph.loop_start in follows else {}
    found = list(_torn(path, edges, inside, again))
    yield from found or _crossing(path, edges, _waits(follows, edges, inside))


def _crossing(path: str, edges: Iterable[Edge], waits: _Follows) -> Iterator[GraphProblem]:
    """Ways back and races by which nodes come to wait for each other."""
    by_place = {edge.place: edge for edge in edges}
    for circle in _circles(waits):
        place = next(item[1] for item in circle if isinstance(item, tuple))
        edge, nodes = by_place[place], ", ".join(str(item) for item in circle if isinstance(item, str))
        if edge.is_back:
            message = f"{shown(edge)}: it crosses another way back or a race, and {nodes} would wait for each other"
            yield GraphProblem(kind=_BAD_LOOP_START, node=path + edge.source, edge=place, message=message)
        else:
            message = f"{shown(edge)}: a racer must not follow another of its race, as over {nodes}"
            yield GraphProblem(kind=_BAD_EDGE, node=path + edge.source, edge=place, message=message)


def _torn(
    path: str, edges: Sequence[Edge], inside: Mapping[str, int], again: Mapping[str, None]
) -> Iterator[GraphProblem]:
    """Ways back that begin some of a race's nodes anew, or of those whose first is waited for, and not the others.

    What became of the others would decide the new round before it has begun.
    """
    for name, is_race, members in _groups(edges):
        of_members = [inside.get(member, 0) for member in members]
        some, every, own = reduce(or_, of_members), reduce(and_, of_members), inside.get(name, 0)
        torn = some & ~every & (~own if is_race else own)
        what = f"the race that begins at {name}" if is_race else f"those of whom {name} waits for the first"
        for place, edge in enumerate(turns(edges)):
            if torn >> place & 1 and not (is_race and edge.source in members):
                message = f"{shown(edge)}: it goes back to some of {what}, and not to all"
                yield GraphProblem(kind=_BAD_LOOP_START, node=path + edge.source, edge=edge.place, message=message)
        held = sum(member in again for member in members)
        if 0 < held < len(members) and (name in again) is not is_race:
            start = next(iter(again))
            message = f"the loop start {start} begins some of {what} anew, and not all"
            yield GraphProblem(kind=_BAD_LOOP_START, node=path + start, message=message)


def _groups(edges: Iterable[Edge]) -> list[tuple[str, bool, list[str]]]:
    """The races, each with its source and its racers; and the nodes that wait for the first, with those waited for."""
    races: dict[str, list[str]] = {}
    firsts: dict[str, list[str]] = {}
    for edge in edges:
        if edge.kind == "race":
            races.setdefault(edge.source, []).append(edge.target)
        elif is_first(edge):
            firsts.setdefault(edge.target, []).append(edge.source)
    return [(name, True, found) for name, found in races.items()] + [
        (name, False, found) for name, found in firsts.items()
    ]


def _waits(follows: _Follows, edges: Sequence[Edge], inside: Mapping[str, int]) -> _Follows:
    """What waits for what: nodes, the ends of loops and of races; those go by their edges, a race by its first."""
    found: dict[Any, dict[Any, None]] = {name: dict.fromkeys(after) for name, after in follows.items()}
    left = dict.fromkeys(inside, 0)
    sources = [edge.source for edge in turns(edges)]
    for edge in edges if inside else ():
        if not edge.is_back:
            left[edge.target] |= left_by(edge, inside, sources)
    for place, edge in enumerate(turns(edges)):
        behind = [name for name, mask in left.items() if mask >> place & 1]
        if behind:
            found[edge.source]["loop", edge.place] = None
            found["loop", edge.place] = dict.fromkeys(behind)
    for source, is_race, racers in _groups(edges):
        if is_race:
            place = next(edge.place for edge in edges if edge.kind == "race" and edge.source == source)
            found["race", place] = dict.fromkeys(item for racer in racers for item in follows[racer])
            for racer in racers:
                found[racer]["race", place] = None
    return found


def _follows(graph: Graph, edges: Iterable[Edge]) -> dict[str, dict[str, None]]:
    found: dict[str, dict[str, None]] = {node.id: {} for node in graph.nodes}
    for edge in edges:
        if not edge.is_back:
            found[edge.source][edge.target] = None
    return found


def _reached(start: str, follows: _Follows) -> dict[str, None]:
    """What can be gone to from a node, itself first."""
    found = {start: None}
    todo = [start]
    for name in todo:  # which grows meanwhile
        new = [other for other in follows[name] if other not in found]
        found.update(dict.fromkeys(new))
        todo += new
    return found


def _circles(follows: _Follows) -> Iterator[list[Any]]:
    """Circles in what follows what, at most one through each thing, each from its first in the order of the graph."""
    order = {item: place for place, item in enumerate(follows)}
    gone = set[Any]()
    for _ in range(MAX_CIRCLES):
        before = _bound(follows, gone)
        if not before:
            return
        way: dict[Any, int] = {}
        item = next(iter(before))
        while item not in way:
            way[item] = len(way)
            item = before[item]
        circle = list(way)[way[item] :][::-1]
        first = circle.index(min(circle, key=order.__getitem__))
        gone.update(circle)
        yield circle[first:] + circle[:first]


def _bound(follows: _Follows, gone: Collection[Any]) -> Mapping[Any, Any]:
    """What stands in a circle or behind one, each with something of the like that it follows; `gone` left out."""
    missing = {item: 0 for item in follows if item not in gone}
    for item in missing:
        for other in follows[item]:
            if other in missing:
                missing[other] += 1
    free = [item for item, count in missing.items() if not count]
    for item in free:  # which grows meanwhile
        for other in follows[item]:
            if other in missing:
                missing[other] -= 1
                if not missing[other]:
                    free.append(other)
    left = {item: item for item, count in missing.items() if count}
    return {other: item for item in left for other in follows[item] if other in left}
