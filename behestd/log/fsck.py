"""Reads a data directory and says what is wrong with it, beside a daemon or without one; `rebuild` mends its views.

Above: `behestd fsck`, backups. Below: `chain` for logs, `fsck_views` for views, `fsck_blobs` for content.
Nothing is changed but by `rebuild`, which needs the directory to itself.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from behestd.log import chain, fsck_blobs, fsck_views, sqlite_schema
from behestd.log.directory import Directory

MAX_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. The store is sound when there are no problems; at most MAX_PROBLEMS are listed."""

    store_id: str = ""
    generation: int = 0
    version: int = 0
    runs: int = 0
    events: int = 0
    problems: tuple[str, ...] = ()
    dangling_blobs: int = 0
    """Contents that nothing names, which is no problem."""


def check(data_dir: Path) -> Report:
    """Check the pages and indexes of the store, and the log of each run as `chain` does.

    Raises FileNotFoundError when there is no store, NewerStore when it is newer than this version.
    """
    return _read(data_dir, _check)


def check_all(data_dir: Path) -> Report:
    """Check what `check` does, that all views are what the logs come to, and the content of every artifact.

    An older format is checked as `check` does it, since its views lack what is compared. Raises as `check`.
    """
    root = data_dir / fsck_blobs.FOLDER

    def read(connection: sqlite3.Connection) -> Report:
        report = _check(connection)
        found = list(report.problems)
        if report.version == len(sqlite_schema.MIGRATIONS):
            for problem in (*fsck_views.problems(connection), *fsck_blobs.problems(connection, root)):
                if len(found) < MAX_PROBLEMS:
                    found.append(problem)
        return replace(report, problems=tuple(found), dangling_blobs=fsck_blobs.dangling(connection, root))

    return _read(data_dir, read)


def rebuild(data_dir: Path) -> int:
    """Write the views of every run anew whose log is sound and comes to others; gives how many runs that were.

    Raises StoreInUse while a daemon has the directory, FileNotFoundError, NewerStore, StoreCorrupt.
    """
    path = data_dir / sqlite_schema.FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"no store in {data_dir}")
    with contextlib.closing(Directory(data_dir)), contextlib.closing(sqlite_schema.connect(path)) as connection:
        try:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA journal_mode = WAL")
            sqlite_schema.migrate(connection)
            mended = fsck_views.mend(connection)
            connection.execute("REINDEX")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.DatabaseError as error:
            raise sqlite_schema.StoreCorrupt(str(error)) from error
    return mended


def _read(data_dir: Path, work: Callable[[sqlite3.Connection], Report]) -> Report:
    path = data_dir / sqlite_schema.FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"no store in {data_dir}")
    uri = f"{path.resolve().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None)) as connection:
        try:
            # One view of the file, whatever a daemon writes meanwhile.
            connection.execute("BEGIN")
            return work(connection)
        except sqlite3.DatabaseError as error:
            return Report(problems=(f"the file cannot be read: {error}",))


def _check(connection: sqlite3.Connection) -> Report:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(sqlite_schema.MIGRATIONS):
        raise sqlite_schema.NewerStore(version, len(sqlite_schema.MIGRATIONS))
    problems = [text for (text,) in connection.execute(f"PRAGMA integrity_check({MAX_PROBLEMS})") if text != "ok"]
    store_id, generation = connection.execute("SELECT store_id, generation FROM meta").fetchone()
    runs = events = 0
    for row, chunks in sqlite_schema.logs(connection):
        runs += 1
        if row.first_sequence <= row.last_sequence:
            events += row.last_sequence
        problems += [
            f"run {row.run_id} of {row.namespace}, sequence {sequence}: {problem}"
            for sequence, problem in chain.problems(row, chunks)
        ]
        if len(problems) >= MAX_PROBLEMS:
            break
    return Report(store_id, generation, version, runs, events, tuple(problems[:MAX_PROBLEMS]))
