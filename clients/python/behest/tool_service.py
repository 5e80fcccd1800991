"""ToolService without a transport: what a tool server answers, whoever brings the question.

Above: `tool_dialled`, which serves it over gRPC, and `tool_link`, which serves it over the stream of an attached
server: both modes have one way of finding, checking, executing and remembering. Below: `tool_calls`. Every refusal is
a Refused, with a reason, and with proof if there is any.
"""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from behest.dedupe import State
from behest.model_service import Models
from behest.tool_calls import Refused, Running
from behest.tool_results import FRAME_BYTES, cut, frames_of
from behest.v1.message_pb2 import ToolResult
from behest.v1.tool_service_pb2 import (
    CallState,
    CallToolRequest,
    CallToolResponse,
    CancelCallRequest,
    CancelCallResponse,
    GetCallStatusRequest,
    GetCallStatusResponse,
    GetToolRequest,
    GetToolResponse,
    ListToolsRequest,
    ListToolsResponse,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from behest.tool_calls import Calls
    from behest.tool_context import Origin
    from behest.tool_functions import Function
    from behest.v1.tool_pb2 import Tool

STATUS_WAIT_SECONDS = 30.0


class Service:
    """The answers of one server, over its functions and its calls."""

    def __init__(self, functions: Mapping[str, Function], calls: Calls) -> None:
        self.calls = calls
        self.models = Models()
        """What it serves beside tools."""
        self._functions = functions

    @property
    def tools(self) -> list[Tool]:
        """The tools, by ascending name."""
        return [self._functions[name].tool for name in sorted(self._functions)]

    def list_tools(self, request: ListToolsRequest) -> ListToolsResponse:
        """Return a page of the tools, by ascending name. Raises Refused."""
        if request.page_size < 0:
            raise Refused("INVALID_ARGUMENT", "REQUEST_INVALID", f"page_size {request.page_size} is negative")
        size = min(request.page_size or 50, 1_000)
        names = [name for name in sorted(self._functions) if name > request.page_token]
        if request.name_glob:
            names = [name for name in names if fnmatchcase(name, request.name_glob)]
        more = names[size - 1] if len(names) > size else ""
        return ListToolsResponse(tools=[self._functions[name].tool for name in names[:size]], next_page_token=more)

    def get_tool(self, request: GetToolRequest) -> GetToolResponse:
        """Return one tool. Raises Refused."""
        function = self._functions.get(request.tool_name)
        if function is None:
            raise _not_found(request.tool_name)
        return GetToolResponse(tool=function.tool)

    def call_tool(self, request: CallToolRequest, origin: Origin) -> Running:
        """Begin a call, or join the one that has its key. Raises Refused."""
        return self.calls.join(request, self._find, origin)

    async def frames(
        self, running: Running, *, frame_bytes: int = FRAME_BYTES
    ) -> AsyncGenerator[CallToolResponse, None]:
        """Yield the answer to a call: an empty frame once it is being executed, progress, then its result in frames.

        Raises Refused. A call without a key is cancelled when the caller leaves before its end.
        """
        position, is_told = 0, False
        try:
            while True:
                position, shown = running.since(position)
                has_begun = running.has_begun and not is_told
                if has_begun:
                    is_told = True
                    yield CallToolResponse()
                for progress in shown:
                    yield CallToolResponse(progress=progress)
                if has_begun or shown:
                    # Others came while these were sent.
                    continue
                if running.outcome is not None:
                    break
                await running.change()
        finally:
            if not running.key and running.outcome is None:
                running.cancel()
        if isinstance(running.outcome, Refused):
            raise running.outcome
        for frame in frames_of(running.outcome, frame_bytes):
            yield frame

    async def get_call_status(self, request: GetCallStatusRequest) -> GetCallStatusResponse:
        """Tell what became of a key. Raises Refused."""
        wait_seconds = min(request.wait.seconds + request.wait.nanos / 1e9, STATUS_WAIT_SECONDS)
        found = await self.calls.status(request.idempotency_key, request.epoch, wait_seconds, request.attempt)
        if found is None:
            text = "this server forgets its calls when it stops, and does not know this one"
            raise Refused("UNIMPLEMENTED", "REQUEST_UNSUPPORTED", text, is_proof=False)
        if isinstance(found, Running):
            return GetCallStatusResponse(state=CallState.CALL_STATE_RUNNING)
        if found.state is State.BURIED:
            return GetCallStatusResponse(state=CallState.CALL_STATE_NEVER_SEEN)
        if found.state is State.RUNNING:
            text = "the server stopped while the call ran; whether it took effect is not known"
            raise Refused("ABORTED", "TOOL_OUTCOME_UNKNOWN", text, is_proof=False)
        result = cut(ToolResult.FromString(found.result))
        return GetCallStatusResponse(state=CallState.CALL_STATE_DONE, result=result)

    def cancel_call(self, request: CancelCallRequest) -> CancelCallResponse:
        """Stop the call of a key, if it runs."""
        acknowledged = self.calls.cancel_key(request.idempotency_key, request.epoch)
        return CancelCallResponse(acknowledged=acknowledged)

    def _find(self, request: CallToolRequest) -> Function:
        """Find the function of a request that may begin now. Raises Refused, with proof."""
        function = self._functions.get(request.tool_name)
        if function is None:
            raise _not_found(request.tool_name)
        if request.tool_hash and request.tool_hash != function.tool.hash:
            text = f"tool {request.tool_name} is not what the caller pinned"
            raise Refused("FAILED_PRECONDITION", "TOOL_CHANGED", text)
        if request.HasField("start_by") and request.start_by.ToNanoseconds() < time.time_ns():
            raise Refused("FAILED_PRECONDITION", "TOOL_START_EXPIRED", "the time to begin is over")
        return function


def _not_found(name: str) -> Refused:
    return Refused("NOT_FOUND", "TOOL_NOT_FOUND", f"tool {name[:64]} not found")
