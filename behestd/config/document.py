"""The reference of the configuration, written from the model: a commented file, and docs/configuration.md.

Above: `cli`. Below: the sections in `config` and `parts`, whose texts are read from their source only when
somebody asks, so that the daemon's start does not pay for them.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from behestd.config import auth, budgets, compaction, context, parts, quotas, retention, settings, telemetry
from behestd.config.source import bare_kind
from behestd.secret import Reference

Texts = Mapping[tuple[str, str], str]
"""The text of each field, and under "" of each section, by name of the class."""

EXAMPLES: Mapping[str, object] = {
    "providers.NAME.kind": "openai",
    "providers.NAME.models.name": "qwen3-8b",
    "providers.NAME.models.prices.since": "2025-01-31",
    "context.sources.NAME.kind": "function",
    "tools.servers.name": "files",
    "tools.servers.address": "127.0.0.1:7801",
    "permissions.rules.tool": "delete_*",
    "permissions.rules.action": "deny",
    "server.tls.certificate": "file:/etc/behestd/tls.pem",
    "server.tls.key": "credential:tls-key",
    "auth.tokens.id": "abcdefgh",
    "auth.tokens.hash": "sha256:" + "0" * 64,
    "auth.tokens.principal": "ci",
    "auth.tokens.role": "user",
    "auth.certificates.role": "user",
    "auth.certificates.uri": "spiffe://example.org/ci",
    "auth.certificates.principal": "ci",
    "auth.jwt.issuer": "https://login.example.org",
    "auth.jwt.audience": "behest",
    "auth.jwt.keys": "file:/etc/behestd/jwks.json",
    "admission.reject.name": "card_number",
    "admission.reject.pattern": "[0-9]{16}",
}
"""Values for what has no default, and for what an entry is not complete without."""
NAMES: Mapping[str, str] = {
    "providers": "local",
    "namespaces": "default",
    "principals": "ci",
    "policies": "search_*",
    "sources": "facts",
}
"""Keys for tables that the operator names."""

EXAMPLE_HEAD = """\
# Every setting of behestd with its default. Take the # away to change one; a line of prose has a blank after it.
# The environment goes over this file (BEHEST__LIMITS__ACTIVE_RUNS=64), flags go over both.
"""
MARKDOWN_HEAD = """\
# Configuration

<!-- Written from the model by `behestd config-example --markdown`. -->

Settings come from defaults, then the file named by `--config` (TOML), then the environment, then flags; each goes over
the one before. Tables are merged key by key, everything else is replaced. An unknown key is an error that names the
file or the variable and the key. `behestd check-config` prints what is in force and where each setting comes from,
secrets masked, and exits with 78 when something is wrong.

A variable is `BEHEST__` and the key in capitals, `__` for each dot: `BEHEST__LIMITS__ACTIVE_RUNS=64`. What is a text is
taken as it is, everything else as a TOML or JSON value: `BEHEST__SERVER__LISTEN='["127.0.0.1:0"]'`,
`BEHEST__TOOLS__POLICIES='{"search_*": {"side_effect": "pure"}}'`.

SIGHUP and `behest reload` have everything read again, and put it in force as a whole or not at all: what begins from
then on goes by it, what exists keeps what it was made with, and a configuration that is wrong leaves the one in force.
Where the daemon listens and keeps its data, its extensions and what it exports wait for the next start; the answer to a
reload names such keys.

A secret is never in the configuration, but the place where it is: `env:NAME`, `file:/path` (which others must not be
able to read) or `credential:NAME` (in systemd's `$CREDENTIALS_DIRECTORY`). One that is not there stops the start.
`NAME` in a key stands for a name that you choose.
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the configuration. `shown` is its header with names filled in, in as many brackets as it needs."""

    key: str
    shown: str
    model: type[BaseModel]
    is_list: bool
    is_named: bool

    def child(self, name: str, field: FieldInfo) -> Table | None:
        """Return the table that a field holds, None when it holds something else."""
        kind = bare_kind(field.annotation)
        origin, arguments = get_origin(kind), get_args(kind)
        prefix, shown = (f"{part}." if part else "" for part in (self.key, self.shown))
        inner = bare_kind(arguments[1 if origin is Mapping else 0]) if origin in (Mapping, tuple) else kind
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        # A table that is not there by default is chosen by being there.
        is_chosen = self.is_list or self.is_named or _default(field) is None
        if origin is Mapping:
            name_shown = NAMES[name] if NAMES[name].isidentifier() else json.dumps(NAMES[name])
            return Table(f"{prefix}{name}.NAME", f"{shown}{name}.{name_shown}", inner, is_list=False, is_named=True)
        return Table(f"{prefix}{name}", f"{shown}{name}", inner, is_list=origin is tuple, is_named=is_chosen)

    def values(self) -> Iterator[tuple[str, FieldInfo]]:
        """Yield the fields that are no tables."""
        return ((name, field) for name, field in self.model.model_fields.items() if self.child(name, field) is None)

    def children(self) -> Iterator[Table]:
        """Yield the tables in it, in order."""
        for name, field in self.model.model_fields.items():
            child = self.child(name, field)
            if child is not None:
                yield child


def example() -> str:
    """Write the commented file."""
    texts = read_texts()
    return EXAMPLE_HEAD + "".join(_example_of(table, texts) for table in _tables() if table.key)


def markdown() -> str:
    """Write docs/configuration.md."""
    texts = read_texts()
    return MARKDOWN_HEAD + "".join(_markdown_of(table, texts) for table in _tables() if table.key)


def models() -> Iterator[type[BaseModel]]:
    """Yield every section."""
    return (table.model for table in _tables())


def toml(value: object) -> str:
    """Write a value as TOML."""
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(str(key))} = {toml(inner)}" for key, inner in value.items() if inner is not None)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(inner) for inner in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _tables() -> Iterator[Table]:
    def walk(table: Table) -> Iterator[Table]:
        yield table
        for child in table.children():
            yield from walk(child)

    return walk(Table("", "", settings.Settings, is_list=False, is_named=False))


def read_texts() -> Texts:
    """Read all texts from the source of the sections."""
    texts: dict[tuple[str, str], str] = {}
    for module in (settings, auth, budgets, compaction, context, parts, quotas, retention, telemetry):
        for node in ast.parse(inspect.getsource(module)).body:
            if not isinstance(node, ast.ClassDef):
                continue
            texts[node.name, ""] = ast.get_docstring(node) or ""
            for before, after in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(before, ast.AnnAssign)
                    and isinstance(before.target, ast.Name)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                ):
                    texts[node.name, before.target.id] = inspect.cleandoc(str(after.value.value))
    return texts


def text_of(texts: Texts, model: type[BaseModel], name: str) -> str:
    """Find the text of a field, which may be that of a section that this one is made from; empty: it has none."""
    return next((texts[each.__name__, name] for each in model.__mro__ if (each.__name__, name) in texts), "")


def _example_of(table: Table, texts: Texts) -> str:
    mark = "#" if table.is_list or table.is_named else ""
    header = f"[[{table.shown}]]" if table.is_list else f"[{table.shown}]"
    lines = ["", *_prose(text_of(texts, table.model, "")), f"{mark}{header}"]
    for name, field in table.values():
        lines += _prose(text_of(texts, table.model, name))
        default = None if field.is_required() else _default(field)
        default = EXAMPLES.get(f"{table.key}.{name}", default)
        lines.append(f"# {name} is unset." if default is None else f"#{name} = {toml(default)}")
    return "\n".join(lines) + "\n"


def _markdown_of(table: Table, texts: Texts) -> str:
    header = f"[[{table.key}]]" if table.is_list else f"[{table.key}]"
    lines = ["", f"## `{header}`", "", text_of(texts, table.model, "")]
    values = list(table.values())
    if values:
        lines += ["", "| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    for name, field in values:
        default = "required" if field.is_required() else "unset" if _default(field) is None else _shown(_default(field))
        text = text_of(texts, table.model, name).replace("\n", " ").replace("|", "\\|")
        lines.append(f"| `{name}` | {_type(field.annotation)} | {default} | {text} |")
    return "\n".join(lines) + "\n"


def _prose(text: str) -> list[str]:
    return [f"# {line}" for line in text.splitlines()]


def _default(field: FieldInfo) -> object:
    return field.get_default(call_default_factory=True)


def _shown(value: object) -> str:
    return f"`{toml(value)}`"


def _type(annotation: Any) -> str:
    kind = bare_kind(annotation)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is Mapping:
        return f"table of {_type(arguments[1])}"
    return {bool: "true or false", int: "integer", float: "number", str: "text", Reference: "secret"}[kind]
