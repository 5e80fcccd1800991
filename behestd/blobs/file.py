"""Blobs in files: `ROOT/NAMESPACE/AB/ABCD…`, named by hash, so that no name of a client ever becomes a path.

Below it the local file system. A blob is written to `ROOT/tmp`, synced, renamed, and its directory synced, before
anybody learns its name: it survives a power cut. All file work is done in one thread, whose order also makes the
clean-up of a cancelled write safe: it comes after whatever that write was still doing.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import itertools
import os
import secrets
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from behestd.blobs.blob import (
    LIMIT_BYTES,
    PIECE_BYTES,
    Aged,
    BlobNotFound,
    ChecksumMismatch,
    ContentCorrupt,
    RangeInvalid,
    Statistics,
    Stored,
)
from behestd.errors import StorageFull, TooLarge

_Value = TypeVar("_Value")
_FULL = {errno.ENOSPC, errno.EDQUOT}


class FileBlobs:
    """See `blob.Blobs` for the promises; content survives a power cut. One process owns a root at a time."""

    def __init__(self, root: Path) -> None:
        """Open or make the root, readable by its owner alone, and clear away what unfinished writes left behind."""
        self._root = root
        self._scratch = root / "tmp"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._scratch.mkdir(mode=0o700, exist_ok=True)
        for leftover in self._scratch.iterdir():
            leftover.unlink()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="blobs")
        self._writes = self._reads = self._written_bytes = 0

    async def write(
        self,
        namespace: str,
        pieces: AsyncIterable[bytes],
        *,
        limit_bytes: int = LIMIT_BYTES,
        expected_sha256: bytes = b"",
    ) -> Stored:
        """Store the pieces, joined. Raises TooLarge, ChecksumMismatch, StorageFull."""
        draft = _Draft(self._scratch / secrets.token_hex(16))
        try:
            await self._do(draft.open)
            async for piece in pieces:
                if draft.size_bytes + len(piece) > limit_bytes:
                    raise TooLarge("content", draft.size_bytes + len(piece), limit_bytes, "ARTIFACT_TOO_LARGE")
                await self._do(partial(draft.append, piece))
            sha256 = draft.digest.digest()
            if expected_sha256 and expected_sha256 != sha256:
                raise ChecksumMismatch(expected_sha256, sha256)
            await self._do(lambda: self._publish(draft, self._path(namespace, sha256)))
        finally:
            # Not awaited: a cancelled write must not wait, and the thread keeps the order.
            self._thread.submit(draft.discard)
        self._writes += 1
        self._written_bytes += draft.size_bytes
        return Stored(sha256, draft.size_bytes)

    async def size(self, namespace: str, sha256: bytes) -> int:
        """Bytes of a blob. Raises BlobNotFound."""
        path = self._path(namespace, sha256)
        try:
            return (await self._do(path.stat)).st_size
        except FileNotFoundError:
            raise BlobNotFound(sha256) from None

    async def read(
        self, namespace: str, sha256: bytes, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield a range. Raises BlobNotFound, RangeInvalid, ContentCorrupt."""
        content = _Content(self._path(namespace, sha256))
        try:
            size_bytes = await self._do(partial(content.open, max(offset, 0)))
            if not 0 <= offset <= size_bytes:
                raise RangeInvalid(offset, size_bytes)
            self._reads += 1
            left = size_bytes - offset if length is None else min(length, size_bytes - offset)
            is_whole = left == size_bytes
            while left > 0:
                piece = await self._do(partial(content.read, min(left, PIECE_BYTES)))
                if not piece:
                    raise ContentCorrupt(sha256)
                left -= len(piece)
                yield piece
            if is_whole and content.digest.digest() != sha256:
                raise ContentCorrupt(sha256)
        except FileNotFoundError:
            raise BlobNotFound(sha256) from None
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            raise ContentCorrupt(sha256) from None
        finally:
            self._thread.submit(content.close)

    async def delete(self, namespace: str, sha256: bytes) -> bool:
        """Delete a blob: whether it was there."""
        path = self._path(namespace, sha256)
        try:
            await self._do(path.unlink)
        except FileNotFoundError:
            return False
        return True

    async def aged(self, namespace: str, before_ns: int, after: bytes, limit: int) -> Aged:
        """Look for blobs that are old, by the time of their files."""
        return await self._do(lambda: self._aged(self._folder(namespace), before_ns, after.hex(), limit))

    def _aged(self, folder: Path, before_ns: int, after: str, limit: int) -> Aged:
        names = list(itertools.islice(_names(folder, after), limit))
        found = tuple(bytes.fromhex(name) for name in names if _written_ns(folder / name[:2] / name) < before_ns)
        return Aged(found, bytes.fromhex(names[-1]) if len(names) == limit else b"")

    def statistics(self) -> Statistics:
        """Counters."""
        return Statistics(self._writes, self._reads, self._written_bytes)

    async def close(self) -> None:
        """Finish what the thread is doing and let it go."""
        await self._do(lambda: None)
        self._thread.shutdown()

    async def _do(self, work: Callable[[], _Value]) -> _Value:
        """Do file work in the thread. Raises StorageFull for a full disk."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except OSError as exc:
            if exc.errno in _FULL:
                raise StorageFull from exc
            raise

    def _folder(self, namespace: str) -> Path:
        # A namespace is hashed too: whatever it is called, it is a directory of its own and nothing else.
        return self._root / hashlib.sha256(namespace.encode()).hexdigest()[:32]

    def _path(self, namespace: str, sha256: bytes) -> Path:
        name = sha256.hex()
        return self._folder(namespace) / name[:2] / name

    def _publish(self, draft: _Draft, path: Path) -> None:
        draft.sync()
        for folder in (path.parent.parent, path.parent):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
                _sync_directory(folder.parent)
        draft.path.replace(path)
        _sync_directory(path.parent)


class _Draft:
    """A file that nobody knows yet. Used in the thread only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest = hashlib.sha256()
        self.size_bytes = 0
        self._file: BinaryIO = io.BytesIO()

    def open(self) -> None:
        self._file = open(self.path, "xb", opener=_private)

    def append(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.size_bytes += len(data)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def discard(self) -> None:
        try:
            self._file.close()
        except OSError:
            # The rest of its buffer does not fit on the disk, and nobody wants it.
            pass
        self.path.unlink(missing_ok=True)


class _Content:
    """A blob that is being read. Used in the thread only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.digest = hashlib.sha256()
        self._file: BinaryIO = io.BytesIO()

    def open(self, offset: int) -> int:
        self._file = open(self._path, "rb", opener=_itself)
        self._file.seek(offset)
        return os.fstat(self._file.fileno()).st_size

    def read(self, size_bytes: int) -> bytes:
        piece = self._file.read(size_bytes)
        self.digest.update(piece)
        return piece

    def close(self) -> None:
        self._file.close()


def _names(folder: Path, after: str) -> Iterator[str]:
    """Yield the names of the blobs of a folder above one, in order, one of its directories at a time."""
    if not folder.is_dir():
        return
    for shard in sorted(path for path in folder.iterdir() if path.name >= after[:2]):
        yield from sorted(path.name for path in shard.iterdir() if path.name > after)


def _written_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return sys.maxsize


def _itself(path: str, flags: int) -> int:
    """Open what has a name itself, not what somebody made it point to."""
    return os.open(path, flags | os.O_NOFOLLOW)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
