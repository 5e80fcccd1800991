"""The port of a store: what the log asks of SQLite, memory and any other engine.

Above it is `log.log` (group commit, live tails, waiters); below it one file a backend. Promises of every store: an item
of a batch takes effect wholly or not at all; items of one batch are applied in order, a loser leaves the others alone;
when `write` returns, everything it reports as committed survives what the store's durability class names; nothing is
readable before that. Every key begins with the namespace. Values are bytes that the store never looks into.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from behestd.log.counts import Statistics
from behestd.log.rows import Chunk as Chunk
from behestd.log.rows import Entry as Entry
from behestd.log.rows import RunRow as RunRow
from behestd.log.usage import Spent, UsageStore
from behestd.values import dataclass

SESSION_KIND = "session"
"""The kind of the record that `DeleteSession` deletes beside everything else of the session."""

KEPT_KINDS = frozenset({"message"})
"""Kinds of entries that outlive the log of their run."""


@dataclass(frozen=True, slots=True)
class Record:
    """A thing that is not a fold of a log: a session, an agent, a server, an artifact's description, scratch data.

    `parent` groups records for listing and for cascades (the session's id, or empty). `version` counts writes from 1.
    `expire_time_ns` 0 means never; an expired record is not found.
    """

    namespace: str
    kind: str
    id: str
    body: bytes
    parent: str = ""
    version: int = 0
    create_time_ns: int = 0
    expire_time_ns: int = 0


@dataclass(frozen=True, slots=True)
class Put:
    """Write a record. `expected_version` None: whatever is there; 0: only if there is none; n: only over version n.

    The version becomes the old one plus 1, and the create time of an existing record is kept. The record's
    `create_time_ns` is taken for the present: an old record that has expired by then counts as none.
    """

    record: Record
    expected_version: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a record. No error when there is none. `expected_version` as in Put, 0 excluded."""

    namespace: str
    kind: str
    id: str
    expected_version: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """Take a request id for a thing. Refused with `RequestTaken` when it is taken, whatever the digest."""

    namespace: str
    request_id: str
    digest: bytes
    target: str


@dataclass(frozen=True, slots=True)
class SessionIsFree:
    """Guard: no other run of the session is active. The namespace is that of the item."""

    session_id: str


@dataclass(frozen=True, slots=True)
class RecordIs:
    """Guard: the record exists (and has that version, unless None). Whether it has expired is not looked at."""

    namespace: str
    kind: str
    id: str
    version: int | None = None


Guard = SessionIsFree | RecordIs


@dataclass(frozen=True, slots=True)
class Append:
    """One commit of one run: a compare-and-set on (epoch, last_sequence) and everything that goes with it.

    `epoch` and `last_sequence` are those expected, (0, 0) for a run that must not exist; an ended run takes no more.
    `row` and `entries` are the views after it. Guards, claim and puts are checked and written in the same transaction,
    the claim first of all, so that a repeated request is answered by what the first one made.
    """

    row: RunRow
    chunk: Chunk
    epoch: int
    last_sequence: int
    entries: tuple[Entry, ...] = ()
    definition: tuple[bytes, bytes] | None = None
    """(hash, bytes) of the run's definition; written when it is new."""
    claim: Claim | None = None
    guards: tuple[Guard, ...] = ()
    puts: tuple[Put, ...] = ()
    usage: tuple[Spent, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Roughly how much is written, for the bound of a batch."""
        return len(self.chunk.data) + len(self.row.body) + sum(len(entry.body) for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Change:
    """A transaction over records, with entries and usage that no run made: all of it or nothing."""

    puts: tuple[Put, ...] = ()
    deletes: tuple[Delete, ...] = ()
    claim: Claim | None = None
    guards: tuple[Guard, ...] = ()
    entries: tuple[Entry, ...] = ()
    usage: tuple[Spent, ...] = ()


@dataclass(frozen=True, slots=True)
class DeleteRun:
    """Delete the log and entries of an ended run, but for `KEPT_KINDS`, and leave a tombstone row (state, head).

    The tombstone has no body and `first_sequence` = `last_sequence` + 1; `run` finds it, `runs` does not. Refused with
    `Lost` while the run has not ended, and when there is none. Its definition goes when no other run is pinned to it.
    """

    namespace: str
    run_id: str
    frees_request: bool = False
    """Whether its request id may be used again; else it stays taken."""
    is_leisurely: bool = False
    """Whether what is left of it in the store's files may be wiped with what is deleted in the next seconds."""


@dataclass(frozen=True, slots=True)
class DeleteSession:
    """Delete a session: its record, runs, logs, entries, request ids and every record whose parent it is.

    Its usage stays, without its name. Refused with `Lost` while a run has not ended; no error when there is none of it.
    """

    namespace: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Purge:
    """Delete records that have expired by a time, of every namespace and kind: those that expired first, so many."""

    now_ns: int
    limit: int


@dataclass(frozen=True, slots=True)
class Import:
    """Write a run that ended elsewhere: its log, its row and its views. Without chunks it is a tombstone.

    Refused with `Lost` when there is a run of that id, and as the guards say.
    """

    row: RunRow
    chunks: tuple[Chunk, ...]
    entries: tuple[Entry, ...] = ()
    definition: tuple[bytes, bytes] | None = None
    guards: tuple[RecordIs, ...] = ()
    usage: tuple[Spent, ...] = ()
    claim: None = None
    puts: tuple[Put, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Roughly how much is written, for the bound of a batch."""
        return self.row.log_bytes + len(self.row.body) + sum(len(entry.body) for entry in self.entries)


Item = Append | Change | DeleteRun | DeleteSession | Purge | Import


@dataclass(frozen=True, slots=True)
class Committed:
    """The item is durable. `position` is the commit position of an append (0 otherwise)."""

    position: int = 0
    versions: tuple[int, ...] = ()
    """The new versions of the puts, in order."""
    deleted: int = 0
    """How many records a purge deleted."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The run has moved on within the same epoch, exists already, or the guard names what stands in the way.

    `epoch` and `last_sequence` are those in the store (0, 0: no such run).
    """

    epoch: int = 0
    last_sequence: int = 0


@dataclass(frozen=True, slots=True)
class Fenced:
    """Another owner has claimed the run; drop everything about it."""

    epoch: int


@dataclass(frozen=True, slots=True)
class RequestTaken:
    """The request id is taken by `target` with `digest`."""

    target: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class SessionTaken:
    """The session's gate is held by another run."""

    run_id: str


@dataclass(frozen=True, slots=True)
class RecordChanged:
    """A record does not have the version expected; `version` is the present one (0: there is none)."""

    kind: str
    id: str
    version: int


@dataclass(frozen=True, slots=True)
class Full:
    """The disk is full; definitely nothing was written."""


Outcome = Committed | Lost | Fenced | RequestTaken | SessionTaken | RecordChanged | Full


class CommitUnknown(Exception):
    """Raised when nobody can say whether a batch was written. The store is poisoned: every later call raises too."""


@dataclass(frozen=True, slots=True)
class RunQuery:
    """Which runs to list, newest first (create time, then id). Empty fields match everything.

    `created_after_ns` is inclusive, `created_before_ns` exclusive. `before` is where the page before ended.
    """

    namespace: str
    limit: int
    states: tuple[int, ...] = ()
    session_id: str = ""
    agent_id: str = ""
    created_after_ns: int = 0
    created_before_ns: int = 0
    before: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class TailChunk:
    """A chunk as WatchEvents reads it: in commit order over all runs of a namespace."""

    namespace: str
    run_id: str
    session_id: str
    agent_id: str
    chunk: Chunk


class Store(UsageStore, Protocol):
    """See the module's docstring for the promises."""

    name: str
    durability: int
    """A `DurabilityClass` of the contract."""

    @property
    def is_degraded(self) -> bool:
        """Whether the disk was found full and has not recovered: nothing new should be begun."""

    async def write(self, batch: Sequence[Item]) -> list[Outcome]:
        """Apply the items in one transaction, in order, with one outcome each. Raises CommitUnknown: stop (exit 70)."""

    async def chunks(self, namespace: str, run_id: str, after_sequence: int, limit_bytes: int) -> list[Chunk]:
        """Chunks of a run that end above a sequence, in order: one at least, no more once they have `limit_bytes`."""

    async def tail(self, namespace: str, after_position: int, limit_bytes: int) -> list[TailChunk]:
        """Chunks of all runs of a namespace with a higher commit position, in commit order, bounded likewise."""

    async def run(self, namespace: str, run_id: str) -> RunRow | None:
        """The view of one run."""

    async def runs(self, query: RunQuery) -> list[RunRow]:
        """The views of runs that match, newest first."""

    async def unended(self, limit: int, after: tuple[str, str] = ("", "")) -> list[RunRow]:
        """Runs of every namespace that have not ended, by ascending (namespace, run id) above `after`."""

    async def ended(self, namespace: str, before_ns: int, limit: int, after: tuple[int, str] = (0, "")) -> list[RunRow]:
        """Runs whose log is stored and that ended before a time, by ascending (end time, run id) above `after`."""

    async def session_runs(self, namespace: str, session_id: str) -> list[RunRow]:
        """The runs of a session that have not ended, by ascending create time, then id."""

    async def runs_of(
        self, namespace: str, session_id: str, limit: int, after: tuple[int, str] = (0, "")
    ) -> list[RunRow]:
        """Every run of a session, tombstones too, by ascending (create time, run id) above `after`."""

    async def last_session_index(self, namespace: str, session_id: str) -> int:
        """The highest session_index of the session's runs, 0 when none has started."""

    async def definition(self, hash: bytes) -> bytes | None:
        """The bytes of a definition."""

    async def entries(
        self, namespace: str, kind: str, *, session_id: str = "", run_id: str = "", after: int = 0, limit: int = 1000
    ) -> list[Entry]:
        """Entries of a kind of one session or one run, positions above `after`, ascending."""

    async def last_entries(self, namespace: str, kind: str, session_id: str, before: int, limit: int) -> list[Entry]:
        """The last entries of a kind of a session with positions below `before`, ascending."""

    async def entry(self, namespace: str, kind: str, id: str) -> Entry | None:
        """One entry."""

    async def request(self, namespace: str, request_id: str) -> Claim | None:
        """Who holds a request id."""

    async def record(self, namespace: str, kind: str, id: str, now_ns: int) -> Record | None:
        """One record that has not expired."""

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
        """Records of a kind that have not expired, by (namespace, id), above `after`. No namespace: every one."""

    async def newest_records(
        self, namespace: str, kind: str, *, parent: str | None, before: tuple[int, str] | None, limit: int
    ) -> list[Record]:
        """Records of a kind that never expires, by descending (create time, id), below `before`."""

    async def count_records(self, namespace: str, kind: str, parent: str, now_ns: int) -> int:
        """How many records of a kind and a parent have not expired."""

    async def namespaces(self) -> list[str]:
        """The namespaces that have a record, ascending."""

    async def positions(self) -> tuple[int, int]:
        """(oldest stored, newest ever given) commit position; 0 where there is none."""

    async def check(self) -> list[str]:
        """Problems found in the stored bytes; empty when sound. Read only."""

    def statistics(self) -> Statistics:
        """Counters."""

    async def close(self) -> None:
        """Finish what is under way, checkpoint and close."""
