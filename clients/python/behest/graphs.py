"""Reasoning graphs as files: a graph of the contract from JSON or TOML, and back.

Above: the commands and whoever keeps graphs in files. Below: protobuf, json, tomllib and `behest.graphs_toml`. One
document in two notations: the keys are the field names of the contract, `format = 1` comes first, values of enums are
their names without prefix in lower case, durations are texts such as "1.5s", and an edge has the name of its kind and
the fields of that kind beside each other:

    {"from": "plan", "to": "solve", "kind": "loop", "max_iterations": 4, "until": "plan_remaining == 0"}

Reading is strict about the form (an unknown key, a wrong type and a repeated key are errors that name their place) and
says nothing of sense: whether the graph is valid tells the daemon. What was written is read back as it was; what only
the daemon sets (version, create_time, update_time) is not written.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import MutableMapping, MutableSequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from behest.graphs_toml import toml
from behest.v1.graph_pb2 import Graph, GraphEdge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import EnumDescriptor

Form = Literal["json", "toml"]
FORMAT = 1
"""The version of the form; a reader that does not know it says so."""
_OUTPUT_ONLY = frozenset({"version", "create_time", "update_time"})
_KINDS = {
    FieldDescriptor.CPPTYPE_STRING: str,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_INT32: int,
    FieldDescriptor.CPPTYPE_INT64: int,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
}
_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "a table",
    list: "a list",
}


class GraphFormError(ValueError):
    """Raised when a text is not a graph in the form that was named. `place` is a dotted path; lists count from 1."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}" if place else problem)
        self.place = place
        self.problem = problem


def form_of(name: str) -> Form:
    """Return the form that the end of a file's name tells. Raises GraphFormError when it tells none."""
    forms: tuple[Form, ...] = get_args(Form)
    for form in forms:
        if name.lower().endswith(f".{form}"):
            return form
    raise GraphFormError("", f"{name} ends with neither .json nor .toml")


def read(text: str, form: Form) -> Graph:
    """Read a graph. Raises GraphFormError."""
    try:
        document = _loaded(text, form)
        number = document.pop("format", None)
        if isinstance(number, bool) or number != FORMAT:
            raise GraphFormError("format", f"is {number!r}, and {FORMAT} is read here")
        graph = Graph()
        _fill(graph, document, "")
    except RecursionError:
        raise GraphFormError("", "too deep") from None
    return graph


def write(graph: Graph, form: Form) -> str:
    """Write a graph, with a line end behind it."""
    document = {"format": FORMAT, **_document(graph)}
    return toml(document) if form == "toml" else json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _loaded(text: str, form: Form) -> dict[str, Any]:
    try:
        document = tomllib.loads(text) if form == "toml" else json.loads(text, object_pairs_hook=_once)
    except GraphFormError:
        raise
    except ValueError as error:
        raise GraphFormError("", f"not {form.upper()}: {error}") from None
    checked: dict[str, Any] = _checked(document, dict, "")
    return checked


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object. Raises GraphFormError for a key that comes twice, of which JSON would keep the last."""
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise GraphFormError("", f"not JSON: the key {key!r} comes twice in an object")
        document[key] = value
    return document


# --- reading ---


def _fill(message: Message, document: dict[str, Any], place: str) -> None:
    """Set the fields of a message from a document."""
    if isinstance(message, GraphEdge):
        document = _unfolded(document, place)
    fields = _fields(message.DESCRIPTOR)
    for key, value in document.items():
        field = fields.get(key)
        is_kind = isinstance(message, GraphEdge) and key not in ("from", "to")
        here = place if is_kind else f"{place}.{key}" if place else key
        if field is None:
            raise GraphFormError(here, f"unknown key; there are {', '.join(fields)}")
        _check_choice(message, field, here)
        try:
            _set(message, field, value, here)
        except GraphFormError:
            raise
        except ValueError as error:
            raise GraphFormError(here, str(error)) from None


def _check_choice(message: Message, field: FieldDescriptor, place: str) -> None:
    """Refuse a second field of which only one can be set."""
    choice = field.containing_oneof
    other = message.WhichOneof(choice.name) if choice is not None and len(choice.fields) > 1 else None
    if other is not None:
        raise GraphFormError(place, f"cannot stand beside {other}")


def _unfolded(document: dict[str, Any], place: str) -> dict[str, Any]:
    """Put the fields of an edge's kind into a message of their own, as the contract has them."""
    kinds = {field.name: field for field in GraphEdge.DESCRIPTOR.oneofs_by_name["kind"].fields}
    edge = {key: value for key, value in document.items() if key in ("from", "to")}
    rest = {key: value for key, value in document.items() if key not in ("from", "to", "kind")}
    kind = _checked(document.get("kind", ""), str, f"{place}.kind")
    if kind in kinds:
        known = _fields(kinds[kind].message_type)
        stray = next((key for key in rest if key not in known), None)
        if stray is None:
            return {**edge, kind: rest}
        others = ", ".join(("from", "to", "kind", *known))
        raise GraphFormError(f"{place}.{stray}", f"unknown key of an edge of kind {kind}; there are {others}")
    if kind:
        raise GraphFormError(f"{place}.kind", f"no kind {kind!r}; there are {', '.join(kinds)}")
    if rest:
        raise GraphFormError(f"{place}.{next(iter(rest))}", "unknown key of an edge without a kind")
    return edge


def _set(message: Message, field: FieldDescriptor, value: Any, place: str) -> None:
    held = getattr(message, field.name)
    if isinstance(held, MutableMapping):
        for key, each in _checked(value, dict, place).items():
            held[key] = _checked(each, str, f"{place}.{key}")
    elif isinstance(held, MutableSequence):
        for number, each in enumerate(_checked(value, list, place), start=1):
            here = f"{place}.{number}"
            if field.message_type is None:
                held.append(_scalar(field, each, here))
            else:
                # A repeated message field: its container makes the message.
                _fill(held.add(), _checked(each, dict, here), here)  # type: ignore[attr-defined]  # a field of messages
    elif isinstance(held, Duration):
        held.SetInParent()
        held.FromJsonString(_checked(value, str, place))
    elif isinstance(held, Message):
        held.SetInParent()
        _fill(held, _checked(value, dict, place), place)
    else:
        setattr(message, field.name, _scalar(field, value, place))


def _scalar(field: FieldDescriptor, value: Any, place: str) -> Any:
    if field.enum_type is not None:
        return _enum(field.enum_type, value, place)
    kind = _KINDS[field.cpp_type]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _checked(value, kind, place)


def _enum(enum: EnumDescriptor, value: Any, place: str) -> int:
    """Read the name of a value, or the number of one that has no name here."""
    names = {name: number for number, name in _values(enum) if number}
    if isinstance(value, str) and value in names:
        return names[value]
    if isinstance(value, int) and not isinstance(value, bool) and value not in enum.values_by_number:
        return value
    raise GraphFormError(place, f"no value {value!r}; there are {', '.join(names)}")


def _checked(value: Any, kind: type, place: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise GraphFormError(place, f"is not {_NAMES[kind]}")
    return value


# --- writing ---


def _document(message: Message) -> dict[str, Any]:
    """Return the fields that are set, in the order of the contract."""
    document: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name in _OUTPUT_ONLY and isinstance(message, Graph):
            continue
        if isinstance(message, GraphEdge) and isinstance(value, Message):
            document |= {"kind": field.name, **_document(value)}
        elif isinstance(value, MutableMapping):
            document[field.name] = dict(sorted(value.items()))
        elif isinstance(value, MutableSequence):
            document[field.name] = [_written(field, each) for each in value]
        else:
            document[field.name] = _written(field, value)
    return document


def _written(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Duration):
        return value.ToJsonString()
    if isinstance(value, Message):
        return _document(value)
    if field.enum_type is not None:
        return dict(_values(field.enum_type)).get(value, value)
    return value


def _fields(descriptor: Any) -> dict[str, FieldDescriptor]:
    """Map the keys of a message, given by its descriptor, to its fields."""
    hidden = _OUTPUT_ONLY if descriptor.full_name == Graph.DESCRIPTOR.full_name else frozenset()
    return {field.name: field for field in descriptor.fields if field.name not in hidden}


def _values(enum: EnumDescriptor) -> Iterator[tuple[int, str]]:
    """Yield the numbers of an enum with their names, without prefix and in lower case."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    for value in enum.values:
        yield value.number, value.name.removeprefix(prefix).lower()
