"""Tools of a dialled server, over gRPC: the channel, and the frames of calls as it carries them.

Above it `remote_tool`, which makes attempts; below it `remote_channel` and `remote_errors`. The key, the attempt and
the epoch travel in the request and in the metadata. Answers are bytes until they are checked: garbage and text that is
no UTF-8 are the server's doing, after it has executed the call. Abandoning a call breaks its stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed, Tool
from behest.v1.tool_service_pb2 import (
    CallToolRequest,
    CallToolResponse,
    CancelCallRequest,
    CancelCallResponse,
    GetCallStatusRequest,
    GetCallStatusResponse,
    ListToolsRequest,
    ListToolsResponse,
)
from behestd.tools import remote_errors
from behestd.tools.remote_tool import UNARY_SECONDS, Counters, Frame, RemoteTool, Statistics
from behestd.tools.schema import Validators
from behestd.tools.tool import Timeouts, ToolFailure
from behestd.wire.endpoint import EndpointRefused
from behestd.wire.remote_channel import Line, Link, NotReached
from behestd.wire.remote_status import is_cancelled

MAX_PAGES = 40
_BACKSTOP_SECONDS = 2.0
"""How much later than ours the transport's own deadline is."""
_END_SECONDS = 0.2
_SERVICE = "/behest.v1.ToolService/"

_Answer = TypeVar("_Answer", bound=Message)

Keep = Callable[[Coroutine[None, None, None]], bool]
"""Keeps work going that nobody may wait for any more: whether it does. It gives up what it keeps when it ends."""


def keep_nothing(work: Coroutine[None, None, None]) -> bool:
    """Keep nothing going."""
    work.close()
    return False


class RemoteServer:
    """One dialled server: its channel, and what all its tools have in common. See `remote_tool.Server`."""

    def __init__(self, link: Link, validators: Validators, keep: Keep = keep_nothing) -> None:
        """`keep` keeps reads of answers going whose attempts are over."""
        self.link = link
        self.keep = keep
        self.validators = validators
        self.counters = Counters()
        self.line = Line(link)
        """The connection, shared by all that the server offers."""

    async def list_tools(self, connect_seconds: float = UNARY_SECONDS) -> list[Tool]:
        """List what the server offers, at most 40 pages. Raises ToolFailure, and EndpointRefused for its addresses."""
        try:
            await self.line.connect(connect_seconds)
        except NotReached as exc:
            raise remote_errors.not_sent("TOOL_UNAVAILABLE", str(exc)) from exc
        tools: list[Tool] = []
        token = ""
        for _ in range(MAX_PAGES):
            request = ListToolsRequest(page_size=1_000, page_token=token)
            page = await self.unary("ListTools", request, ListToolsResponse)
            tools.extend(page.tools)
            token = page.next_page_token
            if not token:
                return tools
        raise ToolFailure(
            FailureClass.FAILURE_CLASS_LIMIT,
            Executed.EXECUTED_NO,
            "TOOL_RESULT_TOO_LARGE",
            f"the server lists more than {MAX_PAGES} pages of tools",
        )

    def bind(self, tool: Tool) -> RemoteTool:
        """Make the executor of a tool, given as the server knows it; what `Catalog.register_server` asks for."""
        return RemoteTool(self, tool)

    async def unary(
        self,
        method: str,
        request: Message,
        response: type[_Answer],
        timeout_seconds: float = UNARY_SECONDS,
    ) -> _Answer:
        """Call a unary method and read its answer. Raises ToolFailure."""
        ask: grpc.aio.UnaryUnaryMultiCallable[Message, bytes] = self._channel().unary_unary(
            _SERVICE + method, request_serializer=_bytes_of
        )
        try:
            data = await ask(request, timeout=timeout_seconds, metadata=self.metadata(()))
            return response.FromString(data)
        except grpc.aio.AioRpcError as exc:
            raise self.failure(exc) from exc
        except asyncio.CancelledError as exc:
            if is_cancelled():
                raise
            raise remote_errors.ambiguous("TOOL_UNAVAILABLE", "the connection to the server was closed") from exc
        except DecodeError as exc:
            raise remote_errors.unusable("TOOL_RESULT_INVALID", f"the answer to {method} cannot be read") from exc

    async def ask_status(self, request: GetCallStatusRequest, timeout_seconds: float) -> GetCallStatusResponse:
        """Ask what became of a call. Raises ToolFailure."""
        await self.connect(Timeouts())
        return await self.unary("GetCallStatus", request, GetCallStatusResponse, timeout_seconds)

    async def ask_cancel(self, key: str, epoch: int, timeout_seconds: float) -> bool:
        """Ask that a call be stopped: whether the server acknowledged. Raises ToolFailure."""
        request = CancelCallRequest(idempotency_key=key, epoch=epoch)
        return (await self.unary("CancelCall", request, CancelCallResponse, timeout_seconds)).acknowledged

    def stream(self, request: CallToolRequest, traceparent: str, timeout_seconds: float) -> RemoteStream:
        """Send a call. Raises ToolFailure, NOT_SENT, when the secret cannot be had."""
        own = (
            ("behest-idempotency-key", request.idempotency_key),
            ("behest-attempt", str(request.attempt)),
            ("behest-epoch", str(request.epoch)),
            ("traceparent", traceparent),
        )
        limit_seconds = timeout_seconds + _BACKSTOP_SECONDS
        call: grpc.aio.UnaryStreamMultiCallable[CallToolRequest, bytes] = self._channel().unary_stream(
            _SERVICE + "CallTool", request_serializer=_bytes_of
        )
        return RemoteStream(self, call(request, timeout=limit_seconds, metadata=self.metadata(own)))

    def resume(self, request: CallToolRequest, traceparent: str, line_name: str) -> RemoteStream:
        """Refuse: a dialled server is asked by its status instead."""
        raise remote_errors.ambiguous("TOOL_UNAVAILABLE", "the call was sent by an earlier daemon")

    def metadata(self, own: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """Join what a call says with who we are. Raises ToolFailure, NOT_SENT, when the secret cannot be had."""
        try:
            return self.line.metadata(own)
        except NotReached as exc:
            raise remote_errors.not_sent("TOOL_UNAVAILABLE", str(exc)) from exc

    async def connect(self, limits: Timeouts) -> None:
        """Wait for a connection. Raises ToolFailure, NOT_SENT."""
        try:
            await self.line.connect(min(limits.connect_seconds, limits.start_to_close_seconds))
        except EndpointRefused as exc:
            raise remote_errors.refused(exc.reason, exc.message) from exc
        except NotReached as exc:
            raise remote_errors.not_sent("TOOL_UNAVAILABLE", str(exc)) from exc

    async def lost(self) -> None:
        """Wait until the connection that stands is gone."""
        await self.line.lost()

    def failure(self, error: grpc.aio.AioRpcError) -> ToolFailure:
        """Make the failure that a status tells."""
        try:
            return remote_errors.of_status(error, self.line.token())
        except NotReached as exc:
            raise remote_errors.not_sent("TOOL_UNAVAILABLE", str(exc)) from exc

    @property
    def result_limit_bytes(self) -> int:
        """Most bytes of a result."""
        return self.link.result_limit_bytes

    @property
    def progress_limit_bytes(self) -> int:
        """Most bytes of progress of one call, all frames together."""
        return self.link.progress_limit_bytes

    def statistics(self) -> Statistics:
        """Counters."""
        return self.counters.statistics()

    async def close(self, grace_seconds: float = 0.0) -> None:
        """Close the connection; calls that outlast the grace break."""
        await self.line.close(grace_seconds)

    def _channel(self) -> grpc.aio.Channel:
        try:
            return self.line.opened()
        except NotReached as exc:
            raise remote_errors.not_sent("TOOL_UNAVAILABLE", str(exc)) from exc


class RemoteStream:
    """The answer to one call over a channel. See `remote_tool.Stream`."""

    __slots__ = ("_call", "_outlives", "_pending", "_server")

    is_away = False

    def __init__(self, server: RemoteServer, call: grpc.aio.UnaryStreamCall[CallToolRequest, bytes]) -> None:
        self._server = server
        self._call = call
        self._outlives = False
        self._pending: asyncio.Future[object] | None = None

    def keep_within(self, bound: asyncio.Timeout) -> None:
        """Leave the bound alone: a stream that breaks never comes back."""

    def outlive(self) -> None:
        """Read in such a way that giving up a wait does not end the call, as it would by the transport's ways."""
        self._outlives = True

    async def next(self) -> Frame | None:
        """Wait for a frame, None at the end. Raises ToolFailure."""
        try:
            data: Any = await (self._next() if self._outlives else self._call.read())
        except grpc.aio.AioRpcError as exc:
            raise self._server.failure(exc) from exc
        except asyncio.CancelledError as exc:
            if is_cancelled():
                raise
            raise remote_errors.ambiguous("TOOL_UNAVAILABLE", "the connection to the server was closed") from exc
        if not isinstance(data, bytes):
            return None
        try:
            return Frame(CallToolResponse.FromString(data), len(data))
        except DecodeError as exc:
            raise remote_errors.unusable("TOOL_RESULT_INVALID", "a frame of the answer cannot be read") from exc

    async def _next(self) -> object:
        """Wait for a frame by a read that goes on when this wait is given up."""
        if self._pending is None:
            pending: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            if not self._server.keep(self._read_into(pending)):
                return await self._call.read()
            self._pending = pending
        await asyncio.wait({self._pending})
        read, self._pending = self._pending.result(), None
        if isinstance(read, grpc.aio.AioRpcError):
            raise read
        return read

    async def _read_into(self, pending: asyncio.Future[object]) -> None:
        try:
            pending.set_result(await self._call.read())
        except grpc.aio.AioRpcError as exc:
            pending.set_result(exc)
        finally:
            pending.cancel()

    async def end(self) -> None:
        """Let the stream end as its server means it to; what comes after the result changes nothing."""
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._call.read()
        except (TimeoutError, grpc.aio.AioRpcError):
            return

    def cancel(self) -> None:
        """Break the stream, if it has not ended."""
        self._call.cancel()


def _bytes_of(message: Message) -> bytes:
    return message.SerializeToString()
