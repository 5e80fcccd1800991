"""Read JSON written by strangers: depth, size and duplicate keys are checked before a parser can be driven too deep.

Above it `schema` and whoever takes arguments from a model. The depth is counted on the text before any parser sees it,
since recursive parsers (also those in native code) overflow on nested brackets.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_DEPTH = 32
MAX_BYTES = 1024 * 1024
"""Longest text that is read at all; callers ask for less where they know less."""
MAX_VALUES = 200_000

# Possessive, and one that is not closed goes to the end: each character is looked at once, whatever the text.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonRefused(ValueError):
    """Raised when a text is no JSON or is not the JSON that is taken. The text of the error names the problem."""


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed text, how deep it nests (0: a scalar) and roughly how many values it holds."""

    value: Any
    depth: int
    values: int


def read(text: str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Document:
    """Parse a text. Raises JsonRefused for anything but strict JSON within the limits and without duplicate keys."""
    # Characters first: a text of more characters than bytes allowed need not be encoded to be refused.
    is_known = len(text) > max_bytes or text.isascii()
    size_bytes = len(text) if is_known else len(text.encode(errors="replace"))
    if size_bytes > max_bytes:
        raise JsonRefused(f"{size_bytes} bytes exceed the limit of {max_bytes} bytes")
    depth, values = _measure(text, max_depth)
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
        if not text.isascii():
            text.encode()
        if "\\u" in text and _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except JsonRefused:
        raise
    except json.JSONDecodeError as exc:
        raise JsonRefused(f"no JSON at character {exc.pos}: {exc.msg.lower()}") from exc
    except UnicodeError as exc:
        raise JsonRefused("a string with half a surrogate pair") from exc
    except ValueError as exc:
        raise JsonRefused("a number has too many digits") from exc
    return Document(value, depth, values)


def _measure(text: str, max_depth: int) -> tuple[int, int]:
    """Count depth and values by brackets and commas outside of strings; what is malformed is left to the parser."""
    bare = _STRING.sub("", text) if '"' in text else text
    depth = deepest = 0
    for match in itertools.islice(_BRACKET.finditer(bare), MAX_VALUES + 1):
        if match[0] in "[{":
            depth += 1
            if depth > max_depth:
                raise JsonRefused(f"nesting exceeds the limit of {max_depth} levels")
            deepest = max(deepest, depth)
        else:
            depth -= 1
    values = sum(bare.count(mark) for mark in "[]{},")
    if values > MAX_VALUES:
        raise JsonRefused(f"more than {MAX_VALUES} values")
    return deepest, values + 1


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonRefused(f"duplicate key {key[:64]!r}")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise JsonRefused(f"{name} is no JSON")
