"""Writes the tables of docs/reasoning.md, between its markers, from the data and from the comments of the contract.

python -m tests.tools.reasoning_doc           write them
python -m tests.tools.reasoning_doc --check   write nothing; exit 1 when they are not current
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from behest.v1.graph_pb2 import GraphEdge
from behest.v1.operator_pb2 import ReplyTarget, ToolUse
from behestd.reasoning.expression import NAMES
from behestd.reasoning.operators import OPERATORS
from behestd.reasoning.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = ROOT / "docs/reasoning.md"
CONTRACT = ROOT / "proto/behest/v1"
_PART = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
_FIELD = re.compile(r"((?:  //[^\n]*\n)+)  (?:optional |repeated )?[\w.]+ (\w+) = \d+;")
_VALUE = re.compile(r"((?:  //[^\n]*\n)+)  (\w+) = \d+;")
_TOOLS = {
    ToolUse.TOOL_USE_UNSPECIFIED: "",
    ToolUse.TOOL_USE_RESULTS: "calls them",
    ToolUse.TOOL_USE_REPORT: "calls them and reports",
    ToolUse.TOOL_USE_OPTIONAL: "may call them",
}


def comment_of(name: str, source: str) -> str:
    """Return what the contract says of a message or enum, without its name."""
    match = re.search(rf"((?://[^\n]*\n)+)(?:message|enum) {name} {{", source)
    assert match, name
    return _words(match[1]).removeprefix(f"{name} ")


def fields_of(name: str, source: str) -> dict[str, str]:
    """Return the fields of a message with what the contract says of them."""
    return {field: _words(comment) for comment, field in _FIELD.findall(_body("message", name, source))}


def values_of(name: str, source: str) -> dict[str, str]:
    """Return the values of an enum, named as in files, with what the contract says of them, the first one left out."""
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper() + "_"
    values = _VALUE.findall(_body("enum", name, source))[1:]
    return {value.removeprefix(prefix).lower(): _words(comment) for comment, value in values}


def _body(kind: str, name: str, source: str) -> str:
    match = re.search(rf"^{kind} {name} {{(?:}}$|\n(.*?)^}})", source, re.MULTILINE | re.DOTALL)
    assert match, name
    return match[1] or ""


def _words(comment: str) -> str:
    return " ".join(line.strip().removeprefix("//").strip() for line in comment.strip().splitlines())


def _source(name: str) -> str:
    return (CONTRACT / f"{name}.proto").read_text()


def _table(*columns: str) -> Callable[[Iterator[tuple[str, ...]]], str]:
    """Return what makes a table with these columns out of rows."""

    def written(rows: Iterator[tuple[str, ...]]) -> str:
        lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
        return "\n".join(lines) + "\n"

    return written


def _operators() -> str:
    rows = (
        (
            f"`{operator.name}`",
            operator.intent,
            f"`{ReplyTarget.Name(operator.target).removeprefix('REPLY_TARGET_').lower()}`",
            "JSON" if operator.reply_schema_json else "text",
            _TOOLS[operator.tool_use],
        )
        for operator in OPERATORS
    )
    return _table("Operator", "What it does", "Target", "Reply", "Tools")(rows)


def _targets() -> str:
    rows = ((f"`{name}`", text) for name, text in values_of("ReplyTarget", _source("operator")).items())
    return _table("`target`", "Where the reply goes")(rows)


def _edges() -> str:
    source = _source("graph")

    def rows() -> Iterator[tuple[str, ...]]:
        for field in GraphEdge.DESCRIPTOR.oneofs_by_name["kind"].fields:
            assert field.message_type is not None
            name = field.message_type.name
            text = comment_of(name, source)
            keys = "<br>".join(f"`{key}`: {what}" for key, what in fields_of(name, source).items())
            yield f"`{field.name}`", text[0].upper() + text[1:], keys

    return _table("`kind`", "What it does", "Keys")(rows())


def _values(enum: str, column: str) -> Callable[[], str]:
    return lambda: _table(column, "Meaning")((f"`{n}`", text) for n, text in values_of(enum, _source("graph")).items())


def _termination() -> str:
    rows = ((f"`{name}`", text) for name, text in fields_of("Termination", _source("graph")).items())
    return _table("`[termination]`", "Meaning")(rows)


def _names() -> str:
    kinds = {float: "number", str: "text", bool: "truth value"}
    return _table("Name", "Kind", "Meaning")(
        (f"`{key}`", kinds[name.kind], name.meaning) for key, name in NAMES.items()
    )


def _strategies() -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        for strategy in STRATEGIES:
            text = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", strategy.description)
            parameters = "<br>".join(
                f"`{each.name}` ({each.minimum} to {each.maximum}, default {each.default}): {each.description}"
                for each in strategy.parameters
            )
            yield f"`{strategy.name}`", text, parameters

    return _table("Strategy", "What it does, and where it comes from", "Parameters")(rows())


TABLES: Mapping[str, Callable[[], str]] = {
    "operators": _operators,
    "targets": _targets,
    "edges": _edges,
    "conditions": _values("BranchCondition", "`condition`"),
    "modes": _values("FanInMode", "`mode`"),
    "problems": _values("GraphProblemKind", "Problem"),
    "termination": _termination,
    "names": _names,
    "strategies": _strategies,
}


def render(document: str) -> str:
    """Return the document with its tables made anew. Raises KeyError for a table that there is not."""
    return _PART.sub(lambda match: match[1] + "\n" + TABLES[match[2]]() + "\n" + match[3], document)


def main() -> int:
    """Write the tables, or with --check say whether they are current."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/reasoning.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    options = parser.parse_args()
    document = TARGET.read_text()
    if options.check:
        return 0 if render(document) == document else 1
    TARGET.write_text(render(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
