"""Functions, methods and objects as tools: their names, schemas and hashes, found when they are registered.

Above: `tools`. Below: `schema`. No I/O.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from behest.schema import Form, Mismatch, Parameters, description, parameters
from behest.tool_context import Context
from behest.v1.tool_pb2 import SideEffect, Tool, ToolHints

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_MARK = "__behest_tool__"
_EFFECTS = {
    "": SideEffect.SIDE_EFFECT_UNSPECIFIED,
    "pure": SideEffect.SIDE_EFFECT_PURE,
    "idempotent": SideEffect.SIDE_EFFECT_IDEMPOTENT,
    "non_idempotent_queryable": SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE,
    "non_idempotent": SideEffect.SIDE_EFFECT_NON_IDEMPOTENT,
}

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Function:
    """A registered function: the tool that it is, and how its arguments are read."""

    tool: Tool
    function: Callable[..., Any]
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Mark:
    """What a decorator says of a tool. What is empty is found in the function."""

    name: str = ""
    description: str = ""
    side_effect: str = ""


@overload
def tool(function: AnyFunction, /) -> AnyFunction: ...
@overload
def tool(*, name: str = "", description: str = "", side_effect: str = "") -> Callable[[AnyFunction], AnyFunction]: ...


def tool(function: Any = None, /, *, name: str = "", description: str = "", side_effect: str = "") -> Any:
    """Mark a method as a tool, for `ToolServer.add`; the options are those of `ToolServer.tool`.

    class Accounts:
        @tool(side_effect="pure")
        async def balance(self, account: str) -> int: ...
    """

    def mark(function: AnyFunction) -> AnyFunction:
        setattr(function, _MARK, Mark(name, description, side_effect))
        return function

    return mark if function is None else mark(function)


def function_of(function: Callable[..., Any], mark: Mark) -> Function:
    """Make a tool of a function. Raises TypeError for a signature without a form in JSON, ValueError for a bad name."""
    name = mark.name or function.__name__
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not [A-Za-z0-9_-]{{1,64}}")
    if mark.side_effect not in _EFFECTS:
        raise ValueError(f"side effect {mark.side_effect!r} is none of {', '.join(filter(None, _EFFECTS))}")
    effect = _EFFECTS[mark.side_effect]
    found = parameters(function, Context)
    made = Tool(
        name=name,
        description=mark.description or description(function),
        input_schema_json=json.dumps(found.form.schema, ensure_ascii=False),
        hints=ToolHints(side_effect=effect) if effect else None,
    )
    made.hash = _hash(made)
    return Function(made, function, found)


def function_given(made: Tool, function: Callable[..., Any]) -> Function:
    """Make a tool of a definition that comes from elsewhere, and a function of `context` and `arguments`, a dictionary.

    The daemon checks arguments against the schema; here they are any object. Raises ValueError for a bad name.
    """
    if not _NAME.fullmatch(made.name):
        raise ValueError(f"{made.name!r} is not [A-Za-z0-9_-]{{1,64}}")
    hashed = Tool()
    hashed.CopyFrom(made)
    hashed.hash = _hash(made)
    return Function(hashed, function, Parameters(Form({}, _any_object), "context"))


def _any_object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Mismatch((path, "arguments must be an object"))
    return {"arguments": value}


def functions_of(thing: object) -> list[Function]:
    """Make tools of an object: of its method `call`, by the name of its class, and of every method that is marked.

    Raises TypeError for a class, for an object without such methods, and as `function_of` does.
    """
    kind = type(thing)
    if isinstance(thing, type):
        raise TypeError(f"{thing.__name__} is a class: add an object of it")
    made = []
    for name in dir(kind):
        method = getattr(kind, name, None)
        mark = getattr(method, _MARK, None)
        if name == "call" and callable(method):
            mark = mark or Mark()
            text = mark.description or description(method) or inspect.cleandoc(kind.__doc__ or "")
            mark = Mark(mark.name or _WORD.sub("_", kind.__name__).lower(), text, mark.side_effect)
        if isinstance(mark, Mark):
            made.append(function_of(getattr(thing, name), mark))
    if not made:
        raise TypeError(f"{kind.__name__} has neither a method `call` nor one that is marked with @tool")
    return made


def _hash(made: Tool) -> bytes:
    """SHA-256 over name, description, input schema and output schema, each as its length in 8 bytes and its UTF-8."""
    digest = hashlib.sha256()
    for text in (made.name, made.description, made.input_schema_json, made.output_schema_json):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
