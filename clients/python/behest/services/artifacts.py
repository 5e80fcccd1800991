"""Artifacts: named bytes that runs and clients share, sent and fetched in chunks.

Guarantees: an upload that is reported is whole and durable, since the daemon checks size and hash before it answers; a
download goes on where it broke, and a whole one is checked against the hash.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from behest.calls import Backoff
from behest.errors import BehestError
from behest.services.ids import new_request_id
from behest.statuses import answer_of
from behest.v1 import artifact_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from behest.calls import Calls
    from behest.v1 import artifact_pb2
    from behest.v1.artifact_service_pb2_grpc import ArtifactServiceAsyncStub

CHUNK_BYTES = 512 * 1024
# A frame of an artifact comes from a disk: a minute without one is a fault.
SILENCE_SECONDS = 60.0
UPLOAD_SECONDS = 3600.0


class Artifacts:
    """Calls of ArtifactService. All raise BehestError."""

    def __init__(self, stub: ArtifactServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def upload(
        self,
        source: bytes | Path,
        *,
        name: str = "",
        media_type: str = "",
        session_id: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> artifact_pb2.Artifact:
        """Write bytes or a file as an artifact, and return it once it is durable. Raises OSError for the file."""
        size_bytes, sha256 = await asyncio.to_thread(measure, source)
        header = artifact_service_pb2.WriteArtifactHeader(
            request_id=request_id or new_request_id(),
            session_id=session_id,
            name=name or (source.name if isinstance(source, Path) else ""),
            media_type=media_type,
            size_bytes=size_bytes,
            sha256=sha256,
            labels=labels,
        )
        return (await self._calls.repeated(lambda: self._write(header, source))).artifact

    async def download(
        self, artifact_id: str, *, offset_bytes: int = 0, length_bytes: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the content of an artifact, or a range of it. A whole one is checked: ARTIFACT_CHECKSUM_MISMATCH."""
        is_whole = offset_bytes == 0 and length_bytes is None
        digest, promised = hashlib.sha256(), b""
        done, patience = 0, self._calls.patience
        backoff = Backoff(patience.pause_seconds)
        while True:
            request = artifact_service_pb2.ReadArtifactRequest(
                artifact_id=artifact_id,
                offset_bytes=offset_bytes + done,
                length_bytes=None if length_bytes is None else length_bytes - done,
            )
            try:
                call = self._stub.ReadArtifact(request)
                async with aclosing(self._calls.stream(call, silence_seconds=lambda: SILENCE_SECONDS)) as frames:
                    async for frame in frames:
                        backoff.heard(progress=True)
                        promised = promised or frame.artifact.sha256
                        if is_whole:
                            digest.update(frame.chunk)
                        done += len(frame.chunk)
                        if frame.chunk:
                            yield frame.chunk
                break
            except BehestError as error:
                if not error.is_undecided:
                    raise
                await backoff.pause(error, give_up_seconds=patience.watch_seconds)
        if is_whole and digest.digest() != promised:
            raise BehestError(
                grpc.StatusCode.DATA_LOSS,
                "ARTIFACT_CHECKSUM_MISMATCH",
                f"artifact {artifact_id} arrived damaged",
                metadata={"expected": promised.hex(), "actual": digest.hexdigest()},
            )

    async def read(self, artifact_id: str, *, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        """Return the content of an artifact, or a range of it, at once."""
        chunks = self.download(artifact_id, offset_bytes=offset_bytes, length_bytes=length_bytes)
        return b"".join([chunk async for chunk in chunks])

    async def get(self, artifact_id: str) -> artifact_pb2.Artifact:
        """Return an artifact without its content."""
        request = artifact_service_pb2.GetArtifactRequest(artifact_id=artifact_id)
        return (await self._calls.unary(self._stub.GetArtifact, request)).artifact

    def list(
        self, request: artifact_service_pb2.ListArtifactsRequest | None = None
    ) -> AsyncGenerator[artifact_pb2.Artifact, None]:
        """Yield the artifacts that a request asks for, newest first, page after page."""
        return self._calls.pages(
            self._stub.ListArtifacts,
            request or artifact_service_pb2.ListArtifactsRequest(),
            lambda page: page.artifacts,
        )

    async def delete(self, artifact_id: str) -> None:
        """Delete an artifact. Idempotent."""
        request = artifact_service_pb2.DeleteArtifactRequest(artifact_id=artifact_id)
        await self._calls.unary(self._stub.DeleteArtifact, request)

    async def delete_of_session(self, session_id: str) -> int:
        """Delete all artifacts of a session, and return how many there were. Idempotent."""
        request = artifact_service_pb2.DeleteArtifactsRequest(session_id=session_id)
        return (await self._calls.unary(self._stub.DeleteArtifacts, request)).deleted_artifacts

    async def _write(
        self, header: artifact_service_pb2.WriteArtifactHeader, source: bytes | Path
    ) -> artifact_service_pb2.WriteArtifactResponse:
        async def requests() -> AsyncGenerator[artifact_service_pb2.WriteArtifactRequest, None]:
            yield artifact_service_pb2.WriteArtifactRequest(header=header)
            async with aclosing(chunks_of(source)) as chunks:
                async for chunk in chunks:
                    yield artifact_service_pb2.WriteArtifactRequest(chunk=chunk)

        return await answer_of(self._stub.WriteArtifact(timeout=UPLOAD_SECONDS), requests())


def measure(source: bytes | Path) -> tuple[int, bytes]:
    """Return size and SHA-256 of what is to be written."""
    if isinstance(source, bytes):
        return len(source), hashlib.sha256(source).digest()
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return file.tell(), digest


async def chunks_of(source: bytes | Path) -> AsyncGenerator[bytes, None]:
    """Yield the content in chunks; files are read off the loop."""
    if isinstance(source, bytes):
        for start in range(0, len(source), CHUNK_BYTES):
            yield source[start : start + CHUNK_BYTES]
        return
    with await asyncio.to_thread(source.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
