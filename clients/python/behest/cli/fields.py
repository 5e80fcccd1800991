"""Fills a message from what a command line can hold: JSON files and KEY=VALUE pairs.

Above: the commands that create and change things. Below: the descriptors of the contract. A key is a dotted path of
fields; a value is text, or @FILE for the content of a file. Lists are comma-separated, or JSON; enums are named without
their prefix.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping, MutableSequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from google.protobuf.json_format import ParseDict, ParseError

from behest.cli.show import prefix_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
    from google.protobuf.message import Message


def fill(message: Message, file: str | None, assignments: Mapping[str, str]) -> list[str]:
    """Set the fields that a JSON file and then assignments name; return their names. Raises click.BadParameter."""
    names = []
    if file is not None:
        document = loaded(file)
        if not isinstance(document, dict):
            raise click.BadParameter(f"{file} holds no JSON object")
        parse(document, message)
        names += [field.name for field in message.DESCRIPTOR.fields if {field.name, field.json_name} & set(document)]
    for path, text in assignments.items():
        assign(message, path, Path(text[1:]).read_text() if text.startswith("@") else text)
        names.append(path.partition(".")[0])
    return list(dict.fromkeys(names))


def assign(message: Message, path: str, text: str) -> None:
    """Set the field at a dotted path. Raises click.BadParameter when there is none, or the value does not fit."""
    name, _, rest = path.partition(".")
    field: Any = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        known = ", ".join(field.name for field in message.DESCRIPTOR.fields)
        raise click.BadParameter(f"{message.DESCRIPTOR.name} has no field {name}; it has {known}")
    value: Any = getattr(message, name)
    if rest and isinstance(value, MutableMapping):
        assign_entry(field, value, rest, text)
    elif rest and field.message_type is not None:
        assign(value, rest, text)
    elif isinstance(value, MutableSequence) and not text.startswith("["):
        message.ClearField(name)
        parse({name: [scalar(field, item.strip()) for item in text.split(",") if item.strip()]}, message)
    else:
        message.ClearField(name)
        parse({name: scalar(field, text)}, message)


def assign_entry(field: Any, entries: Any, path: str, text: str) -> None:
    """Set one entry of a map, or a field of it."""
    if field.message_type.fields_by_name["value"].message_type is None:
        entries[path] = text
        return
    key, _, rest = path.partition(".")
    if rest:
        assign(entries[key], rest, text)
    else:
        parse(structured(text), entries[key])


def scalar(field: FieldDescriptor, text: str) -> Any:
    """Return a value as protobuf JSON would write it."""
    if field.enum_type is not None:
        return enum_name(field.enum_type, text)
    is_text = field.cpp_type == field.CPPTYPE_STRING
    return text if is_text and not text.startswith("[") else structured(text)


def enum_name(enum: EnumDescriptor, text: str) -> str:
    """Return the full name of an enum's value. Raises click.BadParameter."""
    prefix = prefix_of(enum)
    name = prefix + text.upper().replace("-", "_").removeprefix(prefix)
    if name not in enum.values_by_name:
        known = ", ".join(value.name.removeprefix(prefix).lower() for value in enum.values[1:])
        raise click.BadParameter(f"{text} is none of {known}")
    return name


def structured(text: str) -> Any:
    """Return JSON as what it says, anything else as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def loaded(file: str) -> Any:
    """Return the JSON of a file; - is stdin. Raises click.BadParameter."""
    try:
        with click.open_file(file) as stream:
            return json.load(stream)
    except ValueError as exc:
        raise click.BadParameter(f"{file} is no JSON: {exc}") from exc


def parse(document: Any, message: Message) -> None:
    """Merge protobuf JSON into a message. Raises click.BadParameter."""
    try:
        ParseDict(document, message)
    except ParseError as exc:
        raise click.BadParameter(str(exc)) from exc
