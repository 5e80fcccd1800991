"""Makes the bytes of what was deleted disappear from the files of a store, behind the deletions. The writer's thread.

SQLite overwrites what it deletes (`secure_delete`), which leaves two places: the WAL, which is copied into the file and
cut, and the slack of pages (between the pointers and the cells of a b-tree page), where a row stays that was moved to
another page before it was deleted. No statement reaches the slack, and SQLite never reads it: it is overwritten in the
file, step by step, while the WAL is empty and nobody else writes. See docs/data.md for when that is.
"""

from __future__ import annotations

import math
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from behestd.log.store import Change, DeleteRun, DeleteSession, Item, Purge

WIPE_SECONDS = 5.0
"""How long what was deleted without haste may stay in the WAL, so that many deletions share one wipe."""
SCRUB_SECONDS = 3600.0
"""How long it may stay in slack. So long after the start is also seen to what an earlier process left."""
RETRY_SECONDS = 0.25
"""Between two tries that a reader is in the way of."""
WAIT_MILLISECONDS = 20
"""How long a try waits for the reader, and with it whoever wants to commit."""
STEP_BYTES = 8 * 1024 * 1024
"""Bytes of the file that are looked through at once."""
PAUSE_SECONDS = 0.1
"""Between two such steps."""
_BTREE = {2: 12, 5: 12, 10: 8, 13: 8}
"""Kinds of b-tree pages, and how long their headers are."""
_MOST_PAGES = 2 << 24
"""A page of another kind begins with the number of a page: with as many, its first byte could be that of a kind."""


class Wiper:
    """Says when something is to be wiped, and wipes it. The file stays open until `close`, after all connections.

    A process that closes a file loses its locks on it, whoever took them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._wipe_at = math.inf
        self._scrub_at = time.monotonic() + SCRUB_SECONDS
        self._at = 0
        self._again = math.inf
        """How long after this pass the next one is due, for what was deleted behind its place."""
        self._rested_at = 0.0
        """When the next step may begin at the earliest."""

    def note(self, batch: Sequence[Item]) -> None:
        """Take note of what a batch deletes."""
        wipe, scrub = map(min, zip(*map(_patience, batch), strict=True))
        if wipe == math.inf:
            return
        now = time.monotonic()
        self._wipe_at = min(self._wipe_at, now + wipe)
        if self._at:
            self._again = min(self._again, scrub)
        else:
            self._scrub_at = min(self._scrub_at, max(now + scrub, self._rested_at))

    def seconds(self) -> float:
        """How long until there is something to do; infinite when there is nothing."""
        return min(self._wipe_at, self._scrub_at) - time.monotonic()

    def work(self, connection: sqlite3.Connection, checkpoint: Callable[[str], bool]) -> None:
        """Do what is due, a bounded amount. Between two transactions, on the thread that has the connection."""
        now = time.monotonic()
        connection.execute(f"PRAGMA busy_timeout = {WAIT_MILLISECONDS}")
        is_cut = checkpoint("TRUNCATE")
        connection.execute("PRAGMA busy_timeout = 5000")
        if not is_cut:
            # A reader in the middle of a query keeps the WAL from being cut.
            self._wipe_at = max(self._wipe_at, now + RETRY_SECONDS)
            self._scrub_at = max(self._scrub_at, now + RETRY_SECONDS)
            return
        self._wipe_at = math.inf
        if self._scrub_at <= now:
            try:
                self._scrub_at = now + self._scrub(connection)
                self._rested_at = now + PAUSE_SECONDS
            except OSError:
                # The disk's trouble is for the next commit to find.
                self._scrub_at = now + SCRUB_SECONDS

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _scrub(self, connection: sqlite3.Connection) -> float:
        """Look through the next part of the file; gives after how many seconds to go on."""
        wal = self._path.with_name(self._path.name + "-wal")
        header = os.pread(self._file, 100, 0)
        page_bytes = int.from_bytes(header[16:18], "big")
        size_bytes = os.fstat(self._file).st_size
        is_vacuumed = header[52:56] != bytes(4)
        if is_vacuumed or page_bytes < 512 or size_bytes // page_bytes >= _MOST_PAGES or wal.stat().st_size:
            return math.inf
        data = os.pread(self._file, STEP_BYTES // page_bytes * page_bytes, self._at)
        spans = [span for at in range(0, len(data), page_bytes) if (span := _slack(data, at, page_bytes, self._at))]
        for start, length in spans:
            os.pwrite(self._file, bytes(length), self._at + start)
        if spans:
            os.fsync(self._file)
            # What the connection remembers of these pages is what was in their slack, too.
            connection.execute("PRAGMA shrink_memory")
        self._at += len(data)
        if data and self._at < size_bytes:
            return PAUSE_SECONDS
        again, self._at, self._again = self._again, 0, math.inf
        return max(again, PAUSE_SECONDS)


def _slack(data: bytes, at: int, page_bytes: int, offset: int) -> tuple[int, int] | None:
    """Where the slack of the page at a place begins, and how long it is; None when it is clean or there is none."""
    # The first page of the file begins with the header of the file.
    head = at + 100 if at + offset == 0 else at
    size = _BTREE.get(data[head])
    if size is None or len(data) < at + page_bytes:
        return None
    cells, content = struct.unpack_from(">HH", data, head + 3)
    start, end = head + size + 2 * cells, at + (content or 65536)
    if not start < end <= at + page_bytes or not data[start:end].strip(b"\0"):
        return None
    return start, end - start


def _patience(item: Item) -> tuple[float, float]:
    """How long what an item deletes may stay in the WAL and in slack; for ever when it deletes nothing."""
    match item:
        case DeleteSession() | DeleteRun(is_leisurely=False):
            return 0.0, 0.0
        case DeleteRun() | Purge():
            return WIPE_SECONDS, SCRUB_SECONDS
        case Change() if item.deletes:
            return WIPE_SECONDS, SCRUB_SECONDS
        case _:
            return math.inf, math.inf
