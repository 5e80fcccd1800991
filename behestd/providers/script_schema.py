"""The least JSON that keeps a schema: what the scripted provider answers where it is asked for a form. Pure.

Above: `scripted`. It knows what schemas of answers and of arguments are made of (types, required properties, enums,
bounds, local references) and gives up on anything else; what it makes is checked by whoever asked for it, as any
model's answer is.
"""

from __future__ import annotations

import json
from typing import Any

_DEPTH = 32
TEXT = "scripted"
"""What a string without bounds says."""


def instance(schema_json: str) -> str:
    """Make the least instance of a schema: required properties, one item an array; an empty object when in doubt."""
    try:
        schema = json.loads(schema_json or "{}")
        return json.dumps(_made(schema, schema, 0), ensure_ascii=False)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return "{}"


def _made(schema: Any, root: Any, depth: int) -> Any:
    if depth > _DEPTH:
        raise RecursionError
    schema = _resolved(schema, root)
    given = [schema[name] for name in ("const", "default") if name in schema] or schema.get("enum", [])
    if given:
        return given[0]
    choices = [schema[name] for name in ("oneOf", "anyOf", "allOf") if name in schema]
    if choices:
        return _made(choices[0][0], root, depth + 1)
    kinds = schema.get("type", "object")
    kind = next((one for one in kinds if one != "null"), "null") if isinstance(kinds, list) else kinds
    return _of_kind(kind, schema, root, depth)


def _of_kind(kind: str, schema: Any, root: Any, depth: int) -> Any:
    match kind:
        case "object":
            properties = schema.get("properties", {})
            return {name: _made(properties.get(name, {}), root, depth + 1) for name in schema.get("required", [])}
        case "array":
            count = max(schema.get("minItems", 1), 1)
            return [_made(schema.get("items", {"type": "string"}), root, depth + 1) for _ in range(min(count, 64))]
        case "string":
            return TEXT.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength", None)]
        case "integer" | "number":
            return schema.get("minimum", min(1, schema.get("maximum", 1)))
        case "boolean":
            return True
        case _:
            return None


def _resolved(schema: Any, root: Any) -> Any:
    """Follow a local reference."""
    for _ in range(_DEPTH):
        if "$ref" not in schema:
            break
        found = root
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        schema = found
    return schema
