"""What a tool server remembers of its calls, so that a key is executed once.

Above: `calls`. `MemoryStore` forgets when the process ends, and its server never promises that an unknown key was not
executed; `SqliteStore` has each change on the disk before it is acted on.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

MAX_ENTRIES = 10_000
_TABLE = """
CREATE TABLE IF NOT EXISTS calls (
    key TEXT PRIMARY KEY, state TEXT NOT NULL, epoch INTEGER NOT NULL, attempt INTEGER NOT NULL,
    digest BLOB NOT NULL, result BLOB NOT NULL, change_time REAL NOT NULL
)
"""
RETENTION_SECONDS = 72 * 3600.0


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a key. A buried one was never begun, and must not be with its epoch and attempt or earlier."""

    state: Literal["running", "done", "buried"]
    epoch: int
    attempt: int = 0
    # Tells one request from another; empty for a buried one.
    digest: bytes = b""
    # The encoded result of a call that is done.
    result: bytes = b""


class Store(Protocol):
    """Contract: on return of `put` an entry is kept for the retention, over restarts if the store is durable."""

    is_durable: bool

    async def find(self, key: str) -> Entry | None:
        """Return what is known of a key."""
        ...

    async def put(self, key: str, entry: Entry) -> None:
        """Remember."""
        ...

    async def done(self) -> list[str]:
        """Return the keys that are done, the latest 10,000."""
        ...

    async def close(self) -> None:
        """Let go of files."""
        ...


class MemoryStore:
    """Remembers the last 10,000 changes."""

    is_durable = False

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    async def find(self, key: str) -> Entry | None:
        """Return what is known of a key."""
        return self._entries.get(key)

    async def put(self, key: str, entry: Entry) -> None:
        """Remember."""
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)

    async def done(self) -> list[str]:
        """Return the keys that are done."""
        return [key for key, entry in self._entries.items() if entry.state == "done"]

    async def close(self) -> None:
        """Forget."""
        self._entries.clear()


class SqliteStore:
    """Remembers in an SQLite file, by one thread, each change synced."""

    is_durable = True

    def __init__(self, path: str) -> None:
        """Open or make the file. Raises sqlite3.Error."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=FULL",
            _TABLE,
            "CREATE INDEX IF NOT EXISTS calls_by_time ON calls (change_time)",
        ):
            self._connection.execute(statement)

    async def find(self, key: str) -> Entry | None:
        """Return what is known of a key."""
        rows = await self._run(
            "SELECT state, epoch, attempt, digest, result FROM calls WHERE key = ? AND change_time >= ?", key, _oldest()
        )
        return Entry(*rows[0]) if rows else None

    async def put(self, key: str, entry: Entry) -> None:
        """Remember, durably."""
        await self._run("DELETE FROM calls WHERE change_time < ?", _oldest())
        fields = (entry.state, entry.epoch, entry.attempt, entry.digest, entry.result, time.time())
        await self._run("INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?)", key, *fields)

    async def done(self) -> list[str]:
        """Return the keys that are done, the latest 10,000."""
        query = "SELECT key FROM calls WHERE state = 'done' AND change_time >= ? ORDER BY change_time DESC LIMIT ?"
        return [row[0] for row in await self._run(query, _oldest(), MAX_ENTRIES)]

    async def close(self) -> None:
        """Close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()

    async def _run(self, statement: str, *values: object) -> list[Any]:
        def run() -> list[Any]:
            return self._connection.execute(statement, values).fetchall()

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)


def _oldest() -> float:
    return time.time() - RETENTION_SECONDS
