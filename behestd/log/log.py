"""The durable log: commits of all runs, grouped into few transactions, and the live ends that watchers follow.

Above are the drivers and the services, below a store. Guarantees: an outcome is told when it is durable and not before;
in the order COMMIT, heads, watchers, caller; a watcher sees every event of its run once and in order. When a commit is
unknown everything that is pending fails, nothing more is committed, and `run` raises so that the process stops.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from weakref import WeakValueDictionary

from behestd import errors
from behestd.failpoint import failpoint
from behestd.log.store import Append, Change, Committed, DeleteRun, DeleteSession, Import, Item, Outcome, Store
from behestd.log.tail import Tail
from behestd.log.waiters import Waiters
from behestd.values import dataclass

BATCH_EVENTS = 512
BATCH_BYTES = 1024 * 1024
SHARED_ITEMS = 4
"""Items that make a commit a shared one: the next gathers a while longer."""
GATHER_SECONDS = 0.004
ENOUGH_ITEMS = 64
"""Items that are committed without gathering more."""
MAX_TIME_NS = (1 << 63) - 1
RECENT_TAILS = 256
RECENT_BYTES = 4 * 1024 * 1024
"""Tails of ended runs kept for those who ask late: this many, and this many bytes of events."""

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """Sizes of what is held in memory, and what was done."""

    queued: int
    batches: int
    largest_batch: int
    live_tails: int
    recent_tails: int
    watched_tails: int
    tail_bytes: int


@dataclass(frozen=True, slots=True)
class _Pending:
    item: Item
    outcome: asyncio.Future[Outcome]


class Log:
    """Commits and tails over a store. Made by `open`; the daemon runs `run` as a task for as long as it lives."""

    def __init__(self, store: Store, position: int) -> None:
        self.store = store
        self.position = position
        """The newest commit position that is announced."""
        self.changes = Waiters()
        """Woken after each batch that moved `position`."""
        self._queue: deque[_Pending] = deque()
        self._arrivals = Waiters()
        self._is_closed = False
        self._tails = _Tails()
        self._batches = 0
        self._largest_batch = 0

    @classmethod
    async def open(cls, store: Store) -> Log:
        """Build a log over an open store."""
        return cls(store, (await store.positions())[1])

    # --- writing ---

    async def commit(self, item: Item) -> Outcome:
        """Commit one item with whatever else is due. Returns when the outcome is durable.

        A caller that is cancelled does not take its item back. Raises StorageFailed when the outcome is not known, or
        when the log is closed; InvalidRequest for a name or a time that no store can hold; ValueError when the
        sequences of an append do not fit together.
        """
        return await self.submit(item)

    def submit(self, item: Item) -> asyncio.Future[Outcome]:
        """Hand in an item without waiting for its outcome. Raises as `commit`, at once or in the future."""
        _check(item)
        if self._is_closed:
            raise errors.StorageFailed
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.append(_Pending(item, outcome))
        self._arrivals.wake()
        return outcome

    def close(self) -> None:
        """Take no more items. `run` returns when those queued are committed."""
        self._is_closed = True
        self._arrivals.wake()

    async def run(self) -> None:
        """Commit what is queued, batch after batch: while one is written the next gathers. Returns after `close`.

        After a shared commit the next one gathers a while longer: see docs/decisions/0010. Raises CommitUnknown when a
        commit is unknown; the process must then stop.
        """
        is_shared = False
        try:
            while self._queue or not self._is_closed:
                if not self._queue:
                    await self._arrivals.wait()
                    continue
                if is_shared and not self._is_closed and len(self._queue) < ENOUGH_ITEMS:
                    await asyncio.sleep(GATHER_SECONDS)
                batch = self._take()
                await self._commit(batch)
                is_shared = len(batch) >= SHARED_ITEMS
        finally:
            self._is_closed = True
            for pending in self._queue:
                _fail(pending)
            self._queue.clear()

    def _take(self) -> list[_Pending]:
        """Take the next batch from the queue, in order: at least one item, no more once a bound is passed."""
        batch: list[_Pending] = []
        events = size_bytes = 0
        while self._queue and events < BATCH_EVENTS and size_bytes < BATCH_BYTES:
            pending = self._queue.popleft()
            batch.append(pending)
            events += 1
            if isinstance(pending.item, Append):
                events += pending.item.chunk.last_sequence - pending.item.chunk.first_sequence
                size_bytes += pending.item.size_bytes
            elif isinstance(pending.item, Import):
                size_bytes += pending.item.size_bytes
        return batch

    async def _commit(self, batch: list[_Pending]) -> None:
        self._batches += 1
        self._largest_batch = max(self._largest_batch, len(batch))
        outcomes: list[Outcome] = []
        position = self.position
        try:
            failpoint("log.before_commit")
            outcomes = await self.store.write([pending.item for pending in batch])
            failpoint("log.after_commit")
        finally:
            if not outcomes:
                for pending in batch:
                    _fail(pending)
        woken = [
            tail
            for pending, outcome in zip(batch, outcomes, strict=True)
            if isinstance(outcome, Committed) and (tail := self._advance(pending.item, outcome)) is not None
        ]
        failpoint("publish.before")
        for tail in woken:
            tail.waiters.wake()
        if self.position > position:
            self.changes.wake()
        for pending, outcome in zip(batch, outcomes, strict=True):
            if not pending.outcome.done():
                pending.outcome.set_result(outcome)

    def _advance(self, item: Item, outcome: Committed) -> Tail | None:
        if isinstance(item, Append):
            self.position = outcome.position
            return self._tails.advance(item)
        if isinstance(item, DeleteRun | DeleteSession):
            self._tails.forget(item)
        elif isinstance(item, Import):
            self.position = outcome.position
        return None

    # --- watching ---

    async def tail(self, namespace: str, run_id: str) -> Tail:
        """Return the live end of a run. It is kept up to date for as long as the caller holds it.

        The store is asked only for a run of which nothing is in memory. Raises RunNotFound.
        """
        tail = self._tails.find(namespace, run_id)
        if tail.head == 0:
            row = await self.store.run(namespace, run_id)
            if row is not None:
                tail.settle(row)
            if tail.head == 0:
                raise errors.RunNotFound(run_id)
        return tail

    def live_tail(self, namespace: str, run_id: str) -> Tail | None:
        """Return the end of a run that has not ended and was appended to since the start, else None."""
        return self._tails.live.get((namespace, run_id))

    def statistics(self) -> LogStatistics:
        """Return the counters of this log; those of the store are its own."""
        return LogStatistics(
            queued=len(self._queue),
            batches=self._batches,
            largest_batch=self._largest_batch,
            live_tails=len(self._tails.live),
            recent_tails=len(self._tails.recent),
            watched_tails=len(self._tails.known),
            tail_bytes=self._tails.recent_bytes + sum(tail.memory_bytes for tail in self._tails.live.values()),
        )


class _Tails:
    """The tails in memory: of live runs, of some that ended lately, and of whatever somebody watches."""

    def __init__(self) -> None:
        self.live: dict[Key, Tail] = {}
        self.recent: OrderedDict[Key, Tail] = OrderedDict()
        self.recent_bytes = 0
        self.known: WeakValueDictionary[Key, Tail] = WeakValueDictionary()

    def find(self, namespace: str, run_id: str) -> Tail:
        """Return the tail of a run, a new one with head 0 when there is none."""
        key = (namespace, run_id)
        tail = self.live.get(key) or self.known.get(key)
        if tail is None:
            tail = self.known[key] = Tail(namespace, run_id)
        return tail

    def advance(self, item: Append) -> Tail:
        """Take a durable append."""
        row = item.row
        key = (row.namespace, row.run_id)
        tail = self.live.get(key)
        if tail is None:
            tail = self.live[key] = self.find(*key)
        tail.advance(item.chunk, row)
        if row.is_ended:
            del self.live[key]
            self._retire(key, tail)
        return tail

    def _retire(self, key: Key, tail: Tail) -> None:
        self.recent[key] = tail
        self.recent_bytes += tail.memory_bytes
        while len(self.recent) > RECENT_TAILS or self.recent_bytes > RECENT_BYTES:
            _, oldest = self.recent.popitem(last=False)
            self.recent_bytes -= oldest.memory_bytes

    def forget(self, item: DeleteRun | DeleteSession) -> None:
        """Take note that a run, or all runs of a session, are deleted."""
        for key, tail in list(self.known.items()):
            of_run = isinstance(item, DeleteRun) and key == (item.namespace, item.run_id)
            of_session = (
                isinstance(item, DeleteSession) and key[0] == item.namespace and tail.session_id == item.session_id
            )
            if of_run or of_session:
                if self.recent.pop(key, None) is not None:
                    self.recent_bytes -= tail.memory_bytes
                tail.forget()
                if of_session:
                    del self.known[key]


def _check(item: Item) -> None:
    """Refuse an item that no store could write, before it harms those who share its batch."""
    names: list[str]
    if isinstance(item, Append):
        chunk, row = item.chunk, item.row
        first, last = item.last_sequence + 1, chunk.last_sequence
        if chunk.first_sequence != first or last < first or row.last_sequence != last or row.epoch < item.epoch:
            raise ValueError(
                f"an append of {chunk.first_sequence} to {last} after {item.last_sequence}, row at {row.last_sequence}"
            )
        names = [row.namespace, row.run_id, row.session_id, row.agent_id]
        names += [name for entry in item.entries for name in (entry.id, entry.session_id, entry.run_id)]
    elif isinstance(item, Import):
        row = item.row
        names = [row.namespace, row.run_id, row.session_id, row.agent_id]
        names += [name for entry in item.entries for name in (entry.id, entry.session_id, entry.run_id)]
    elif isinstance(item, Change):
        names = [name for delete in item.deletes for name in (delete.namespace, delete.id)]
        names += [name for entry in item.entries for name in (entry.id, entry.session_id, entry.run_id)]
    else:
        return
    if item.claim is not None:
        names += (item.claim.namespace, item.claim.request_id, item.claim.target)
    for put in item.puts:
        record = put.record
        names += (record.namespace, record.id, record.parent)
        if not 0 <= record.expire_time_ns <= MAX_TIME_NS:
            raise errors.InvalidRequest("expire_time", "is out of range")
    # SQLite's JSON and PostgreSQL's text end at a NUL.
    if "\0" in "".join(names):
        raise errors.InvalidRequest("id", "must not hold a NUL character")


def _fail(pending: _Pending) -> None:
    if not pending.outcome.done():
        pending.outcome.set_exception(errors.StorageFailed())
