"""EventService: the events of all runs of a namespace, in the order of their commits. Above: the edge. Below: the log.

A watcher holds a commit position and nothing else. Frames are stored bytes: events are not parsed, and with a filter
of kinds no more of them is read than the number of the payload's field. A cursor is bound to namespace and filters.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from behest.v1 import event_service_pb2 as pb
from behest.v1.event_pb2 import Event
from behest.v1.run_pb2 import Run as RunMessage
from behestd.errors import Draining, InvalidRequest, WatchAhead, WatchCompacted
from behestd.log import frames
from behestd.log.frames import varint
from behestd.log.log import Log
from behestd.log.store import Store, TailChunk
from behestd.service.call import Call
from behestd.service.methods import Handler
from behestd.service.validate import identifier, labels, max_items
from behestd.service.watch import Watches

PAGE_BYTES = 512 * 1024
"""About how much is read and sent at once; a commit that is larger goes whole."""
MAX_IDS = 256
_CURSOR_TAG = b"\x12"
_CAUGHT_UP = b"\x18\x01"
_CHECK_BYTES = 12
_POSITION_BYTES = 8
_REMEMBERED_RUNS = 4096
_PAYLOAD = {field.name: field.number for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields}
_FIRST_PAYLOAD = min(_PAYLOAD.values())


class Events:
    """Handlers of EventService."""

    def __init__(self, log: Log, watches: Watches) -> None:
        self._log = log
        self._watches = watches

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {"/behest.v1.EventService/WatchEvents": self.watch_events}

    async def watch_events(self, request: pb.WatchEventsRequest, call: Call) -> None:
        """Send the events after a cursor, then new ones. Raises WatchAhead, WatchCompacted, WatchStalled, Draining."""
        _check(request)
        binding = _binding(request, call.namespace)
        position = await self._start(request, binding)
        reader = _Reader(self._log, call.namespace, _Filter.of(request, self._log.store), position)
        loop = asyncio.get_running_loop()
        due = loop.time()
        is_told = False
        while True:
            data = await reader.next()
            if data or is_told != reader.has_caught_up or loop.time() >= due:
                await call.write(_frame(data, _cursor(reader.position, binding), reader.has_caught_up))
                is_told = reader.has_caught_up
                due = loop.time() + self._watches.heartbeat_seconds
            if reader.has_caught_up and reader.position == self._log.position:
                if self._watches.is_draining:
                    raise Draining
                await self._log.changes.wait(max(due - loop.time(), 0.0))

    async def _start(self, request: pb.WatchEventsRequest, binding: bytes) -> int:
        """The position to begin after."""
        if request.only_new:
            return self._log.position
        if not request.after_cursor:
            return 0
        position = _position(request.after_cursor, binding)
        if position > self._log.position:
            raise WatchAhead(self._log.position)
        oldest, newest = await self._log.store.positions()
        if position + 1 < (oldest or newest + 1):
            raise WatchCompacted(oldest or newest + 1)
        return position


class _Reader:
    """A watcher's place in the log of a namespace."""

    __slots__ = ("_filter", "_log", "_namespace", "has_caught_up", "position")

    def __init__(self, log: Log, namespace: str, wanted: _Filter, position: int) -> None:
        self._log = log
        self._namespace = namespace
        self._filter = wanted
        self.position = position
        self.has_caught_up = False
        """Whether the end was reached by the last read."""

    async def next(self) -> bytes:
        """Read the next events that pass, as wire bytes, and move past them. Empty when none does."""
        # What the store shows beyond this may not be announced yet.
        end = self._log.position
        self.has_caught_up = self.position >= end
        if self.has_caught_up:
            return b""
        found = await self._log.store.tail(self._namespace, self.position, PAGE_BYTES)
        due = [tail for tail in found if tail.chunk.position <= end]
        is_full = len(due) == len(found) and sum(len(tail.chunk.data) for tail in found) >= PAGE_BYTES
        data = [await self._filter.passing(tail) for tail in due]
        self.position = due[-1].chunk.position if is_full else end
        self.has_caught_up = not is_full
        return b"".join(data)


@dataclass(slots=True)
class _Filter:
    """What passes. Labels of runs never change, so what is known of one is remembered."""

    store: Store
    sessions: frozenset[str]
    agents: frozenset[str]
    kinds: frozenset[int]
    labels: Mapping[str, str]
    known: OrderedDict[str, bool] = field(default_factory=OrderedDict)

    @classmethod
    def of(cls, request: pb.WatchEventsRequest, store: Store) -> _Filter:
        """The filter of a request."""
        kinds = frozenset(_PAYLOAD[kind] for kind in request.kinds)
        return cls(store, frozenset(request.session_ids), frozenset(request.agent_ids), kinds, dict(request.labels))

    async def passing(self, tail: TailChunk) -> bytes:
        """The events of a chunk that pass, as wire bytes."""
        if (self.sessions and tail.session_id not in self.sessions) or (
            self.agents and tail.agent_id not in self.agents
        ):
            return b""
        if self.labels and not await self._has_labels(tail):
            return b""
        return tail.chunk.data if not self.kinds else _of_kinds(tail.chunk.data, self.kinds)

    async def _has_labels(self, tail: TailChunk) -> bool:
        known = self.known.get(tail.run_id)
        if known is None:
            row = await self.store.run(tail.namespace, tail.run_id)
            found = RunMessage.FromString(row.body).labels if row is not None else {}
            known = self.known[tail.run_id] = self.labels.items() <= dict(found).items()
            if len(self.known) > _REMEMBERED_RUNS:
                self.known.popitem(last=False)
        return known


def _of_kinds(data: bytes, kinds: frozenset[int]) -> bytes:
    return frames.frame(event for event in frames.split(data) if payload_number(event) in kinds)


def payload_number(event: bytes) -> int:
    """The field number of a serialised event's payload, read without parsing it; 0 when there is none.

    Fields are written in the order of their numbers, and the payload's are the highest.
    """
    at, size = 0, len(event)
    while at < size:
        tag, at = _varint(event, at)
        number, kind = tag >> 3, tag & 7
        if number >= _FIRST_PAYLOAD:
            return number
        if kind == 0:
            _, at = _varint(event, at)
        elif kind == 2:
            length, at = _varint(event, at)
            at += length
        else:
            at += 8 if kind == 1 else 4
    return 0


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return value, at


def _frame(data: bytes, cursor: str, has_caught_up: bool) -> bytes:
    """A WatchEventsResponse around stored bytes, which are its first field as they are that of WatchRunResponse."""
    encoded = cursor.encode()
    return b"".join((data, _CURSOR_TAG, varint(len(encoded)), encoded, _CAUGHT_UP if has_caught_up else b""))


# --- requests and cursors ---


def _check(request: pb.WatchEventsRequest) -> None:
    if request.only_new and request.after_cursor:
        raise InvalidRequest("only_new", "goes without after_cursor")
    for name, values in (("session_ids", request.session_ids), ("agent_ids", request.agent_ids)):
        _check_ids(name, values)
    max_items("kinds", request.kinds, len(_PAYLOAD))
    for index, kind in enumerate(request.kinds):
        if kind not in _PAYLOAD:
            raise InvalidRequest(f"kinds[{index}]", f"{kind[:64]!r} is no kind of event that this version knows")
    labels("labels", request.labels)


def _check_ids(name: str, values: Sequence[str]) -> None:
    max_items(name, values, MAX_IDS)
    for index, value in enumerate(values):
        identifier(f"{name}[{index}]", value)


def _binding(request: pb.WatchEventsRequest, namespace: str) -> bytes:
    filters = pb.WatchEventsRequest(
        session_ids=sorted(set(request.session_ids)),
        agent_ids=sorted(set(request.agent_ids)),
        kinds=sorted(set(request.kinds)),
        labels=request.labels,
    )
    return b"\0".join((namespace.encode(), filters.SerializeToString(deterministic=True)))


def _check_of(binding: bytes, body: bytes) -> bytes:
    return hashlib.sha256(len(binding).to_bytes(8, "big") + binding + body).digest()[:_CHECK_BYTES]


def _cursor(position: int, binding: bytes) -> str:
    body = position.to_bytes(_POSITION_BYTES, "big")
    return base64.urlsafe_b64encode(_check_of(binding, body) + body).decode().rstrip("=")


def _position(cursor: str, binding: bytes) -> int:
    """The position of a cursor. Raises InvalidRequest for one that this method did not make with these filters."""
    found = _decoded(cursor)
    check, body = found[:_CHECK_BYTES], found[_CHECK_BYTES:]
    if len(body) != _POSITION_BYTES or check != _check_of(binding, body):
        raise InvalidRequest("after_cursor", "was not made with these filters", reason="WATCH_CURSOR_INVALID")
    return int.from_bytes(body, "big")


def _decoded(cursor: str) -> bytes:
    if len(cursor) > 4 * (_CHECK_BYTES + _POSITION_BYTES):
        return b""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return b""
