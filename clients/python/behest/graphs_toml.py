"""TOML from plain documents, as people write it: values first, then tables, then lists of tables.

Above: `behest.graphs`. The standard library reads TOML and does not write it. What is written here is read back by
`tomllib` as the same document: texts, numbers, truth values, lists of them, tables and lists of tables.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# What a basic string cannot hold as it is; a line end may stand in one of several lines.
_ESCAPED = re.compile(r'[\x00-\x08\x0a-\x1f\x7f"\\]')
_ESCAPED_IN_LINES = re.compile(r'[\x00-\x08\x0b-\x1f\x7f\\]|"(?="")|"\Z')
_NEVER_LITERAL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f']")
_SHORT = {"\n": "\\n", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def toml(document: Mapping[str, Any]) -> str:
    """Write a document."""
    return "\n".join(_table(document, "")).lstrip("\n") + "\n"


def _table(document: Mapping[str, Any], path: str) -> Iterator[str]:
    tables: list[tuple[str, Any]] = []
    for key, value in document.items():
        if isinstance(value, dict) or _is_list_of_tables(value):
            tables.append((path + _key(key), value))
        else:
            yield f"{_key(key)} = {_value(value)}"
    # A table ends where a list of tables begins, so lists come last.
    for name, value in sorted(tables, key=lambda table: isinstance(table[1], list)):
        for each in value if isinstance(value, list) else [value]:
            yield ""
            yield f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
            yield from _table(each, f"{name}.")


def _is_list_of_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _long(value)
        case list():
            return f"[{', '.join(map(_value, value))}]"
        case _:
            return repr(value)


def _long(text: str) -> str:
    """Write a text in the form that is easiest to read: lines as lines, quotes and backslashes as they are."""
    if "\n" in text.strip("\n"):
        return f'"""\n{_ESCAPED_IN_LINES.sub(_escape, text)}"""'
    if ('"' in text or "\\" in text) and not _NEVER_LITERAL.search(text):
        return f"'{text}'"
    return _text(text)


def _text(text: str) -> str:
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    return _SHORT.get(match[0], f"\\u{ord(match[0]):04x}")
