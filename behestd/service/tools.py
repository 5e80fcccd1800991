"""ToolService: the tools of a namespace, and direct calls of them. Above: the edge. Below: `runtime.direct_calls`.

Remote tool servers implement the same contract, so a daemon can be the tool server of another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import aclosing
from fnmatch import fnmatchcase

from behest.v1 import tool_service_pb2 as pb
from behest.v1.message_pb2 import Part, ToolResult
from behest.v1.tool_pb2 import Tool
from behestd.errors import BehestError, Exhausted, ToolNotFound
from behestd.runtime.direct_call import DirectCall
from behestd.runtime.direct_calls import DirectCalls
from behestd.runtime.direct_journal import cut
from behestd.runtime.house import House
from behestd.service.call import Call
from behestd.service.methods import Handler
from behestd.service.pages import page_of
from behestd.service.settings import MIB, Settings
from behestd.service.validate import duration, identifier, max_bytes, not_negative, request_id, required
from behestd.tools.json_text import MAX_BYTES
from behestd.tools.tool import Answer, Done, NeverSeen, Running, Status

CHUNK_BYTES = MIB
PAGE_BYTES = 3 * MIB
"""A page of a list ends once it has so many bytes."""
MAX_WAIT_SECONDS = 30.0
_NAME = "/behest.v1.ToolService/"
_MAX_GLOB_BYTES = 256
_MAX_ID_BYTES = 128
_CONTENT = {"text": "text", "json": "json", "image": "data"}
"""The field that holds the content, by kind of part; the others have none that could be cut into chunks."""


class Tools:
    """Handlers of ToolService."""

    def __init__(self, house: House, calls: DirectCalls, settings: Settings) -> None:
        self._house = house
        self._calls = calls
        self._settings = settings

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "ListTools": self.list_tools,
            _NAME + "GetTool": self.get_tool,
            _NAME + "CallTool": self.call_tool,
            _NAME + "GetCallStatus": self.get_call_status,
            _NAME + "CancelCall": self.cancel_call,
        }

    async def list_tools(self, request: pb.ListToolsRequest, call: Call) -> pb.ListToolsResponse:
        """List tools by name."""
        page = page_of(request, call.namespace, (str,))
        max_bytes("name_glob", request.name_glob, _MAX_GLOB_BYTES)
        after = str(page.after[0]) if page.after else ""
        response = pb.ListToolsResponse()
        size_bytes = 0
        for tool in self._matching(request, call.namespace, after):
            size_bytes += tool.ByteSize()
            if len(response.tools) == page.size or (response.tools and size_bytes > PAGE_BYTES):
                response.next_page_token = page.token(response.tools[-1].name)
                break
            response.tools.append(tool)
        return response

    def _matching(self, request: pb.ListToolsRequest, namespace: str, after: str) -> Iterator[Tool]:
        for name, offers in self._house.tools.snapshot(namespace).offers.items():
            of_server = not request.server_id or any(offer.tool.server_id == request.server_id for offer in offers)
            if name > after and of_server and fnmatchcase(name, request.name_glob or "*"):
                yield self._house.tools.snapshot(namespace).tools[name]

    async def get_tool(self, request: pb.GetToolRequest, call: Call) -> pb.GetToolResponse:
        """Get a tool with the policy in force."""
        identifier("tool_name", request.tool_name)
        tool = self._house.tools.snapshot(call.namespace).tools.get(request.tool_name)
        if tool is None:
            raise ToolNotFound(request.tool_name)
        return pb.GetToolResponse(tool=tool)

    async def call_tool(self, request: pb.CallToolRequest, call: Call) -> None:
        """Call a tool: progress as it comes, then the result."""
        _check_call(request)
        async with (
            self._calls.following(call.namespace, request, call.traceparent) as running,
            aclosing(running.progress()) as shown,
        ):
            async for progress in shown:
                await call.send(pb.CallToolResponse(progress=progress))
        for frame in self._frames(request, running):
            await call.send(frame)

    def _frames(self, request: pb.CallToolRequest, running: DirectCall) -> Iterator[pb.CallToolResponse]:
        """Yield the result, in chunks when it is large. Raises what the call failed with."""
        if isinstance(running.outcome, BehestError):
            raise running.outcome
        assert running.outcome is not None
        result = _result(request, running.outcome)
        content = _content(result) if result.ByteSize() > CHUNK_BYTES else b""
        if result.ByteSize() - len(content) > self._settings.response_bytes - CHUNK_BYTES:
            limit_bytes = self._settings.response_bytes
            text = f"the result of {result.ByteSize()} bytes cannot be cut into frames of {limit_bytes} bytes"
            raise Exhausted("TOOL_RESULT_TOO_LARGE", text, tool=request.tool_name, limitBytes=limit_bytes)
        for start in range(0, len(content), CHUNK_BYTES):
            yield pb.CallToolResponse(chunk=content[start : start + CHUNK_BYTES])
        yield pb.CallToolResponse(result=_emptied(result) if content else result)

    async def get_call_status(self, request: pb.GetCallStatusRequest, call: Call) -> pb.GetCallStatusResponse:
        """Tell what became of a call."""
        required("idempotency_key", request.idempotency_key)
        request_id("idempotency_key", request.idempotency_key)
        not_negative("attempt", request.attempt)
        wait_seconds = min(duration("wait", request.wait), MAX_WAIT_SECONDS)
        key, attempt = request.idempotency_key, request.attempt
        status = await self._calls.status(call.namespace, key, request.epoch, wait_seconds, attempt=attempt)
        return _told(status)

    async def cancel_call(self, request: pb.CancelCallRequest, call: Call) -> pb.CancelCallResponse:
        """Ask that a call be stopped."""
        required("idempotency_key", request.idempotency_key)
        request_id("idempotency_key", request.idempotency_key)
        acknowledged = await self._calls.cancel(call.namespace, request.idempotency_key, request.epoch)
        return pb.CancelCallResponse(acknowledged=acknowledged)


def _check_call(request: pb.CallToolRequest) -> None:
    identifier("tool_name", request.tool_name)
    max_bytes("arguments_json", request.arguments_json, MAX_BYTES)
    request_id("idempotency_key", request.idempotency_key)
    not_negative("attempt", request.attempt)
    for field in ("call_id", "run_id", "session_id"):
        max_bytes(field, getattr(request, field), _MAX_ID_BYTES)


def _result(request: pb.CallToolRequest, answer: Answer) -> ToolResult:
    return answer.result(request.call_id, request.tool_name)


def _content(result: ToolResult) -> bytes:
    """The content of the last part as bytes, empty when it has none that could be cut."""
    last = result.parts[-1] if result.parts else Part()
    kind = last.WhichOneof("kind") or ""
    if kind not in _CONTENT:
        return b""
    content = getattr(getattr(last, kind), _CONTENT[kind])
    return content if isinstance(content, bytes) else content.encode()


def _emptied(result: ToolResult) -> ToolResult:
    """The result with its last part empty but for its kind."""
    rest = ToolResult()
    rest.CopyFrom(result)
    last = rest.parts[-1]
    kind = last.WhichOneof("kind") or ""
    setattr(getattr(last, kind), _CONTENT[kind], b"" if kind == "image" else "")
    return rest


def _told(status: Status) -> pb.GetCallStatusResponse:
    match status:
        case Running():
            return pb.GetCallStatusResponse(state=pb.CALL_STATE_RUNNING)
        case NeverSeen():
            return pb.GetCallStatusResponse(state=pb.CALL_STATE_NEVER_SEEN)
        case Done(answer, call_id, name):
            result = cut(answer.result(call_id, name))
            return pb.GetCallStatusResponse(state=pb.CALL_STATE_DONE, result=result)
        case _:
            return pb.GetCallStatusResponse()
