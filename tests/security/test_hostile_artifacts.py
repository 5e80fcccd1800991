"""Artifacts of clients that mean harm: no name becomes a path, nothing is followed, and what was promised must come."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.v1 import artifact_service_pb2 as pb
from tests.daemons import Served, rejection, serve
from tests.service.test_artifacts import frames, refusal, write

NAMES = [
    "../../../../tmp/evil", "/etc/passwd", "..", ".", "", "a/../../b", "..\\..\\evil", "%2e%2e%2fevil", "x\0y", "~root",
    "C:\\evil", "a" * 256, "\u2024\u2024/evil", "tmp", "behestd.db", "<script>alert(1)</script>.html", "-rf", "x\n../y",
]  # fmt: skip
IDS = ["../secret", "..", "a/b", "/etc/passwd", "art_\0", "art_" + "x" * 100, "%2e%2e"]
SMALL = 200
MANY = 10_000


def files(home: Path) -> list[Path]:
    """All files of a data directory, relative to it."""
    return sorted(path.relative_to(home) for path in home.rglob("*") if path.is_file() or path.is_symlink())


async def test_a_name_is_told_as_it_was_given_and_is_no_path(tmp_path: Path) -> None:  # S16
    outside = set(tmp_path.iterdir())
    hashes = set()
    async with serve("sqlite", tmp_path / "data") as served:
        for name in NAMES:
            content = name.encode() + b" content"
            made = (await write(served, content, name=name, media_type="text/html")).artifact
            assert (made.name, made.media_type) == (name, "text/html")
            assert b"".join([piece async for piece in served.client.artifacts.download(made.id)]) == content
            hashes.add(hashlib.sha256(content).hexdigest())
        assert {path.name for path in files(tmp_path / "data/blobs")} == hashes
    assert set(tmp_path.iterdir()) - outside == {tmp_path / "data"}


async def test_an_id_that_is_none_is_refused_before_anything_is_looked_for() -> None:  # S16
    async with serve() as served:
        stub = served.client.stubs.artifacts
        for artifact_id in IDS:
            for call in (
                stub.GetArtifact(pb.GetArtifactRequest(artifact_id=artifact_id)),
                stub.DeleteArtifact(pb.DeleteArtifactRequest(artifact_id=artifact_id)),
            ):
                found = await rejection(call)
                assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, "artifact_id")
            assert (await refusal(served, frames([b"x"], session_id=artifact_id))).reason == "REQUEST_INVALID"


async def test_content_that_was_made_a_link_is_not_followed(tmp_path: Path) -> None:  # S16
    """Not one byte of what it points to is sent, though that has the size and the reader has the right."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"S" * 100)
    async with serve("sqlite", tmp_path / "data") as served:
        made = (await write(served, b"x" * 100)).artifact
        (blob,) = (tmp_path / "data/blobs").rglob(made.sha256.hex())
        blob.unlink()
        blob.symlink_to(secret)
        stream = served.client.stubs.artifacts.ReadArtifact(pb.ReadArtifactRequest(artifact_id=made.id))
        received = b""
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for frame in stream:
                received += frame.chunk
        assert refused.value.code() is grpc.StatusCode.DATA_LOSS
        assert received == b""
        # To write the same content puts it in the place of the link.
        await write(served, b"x" * 100)
        assert not blob.is_symlink()
        assert secret.read_bytes() == b"S" * 100


@pytest.mark.parametrize(
    "header", [{"sha256": b"\0" * 32}, {"size_bytes": 4}, {"sha256": b"short"}, {"size_bytes": -1}], ids=str
)
async def test_bytes_that_were_not_promised_leave_nothing(tmp_path: Path, header: dict[str, Any]) -> None:  # S16
    async with serve("sqlite", tmp_path / "data") as served:
        before = files(tmp_path / "data/blobs")
        found = await refusal(served, frames([b"hello"], **header))
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT
        # The thread that clears away is the one that would have written.
        await served.daemon.house.blobs.size("default", (await write(served, b"other")).artifact.sha256)
        assert len(files(tmp_path / "data/blobs")) == len(before) + 1


async def test_many_artifacts_are_written_listed_and_let_go(tmp_path: Path) -> None:  # S16
    await there_and_gone(tmp_path, SMALL)


@pytest.mark.proof
@pytest.mark.timeout(900)
async def test_ten_thousand_artifacts_are_written_listed_and_let_go(tmp_path: Path) -> None:  # S16
    await there_and_gone(tmp_path, MANY)


async def there_and_gone(tmp_path: Path, count: int) -> None:
    async with serve("sqlite", tmp_path / "data") as served:
        session = await served.client.sessions.create()
        for number in range(count):
            await write(served, b"%d" % number, session_id=session.id)
        listed = [one.id async for one in served.client.artifacts.list(pb.ListArtifactsRequest(session_id=session.id))]
        assert len(set(listed)) == count
        # Content is spread: no directory has all of it.
        assert max(len(os.listdir(path)) for path in (tmp_path / "data/blobs").rglob("??")) <= count // 10
        deleted = await served.client.stubs.artifacts.DeleteArtifacts(pb.DeleteArtifactsRequest(session_id=session.id))
        assert deleted.deleted_artifacts == count
        assert content_of(served, tmp_path) == []


def content_of(served: Served, tmp_path: Path) -> list[Path]:
    """The blobs that are there."""
    return [path for path in (tmp_path / "data/blobs").rglob("*") if path.is_file()]
