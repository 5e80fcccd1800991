"""Artifacts through the client: chunks, hashes, ranges and broken reads, against a small store."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from behest.calls import Patience
from behest.client import Client
from behest.errors import BehestError
from behest.services.artifacts import CHUNK_BYTES
from behest.v1 import artifact_pb2, artifact_service_pb2, artifact_service_pb2_grpc
from tests.sdk.daemon import abort, status

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 5000


@dataclass
class Store(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """Keeps one artifact, and breaks a read after so many chunks, once for each number."""

    content: bytes = b""
    header: artifact_service_pb2.WriteArtifactHeader | None = None
    breaks: list[int] = field(default_factory=list)
    reads: list[tuple[int, int | None]] = field(default_factory=list)
    refuses: bool = False

    async def WriteArtifact(
        self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> artifact_service_pb2.WriteArtifactResponse:
        """Take an artifact, or refuse it at its header."""
        async for request in request_iterator:
            if request.WhichOneof("frame") == "header":
                self.header = request.header
                if self.refuses:
                    await abort(context, status(grpc.StatusCode.RESOURCE_EXHAUSTED, "ARTIFACT_TOO_LARGE"))
            assert len(request.chunk) <= 1024 * 1024
            self.content += request.chunk
        return artifact_service_pb2.WriteArtifactResponse(artifact=self.artifact())

    async def ReadArtifact(
        self, request: artifact_service_pb2.ReadArtifactRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[artifact_service_pb2.ReadArtifactResponse]:
        """Send a range."""
        length = request.length_bytes if request.HasField("length_bytes") else None
        self.reads.append((request.offset_bytes, length))
        end = len(self.content) if length is None else request.offset_bytes + length
        after = self.breaks.pop(0) if self.breaks else None
        yield artifact_service_pb2.ReadArtifactResponse(artifact=self.artifact())
        for number, start in enumerate(range(request.offset_bytes, end, CHUNK_BYTES)):
            if number == after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            yield artifact_service_pb2.ReadArtifactResponse(chunk=self.content[start : min(start + CHUNK_BYTES, end)])

    def artifact(self) -> artifact_pb2.Artifact:
        """Return the artifact's record, with the hash that its header promised."""
        promised = self.header.sha256 if self.header else b""
        return artifact_pb2.Artifact(id="art_1", size_bytes=len(self.content), sha256=promised)


@asynccontextmanager
async def client_of(store: Store) -> AsyncGenerator[Client, None]:
    """Serve a store and connect to it."""
    server = grpc.aio.server()
    artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(store, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with asyncio.timeout(30), Client(f"127.0.0.1:{port}", patience=Patience(pause_seconds=0.02)) as client:
            yield client
    finally:
        await server.stop(None)


@pytest.mark.parametrize("kind", ["bytes", "file", "empty"])
async def test_an_upload_promises_size_and_hash_and_sends_chunks(kind: str, tmp_path: Path) -> None:
    content = b"" if kind == "empty" else CONTENT
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    store = Store()
    async with client_of(store) as client:
        await client.artifacts.upload(path if kind == "file" else content, media_type="image/png")
    assert store.content == content
    assert store.header is not None
    assert (store.header.size_bytes, store.header.sha256) == (len(content), hashlib.sha256(content).digest())
    assert store.header.name == ("picture.png" if kind == "file" else "")
    assert store.header.request_id


async def test_an_upload_that_is_refused_early_raises_the_daemons_reason() -> None:
    async with client_of(Store(refuses=True)) as client:
        with pytest.raises(BehestError) as caught:
            await client.artifacts.upload(CONTENT * 8)
    assert caught.value.reason == "ARTIFACT_TOO_LARGE"


async def test_a_download_goes_on_where_it_broke_and_is_checked() -> None:
    store = Store(breaks=[2, 0])
    async with client_of(store) as client:
        await client.artifacts.upload(CONTENT)
        assert await client.artifacts.read("art_1") == CONTENT
    assert [offset for offset, _ in store.reads] == [0, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES]


async def test_a_range_is_what_was_asked_for_also_across_a_break() -> None:
    store = Store(breaks=[1])
    async with client_of(store) as client:
        await client.artifacts.upload(CONTENT)
        got = await client.artifacts.read("art_1", offset_bytes=10, length_bytes=CHUNK_BYTES + 7)
    assert got == CONTENT[10 : 10 + CHUNK_BYTES + 7]
    assert store.reads == [(10, CHUNK_BYTES + 7), (10 + CHUNK_BYTES, 7)]


async def test_a_download_that_is_not_what_was_written_is_an_error() -> None:
    store = Store()
    async with client_of(store) as client:
        await client.artifacts.upload(CONTENT)
        store.content = CONTENT[:-1] + b"x"
        with pytest.raises(BehestError) as caught:
            await client.artifacts.read("art_1")
    assert caught.value.reason == "ARTIFACT_CHECKSUM_MISMATCH"
