"""Writes the audit log: rows are chained and appended on a thread of its own, in groups, and the log goes on for ever.

Above: the edge, which hands rows over. Below: the files that `audit` reads. `keep` returns when its row is on the
disk; what `note` takes is written within a tenth of a second, and on the disk within a second or so. When the disk is
full or fails, rows are held in memory and tried again, and `check` refuses what must not go unrecorded; rows that do
not fit there are counted, and the count is a row of its own as soon as there is room. Without a directory the last rows
are kept in memory, and nothing outlives the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import structlog

from behestd.errors import BehestError, StorageFailed, StorageFull
from behestd.log import audit
from behestd.log.audit import DIRECTORY, HEAD, OPENED, Broken, Head, Row, line_of
from behestd.log.directory import Directory
from behestd.values import dataclass

logger = structlog.get_logger(__name__)

ROTATE_BYTES = 64 * 1024 * 1024
REMEMBERED = 10_000
"""Rows kept in memory where there is no directory."""
MOST_PENDING = 50_000
"""Rows held while they cannot be written."""
LINGER_SECONDS = 0.1
SYNC_SECONDS = 1.0
RETRY_SECONDS = 1.0
LOST_METHOD = "audit:lost"
"""The method of the row that says how many rows did not fit into memory while the disk failed."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A row, and who waits for it."""

    row: Row
    done: asyncio.Future[None] | None = None


class AuditLog:
    """The audit log of this daemon. `run` is its life; everything else may be called while that goes on."""

    def __init__(self, directory: Path | None, now_ns: Callable[[], int], rotate_bytes: int = ROTATE_BYTES) -> None:
        self.remembered: deque[Row] = deque(maxlen=REMEMBERED)
        """The last rows, where there is no directory."""
        self._now_ns = now_ns
        self._files = _Files(directory, rotate_bytes) if directory is not None else None
        self._pending: deque[_Kept] = deque()
        self._lost = 0
        self._problem: Callable[[], BehestError] | None = None
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False

    async def open(self) -> None:
        """Go on where the log ends. To be called before `run`. Raises OSError."""
        if self._files is not None:
            await asyncio.to_thread(self._files.open)
            self._take(_Kept(Row(self._now_ns(), OPENED, targets=self._files.found())))

    def note(self, row: Row) -> None:
        """Take a row that nobody waits for."""
        if self._files is None:
            self.remembered.append(row)
            return
        self._take(_Kept(row))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._hurry)

    async def keep(self, row: Row) -> None:
        """Take a row, and wait until it is on the disk. Raises StorageFull and StorageFailed, and holds the row."""
        if self._files is None:
            self.remembered.append(row)
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._take(_Kept(row, done))
        self._hurry()
        await done

    def check(self) -> None:
        """Refuse what must not go unrecorded while rows cannot be written. Raises StorageFull and StorageFailed."""
        if self._problem is not None:
            raise self._problem()

    async def probe(self) -> None:
        """Raise what keeps rows from being written."""
        self.check()

    def close(self) -> None:
        """Write what there is, and end."""
        self._is_closing = True
        self._hurry()

    def _take(self, kept: _Kept) -> None:
        if len(self._pending) >= MOST_PENDING:
            self._lost += 1
            if kept.done is not None:
                kept.done.set_exception((self._problem or StorageFailed)())
            return
        self._pending.append(kept)

    def _hurry(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wanted.set()

    # --- its life ---

    async def run(self) -> None:
        """Write rows until `close`."""
        if self._files is None:
            return
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="behestd-audit") as thread:
            while True:
                if self._pending:
                    await self._write(loop, thread, self._files)
                if self._is_closing and (not self._pending or self._problem is not None):
                    break
                await self._wait()
            await loop.run_in_executor(thread, self._files.close)
        if self._pending:
            logger.error("audit rows lost", rows=len(self._pending) + self._lost)

    async def _wait(self) -> None:
        if not self._is_closing and not (self._pending and self._problem is None and self._wanted.is_set()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if self._problem is not None else None):
                    await self._wanted.wait()
        self._wanted.clear()

    async def _write(self, loop: asyncio.AbstractEventLoop, thread: ThreadPoolExecutor, files: _Files) -> None:
        group = list(self._pending)
        self._pending.clear()
        batch = [kept.row for kept in group]
        if self._lost:
            batch.append(Row(self._now_ns(), LOST_METHOD, targets={"rows": str(self._lost)}))
        try:
            await loop.run_in_executor(thread, files.append, batch, any(kept.done is not None for kept in group))
        except OSError as error:
            self._fail(error, group)
            return
        self._lost = 0
        if self._problem is not None:
            logger.warning("audit log is written again")
            self._problem = None
        for kept in group:
            if kept.done is not None and not kept.done.done():
                kept.done.set_result(None)

    def _fail(self, error: OSError, group: Sequence[_Kept]) -> None:
        """Hold the rows of a group that could not be written, and tell who waits for one of them."""
        if self._problem is None:
            logger.error("audit log cannot be written", problem=os.strerror(error.errno or 0))
        self._problem = problem = StorageFull if error.errno == errno.ENOSPC else StorageFailed
        for kept in group:
            if kept.done is not None and not kept.done.done():
                kept.done.set_exception(problem())
        self._pending.extendleft(_Kept(kept.row) for kept in reversed(group))


def append_now(data_dir: Path, row: Row) -> None:
    """Write one row from beside a daemon that is stopped. Raises StoreInUse while one is not, and OSError."""
    with contextlib.closing(Directory(data_dir)):
        files = _Files(data_dir, ROTATE_BYTES)
        files.open()
        try:
            files.append([row], is_awaited=True)
        finally:
            files.close()


_HEAD_BYTES = 128


class _Files:
    """The files, on the thread that writes them."""

    def __init__(self, directory: Path, rotate_bytes: int) -> None:
        self._directory = directory / DIRECTORY
        self._rotate_bytes = rotate_bytes
        self._head = Head()
        self._number = 1
        self._file = -1
        self._head_file = -1
        self._size_bytes = 0
        self._synced_seconds = 0.0
        self._problem = ""

    def found(self) -> dict[str, str]:
        """What is to be told of what was found at the start."""
        return {"problem": self._problem} if self._problem else {}

    def open(self) -> None:
        """Go on where the log ends; a last line that was not written whole is taken off, as nobody was told of it.

        A log that was tampered with is not mended: what is wrong is told, and the chain goes on behind it.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        found = audit.files(self._directory)
        if found:
            self._number = int(found[-1].stem.removeprefix("audit-"))
        self._open_file()
        self._trim()
        self._head = self._last()
        try:
            stored = audit.read_head(self._directory)
        except Broken as error:
            stored, self._problem = None, error.problem
        self._head_file = os.open(self._directory / HEAD, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if stored is not None and stored.sequence >= self._head.sequence and stored != self._head:
            # The chain goes on behind the head, so that what is missing or changed stays to be seen.
            self._problem = f"the log goes to row {self._head.sequence}, and its head names another end"
            self._head = stored
        if self._problem:
            logger.error("audit log is not what was written", problem=self._problem)

    def _path(self) -> Path:
        return self._directory / f"audit-{self._number:06d}.jsonl"

    def _open_file(self) -> None:
        self._file = os.open(self._path(), os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size_bytes = os.fstat(self._file).st_size

    def _trim(self) -> None:
        """Take off a last line that is not whole. Whole ones stay: they are part of the chain, whoever was told."""
        data = self._path().read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
            self._size_bytes = whole

    def _last(self) -> Head:
        """The head by the last row that can be read."""
        last = Head()
        for path in reversed(audit.files(self._directory)):
            for line in reversed(path.read_bytes().splitlines()):
                try:
                    sequence = json.loads(line)["sequence"]
                except (ValueError, KeyError, TypeError):
                    continue
                return Head(int(sequence), sha256(line).hexdigest())
        return last

    def append(self, batch: Sequence[Row], is_awaited: bool) -> None:
        """Write rows; those that somebody waits for are on the disk when it returns. Raises OSError.

        Those that nobody waits for are put onto the disk once a second: each time costs a commit of the file system.
        """
        if self._file < 0:
            self._open_file()
            self._trim()
            self._head = self._last()
        if self._size_bytes >= self._rotate_bytes:
            self._rotate()
        head, lines = self._head, list[bytes]()
        for row in batch:
            line, head = line_of(row, head)
            lines.append(line)
        data = b"".join(lines)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            is_due = is_awaited or time.monotonic() - self._synced_seconds >= SYNC_SECONDS
            if is_due:
                os.fsync(self._file)
        except OSError:
            self._let_go()
            raise
        self._size_bytes += len(data)
        self._head = head
        if is_due:
            self._write_head()

    def _let_go(self) -> None:
        """Take off what was written in part, and have the file opened anew, as it may be another one by then."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._size_bytes)
        os.close(self._file)
        self._file = -1

    def _rotate(self) -> None:
        os.fsync(self._file)
        os.close(self._file)
        self._number += 1
        self._open_file()
        self._sync_directory()

    def _write_head(self) -> None:
        """Write the head over the old one, once its row is on the disk: it may lag behind the rows, never run ahead."""
        self._synced_seconds = time.monotonic()
        text = json.dumps({"sequence": self._head.sequence, "hash": self._head.hash})
        with contextlib.suppress(OSError):
            os.pwrite(self._head_file, text.ljust(_HEAD_BYTES).encode(), 0)

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Put everything onto the disk, and let go of the files."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._file)
                self._write_head()
            os.close(self._file)
        os.close(self._head_file)
