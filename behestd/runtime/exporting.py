"""Writes a session into a file. Above: the service of sessions. Below: the store and the contents. Changes nothing.

What is in the file is what the store has: bytes of events as they are, and records in the one form that `session_file`
knows, so that a session that was imported is written as it was before.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from behest.v1.artifact_pb2 import Artifact
from behest.v1.run_pb2 import Run
from behest.v1.session_data_service_pb2 import SessionDataEntry
from behest.v1.session_pb2 import Session
from behestd.blobs.blob import Blobs
from behestd.errors import InvalidRequest, LogCorrupt, SessionBusy, SessionNotFound, WatchCompacted
from behestd.log import views
from behestd.log.store import SESSION_KIND, Record, RunRow, Store
from behestd.runtime.artifacts import KIND as ARTIFACT
from behestd.runtime.session_file import FORMAT, NAME, PIECE_BYTES, Lines

DATA = "session_data"
"""The kind of records of scratch data."""
_PAGE = 500
_PAGE_BYTES = 1024 * 1024


async def export(
    store: Store, blobs: Blobs, namespace: str, session_id: str, now_ns: int
) -> AsyncGenerator[bytes, None]:
    """Yield the file of a session, line by line.

    Raises SessionNotFound, SessionBusy while a run of it is not ended, InvalidRequest for the session of a child run.
    """
    sessions = await _sessions(store, namespace, session_id)
    lines = Lines()
    yield lines.line(behest=NAME, kind="head", format=FORMAT, id=session_id, namespace=namespace)
    for record in sessions:
        body = Session.FromString(record.body).SerializeToString(deterministic=True)
        yield lines.line(
            kind="session", id=record.id, parent=record.parent, create_time_ns=record.create_time_ns, data=body
        )
    told: set[bytes] = set()
    for record in sessions:
        logged: set[str] = set()
        async for row in _runs(store, namespace, record.id):
            if row.first_sequence == 1:
                logged.add(row.run_id)
            async for line in _run(store, lines, row, told):
                yield line
        async for line in _messages(store, lines, record, logged):
            yield line
        async for line in _data(store, lines, record, now_ns):
            yield line
        async for line in _artifacts(store, blobs, lines, record):
            yield line
    yield lines.end()


async def _sessions(store: Store, namespace: str, session_id: str) -> Sequence[Record]:
    """The record of a session and those of the child runs below it, each after the one above it."""
    root = await store.record(namespace, SESSION_KIND, session_id, 0)
    if root is None:
        raise SessionNotFound(session_id)
    if root.parent:
        raise InvalidRequest("session_id", f"is that of a child run; export session {root.parent}")
    found = [root]
    for above in found:  # which grows meanwhile
        found += [record async for record in _records(store, namespace, SESSION_KIND, above.id)]
        active = await store.session_runs(namespace, above.id)
        if active:
            raise SessionBusy(above.id, active[0].run_id, "SESSION_BUSY")
    return found


async def _runs(store: Store, namespace: str, session_id: str) -> AsyncIterator[RunRow]:
    after = (0, "")
    while page := await store.runs_of(namespace, session_id, _PAGE, after):
        for row in page:
            if row.is_ended:
                yield row
        after = (page[-1].create_time_ns, page[-1].run_id)


async def _run(store: Store, lines: Lines, row: RunRow, told: set[bytes]) -> AsyncIterator[bytes]:
    place = {"id": row.run_id, "session_id": row.session_id}
    if row.first_sequence > row.last_sequence:
        yield lines.line(
            kind="tombstone",
            **place,
            agent_id=row.agent_id,
            state=row.state,
            epoch=row.epoch,
            head_sequence=row.last_sequence,
            head_hash=row.last_hash,
            session_index=row.session_index,
            create_time_ns=row.create_time_ns,
            end_time_ns=row.end_time_ns,
        )
        return
    pinned = Run.FromString(row.body).definition_hash
    if pinned not in told:
        told.add(pinned)
        definition = await store.definition(pinned)
        if definition is None:
            raise LogCorrupt(row.run_id, 1, "its definition is gone")
        yield lines.line(kind="definition", data=definition)
    yield lines.line(kind="run", **place, head_sequence=row.last_sequence)
    after = 0
    while after < row.last_sequence:
        page = await store.chunks(row.namespace, row.run_id, after, _PAGE_BYTES)
        if not page:
            raise WatchCompacted(row.last_sequence + 1)
        for chunk in page:
            yield lines.line(kind="commit", data=chunk.data)
        after = page[-1].last_sequence


async def _messages(store: Store, lines: Lines, record: Record, logged: set[str]) -> AsyncIterator[bytes]:
    """Messages that no log in the file gives: of runs whose log is deleted, copies, summaries."""
    after = 0
    while page := await store.entries(record.namespace, views.MESSAGE, session_id=record.id, after=after, limit=_PAGE):
        for entry in page:
            if entry.run_id not in logged:
                yield lines.line(
                    kind="message",
                    id=entry.id,
                    session_id=entry.session_id,
                    run_id=entry.run_id,
                    position=entry.position,
                    data=entry.body,
                )
        after = page[-1].position


async def _data(store: Store, lines: Lines, record: Record, now_ns: int) -> AsyncIterator[bytes]:
    async for found in _records(store, record.namespace, DATA, record.id, now_ns):
        entry = SessionDataEntry.FromString(found.body)
        # In the body is what the record's version counts from; in a new store it counts from 1 again.
        entry.version += found.version - 1
        yield lines.line(
            kind="data",
            create_time_ns=found.create_time_ns,
            expire_time_ns=found.expire_time_ns,
            data=entry.SerializeToString(deterministic=True),
        )


async def _artifacts(store: Store, blobs: Blobs, lines: Lines, record: Record) -> AsyncIterator[bytes]:
    async for found in _records(store, record.namespace, ARTIFACT, record.id):
        artifact = Artifact.FromString(found.body)
        yield lines.line(kind="artifact", data=artifact.SerializeToString(deterministic=True))
        async for piece in blobs.read(record.namespace, artifact.sha256):
            for at in range(0, len(piece), PIECE_BYTES):
                yield lines.line(kind="content", data=piece[at : at + PIECE_BYTES])


async def _records(store: Store, namespace: str, kind: str, parent: str, now_ns: int = 0) -> AsyncIterator[Record]:
    after = ""
    while page := await store.records(namespace, kind, parent=parent, after=after, limit=_PAGE, now_ns=now_ns):
        for record in page:
            yield record
        after = page[-1].id
