"""The default store: one SQLite file in WAL mode, every commit flushed to the disk before it is told. Durability LOCAL.

Put together here from the directory's lock, the schema, the one writer and the readers; the port is `log.store`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

from behest.v1 import run_state_pb2
from behestd import errors
from behestd.log import fsck, sqlite_schema
from behestd.log.counts import Statistics, Times
from behestd.log.directory import Ballast, Directory, Mark, StoreInUse, boot_id
from behestd.log.sqlite_reader import Reader
from behestd.log.sqlite_schema import StoreCorrupt
from behestd.log.sqlite_transaction import Transactions
from behestd.log.sqlite_wipe import Wiper
from behestd.log.sqlite_writer import Writer
from behestd.log.store import (
    Append,
    Chunk,
    Claim,
    Committed,
    CommitUnknown,
    Entry,
    Item,
    Outcome,
    Record,
    RunQuery,
    RunRow,
    TailChunk,
)
from behestd.log.usage import UsagePage, UsageQuery

BALLAST_BYTES = 64 * 1024 * 1024
SQLITE_VERSION = sqlite3.sqlite_version
"""The version of the library in force, logged at start and shown by GetServerInfo."""


Synchronous = Literal["FULL", "NORMAL"]


class SqliteStore:
    """A store in a data directory. Made by `open`, ended by `close`, without which the readers' threads live on."""

    name = "sqlite"
    durability: int = run_state_pb2.DURABILITY_CLASS_LOCAL

    def __init__(self, directory: Directory, writer: Writer, reader: Reader, mark: Mark, *, was_set_back: bool) -> None:
        self._directory = directory
        self._writer = writer
        self._reader = reader
        self._counts = Statistics()
        self._times = Times()
        self.mark = mark
        """Which store this is, and its generation."""
        self.was_set_back = was_set_back
        """Whether the file is older than what was open here last: restored from a backup, or its WAL was deleted."""

    @classmethod
    async def open(
        cls, data_dir: Path, *, ballast_bytes: int = BALLAST_BYTES, synchronous: Synchronous = "FULL"
    ) -> Self:
        """Take the directory, bring the file up to date, check it and start the writer.

        `synchronous` NORMAL loses commits in a power cut and is for tests. Raises StoreInUse, NewerStore, StoreCorrupt,
        LogCorrupt, StorageFailed, or OSError when the directory cannot be used.
        """
        store = await asyncio.to_thread(cls._open, data_dir, ballast_bytes, synchronous)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(store.close)
            await store._reader.open()
            store._writer.start()
            undo.pop_all()
        return store

    @classmethod
    def _open(cls, data_dir: Path, ballast_bytes: int, synchronous: Synchronous) -> Self:
        directory = Directory(data_dir)
        path = data_dir / sqlite_schema.FILE_NAME
        ballast = Ballast(data_dir, ballast_bytes)
        lost_wal = not directory.last.is_closed and not path.with_name(path.name + "-wal").exists()
        with contextlib.ExitStack() as undo:
            undo.callback(directory.close)
            connection = undo.enter_context(contextlib.closing(sqlite_schema.connect(path)))
            try:
                identity = sqlite_schema.prepare(connection, synchronous, boot_id(), make_room=ballast.release)
            except sqlite3.DatabaseError as error:
                raise _opening_error(error, data_dir) from error
            last = directory.last
            is_known = last.store_id in ("", identity.store_id) and last.generation < identity.generation
            mark = Mark(os.getpid(), identity.store_id, identity.generation, boot_id(), is_closed=False)
            directory.mark(mark)
            directory.sync()
            transactions = Transactions(connection, position=identity.position, run_key=identity.run_key)
            wiper = Wiper(path)
            undo.callback(wiper.close)
            writer = Writer(connection, transactions, ballast, wiper, syncs=1 if synchronous == "FULL" else 0)
            undo.pop_all()
        return cls(directory, writer, Reader(path), mark, was_set_back=lost_wal or not is_known)

    @property
    def is_degraded(self) -> bool:
        """See Store."""
        return self._writer.is_degraded

    async def write(self, batch: Sequence[Item]) -> list[Outcome]:
        """See Store."""
        receipt = await self._writer.submit(batch)
        counts = self._counts
        appended = [
            item.chunk.last_sequence - item.chunk.first_sequence + 1
            for item, outcome in zip(batch, receipt.outcomes, strict=True)
            if isinstance(item, Append) and isinstance(outcome, Committed)
        ]
        self._counts = replace(
            counts,
            commits=counts.commits + 1,
            items=counts.items + len(batch),
            events=counts.events + sum(appended),
            hops=counts.hops + 1,
            syncs=counts.syncs + receipt.syncs,
        )
        self._times.append(receipt.seconds)
        return receipt.outcomes

    async def chunks(self, namespace: str, run_id: str, after_sequence: int, limit_bytes: int) -> list[Chunk]:
        """See Store."""
        return await self._readable().chunks(namespace, run_id, after_sequence, limit_bytes)

    async def tail(self, namespace: str, after_position: int, limit_bytes: int) -> list[TailChunk]:
        """See Store."""
        return await self._readable().tail(namespace, after_position, limit_bytes)

    async def run(self, namespace: str, run_id: str) -> RunRow | None:
        """See Store."""
        return await self._readable().run(namespace, run_id)

    async def runs(self, query: RunQuery) -> list[RunRow]:
        """See Store."""
        return await self._readable().runs(query)

    async def unended(self, limit: int, after: tuple[str, str] = ("", "")) -> list[RunRow]:
        """See Store."""
        return await self._readable().unended(limit, after)

    async def ended(self, namespace: str, before_ns: int, limit: int, after: tuple[int, str] = (0, "")) -> list[RunRow]:
        """See Store."""
        return await self._readable().ended(namespace, before_ns, limit, after)

    async def session_runs(self, namespace: str, session_id: str) -> list[RunRow]:
        """See Store."""
        return await self._readable().session_runs(namespace, session_id)

    async def runs_of(
        self, namespace: str, session_id: str, limit: int, after: tuple[int, str] = (0, "")
    ) -> list[RunRow]:
        """See Store."""
        return await self._readable().runs_of(namespace, session_id, limit, after)

    async def last_session_index(self, namespace: str, session_id: str) -> int:
        """See Store."""
        return await self._readable().last_session_index(namespace, session_id)

    async def definition(self, hash: bytes) -> bytes | None:
        """See Store."""
        return await self._readable().definition(hash)

    async def entries(
        self, namespace: str, kind: str, *, session_id: str = "", run_id: str = "", after: int = 0, limit: int = 1000
    ) -> list[Entry]:
        """See Store."""
        reader = self._readable()
        return await reader.entries(namespace, kind, session_id=session_id, run_id=run_id, after=after, limit=limit)

    async def last_entries(self, namespace: str, kind: str, session_id: str, before: int, limit: int) -> list[Entry]:
        """See Store."""
        return await self._readable().last_entries(namespace, kind, session_id, before, limit)

    async def entry(self, namespace: str, kind: str, id: str) -> Entry | None:
        """See Store."""
        return await self._readable().entry(namespace, kind, id)

    async def request(self, namespace: str, request_id: str) -> Claim | None:
        """See Store."""
        return await self._readable().request(namespace, request_id)

    async def record(self, namespace: str, kind: str, id: str, now_ns: int) -> Record | None:
        """See Store."""
        return await self._readable().record(namespace, kind, id, now_ns)

    async def records(
        self,
        namespace: str,
        kind: str,
        *,
        parent: str | None = None,
        after: str = "",
        limit: int = 1000,
        now_ns: int = 0,
    ) -> list[Record]:
        """See Store."""
        reader = self._readable()
        return await reader.records(namespace, kind, parent=parent, after=after, limit=limit, now_ns=now_ns)

    async def newest_records(
        self, namespace: str, kind: str, *, parent: str | None, before: tuple[int, str] | None, limit: int
    ) -> list[Record]:
        """See Store."""
        return await self._readable().newest_records(namespace, kind, parent=parent, before=before, limit=limit)

    async def count_records(self, namespace: str, kind: str, parent: str, now_ns: int) -> int:
        """See Store."""
        return await self._readable().count_records(namespace, kind, parent, now_ns)

    async def namespaces(self) -> list[str]:
        """See Store."""
        return await self._readable().namespaces()

    async def usage(self, query: UsageQuery) -> UsagePage:
        """See Store."""
        return await self._readable().usage(query)

    async def positions(self) -> tuple[int, int]:
        """See Store."""
        newest = self._writer.position
        return await self._readable().oldest_position(), newest

    async def check(self) -> list[str]:
        """See Store."""
        report = await asyncio.to_thread(fsck.check, self._directory.path)
        return list(report.problems)

    def statistics(self) -> Statistics:
        """See Store."""
        return self._times.add_to(self._counts, reads=self._reader.reads)

    async def close(self) -> None:
        """See Store. After an unknown commit, or on a full disk, the file is left as it is for the next start."""
        if self._writer.is_poisoned or self._writer.is_degraded:
            # The last connection to close would checkpoint. Read-only ones cannot, so they close last.
            await self._writer.stop()
            await self._reader.close()
        else:
            await self._reader.close()
            await self._writer.stop()
            self._directory.mark(replace(self.mark, is_closed=True))
        self._writer.wiper.close()
        self._directory.close()

    def _readable(self) -> Reader:
        """Return the reader. Raises CommitUnknown once a commit is unknown: what is read then may not be durable."""
        if self._writer.is_poisoned:
            raise CommitUnknown("an earlier commit is unknown")
        return self._reader


def _opening_error(error: sqlite3.DatabaseError, data_dir: Path) -> errors.BehestError:
    match error.sqlite_errorcode & 0xFF:
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreCorrupt(error.sqlite_errorname)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreInUse(str(data_dir), "unknown")
        case _:
            return errors.StorageFailed()
