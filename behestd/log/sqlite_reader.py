"""The reads of the SQLite store: short queries over a few read-only connections, each fetched whole in one hop.

Nothing here holds a transaction across an await, so a reader never keeps the writer from checkpointing for long, and
what is read is what was committed before the query began.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiosqlite

from behestd import errors
from behestd.log import sqlite_usage
from behestd.log.sqlite_schema import RUN_COLUMNS, StoreCorrupt, run_row
from behestd.log.store import Chunk, Claim, Entry, Record, RunQuery, RunRow, TailChunk
from behestd.log.usage import UsagePage, UsageQuery

CONNECTIONS = 2

# A log is dense, so the next chunk is found by its first sequence, and the walk stops as soon as the page is full:
# no row is read that is not returned.
_CHUNKS = """
WITH RECURSIVE page (position, next, total) AS (
    SELECT * FROM (
        SELECT position, last_sequence + 1, length(data) FROM chunks
        WHERE run = :run AND first_sequence <= :after + 1 ORDER BY first_sequence DESC LIMIT 1)
    UNION ALL
    SELECT c.position, c.last_sequence + 1, page.total + length(c.data)
    FROM page JOIN chunks c ON c.run = :run AND c.first_sequence = page.next WHERE page.total < :limit)
SELECT c.first_sequence, c.last_sequence, c.data, c.position FROM page JOIN chunks c ON c.position = page.position
WHERE c.last_sequence > :after ORDER BY c.first_sequence
""".replace(":run", "(SELECT key FROM runs WHERE namespace = :namespace AND run_id = :run)")
_TAIL = """
WITH RECURSIVE page (position, total) AS (
    SELECT :after, 0
    UNION ALL
    SELECT c.position, page.total + length(c.data) FROM page JOIN chunks c ON c.position = (
        SELECT n.position FROM chunks n JOIN runs r ON r.key = n.run
        WHERE n.position > page.position AND r.namespace = :namespace ORDER BY n.position LIMIT 1)
    WHERE page.total < :limit)
SELECT r.namespace, r.run_id, r.session_id, r.agent_id, c.first_sequence, c.last_sequence, c.data, c.position
FROM page JOIN chunks c ON c.position = page.position JOIN runs r ON r.key = c.run
WHERE c.position > :after ORDER BY c.position
"""
_ENTRY = "SELECT kind, id, session_id, run_id, position, body FROM entries WHERE namespace = ? AND kind = ?"
_COLUMNS = "namespace, kind, id, body, parent, version, create_time_ns, expire_time_ns"
# From one to the next by the index, without a look at the records between them.
_NAMESPACES = """
WITH RECURSIVE found (name) AS (
    SELECT min(namespace) FROM records
    UNION ALL
    SELECT (SELECT min(namespace) FROM records WHERE namespace > found.name) FROM found WHERE name IS NOT NULL)
SELECT name FROM found WHERE name IS NOT NULL
"""
_ALL_RECORDS = f"SELECT {_COLUMNS} FROM records WHERE kind = ?"
_RECORD = f"SELECT {_COLUMNS} FROM records WHERE kind = :kind AND (expire_time_ns = 0 OR expire_time_ns > :now)"


class Reader:
    """A pool of read-only connections. See Store for what each read returns."""

    def __init__(self, path: Path) -> None:
        self._uri = f"{path.resolve().as_uri()}?mode=ro"
        self._connections: list[aiosqlite.Connection] = []
        self._idle: asyncio.LifoQueue[aiosqlite.Connection] = asyncio.LifoQueue()
        self.reads = 0
        """Queries made."""

    async def open(self) -> None:
        """Open all connections, so that the first reads find them warm."""
        for _ in range(CONNECTIONS):
            connection = await aiosqlite.connect(self._uri, uri=True, timeout=5.0, isolation_level=None)
            self._connections.append(connection)
            await connection.execute_fetchall("PRAGMA query_only = ON")
            await connection.execute_fetchall("SELECT count(*) FROM meta")
            self._idle.put_nowait(connection)

    async def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            await connection.close()

    async def _rows(self, query: str, values: Iterable[Any] | dict[str, Any]) -> list[Any]:
        """Run one query. Raises StoreCorrupt when the file is damaged, StorageFailed when it cannot be read."""
        connection = await self._idle.get()
        self.reads += 1
        try:
            return list(await connection.execute_fetchall(query, values))
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise StoreCorrupt(error.sqlite_errorname) from error
            raise errors.StorageFailed from error
        finally:
            self._idle.put_nowait(connection)

    async def chunks(self, namespace: str, run_id: str, after_sequence: int, limit_bytes: int) -> list[Chunk]:
        """See Store."""
        values = {"namespace": namespace, "run": run_id, "after": after_sequence, "limit": limit_bytes}
        return [Chunk(*row) for row in await self._rows(_CHUNKS, values)]

    async def tail(self, namespace: str, after_position: int, limit_bytes: int) -> list[TailChunk]:
        """See Store."""
        values = {"namespace": namespace, "after": after_position, "limit": limit_bytes}
        return [
            TailChunk(found, run_id, session_id, agent_id, Chunk(*chunk))
            for found, run_id, session_id, agent_id, *chunk in await self._rows(_TAIL, values)
        ]

    async def run(self, namespace: str, run_id: str) -> RunRow | None:
        """See Store."""
        rows = await self._run_rows("namespace = ? AND run_id = ?", (namespace, run_id))
        return rows[0] if rows else None

    async def _run_rows(self, where: str, values: Iterable[Any]) -> list[RunRow]:
        return [run_row(row) for row in await self._rows(f"SELECT {RUN_COLUMNS} FROM runs WHERE {where}", values)]

    async def runs(self, query: RunQuery) -> list[RunRow]:
        """See Store."""
        where = ["namespace = ?", "first_sequence <= last_sequence", "create_time_ns >= ?"]
        values: list[Any] = [query.namespace, query.created_after_ns]
        if query.states:
            where.append(f"state IN ({', '.join('?' * len(query.states))})")
            values += query.states
        for column, wanted in (("session_id", query.session_id), ("agent_id", query.agent_id)):
            if wanted:
                where.append(f"{column} = ?")
                values.append(wanted)
        if query.created_before_ns:
            where.append("create_time_ns < ?")
            values.append(query.created_before_ns)
        if query.before is not None:
            where.append("(create_time_ns, run_id) < (?, ?)")
            values += query.before
        order = " ORDER BY create_time_ns DESC, run_id DESC LIMIT ?"
        return await self._run_rows(" AND ".join(where) + order, (*values, query.limit))

    async def unended(self, limit: int, after: tuple[str, str]) -> list[RunRow]:
        """See Store."""
        where = "is_ended = 0 AND (namespace, run_id) > (?, ?) ORDER BY namespace, run_id LIMIT ?"
        return await self._run_rows(where, (*after, limit))

    async def ended(self, namespace: str, before_ns: int, limit: int, after: tuple[int, str]) -> list[RunRow]:
        """See Store."""
        where = (
            "namespace = ? AND end_time_ns < ? AND (end_time_ns, run_id) > (?, ?) AND is_ended = 1"
            " AND first_sequence = 1 ORDER BY end_time_ns, run_id LIMIT ?"
        )
        return await self._run_rows(where, (namespace, before_ns, *after, limit))

    async def session_runs(self, namespace: str, session_id: str) -> list[RunRow]:
        """See Store."""
        where = "namespace = ? AND session_id = ? AND is_ended = 0 ORDER BY create_time_ns, run_id"
        return await self._run_rows(where, (namespace, session_id))

    async def runs_of(self, namespace: str, session_id: str, limit: int, after: tuple[int, str]) -> list[RunRow]:
        """See Store."""
        where = "namespace = ? AND session_id = ? AND (create_time_ns, run_id) > (?, ?)"
        order = " ORDER BY create_time_ns, run_id LIMIT ?"
        return await self._run_rows(where + order, (namespace, session_id, *after, limit))

    async def last_session_index(self, namespace: str, session_id: str) -> int:
        """See Store."""
        query = "SELECT max(session_index) FROM runs WHERE namespace = ? AND session_id = ? AND session_index > 0"
        return (await self._rows(query, (namespace, session_id)))[0][0] or 0

    async def definition(self, hash: bytes) -> bytes | None:
        """See Store."""
        rows = await self._rows("SELECT body FROM definitions WHERE hash = ?", (hash,))
        return rows[0][0] if rows else None

    async def entries(
        self, namespace: str, kind: str, *, session_id: str, run_id: str, after: int, limit: int
    ) -> list[Entry]:
        """See Store."""
        query, values = _ENTRY, [namespace, kind]
        for column, wanted in (("session_id", session_id), ("run_id", run_id)):
            if wanted:
                query += f" AND {column} = ?"
                values.append(wanted)
        query += " AND position > ? ORDER BY position, id LIMIT ?"
        return [Entry(*row) for row in await self._rows(query, (*values, after, limit))]

    async def last_entries(self, namespace: str, kind: str, session_id: str, before: int, limit: int) -> list[Entry]:
        """See Store."""
        query = _ENTRY + " AND session_id = ? AND position < ? ORDER BY position DESC, id DESC LIMIT ?"
        return [Entry(*row) for row in reversed(await self._rows(query, (namespace, kind, session_id, before, limit)))]

    async def entry(self, namespace: str, kind: str, name: str) -> Entry | None:
        """See Store."""
        rows = await self._rows(_ENTRY + " AND id = ?", (namespace, kind, name))
        return Entry(*rows[0]) if rows else None

    async def request(self, namespace: str, request_id: str) -> Claim | None:
        """See Store."""
        query = "SELECT namespace, request_id, digest, target FROM requests WHERE namespace = ? AND request_id = ?"
        rows = await self._rows(query, (namespace, request_id))
        return Claim(*rows[0]) if rows else None

    async def record(self, namespace: str, kind: str, name: str, now_ns: int) -> Record | None:
        """See Store."""
        values = {"namespace": namespace, "kind": kind, "id": name, "now": now_ns}
        rows = await self._rows(_RECORD + " AND namespace = :namespace AND id = :id", values)
        return Record(*rows[0]) if rows else None

    async def records(
        self, namespace: str, kind: str, *, parent: str | None, after: str, limit: int, now_ns: int
    ) -> list[Record]:
        """See Store."""
        query = _RECORD
        if namespace:
            query += " AND namespace = :namespace"
        if parent is not None:
            query += " AND parent = :parent"
        if after:
            query += " AND id > :after"
        query += " ORDER BY namespace, id LIMIT :limit"
        values = {"namespace": namespace, "kind": kind, "parent": parent, "after": after, "now": now_ns, "limit": limit}
        return [Record(*row) for row in await self._rows(query, values)]

    async def newest_records(
        self, namespace: str, kind: str, *, parent: str | None, before: tuple[int, str] | None, limit: int
    ) -> list[Record]:
        """See Store."""
        query, values = _ALL_RECORDS + " AND namespace = ?", [kind, namespace]
        if parent is not None:
            query += " AND parent = ?"
            values.append(parent)
        if before is not None:
            query += " AND (create_time_ns, id) < (?, ?)"
        query += " ORDER BY create_time_ns DESC, id DESC LIMIT ?"
        return [Record(*row) for row in await self._rows(query, (*values, *(before or ()), limit))]

    async def count_records(self, namespace: str, kind: str, parent: str, now_ns: int) -> int:
        """See Store."""
        query = (
            "SELECT count(*) FROM records WHERE namespace = ? AND parent = ? AND kind = ?"
            " AND (expire_time_ns = 0 OR expire_time_ns > ?)"
        )
        return int((await self._rows(query, (namespace, parent, kind, now_ns)))[0][0])

    async def namespaces(self) -> list[str]:
        """See Store."""
        return [name for (name,) in await self._rows(_NAMESPACES, ())]

    async def usage(self, query: UsageQuery) -> UsagePage:
        """See Store."""
        return sqlite_usage.page_of(query, await self._rows(*sqlite_usage.statement(query)))

    async def oldest_position(self) -> int:
        """Return the commit position of the oldest chunk, 0 when there is none."""
        return (await self._rows("SELECT min(position) FROM chunks", ()))[0][0] or 0
