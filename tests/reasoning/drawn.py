"""Small readers of Mermaid and DOT, strict about what drawings are written in, for tests that look at drawings."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

_MERMAID_LABEL = r'"((?:[A-Za-z0-9 _.,=()/+\-\u0080-\U0010ffff]|#\d+;|<br/>)*)"'
_MERMAID_LINES = {
    "node": re.compile(rf"(n[\d_]+)(?:\(\[{_MERMAID_LABEL}\]\)|\[{_MERMAID_LABEL}\])"),
    "frame": re.compile(rf"subgraph (n[\d_]+)\[{_MERMAID_LABEL}\]"),
    "edge": re.compile(rf"(n[\d_]+) (-->|==>|-\.->)(?:\|{_MERMAID_LABEL}\|)? (n[\d_]+)"),
    "end": re.compile(r"end"),
    "class": re.compile(r"class (n[\d_]+(?:,n[\d_]+)*) (\w+)"),
    "style": re.compile(r"classDef \w+ [\w:#,-]+"),
}
_DOT_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|->|[A-Za-z_]\w*|\d+|[{}\[\]=,;])', re.DOTALL)


@dataclass(slots=True)
class Drawn:
    """What a drawing shows, with the names that it gives to nodes."""

    title: str = ""
    nodes: dict[str, str] = field(default_factory=dict)
    """Labels by names; lines of a label are joined by line ends."""
    edges: list[tuple[str, str, str]] = field(default_factory=list)
    """From, to, label."""
    states: dict[str, str] = field(default_factory=dict)


def read_mermaid(text: str) -> Drawn:
    """Read a flowchart. Raises AssertionError for a line that is not of the few kinds that are known here."""
    first, title, last, kind, *lines = text.splitlines()
    assert (first, last, kind) == ("---", "---", "flowchart TD")
    drawn = Drawn(title=json.loads(title.removeprefix("title: ")))
    depth = 0
    for line in lines:
        name, found = next(
            (name, found) for name, rule in _MERMAID_LINES.items() if (found := rule.fullmatch(line.strip()))
        )
        if name in ("node", "frame"):
            assert found[1] not in drawn.nodes
            drawn.nodes[found[1]] = _shown(next(label for label in found.groups()[1:] if label is not None))
        elif name == "edge":
            drawn.edges.append((found[1], found[4], _shown(found[3] or "")))
        elif name == "class":
            drawn.states.update(dict.fromkeys(found[1].split(","), found[2]))
        depth += (name == "frame") - (name == "end")
        assert depth >= 0
    assert depth == 0
    return drawn


def _shown(label: str) -> str:
    return re.sub(r"#(\d+);", lambda match: chr(int(match[1])), label.replace("<br/>", "\n"))


def read_dot(text: str) -> Drawn:
    """Read a directed graph. Raises AssertionError for what is not of the part of the grammar that is known here."""
    tokens: list[str] = []
    position = 0
    while position < len(text.rstrip()):
        match = _DOT_TOKEN.match(text, position)
        assert match, text[position : position + 40]
        tokens.append(match[1])
        position = match.end()
    assert tokens[0] == "digraph"
    drawn = Drawn(title=_unquoted(tokens[1]))
    assert _statements(tokens, 2, drawn) == len(tokens)
    return drawn


def _statements(tokens: list[str], at: int, drawn: Drawn) -> int:
    """Read statements between braces, and return the place behind them."""
    assert tokens[at] == "{"
    at += 1
    while tokens[at] != "}":
        if tokens[at] == "subgraph":
            at = _statements(tokens, at + 2, drawn)
            continue
        names = [tokens[at]]
        at += 1
        while tokens[at] == "->":
            names.append(tokens[at + 1])
            at += 2
        attributes: dict[str, str] = {}
        if tokens[at] == "[":
            at += 1
            while tokens[at] != "]":
                name, equals, value = tokens[at : at + 3]
                assert equals == "="
                attributes[name] = _unquoted(value)
                at += 3 + (tokens[at + 3] == ",")
            at += 1
        assert tokens[at] == ";"
        at += 1
        label = attributes.get("label", "")
        if len(names) == 2:
            drawn.edges.append((_unquoted(names[0]), _unquoted(names[1]), label))
        elif names[0] not in ("graph", "node", "edge"):
            assert _unquoted(names[0]) not in drawn.nodes
            drawn.nodes[_unquoted(names[0])] = label
    return at + 1


def _unquoted(token: str) -> str:
    if not token.startswith('"'):
        return token
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], token[1:-1])
