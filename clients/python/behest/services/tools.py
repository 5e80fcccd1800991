"""Tools that the daemon knows, direct calls of them, and the records of calls that runs have made."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from behest.errors import broken_stream
from behest.services.ids import new_request_id
from behest.v1 import message_pb2, tool_call_service_pb2, tool_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from behest.calls import Calls
    from behest.v1 import tool_call_pb2, tool_pb2
    from behest.v1.tool_call_service_pb2_grpc import ToolCallServiceAsyncStub
    from behest.v1.tool_service_pb2_grpc import ToolServiceAsyncStub


class Tools:
    """Calls of ToolService. All raise BehestError."""

    def __init__(self, stub: ToolServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def get(self, name: str) -> tool_pb2.Tool:
        """Return a tool, with the policy in force."""
        return (await self._calls.unary(self._stub.GetTool, tool_service_pb2.GetToolRequest(tool_name=name))).tool

    def list(self, request: tool_service_pb2.ListToolsRequest | None = None) -> AsyncGenerator[tool_pb2.Tool, None]:
        """Yield the tools that a request asks for, ordered by name, page after page."""
        return self._calls.pages(
            self._stub.ListTools, request or tool_service_pb2.ListToolsRequest(), lambda page: page.tools
        )

    async def call(
        self,
        name: str,
        arguments_json: str = "{}",
        *,
        idempotency_key: str = "",
        on_progress: Callable[[tool_pb2.Progress], None] | None = None,
    ) -> message_pb2.ToolResult:
        """Call a tool outside of any run, and return its result, which may say that the tool failed.

        Sent once: to repeat it safely, give the same key again.
        """
        request = tool_service_pb2.CallToolRequest(
            tool_name=name, arguments_json=arguments_json, idempotency_key=idempotency_key or new_request_id()
        )
        chunks: list[bytes] = []
        async with aclosing(self._calls.stream(self._stub.CallTool(request))) as frames:
            async for frame in frames:
                chunks.append(frame.chunk)
                if frame.HasField("progress") and on_progress is not None:
                    on_progress(frame.progress)
                elif frame.HasField("result"):
                    return joined(frame.result, b"".join(chunks))
        raise broken_stream(f"the call of {name} ended without a result; its outcome is not known")


class ToolCalls:
    """Calls of ToolCallService. All raise BehestError."""

    def __init__(self, stub: ToolCallServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def get(self, call_id: str) -> tool_call_pb2.ToolCallRecord:
        """Return the record of a call."""
        request = tool_call_service_pb2.GetToolCallRequest(call_id=call_id)
        return (await self._calls.unary(self._stub.GetToolCall, request)).tool_call

    def list(
        self, request: tool_call_service_pb2.ListToolCallsRequest | None = None
    ) -> AsyncGenerator[tool_call_pb2.ToolCallRecord, None]:
        """Yield the records that a request asks for, newest first, page after page."""
        return self._calls.pages(
            self._stub.ListToolCalls,
            request or tool_call_service_pb2.ListToolCallsRequest(),
            lambda page: page.tool_calls,
        )

    async def resolve(
        self,
        call_id: str,
        executed: tool_pb2.Executed.ValueType,
        *,
        result: message_pb2.ToolResult | None = None,
        reason: str = "",
    ) -> tool_call_pb2.ToolCallRecord:
        """Settle a call whose outcome is unknown, and let its run go on. The same word again is no error."""
        request = tool_call_service_pb2.ResolveToolCallRequest(
            call_id=call_id, executed=executed, result=result, reason=reason
        )
        return (await self._calls.unary(self._stub.ResolveToolCall, request)).tool_call


def joined(result: message_pb2.ToolResult, content: bytes) -> message_pb2.ToolResult:
    """Return the result with the content that came in chunks put into its last part."""
    if not content:
        return result
    whole = message_pb2.ToolResult()
    whole.CopyFrom(result)
    last = whole.parts[-1] if whole.parts else whole.parts.add()
    match last.WhichOneof("kind"):
        case "json":
            last.json.json = content.decode()
        case "image":
            last.image.data = content
        case _:
            last.text.text = content.decode()
    return whole
