"""SessionService: conversations as records, and the messages of their runs. Above: the edge. Below: log, supervisor.

A fork copies messages instead of referring to its source: the source may be deleted, or go on, and the fork stays as
it was made. The copies stand before the first run, at the positions of a run 0 that never was, so that history and
lists need to know nothing of forks.
"""

from __future__ import annotations

from collections.abc import Mapping

from behest.v1 import session_service_pb2 as pb
from behest.v1.message_pb2 import Message
from behest.v1.session_pb2 import Session
from behestd.core.times import timestamp
from behestd.errors import AlreadyExists, SessionBusy, SessionNotFound, StorageFull, TooLarge
from behestd.log import views
from behestd.log.store import (
    SESSION_KIND,
    Change,
    Claim,
    Committed,
    Entry,
    Full,
    Lost,
    Outcome,
    Put,
    Record,
    RecordChanged,
    RecordIs,
    RequestTaken,
)
from behestd.runtime.agents import Agents
from behestd.runtime.artifacts import Artifacts
from behestd.runtime.house import House
from behestd.runtime.quotas_stored import check_sessions
from behestd.runtime.supervisor import Supervisor
from behestd.runtime.whole import whole
from behestd.service import records
from behestd.service import session_checks as checks
from behestd.service.call import Call
from behestd.service.methods import Handler
from behestd.service.pages import page_of
from behestd.service.validate import identifier, labels, request_id, required_message

_NAME = "/behest.v1.SessionService/"
_FORK_BYTES = 64 * 1024 * 1024
"""Most bytes of messages that a fork copies, since it is one transaction."""
_READ = 1000


class Sessions:
    """Handlers of SessionService."""

    def __init__(self, house: House, supervisor: Supervisor, agents: Agents, artifacts: Artifacts) -> None:
        self._house = house
        self._log = house.log
        self._supervisor = supervisor
        self._agents = agents
        self._artifacts = artifacts

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "CreateSession": self.create_session,
            _NAME + "GetSession": self.get_session,
            _NAME + "ListSessions": self.list_sessions,
            _NAME + "UpdateSession": self.update_session,
            _NAME + "DeleteSession": self.delete_session,
            _NAME + "ForkSession": self.fork_session,
            _NAME + "ListMessages": self.list_messages,
        }

    async def create_session(self, request: pb.CreateSessionRequest, call: Call) -> pb.CreateSessionResponse:
        """Create a session."""
        request_id("request_id", request.request_id)
        checks.check_created(request.session)
        digest = records.digest_of(request)
        known = await records.earlier(self._log, call.namespace, request.request_id, digest)
        if known:
            return pb.CreateSessionResponse(session=await self._session(call.namespace, known), replayed=True)
        asked = request.session
        if asked.agent_id:
            await self._agents.resolve(call.namespace, asked.agent_id)
        session = Session(
            id=asked.id or self._house.ids.make("ses"),
            title=asked.title,
            agent_id=asked.agent_id,
            labels=asked.labels,
            metadata_json=asked.metadata_json,
            tools=asked.tools,
            budget=asked.budget if asked.HasField("budget") else None,
            principal=call.caller.principal,
        )
        claim = records.claim_of(call.namespace, request.request_id, digest, session.id)
        made, replayed = await self._create(call.namespace, session, claim)
        return pb.CreateSessionResponse(session=made, replayed=replayed)

    async def get_session(self, request: pb.GetSessionRequest, call: Call) -> pb.GetSessionResponse:
        """Get a session, with the runs that hold it and wait for it."""
        identifier("session_id", request.session_id)
        session = await self._session(call.namespace, request.session_id)
        session.active_run_id = self._supervisor.holder(call.namespace, session.id)
        session.queued_run_ids.extend(self._supervisor.queued(call.namespace, session.id))
        circuit = self._house.circuits.shown(call.namespace, session.id)
        if circuit is not None:
            session.compaction_circuit.CopyFrom(circuit)
        account = await self._house.ledger.session(self._log.store, call.namespace, session)
        if account is not None:
            session.budget_use.CopyFrom(account.shown())
        return pb.GetSessionResponse(session=session)

    async def list_sessions(self, request: pb.ListSessionsRequest, call: Call) -> pb.ListSessionsResponse:
        """List sessions, newest first."""
        page = page_of(request, call.namespace, (int, str))
        wanted = labels("labels", request.labels)

        def show(record: Record) -> Session | None:
            session = _shown(record)
            is_out = (session.is_archived and not request.include_archived) or (
                session.is_hidden and not request.include_hidden
            )
            return None if is_out or not records.has_labels(session.labels, wanted) else session

        taken = await records.take(page, self._reader(call.namespace), records.by_time, show)
        token = page.token(*records.by_time(taken.last)) if taken.last is not None else ""
        return pb.ListSessionsResponse(sessions=taken.items, next_page_token=token)

    async def update_session(self, request: pb.UpdateSessionRequest, call: Call) -> pb.UpdateSessionResponse:
        """Change the named fields of a session."""
        required_message(request, "session")
        given, paths = request.session, request.update_mask.paths
        identifier("session.id", given.id)
        checks.check_version("session.version", given.version)
        records.check_mask(given, paths, checks.CHANGEABLE)
        checks.check_session(given, paths)
        while True:
            record = await self._record(call.namespace, given.id)
            if given.version not in (0, record.version):
                raise checks.SessionVersionMismatch(record.version)
            if "agent_id" in paths and given.agent_id:
                await self._agents.resolve(call.namespace, given.agent_id)
            session = records.changed(Session.FromString(record.body), given, paths)
            put = self._put(call.namespace, session, record.version, record.parent)
            has_budget = any(path.split(".")[0] == "budget" for path in paths)
            outcome = await whole(self._change(put, session if has_budget else None))
            if isinstance(outcome, Committed):
                return pb.UpdateSessionResponse(session=_shown(put.record, outcome.versions[0]))
            # Somebody else was faster: look again, and decide on what is there now.

    async def delete_session(self, request: pb.DeleteSessionRequest, call: Call) -> pb.DeleteSessionResponse:
        """Delete a session with everything that belongs to it, the sessions of its child runs first."""
        identifier("session_id", request.session_id)
        record = await self._log.store.record(call.namespace, SESSION_KIND, request.session_id, 0)
        if record is not None and record.parent:
            # A run of it may be needed yet by the one that started it.
            await self._check_free(call.namespace, record.parent)
        deleted = await self._and_below(call.namespace, request.session_id)
        for session_id in deleted:
            await self._check_free(call.namespace, session_id)
        for session_id in deleted:
            outcome = await whole(self._delete(call.namespace, session_id))
            if isinstance(outcome, Full):
                raise StorageFull
            if isinstance(outcome, Lost):
                await self._check_free(call.namespace, session_id)
                raise SessionBusy(session_id, "", "SESSION_BUSY")
        return pb.DeleteSessionResponse()

    async def _delete(self, namespace: str, session_id: str) -> Outcome:
        outcome = await self._artifacts.delete_session(namespace, session_id)
        self._house.circuits.forget(namespace, session_id)
        if isinstance(outcome, Committed):
            self._house.ledger.forget(namespace, session_id)
        return outcome

    async def _and_below(self, namespace: str, session_id: str) -> list[str]:
        """A session and those of the child runs that its runs started, and of theirs: the lowest first."""
        found = [session_id]
        for above in found:  # which grows meanwhile
            after = ""
            while True:
                page = await self._log.store.records(namespace, SESSION_KIND, parent=above, after=after, limit=_READ)
                found.extend(record.id for record in page)
                if len(page) < _READ:
                    break
                after = page[-1].id
        return found[::-1]

    async def fork_session(self, request: pb.ForkSessionRequest, call: Call) -> pb.ForkSessionResponse:
        """Create a session that starts with the messages of another."""
        identifier("source_session_id", request.source_session_id)
        request_id("request_id", request.request_id)
        checks.check_title(request.title)
        if request.upto_message_id:
            identifier("upto_message_id", request.upto_message_id)
        digest = records.digest_of(request)
        known = await records.earlier(self._log, call.namespace, request.request_id, digest)
        if known:
            return pb.ForkSessionResponse(session=await self._session(call.namespace, known), replayed=True)
        source = await self._session(call.namespace, request.source_session_id)
        session = Session(
            id=self._house.ids.make("ses"),
            title=request.title or source.title,
            agent_id=source.agent_id,
            labels=source.labels,
            metadata_json=source.metadata_json,
            tools=source.tools,
            budget=source.budget if source.HasField("budget") else None,
            forked_from_session_id=source.id,
            principal=call.caller.principal,
        )
        entries = await self._copies(call.namespace, source.id, request.upto_message_id, session.id)
        claim = records.claim_of(call.namespace, request.request_id, digest, session.id)
        made, replayed = await self._create(call.namespace, session, claim, entries)
        return pb.ForkSessionResponse(session=made, replayed=replayed)

    async def list_messages(self, request: pb.ListMessagesRequest, call: Call) -> pb.ListMessagesResponse:
        """List the messages of a session, oldest first."""
        identifier("session_id", request.session_id)
        page = page_of(request, call.namespace, (int,))
        await self._record(call.namespace, request.session_id)
        after = int(page.after[0]) if page.after else 0
        found = await self._log.store.entries(
            call.namespace, views.MESSAGE, session_id=request.session_id, after=after, limit=page.size + 1
        )
        response = pb.ListMessagesResponse()
        size_bytes = 0
        for index, entry in enumerate(found):
            size_bytes += len(entry.body)
            if index == page.size or (index and size_bytes > records.PAGE_BYTES):
                response.next_page_token = page.token(found[index - 1].position)
                break
            if request.include_summaries or not views.is_summary(entry):
                response.messages.add().ParseFromString(entry.body)
        return response

    # --- records ---

    async def _record(self, namespace: str, session_id: str) -> Record:
        record = await self._log.store.record(namespace, SESSION_KIND, session_id, 0)
        if record is None:
            raise SessionNotFound(session_id)
        return record

    async def _session(self, namespace: str, session_id: str) -> Session:
        return _shown(await self._record(namespace, session_id))

    def _reader(self, namespace: str) -> records.Read:
        store = self._log.store
        return lambda after, limit: store.newest_records(
            namespace, SESSION_KIND, parent=None, before=records.before(after), limit=limit
        )

    def _put(self, namespace: str, session: Session, expected_version: int, parent: str = "") -> Put:
        now_ns = self._house.clock.now_ns()
        session.update_time.CopyFrom(timestamp(now_ns))
        if not expected_version:
            session.create_time.CopyFrom(timestamp(now_ns))
        body = session.SerializeToString()
        record = Record(namespace, SESSION_KIND, session.id, body, parent=parent, create_time_ns=now_ns)
        return Put(record, expected_version)

    async def _change(self, put: Put, budgeted: Session | None) -> Committed | RequestTaken | RecordChanged:
        """Write a changed session, and bound its runs by its new budget, if it has one."""
        outcome = await records.commit(self._log, Change(puts=(put,)))
        if isinstance(outcome, Committed) and budgeted is not None:
            runs = self._supervisor.runs()
            await self._house.ledger.change(self._log.store, put.record.namespace, budgeted, runs)
        return outcome

    async def _create(
        self, namespace: str, session: Session, claim: Claim | None, entries: tuple[Entry, ...] = ()
    ) -> tuple[Session, bool]:
        """Write a new session: what was made, or what the same request made meanwhile, and which of both."""
        await check_sessions(self._house, namespace, session.principal)
        source = session.forked_from_session_id
        guards = (RecordIs(namespace, SESSION_KIND, source),) if source else ()
        put = self._put(namespace, session, 0)
        change = Change(puts=(put,), claim=claim, guards=guards, entries=entries)
        outcome = await records.commit(self._log, change)
        if isinstance(outcome, RequestTaken) and claim is not None:
            target = records.same(outcome, claim.digest, claim.request_id)
            return await self._session(namespace, target), True
        if isinstance(outcome, RecordChanged):
            if outcome.id != session.id:
                raise SessionNotFound(source)
            text = f"session id {session.id} is taken"
            raise AlreadyExists("SESSION_ID_TAKEN", text, sessionId=session.id)
        return _shown(put.record, 1), False

    async def _check_free(self, namespace: str, session_id: str) -> None:
        runs = await self._log.store.session_runs(namespace, session_id)
        if runs:
            run_id = self._supervisor.holder(namespace, session_id) or runs[0].run_id
            raise SessionBusy(session_id, run_id, "SESSION_BUSY")

    # --- forks ---

    async def _copies(self, namespace: str, source_id: str, upto: str, session_id: str) -> tuple[Entry, ...]:
        """The messages of a session as entries of another, up to one of them (empty: all)."""
        store = self._log.store
        last = None
        if upto:
            last = await store.entry(namespace, views.MESSAGE, upto)
            if last is None or last.session_id != source_id:
                raise checks.MessageNotFound(upto)
        copies: list[Entry] = []
        names: dict[str, str] = {}
        after = size_bytes = 0
        while True:
            found = await store.entries(namespace, views.MESSAGE, session_id=source_id, after=after, limit=_READ)
            for entry in found:
                if last is not None and entry.position > last.position:
                    return tuple(copies)
                size_bytes += len(entry.body)
                if size_bytes > _FORK_BYTES:
                    raise TooLarge("source_session_id", size_bytes, _FORK_BYTES)
                copy = self._copy(entry, session_id, (len(copies), names))
                names[entry.id] = copy.id
                copies.append(copy)
            if len(found) < _READ:
                return tuple(copies)
            after = found[-1].position

    def _copy(self, entry: Entry, session_id: str, place: tuple[int, Mapping[str, str]]) -> Entry:
        """Copy a message to a place in a session. What it names of the copies before it has new ids, given by old."""
        index, names = place
        message = Message.FromString(entry.body)
        message.id = self._house.ids.make("msg")
        # No run of this session said it.
        message.ClearField("run_id")
        position = views.position(0, index)
        if views.is_summary(entry):
            position = views.summary_position(0, index)
            message.summary_upto_message_id = names[message.summary_upto_message_id]
        return Entry(views.MESSAGE, message.id, session_id, "", position, message.SerializeToString())


def _shown(record: Record, version: int = 0) -> Session:
    session = Session.FromString(record.body)
    session.version = version or record.version
    return session
