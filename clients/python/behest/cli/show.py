"""Prints messages of the contract, for people or as JSON.

Above: the commands. Below: click. Results go to stdout, notes and errors to stderr, so that a pipe gets results alone.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping, MutableSequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from behest.errors import read_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from google.protobuf.descriptor import EnumDescriptor

    from behest.errors import BehestError

CELL_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command prints."""

    is_json: bool

    def document(self, message: Message) -> None:
        """Print one message, the only one of its command."""
        click.echo(json.dumps(as_json(message), indent=2) if self.is_json else "\n".join(described(message)))

    async def listing(self, messages: AsyncIterator[Message], columns: Sequence[str], limit: int) -> None:
        """Print messages, at most so many (0: all): a JSON line or a row of a table each."""
        rows = [[column.split(".")[-1].upper() for column in columns]]
        count = 0
        async for message in messages:
            count += 1
            if self.is_json:
                self.line(as_json(message))
            else:
                rows.append([cell(message, column) for column in columns])
            if count == limit:
                break
        if not self.is_json and count:
            widths = [max(len(row[number]) for row in rows) for number in range(len(columns))]
            for row in rows:
                click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())

    def line(self, document: dict[str, Any]) -> None:
        """Print one document of a stream."""
        click.echo(json.dumps(document))

    def done(self, text: str) -> None:
        """Print what was done, where there is no message to show."""
        if not self.is_json:
            click.echo(text)

    def note(self, text: str) -> None:
        """Print something for people, beside the result."""
        if not self.is_json:
            click.secho(text, dim=True, err=True)

    def error(self, error: BehestError) -> None:
        """Print what went wrong."""
        if self.is_json:
            fields = {"code": error.code.name, "reason": error.reason, "message": error.message}
            click.echo(json.dumps({"error": {**fields, "metadata": error.metadata}}), err=True)
            return
        click.secho(f"error: {error}", fg="red", err=True)
        for field, problem in error.violations:
            click.secho(f"  {field}: {problem}", fg="red", err=True)


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as protobuf JSON, with the contract's own field names."""
    document: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return document


def described(message: Message, indent: str = "") -> Iterator[str]:
    """Yield a message as lines, a set field each."""
    for field, value in message.ListFields():
        items = value if isinstance(value, MutableSequence) else [value]
        for item in items:
            if isinstance(item, MutableMapping):
                yield f"{indent}{field.name}:"
                yield from (f"{indent}  {key}: {plain(field, each)}" for key, each in sorted(item.items()))
            elif isinstance(item, Message) and not isinstance(item, Timestamp | Duration | Status):
                yield f"{indent}{field.name}:"
                yield from described(item, indent + "  ")
            else:
                yield f"{indent}{field.name}: " + plain(field, item).replace("\n", f"\n{indent}  ")


def cell(message: Message, path: str) -> str:
    """Return one field of a message, named by a dotted path, as a cell of a table."""
    value: Any = message
    field = None
    for name in path.split("."):
        field = value.DESCRIPTOR.fields_by_name[name]
        value = getattr(value, name)
    if field is None or (isinstance(value, Timestamp) and not value.ByteSize()):
        return ""
    if isinstance(value, MutableMapping):
        text = ",".join(f"{key}={each}" for key, each in sorted(value.items()))
    elif isinstance(value, MutableSequence):
        text = ",".join(plain(field, item) for item in value)
    else:
        text = plain(field, value)
    text = " ".join(text.split())
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def plain(field: FieldDescriptor, value: Any) -> str:
    """Return one value as people read it."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int() if field.enum_type is not None:
            return short_name(field.enum_type, value)
        case bytes():
            return value.hex()
        case Timestamp():
            return value.ToDatetime().strftime("%Y-%m-%dT%H:%M:%SZ")
        case Duration():
            return f"{value.ToTimedelta().total_seconds():g}s"
        case Status():
            _, reason, message, _ = read_status(value)
            return f"{reason}: {message}" if reason else message
        case Message():
            return " ".join(described(value))
        case _:
            return str(value)


def prefix_of(enum: EnumDescriptor) -> str:
    """Return what the names of an enum's values have in common."""
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")


def short_name(enum: EnumDescriptor, number: int) -> str:
    """Return the name of a value without its prefix, in lower case; its number when it is not known."""
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(prefix_of(enum)).lower()
