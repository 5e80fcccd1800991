"""JSON Schemas from Python signatures, and arguments checked against them.

Above: `tools`. No I/O. The mapping is small: `str`, `int`, `float`, `bool`, `None`, `list[T]`, `dict[str, T]`, unions,
`Literal`, `Any` and no annotation. Anything else is a TypeError when the tool is registered, never when it is called.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, NoReturn, Union

Schema = dict[str, Any]
_SCALARS: dict[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


class Misfit(Exception):
    """Raised when arguments do not keep the schema. `path` is a JSON pointer."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


def of_function(function: Callable[..., Any], context_type: type) -> tuple[Schema, str]:
    """Return the schema of a function's arguments, and the name of the parameter that gets the context, or empty."""
    hints = typing.get_type_hints(function)
    properties: dict[str, Schema] = {}
    required: list[str] = []
    context = ""
    for name, parameter in inspect.signature(function).parameters.items():
        if hints.get(name) is context_type:
            context = name
        elif parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"parameter {name} of {function.__name__} cannot be given by name")
        else:
            properties[name] = of_type(hints.get(name, Any))
            if parameter.default is parameter.empty:
                required.append(name)
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return schema, context


def of_type(hint: Any) -> Schema:
    """Return the schema of a type. Raises TypeError for one that has none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if origin in (Union, types.UnionType):
        return {"anyOf": [of_type(each) for each in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if hint is list or origin is list:
        return {"type": "array", "items": of_type(arguments[0] if arguments else Any)}
    if hint is dict or (origin is dict and arguments[0] is str):
        return {"type": "object", "additionalProperties": of_type(arguments[1] if arguments else Any)}
    raise TypeError(f"{hint!r} has no form in JSON; see behest_lite.schema for those that have one")


def read(schema: Schema, text: str) -> dict[str, Any]:
    """Read arguments, of which none are `{}`, as strict JSON. Raises Misfit."""
    try:
        document = json.loads(text or "{}", object_pairs_hook=_distinct, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        raise Misfit("", "it is no JSON" if isinstance(exc, RecursionError) else f"it is no JSON: {exc}"[:200]) from exc
    check(schema, document)
    arguments: dict[str, Any] = document
    return arguments


def check(schema: Schema, value: Any, path: str = "") -> None:
    """Check a value against a schema that was made here. Raises Misfit."""
    if "anyOf" in schema:
        if not any(_fits(choice, value, path) for choice in schema["anyOf"]):
            raise Misfit(path, "it is of none of the types allowed")
        return
    if "enum" in schema:
        if not any(type(value) is type(each) and value == each for each in schema["enum"]):
            raise Misfit(path, f"it is none of {json.dumps(schema['enum'])[:200]}")
        return
    kind = schema.get("type")
    if kind and (not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "boolean")):
        raise Misfit(path, f"it is not of type {kind}")
    if isinstance(value, list):
        for number, item in enumerate(value):
            check(schema.get("items", {}), item, f"{path}/{number}")
    if isinstance(value, dict):
        _check_object(schema, value, path)


def _check_object(schema: Schema, value: dict[str, Any], path: str) -> None:
    properties = schema.get("properties", {})
    other = schema.get("additionalProperties", {})
    for name in schema.get("required", ()):
        if name not in value:
            raise Misfit(path, f"{name!r} is required")
    for name, item in value.items():
        if name not in properties and other is False:
            raise Misfit(f"{path}/{name}"[:200], "there is no such field")
        check(properties.get(name, other), item, f"{path}/{name}")


def _fits(schema: Schema, value: Any, path: str) -> bool:
    try:
        check(schema, value, path)
    except Misfit:
        return False
    return True


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
