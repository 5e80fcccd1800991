"""Reads a data directory and says what is wrong with it. Changes nothing; works beside a daemon and without one."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from behestd.log import chain, sqlite_schema

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


def check(data_dir: Path) -> Report:
    """Check the pages and indexes of the store, and the log of each run as `chain` does.

    Raises FileNotFoundError when there is no store, NewerStore when it is newer than this version.
    """
    path = data_dir / sqlite_schema.FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"no store in {data_dir}")
    uri = f"{path.resolve().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None)) as connection:
        try:
            # One view of the file, whatever a daemon writes meanwhile.
            connection.execute("BEGIN")
            return _check(connection)
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
