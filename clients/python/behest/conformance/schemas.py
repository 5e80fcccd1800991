"""Makes arguments from JSON Schemas: right ones to try a tool with, and wrong ones that it must refuse.

Above: the survey and the checks. Below: `jsonschema-rs`, which has the last word on what is right: whatever is made
here is checked by it, so that a schema this generator does not grasp gives nothing rather than nonsense.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from typing import Any

MAX_SCHEMA_BYTES = 64 * 1024
_DEPTH = 16
_CANDIDATES: tuple[Any, ...] = ("text", 7, 7.5, True, None, [], {}, [None], {"no-such-key": None})


class SchemaInvalid(Exception):
    """Raised when a schema is none. The text says why."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema that compiles. Made by `load`."""

    document: dict[str, Any]
    validator: Any

    def takes(self, value: Any) -> bool:
        """Whether a value keeps the schema."""
        return bool(self.validator.is_valid(value))

    def problem(self, value: Any) -> str:
        """What is wrong with a value; empty when nothing is."""
        found = next(iter(self.validator.iter_errors(value)), None)
        return "" if found is None else str(found.message)


def load(text: str) -> Schema:
    """Compile a schema, without looking anything up elsewhere. Raises SchemaInvalid, RuntimeError without the extra."""
    if len(text.encode()) > MAX_SCHEMA_BYTES:
        raise SchemaInvalid(f"schema of {len(text.encode())} bytes exceeds the limit of {MAX_SCHEMA_BYTES} bytes")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise SchemaInvalid("it is no JSON") from exc
    if not isinstance(document, dict):
        raise SchemaInvalid("it is no JSON object")
    library = _library()
    try:
        return Schema(document, library.validator_for(document, offline=True))
    except (ValueError, library.ReferencingError) as exc:
        raise SchemaInvalid(str(exc).partition("\n")[0]) from exc


def right(schema: Schema, *, is_full: bool = False) -> dict[str, Any] | None:
    """Make arguments that keep the schema: the required ones, or all if full. None when none could be made."""
    made = _value(schema.document, schema.document, is_full, _DEPTH)
    return made if isinstance(made, dict) and schema.takes(made) else None


def wrong(schema: Schema, good: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Make arguments that break the schema in one way each, with the words for the way."""
    properties = schema.document.get("properties")
    named = properties if isinstance(properties, dict) else {}
    made = [
        (f"without {name}", {key: value for key, value in good.items() if key != name})
        for name in schema.document.get("required") or ()
    ]
    for name in named:
        broken = next((each for each in _CANDIDATES if not schema.takes({**good, name: each})), name)
        made.append((f"with {json.dumps(broken)} as {name}", {**good, name: broken}))
    made.append(("with an unknown key", {**good, "no-such-key": 1}))
    return [(words, each) for words, each in made if not schema.takes(each)]


def free_texts(schema: Schema, good: dict[str, Any]) -> list[str]:
    """Return the names of arguments that take any text."""
    properties = schema.document.get("properties")
    tries = ("marker 1", "Ünïcödé ☃ 𝄞 …")
    return [
        name
        for name in (properties if isinstance(properties, dict) else ())
        if all(schema.takes({**good, name: text}) for text in tries)
        and not schema.takes({**good, name: {"no-such-key": None}})
    ]


def _value(schema: Any, root: dict[str, Any], is_full: bool, depth: int) -> Any:
    """Make a value for a schema within the root; None below the depth."""
    if not isinstance(schema, dict) or depth == 0:
        return {} if depth else None
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    for word in ("enum", "examples"):
        if schema.get(word):
            return schema[word][0]
    if "$ref" in schema:
        return _value(_referred(schema["$ref"], root), root, is_full, depth - 1)
    if any(schema.get(word) for word in ("anyOf", "oneOf", "allOf")):
        return _combined(schema, root, is_full, depth)
    return _typed(schema, root, is_full, depth)


def _combined(schema: dict[str, Any], root: dict[str, Any], is_full: bool, depth: int) -> Any:
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return _value(choices[0], root, is_full, depth - 1)
    merged = [_value(each, root, is_full, depth - 1) for each in schema["allOf"]]
    return {key: value for each in merged if isinstance(each, dict) for key, value in each.items()}


def _typed(schema: dict[str, Any], root: dict[str, Any], is_full: bool, depth: int) -> Any:
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind if isinstance(kind, str) else None
    match kind:
        case "object" | None if kind or "properties" in schema:
            properties = schema.get("properties") or {}
            names = list(properties) if is_full else schema.get("required") or []
            return {name: _value(properties.get(name, {}), root, is_full, depth - 1) for name in names}
        case "array":
            item = _value(schema.get("items", {}), root, is_full, depth - 1)
            return [item] * max(schema.get("minItems", 0), 1 if is_full else 0)
        case _:
            return _scalar(kind, schema)


def _scalar(kind: str | None, schema: dict[str, Any]) -> Any:
    match kind:
        case "integer" | "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
            high = schema.get("maximum", schema.get("exclusiveMaximum", low + 2) - 1)
            least = max(low, 1) if high >= 1 else min(low, high)
            step = schema.get("multipleOf")
            return -(-least // step) * step if step else least
        case "boolean":
            return False
        case "null":
            return None
        case _:
            return "a" * max(schema.get("minLength", 1), 1)


def _referred(reference: str, root: dict[str, Any]) -> Any:
    found: Any = root
    for word in reference.removeprefix("#").strip("/").split("/"):
        key = word.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, dict) and key else found
    return found


def require() -> None:
    """Make sure that schemas can be checked. Raises RuntimeError without the extra."""
    _library()


def _library() -> Any:
    try:
        return import_module("jsonschema_rs")
    except ImportError as exc:
        raise RuntimeError("schemas are checked by an extra: install behest[conformance]") from exc
