"""The watch of a run: frames made of stored bytes, read by position. Above: the run service. Below: tail and deltas.

Promises: events in order, no gap, no repeat, durable ones only, resumable anywhere. A frame holds whole commits;
deltas ride on it when the attempt they belong to is still open after its events, and go before the events that close it
otherwise. A watcher holds two positions and no queue.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from behestd.errors import Draining
from behestd.log import frames
from behestd.log.frames import varint
from behestd.log.store import Store
from behestd.log.tail import Page, Tail
from behestd.runtime.driver import Driver
from behestd.runtime.live import Place, Stretch
from behestd.service.call import Call

_HEAD_TAG = b"\x18"
"""Field 3 of WatchRunResponse, a varint."""
_FRAME_BYTES = 256 * 1024
"""About the largest frame, which is what a watcher that does not read costs; a commit that is larger goes whole."""


@dataclass(slots=True)
class Watches:
    """What all watches share: the store, the heartbeat, and whether the daemon drains."""

    store: Store
    heartbeat_seconds: float = 15.0
    is_draining: bool = False
    cursors: set[_Cursor] = field(default_factory=set)
    """Of those who watch."""

    def drain(self) -> None:
        """End every watch, each with its resume point."""
        self.is_draining = True
        for cursor in self.cursors:
            cursor.tail.pulse()


class _Cursor:
    """A watcher's two positions, and the making of its next frame."""

    __slots__ = ("after", "place", "store", "tail")

    def __init__(self, tail: Tail, store: Store, after: int, driver: Driver | None) -> None:
        self.tail = tail
        self.store = store
        self.after = after
        self.place = Place(driver.deltas.last) if driver is not None else None

    async def next(self) -> bytes:
        """Make the next frame and move past it; empty when nothing is new."""
        self._skip()
        stretch = self.place.stretch if self.place is not None else None
        if stretch is None or self.after + 1 != stretch.closed_at or self._is_spent():
            page = self.tail.read(self.after) or await self.tail.read_from(self.store, self.after, _FRAME_BYTES)
        else:
            page = Page(b"", self.after)
        if stretch is not None and self._holds_back(stretch, page):
            page = _cut(page, self.after, stretch.closed_at - 1)
        self.after = page.last_sequence
        deltas = self._deltas()
        if not page.data and not deltas:
            return b""
        return page.data + deltas + _HEAD_TAG + varint(max(self.tail.head, self.after))

    def heartbeat(self) -> bytes:
        """A frame that only says how far the log is."""
        return _HEAD_TAG + varint(self.tail.head)

    def _skip(self) -> None:
        """Go on to the next stretch when this one is closed and told, or past."""
        place = self.place
        while place is not None and place.stretch.closed_at and place.stretch.next is not None:
            if self.after < place.stretch.closed_at and not self._is_spent():
                return
            place.move(place.stretch.next)

    def _is_spent(self) -> bool:
        place = self.place
        if place is None:
            return True
        stretch = place.stretch
        return place.pieces == len(stretch.pieces) and place.progress == stretch.told

    def _holds_back(self, stretch: Stretch, page: Page) -> bool:
        """Whether the page would overtake deltas that are not told yet."""
        return self.after < stretch.closed_at <= page.last_sequence and not self._is_spent()

    def _deltas(self) -> bytes:
        place = self.place
        if place is None or self.after < place.stretch.opened_at:
            return b""
        if place.stretch.closed_at and self.after >= place.stretch.closed_at:
            return b""
        return place.take()


def _cut(page: Page, after: int, last_sequence: int) -> Page:
    """The page up to a sequence."""
    if last_sequence <= after:
        return Page(b"", after)
    events = frames.split(page.data)[: last_sequence - after]
    return Page(frames.frame(events), last_sequence)


async def watch(call: Call, watches: Watches, tail: Tail, after: int, driver: Driver | None) -> None:
    """Send every event after a sequence, then new ones as they happen; return after the terminal one.

    Raises WatchAhead, WatchCompacted, WatchStalled, Draining.
    """
    tail.check(after)
    cursor = _Cursor(tail, watches.store, after, driver)
    watches.cursors.add(cursor)
    try:
        await _follow(call, watches, cursor)
    finally:
        watches.cursors.discard(cursor)


async def _follow(call: Call, watches: Watches, cursor: _Cursor) -> None:
    tail, has_sent = cursor.tail, False
    while True:
        frame = await cursor.next()
        if frame:
            await call.write(frame, cursor.after)
            has_sent = True
            continue
        if tail.is_ended and cursor.after >= tail.head:
            if not has_sent:
                await call.write(cursor.heartbeat(), cursor.after)
            return
        tail.check(cursor.after)
        if watches.is_draining:
            raise Draining(cursor.after)
        if not has_sent:
            await call.write(cursor.heartbeat(), cursor.after)
            has_sent = True
            continue
        if not await tail.wait(watches.heartbeat_seconds):
            await call.write(cursor.heartbeat(), cursor.after)
