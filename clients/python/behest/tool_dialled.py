"""A tool server that is dialled: ToolService over gRPC.

Above: `tools`. Below: `tool_service`, of which each method here is the translation. Each checks the token first.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio

from behest import model_dialled
from behest.tool_calls import Refused
from behest.tool_context import Origin
from behest.tool_results import FRAME_BYTES
from behest.tool_service import Service
from behest.v1.tool_service_pb2 import (
    CallToolRequest,
    CancelCallRequest,
    CancelCallResponse,
    GetCallStatusRequest,
    GetCallStatusResponse,
    GetToolRequest,
    GetToolResponse,
    ListToolsRequest,
    ListToolsResponse,
)
from behest.v1.tool_service_pb2_grpc import ToolServiceServicer, add_ToolServiceServicer_to_server

OPTIONS = (
    # Else a second server starts silently on the same port.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", FRAME_BYTES),
    ("grpc.max_send_message_length", FRAME_BYTES),
)


async def listening(
    service: Service, address: str, *, token: str, credentials: grpc.ServerCredentials | None
) -> tuple[grpc.aio.Server, int]:
    """Serve at an address, and return the server and its port. Raises RuntimeError when it cannot be taken."""
    server = grpc.aio.server(options=OPTIONS)
    dialled = Dialled(service, token)
    add_ToolServiceServicer_to_server(dialled, server)
    if service.models.listed:
        model_dialled.add_to(server, service.models, dialled.authorize, _abort)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    return server, port


class Dialled(ToolServiceServicer):
    """The service as gRPC calls it."""

    def __init__(self, service: Service, token: str) -> None:
        self._service = service
        self._token = f"Bearer {token}".encode() if token else b""

    async def ListTools(self, request: ListToolsRequest, context: Any) -> ListToolsResponse:
        await self.authorize(context)
        try:
            return self._service.list_tools(request)
        except Refused as exc:
            await _abort(context, exc)

    async def GetTool(self, request: GetToolRequest, context: Any) -> GetToolResponse:
        await self.authorize(context)
        try:
            return self._service.get_tool(request)
        except Refused as exc:
            await _abort(context, exc)

    # A coroutine that writes is the other form of a streaming method, which the stubs do not know.
    async def CallTool(self, request: CallToolRequest, context: Any) -> None:  # type: ignore[override]
        await self.authorize(context)
        origin = Origin(_metadata(context, "traceparent"))
        try:
            async with aclosing(self._service.frames(self._service.call_tool(request, origin))) as frames:
                async for frame in frames:
                    if frame.WhichOneof("frame") is not None:
                        await context.write(frame)
        except Refused as exc:
            await _abort(context, exc)

    async def GetCallStatus(self, request: GetCallStatusRequest, context: Any) -> GetCallStatusResponse:
        await self.authorize(context)
        try:
            return await self._service.get_call_status(request)
        except Refused as exc:
            await _abort(context, exc)

    async def CancelCall(self, request: CancelCallRequest, context: Any) -> CancelCallResponse:
        await self.authorize(context)
        return self._service.cancel_call(request)

    async def authorize(self, context: Any) -> None:
        """Abort a call that does not bring the token."""
        given = _metadata(context, "authorization").encode()
        if self._token and not hmac.compare_digest(given, self._token):
            await _abort(context, Refused("UNAUTHENTICATED", "AUTH_REQUIRED", "the bearer token is missing or wrong"))


def _metadata(context: Any, name: str) -> str:
    return str(dict(context.invocation_metadata() or ()).get(name, ""))


async def _abort(context: Any, refused: Refused) -> NoReturn:
    status = refused.status()
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
    if refused.is_proof:
        trailers.append(("behest-not-executed", "1"))
    code = grpc.StatusCode[refused.code]
    abort: Awaitable[NoReturn] = context.abort(code, refused.message, tuple(trailers))
    await abort
    raise AssertionError("abort returned")
