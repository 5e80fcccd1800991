"""JSON Schemas from Python signatures, and arguments read into the types that they name.

Above it `behest.tools`. The mapping is small on purpose, so that the client needs no validation library:

    str, int, float, bool, None     the JSON type; a bool is no number, a whole float is no int
    list[T], dict[str, T]           array, object with values of T
    T | None, T | U                 anyOf, tried in order
    Literal["a", 1]                 enum
    an Enum                         enum of its values
    a dataclass                     object, fields without default required, no others taken
    Any, or no annotation           anything
    Annotated[T, "text"]            T with a description

Anything else is a TypeError when the function is registered, never when it is called.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NoReturn, Union

MAX_DEPTH = 32
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_ARGUMENT = re.compile(r"\s+(\w+)(?:\s*\([^)]*\))?:\s*(.+)")
_SCALARS: dict[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}

Decode = Callable[[Any, str], Any]
"""Reads a JSON value, found at a path, as a type. Raises Mismatch."""


class Mismatch(Exception):
    """Raised when a JSON value is not of the type it should be. `errors` pairs JSON pointers with problems."""

    def __init__(self, *errors: tuple[str, str]) -> None:
        super().__init__(f"{len(errors)} values do not fit")
        self.errors = errors


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """A type as JSON: its schema, and how a value is read."""

    schema: dict[str, Any]
    decode: Decode


@dataclasses.dataclass(frozen=True, slots=True)
class Parameters:
    """A function's parameters: the form of its arguments, and the name of the one that gets the context, or empty."""

    form: Form
    context: str

    def read(self, arguments_json: str) -> dict[str, Any]:
        """Read arguments by name. Raises Mismatch."""
        arguments: dict[str, Any] = self.form.decode(load(arguments_json or "{}"), "")
        return arguments


def parameters(function: Callable[..., Any], context_type: type) -> Parameters:
    """Find the form of a function's arguments. Raises TypeError for a parameter that JSON cannot fill."""
    hints = typing.get_type_hints(function, include_extras=True)
    told = _told(inspect.getdoc(function) or "")
    forms: dict[str, tuple[Form, bool]] = {}
    context = ""
    for name, parameter in inspect.signature(function).parameters.items():
        if hints.get(name) is context_type:
            context = name
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"parameter {name} of {function.__name__} cannot be given by name")
        found = form(hints.get(name, Any))
        schema = dict(found.schema)
        if name in told:
            schema.setdefault("description", told[name])
        has_default = parameter.default is not parameter.empty
        if type(parameter.default) in (str, int, float, bool):
            schema["default"] = parameter.default
        forms[name] = (Form(schema, found.decode), not has_default)
    return Parameters(_object(forms, dict), context)


def description(function: Callable[..., Any]) -> str:
    """The docstring up to its `Args:`."""
    return re.split(r"^Args:\s*$", inspect.getdoc(function) or "", maxsplit=1, flags=re.MULTILINE)[0].strip()


def form(hint: Any) -> Form:
    """Find the form of a type. Raises TypeError for one that has none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object):
        return Form({}, lambda value, _path: value)
    if hint in _SCALARS:
        return Form({"type": _SCALARS[hint]}, _scalar(hint))
    if origin is typing.Annotated:
        inner = form(arguments[0])
        texts = [text for text in arguments[1:] if isinstance(text, str)]
        return Form({**inner.schema, "description": texts[0]}, inner.decode) if texts else inner
    if origin in (Union, types.UnionType):
        return _union([form(argument) for argument in arguments])
    if origin is Literal:
        return _enum({value: value for value in arguments})
    if hint is list or origin is list:
        return _list(form(arguments[0] if arguments else Any))
    if hint is dict or (origin is dict and arguments[0] is str):
        return _dict(form(arguments[1] if arguments else Any))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum({member.value: member for member in hint})
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass(hint)
    raise TypeError(f"{hint!r} has no form in JSON; see behest.schema for those that have one")


def load(text: str) -> Any:
    """Parse strict JSON, at most 32 levels deep, without duplicate keys. Raises Mismatch."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        token = text[match.start()]
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token, 0)
        if depth > MAX_DEPTH:
            raise Mismatch(("", f"nesting exceeds the limit of {MAX_DEPTH} levels"))
    try:
        return json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except ValueError as exc:
        raise Mismatch(("", f"no JSON: {exc}"[:300])) from exc


def dump(value: object) -> str:
    """Write a result as JSON; dataclasses and enums as `form` reads them. Raises TypeError, ValueError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)


def _told(docstring: str) -> dict[str, str]:
    """The descriptions of a docstring's `Args:` section."""
    _, found, section = docstring.partition("\nArgs:\n")
    told: dict[str, str] = {}
    for line in section.split("\n\n")[0].splitlines() if found else ():
        if match := _ARGUMENT.fullmatch(line):
            told[match[1]] = match[2]
    return told


def _scalar(wanted: type) -> Decode:
    def decode(value: Any, path: str) -> Any:
        is_right = type(value) is wanted
        if wanted is float and type(value) is int:
            try:
                return float(value)
            except OverflowError:
                is_right = False
        if not is_right:
            raise Mismatch((path, f"{_shown(value)} is not of type {_SCALARS[wanted]}"))
        return value

    return decode


def _union(forms: list[Form]) -> Form:
    def decode(value: Any, path: str) -> Any:
        for choice in forms:
            try:
                return choice.decode(value, path)
            except Mismatch:
                continue
        raise Mismatch((path, f"{_shown(value)} fits none of the types allowed"))

    return Form({"anyOf": [choice.schema for choice in forms]}, decode)


def _enum(members: Mapping[Any, Any]) -> Form:
    def decode(value: Any, path: str) -> Any:
        for allowed, member in members.items():
            if type(allowed) is type(value) and allowed == value:
                return member
        raise Mismatch((path, f"{_shown(value)} is none of {_shown(list(members))}"))

    return Form({"enum": list(members)}, decode)


def _list(item: Form) -> Form:
    def decode(value: Any, path: str) -> Any:
        if not isinstance(value, list):
            raise Mismatch((path, f"{_shown(value)} is not of type array"))
        return list(_all(((str(n), item, part) for n, part in enumerate(value)), path).values())

    return Form({"type": "array", "items": item.schema}, decode)


def _dict(item: Form) -> Form:
    def decode(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise Mismatch((path, f"{_shown(value)} is not of type object"))
        return _all(((key, item, part) for key, part in value.items()), path)

    return Form({"type": "object", "additionalProperties": item.schema}, decode)


def _dataclass(hint: type[Any]) -> Form:
    hints = typing.get_type_hints(hint, include_extras=True)
    if any(hint in _within(inner) for inner in hints.values()):
        raise TypeError(f"{hint.__name__} holds itself, which has no form here; use dict[str, Any]")
    forms = {
        field.name: (
            form(hints[field.name]),
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(hint)
        if field.init
    }
    return _object(forms, lambda values: hint(**values))


def _object(forms: Mapping[str, tuple[Form, bool]], build: Callable[[dict[str, Any]], Any]) -> Form:
    required = [name for name, (_, is_required) in forms.items() if is_required]

    def decode(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise Mismatch((path, f"{_shown(value)} is not of type object"))
        errors = [(path, f"{name!r} is required") for name in required if name not in value]
        errors += [(_below(path, name), "there is no such field") for name in value if name not in forms]
        if errors:
            raise Mismatch(*errors)
        return build(_all(((name, forms[name][0], part) for name, part in value.items()), path))

    schema: dict[str, Any] = {"type": "object", "properties": {name: each.schema for name, (each, _) in forms.items()}}
    if required:
        schema["required"] = required
    return Form({**schema, "additionalProperties": False}, decode)


def _all(parts: Iterable[tuple[str, Form, Any]], path: str) -> dict[str, Any]:
    """Read every part, and tell of all that do not fit, not of the first alone. Raises Mismatch."""
    values: dict[str, Any] = {}
    errors: list[tuple[str, str]] = []
    for name, item, part in parts:
        try:
            values[name] = item.decode(part, _below(path, name))
        except Mismatch as exc:
            errors.extend(exc.errors)
    if errors:
        raise Mismatch(*errors[:20])
    return values


def _within(hint: Any) -> set[Any]:
    found = {hint} if isinstance(hint, type) else set()
    for argument in typing.get_args(hint):
        found |= _within(argument)
    return found


def _below(path: str, name: str) -> str:
    return f"{path}/{name.replace('~', '~0').replace('/', '~1')}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:79] + "…"


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
