"""The data directory: held by one process, marked with the store that was open last, with a reserve for a full disk.

Below the SQLite store. Guarantees that a second daemon is refused, that a store set back to an older state is noticed,
and that files are readable by their owner only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from behestd import errors

LOCK_NAME = "lock"
BALLAST_NAME = "ballast"
FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


class StoreInUse(errors.Unavailable):
    """Raised when another process holds the data directory (exit code 69)."""

    def __init__(self, path: str, pid: str) -> None:
        super().__init__("STORAGE_BUSY", f"data directory {path} is in use by process {pid}", path=path, pid=pid)


@dataclass(frozen=True, slots=True)
class Mark:
    """What the lock file says of the store that was open last."""

    pid: int = 0
    store_id: str = ""
    generation: int = 0
    boot_id: str = ""
    is_closed: bool = True


class Directory:
    """A data directory that this process holds until `close`. Raises StoreInUse when another one does."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        self.path = path
        self._lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._read()
            os.close(self._lock)
            raise StoreInUse(str(path), str(holder.pid or "unknown")) from None
        self.last = self._read()
        """The mark that the process before left."""

    def _read(self) -> Mark:
        try:
            return Mark(**json.loads(os.pread(self._lock, 4096, 0) or b"{}"))
        except (ValueError, TypeError):
            return Mark()

    def mark(self, mark: Mark) -> None:
        """Write down, durably, what store is open here."""
        text = json.dumps(asdict(mark)).encode()
        os.pwrite(self._lock, text, 0)
        os.ftruncate(self._lock, len(text))
        os.fsync(self._lock)

    def sync(self) -> None:
        """Make the names of new files durable."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._lock)


class Ballast:
    """A file that only takes space, given back when the disk is full so that runs can still be ended.

    A size of 0 bytes means none.
    """

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self._path = directory / BALLAST_NAME
        self._size_bytes = size_bytes

    def release(self) -> None:
        """Give the space back."""
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self._path, 0)

    def restore(self) -> bool:
        """Take the space again. False when there is not enough; nothing is taken then."""
        if self._size_bytes == 0:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            os.ftruncate(descriptor, self._size_bytes)
            os.posix_fallocate(descriptor, 0, self._size_bytes)
        except OSError as error:
            os.ftruncate(descriptor, 0)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return False
        finally:
            os.close(descriptor)
        return True


def boot_id() -> str:
    """Return what tells one start of the machine from the next; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
