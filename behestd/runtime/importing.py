"""Makes a session of a file, all of it or nothing. Above: the service of sessions. Below: the log and the artifacts.

Nothing in the file is believed: logs are followed as the core allows it (`importing_log`), and every view is made from
them here. Only runs that have ended are taken: nothing in a file ever acts. While it comes, its sessions are put away
and marked; the last commit gives them their records. What fails, or a crash, has the marked ones deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import sha256

from google.protobuf.message import DecodeError

from behest.v1.artifact_pb2 import Artifact
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.message_pb2 import Message
from behest.v1.session_data_service_pb2 import SessionDataEntry
from behest.v1.session_pb2 import Session
from behestd.core.state import TERMINAL
from behestd.core.times import nanoseconds
from behestd.errors import AlreadyExists, StorageFull
from behestd.failpoint import failpoint
from behestd.log import frames, views
from behestd.log.store import (
    SESSION_KIND,
    Change,
    Chunk,
    Claim,
    Committed,
    Delete,
    Entry,
    Full,
    Import,
    Item,
    Lost,
    Outcome,
    Put,
    Record,
    RecordChanged,
    RecordIs,
    RequestTaken,
    RunRow,
)
from behestd.log.usage import Spent
from behestd.reasoning.graph import validate
from behestd.runtime.artifacts import IMPORTING, Artifacts
from behestd.runtime.exporting import DATA
from behestd.runtime.graph_order import bare
from behestd.runtime.house import House
from behestd.runtime.importing_log import Checks, check_numbers, follow
from behestd.runtime.session_file import (
    FORMAT,
    MAX_NUMBER,
    NAME,
    FileInvalid,
    Line,
    Reader,
    data,
    message,
    number,
    text,
)

MAX_SESSIONS = 1_000
MAX_DEFINITIONS = 1_000
MAX_INDEX = 1 << 30
"""Highest session_index, so that positions made of it stay in 64 bits."""
MAX_EVENTS = 100_000
"""Events of a run, when the operator allows no more."""
MAX_LOG_BYTES = 80 * 1024 * 1024
"""Bytes of the log of a run, likewise."""
_MESSAGES_AT_ONCE = 200
_BYTES_AT_ONCE = 1024 * 1024


@dataclass(slots=True)
class _Seen:
    """What the lines so far have told."""

    definitions: dict[bytes, bytes] = field(default_factory=dict)
    indexes: set[tuple[str, int]] = field(default_factory=set)
    """Sessions, and places in them that a run has."""
    entries: dict[str, int] = field(default_factory=dict)
    """How much scratch data a session has."""
    dead: set[str] = field(default_factory=set)
    """Runs whose log is not in the file."""


class Importing:
    """One import. `read` takes the file, `finish` makes it count, `undo` takes everything back."""

    def __init__(
        self, house: House, artifacts: Artifacts, importer: tuple[str, str], reader: Reader, checks: Checks
    ) -> None:
        self._house = house
        self._artifacts = artifacts
        self._namespace, self._principal = importer
        self._reader = reader
        self._checks = checks
        self._sessions: dict[str, Record] = {}
        self._seen = _Seen()
        self._mark = house.ids.make("imp").encode()

    async def read(self) -> str:
        """Take the whole file; gives the id of the session.

        Raises FileInvalid and what the checks raise, AlreadyExists, TooLarge, StorageFull.
        """
        reader = self._reader
        head = await reader.take("head")
        if head.get("behest") != NAME or head.get("format") != FORMAT:
            raise FileInvalid(reader.number, f"no file of a session in format {FORMAT}")
        root = text(reader, head, "id")
        while (kind := await reader.kind()) == "session":
            await self._session(await reader.take(kind), root)
        if root not in self._sessions:
            raise FileInvalid(reader.number, f"session {root[:64]} is not in it")
        kinds = {
            "definition": self._definition,
            "run": self._run,
            "tombstone": self._tombstone,
            "message": self._message,
            "data": self._data,
            "artifact": self._artifact,
        }
        while (kind := await reader.kind()) != "end":
            read = kinds.get(kind)
            if read is None:
                raise FileInvalid(reader.number, f"{kind[:32]!r} is no kind of line")
            await read(await reader.take(kind))
        await reader.finish()
        return root

    async def finish(self, claim: Claim | None) -> Outcome:
        """Give the sessions their records, in one commit."""
        failpoint("import.before_finish")
        puts = tuple(Put(record, expected_version=1) for record in self._sessions.values())
        deletes = tuple(Delete(self._namespace, IMPORTING, session_id) for session_id in self._sessions)
        return await self._house.log.commit(Change(puts=puts, deletes=deletes, claim=claim))

    async def undo(self) -> None:
        """Delete whatever was written."""
        for session_id in reversed(self._sessions):
            marker = await self._house.log.store.record(self._namespace, IMPORTING, session_id, 0)
            # Of a session that was there before, or that another import makes, nothing is ours.
            if marker is not None and marker.body == self._mark:
                await self._artifacts.delete_session(self._namespace, session_id)

    # --- lines ---

    async def _session(self, line: Line, root: str) -> None:
        session = message(self._reader, line, Session)
        session_id, parent = text(self._reader, line, "id"), text(self._reader, line, "parent")
        is_placed = session_id == root if not self._sessions else parent in self._sessions
        if session.id != session_id or not is_placed or len(self._sessions) == MAX_SESSIONS:
            raise FileInvalid(self._reader.number, "the session has no place in the file")
        self._checks.identifier(session_id)
        self._checks.session(session)
        _check_times(self._reader, nanoseconds(session.create_time), nanoseconds(session.update_time))
        for name in ("active_run_id", "queued_run_ids", "version", "budget_use", "compaction_circuit"):
            session.ClearField(name)
        session.principal = self._principal
        create_ns = number(self._reader, line, "create_time_ns")
        body = session.SerializeToString(deterministic=True)
        parent = parent if self._sessions else ""
        record = Record(self._namespace, SESSION_KIND, session_id, body, parent=parent, create_time_ns=create_ns)
        away = Session(id=session_id, is_archived=True, is_hidden=True).SerializeToString()
        place = Record(self._namespace, SESSION_KIND, session_id, away, parent=parent, create_time_ns=create_ns)
        mark = Record(self._namespace, IMPORTING, session_id, self._mark, parent=session_id, create_time_ns=create_ns)
        self._sessions[session_id] = record
        outcome = await self._commit(Change(puts=(Put(place, 0), Put(mark, 0))))
        if not isinstance(outcome, Committed):
            raise AlreadyExists("SESSION_ID_TAKEN", f"session id {session_id} is taken", sessionId=session_id)
        failpoint("import.after_session")

    async def _definition(self, line: Line) -> None:
        body = data(self._reader, line)
        if len(self._seen.definitions) == MAX_DEFINITIONS:
            raise FileInvalid(self._reader.number, f"more than {MAX_DEFINITIONS} definitions")
        try:
            definition = RunDefinition.FromString(body)
        except DecodeError:
            raise FileInvalid(self._reader.number, "no definition") from None
        if definition.HasField("graph") and validate(bare(definition.graph)):
            raise FileInvalid(self._reader.number, "a definition with a graph that is not valid")
        self._seen.definitions[sha256(body).digest()] = body

    async def _run(self, line: Line) -> None:
        reader = self._reader
        run_id, session_id = self._place(line)
        if await self._house.log.store.run(self._namespace, run_id) is not None:
            raise _taken(run_id)
        limits = self._house.operator.limits
        head = number(reader, line, "head_sequence", max(limits.max_events, MAX_EVENTS))
        most_bytes = max(limits.max_log_bytes, MAX_LOG_BYTES)
        chunks: list[Chunk] = []
        size_bytes = after = 0
        while after < head and await reader.kind() == "commit":
            frame = data(reader, await reader.take("commit"))
            size_bytes += len(frame)
            try:
                events = frames.split(frame)
            except ValueError:
                raise FileInvalid(reader.number, "no events") from None
            if not events or size_bytes > most_bytes:
                raise FileInvalid(reader.number, "no commit of a run")
            chunks.append(frames.chunk(after + 1, events))
            after += len(events)
        made, chunks = await asyncio.to_thread(
            follow, (run_id, self._namespace), chunks, self._seen.definitions.get, reader.number
        )
        row, created = made.row, made.run.created
        self._checks.labels(created.labels)
        root = created.parent.root_session_id
        if (
            row.session_id != session_id
            or row.last_sequence != head
            or not row.is_ended
            or (root and root not in self._sessions)
            or bool(created.parent.run_id) != bool(self._sessions[session_id].parent)
        ):
            raise FileInvalid(reader.number, "the run is none that ended in its session")
        self._check_row(row, made.entries.values(), made.usage)
        entries = tuple(made.entries.values())
        definition = (created.definition_hash, self._seen.definitions[created.definition_hash])
        await self._check_free(entries)
        await self._write_run(Import(row, tuple(chunks), entries, definition, self._guards(session_id), made.usage))
        failpoint("import.after_run", run_id)

    async def _tombstone(self, line: Line) -> None:
        reader = self._reader
        run_id, session_id = self._place(line)
        head = number(reader, line, "head_sequence")
        state = number(reader, line, "state")
        if head < 1 or state not in TERMINAL:
            raise FileInvalid(reader.number, "no run that ended")
        row = RunRow(
            namespace=self._namespace,
            run_id=run_id,
            session_id=session_id,
            agent_id=text(reader, line, "agent_id")[:64],
            state=state,
            epoch=number(reader, line, "epoch"),
            last_sequence=head,
            last_hash=data(reader, line, "head_hash")[:32],
            session_index=number(reader, line, "session_index", MAX_INDEX),
            create_time_ns=number(reader, line, "create_time_ns"),
            body=b"",
            is_active=False,
            is_ended=True,
            log_bytes=0,
            first_sequence=head + 1,
            end_time_ns=number(reader, line, "end_time_ns"),
        )
        self._check_row(row, (), ())
        self._seen.dead.add(run_id)
        await self._write_run(Import(row, (), guards=self._guards(session_id)))

    async def _message(self, line: Line) -> None:
        """Take a message and those right behind it, in one commit."""
        reader = self._reader
        entries = [await self._entry(line)]
        size_bytes = 0
        while len(entries) < _MESSAGES_AT_ONCE and size_bytes < _BYTES_AT_ONCE and await reader.kind() == "message":
            entries.append(await self._entry(await reader.take("message")))
            size_bytes += len(entries[-1].body)
        if len({entry.id for entry in entries}) < len(entries):
            raise FileInvalid(reader.number, "a message comes twice")
        guards = tuple(
            guard for name in sorted({entry.session_id for entry in entries}) for guard in self._guards(name)
        )
        if not isinstance(await self._commit(Change(guards=guards, entries=tuple(entries))), Committed):
            raise FileInvalid(reader.number, "its session is gone")

    async def _entry(self, line: Line) -> Entry:
        reader = self._reader
        said = message(reader, line, Message)
        name, session_id, run_id = (text(reader, line, key) for key in ("id", "session_id", "run_id"))
        if said.id != name or session_id not in self._sessions or (run_id and run_id not in self._seen.dead):
            raise FileInvalid(reader.number, "the message has no place in the file")
        self._checks.identifier(name)
        position = number(reader, line, "position")
        entry = Entry(views.MESSAGE, name, session_id, run_id, position, data(reader, line))
        present = await self._house.log.store.entry(self._namespace, views.MESSAGE, name)
        # A summary that a log in the file has made is there already.
        if present not in (None, entry) or position < 1:
            raise FileInvalid(reader.number, f"message {name} is taken, or has no position")
        return entry

    async def _data(self, line: Line) -> None:
        reader = self._reader
        entry = message(reader, line, SessionDataEntry)
        count = self._seen.entries[entry.session_id] = self._seen.entries.get(entry.session_id, 0) + 1
        if entry.session_id not in self._sessions or count > self._checks.max_data:
            raise FileInvalid(reader.number, "the entry has no place in the file")
        self._checks.data(entry)
        if not 0 <= entry.version <= MAX_NUMBER:
            raise FileInvalid(reader.number, "version is out of range")
        record = Record(
            self._namespace,
            DATA,
            f"{entry.session_id}/{entry.key}",
            entry.SerializeToString(deterministic=True),
            parent=entry.session_id,
            create_time_ns=number(reader, line, "create_time_ns"),
            expire_time_ns=number(reader, line, "expire_time_ns"),
        )
        if 0 < record.expire_time_ns <= self._house.clock.now_ns():
            return
        change = Change(puts=(Put(record, 0),), guards=self._guards(entry.session_id))
        if not isinstance(await self._commit(change), Committed):
            raise FileInvalid(reader.number, f"key {entry.key} comes twice, or its session is gone")

    async def _artifact(self, line: Line) -> None:
        reader = self._reader
        artifact = message(reader, line, Artifact)
        if artifact.session_id not in self._sessions or not 0 <= nanoseconds(artifact.create_time) <= MAX_NUMBER:
            raise FileInvalid(reader.number, "the artifact has no place in the file")
        self._checks.artifact(artifact)

        async def pieces() -> AsyncGenerator[bytes, None]:
            left = artifact.size_bytes
            while left > 0 and await reader.kind() == "content":
                piece = data(reader, await reader.take("content"))
                left -= len(piece)
                if not piece or left < 0:
                    raise FileInvalid(reader.number, "the content is not as long as it should be")
                yield piece

        async with aclosing(pieces()) as content:
            outcome = await self._artifacts.adopt(self._namespace, artifact, content)
        if isinstance(outcome, Full):
            raise StorageFull
        if not isinstance(outcome, Committed):
            raise FileInvalid(reader.number, f"artifact {artifact.id} is taken, or its session is gone")

    # --- shared ---

    def _place(self, line: Line) -> tuple[str, str]:
        """The run and the session that a line names."""
        run_id, session_id = text(self._reader, line, "id"), text(self._reader, line, "session_id")
        self._checks.identifier(run_id)
        if session_id not in self._sessions:
            raise FileInvalid(self._reader.number, "the run has no place in the file")
        return run_id, session_id

    def _guards(self, session_id: str) -> tuple[RecordIs, ...]:
        return (RecordIs(self._namespace, SESSION_KIND, session_id, 1),)

    def _check_row(self, row: RunRow, entries: Iterable[Entry], usage: Iterable[Spent]) -> None:
        """Refuse numbers that no column holds, and two runs in one place of a session."""
        check_numbers(self._reader.number, row, entries, usage)
        place = (row.session_id, row.session_index)
        if row.session_index > MAX_INDEX or place in self._seen.indexes:
            raise FileInvalid(self._reader.number, f"session_index {row.session_index} is taken or out of range")
        if row.session_index:
            self._seen.indexes.add(place)

    async def _check_free(self, entries: tuple[Entry, ...]) -> None:
        """Refuse what would go over something that is there."""
        for entry in entries:
            self._checks.identifier(entry.id)
            if await self._house.log.store.entry(self._namespace, entry.kind, entry.id) is not None:
                raise FileInvalid(self._reader.number, f"{entry.kind} {entry.id} is taken")

    async def _write_run(self, item: Import) -> None:
        outcome = await self._commit(item)
        if isinstance(outcome, Lost):
            raise _taken(item.row.run_id)
        if not isinstance(outcome, Committed):
            raise FileInvalid(self._reader.number, "its session is gone")

    async def _commit(self, item: Item) -> Outcome:
        if self._house.log.store.is_degraded:
            raise StorageFull
        outcome = await self._house.log.commit(item)
        if isinstance(outcome, Full):
            raise StorageFull
        assert isinstance(outcome, Committed | Lost | RecordChanged | RequestTaken)
        return outcome


def _taken(run_id: str) -> AlreadyExists:
    return AlreadyExists("RUN_ID_TAKEN", f"run id {run_id} is taken", runId=run_id)


def _check_times(reader: Reader, *times_ns: int) -> None:
    if any(not 0 <= time_ns <= MAX_NUMBER for time_ns in times_ns):
        raise FileInvalid(reader.number, "a time is out of range")
