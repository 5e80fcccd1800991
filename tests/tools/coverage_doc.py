"""Writes docs/coverage.md: which tests prove which rows of the checklist, by the ids that tests cite.

python -m tests.tools.coverage_doc           write it
python -m tests.tools.coverage_doc --check   write nothing; exit 1 when it is not current

A test cites ids in a comment (inside it, on the line of its `def`, or right above it and its decorators) or in its
docstring. A citation outside every function, or in the docstring of a module, is one of the whole file.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = ROOT / "tests"
TARGET = ROOT / "docs/coverage.md"
CAPABILITIES = tuple(f"C{number:03}" for number in range(1, 149))
NOVELTIES = tuple(f"N{number:02}" for number in range(1, 19))
ID = re.compile(r"\b(?:C\d{3}|N\d{2})\b")

HEAD = """\
# Coverage

<!-- Generated from the tests by `python -m tests.tools.coverage_doc`. -->

Which tests prove which capability. A test cites the ids that it proves in a comment or its docstring.

| Id | Tests |
|---|---|
"""


class UnknownId(ValueError):
    """Raised when a test cites an id that no capability has."""

    def __init__(self, place: str, cited: str) -> None:
        super().__init__(f"{place} cites {cited}, which is the id of nothing")


@dataclass(frozen=True, slots=True)
class Span:
    """The lines of a function, from what stands right above it to its end."""

    name: str
    first: int
    last: int


def citations(source: str) -> set[tuple[str, str]]:
    """Find the ids in a file, each with the function that cites it; empty for the whole file."""
    tree = ast.parse(source)
    spans = list(_spans(tree, source.splitlines()))
    found: set[tuple[str, str]] = set()
    for line, text in (*_comments(source), *_docstrings(tree)):
        owner = next((span.name for span in spans if span.first <= line <= span.last), "")
        found.update((cited, owner) for cited in ID.findall(text))
    return found


def _spans(tree: ast.Module, lines: list[str]) -> Iterator[Span]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            while first > 1 and lines[first - 2].startswith("#"):
                first -= 1
            yield Span(node.name, first, node.end_lineno or node.lineno)


def _comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def collect(tests: Path) -> dict[str, list[str]]:
    """Map each id to the tests that cite it, in order. Raises UnknownId."""
    found: dict[str, list[str]] = {each: [] for each in (*CAPABILITIES, *NOVELTIES)}
    for path in sorted(tests.rglob("*.py")):
        place = path.relative_to(tests.parent).as_posix()
        for cited, name in sorted(citations(path.read_text())):
            if cited not in found:
                raise UnknownId(place, cited)
            found[cited].append(f"{place}::{name}" if name else place)
    return found


def render(found: dict[str, list[str]]) -> str:
    """Return the document."""
    rows = (f"| {each} | {'<br>'.join(f'`{test}`' for test in tests) or 'not yet'} |" for each, tests in found.items())
    proved = sum(1 for tests in found.values() if tests)
    return HEAD + "\n".join(rows) + f"\n\n{proved} of {len(found)} have tests.\n"


def main() -> int:
    """Write the document, or with --check say whether it is current."""
    parser = argparse.ArgumentParser(description="Write docs/coverage.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    options = parser.parse_args()
    wanted = render(collect(TESTS))
    if options.check:
        return 0 if TARGET.exists() and TARGET.read_text() == wanted else 1
    TARGET.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
