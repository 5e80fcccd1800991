"""The recent events of one run in memory, for those who watch it. A watcher holds a cursor, never a queue.

Filled by `log.log` after a commit and before anybody is woken; what is no longer here is read from the store. While a
watcher keeps up, it costs no read of the store and no copy of a chunk.
"""

from __future__ import annotations

from collections import deque

from behestd import errors
from behestd.log import frames
from behestd.log.store import Chunk, RunRow, Store
from behestd.log.waiters import Waiters
from behestd.values import dataclass

TAIL_BYTES = 256 * 1024
"""Events of one run kept in memory; its newest chunk always is, whatever its size."""
PAGE_BYTES = 512 * 1024
"""Events read from the store at once."""


@dataclass(frozen=True, slots=True)
class Page:
    """A frame of events and the sequence of the last of them, the cursor for the next page."""

    data: bytes
    last_sequence: int


class Tail:
    """The end of a run's log. Written by the log alone; everybody else reads and waits.

    `head` is the last durable sequence, `is_ended` whether its event is terminal, `oldest` the first sequence that is
    still stored (head + 1 when the log was deleted).
    """

    __slots__ = (
        "__weakref__",
        "_bytes",
        "_chunks",
        "head",
        "is_ended",
        "namespace",
        "oldest",
        "run_id",
        "session_id",
        "waiters",
    )

    def __init__(self, namespace: str, run_id: str, session_id: str = "") -> None:
        self.namespace = namespace
        self.run_id = run_id
        self.session_id = session_id
        self.head = 0
        self.oldest = 1
        self.is_ended = False
        self.waiters = Waiters()
        self._chunks: deque[Chunk] = deque()
        self._bytes = 0

    @property
    def memory_bytes(self) -> int:
        """Bytes of events held."""
        return self._bytes

    def check(self, after_sequence: int) -> None:
        """Refuse a cursor from which a watch cannot go on. Raises WatchCompacted or WatchAhead."""
        if after_sequence > self.head:
            raise errors.WatchAhead(self.head)
        if after_sequence < self.oldest - 1:
            raise errors.WatchCompacted(self.oldest)

    def read(self, after_sequence: int) -> Page | None:
        """Return what is new above a cursor: an empty page when nothing is, None when the store must be asked."""
        chunks = self._chunks
        if after_sequence >= self.head:
            return Page(b"", after_sequence)
        if not chunks or chunks[0].first_sequence > after_sequence + 1:
            return None
        if chunks[-1].first_sequence <= after_sequence + 1:
            return Page(frames.trim(chunks[-1], after_sequence), self.head)
        due = [chunk for chunk in chunks if chunk.last_sequence > after_sequence]
        return Page(frames.join(due, after_sequence), self.head)

    async def read_from(self, store: Store, after_sequence: int, limit_bytes: int = PAGE_BYTES) -> Page:
        """Read a page above a cursor from the store. Raises WatchCompacted when the log was deleted meanwhile."""
        stored = await store.chunks(self.namespace, self.run_id, after_sequence, limit_bytes)
        # The store may already show a commit that is about to be announced here.
        due = [chunk for chunk in stored if chunk.last_sequence <= self.head]
        if not due:
            self.check(after_sequence)
            return Page(b"", after_sequence)
        return Page(frames.join(due, after_sequence), due[-1].last_sequence)

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until something new may be there. False when `seconds` passed without."""
        return await self.waiters.wait(seconds)

    def pulse(self) -> None:
        """Wake those who wait, for something that is not in the log."""
        self.waiters.wake()

    # --- for the log ---

    def advance(self, chunk: Chunk, row: RunRow) -> None:
        """Take a durable chunk. Nobody is woken yet."""
        self.session_id = row.session_id
        self.head = chunk.last_sequence
        self.is_ended = row.is_ended
        self._chunks.append(chunk)
        self._bytes += len(chunk.data)
        while self._bytes > TAIL_BYTES and len(self._chunks) > 1:
            self._bytes -= len(self._chunks.popleft().data)

    def settle(self, row: RunRow) -> None:
        """Take what the store said, unless a commit was quicker."""
        self.session_id = row.session_id
        if row.last_sequence > self.head:
            self.head = row.last_sequence
            self.is_ended = row.is_ended
            self.oldest = row.first_sequence

    def forget(self) -> None:
        """Take note that the log was deleted, and tell those who wait."""
        self.oldest = self.head + 1
        self._chunks.clear()
        self._bytes = 0
        self.waiters.wake()
