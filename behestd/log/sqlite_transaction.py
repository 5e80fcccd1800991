"""One batch as one SQLite transaction: read the facts, judge, write what was accepted. Runs on the writer's thread.

Each step of a statement gives the interpreter's lock away and has to get it back from a busy loop, so the number of
steps is what counts: all facts come in one row of JSON, and rows are written many to a statement. BEGIN and COMMIT are
the writer's.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from zlib import crc32

from behestd.log import sqlite_deletion
from behestd.log.judge import Facts, Head, Stamp, judge, namespace_of
from behestd.log.store import (
    Append,
    Change,
    Claim,
    Committed,
    DeleteRun,
    DeleteSession,
    Entry,
    Import,
    Item,
    Lost,
    Outcome,
    Purge,
    RecordIs,
    SessionIsFree,
)
from behestd.log.usage import Spent

Row = tuple[Any, ...]

_AT = "json_extract(j.value, '$[{}]')"
_FIND = f"""
SELECT
(SELECT json_group_array(json_array(r.namespace, r.run_id, r.key, r.epoch, r.last_sequence, r.is_ended))
    FROM json_each(?) j CROSS JOIN runs r ON r.namespace = {_AT.format(0)} AND r.run_id = {_AT.format(1)}),
(SELECT json_group_array(json_array(r.namespace, r.session_id, r.run_id))
    FROM json_each(?) j CROSS JOIN runs r
    ON r.namespace = {_AT.format(0)} AND r.session_id = {_AT.format(1)} AND r.is_active = 1),
(SELECT json_group_array(json_array(q.namespace, q.request_id, hex(q.digest), q.target))
    FROM json_each(?) j CROSS JOIN requests q ON q.namespace = {_AT.format(0)} AND q.request_id = {_AT.format(1)}),
(SELECT json_group_array(json_array(c.namespace, c.kind, c.id, c.version, c.create_time_ns, c.expire_time_ns))
    FROM json_each(?) j CROSS JOIN records c
    ON c.namespace = {_AT.format(0)} AND c.kind = {_AT.format(1)} AND c.id = {_AT.format(2)})
"""


@dataclass(frozen=True, slots=True)
class _Table:
    """How rows of a table are written: what stands before and after the values, and how many values a row has."""

    insert: str
    width: int
    conflict: str = ""


def _upsert(table: str, key: str, columns: str, kept: str = "") -> _Table:
    """Write rows over those with the same key, whose `kept` columns stay as they are."""
    names = [name for part in (key, kept, columns) for name in part.split()]
    changed = ", ".join(f"{name} = excluded.{name}" for name in columns.split())
    return _Table(
        f"INSERT INTO {table} ({', '.join(names)})",
        len(names),
        f" ON CONFLICT ({', '.join(key.split())}) DO UPDATE SET {changed}",
    )


_CHUNKS = _Table("INSERT INTO chunks (position, run, first_sequence, last_sequence, data)", 5)
_RUNS = _upsert(
    "runs",
    "key",
    "first_sequence state epoch last_sequence last_hash session_index is_active is_ended log_bytes end_time_ns body",
    kept="namespace run_id session_id agent_id create_time_ns definition",
)
_DEFINITION = 6
"""Where the definition stands in a row of runs."""
_ENTRIES = _upsert("entries", "namespace kind id", "session_id run_id position checksum body")
_RECORDS = _upsert("records", "namespace kind id", "parent version create_time_ns expire_time_ns checksum body")
_REQUESTS = _Table("INSERT INTO requests (namespace, request_id, target, digest)", 4)
_DEFINITIONS = _Table("INSERT OR IGNORE INTO definitions (hash, body)", 2)
_USAGE = _Table(f"INSERT INTO usage ({', '.join(Spent._fields)}, run)", len(Spent._fields) + 1)
_ROWS_A_STATEMENT = 256
_REMEMBERED = 10_000
"""Definitions, and heads of runs, of which is known that they are stored."""


@dataclass(slots=True)
class _Pending:
    """What the accepted items of a segment write, the last word on each key."""

    chunks: list[Row] = field(default_factory=list)
    runs: dict[int, Row] = field(default_factory=dict)
    entries: dict[Row, Row] = field(default_factory=dict)
    records: dict[Row, Row | None] = field(default_factory=dict)
    requests: list[Row] = field(default_factory=list)
    definitions: dict[bytes, bytes] = field(default_factory=dict)
    usage: list[Row] = field(default_factory=list)


class Transactions:
    """Applies batches over one connection; it must be the only one that writes.

    The counters of positions and run keys live here. `undo` sets them back after a rollback.
    """

    def __init__(self, connection: sqlite3.Connection, *, position: int, run_key: int) -> None:
        self._connection = connection
        self._position = position
        self._run_key = run_key
        self._before = (position, run_key)
        # A definition known to be stored need not be offered again.
        self._known: set[bytes] = set()
        self._offered: dict[bytes, bytes] = {}
        self._heads: dict[tuple[str, str], Head] = {}
        """Of runs that have not ended: nobody else writes, so what was written last need not be looked up."""
        self.has_written = False
        """Whether the batch wrote anything."""

    @property
    def position(self) -> int:
        """The highest commit position given."""
        return self._position

    def apply(self, batch: Sequence[Item]) -> list[Outcome]:
        """Judge and write a batch inside the open transaction."""
        self._before = (self._position, self._run_key)
        self._offered = {}
        self.has_written = False
        outcomes: list[Outcome] = []
        segment: list[Append | Change | Import] = []
        for item in batch:
            if isinstance(item, DeleteRun | DeleteSession | Purge):
                outcomes += self._segment(segment)
                segment = []
                outcomes.append(self._delete(item))
            else:
                segment.append(item)
        outcomes += self._segment(segment)
        return outcomes

    def keep(self) -> None:
        """Take note that the transaction was committed."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        if len(self._heads) > _REMEMBERED:
            self._heads.clear()
        self._known.update(self._offered)

    def undo(self) -> None:
        """Take note that the transaction was rolled back."""
        self._position, self._run_key = self._before
        self._heads.clear()

    # --- appends and changes ---

    def _segment(self, items: Sequence[Append | Change | Import]) -> list[Outcome]:
        if not items:
            return []
        facts = self._facts(items)
        pending = _Pending()
        outcomes: list[Outcome] = []
        for item in items:
            verdict = judge(item, facts)
            outcomes.append(verdict.outcome)
            if not isinstance(verdict.outcome, Committed):
                continue
            for record in verdict.records:
                pending.records[record.namespace, record.kind, record.id] = (
                    record.namespace, record.kind, record.id, record.parent, record.version, record.create_time_ns,
                    record.expire_time_ns, crc32(record.body), record.body,
                )  # fmt: skip
            if (claim := item.claim) is not None:
                pending.requests.append((claim.namespace, claim.request_id, claim.target, claim.digest))
            if isinstance(item, Change):
                for delete in item.deletes:
                    pending.records[delete.namespace, delete.kind, delete.id] = None
                _collect_entries(namespace_of(item), item.entries, pending)
                pending.usage += [(*used, 0) for used in item.usage]
            else:
                self._collect(item, facts, verdict.outcome.position, pending)
        self._position, self._run_key = facts.position, facts.key
        self._flush(pending)
        return outcomes

    def _collect(self, item: Append | Import, facts: Facts, position: int, pending: _Pending) -> None:
        row = item.row
        run = (row.namespace, row.run_id)
        head = facts.heads[run]
        key = head.key
        if head.is_ended:
            self._heads.pop(run, None)
        else:
            self._heads[run] = head
        if isinstance(item, Append):
            chunk = item.chunk
            pending.chunks.append((position, key, chunk.first_sequence, chunk.last_sequence, chunk.data))
        else:
            for at, chunk in enumerate(item.chunks, start=position - len(item.chunks) + 1):
                pending.chunks.append((at, key, chunk.first_sequence, chunk.last_sequence, chunk.data))
        # Without one it is kept as it is, unless the row is new in this segment.
        definition = pending.runs[key][_DEFINITION] if key in pending.runs else None
        if item.definition is not None:
            definition = item.definition[0]
        pending.runs[key] = (
            key, row.namespace, row.run_id, row.session_id, row.agent_id, row.create_time_ns, definition,
            row.first_sequence, row.state, row.epoch, row.last_sequence, row.last_hash, row.session_index,
            row.is_active, row.is_ended, row.log_bytes, row.end_time_ns, row.body,
        )  # fmt: skip
        _collect_entries(row.namespace, item.entries, pending)
        if item.usage:
            pending.usage += [(*used, key) for used in item.usage]
        if item.definition is not None and item.definition[0] not in self._known:
            pending.definitions.setdefault(*item.definition)

    def _facts(self, items: Sequence[Append | Change | Import]) -> Facts:
        facts = Facts(self._position, self._run_key)
        heads, gates, requests, records = _asked(items)
        for run in heads & self._heads.keys():
            facts.heads[run] = self._heads[run]
        heads -= facts.heads.keys()
        if not (heads or gates or requests or records):
            return facts
        found = self._connection.execute(
            _FIND, [json.dumps(sorted(keys)) for keys in (heads, gates, requests, records)]
        )
        runs, active, taken, stamps = (json.loads(text) for text in found.fetchone())
        for namespace, run_id, key, epoch, last_sequence, is_ended in runs:
            facts.heads[namespace, run_id] = Head(key, epoch, last_sequence, bool(is_ended))
        for namespace, session_id, run_id in active:
            facts.active.setdefault((namespace, session_id), set()).add(run_id)
        for namespace, request_id, digest, target in taken:
            facts.requests[namespace, request_id] = Claim(namespace, request_id, bytes.fromhex(digest), target)
        for namespace, kind, name, *stamp in stamps:
            facts.stamps[namespace, kind, name] = Stamp(*stamp)
        return facts

    def _flush(self, pending: _Pending) -> None:
        self._insert(_CHUNKS, pending.chunks)
        self._insert(_RUNS, list(pending.runs.values()))
        self._insert(_ENTRIES, list(pending.entries.values()))
        self._insert(_REQUESTS, pending.requests)
        self._insert(_DEFINITIONS, list(pending.definitions.items()))
        self._insert(_USAGE, pending.usage)
        self._insert(_RECORDS, [row for row in pending.records.values() if row is not None])
        self._offered.update(pending.definitions)
        for key, row in pending.records.items():
            if row is None:
                self._execute("DELETE FROM records WHERE namespace = ? AND kind = ? AND id = ?", key)

    def _insert(self, table: _Table, rows: Sequence[Row]) -> None:
        for at in range(0, len(rows), _ROWS_A_STATEMENT):
            page = rows[at : at + _ROWS_A_STATEMENT]
            # Few shapes, so that each stays prepared: the next power of two, filled up with rows of nothing.
            size = 1 << (len(page) - 1).bit_length()
            values = [value for row in page for value in row]
            values += [None] * (table.width * (size - len(page)))
            self._execute(_statement(table, size), values)

    def _execute(self, statement: str, values: Iterable[Any]) -> None:
        self._connection.execute(statement, tuple(values))
        self.has_written = True

    # --- deletions, rare ---

    def _delete(self, item: DeleteRun | DeleteSession | Purge) -> Outcome:
        self._heads.clear()
        if isinstance(item, Purge):
            deleted = sqlite_deletion.purge(self._connection, item)
            self.has_written |= deleted > 0
            return Committed(deleted=deleted)
        if isinstance(item, DeleteRun):
            gone = sqlite_deletion.delete_run(self._connection, item)
        else:
            gone = sqlite_deletion.delete_session(self._connection, item)
        if isinstance(gone, Lost):
            return gone
        self._known -= gone
        for definition in gone & self._offered.keys():
            del self._offered[definition]
        self._execute("UPDATE meta SET position = ?", (self._position,))
        return Committed()


def _asked(
    items: Sequence[Append | Change | Import],
) -> tuple[set[Row], set[Row], set[Row], set[Row]]:
    """Return the keys of the runs, sessions, requests and records whose present state a batch depends on."""
    runs: set[Row] = set()
    sessions: set[Row] = set()
    requests: set[Row] = set()
    records: set[Row] = set()
    for item in items:
        if isinstance(item, Append | Import):
            runs.add((item.row.namespace, item.row.run_id))
        else:
            records.update((delete.namespace, delete.kind, delete.id) for delete in item.deletes)
        if item.claim is not None:
            requests.add((item.claim.namespace, item.claim.request_id))
        for guard in item.guards:
            if isinstance(guard, SessionIsFree):
                sessions.add((namespace_of(item), guard.session_id))
            elif isinstance(guard, RecordIs):
                records.add((guard.namespace, guard.kind, guard.id))
        records.update((put.record.namespace, put.record.kind, put.record.id) for put in item.puts)
    return runs, sessions, requests, records


def _collect_entries(namespace: str, entries: Iterable[Entry], pending: _Pending) -> None:
    for entry in entries:
        pending.entries[namespace, entry.kind, entry.id] = (
            namespace, entry.kind, entry.id, entry.session_id, entry.run_id, entry.position,
            crc32(entry.body), entry.body,
        )  # fmt: skip


def _marks(count: int) -> str:
    return ", ".join("?" * count)


@cache
def _statement(table: _Table, rows: int) -> str:
    values = ", ".join([f"({_marks(table.width)})"] * rows)
    return f"{table.insert} SELECT * FROM (VALUES {values}) WHERE column1 IS NOT NULL{table.conflict}"
