"""ToolCallService: the records of the calls that runs made, and the word that settles one in doubt.

Above: the edge. Below: the entries that are written with each commit of a run, and the supervisor. A page is read run
by run, newest first, and step by step within a run, so that its cost follows its length and not that of the history.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from behest.v1 import tool_call_service_pb2 as pb
from behest.v1.event_pb2 import Event
from behest.v1.tool_call_pb2 import ToolCallRecord, ToolCallState
from behest.v1.tool_event_pb2 import ToolResolved
from behest.v1.tool_pb2 import Executed
from behestd.core.signals import Resolution
from behestd.core.state import Run
from behestd.errors import InvalidRequest, NotFound, WrongState
from behestd.log import frames, views
from behestd.log.store import RunQuery, RunRow, Store
from behestd.runtime.supervisor import Supervisor
from behestd.service.call import Call
from behestd.service.chat_checks import MAX_PARTS, check_part
from behestd.service.methods import Handler
from behestd.service.pages import Page, page_of
from behestd.service.settings import MIB
from behestd.service.validate import identifier, known, max_bytes, max_items, one_of

_NAME = "/behest.v1.ToolCallService/"
_PAGE_BYTES = 3 * MIB
_MAX_SCANNED = 5_000
"""Most runs and calls looked at for one page; a page whose filters few pass is shorter, and has a token."""
_RUNS_AT_ONCE = 100
_CALLS_AT_ONCE = 64
_CHUNK_BYTES = MIB
_MAX_REASON_BYTES = 1024
_LAST_STEP = (1 << 20) - 1
_SETTLED_REASONS = frozenset({"TOOL_CALL_RESOLVED", "TOOL_CALL_NOT_FOUND", "RUN_ENDING"})
"""What a run says to a word that comes too late."""
_SAID_BY_TOOLS = frozenset({"text", "json", "image", "audio", "file"})

Place = tuple[int, str, int, int]
"""(create time of the run, run, step, index): where a call stands in the list."""


class ToolCallNotFound(NotFound):
    """Raised when there is no such call."""

    def __init__(self, call_id: str) -> None:
        super().__init__("TOOL_CALL_NOT_FOUND", f"tool call {call_id} not found", callId=call_id)


class ToolCallResolved(WrongState):
    """Raised when the outcome of a call is not unknown, or was settled otherwise."""

    def __init__(self, call_id: str) -> None:
        super().__init__("TOOL_CALL_RESOLVED", f"tool call {call_id} has its outcome", callId=call_id)


class ToolCalls:
    """Handlers of ToolCallService."""

    def __init__(self, store: Store, supervisor: Supervisor) -> None:
        self._store = store
        self._supervisor = supervisor

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "ListToolCalls": self.list_tool_calls,
            _NAME + "GetToolCall": self.get_tool_call,
            _NAME + "ResolveToolCall": self.resolve_tool_call,
        }

    async def get_tool_call(self, request: pb.GetToolCallRequest, call: Call) -> pb.GetToolCallResponse:
        """Get the record of a call."""
        identifier("call_id", request.call_id)
        return pb.GetToolCallResponse(tool_call=await self._record(call.namespace, request.call_id))

    async def _record(self, namespace: str, call_id: str) -> ToolCallRecord:
        entry = await self._store.entry(namespace, views.CALL, call_id)
        if entry is None:
            raise ToolCallNotFound(call_id)
        return ToolCallRecord.FromString(entry.body)

    # --- list ---

    async def list_tool_calls(self, request: pb.ListToolCallsRequest, call: Call) -> pb.ListToolCallsResponse:
        """List calls, newest first, those of one message in its order."""
        page = page_of(request, call.namespace, (int, str, int, int))
        _check_filters(request)
        last = _place_of(page)
        response = pb.ListToolCallsResponse()
        size_bytes = scanned = 0
        async with aclosing(self._walk(call.namespace, request, last)) as found:
            async for place, record in found:
                scanned += 1
                is_due = record is not None and _passes(record, request)
                size_bytes += record.ByteSize() if record is not None and is_due else 0
                is_full = len(response.tool_calls) == page.size or (response.tool_calls and size_bytes > _PAGE_BYTES)
                if last is not None and ((is_due and is_full) or scanned > _MAX_SCANNED):
                    response.next_page_token = page.token(*last)
                    break
                if record is not None and is_due:
                    response.tool_calls.append(record)
                last = place
        return response

    async def _walk(
        self, namespace: str, request: pb.ListToolCallsRequest, after: Place | None
    ) -> AsyncGenerator[tuple[Place, ToolCallRecord | None], None]:
        """Yield each call of the runs that match, with its place, and a place without a call after each run."""
        async with aclosing(self._runs(namespace, request, after)) as rows:
            async for row in rows:
                resumes = after is not None and after[1] == row.run_id
                step, index = after[2:] if after is not None and resumes else (_LAST_STEP, 0)
                async with aclosing(self._calls(row, step, index)) as calls:
                    async for record in calls:
                        yield (row.create_time_ns, row.run_id, record.step, record.index), record
                yield (row.create_time_ns, row.run_id, 0, 0), None

    async def _runs(
        self, namespace: str, request: pb.ListToolCallsRequest, after: Place | None
    ) -> AsyncGenerator[RunRow, None]:
        """Yield the runs whose calls may be listed, newest first, from that of `after` on."""
        run_id = await self._only_run(namespace, request)
        before: tuple[int, str] | None = None
        if run_id is not None or after is not None:
            row = await self._store.run(namespace, after[1] if after is not None else run_id or "")
            if row is not None and request.session_id in ("", row.session_id) and run_id in (None, row.run_id):
                yield row
            if run_id is not None or after is None:
                return
            before = after[:2]
        while True:
            query = RunQuery(namespace, _RUNS_AT_ONCE, session_id=request.session_id, before=before)
            rows = await self._store.runs(query)
            for row in rows:
                yield row
            if len(rows) < _RUNS_AT_ONCE:
                return
            before = (rows[-1].create_time_ns, rows[-1].run_id)

    async def _only_run(self, namespace: str, request: pb.ListToolCallsRequest) -> str | None:
        """The one run that the filters leave, None when they leave many. Empty: they leave none."""
        if not request.message_id:
            return request.run_id or None
        message = await self._store.entry(namespace, views.MESSAGE, request.message_id)
        if message is None or request.run_id not in ("", message.run_id):
            return ""
        return message.run_id

    async def _calls(self, row: RunRow, step: int, index: int) -> AsyncGenerator[ToolCallRecord, None]:
        """Yield the calls of a run after a place: the rest of its step, then the earlier steps, latest first."""
        place = views.call_position(row.session_index, step, index)
        while row.session_index and step:
            entries = await self._store.entries(
                row.namespace, views.CALL, run_id=row.run_id, after=place, limit=_CALLS_AT_ONCE
            )
            records = [ToolCallRecord.FromString(entry.body) for entry in entries]
            due = [record for record in records if record.step == step]
            for record in due:
                yield record
            if len(due) == _CALLS_AT_ONCE:
                place = entries[-1].position
                continue
            first = views.call_position(row.session_index, step, 0)
            earlier = await self._store.last_entries(row.namespace, views.CALL, row.session_id, first, 1)
            if not earlier or earlier[0].run_id != row.run_id:
                return
            step = ToolCallRecord.FromString(earlier[0].body).step
            place = views.call_position(row.session_index, step, 0) - 1

    # --- resolve ---

    async def resolve_tool_call(self, request: pb.ResolveToolCallRequest, call: Call) -> pb.ResolveToolCallResponse:
        """Settle a call whose outcome is unknown."""
        _check_word(request)
        result = request.result if request.HasField("result") else None
        word = Resolution(request.call_id, call.caller.principal, request.executed, result, request.reason)
        record = await self._record(call.namespace, request.call_id)
        await self._settle(call.namespace, record.run_id, word)
        return pb.ResolveToolCallResponse(tool_call=await self._record(call.namespace, request.call_id))

    async def _settle(self, namespace: str, run_id: str, word: Resolution) -> None:
        """Have the word committed. Raises ToolCallResolved, unless the call was settled by the very same word."""
        after: object = None
        try:
            after = await self._supervisor.command(namespace, run_id, word)
        except (NotFound, WrongState) as error:
            if error.reason not in _SETTLED_REASONS:
                raise
        is_committed = isinstance(after, Run) and not after.is_ended
        if not is_committed and not await self._was_said(namespace, run_id, word):
            raise ToolCallResolved(word.call_id)

    async def _was_said(self, namespace: str, run_id: str, word: Resolution) -> bool:
        after = 0
        while chunks := await self._store.chunks(namespace, run_id, after, _CHUNK_BYTES):
            for data in (event for chunk in chunks for event in frames.split(chunk.data)):
                event = Event.FromString(data)
                if event.HasField("tool_resolved") and _is_same(event.tool_resolved, word):
                    return True
            after = chunks[-1].last_sequence
        return False


def _place_of(page: Page) -> Place | None:
    if page.after is None:
        return None
    create_time_ns, run_id, step, index = page.after
    return int(create_time_ns), str(run_id), int(step), int(index)


def _check_filters(request: pb.ListToolCallsRequest) -> None:
    for field in ("session_id", "run_id", "message_id", "tool_name"):
        if getattr(request, field):
            identifier(field, getattr(request, field))
    for index, state in enumerate(request.states):
        known(f"states[{index}]", state, ToolCallState.DESCRIPTOR)


def _passes(record: ToolCallRecord, request: pb.ListToolCallsRequest) -> bool:
    return (
        request.message_id in ("", record.message_id)
        and request.tool_name in ("", record.tool_name)
        and (not request.states or record.state in request.states)
    )


def _check_word(request: pb.ResolveToolCallRequest) -> None:
    identifier("call_id", request.call_id)
    known("executed", request.executed, Executed.DESCRIPTOR)
    max_bytes("reason", request.reason, _MAX_REASON_BYTES)
    max_items("result.parts", request.result.parts, MAX_PARTS)
    for index, part in enumerate(request.result.parts):
        if one_of(part, "kind", f"result.parts[{index}]") not in _SAID_BY_TOOLS:
            raise InvalidRequest(f"result.parts[{index}]", "is no part of a result")
        check_part(f"result.parts[{index}]", part)


def _is_same(said: ToolResolved, word: Resolution) -> bool:
    """Whether an event holds a word. Where the word gave no result, the one in the event is the runtime's."""
    if (said.call_id, said.by, said.executed) != (word.call_id, word.by, word.executed):
        return False
    if word.result is None:
        return not said.HasField("result") or said.result.is_error
    return said.result.is_error == word.result.is_error and list(said.result.parts) == list(word.result.parts)
