"""What the services over records share: repeats of requests, changes of named fields, pages of records.

Above: the services of sessions, scratch data, agents and artifacts. Below: the log and its store. A request id is
looked up before anything but the form of a request is checked, and claimed in the transaction that it is for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Generic, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from behestd.errors import InvalidRequest, RequestIdReused, StorageFull
from behestd.log.log import Log
from behestd.log.store import Change, Claim, Committed, Full, Record, RecordChanged, RequestTaken
from behestd.service.pages import Page, Position

PAGE_BYTES = 3 * 1024 * 1024
"""Most bytes of a page, so that it stays within the limit of messages; one item goes whole."""
_BATCH = 100
_SCANNED = 5_000
"""Most records that one call looks at for a filter."""
_MAX_PATHS = 64

Item = TypeVar("Item")
Body = TypeVar("Body", bound=Message)
Read = Callable[[Position | None, int], Awaitable[Sequence[Record]]]
"""Reads records after a position, so many at most; fewer when there are no more."""


# --- repeats ---


def digest_of(request: Message, more: bytes = b"") -> bytes:
    """What tells a repeat from another request: all that it says, and which call it is for."""
    name = request.DESCRIPTOR.full_name.encode()
    return sha256(b"\0".join((name, request.SerializeToString(deterministic=True), more))).digest()


def claim_of(namespace: str, request_id: str, digest: bytes, target: str) -> Claim | None:
    """The claim of a request id for what the request makes; None when it has none."""
    return Claim(namespace, request_id, digest, target) if request_id else None


async def earlier(log: Log, namespace: str, request_id: str, digest: bytes) -> str:
    """What an earlier request of the same id made, empty when there was none. Raises RequestIdReused."""
    claim = await log.store.request(namespace, request_id) if request_id else None
    return "" if claim is None else same(claim, digest)


def same(claim: Claim | RequestTaken, digest: bytes, request_id: str = "") -> str:
    """What a claim is for, when it is of the same request. Raises RequestIdReused."""
    if claim.digest != digest:
        raise RequestIdReused(claim.request_id if isinstance(claim, Claim) else request_id)
    return claim.target


async def commit(log: Log, change: Change) -> Committed | RequestTaken | RecordChanged:
    """Commit a change of records; while the disk is full only deletions. Raises StorageFull, StorageFailed."""
    if change.puts and log.store.is_degraded:
        raise StorageFull
    outcome = await log.commit(change)
    if isinstance(outcome, Full):
        raise StorageFull
    if isinstance(outcome, Committed | RequestTaken | RecordChanged):
        return outcome
    raise AssertionError(f"a change of records came to {outcome}")


# --- changes of named fields ---


def check_mask(message: Message, paths: Sequence[str], changeable: Collection[str]) -> None:
    """Refuse a mask that is empty, or names what does not exist or may not be changed. Raises InvalidRequest."""
    if not paths:
        raise InvalidRequest("update_mask", "is required")
    if len(paths) > _MAX_PATHS:
        raise InvalidRequest("update_mask", f"has {len(paths)} paths, at most {_MAX_PATHS} are allowed")
    for path in paths:
        names = path.split(".")
        if names[0] not in changeable or not _exists(message, names):
            raise InvalidRequest("update_mask", f"{path[:64]!r} is no field that can be changed")


def _exists(message: Message, names: Sequence[str]) -> bool:
    descriptor = message.DESCRIPTOR
    for depth, name in enumerate(names):
        field = descriptor.fields_by_name.get(name)
        if field is None:
            return False
        if depth + 1 == len(names):
            return True
        if field.type != FieldDescriptor.TYPE_MESSAGE or field.is_repeated or field.message_type is None:
            return False
        descriptor = field.message_type
    return False


def changed(old: Body, given: Body, paths: Sequence[str]) -> Body:
    """A copy of a message with the named fields as they are in another; a field that is not set there is cleared."""
    made = type(old)()
    made.CopyFrom(old)
    for path in paths:
        _assign(made, given, path.split("."))
    return made


def _assign(made: Message, given: Message, names: Sequence[str]) -> None:
    name = names[0]
    if len(names) > 1:
        if made.HasField(name) or given.HasField(name):
            _assign(getattr(made, name), getattr(given, name), names[1:])
        return
    made.ClearField(name)
    only = type(given)()
    only.CopyFrom(given)
    for field, _ in given.ListFields():
        if field.name != name:
            only.ClearField(field.name)
    made.MergeFrom(only)


def version_expected(request: Message) -> int | None:
    """The version that a request expects. Refuses 0 and less: nothing is at it."""
    if not request.HasField("expected_version"):
        return None
    version: int = getattr(request, "expected_version")  # noqa: B009  not every message has the field
    if version < 1:
        raise InvalidRequest("expected_version", f"{version} is below 1, the first version")
    return version


# --- pages ---


@dataclass(frozen=True, slots=True)
class Taken(Generic[Item]):
    """A page of items. `last` is the record that the next page begins after; None: there is no next page."""

    items: list[Item]
    last: Record | None


async def take(
    page: Page, read: Read, place: Callable[[Record], Position], show: Callable[[Record], Item | None]
) -> Taken[Item]:
    """Take a page of the records that `show` shows. A page may be short, or empty, and still have a next one."""
    items: list[Item] = []
    size_bytes = scanned = 0
    after, last = page.after, None
    batch_size = min(page.size + 1, _BATCH)
    while True:
        batch = await read(after, batch_size)
        for record in batch:
            item = show(record)
            if item is not None:
                size_bytes += len(record.body)
                if len(items) == page.size or (items and size_bytes > PAGE_BYTES):
                    return Taken(items, last)
                items.append(item)
            last = record
        scanned += len(batch)
        if len(batch) < batch_size or last is None:
            return Taken(items, None)
        if scanned >= _SCANNED:
            return Taken(items, last)
        after = place(last)


def by_time(record: Record) -> Position:
    """Where a record stands in a list with the newest first."""
    return (record.create_time_ns, record.id)


def before(position: Position | None) -> tuple[int, str] | None:
    """The position as the store takes it."""
    return None if position is None else (int(position[0]), str(position[1]))


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether all wanted labels are there with equal value."""
    return wanted.items() <= labels.items()
