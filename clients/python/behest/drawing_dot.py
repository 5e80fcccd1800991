"""A graph in the DOT language, for Graphviz: see https://graphviz.org/doc/info/lang.html.

Above: `behest.drawing`. A node is named by its path ("inner/solve"), each graph in a node is a cluster with the node in
it, and everything is quoted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.drawing_facts import BACK, Facts, edge_words, facts, start_of, title, work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from behest.v1.graph_pb2 import Graph, GraphNode
    from behest.v1.run_pb2 import Reasoning

_COLOURS = {
    "pending": "#eeeeee",
    "running": "#cfe2ff",
    "completed": "#d1e7dd",
    "failed": "#f8d7da",
    "skipped": "#ffffff",
}


def dot(graph: Graph, reasoning: Reasoning | None = None) -> str:
    """Draw a graph, or a run of it."""
    lines = [
        f"digraph {_quoted(title(graph))} {{",
        f"  graph [label={_quoted(title(graph))}, labelloc=t];",
        '  node [shape=box, style="rounded,filled", fillcolor="#ffffff"];',
        *_inside(graph, "", facts(reasoning), "  "),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _inside(graph: Graph, path: str, told: Facts, indent: str) -> Iterator[str]:
    known = {node.id for node in graph.nodes}
    for node in graph.nodes:
        if node.HasField("subgraph"):
            yield from _cluster(node, path, told, indent)
        else:
            yield f"{indent}{_node(node, path, told)}"
    for place, edge in enumerate(graph.edges, start=1):
        if not {getattr(edge, "from"), edge.to} <= known:
            continue
        words = edge_words(edge, told.backs.get((path, place), 0))
        attributes = [f"label={_quoted(words)}"] if words else []
        if edge.WhichOneof("kind") in BACK:
            attributes += ["style=dashed", "constraint=false"]
        ends = f"{_quoted(path + getattr(edge, 'from'))} -> {_quoted(path + edge.to)}"
        yield f"{indent}{ends} [{', '.join(attributes)}];" if attributes else f"{indent}{ends};"


def _cluster(node: GraphNode, path: str, told: Facts, indent: str) -> Iterator[str]:
    """Draw a graph in a node: a frame around the node and what is in it."""
    here = path + node.id
    yield f"{indent}subgraph {_quoted('cluster ' + here)} {{"
    yield f"{indent}  graph [label={_quoted(title(node.subgraph))}, style=dotted];"
    yield f"{indent}  {_node(node, path, told)}"
    yield from _inside(node.subgraph, f"{here}/", told, indent + "  ")
    if start := start_of(node.subgraph):
        yield f"{indent}  {_quoted(here)} -> {_quoted(f'{here}/{start}')} [style=dotted];"
    yield f"{indent}}}"


def _node(node: GraphNode, path: str, told: Facts) -> str:
    told_here = told.of(path + node.id)
    lines = [node.id, work(node)]
    attributes = ["peripheries=2"] if node.operator == "answer" else []
    if told_here is not None:
        lines.append(told_here.words())
        attributes.append(f"fillcolor={_quoted(_COLOURS.get(told_here.state, _COLOURS['pending']))}")
    label = _quoted("\n".join(lines))
    return f"{_quoted(path + node.id)} [{', '.join([f'label={label}', *attributes])}];"


def _quoted(text: str) -> str:
    """Quote a text. Backslashes begin the escapes of labels, so they are doubled as quotes are kept from ending it."""
    lines = ("".join(letter if letter.isprintable() else "�" for letter in line) for line in text.split("\n"))
    return '"' + "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines) + '"'
