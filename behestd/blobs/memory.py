"""Blobs in memory, for tests and for a daemon without a data directory. Nothing survives the process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterable, AsyncIterator

from behestd.blobs.blob import (
    LIMIT_BYTES,
    PIECE_BYTES,
    Aged,
    BlobNotFound,
    ChecksumMismatch,
    RangeInvalid,
    Statistics,
    Stored,
)
from behestd.errors import TooLarge


class MemoryBlobs:
    """See `blob.Blobs` for the promises; the durability is none."""

    def __init__(self) -> None:
        self._contents: dict[tuple[str, bytes], bytes] = {}
        self._written_ns: dict[tuple[str, bytes], int] = {}
        self._writes = self._reads = self._written_bytes = 0

    async def write(
        self,
        namespace: str,
        pieces: AsyncIterable[bytes],
        *,
        limit_bytes: int = LIMIT_BYTES,
        expected_sha256: bytes = b"",
    ) -> Stored:
        """Store the pieces, joined. Raises TooLarge, ChecksumMismatch."""
        content = bytearray()
        async for piece in pieces:
            if len(content) + len(piece) > limit_bytes:
                raise TooLarge("content", len(content) + len(piece), limit_bytes, "ARTIFACT_TOO_LARGE")
            content += piece
        sha256 = hashlib.sha256(content).digest()
        if expected_sha256 and expected_sha256 != sha256:
            raise ChecksumMismatch(expected_sha256, sha256)
        self._contents[namespace, sha256] = bytes(content)
        self._written_ns[namespace, sha256] = time.time_ns()
        self._writes += 1
        self._written_bytes += len(content)
        return Stored(sha256, len(content))

    async def size(self, namespace: str, sha256: bytes) -> int:
        """Bytes of a blob. Raises BlobNotFound."""
        return len(self._content(namespace, sha256))

    async def read(
        self, namespace: str, sha256: bytes, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield a range. Raises BlobNotFound, RangeInvalid."""
        content = self._content(namespace, sha256)
        if not 0 <= offset <= len(content):
            raise RangeInvalid(offset, len(content))
        self._reads += 1
        end = len(content) if length is None else min(offset + length, len(content))
        for start in range(offset, end, PIECE_BYTES):
            yield content[start : min(start + PIECE_BYTES, end)]

    async def delete(self, namespace: str, sha256: bytes) -> bool:
        """Delete a blob: whether it was there."""
        self._written_ns.pop((namespace, sha256), None)
        return self._contents.pop((namespace, sha256), None) is not None

    async def aged(self, namespace: str, before_ns: int, after: bytes, limit: int) -> Aged:
        """Look for blobs that are old."""
        names = sorted(name for space, name in self._contents if space == namespace and name > after)[:limit]
        found = tuple(name for name in names if self._written_ns[namespace, name] < before_ns)
        return Aged(found, names[-1] if len(names) == limit else b"")

    def statistics(self) -> Statistics:
        """Counters."""
        return Statistics(self._writes, self._reads, self._written_bytes)

    async def close(self) -> None:
        """Forget everything."""
        self._contents.clear()
        self._written_ns.clear()

    def _content(self, namespace: str, sha256: bytes) -> bytes:
        try:
            return self._contents[namespace, sha256]
        except KeyError:
            raise BlobNotFound(sha256) from None
