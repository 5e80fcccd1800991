"""Deletes for good in the data directory of a stopped daemon: what is named, and whatever deletions left in its files.

Above: `behestd purge`. Below: the store and the contents of artifacts. A page of SQLite keeps copies of rows that were
moved to another one, which no later deletion finds; so the file is written anew and takes the place of the old one.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from behestd import errors
from behestd.core.state import state_name
from behestd.failpoint import failpoint
from behestd.log import fsck_blobs, sqlite_schema
from behestd.log.directory import FILE_MODE, Directory
from behestd.log.sqlite import SqliteStore
from behestd.log.store import SESSION_KIND, DeleteRun, DeleteSession, Full, Lost

_NEW_NAME = sqlite_schema.FILE_NAME + ".new"
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Purged:
    """How many there were of each, that are gone."""

    sessions: int = 0
    runs: int = 0
    blobs: int = 0


async def purge(data_dir: Path, namespace: str, sessions: Sequence[str], runs: Sequence[str]) -> Purged:
    """Delete sessions, runs, and content that nothing names any more; then write the store anew.

    What is not there counts as deleted. Raises StoreInUse while a daemon has the directory, SessionBusy and RunActive
    for what has not ended, StorageFull, and what opening raises.
    """
    if not (data_dir / sqlite_schema.FILE_NAME).exists():
        raise FileNotFoundError(f"no store in {data_dir}")
    store = await SqliteStore.open(data_dir, ballast_bytes=0)
    try:
        gone = [await _delete_session(store, namespace, session_id) for session_id in sessions]
        ended = [await _delete_run(store, namespace, run_id) for run_id in runs]
    finally:
        await store.close()
    failpoint("purge.after_deletion")
    with contextlib.closing(Directory(data_dir)) as directory:
        blobs = _sweep(data_dir)
        _renew(data_dir)
        directory.sync()
    return Purged(sum(gone), sum(ended), blobs)


async def _delete_session(store: SqliteStore, namespace: str, session_id: str) -> int:
    """Delete a session and those of the child runs below it, the lowest first; gives how many there were."""
    found = [session_id]
    for above in found:  # which grows meanwhile
        after = ""
        while page := await store.records(namespace, SESSION_KIND, parent=above, after=after, limit=_PAGE):
            found += [record.id for record in page]
            after = page[-1].id
    count = 0
    for each in reversed(found):
        count += await store.record(namespace, SESSION_KIND, each, 0) is not None
        (outcome,) = await store.write([DeleteSession(namespace, each)])
        if isinstance(outcome, Lost):
            active = await store.session_runs(namespace, each)
            raise errors.SessionBusy(each, active[0].run_id, "SESSION_BUSY")
        if isinstance(outcome, Full):
            raise errors.StorageFull
    return count


async def _delete_run(store: SqliteStore, namespace: str, run_id: str) -> int:
    row = await store.run(namespace, run_id)
    if row is None or not row.body:
        return 0
    (outcome,) = await store.write([DeleteRun(namespace, run_id, frees_request=True)])
    if isinstance(outcome, Lost):
        raise errors.RunActive(run_id, state_name(row.state))
    if isinstance(outcome, Full):
        raise errors.StorageFull
    return 1


def _sweep(data_dir: Path) -> int:
    """Delete the contents that nothing names, and those that were never finished."""
    root = data_dir / fsck_blobs.FOLDER
    uri = f"{(data_dir / sqlite_schema.FILE_NAME).resolve().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        names = {fsck_blobs.path_of(space, each.sha256) for space, _, each in fsck_blobs.named(connection) if each}
    dangling = [root / path for path in fsck_blobs.stored(root) if path not in names]
    for path in (*dangling, *root.glob("tmp/*")):
        path.unlink()
    return len(dangling)


def _renew(data_dir: Path) -> None:
    """Write the store into a new file, row by row, and let that take the place of the old one."""
    old, new = data_dir / sqlite_schema.FILE_NAME, data_dir / _NEW_NAME
    new.unlink(missing_ok=True)
    new.touch(mode=FILE_MODE)
    with contextlib.closing(sqlite_schema.connect(old)) as connection:
        connection.execute("VACUUM INTO ?", (str(new),))
        # Nothing may be left to copy into the file that is about to be replaced.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute("PRAGMA journal_mode = DELETE")
    with open(new, "rb+") as file:
        os.fsync(file.fileno())
    failpoint("purge.before_rename")
    new.replace(old)
