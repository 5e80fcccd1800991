"""The thread that owns the one SQLite connection that writes and checkpoints. See docs/decisions/0001.

Above it is the store; a batch goes in as one job and comes back by one wake-up of the loop. A batch is one transaction:
its outcome is definite (committed, or rolled back because the disk is full) or it is unknown, and then the file is not
touched again. Checkpoints, and what a deletion leaves to be wiped, are done between batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence

from behestd.log.directory import Ballast
from behestd.log.sqlite_transaction import Transactions
from behestd.log.sqlite_wipe import Wiper
from behestd.log.store import Append, CommitUnknown, Full, Import, Item, Outcome
from behestd.values import dataclass

IDLE_SECONDS = 0.02
"""How long nothing must come in before a checkpoint that is due is made."""
PROBE_SECONDS = 1.0
"""How often a degraded writer looks whether there is space again."""
CHECKPOINT_PAGES = 1000
"""Pages in the WAL that make a checkpoint due; at four times as many it is made between two batches."""
PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a job came to. `syncs` are the fsync calls that its commit asked for."""

    outcomes: list[Outcome]
    seconds: float
    syncs: int


@dataclass(frozen=True, slots=True)
class _Job:
    batch: Sequence[Item]
    loop: asyncio.AbstractEventLoop
    receipt: asyncio.Future[Receipt]


class Writer:
    """Runs one job after the other until `stop`; a thread is started by `start`.

    After CommitUnknown nothing more is written, and `submit` fails at once.
    """

    def __init__(
        self, connection: sqlite3.Connection, transactions: Transactions, ballast: Ballast, wiper: Wiper, *, syncs: int
    ) -> None:
        self._connection = connection
        self._transactions = transactions
        self._ballast = ballast
        self._syncs = syncs
        self._jobs: queue.SimpleQueue[_Job | Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="behestd-log", daemon=True)
        self._wal_pages = 0
        self.wiper = wiper
        self._position = transactions.position
        self.is_poisoned = False
        self.is_degraded = not ballast.restore()

    @property
    def position(self) -> int:
        """The highest commit position given."""
        return self._position

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def submit(self, batch: Sequence[Item]) -> asyncio.Future[Receipt]:
        """Queue a batch; the future is set on the calling loop. Raises CommitUnknown when an earlier one is unknown."""
        if self.is_poisoned:
            raise CommitUnknown("an earlier commit is unknown")
        loop = asyncio.get_running_loop()
        job = _Job(batch, loop, loop.create_future())
        self._jobs.put(job)
        return job.receipt

    async def stop(self) -> None:
        """Finish what is queued, checkpoint unless poisoned or degraded, end the thread and close the connection."""
        if self._thread.is_alive():
            loop = asyncio.get_running_loop()
            stopped = asyncio.Event()
            self._jobs.put(lambda: _wake(loop, stopped))
            await stopped.wait()
            self._thread.join()
        self._connection.close()

    # --- the thread ---

    def _serve(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._patience())
            except queue.Empty:
                self._tidy()
                continue
            if not isinstance(job, _Job):
                if not (self.is_poisoned or self.is_degraded):
                    self._checkpoint("TRUNCATE")
                job()
                return
            receipt: Receipt | CommitUnknown = CommitUnknown("the commit failed for an unexpected reason")
            try:
                receipt = self._run(job.batch)
            finally:
                # Also when the thread is about to die of something unforeseen: nobody may wait for ever.
                self.is_poisoned = isinstance(receipt, CommitUnknown)
                _tell(job.loop, job.receipt, receipt)
            if not self.is_poisoned and (self._wal_pages > 4 * CHECKPOINT_PAGES or self.wiper.seconds() <= 0):
                self._tidy()

    def _run(self, batch: Sequence[Item]) -> Receipt | CommitUnknown:
        if self.is_poisoned:
            return CommitUnknown("an earlier commit is unknown")
        began = time.perf_counter()
        transactions = self._transactions
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = transactions.apply(batch)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL and self._roll_back():
                transactions.undo()
                self._ballast.release()
                self.is_degraded = True
                return Receipt([Full()] * len(batch), time.perf_counter() - began, 0)
            unknown = CommitUnknown(f"a commit failed: {error.sqlite_errorname}")
            unknown.__cause__ = error
            return unknown
        transactions.keep()
        self._position = transactions.position
        if transactions.has_written:
            # An estimate that only decides when to look: some pages for each item, and the bytes themselves.
            size_bytes = sum(item.size_bytes for item in batch if isinstance(item, Append | Import))
            self._wal_pages += 8 + len(batch) + size_bytes // PAGE_BYTES
            self.wiper.note(batch)
        return Receipt(outcomes, time.perf_counter() - began, self._syncs if transactions.has_written else 0)

    def _roll_back(self) -> bool:
        """Undo the open transaction. False when even that failed."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            return False
        return True

    def _patience(self) -> float | None:
        """Return how many seconds to wait for a job before tidying up, None for ever."""
        if self.is_poisoned:
            return None
        if self._is_checkpoint_due:
            return IDLE_SECONDS
        patience = max(self.wiper.seconds(), IDLE_SECONDS)
        if self.is_degraded:
            patience = min(patience, PROBE_SECONDS)
        return patience if patience < math.inf else None

    def _tidy(self) -> None:
        """Checkpoint, wipe what was deleted, take the ballast again. Failures show at the next commit."""
        if self.wiper.seconds() <= 0:
            self.wiper.work(self._connection, self._checkpoint)
        elif self._is_checkpoint_due:
            self._checkpoint("PASSIVE")
        if self.is_degraded:
            self.is_degraded = not self._ballast.restore()

    @property
    def _is_checkpoint_due(self) -> bool:
        """Whether the WAL is long. On a full disk the file must not grow: what is left is for the ends of runs."""
        return self._wal_pages > CHECKPOINT_PAGES and not self.is_degraded

    def _checkpoint(self, mode: str) -> bool:
        """Copy the WAL into the file. True when nothing of it is left to copy."""
        try:
            busy, pages, copied = self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error:
            busy, pages, copied = 1, 0, 0
        self._wal_pages = max(0, pages - copied)
        return not busy and self._wal_pages == 0


def _tell(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Receipt], result: Receipt | CommitUnknown) -> None:
    """Set a future from another thread. A loop that is closed by now has nobody waiting."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, future, result)


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)


def _settle(future: asyncio.Future[Receipt], result: Receipt | CommitUnknown) -> None:
    if future.done():
        return
    if isinstance(result, CommitUnknown):
        future.set_exception(result)
    else:
        future.set_result(result)
