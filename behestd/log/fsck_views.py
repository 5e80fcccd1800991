"""Compares the views of a store with its logs, and writes them anew. Part of `fsck`.

A view whose log is stored is made from it again; whatever has no log (the messages of runs whose log is deleted, copies
in forks, sessions and other records) is held against its checksum, and cannot be mended here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any
from zlib import crc32

from google.protobuf.message import DecodeError, Message

from behest.v1.approval_pb2 import Approval
from behest.v1.message_pb2 import Message as Said
from behest.v1.run_pb2 import Run
from behest.v1.session_pb2 import Session
from behest.v1.tool_call_pb2 import ToolCallRecord
from behestd.core.times import timestamp
from behestd.errors import BehestError
from behestd.log import chain, sqlite_schema, views
from behestd.log.rebuild import Views, rebuild
from behestd.log.store import SESSION_KIND, Chunk, Entry, RunRow
from behestd.log.usage import Spent

_KINDS: Mapping[str, type[Message]] = {views.MESSAGE: Said, views.CALL: ToolCallRecord, views.APPROVAL: Approval}
_ENTRY = "kind, id, session_id, run_id, position, body"
_PINNED = "SELECT definition FROM runs WHERE definition IS NOT NULL"
_SPENT = ", ".join(Spent._fields)
_OF_ROW = tuple(field.name for field in fields(RunRow) if field.name not in ("body", "first_sequence"))


@dataclass(frozen=True, slots=True)
class Stored:
    """The views of a run as they are stored. `key` is its number, `pinned` the definition in its row."""

    key: int
    pinned: bytes | None
    row: RunRow
    entries: Mapping[tuple[str, str], Entry]
    usage: tuple[Spent, ...]


def problems(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield what is wrong with the views, the definitions and the records."""
    yield from _damaged_rows(connection)
    (since_ns,) = connection.execute("SELECT coalesce(min(time_ns), 0) FROM usage").fetchone()
    for stored, chunks in _runs(connection):
        name = f"run {stored.row.run_id} of {stored.row.namespace}"
        if stored.row.first_sequence > stored.row.last_sequence:
            left = [kind for kind, _ in stored.entries if kind != views.MESSAGE]
            if left or stored.row.body:
                yield f"{name}: its log is deleted, but not its {', '.join(left) or 'report'}"
            continue
        try:
            made = _made(connection, stored, chunks)
        except (BehestError, ValueError, DecodeError) as error:
            yield f"{name}: {error}"
            continue
        yield from (f"{name}: {problem}" for problem in _differences(connection, stored, made, since_ns))
    yield from _dangling(connection)


def mend(connection: sqlite3.Connection) -> int:
    """Write the views of all runs anew whose log is stored and sound; gives how many runs had others.

    A log that is not what its row's hash and length say may be cut, and is left alone. One transaction a run; the
    connection must be the only one.
    """
    (since_ns,) = connection.execute("SELECT coalesce(min(time_ns), 0) FROM usage").fetchone()
    mended = 0
    for stored, chunks in list(_runs(connection)):
        if stored.row.first_sequence > stored.row.last_sequence or any(chain.problems(stored.row, chunks)):
            continue
        try:
            made = _made(connection, stored, chunks)
        except (BehestError, ValueError, DecodeError):
            continue
        if any(True for _ in _differences(connection, stored, made, since_ns)):
            connection.execute("BEGIN IMMEDIATE")
            _write(connection, stored, made)
            connection.execute("COMMIT")
            mended += 1
    return mended


# --- reading ---


def _runs(connection: sqlite3.Connection) -> Iterator[tuple[Stored, list[Chunk]]]:
    keys = connection.execute("SELECT key FROM runs ORDER BY key").fetchall()
    for (key,) in keys:
        columns = f"SELECT definition, {sqlite_schema.RUN_COLUMNS} FROM runs WHERE key = ?"
        pinned, *values = connection.execute(columns, (key,)).fetchone()
        row = sqlite_schema.run_row(values)
        found = connection.execute(
            f"SELECT {_ENTRY} FROM entries WHERE namespace = ? AND run_id = ?", (row.namespace, row.run_id)
        )
        entries = {(entry.kind, entry.id): entry for entry in (Entry(*found_row) for found_row in found)}
        usage = connection.execute(f"SELECT {_SPENT} FROM usage WHERE run = ? AND run > 0 ORDER BY row", (key,))
        chunks = connection.execute(
            "SELECT first_sequence, last_sequence, data, position FROM chunks WHERE run = ? ORDER BY first_sequence",
            (key,),
        )
        spent = tuple(Spent._make((*used[:-1], bool(used[-1]))) for used in usage)
        yield Stored(key, pinned, row, entries, spent), [Chunk(*chunk) for chunk in chunks]


def _made(connection: sqlite3.Connection, stored: Stored, chunks: list[Chunk]) -> Views:
    def definition(digest: bytes) -> bytes | None:
        found = connection.execute("SELECT body FROM definitions WHERE hash = ?", (digest,)).fetchone()
        return found[0] if found is not None else None

    return rebuild(stored.row.run_id, chunks, definition)


def _damaged_rows(connection: sqlite3.Connection) -> Iterator[str]:
    """Bodies that are not those that were written."""
    for table in ("entries", "records"):
        for namespace, kind, name, checksum, body in connection.execute(
            f"SELECT namespace, kind, id, checksum, body FROM {table}"
        ):
            if crc32(body) != checksum:
                yield f"{kind} {name} of {namespace}: its body is damaged"
    for digest, body in connection.execute("SELECT hash, body FROM definitions"):
        if sha256(body).digest() != digest:
            yield f"definition {digest.hex()}: its body is damaged"


def _dangling(connection: sqlite3.Connection) -> Iterator[str]:
    """What belongs to a session or a run that is not there."""
    no_session = (
        "NOT EXISTS (SELECT 1 FROM records WHERE records.namespace = {0}.namespace"
        f" AND records.kind = '{SESSION_KIND}' AND records.id = {{0}}.session_id)"
    )
    for table in ("runs", "entries"):
        for namespace, session_id in connection.execute(
            f"SELECT DISTINCT namespace, session_id FROM {table} WHERE session_id > '' AND {no_session.format(table)}"
        ):
            yield f"session {session_id} of {namespace} is gone, but there are {table} of it"
    for what, query in (
        ("chunks", "SELECT count(*) FROM chunks WHERE run NOT IN (SELECT key FROM runs)"),
        ("rows of usage", "SELECT count(*) FROM usage WHERE run > 0 AND run NOT IN (SELECT key FROM runs)"),
        ("definitions", f"SELECT count(*) FROM definitions WHERE hash NOT IN ({_PINNED})"),
    ):
        (count,) = connection.execute(query).fetchone()
        if count:
            yield f"{count} {what} belong to no run"


# --- comparing ---


def _differences(connection: sqlite3.Connection, stored: Stored, made: Views, since_ns: int) -> Iterator[str]:
    created = made.run.created
    for name in _OF_ROW:
        if getattr(stored.row, name) != getattr(made.row, name):
            yield f"its row says {name} {_text(getattr(stored.row, name))}, its log {_text(getattr(made.row, name))}"
    if stored.row.first_sequence != 1:
        yield f"its row says that the log begins at {stored.row.first_sequence}"
    if not _is_same(Run, stored.row.body, made.row.body):
        yield "its report is not what its log comes to"
    if stored.pinned != created.definition_hash:
        yield "its row names another definition than its log"
    yield from _entry_differences(connection, stored, made)
    # Rows of usage are kept since a version that counted them: earlier ones may be missing.
    if stored.usage != made.usage and stored.usage != tuple(row for row in made.usage if row.time_ns >= since_ns):
        yield f"{len(stored.usage)} rows of usage are not the {len(made.usage)} that its log comes to"
    session = (created.namespace, SESSION_KIND, created.session_id)
    if not connection.execute("SELECT 1 FROM records WHERE namespace = ? AND kind = ? AND id = ?", session).fetchone():
        yield f"its session {created.session_id} has no record"
    if created.request_id:
        claim = connection.execute(
            "SELECT target, digest FROM requests WHERE namespace = ? AND request_id = ?",
            (created.namespace, created.request_id),
        ).fetchone()
        # A run that was imported took none.
        if claim is not None and claim[0] == made.run.id and claim[1] != created.request_digest:
            yield "its request has another digest than its log says"


def _entry_differences(connection: sqlite3.Connection, stored: Stored, made: Views) -> Iterator[str]:
    for key, entry in made.entries.items():
        found = stored.entries.get(key) or _entry(connection, stored.row.namespace, key)
        if found is None:
            yield f"{entry.kind} {entry.id} is missing"
        elif _place(found) != _place(entry) or not _is_same(_KINDS[entry.kind], found.body, entry.body):
            yield f"{entry.kind} {entry.id} is not what its log comes to"
    for kind, name in stored.entries.keys() - made.entries.keys():
        yield f"{kind} {name} is not in its log"


def _entry(connection: sqlite3.Connection, namespace: str, key: tuple[str, str]) -> Entry | None:
    query = f"SELECT {_ENTRY} FROM entries WHERE namespace = ? AND kind = ? AND id = ?"
    found = connection.execute(query, (namespace, *key)).fetchone()
    return Entry(*found) if found is not None else None


def _place(entry: Entry) -> tuple[str, str, int]:
    return entry.session_id, entry.run_id, entry.position


def _is_same(kind: type[Message], one: bytes, other: bytes) -> bool:
    """Whether two bodies say the same; maps are written in any order."""
    try:
        return one == other or bool(kind.FromString(one) == kind.FromString(other))
    except DecodeError:
        return False


def _text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


# --- writing ---


def _write(connection: sqlite3.Connection, stored: Stored, made: Views) -> None:
    row, created = made.row, made.run.created
    columns = [name for name in _OF_ROW if name not in ("namespace", "run_id")] + ["body", "first_sequence"]
    values: list[Any] = [getattr(row, name) for name in columns]
    changes = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(
        f"UPDATE runs SET {changes}, definition = ? WHERE key = ?", (*values, created.definition_hash, stored.key)
    )
    connection.executemany(
        "DELETE FROM entries WHERE namespace = ? AND kind = ? AND id = ?",
        [(row.namespace, *key) for key in stored.entries.keys() | made.entries.keys()],
    )
    connection.executemany(
        f"INSERT INTO entries (namespace, {_ENTRY}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                row.namespace,
                each.kind,
                each.id,
                each.session_id,
                each.run_id,
                each.position,
                each.body,
                crc32(each.body),
            )
            for each in made.entries.values()
        ],
    )
    connection.execute("DELETE FROM usage WHERE run = ?", (stored.key,))
    connection.executemany(
        f"INSERT INTO usage ({_SPENT}, run) VALUES ({', '.join('?' * (len(Spent._fields) + 1))})",
        [(*used, stored.key) for used in made.usage],
    )
    if created.request_id:
        connection.execute(
            "UPDATE requests SET digest = ? WHERE namespace = ? AND request_id = ? AND target = ?",
            (created.request_digest, row.namespace, created.request_id, made.run.id),
        )
    _write_session(connection, made)


def _write_session(connection: sqlite3.Connection, made: Views) -> None:
    """Give a run whose session's record is lost one that says no more than the log."""
    row, now = made.row, timestamp(made.row.create_time_ns)
    session = Session(id=row.session_id, create_time=now, update_time=now)
    body = session.SerializeToString()
    connection.execute(
        "INSERT OR IGNORE INTO records (namespace, kind, id, parent, version, create_time_ns, expire_time_ns,"
        " checksum, body) VALUES (?, ?, ?, '', 1, ?, 0, ?, ?)",
        (row.namespace, SESSION_KIND, row.session_id, row.create_time_ns, crc32(body), body),
    )
