"""ArtifactService: named bytes in streams. Above: the edge. Below: the artifacts of the runtime, the blobs, the log.

Neither direction holds more than a chunk in memory. An upload whose client went away leaves nothing: the end of its
requests is taken for the end of its content only when the client is still there to say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from hashlib import sha256
from typing import cast

from behest.v1 import artifact_service_pb2 as pb
from behest.v1.artifact_pb2 import Artifact
from behestd.blobs.blob import BlobNotFound, ChecksumMismatch, ContentCorrupt, RangeInvalid
from behestd.errors import ArtifactNotFound, InvalidRequest, SessionNotFound, StorageFull, TimedOut, TooLarge
from behestd.log.store import SESSION_KIND, Full, Record, RecordChanged, RequestTaken
from behestd.runtime.artifacts import KIND, Artifacts, Promise
from behestd.runtime.house import House
from behestd.runtime.quotas_stored import StoredBytes
from behestd.service import artifact_checks as checks
from behestd.service import records
from behestd.service.call import Call, Requests
from behestd.service.methods import Handler
from behestd.service.pages import page_of
from behestd.service.validate import identifier, within

_NAME = "/behest.v1.ArtifactService/"
_SILENCE_SECONDS = 60.0
"""How long an upload may bring nothing."""
_DELETED_AT_ONCE = 500


class ArtifactFiles:
    """Handlers of ArtifactService."""

    def __init__(self, house: House, artifacts: Artifacts) -> None:
        self._house = house
        self._log = house.log
        self._artifacts = artifacts
        self._stored = StoredBytes(house)

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "WriteArtifact": self.write_artifact,
            _NAME + "ReadArtifact": self.read_artifact,
            _NAME + "GetArtifact": self.get_artifact,
            _NAME + "ListArtifacts": self.list_artifacts,
            _NAME + "DeleteArtifact": self.delete_artifact,
            _NAME + "DeleteArtifacts": self.delete_artifacts,
        }

    async def write_artifact(self, requests: Requests, call: Call) -> pb.WriteArtifactResponse:
        """Write an artifact; the answer says that it is durable."""
        limit_bytes = self._house.limits.artifact_bytes
        header = await _header(requests)
        checks.check_header(header, limit_bytes)
        async with aclosing(_content(requests, header, limit_bytes)) as content:
            return await self._write(header, content, call)

    async def _write(
        self, header: pb.WriteArtifactHeader, content: AsyncIterator[bytes], call: Call
    ) -> pb.WriteArtifactResponse:
        digest = records.digest_of(header)
        claim = await self._log.store.request(call.namespace, header.request_id) if header.request_id else None
        if claim is not None:
            target = records.same(claim, digest + await _hash_of(content))
            return await self._written(call, target, replayed=True)
        if header.session_id and await self._is_gone(call.namespace, header.session_id):
            raise SessionNotFound(header.session_id)
        about = Artifact(
            session_id=header.session_id, name=header.name, media_type=header.media_type, labels=header.labels
        )
        request = (header.request_id, digest) if header.request_id else None
        left_bytes = await self._stored.left(call.namespace, self._house.limits.artifact_bytes)
        promise = Promise(header.sha256, left_bytes)
        try:
            with within("header", ChecksumMismatch):
                artifact, outcome = await self._artifacts.write(call.namespace, about, content, promise, request)
        except TooLarge as error:
            raise self._stored.refusal(call.namespace, error, left_bytes) from None
        if isinstance(outcome, Full):
            raise StorageFull
        if isinstance(outcome, RequestTaken):
            target = records.same(outcome, digest + artifact.sha256, header.request_id)
            return await self._written(call, target, replayed=True)
        if isinstance(outcome, RecordChanged):
            raise SessionNotFound(header.session_id)
        self._stored.added(call.namespace, artifact.size_bytes)
        return await self._written(call, artifact.id, replayed=False)

    async def read_artifact(self, request: pb.ReadArtifactRequest, call: Call) -> None:
        """Read the content of an artifact, or a range of it."""
        checks.check_read(request)
        artifact = await self._artifact(call.namespace, request.artifact_id)
        if request.offset_bytes > artifact.size_bytes:
            raise RangeInvalid(request.offset_bytes, artifact.size_bytes)
        await call.send(pb.ReadArtifactResponse(artifact=artifact))
        length = request.length_bytes if request.HasField("length_bytes") else None
        pieces = self._house.blobs.read(call.namespace, artifact.sha256, offset=request.offset_bytes, length=length)
        try:
            async with aclosing(pieces) as found:  # type: ignore[type-var]  # the ports of blobs are generators
                async for piece in found:
                    await call.send(pb.ReadArtifactResponse(chunk=piece))
        except BlobNotFound:
            raise ContentCorrupt(artifact.sha256) from None

    async def get_artifact(self, request: pb.GetArtifactRequest, call: Call) -> pb.GetArtifactResponse:
        """Get an artifact without its content."""
        identifier("artifact_id", request.artifact_id)
        return pb.GetArtifactResponse(artifact=await self._artifact(call.namespace, request.artifact_id))

    async def list_artifacts(self, request: pb.ListArtifactsRequest, call: Call) -> pb.ListArtifactsResponse:
        """List artifacts without their content, newest first."""
        page = page_of(request, call.namespace, (int, str))
        checks.check_filters(request)
        store, parent = self._log.store, request.session_id or None

        def show(record: Record) -> Artifact | None:
            artifact = Artifact.FromString(record.body)
            is_out = request.run_id not in ("", artifact.run_id)
            return None if is_out or not records.has_labels(artifact.labels, request.labels) else artifact

        taken = await records.take(
            page,
            lambda after, limit: store.newest_records(
                call.namespace, KIND, parent=parent, before=records.before(after), limit=limit
            ),
            records.by_time,
            show,
        )
        token = page.token(*records.by_time(taken.last)) if taken.last is not None else ""
        return pb.ListArtifactsResponse(artifacts=taken.items, next_page_token=token)

    async def delete_artifact(self, request: pb.DeleteArtifactRequest, call: Call) -> pb.DeleteArtifactResponse:
        """Delete an artifact."""
        identifier("artifact_id", request.artifact_id)
        record = await self._log.store.record(call.namespace, KIND, request.artifact_id, 0)
        if record is not None:
            await self._artifacts.delete(call.namespace, [Artifact.FromString(record.body)])
        return pb.DeleteArtifactResponse()

    async def delete_artifacts(self, request: pb.DeleteArtifactsRequest, call: Call) -> pb.DeleteArtifactsResponse:
        """Delete all artifacts of a session."""
        identifier("session_id", request.session_id)
        count = 0
        while True:
            page = await self._log.store.records(
                call.namespace, KIND, parent=request.session_id, limit=_DELETED_AT_ONCE
            )
            if page:
                await self._artifacts.delete(call.namespace, [Artifact.FromString(record.body) for record in page])
            count += len(page)
            if len(page) < _DELETED_AT_ONCE:
                return pb.DeleteArtifactsResponse(deleted_artifacts=count)

    # --- records ---

    async def _artifact(self, namespace: str, artifact_id: str) -> Artifact:
        record = await self._log.store.record(namespace, KIND, artifact_id, 0)
        if record is None:
            raise ArtifactNotFound(artifact_id)
        return Artifact.FromString(record.body)

    async def _written(self, call: Call, artifact_id: str, *, replayed: bool) -> pb.WriteArtifactResponse:
        return pb.WriteArtifactResponse(artifact=await self._artifact(call.namespace, artifact_id), replayed=replayed)

    async def _is_gone(self, namespace: str, session_id: str) -> bool:
        return await self._log.store.record(namespace, SESSION_KIND, session_id, 0) is None


# --- uploads ---


async def _next(requests: Requests) -> pb.WriteArtifactRequest | None:
    """The next frame, None after the last. Raises TimedOut when the client is silent for too long."""
    try:
        async with asyncio.timeout(_SILENCE_SECONDS):
            async for request in requests:
                return cast("pb.WriteArtifactRequest", request)
            return None
    except TimeoutError:
        text = f"the upload brought nothing for {_SILENCE_SECONDS:g} s"
        raise TimedOut("TRANSPORT_DEADLINE", text, limitSeconds=f"{_SILENCE_SECONDS:g}") from None


async def _header(requests: Requests) -> pb.WriteArtifactHeader:
    first = await _next(requests)
    if first is None or first.WhichOneof("frame") != "header":
        raise InvalidRequest("header", "must come first")
    return first.header


async def _content(requests: Requests, header: pb.WriteArtifactHeader, limit_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the content of an upload; end only when it is as long as the header promised."""
    promised = header.size_bytes if header.HasField("size_bytes") else None
    size_bytes = 0
    while (frame := await _next(requests)) is not None:
        if frame.WhichOneof("frame") != "chunk":
            raise InvalidRequest("frame", "only chunks follow the header")
        if len(frame.chunk) > checks.CHUNK_BYTES:
            raise TooLarge("chunk", len(frame.chunk), checks.CHUNK_BYTES)
        size_bytes += len(frame.chunk)
        if size_bytes > limit_bytes:
            raise TooLarge("content", size_bytes, limit_bytes, "ARTIFACT_TOO_LARGE")
        if promised is not None and size_bytes > promised:
            raise checks.SizeMismatch(promised, size_bytes)
        if frame.chunk:
            yield frame.chunk
    if promised not in (None, size_bytes):
        raise checks.SizeMismatch(promised or 0, size_bytes)


async def _hash_of(content: AsyncIterator[bytes]) -> bytes:
    """Read a content to its end for its hash alone."""
    digest = sha256()
    async for chunk in content:
        digest.update(chunk)
    return digest.digest()
