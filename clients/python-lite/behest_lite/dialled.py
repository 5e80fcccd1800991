"""ToolService over grpclib: what a daemon that dials this server calls.

Above: `tools`. Below: `calls`. Every method checks the token first; every refusal carries a reason, and proof
if there is any.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import Any

from grpclib.const import Cardinality, Handler, Status
from grpclib.server import Stream

from behest_lite.calls import Calls, Refused
from behest_lite.contract.behest.v1 import (
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
    Tool,
)
from behest_lite.errors import DOMAIN, ErrorInfo

_SERVICE = "/behest.v1.ToolService/"


class Dialled:
    """The service."""

    def __init__(self, tools: Callable[[], list[Tool]], calls: Calls, token: str) -> None:
        self._tools = tools
        self._calls = calls
        self._token = f"Bearer {token}" if token else ""

    def __mapping__(self) -> dict[str, Handler]:
        """Return the handlers by path, as grpclib asks for them."""
        unary = Cardinality.UNARY_UNARY
        return {
            _SERVICE + "ListTools": Handler(
                self._answering(self._list_tools), unary, ListToolsRequest, ListToolsResponse
            ),
            _SERVICE + "GetTool": Handler(self._answering(self._get_tool), unary, GetToolRequest, GetToolResponse),
            _SERVICE + "CallTool": Handler(
                self._call_tool, Cardinality.UNARY_STREAM, CallToolRequest, CallToolResponse
            ),
            _SERVICE + "GetCallStatus": Handler(
                self._answering(self._calls.status), unary, GetCallStatusRequest, GetCallStatusResponse
            ),
            _SERVICE + "CancelCall": Handler(
                self._answering(self._cancel_call), unary, CancelCallRequest, CancelCallResponse
            ),
        }

    def _answering(self, method: Callable[[Any], Awaitable[Any]]) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
        """Make a handler of a method that takes a request, and returns a response or raises Refused."""

        async def handler(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            try:
                self._check_token(stream)
                await stream.send_message(await method(request))
            except Refused as exc:
                await _refuse(stream, exc)

        return handler

    async def _list_tools(self, request: ListToolsRequest) -> ListToolsResponse:
        if request.page_size < 0:
            text = f"page_size {request.page_size} is negative"
            raise Refused(Status.INVALID_ARGUMENT, "REQUEST_INVALID", text)
        size = min(request.page_size or 50, 1_000)
        tools = [tool for tool in self._tools() if tool.name > request.page_token]
        if request.name_glob:
            tools = [tool for tool in tools if fnmatchcase(tool.name, request.name_glob)]
        more = tools[size - 1].name if len(tools) > size else ""
        return ListToolsResponse(tools=tools[:size], next_page_token=more)

    async def _get_tool(self, request: GetToolRequest) -> GetToolResponse:
        return GetToolResponse(tool=self._calls.find(request.tool_name).tool)

    async def _cancel_call(self, request: CancelCallRequest) -> CancelCallResponse:
        return CancelCallResponse(acknowledged=self._calls.cancel(request.idempotency_key, request.epoch))

    async def _call_tool(self, stream: Stream[CallToolRequest, CallToolResponse]) -> None:
        request = await stream.recv_message()
        assert request is not None
        try:
            self._check_token(stream)
            call = self._calls.begin(request)
            try:
                async with aclosing(call.frames()) as frames:
                    async for frame in frames:
                        if frame == CallToolResponse():
                            continue
                        await stream.send_message(frame)
            finally:
                # A call without a key belongs to its stream.
                if not request.idempotency_key and call.outcome is None:
                    call.cancel()
        except Refused as exc:
            await _refuse(stream, exc)

    def _check_token(self, stream: Stream[Any, Any]) -> None:
        told = "" if stream.metadata is None else str(stream.metadata.get("authorization", ""))
        if self._token and not hmac.compare_digest(told.encode(), self._token.encode()):
            raise Refused(Status.UNAUTHENTICATED, "AUTH_REQUIRED", "the bearer token is missing or wrong")


async def _refuse(stream: Stream[Any, Any], refused: Refused) -> None:
    await stream.send_trailing_metadata(
        status=refused.status,
        status_message=refused.message,
        status_details=ErrorInfo(reason=refused.reason, domain=DOMAIN),
        metadata={"behest-not-executed": "1"} if refused.is_proof else None,
    )
