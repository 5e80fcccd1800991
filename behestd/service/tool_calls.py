"""ToolCallService: the records of the calls that runs made, and the word that settles one in doubt.

Above: the edge. Below: the entries that are written with each commit of a run, and the supervisor. A page is read run by
run, newest first, and step by step within a run, so that its cost follows its length and not that of the history.
"""

from __future__ import annotations

from collections.abc import Mapping

from behest.v1 import tool_call_service_pb2 as pb
from behest.v1.tool_call_pb2 import ToolCallRecord
from behestd.errors import NotFound, WrongState
from behestd.log import views
from behestd.log.store import Store
from behestd.runtime.supervisor import Supervisor
from behestd.service.call import Call
from behestd.service.methods import Handler
from behestd.service.pages import page_of
from behestd.service.settings import MIB
from behestd.service.validate import identifier

_NAME = "/behest.v1.ToolCallService/"
_PAGE_BYTES = 3 * MIB
_MAX_SCANNED_RUNS = 500
_MAX_SCANNED_CALLS = 5_000
"""Most runs and calls looked at for one page; a page of filters that few pass is shorter, and has a token."""
_RUNS_AT_ONCE = 100
_CALLS_AT_ONCE = 64
_CHUNK_BYTES = MIB
_MAX_REASON_BYTES = 1024

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
        response = pb.ListToolCallsResponse()
        size_bytes = scanned = 0
        runs = _Runs(self._store, call.namespace, request)
        async for row, step, index in runs.places(page):
            scanned += 1
            async for place, record in self._calls(row, step, index):
                scanned += 1
                size_bytes += record.ByteSize()
                is_full = len(response.tool_calls) == page.size or size_bytes > _PAGE_BYTES
                if (is_full and response.tool_calls) or scanned > _MAX_SCANNED_CALLS:
                    response.next_page_token = page.token(*_before(place))
                    return response
                if _passes(record, request):
                    response.tool_calls.append(record)
                else:
                    size_bytes -= record.ByteSize()
        if runs.last is not None:
            response.next_page_token = page.token(*runs.last)
        return response
