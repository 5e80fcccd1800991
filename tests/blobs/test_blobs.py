"""One contract for all blobs."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from behestd.blobs.blob import PIECE_BYTES, Aged, BlobNotFound, Blobs, ChecksumMismatch, ContentCorrupt, RangeInvalid
from behestd.blobs.file import FileBlobs
from behestd.blobs.memory import MemoryBlobs
from behestd.errors import TooLarge

BACKENDS: dict[str, Callable[[Path], Blobs]] = {
    "memory": lambda _root: MemoryBlobs(),
    "file": lambda root: FileBlobs(root / "blobs"),
}


@pytest.fixture(params=BACKENDS)
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Blobs]:
    opened = BACKENDS[request.param](tmp_path)
    yield opened
    await opened.close()


async def pieces(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


def everything(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


def files(root: Path) -> list[Path]:
    return [path for path in everything(root) if path.is_file()]


async def whole(blobs: Blobs, sha256: bytes, namespace: str = "a", **range_: int) -> bytes:
    return b"".join([piece async for piece in blobs.read(namespace, sha256, **range_)])


async def test_what_was_written_is_read_back_by_its_hash(blobs: Blobs) -> None:  # C036
    stored = await blobs.write("a", pieces(b"hello ", b"", b"world"))
    assert stored.sha256 == hashlib.sha256(b"hello world").digest()
    assert stored.size_bytes == await blobs.size("a", stored.sha256) == 11
    assert await whole(blobs, stored.sha256) == b"hello world"
    assert blobs.statistics().writes == 1
    assert blobs.statistics().written_bytes == 11


async def test_nothing_is_content_too(blobs: Blobs) -> None:
    stored = await blobs.write("a", pieces())
    assert await whole(blobs, stored.sha256) == b""


async def test_writing_the_same_again_changes_nothing(blobs: Blobs) -> None:
    first = await blobs.write("a", pieces(b"x" * 10))
    assert await blobs.write("a", pieces(b"x" * 5, b"x" * 5)) == first
    assert await whole(blobs, first.sha256) == b"x" * 10


async def test_a_range_is_what_was_asked_for(blobs: Blobs) -> None:
    content = bytes(range(256)) * 3_000
    stored = await blobs.write("a", pieces(content))
    assert await whole(blobs, stored.sha256, offset=10, length=5) == content[10:15]
    assert await whole(blobs, stored.sha256, offset=len(content) - 3, length=99) == content[-3:]
    assert await whole(blobs, stored.sha256, offset=len(content)) == b""
    assert max([len(piece) async for piece in blobs.read("a", stored.sha256)]) == PIECE_BYTES
    with pytest.raises(RangeInvalid) as refused:
        await whole(blobs, stored.sha256, offset=len(content) + 1)
    assert refused.value.reason == "ARTIFACT_RANGE_INVALID"
    with pytest.raises(RangeInvalid):
        await whole(blobs, stored.sha256, offset=-1)


async def test_too_much_is_refused_and_not_kept(blobs: Blobs) -> None:  # S16
    with pytest.raises(TooLarge) as refused:
        await blobs.write("a", pieces(b"12345", b"67890"), limit_bytes=9)
    assert refused.value.reason == "ARTIFACT_TOO_LARGE"
    with pytest.raises(BlobNotFound):
        await blobs.size("a", hashlib.sha256(b"1234567890").digest())


async def test_other_bytes_than_promised_are_not_kept(blobs: Blobs) -> None:  # S16
    with pytest.raises(ChecksumMismatch) as refused:
        await blobs.write("a", pieces(b"other"), expected_sha256=hashlib.sha256(b"promised").digest())
    assert refused.value.reason == "ARTIFACT_CHECKSUM_MISMATCH"
    with pytest.raises(BlobNotFound) as missing:
        await whole(blobs, hashlib.sha256(b"other").digest())
    assert missing.value.reason == "ARTIFACT_NOT_FOUND"


async def test_namespaces_share_nothing(blobs: Blobs) -> None:
    stored = await blobs.write("a", pieces(b"secret"))
    for stranger in ("b", "", "a/../a", "../a"):
        with pytest.raises(BlobNotFound):
            await whole(blobs, stored.sha256, stranger)
    assert not await blobs.delete("b", stored.sha256)
    assert await blobs.delete("a", stored.sha256)
    assert not await blobs.delete("a", stored.sha256)
    with pytest.raises(BlobNotFound):
        await blobs.size("a", stored.sha256)


async def test_a_cancelled_write_keeps_nothing(blobs: Blobs, tmp_path: Path) -> None:
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"half"
        reached.set()
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(blobs.write("a", endless()))
        async with asyncio.timeout(30):
            await reached.wait()
        task.cancel()
    await blobs.write("a", pieces(b"next"))
    assert files(tmp_path / "blobs" / "tmp") == []
    assert blobs.statistics().writes == 1


async def test_files_survive_reopening_and_leftovers_do_not(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    stored = await blobs.write("a", pieces(b"kept"))
    await blobs.close()
    (tmp_path / "tmp" / "leftover").write_bytes(b"half")
    again = FileBlobs(tmp_path)
    assert await whole(again, stored.sha256) == b"kept"
    assert files(tmp_path / "tmp") == []
    await again.close()


async def test_files_are_private_and_named_by_hash_alone(tmp_path: Path) -> None:  # S16
    blobs = FileBlobs(tmp_path / "blobs")
    stored = await blobs.write("../../evil", pieces(b"x"))
    await blobs.close()
    assert [path.name for path in files(tmp_path)] == [stored.sha256.hex()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in everything(tmp_path))


async def test_damaged_bytes_are_noticed_at_the_end_of_the_whole(tmp_path: Path) -> None:  # S16
    blobs = FileBlobs(tmp_path)
    stored = await blobs.write("a", pieces(b"sound"))
    [path] = files(tmp_path)
    path.write_bytes(b"soumd")
    with pytest.raises(ContentCorrupt):
        await whole(blobs, stored.sha256)
    await blobs.close()


async def test_blobs_are_looked_at_in_pages_and_found_by_their_age(blobs: Blobs) -> None:
    written = sorted([(await blobs.write("a", pieces(str(number).encode()))).sha256 for number in range(25)])
    await blobs.write("b", pieces(b"of another"))
    later_ns = time.time_ns() + 10**9
    assert await blobs.aged("a", later_ns - 3600 * 10**9, b"", 100) == Aged()
    found: list[bytes] = []
    after = b""
    for _ in range(4):
        page = await blobs.aged("a", later_ns, after, 7)
        found += page.found
        after = page.last
    assert (found, after) == (written, b"")
    assert await blobs.aged("none", later_ns, b"", 7) == Aged()


async def test_a_blob_that_is_written_again_is_young_again(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path / "blobs")
    stored = await blobs.write("a", pieces(b"same"))
    (path,) = files(tmp_path / "blobs")
    os.utime(path, (1_000, 1_000))
    assert (await blobs.aged("a", 10**18, b"", 10)).found == (stored.sha256,)
    await blobs.write("a", pieces(b"same"))
    assert (await blobs.aged("a", 10**18, b"", 10)).found == ()
    await blobs.close()
