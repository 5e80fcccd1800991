"""Artifacts: bytes kept as blobs, described by records. Bytes are durable before the record that names them.

Beside an artifact's record stands a reference, a record named by the content's hash and the artifact's id, so that one
look tells whether anything still names a blob. Records go first, blobs after them; what a crash leaves between is
marked and swept at the next start, and a blob that never got a record is collected by its age. Above: the services and
the performer of tools. Below: the log and the blobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from behest.v1.artifact_pb2 import Artifact
from behestd.blobs.blob import LIMIT_BYTES, Blobs, Stored
from behestd.core.times import nanoseconds, timestamp
from behestd.errors import StorageFull
from behestd.log.log import Log
from behestd.log.store import (
    SESSION_KIND,
    Change,
    Claim,
    Committed,
    Delete,
    DeleteSession,
    Full,
    Outcome,
    Put,
    Record,
    RecordIs,
)
from behestd.runtime.clock import Clock, Ids

KIND = "artifact"
REFERENCE = "artifact_content"
IMPORTING = "import"
"""Marks a session whose import has begun and not ended."""
LOOSE = "loose_content"
"""Marks content that may have lost its last artifact."""
_PAGE = 500
_BLOBS_AT_ONCE = 32
"""Blobs looked at while nobody may name one."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What is known beforehand of a content. Empty: nothing but the limit."""

    sha256: bytes = b""
    limit_bytes: int = LIMIT_BYTES


class Artifacts:
    """Keeps artifacts and lets them go. Reading and listing are the service's, on blobs and records directly."""

    def __init__(self, log: Log, blobs: Blobs, clock: Clock, ids: Ids) -> None:
        self._log = log
        self._blobs = blobs
        self._clock = clock
        self._ids = ids
        # From the moment when a blob is there until a record names it, nobody may find that nothing does. Writers are
        # tasks of many calls and hold the lock for a commit, so an owner of their own would only add a hop.
        self._naming = asyncio.Lock()

    async def keep(self, namespace: str, about: Artifact, data: bytes) -> Artifact:
        """Keep bytes under a new id. Raises StorageFull."""
        artifact, outcome = await self.write(namespace, about, _one(data))
        if isinstance(outcome, Full):
            raise StorageFull
        return artifact

    async def write(
        self,
        namespace: str,
        about: Artifact,
        pieces: AsyncIterable[bytes],
        promise: Promise = Promise(),
        request: tuple[str, bytes] | None = None,
    ) -> tuple[Artifact, Outcome]:
        """Keep a stream of bytes under a new id. `request` is a request id, and what its digest begins with.

        When it is cancelled or the pieces raise, nothing is kept. Raises what blobs raise, and StorageFull while the
        store holds its reserve for the ends of runs.
        """
        return await self._keep(namespace, pieces, promise, lambda stored: self._describe(about, stored), request)

    async def adopt(self, namespace: str, artifact: Artifact, pieces: AsyncIterable[bytes]) -> Outcome:
        """Keep a stream of bytes as an artifact that was described elsewhere, id and all. Raises as `write`.

        RecordChanged: its session is gone, or its id is taken.
        """
        promise = Promise(artifact.sha256, artifact.size_bytes)
        return (await self._keep(namespace, pieces, promise, lambda _: artifact, None))[1]

    async def _keep(
        self,
        namespace: str,
        pieces: AsyncIterable[bytes],
        promise: Promise,
        describe: Callable[[Stored], Artifact],
        request: tuple[str, bytes] | None,
    ) -> tuple[Artifact, Outcome]:
        if self._log.store.is_degraded:
            raise StorageFull
        async with AsyncExitStack() as stack:

            async def all_of_them() -> AsyncGenerator[bytes, None]:
                async for piece in pieces:
                    yield piece
                await stack.enter_async_context(self._naming)

            content = await stack.enter_async_context(aclosing(all_of_them()))
            stored = await self._blobs.write(
                namespace, content, limit_bytes=promise.limit_bytes, expected_sha256=promise.sha256
            )
            artifact = describe(stored)
            claim = Claim(namespace, request[0], request[1] + stored.sha256, artifact.id) if request else None
            outcome = await self._record(namespace, artifact, claim)
            if not isinstance(outcome, Committed):
                await self._free(namespace, {stored.sha256})
            return artifact, outcome

    def _describe(self, about: Artifact, stored: Stored) -> Artifact:
        artifact = Artifact()
        artifact.CopyFrom(about)
        artifact.id = self._ids.make("art")
        artifact.size_bytes, artifact.sha256 = stored.size_bytes, stored.sha256
        artifact.create_time.CopyFrom(timestamp(self._clock.now_ns()))
        return artifact

    async def _record(self, namespace: str, artifact: Artifact, claim: Claim | None) -> Outcome:
        now_ns = nanoseconds(artifact.create_time)
        session_id = artifact.session_id
        names = ((KIND, artifact.id, artifact.SerializeToString()), (REFERENCE, _reference(artifact), b""))
        puts = tuple(
            Put(Record(namespace, kind, name, body, parent=session_id, create_time_ns=now_ns), 0)
            for kind, name, body in names
        )
        guards = (RecordIs(namespace, SESSION_KIND, session_id),) if session_id else ()
        return await self._log.commit(Change(puts=puts, claim=claim, guards=guards))

    # --- letting go ---

    async def delete(self, namespace: str, artifacts: Sequence[Artifact]) -> None:
        """Delete artifacts, and content that nothing names any more. Idempotent. Raises StorageFull."""
        async with self._naming:
            deletes = [
                Delete(namespace, kind, name)
                for artifact in artifacts
                for kind, name in ((KIND, artifact.id), (REFERENCE, _reference(artifact)))
            ]
            contents = {artifact.sha256 for artifact in artifacts}
            await self._commit(Change(puts=_marks(namespace, contents), deletes=tuple(deletes)))
            await self._free(namespace, contents)

    async def delete_session(self, namespace: str, session_id: str) -> Outcome:
        """Delete a session with everything of it, and the content that nothing names any more. Raises StorageFull."""
        async with self._naming:
            contents: set[bytes] = set()
            after = ""
            while True:
                page = await self._log.store.records(namespace, KIND, parent=session_id, after=after, limit=_PAGE)
                contents |= {Artifact.FromString(record.body).sha256 for record in page}
                if len(page) < _PAGE:
                    break
                after = page[-1].id
            if contents:
                await self._commit(Change(puts=_marks(namespace, contents)))
            outcome = await self._log.commit(DeleteSession(namespace, session_id))
            await self._free(namespace, contents)
            return outcome

    async def sweep(self) -> None:
        """Finish the deletions that a crash interrupted, and undo the imports."""
        for marker in await self._log.store.records("", IMPORTING, limit=_PAGE):
            await self.delete_session(marker.namespace, marker.id)
        while True:
            async with self._naming:
                marked = await self._log.store.records("", LOOSE, limit=_PAGE)
                for namespace in {record.namespace for record in marked}:
                    contents = {bytes.fromhex(record.id) for record in marked if record.namespace == namespace}
                    await self._free(namespace, contents)
            if len(marked) < _PAGE:
                return

    async def collect(self, namespace: str, before_ns: int, after: bytes) -> tuple[int, bytes]:
        """Look at the next blobs of a namespace, and delete those that are old and that no artifact names.

        Gives how many were deleted, and the last blob looked at, empty when that was all.
        """
        deleted = 0
        async with self._naming:
            page = await self._blobs.aged(namespace, before_ns, after, _BLOBS_AT_ONCE)
            for sha256 in page.found:
                if not await self._is_named(namespace, sha256):
                    deleted += await self._blobs.delete(namespace, sha256)
        return deleted, page.last

    async def _is_named(self, namespace: str, sha256: bytes) -> bool:
        name = sha256.hex()
        found = await self._log.store.records(namespace, REFERENCE, after=name, limit=1)
        return bool(found) and found[0].id.startswith(name)

    async def _free(self, namespace: str, contents: set[bytes]) -> None:
        """Delete the blobs among these that no artifact names, and their marks."""
        for sha256 in contents:
            if not await self._is_named(namespace, sha256):
                await self._blobs.delete(namespace, sha256)
        if contents:
            await self._commit(Change(deletes=tuple(Delete(namespace, LOOSE, sha256.hex()) for sha256 in contents)))

    async def _commit(self, change: Change) -> None:
        if isinstance(await self._log.commit(change), Full):
            raise StorageFull


def _reference(artifact: Artifact) -> str:
    """The name of a reference, which sorts after the hash of the content that it is to."""
    return f"{artifact.sha256.hex()}.{artifact.id}"


def _marks(namespace: str, contents: set[bytes]) -> tuple[Put, ...]:
    return tuple(Put(Record(namespace, LOOSE, sha256.hex(), b"")) for sha256 in sorted(contents))


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data
