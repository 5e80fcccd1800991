"""The rows that a run becomes: its log in chunks, its own row, its entries in the views. Values, below every store."""

from __future__ import annotations

from behestd.values import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """The events of one commit of one run, as the wire bytes of `WatchRunResponse.events` (tag, length, event, …).

    `position` is the store-wide commit order, 0 until written; it grows with every chunk and is never used twice.
    """

    first_sequence: int
    last_sequence: int
    data: bytes
    position: int = 0


@dataclass(frozen=True, slots=True)
class RunRow:
    """The view of one run after an append; session, agent and create time never change. `body` is the `Run` message."""

    namespace: str
    run_id: str
    session_id: str
    agent_id: str
    state: int
    epoch: int
    last_sequence: int
    last_hash: bytes
    session_index: int
    create_time_ns: int
    body: bytes
    is_active: bool
    """Holds the session's gate: started and not ended."""
    is_ended: bool
    log_bytes: int  # of all chunks together
    first_sequence: int = 1
    """Oldest sequence still stored; last_sequence + 1 when the log is deleted."""
    end_time_ns: int = 0
    """When it ended; 0 before that."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a view that belongs to a session and a run: a message, a tool call, an approval.

    Entries of one kind are listed by ascending `position`. Writing the same (namespace, kind, id) again replaces it.
    """

    kind: str
    id: str
    session_id: str
    run_id: str
    position: int
    body: bytes
