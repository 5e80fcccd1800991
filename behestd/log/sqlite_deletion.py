"""What the SQLite store deletes: logs of runs, sessions, records that have expired, and definitions that nothing names.

Statements inside the open transaction of `sqlite_transaction`, on the writer's thread. That the bytes are gone from the
file as well is the connection's `secure_delete` and the writer's work.
"""

from __future__ import annotations

import sqlite3

from behestd.log.sqlite_usage import RUNS_BELOW
from behestd.log.store import KEPT_KINDS, SESSION_KIND, DeleteRun, DeleteSession, Lost, Purge

_DIRECT = "namespace = :namespace AND session_id = :session AND run = 0"
"""Usage of a session without a run."""
_RUNS = "FROM runs WHERE namespace = :namespace AND session_id = :session"
_TARGETS = f"""SELECT run_id {_RUNS} UNION ALL SELECT :session UNION ALL
    SELECT id FROM records WHERE namespace = :namespace AND parent = :session"""
_OF_SESSION = (
    f"DELETE FROM requests WHERE namespace = :namespace AND target IN ({_TARGETS})",
    f"DELETE FROM chunks WHERE run IN (SELECT key {_RUNS})",
    "DELETE FROM entries WHERE namespace = :namespace AND session_id = :session",
    f"UPDATE usage SET run = 0, session_id = '', run_id = '' WHERE run > 0 AND run IN ({RUNS_BELOW})",
    f"UPDATE usage SET session_id = '' WHERE {_DIRECT}",
    f"DELETE {_RUNS}",
    "DELETE FROM records WHERE namespace = :namespace AND parent = :session",
    "DELETE FROM records WHERE namespace = :namespace AND kind = :kind AND id = :session",
)


def delete_run(connection: sqlite3.Connection, item: DeleteRun) -> Lost | set[bytes]:
    """Leave a tombstone of a run; gives the definitions that went with it, or why nothing did."""
    row = connection.execute(
        "SELECT key, epoch, last_sequence, is_ended, definition FROM runs WHERE namespace = ? AND run_id = ?",
        (item.namespace, item.run_id),
    ).fetchone()
    if row is None:
        return Lost()
    key, epoch, last_sequence, is_ended, definition = row
    if not is_ended:
        return Lost(epoch, last_sequence)
    kept = sorted(KEPT_KINDS)
    connection.execute("DELETE FROM chunks WHERE run = ?", (key,))
    connection.execute(
        "UPDATE runs SET body = x'', log_bytes = 0, first_sequence = last_sequence + 1, definition = NULL"
        " WHERE key = ?",
        (key,),
    )
    connection.execute(
        f"DELETE FROM entries WHERE namespace = ? AND run_id = ? AND kind NOT IN ({', '.join('?' * len(kept))})",
        (item.namespace, item.run_id, *kept),
    )
    if item.frees_request:
        connection.execute(
            "DELETE FROM requests WHERE namespace = ? AND target = ?",
            (item.namespace, item.run_id),
        )
    return _forget(connection, {definition} - {None})


def delete_session(connection: sqlite3.Connection, item: DeleteSession) -> Lost | set[bytes]:
    """Delete a session with everything of it; gives the definitions that went with it, or why nothing did."""
    names = {"namespace": item.namespace, "session": item.session_id, "kind": SESSION_KIND}
    unended = connection.execute(
        f"SELECT epoch, last_sequence {_RUNS} AND is_ended = 0 ORDER BY run_id LIMIT 1", names
    ).fetchone()
    if unended is not None:
        return Lost(*unended)
    pinned = connection.execute(f"SELECT DISTINCT definition {_RUNS} AND definition IS NOT NULL", names).fetchall()
    for statement in _OF_SESSION:
        connection.execute(statement, names)
    return _forget(connection, {definition for (definition,) in pinned})


def purge(connection: sqlite3.Connection, item: Purge) -> int:
    """Delete records that have expired; gives how many."""
    return connection.execute(
        "DELETE FROM records WHERE row IN (SELECT row FROM records"
        " WHERE expire_time_ns > 0 AND expire_time_ns <= ? ORDER BY expire_time_ns LIMIT ?)",
        (item.now_ns, item.limit),
    ).rowcount


def _forget(connection: sqlite3.Connection, definitions: set[bytes]) -> set[bytes]:
    """Delete those among some definitions that no run is pinned to any more."""
    gone = set()
    for definition in definitions:
        deleted = connection.execute(
            "DELETE FROM definitions WHERE hash = ?1 AND NOT EXISTS (SELECT 1 FROM runs WHERE definition = ?1)",
            (definition,),
        ).rowcount
        if deleted:
            gone.add(definition)
    return gone
