"""A graph as a Mermaid flowchart: see https://mermaid.js.org/syntax/flowchart.html.

Above: `behest.drawing`. Nodes have made-up names (n1, n2, n2_1 in the graph of n2), and all texts are quoted labels in
which whatever Mermaid or HTML could read as its own stands as an entity.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from behest.drawing_facts import BACK, Facts, clean, edge_words, facts, title, work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from behest.v1.graph_pb2 import Graph, GraphNode
    from behest.v1.run_pb2 import Reasoning

_STYLES = {
    "pending": "fill:#eee,stroke:#888,color:#333",
    "running": "fill:#cfe2ff,stroke:#0a58ca,color:#111",
    "completed": "fill:#d1e7dd,stroke:#146c43,color:#111",
    "failed": "fill:#f8d7da,stroke:#b02a37,color:#111",
    "skipped": "fill:#fff,stroke:#bbb,color:#888,stroke-dasharray:4",
}
_SIDE_BY_SIDE = frozenset({"fan_out", "race"})
_SPECIAL = re.compile(r"[^A-Za-z0-9 _.,=()/+\-\u0080-\U0010ffff]")


def mermaid(graph: Graph, reasoning: Reasoning | None = None) -> str:
    """Draw a graph, or a run of it."""
    told = facts(reasoning)
    states: dict[str, list[str]] = {}
    lines = [
        "---",
        f"title: {json.dumps(title(graph))}",
        "---",
        "flowchart TD",
        *_inside(graph, "", "n", told, states),
    ]
    for state, names in states.items():
        lines += [f"  classDef {state} {_STYLES[state]}", f"  class {','.join(names)} {state}"]
    return "\n".join(lines) + "\n"


def _inside(graph: Graph, path: str, prefix: str, told: Facts, states: dict[str, list[str]]) -> Iterator[str]:
    """Draw nodes and edges; what states the nodes are in is added to `states`."""
    indent = "  " * (path.count("/") + 1)
    names: dict[str, str] = {}
    for number, node in enumerate(graph.nodes, start=1):
        name = names.setdefault(node.id, f"{prefix}{number}")
        told_here = told.of(path + node.id)
        label = _label(node.id, work(node), told_here.words() if told_here else "")
        if told_here is not None and told_here.state in _STYLES:
            states.setdefault(told_here.state, []).append(name)
        if node.HasField("subgraph") and node.subgraph.nodes:
            yield f"{indent}subgraph {name}[{label}]"
            yield from _inside(node.subgraph, f"{path}{node.id}/", f"{name}_", told, states)
            yield f"{indent}end"
        else:
            yield f"{indent}{name}{_shaped(node, label)}"
    for place, edge in enumerate(graph.edges, start=1):
        source, target = names.get(getattr(edge, "from")), names.get(edge.to)
        if source and target:
            kind = edge.WhichOneof("kind")
            arrow = "-.->" if kind in BACK else "==>" if kind in _SIDE_BY_SIDE else "-->"
            words = edge_words(edge, told.backs.get((path, place), 0))
            yield f"{indent}{source} {arrow}{f'|{_label(words)}|' if words else ''} {target}"


def _shaped(node: GraphNode, label: str) -> str:
    return f"([{label}])" if node.operator == "answer" else f"[{label}]"


def _label(*lines: str) -> str:
    """Quote a label of several lines, of which empty ones are left out."""
    return '"' + "<br/>".join(_SPECIAL.sub(_entity, clean(line)) for line in lines if line) + '"'


def _entity(match: re.Match[str]) -> str:
    return f"#{ord(match[0])};"
