"""What an MCP server offers, as tools of the contract: chosen, named, described.

Pure. Above: `bridge`. Below: `names`. Guarantees: schemas are passed on as they are; what cannot be offered as it is
(a name that is taken or too long, a schema that is too large) refuses the whole offer and says so, so that nothing is
missing silently; what the server says of effects is text for people and models and never more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mcp import types

from behest.mcp.names import encoded
from behest.v1.tool_pb2 import Tool, ToolHints

MAX_DESCRIPTION_BYTES = 4 * 1024
MAX_SCHEMA_BYTES = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HINTS = (
    ("read_only_hint", "reads only", "changes things"),
    ("destructive_hint", "destructive", "only adds"),
    ("idempotent_hint", "idempotent", "not idempotent"),
    ("open_world_hint", "reaches outside", "closed world"),
)


class OfferRefused(Exception):
    """Raised when an MCP server offers what cannot be offered on. The text says what, and what can be done."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tools are offered on: those that match a glob of `only` (none: all) and none of `without`, by MCP name."""

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    prefix: str = ""

    def takes(self, name: str) -> bool:
        """Whether a tool is chosen."""
        is_in = not self.only or any(fnmatchcase(name, glob) for glob in self.only)
        return is_in and not any(fnmatchcase(name, glob) for glob in self.without)


def offered(tools: Iterable[types.Tool], choice: Choice) -> dict[str, Tool]:
    """Make tools of the contract, by MCP name. Raises OfferRefused."""
    made: dict[str, Tool] = {}
    for tool in tools:
        if not choice.takes(tool.name):
            continue
        if tool.name in made:
            raise OfferRefused(f"tool {_shown(tool.name)} comes twice: leave it out with --without")
        made[tool.name] = _made(tool, encoded(tool.name, choice.prefix))
    return made


def _made(tool: types.Tool, name: str) -> Tool:
    if not _NAME.fullmatch(name):
        text = f"tool {_shown(tool.name)} would be named {_shown(name)}, which is not [A-Za-z0-9_-]{{1,64}}"
        raise OfferRefused(f"{text}: leave it out with --without")
    schemas = [_schema(tool, tool.input_schema), _schema(tool, tool.output_schema)]
    title = tool.title or (tool.annotations.title if tool.annotations else None) or ""
    return Tool(
        name=name,
        description=_description(tool),
        input_schema_json=schemas[0],
        output_schema_json=schemas[1],
        hints=ToolHints(title=_cut(title, 256)) if title else None,
    )


def _schema(tool: types.Tool, schema: dict[str, object] | None) -> str:
    if schema is None:
        return ""
    text = json.dumps(schema, ensure_ascii=False)
    if len(text.encode(errors="replace")) > MAX_SCHEMA_BYTES:
        problem = f"a schema of tool {_shown(tool.name)} exceeds the limit of {MAX_SCHEMA_BYTES} bytes"
        raise OfferRefused(f"{problem}: leave it out with --without")
    return text


def _description(tool: types.Tool) -> str:
    """The description, and behind it what the server says of effects: shown, not believed."""
    hints = _said(tool.annotations) if tool.annotations else ""
    room = MAX_DESCRIPTION_BYTES - len(hints.encode())
    return _cut(tool.description or "", room) + hints


def _said(annotations: types.ToolAnnotations) -> str:
    given = ((getattr(annotations, field), yes, no) for field, yes, no in _HINTS)
    words = [yes if value else no for value, yes, no in given if value is not None]
    return f"\n\n(Its author says, unchecked: {', '.join(words)}.)" if words else ""


def _cut(text: str, limit_bytes: int) -> str:
    data = text.encode(errors="replace")
    return data.decode() if len(data) <= limit_bytes else data[: limit_bytes - 3].decode(errors="ignore") + "…"


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 100 else name[:99] + "…")
