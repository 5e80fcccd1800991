"""The watch of a run: frames made of stored bytes, read by position. Above: the run service. Below: tail and deltas.

Promises: events in order, no gap, no repeat, durable ones only, resumable anywhere. A frame holds whole commits;
deltas ride on it when the attempt they belong to is still open after its events, and go before the events that close it
otherwise. A watcher holds a position in the log, one in each stretch of deltas that is open there, and no queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from behestd.errors import Draining
from behestd.log import frames
from behestd.log.frames import varint
from behestd.log.store import Store
from behestd.log.tail import Page, Tail
from behestd.runtime.driver import Driver
from behestd.runtime.live import FRAME_CHARACTERS, Link, Place
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
    cursors: set[Cursor] = field(default_factory=set)
    """Of those who watch."""

    def drain(self) -> None:
        """End every watch, each with its resume point."""
        self.is_draining = True
        for cursor in self.cursors:
            cursor.tail.pulse()


Find = Callable[[], Driver | None]
"""Finds the driver of a run that goes on; None while it has none."""


class Cursor:
    """A watcher's place in the log and its places in the stretches that are open there, and the making of frames."""

    __slots__ = ("_chain", "_find", "_places", "after", "store", "tail")

    def __init__(self, tail: Tail, store: Store, after: int, find: Find) -> None:
        self.tail = tail
        self.store = store
        self.after = after
        self._places: list[Place] = []
        self._chain: Link | None = None
        """That of the last stretch that there is or was a place for; the others follow it."""
        self._find = find
        self._join()

    def _join(self) -> None:
        """Take places in what is open. Right after a start a run may be watched before its driver has taken it up."""
        driver = self._find()
        if driver is not None:
            at_work, self._chain = driver.deltas.begin(self.tail.head)
            self._places = [Place(stretch) for stretch in at_work]

    async def next(self) -> bytes:
        """Make the next frame and move past it; empty when nothing is new."""
        if self._chain is None:
            self._join()
        page = self.tail.read(self.after)
        if page is None:
            # Of a page that deltas go before nothing would be left.
            is_held = self._barrier() == self.after + 1
            page = _none(self.after) if is_held else await self.tail.read_from(self.store, self.after, _FRAME_BYTES)
        if page.data and self._chain is not None:
            page = self._move(page)
        self.after = page.last_sequence
        deltas = self._take() if self._places else b""
        if not page.data and not deltas:
            return b""
        return page.data + deltas + _HEAD_TAG + varint(max(self.tail.head, self.after))

    def heartbeat(self) -> bytes:
        """A frame that only says how far the log is."""
        return _HEAD_TAG + varint(self.tail.head)

    def _move(self, page: Page) -> Page:
        """Take places in the stretches that a page opens, cut it where deltas go before it, and leave what is past."""
        while self._chain is not None and (link := self._chain.next) is not None:
            if link.stretch.opened_at > page.last_sequence:
                break
            self._chain = link
            self._places.append(Place(link.stretch))
        barrier = self._barrier()
        if barrier <= page.last_sequence:
            page = _cut(page, self.after, int(barrier) - 1)
        after = page.last_sequence
        self._places = [place for place in self._places if not 0 < place.stretch.closed_at <= after]
        return page

    def _barrier(self) -> float:
        """The first event that would overtake deltas which are not told yet."""
        barrier = inf
        for place in self._places:
            closed_at = place.stretch.closed_at
            if closed_at and closed_at < barrier and not place.is_spent:
                barrier = closed_at
        return barrier

    def _take(self) -> bytes:
        """Take what is new in all stretches that are open here, as much as a frame takes.

        Where a frame does not take everything, the next one begins with those who came too short.
        """
        room, taken = FRAME_CHARACTERS, b""
        for number, place in enumerate(self._places):
            if place.stretch.opened_at <= self.after and (data := place.take(room)):
                taken = taken + data if taken else data
                room -= len(data)
                if room <= 0:
                    self._places = [*self._places[number + 1 :], *self._places[: number + 1]]
                    break
        return taken


def _none(after: int) -> Page:
    """A page without events."""
    return Page(b"", after)


def _cut(page: Page, after: int, last_sequence: int) -> Page:
    """The page up to a sequence."""
    if last_sequence <= after:
        return _none(after)
    events = frames.split(page.data)[: last_sequence - after]
    return Page(frames.frame(events), last_sequence)


async def watch(call: Call, watches: Watches, tail: Tail, after: int, find: Find) -> None:
    """Send every event after a sequence, then new ones as they happen; return after the terminal one.

    `find` gives the run's driver, once it is here.

    Raises WatchAhead, WatchCompacted, WatchStalled, Draining.
    """
    tail.check(after)
    cursor = Cursor(tail, watches.store, after, find)
    watches.cursors.add(cursor)
    try:
        await _follow(call, watches, cursor)
    finally:
        watches.cursors.discard(cursor)


async def _follow(call: Call, watches: Watches, cursor: Cursor) -> None:
    tail, has_sent = cursor.tail, False
    while True:
        frame = await cursor.next()
        if frame:
            await call.write(frame, cursor.after)
            has_sent = True
        # Deltas go before the event that closes their stretch: behind the last event there is nothing.
        if tail.is_ended and cursor.after >= tail.head:
            if not has_sent:
                await call.write(cursor.heartbeat(), cursor.after)
            return
        if frame:
            continue
        tail.check(cursor.after)
        if watches.is_draining:
            raise Draining(cursor.after)
        if not has_sent:
            await call.write(cursor.heartbeat(), cursor.after)
            has_sent = True
            continue
        if not await tail.wait(watches.heartbeat_seconds):
            await call.write(cursor.heartbeat(), cursor.after)
