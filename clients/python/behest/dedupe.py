"""What a tool server remembers of its calls, so that a key is executed once.

Above it `behest.tool_calls`. `MemoryDedupe` forgets everything when the process ends, and says so: it answers for the
keys that it knows, and never promises that an unknown one was not executed. `SqliteDedupe` keeps its word over
restarts: each change is on the disk before it is acted on. Entries live for the retention, counted from their last
change.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Protocol

RETENTION_SECONDS = 72 * 3600.0
HELD_KEYS = 10_000
"""The most keys that are reported as held."""
_MAX_ENTRIES = 100_000
_MAX_BYTES = 256 * 1024 * 1024
EVERY_ATTEMPT = (1 << 31) - 1
"""The attempt of an entry that stands for all attempts of its epoch."""


class State(StrEnum):
    """What is known of a key."""

    RUNNING = "running"
    """It was begun. Of a call that this process does not run: it was lost, and nobody knows how far it came."""
    DONE = "done"
    BURIED = "buried"
    """It was never begun, and must not be with the entry's epoch and attempt, or what came before."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is remembered of a key. `digest` tells one request from another, `result` is set when it is done.

    `attempt` counts where the key is buried: the last one that must not be executed.
    """

    state: State
    epoch: int
    digest: bytes = b""
    result: bytes = b""
    attempt: int = EVERY_ATTEMPT


_NOTHING = Entry(State.BURIED, 0)


class Dedupe(Protocol):
    """Remembers calls by key. One server, one loop, uses it at a time."""

    is_durable: bool
    """Whether a key that is not here was never executed within the retention."""
    retention_seconds: float
    """How long a key is known after its last change."""

    async def find(self, key: str) -> Entry | None:
        """What is known of a key."""
        ...

    async def put(self, key: str, entry: Entry) -> None:
        """Remember. On return it outlives the process, if the store is durable."""
        ...

    async def held(self) -> list[tuple[str, State]]:
        """Return the keys that were begun or done, the one that changed last first; at most 10,000."""
        ...

    async def close(self) -> None:
        """Let go of files and threads."""
        ...


class MemoryDedupe:
    """Remembers at most 100,000 calls and 256 MiB of results for the retention, and nothing beyond the process."""

    is_durable = False

    def __init__(self, retention_seconds: float = RETENTION_SECONDS, clock: Callable[[], float] = time.time) -> None:
        self.retention_seconds = retention_seconds
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, Entry]] = OrderedDict()
        self._bytes = 0

    async def find(self, key: str) -> Entry | None:
        """What is known of a key."""
        self._forget()
        found = self._entries.get(key)
        return None if found is None else found[1]

    async def put(self, key: str, entry: Entry) -> None:
        """Remember."""
        self._drop(key)
        self._entries[key] = (self._clock(), entry)
        self._bytes += len(entry.result)

    async def held(self) -> list[tuple[str, State]]:
        """Return the keys that were begun or done, the one that changed last first; at most 10,000."""
        self._forget()
        newest = ((key, entry.state) for key, (_, entry) in reversed(self._entries.items()))
        return list(islice((held for held in newest if held[1] is not State.BURIED), HELD_KEYS))

    async def close(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def _forget(self) -> None:
        oldest = self._clock() - self.retention_seconds
        while self._entries:
            key, (changed, _) = next(iter(self._entries.items()))
            is_full = len(self._entries) > _MAX_ENTRIES or self._bytes > _MAX_BYTES
            if changed >= oldest and not is_full:
                break
            self._drop(key)

    def _drop(self, key: str) -> None:
        _, entry = self._entries.pop(key, (0.0, _NOTHING))
        self._bytes -= len(entry.result)


class SqliteDedupe:
    """Remembers calls in an SQLite file, by one thread, each change synced to the disk before it counts."""

    is_durable = True

    def __init__(
        self, path: str, retention_seconds: float = RETENTION_SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        """Open or make the file. Raises sqlite3.Error."""
        self.retention_seconds = retention_seconds
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dedupe")
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, state TEXT NOT NULL, epoch INTEGER NOT NULL,"
            " digest BLOB NOT NULL, result BLOB NOT NULL, change_time REAL NOT NULL)"
        )
        if "attempt" not in {column[1] for column in self._connection.execute("PRAGMA table_info(calls)")}:
            self._connection.execute(f"ALTER TABLE calls ADD COLUMN attempt INTEGER NOT NULL DEFAULT {EVERY_ATTEMPT}")
        self._connection.execute("CREATE INDEX IF NOT EXISTS calls_by_time ON calls (change_time)")

    async def find(self, key: str) -> Entry | None:
        """What is known of a key."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._find, key)

    async def put(self, key: str, entry: Entry) -> None:
        """Remember, durably."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._put, key, entry)

    async def held(self) -> list[tuple[str, State]]:
        """Return the keys that were begun or done, the one that changed last first; at most 10,000."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._held)

    async def close(self) -> None:
        """Close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()

    def _find(self, key: str) -> Entry | None:
        row = self._connection.execute(
            "SELECT state, epoch, digest, result, attempt FROM calls WHERE key = ? AND change_time >= ?",
            (key, self._clock() - self.retention_seconds),
        ).fetchone()
        return None if row is None else Entry(State(row[0]), *row[1:])

    def _held(self) -> list[tuple[str, State]]:
        rows = self._connection.execute(
            "SELECT key, state FROM calls WHERE change_time >= ? AND state != ? ORDER BY change_time DESC LIMIT ?",
            (self._clock() - self.retention_seconds, State.BURIED.value, HELD_KEYS),
        )
        return [(key, State(state)) for key, state in rows]

    def _put(self, key: str, entry: Entry) -> None:
        now = self._clock()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.execute("DELETE FROM calls WHERE change_time < ?", (now - self.retention_seconds,))
            self._connection.execute(
                "INSERT OR REPLACE INTO calls (key, state, epoch, digest, result, change_time, attempt)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, entry.state.value, entry.epoch, entry.digest, entry.result, now, entry.attempt),
            )
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
