"""The port of blobs: bytes named by their SHA-256, written once, never changed.

Above it whoever keeps descriptions of them (artifacts, the whole of a cut tool output); those are records of the log's
store and name a blob by namespace and hash. Promises of every adapter: when `write` returns, the content survives what
the adapter's durability names, and until then nobody can read any of it; a blob that was read to its end was whole.
Namespaces share nothing, not even equal content, so that the existence of a blob tells nothing to a stranger.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from behestd.errors import Corrupt, InvalidRequest, NotFound, OutOfRange

LIMIT_BYTES = 2 * 1024 * 1024 * 1024
PIECE_BYTES = 256 * 1024
"""Most bytes that a read yields at once."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What was written: the name of the content, 32 bytes, and its size."""

    sha256: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the blobs were opened."""

    writes: int = 0
    reads: int = 0
    written_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Aged:
    """The hashes of blobs found by their age, and the last one looked at; empty: that was all."""

    found: tuple[bytes, ...] = ()
    last: bytes = b""


class BlobNotFound(NotFound):
    """Raised when there is no such content in the namespace."""

    def __init__(self, sha256: bytes) -> None:
        name = sha256.hex()
        super().__init__("ARTIFACT_NOT_FOUND", f"content {name} not found", artifactId=name)


class RangeInvalid(OutOfRange):
    """Raised when a range does not lie within the content."""

    def __init__(self, offset: int, size_bytes: int) -> None:
        text = f"offset {offset} is not within content of {size_bytes} bytes"
        super().__init__("ARTIFACT_RANGE_INVALID", text, sizeBytes=size_bytes)


class ChecksumMismatch(InvalidRequest):
    """Raised when the bytes written are not those that were promised; nothing was kept."""

    def __init__(self, expected: bytes, actual: bytes) -> None:
        text = f"the bytes have {actual.hex()}, not {expected.hex()}"
        super().__init__("sha256", text, reason="ARTIFACT_CHECKSUM_MISMATCH")
        self.metadata |= {"expected": expected.hex(), "actual": actual.hex()}


class ContentCorrupt(Corrupt):
    """Raised when stored bytes are not those that were written."""

    def __init__(self, sha256: bytes) -> None:
        name = sha256.hex()
        text = f"the stored bytes of content {name} are damaged"
        super().__init__("ARTIFACT_CORRUPT", text, artifactId=name)


class Blobs(Protocol):
    """See the module's docstring for the promises."""

    async def write(
        self,
        namespace: str,
        pieces: AsyncIterable[bytes],
        *,
        limit_bytes: int = LIMIT_BYTES,
        expected_sha256: bytes = b"",
    ) -> Stored:
        """Store the pieces, joined. Writing what is there already changes nothing and is no error.

        When it is cancelled, or the pieces raise, nothing is kept. Raises TooLarge (ARTIFACT_TOO_LARGE) as soon as the
        limit is passed, ChecksumMismatch, and StorageFull.
        """
        ...

    async def size(self, namespace: str, sha256: bytes) -> int:
        """Bytes of a blob. Raises BlobNotFound."""
        ...

    def read(
        self, namespace: str, sha256: bytes, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield a range in pieces of at most 256 KiB: `length` bytes from `offset`, fewer at the end, None: the rest.

        An offset equal to the size yields nothing. Raises BlobNotFound, RangeInvalid, and after the last piece of the
        whole content ContentCorrupt when the bytes are not those that were written.
        """
        ...

    async def delete(self, namespace: str, sha256: bytes) -> bool:
        """Delete a blob: whether it was there. The caller knows that nothing names it."""
        ...

    async def aged(self, namespace: str, before_ns: int, after: bytes, limit: int) -> Aged:
        """Look at the next `limit` blobs of a namespace, by hash, for those last written before a time.

        `after` is the last one looked at, empty for the first. Time is that of the machine, in unix nanoseconds. What
        is written meanwhile may be missed.
        """
        ...

    def statistics(self) -> Statistics:
        """Counters."""
        ...

    async def close(self) -> None:
        """Let go of everything; blobs stay."""
        ...
