"""The tables of the SQLite store, how an old file becomes a new one, and how a connection is set up.

`user_version` counts the migrations that a file has had. A migration is never edited once released; a change of the
tables is a new one at the end. Every start of a daemon counts the store's `generation` up by one.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from behest.v1.event_pb2 import Event
from behest.v1.run_pb2 import Run
from behestd import errors
from behestd.core.times import nanoseconds
from behestd.log import chain, frames
from behestd.log.store import Chunk, RunRow

FILE_NAME = "behestd.db"
EVERY_PAGE_BYTES = 64 * 1024 * 1024
"""The size of a file up to which every page is checked at the start."""
RUN_COLUMNS = (
    "namespace, run_id, session_id, agent_id, state, epoch, last_sequence, last_hash, session_index, create_time_ns,"
    " body, is_active, is_ended, log_bytes, first_sequence, end_time_ns"
)
"""In the order of RunRow's fields."""

# Positions and run keys are given by the writer, so neither table needs AUTOINCREMENT, which would write one more page
# a commit; `meta.position` keeps the highest position when its chunk is deleted.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (
        one INTEGER PRIMARY KEY CHECK (one = 1), store_id TEXT NOT NULL, generation INTEGER NOT NULL,
        boot_id TEXT NOT NULL, position INTEGER NOT NULL);
    CREATE TABLE runs (
        key INTEGER PRIMARY KEY, namespace TEXT NOT NULL, run_id TEXT NOT NULL, session_id TEXT NOT NULL,
        agent_id TEXT NOT NULL, state INTEGER NOT NULL, epoch INTEGER NOT NULL, first_sequence INTEGER NOT NULL,
        last_sequence INTEGER NOT NULL, last_hash BLOB NOT NULL, session_index INTEGER NOT NULL,
        create_time_ns INTEGER NOT NULL, is_active INTEGER NOT NULL, is_ended INTEGER NOT NULL,
        log_bytes INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE UNIQUE INDEX runs_by_id ON runs (namespace, run_id);
    CREATE INDEX runs_by_time ON runs (namespace, create_time_ns, run_id);
    CREATE INDEX runs_by_session ON runs (namespace, session_id, create_time_ns, run_id);
    CREATE INDEX runs_by_index ON runs (namespace, session_id, session_index) WHERE session_index > 0;
    CREATE INDEX runs_unended ON runs (namespace, run_id) WHERE is_ended = 0;
    CREATE INDEX runs_active ON runs (namespace, session_id) WHERE is_active = 1;
    CREATE TABLE chunks (
        position INTEGER PRIMARY KEY, run INTEGER NOT NULL, first_sequence INTEGER NOT NULL,
        last_sequence INTEGER NOT NULL, data BLOB NOT NULL, UNIQUE (run, first_sequence));
    CREATE TABLE entries (
        row INTEGER PRIMARY KEY, namespace TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL,
        session_id TEXT NOT NULL, run_id TEXT NOT NULL, position INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE UNIQUE INDEX entries_by_id ON entries (namespace, kind, id);
    CREATE INDEX entries_by_session ON entries (namespace, session_id, kind, position, id);
    CREATE INDEX entries_by_run ON entries (namespace, run_id, kind, position, id);
    CREATE TABLE records (
        row INTEGER PRIMARY KEY, namespace TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, parent TEXT NOT NULL,
        version INTEGER NOT NULL, create_time_ns INTEGER NOT NULL, expire_time_ns INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE UNIQUE INDEX records_by_id ON records (namespace, kind, id);
    CREATE INDEX records_by_parent ON records (namespace, parent, kind, id);
    CREATE INDEX records_by_time ON records (namespace, kind, create_time_ns, id);
    CREATE TABLE requests (
        namespace TEXT NOT NULL, request_id TEXT NOT NULL, target TEXT NOT NULL, digest BLOB NOT NULL,
        PRIMARY KEY (namespace, request_id)) WITHOUT ROWID;
    CREATE INDEX requests_by_target ON requests (namespace, target);
    CREATE TABLE definitions (hash BLOB PRIMARY KEY, body BLOB NOT NULL);
    """,
    # Other kinds are never listed over all sessions, and pay nothing for it.
    """
    CREATE INDEX entries_of_approvals ON entries (namespace, kind, position, id) WHERE kind = 'approval';
    """,
    # Few records ever expire; the others are not in it.
    """
    CREATE INDEX records_expiring ON records (expire_time_ns) WHERE expire_time_ns > 0;
    """,
    # In the order of Spent, and the run's key, 0 without one. Times and keys come in order: indexes grow at one end.
    """
    CREATE TABLE usage (
        row INTEGER PRIMARY KEY, namespace TEXT NOT NULL, time_ns INTEGER NOT NULL, session_id TEXT NOT NULL,
        run_id TEXT NOT NULL, agent_id TEXT NOT NULL, model TEXT NOT NULL, purpose INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cached_input_tokens INTEGER NOT NULL,
        cache_write_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL, cost_micro_usd INTEGER,
        is_estimated INTEGER NOT NULL, run INTEGER NOT NULL);
    CREATE INDEX usage_by_time ON usage (namespace, time_ns);
    CREATE INDEX usage_by_run ON usage (run) WHERE run > 0;
    CREATE INDEX usage_by_session ON usage (namespace, session_id) WHERE run = 0;
    """,
    # When a run ended, for retention; the definition that it is pinned to, which goes with the last run that is; and
    # checksums of what has no second copy in a log. The functions are those of `_FUNCTIONS`.
    """
    ALTER TABLE runs ADD COLUMN end_time_ns INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE runs ADD COLUMN definition BLOB;
    ALTER TABLE entries ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE records ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
    UPDATE runs SET end_time_ns = end_time_of(body) WHERE is_ended = 1;
    UPDATE runs SET definition = definition_of(
        (SELECT data FROM chunks WHERE chunks.run = runs.key ORDER BY first_sequence LIMIT 1));
    DELETE FROM definitions WHERE hash NOT IN (SELECT definition FROM runs WHERE definition IS NOT NULL);
    UPDATE entries SET checksum = crc32(body);
    UPDATE records SET checksum = crc32(body);
    CREATE INDEX runs_ended ON runs (namespace, end_time_ns, run_id) WHERE is_ended = 1 AND first_sequence = 1;
    CREATE INDEX runs_by_definition ON runs (definition) WHERE definition IS NOT NULL;
    """,
)


def _end_time_of(body: bytes) -> int:
    """The end of a run, from its row's message."""
    return nanoseconds(Run.FromString(body).end_time)


def _definition_of(data: bytes | None) -> bytes | None:
    """The hash of a run's definition, from the first chunk of its log."""
    if data is None:
        return None
    return Event.FromString(frames.split(data)[0]).run_created.definition_hash or None


_FUNCTIONS = {"end_time_of": _end_time_of, "definition_of": _definition_of, "crc32": crc32}
"""What migrations call, by name."""


class NewerStore(errors.WrongState):
    """Raised when the file was written by a newer version; it is left as it is."""

    def __init__(self, version: int, supported: int) -> None:
        super().__init__(
            "STORAGE_NEWER_FORMAT",
            f"the store has format {version}, this version knows up to {supported}; use the version that wrote it",
            version=version,
            supported=supported,
        )


class StoreCorrupt(errors.Corrupt):
    """Raised when the file is damaged (exit code 65). Nothing is repaired."""

    def __init__(self, problem: str) -> None:
        super().__init__("STORAGE_CORRUPT", f"the store is damaged: {problem}", problem=problem)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which store this is. `generation` counts the times it was opened for writing."""

    store_id: str
    generation: int
    position: int
    """The highest commit position when it was opened."""
    run_key: int
    """The highest number of a run."""


def connect(path: Path) -> sqlite3.Connection:
    """Open the one connection that writes, creating the file (0600) when there is none. Nothing is read yet."""
    path.touch(mode=0o600)
    # Opened by one thread, used by another, closed by a third; never by two at once.
    return sqlite3.connect(path, timeout=5.0, isolation_level=None, cached_statements=256, check_same_thread=False)


def prepare(
    connection: sqlite3.Connection, synchronous: str, boot_id: str, *, make_room: Callable[[], None]
) -> Identity:
    """Set the connection up, migrate, check and identify the store. `make_room` is called once if the disk is full.

    Raises NewerStore, StoreCorrupt, LogCorrupt or sqlite3.DatabaseError.
    """
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -16384")
    migrate(connection)
    verify(connection)
    identity = None
    try:
        identity = identify(connection, boot_id)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        make_room()
    return identity or identify(connection, boot_id)


def migrate(connection: sqlite3.Connection, migrations: Sequence[str] = MIGRATIONS) -> int:
    """Bring the file to the newest format, each step in a transaction of its own; return the format that it had.

    Raises NewerStore when it is newer than this version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise NewerStore(version, len(migrations))
    for name, function in _FUNCTIONS.items():
        connection.create_function(name, 1, function, deterministic=True)
    for number, script in enumerate(migrations[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        for statement in filter(None, (part.strip() for part in script.split(";"))):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    return int(version)


def identify(connection: sqlite3.Connection, boot_id: str) -> Identity:
    """Count the generation up, durably, and say which store this is."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT OR IGNORE INTO meta VALUES (1, ?, 0, '', 0)", (secrets.token_hex(16),))
    connection.execute("UPDATE meta SET generation = generation + 1, boot_id = ?", (boot_id,))
    row = connection.execute(
        "SELECT store_id, generation, max(position, coalesce((SELECT max(position) FROM chunks), 0)),"
        " coalesce((SELECT max(key) FROM runs), 0) FROM meta"
    ).fetchone()
    connection.execute("COMMIT")
    return Identity(*row)


def run_row(values: Sequence[object]) -> RunRow:
    """Build the row from the values of RUN_COLUMNS."""
    row = list(values)
    row[11], row[12] = bool(row[11]), bool(row[12])
    return RunRow(*row)  # type: ignore[arg-type]  # the columns are those of the class


def verify(connection: sqlite3.Connection, every_page_bytes: int = EVERY_PAGE_BYTES) -> None:
    """Check the logs of the runs that have not ended, and every page of a file up to a size.

    Checking a page means reading it, so the start of a large store would take as long as its disk. Its other pages are
    checked by `fsck`, and as they are read. Raises StoreCorrupt or LogCorrupt.
    """
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    if pages * page_bytes <= every_page_bytes:
        found = [problem for (problem,) in connection.execute("PRAGMA quick_check(5)")]
        if found != ["ok"]:
            raise StoreCorrupt(found[0])
    for row, chunks in logs(connection, "WHERE is_ended = 0"):
        for sequence, problem in chain.problems(row, chunks):
            raise errors.LogCorrupt(row.run_id, sequence, problem)


def logs(connection: sqlite3.Connection, where: str = "") -> Iterator[tuple[RunRow, Iterator[Chunk]]]:
    """Yield each run with its chunks, which are read as they are asked for."""
    rows = connection.execute(f"SELECT key, {RUN_COLUMNS} FROM runs {where} ORDER BY namespace, run_id").fetchall()
    for key, *values in rows:
        stored = connection.execute(
            "SELECT first_sequence, last_sequence, data, position FROM chunks WHERE run = ? ORDER BY first_sequence",
            (key,),
        )
        yield run_row(values), (Chunk(*chunk) for chunk in stored)
