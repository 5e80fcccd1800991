"""SessionService's files: a session out of the daemon and into it. Above: the edge. Below: the runtime's files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from hashlib import sha256
from typing import cast

from behest.v1 import session_service_pb2 as pb
from behest.v1.artifact_pb2 import Artifact
from behest.v1.artifact_service_pb2 import WriteArtifactHeader
from behest.v1.session_data_service_pb2 import SessionDataEntry, SetSessionDataRequest
from behest.v1.session_pb2 import Session
from behestd.blobs.blob import LIMIT_BYTES
from behestd.errors import InvalidRequest, SessionNotFound, StorageFull, TimedOut, TooLarge
from behestd.log.store import SESSION_KIND, Claim, Committed, Full, RecordChanged, RequestTaken
from behestd.runtime.artifacts import Artifacts
from behestd.runtime.exporting import export
from behestd.runtime.house import House
from behestd.runtime.importing import Importing
from behestd.runtime.importing_log import Checks
from behestd.runtime.quotas_stored import check_sessions
from behestd.runtime.session_file import Reader
from behestd.runtime.whole import whole
from behestd.service import artifact_checks, records
from behestd.service import session_checks as checks
from behestd.service.call import Call, Requests
from behestd.service.methods import Handler
from behestd.service.session_data import MAX_ENTRIES
from behestd.service.validate import identifier, labels, request_id

_NAME = "/behest.v1.SessionService/"
_FRAME_BYTES = 256 * 1024
"""Lines are sent together up to about this."""
_CHUNK_BYTES = 1024 * 1024
"""Most bytes of one chunk, either way."""
_SILENCE_SECONDS = 60.0
"""How long an upload may bring nothing."""


class SessionFiles:
    """Handlers of ExportSession and ImportSession."""

    def __init__(self, house: House, artifacts: Artifacts) -> None:
        self._house = house
        self._artifacts = artifacts

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {_NAME + "ExportSession": self.export_session, _NAME + "ImportSession": self.import_session}

    async def export_session(self, request: pb.ExportSessionRequest, call: Call) -> None:
        """Send a session as a file."""
        identifier("session_id", request.session_id)
        store, blobs, now_ns = self._house.log.store, self._house.blobs, self._house.clock.now_ns()
        waiting = bytearray()
        async with aclosing(export(store, blobs, call.namespace, request.session_id, now_ns)) as lines:
            async for line in lines:
                waiting += line
                while len(waiting) >= _FRAME_BYTES:
                    await call.send(pb.ExportSessionResponse(chunk=bytes(waiting[:_CHUNK_BYTES])))
                    del waiting[:_CHUNK_BYTES]
        await call.send(pb.ExportSessionResponse(chunk=bytes(waiting)))

    async def import_session(self, requests: Requests, call: Call) -> pb.ImportSessionResponse:
        """Create a session from a file."""
        first = await _next(requests)
        if first is None:
            raise InvalidRequest("chunk", "is required")
        request_id("request_id", first.request_id)
        store = self._house.log.store
        async with aclosing(_content(first, requests)) as content:
            if first.request_id and (known := await store.request(call.namespace, first.request_id)) is not None:
                content_hash = sha256()
                async for piece in content:
                    content_hash.update(piece)
                target = records.same(known, _digest(content_hash.digest()))
                return pb.ImportSessionResponse(session=await self._session(call.namespace, target), replayed=True)
            await check_sessions(self._house, call.namespace, call.caller.principal)
            reader = Reader(content)
            incoming = Importing(self._house, self._artifacts, (call.namespace, call.caller.principal), reader, CHECKS)
            is_done = False
            try:
                session_id = await incoming.read()
                digest = _digest(reader.content.digest())
                claim = Claim(call.namespace, first.request_id, digest, session_id) if first.request_id else None
                outcome = await whole(incoming.finish(claim))
                is_done = isinstance(outcome, Committed)
            finally:
                if not is_done:
                    await incoming.undo()
        if isinstance(outcome, Full):
            raise StorageFull
        if isinstance(outcome, RequestTaken):
            target = records.same(outcome, digest, first.request_id)
            return pb.ImportSessionResponse(session=await self._session(call.namespace, target), replayed=True)
        if isinstance(outcome, RecordChanged):
            raise checks.SessionVersionMismatch(outcome.version)
        return pb.ImportSessionResponse(session=await self._session(call.namespace, session_id))

    async def _session(self, namespace: str, session_id: str) -> Session:
        record = await self._house.log.store.record(namespace, SESSION_KIND, session_id, 0)
        if record is None:
            raise SessionNotFound(session_id)
        session = Session.FromString(record.body)
        session.version = record.version
        return session


def _digest(content: bytes) -> bytes:
    """What tells a repeat from another request: the file."""
    return sha256(pb.ImportSessionRequest.DESCRIPTOR.full_name.encode() + b"\0" + content).digest()


async def _next(requests: Requests) -> pb.ImportSessionRequest | None:
    """The next frame, None after the last. Raises TimedOut when the client is silent for too long."""
    try:
        async with asyncio.timeout(_SILENCE_SECONDS):
            async for request in requests:
                return cast("pb.ImportSessionRequest", request)
            return None
    except TimeoutError:
        text = f"the upload brought nothing for {_SILENCE_SECONDS:g} s"
        raise TimedOut("TRANSPORT_DEADLINE", text, limitSeconds=f"{_SILENCE_SECONDS:g}") from None


async def _content(first: pb.ImportSessionRequest, requests: Requests) -> AsyncGenerator[bytes, None]:
    """Yield the pieces of the file."""
    frame: pb.ImportSessionRequest | None = first
    while frame is not None:
        if len(frame.chunk) > _CHUNK_BYTES:
            raise TooLarge("chunk", len(frame.chunk), _CHUNK_BYTES)
        if frame.request_id not in ("", first.request_id):
            raise InvalidRequest("request_id", "belongs into the first message")
        if frame.chunk:
            yield frame.chunk
        frame = await _next(requests)


def _check_data(entry: SessionDataEntry) -> None:
    checks.check_key("key", entry.key)
    value = SetSessionDataRequest()
    if entry.HasField("value_json"):
        value.value_json = entry.value_json
    else:
        value.value_bytes = entry.value_bytes
    checks.check_value(value)


def _check_artifact(artifact: Artifact) -> None:
    identifier("artifact.id", artifact.id)
    header = WriteArtifactHeader(
        session_id=artifact.session_id,
        name=artifact.name,
        media_type=artifact.media_type,
        labels=artifact.labels,
        sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
    )
    artifact_checks.check_header(header, LIMIT_BYTES)


CHECKS = Checks(
    identifier=lambda name: identifier("chunk", name),
    session=checks.check_session,
    labels=lambda found: labels("chunk", found),
    data=_check_data,
    artifact=_check_artifact,
    max_data=MAX_ENTRIES,
)
