"""Checks of single fields of a request, each raising the error that names the field.

Above it are the handlers, which call these before anything else; below it `errors` and the reader of JSON in `tools`.
A check returns the value in the form that the rest of the daemon uses.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from behestd.errors import InvalidRequest, TooLarge
from behestd.tools import json_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sized

    from google.protobuf.descriptor import EnumDescriptor
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

MAX_LABELS = 32
MAX_LABEL_BYTES = 256
MAX_DURATION_SECONDS = 366 * 86_400

_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")
_NANOS = 1_000_000_000
_FIRST_SECOND = int(datetime(1, 1, 1, tzinfo=UTC).timestamp())
_LAST_SECOND = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
_MAX_TIME_NS = (1 << 63) - 1
"""What a store holds: a time in the year 2262."""


@contextmanager
def within(path: str, kind: type[InvalidRequest] = InvalidRequest) -> Iterator[None]:
    """Name the fields of errors of a kind that are raised inside as the request does: below `path`."""
    try:
        yield
    except kind as error:
        error.below(path)
        raise


def required(field: str, value: object) -> None:
    """Refuse a field that is empty or zero."""
    if not value:
        raise InvalidRequest(field, "is required")


def required_message(message: Message, field: str, path: str = "") -> None:
    """Refuse a message whose field of message type is not set. `path` is its name for the caller."""
    if not message.HasField(field):
        raise InvalidRequest(path or field, "is required")


def one_of(message: Message, oneof: str, path: str = "") -> str:
    """Return which field of a oneof is set. Refuses a message in which none is. `path` is its name for the caller."""
    chosen: str | None = message.WhichOneof(oneof)
    if chosen is None:
        raise InvalidRequest(path or oneof, "one of its fields must be set")
    return chosen


def max_bytes(field: str, value: str | bytes, limit_bytes: int) -> None:
    """Refuse a text or bytes over a limit. Raises TooLarge."""
    if isinstance(value, str):
        # No character takes more than four bytes, so most texts need not be encoded to know.
        size_bytes = len(value) if len(value) * 4 <= limit_bytes else len(value.encode())
    else:
        size_bytes = len(value)
    if size_bytes > limit_bytes:
        raise TooLarge(field, size_bytes, limit_bytes)


def max_items(field: str, values: Sized, limit: int) -> None:
    """Refuse a list or map with too many entries."""
    if len(values) > limit:
        raise InvalidRequest(field, f"has {len(values)} entries, at most {limit} are allowed")


def known(field: str, value: int, enum: EnumDescriptor, *, may_be_unset: bool = False) -> None:
    """Refuse a value of an enum that this version does not know, and zero unless it may be unset."""
    if value == 0:
        if not may_be_unset:
            raise InvalidRequest(field, "is required")
        return
    if value not in enum.values_by_number:
        raise InvalidRequest(field, f"{value} is no {enum.name} that this version knows")


def not_negative(field: str, value: int) -> None:
    """Refuse a number below zero."""
    if value < 0:
        raise InvalidRequest(field, f"{value} is negative")


def identifier(field: str, value: str) -> None:
    """Refuse what is not an id or name of ours, `[A-Za-z0-9_-]{1,64}`."""
    if not _IDENTIFIER.fullmatch(value):
        raise InvalidRequest(field, "must be 1 to 64 of A-Z a-z 0-9 _ -" if value else "is required")


def request_id(field: str, value: str) -> None:
    """Refuse a request id that is not 1 to 128 printable ASCII characters. Empty is none, and allowed."""
    if value and not _REQUEST_ID.fullmatch(value):
        raise InvalidRequest(field, "must be 1 to 128 printable ASCII characters")


def labels(field: str, values: Mapping[str, str]) -> dict[str, str]:
    """Return labels as a dict. Refuses more than 32, an empty key, and keys or values over 256 bytes."""
    if not values:
        return {}
    max_items(field, values, MAX_LABELS)
    for key, value in values.items():
        if not key:
            raise InvalidRequest(field, "has an empty key")
        if len(key.encode()) > MAX_LABEL_BYTES or len(value.encode()) > MAX_LABEL_BYTES:
            raise InvalidRequest(field, f"has a key or value over {MAX_LABEL_BYTES} bytes")
    return dict(values)


def duration(field: str, value: Duration, limit_seconds: float = MAX_DURATION_SECONDS) -> float:
    """Return a duration in seconds. Refuses one that is malformed, negative or over a limit (by default a year)."""
    if abs(value.nanos) >= _NANOS or value.seconds * value.nanos < 0:
        raise InvalidRequest(field, "is no valid duration")
    seconds = value.seconds + value.nanos / _NANOS
    if seconds < 0:
        raise InvalidRequest(field, "is negative")
    if seconds > limit_seconds:
        raise InvalidRequest(field, f"is longer than {limit_seconds:g} s")
    return seconds


def timestamp_ns(field: str, value: Timestamp) -> int:
    """Return a time in unix nanoseconds. Refuses one that is malformed or outside the years 1 to 9999.

    One that is more than 292 years from 1970 becomes the last that is not: it still stands for long ago, or for never.
    """
    if not 0 <= value.nanos < _NANOS or not _FIRST_SECOND <= value.seconds <= _LAST_SECOND:
        raise InvalidRequest(field, "is no valid time")
    return max(-_MAX_TIME_NS, min(value.seconds * _NANOS + value.nanos, _MAX_TIME_NS))


def json_value(field: str, text: str, limit_bytes: int = json_text.MAX_BYTES) -> Any:
    """Return what a JSON text says. Raises TooLarge, and InvalidRequest for what `json_text` does not take."""
    max_bytes(field, text, limit_bytes)
    try:
        return json_text.read(text, max_bytes=limit_bytes).value
    except json_text.JsonRefused as exc:
        raise InvalidRequest(field, str(exc)) from None


def json_object(field: str, text: str, limit_bytes: int = json_text.MAX_BYTES) -> dict[str, Any]:
    """Return what a JSON text says, as `json_value`, and refuse anything but an object."""
    value = json_value(field, text, limit_bytes)
    if not isinstance(value, dict):
        raise InvalidRequest(field, "is no JSON object")
    return value
