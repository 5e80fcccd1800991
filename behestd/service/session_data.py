"""SessionDataService: scratch data of sessions. Above: the edge. Below: the log and its store.

An entry is a record whose parent is its session, so it goes with it. The store counts a record's versions from 1
again when it was deleted or has expired; an entry's version is that count on a base, the time in microseconds when
the record began, so that it is never the same twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import takewhile

from behest.v1 import session_data_service_pb2 as pb
from behestd.core.times import SECOND, timestamp
from behestd.errors import Exhausted, InvalidRequest, SessionNotFound
from behestd.log.store import SESSION_KIND, Change, Committed, Delete, Put, Record, RecordChanged, RecordIs
from behestd.runtime.house import House
from behestd.service import records
from behestd.service import session_checks as checks
from behestd.service.call import Call
from behestd.service.methods import Handler
from behestd.service.pages import Position, page_of
from behestd.service.validate import duration, identifier, not_negative

KIND = "session_data"
MAX_ENTRIES = 1_000
"""Most entries of a session."""
_NAME = "/behest.v1.SessionDataService/"
_MICROSECOND = 1_000


class SessionData:
    """Handlers of SessionDataService."""

    def __init__(self, house: House) -> None:
        self._log = house.log
        self._clock = house.clock
        # Nobody owns a count of entries, so those who make one take turns; replacing one needs no turn.
        self._making = asyncio.Lock()

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "GetSessionData": self.get_session_data,
            _NAME + "SetSessionData": self.set_session_data,
            _NAME + "DeleteSessionData": self.delete_session_data,
            _NAME + "ListSessionData": self.list_session_data,
        }

    async def get_session_data(self, request: pb.GetSessionDataRequest, call: Call) -> pb.GetSessionDataResponse:
        """Get one entry."""
        identifier("session_id", request.session_id)
        checks.check_key("key", request.key)
        record = await self._record(call.namespace, request.session_id, request.key)
        if record is None:
            await self._check_session(call.namespace, request.session_id)
            raise checks.DataNotFound(request.key)
        return pb.GetSessionDataResponse(entry=_shown(record))

    async def set_session_data(self, request: pb.SetSessionDataRequest, call: Call) -> pb.SetSessionDataResponse:
        """Create an entry or replace it."""
        identifier("session_id", request.session_id)
        checks.check_key("key", request.key)
        checks.check_value(request)
        seconds = duration("time_to_live", request.time_to_live) if request.HasField("time_to_live") else None
        if seconds is not None and seconds <= 0:
            raise InvalidRequest("time_to_live", "must be longer than 0 s")
        expected = request.expected_version if request.HasField("expected_version") else None
        not_negative("expected_version", expected or 0)
        while True:
            now_ns = self._clock.now_ns()
            old = await self._record(call.namespace, request.session_id, request.key, now_ns)
            version = 0 if old is None else _shown(old).version
            if expected not in (None, version):
                await self._check_session(call.namespace, request.session_id)
                raise checks.SessionVersionMismatch(version)
            record = _made(call.namespace, request, seconds, old, now_ns)
            outcome = await self._write(record, 0 if old is None else old.version)
            if isinstance(outcome, Committed):
                return pb.SetSessionDataResponse(entry=_shown(record, outcome.versions[0], old))
            if outcome.kind == SESSION_KIND:
                raise SessionNotFound(request.session_id)
            # Somebody else was faster: look again, and decide on what is there now.

    async def delete_session_data(
        self, request: pb.DeleteSessionDataRequest, call: Call
    ) -> pb.DeleteSessionDataResponse:
        """Delete an entry."""
        identifier("session_id", request.session_id)
        checks.check_key("key", request.key)
        expected = records.version_expected(request)
        while True:
            old = await self._record(call.namespace, request.session_id, request.key)
            if old is None:
                return pb.DeleteSessionDataResponse()
            version = _shown(old).version
            if expected not in (None, version):
                raise checks.SessionVersionMismatch(version)
            delete = Delete(call.namespace, KIND, old.id, old.version)
            outcome = await records.commit(self._log, Change(deletes=(delete,)))
            if isinstance(outcome, Committed):
                return pb.DeleteSessionDataResponse()

    async def list_session_data(self, request: pb.ListSessionDataRequest, call: Call) -> pb.ListSessionDataResponse:
        """List entries by key."""
        identifier("session_id", request.session_id)
        checks.check_prefix("key_prefix", request.key_prefix)
        page = page_of(request, call.namespace, (str,))
        await self._check_session(call.namespace, request.session_id)
        prefix = _name(request.session_id, request.key_prefix)
        now_ns = self._clock.now_ns()
        store = self._log.store

        async def read(after: Position | None, limit: int) -> Sequence[Record]:
            first = [] if after else [await store.record(call.namespace, KIND, prefix, now_ns)]
            found = await store.records(
                call.namespace,
                KIND,
                parent=request.session_id,
                after=_name(request.session_id, str(after[0])) if after else prefix,
                limit=limit,
                now_ns=now_ns,
            )
            every = [record for record in (*first, *found) if record is not None]
            return list(takewhile(lambda record: record.id.startswith(prefix), every[:limit]))

        taken = await records.take(page, read, lambda record: (_key(record),), _shown)
        token = page.token(_key(taken.last)) if taken.last is not None else ""
        return pb.ListSessionDataResponse(entries=taken.items, next_page_token=token)

    # --- records ---

    async def _record(self, namespace: str, session_id: str, key: str, now_ns: int = 0) -> Record | None:
        now_ns = now_ns or self._clock.now_ns()
        return await self._log.store.record(namespace, KIND, _name(session_id, key), now_ns)

    async def _check_session(self, namespace: str, session_id: str) -> None:
        if await self._log.store.record(namespace, SESSION_KIND, session_id, 0) is None:
            raise SessionNotFound(session_id)

    async def _write(self, record: Record, expected_version: int) -> Committed | RecordChanged:
        change = Change(
            puts=(Put(record, expected_version),),
            guards=(RecordIs(record.namespace, SESSION_KIND, record.parent),),
        )
        if expected_version:
            outcome = await records.commit(self._log, change)
        else:
            async with self._making:
                count = await self._log.store.count_records(
                    record.namespace, KIND, record.parent, record.create_time_ns
                )
                if count >= MAX_ENTRIES:
                    text = f"session {record.parent} has {count} entries, at most {MAX_ENTRIES} are allowed"
                    raise Exhausted("REQUEST_TOO_LARGE", text, field="key", limit=MAX_ENTRIES)
                outcome = await records.commit(self._log, change)
        assert isinstance(outcome, Committed | RecordChanged)
        return outcome


def _name(session_id: str, key: str) -> str:
    """The id of a record. No session's id holds a slash, so no two entries share one."""
    return f"{session_id}/{key}"


def _key(record: Record) -> str:
    return record.id.partition("/")[2]


def _made(
    namespace: str, request: pb.SetSessionDataRequest, seconds: float | None, old: Record | None, now_ns: int
) -> Record:
    """The record of an entry; in its body stands the base of its version."""
    base = now_ns // _MICROSECOND if old is None else pb.SessionDataEntry.FromString(old.body).version
    entry = pb.SessionDataEntry(
        session_id=request.session_id, key=request.key, version=base, update_time=timestamp(now_ns)
    )
    if request.WhichOneof("value") == "value_json":
        entry.value_json = request.value_json
    else:
        entry.value_bytes = request.value_bytes
    expire_time_ns = 0
    if seconds is not None:
        expire_time_ns = now_ns + int(seconds * SECOND)
        entry.expire_time.CopyFrom(timestamp(expire_time_ns))
    return Record(
        namespace,
        KIND,
        _name(request.session_id, request.key),
        entry.SerializeToString(),
        parent=request.session_id,
        create_time_ns=now_ns,
        expire_time_ns=expire_time_ns,
    )


def _shown(record: Record, version: int = 0, old: Record | None = None) -> pb.SessionDataEntry:
    """The entry of a record; `version` and the record before it when it was just written."""
    entry = pb.SessionDataEntry.FromString(record.body)
    entry.version += version or record.version
    entry.create_time.CopyFrom(timestamp(record.create_time_ns if old is None else old.create_time_ns))
    return entry
