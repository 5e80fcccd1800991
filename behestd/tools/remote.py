"""Tools of a dialled server, over gRPC: one attempt a call, everything that can go wrong told apart.

Above it the performer, by the port `tool`; below it `remote_channel` and `remote_errors`. The key, the attempt and the
epoch travel in the request and in the metadata. Answers are bytes until they are checked: garbage, too much and text
that is no UTF-8 are the server's doing, after it has executed the call. Abandoning a call breaks its stream and cancels
nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed, Tool
from behest.v1.tool_service_pb2 import (
    CallState,
    CallToolRequest,
    CallToolResponse,
    CancelCallRequest,
    CancelCallResponse,
    GetCallStatusRequest,
    GetCallStatusResponse,
    ListToolsRequest,
    ListToolsResponse,
)
from behestd.core.times import duration, timestamp
from behestd.tools import remote_errors
from behestd.tools.remote_channel import Link, connect, lost, open_channel
from behestd.tools.remote_result import checked, too_large
from behestd.tools.schema import Validators
from behestd.tools.tool import (
    Answer,
    Call,
    CannotTell,
    Done,
    NeverSeen,
    Running,
    ShowProgress,
    Status,
    Timeouts,
    ToolFailure,
)

UNARY_SECONDS = 5.0
"""How long the server may take to list a page, to tell a status or to acknowledge a cancellation."""
CANCEL_SECONDS = 1.0
"""How long a call that ran out of its time may go on telling the server so."""
MAX_PAGES = 40
_BACKSTOP_SECONDS = 2.0
"""How much later than ours the transport's own deadline is."""
_END_SECONDS = 0.2
_SERVICE = "/behest.v1.ToolService/"

_Answer = TypeVar("_Answer", bound=Message)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the server was dialled."""

    calls: int = 0
    failures: int = 0
    timeouts: int = 0


class RemoteServer:
    """One dialled server: its channel, and what all its tools have in common."""

    def __init__(self, link: Link, validators: Validators) -> None:
        self.link = link
        self.validators = validators
        self._channel = open_channel(link)
        self._call_tool: grpc.aio.UnaryStreamMultiCallable[CallToolRequest, bytes] = self._channel.unary_stream(
            _SERVICE + "CallTool", request_serializer=_bytes_of
        )
        self._calls = self._failures = self._timeouts = 0

    async def list_tools(self, connect_seconds: float = UNARY_SECONDS) -> list[Tool]:
        """List what the server offers, at most 40 pages. Raises ToolFailure."""
        await connect(self._channel, connect_seconds)
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
        ask: grpc.aio.UnaryUnaryMultiCallable[Message, bytes] = self._channel.unary_unary(
            _SERVICE + method, request_serializer=_bytes_of
        )
        try:
            data = await ask(request, timeout=timeout_seconds, metadata=self.metadata(()))
            return response.FromString(data)
        except grpc.aio.AioRpcError as exc:
            raise self.failure(exc) from exc
        except asyncio.CancelledError as exc:
            if _is_cancelled():
                raise
            raise remote_errors.ambiguous("TOOL_UNAVAILABLE", "the connection to the server was closed") from exc
        except DecodeError as exc:
            raise remote_errors.unusable("TOOL_RESULT_INVALID", f"the answer to {method} cannot be read") from exc

    def stream(
        self, request: CallToolRequest, traceparent: str, timeout_seconds: float
    ) -> grpc.aio.UnaryStreamCall[CallToolRequest, bytes]:
        """Send a call. The caller cancels what this returns."""
        self._calls += 1
        own = (
            ("behest-idempotency-key", request.idempotency_key),
            ("behest-attempt", str(request.attempt)),
            ("behest-epoch", str(request.epoch)),
            ("traceparent", traceparent),
        )
        return self._call_tool(request, timeout=timeout_seconds, metadata=self.metadata(own))

    def metadata(self, own: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """Join what a call says with who we are. Raises ToolFailure, NOT_SENT, when the secret cannot be had."""
        pairs = tuple((key, value) for key, value in own if value)
        token = self._token()
        return (*pairs, ("authorization", f"Bearer {token}")) if token else pairs

    async def connect(self, limits: Timeouts) -> None:
        """Wait for a connection. Raises ToolFailure, NOT_SENT."""
        await connect(self._channel, min(limits.connect_seconds, limits.start_to_close_seconds))

    async def lost(self) -> None:
        """Wait until the connection that stands is gone."""
        await lost(self._channel)

    def failure(self, error: grpc.aio.AioRpcError) -> ToolFailure:
        """Make the failure that a status tells."""
        return remote_errors.of_status(error, self._token())

    def count(self, failure: ToolFailure) -> None:
        """Count a call that failed."""
        self._failures += 1
        self._timeouts += failure.reason == "TOOL_TIMEOUT"

    def statistics(self) -> Statistics:
        """Counters."""
        return Statistics(self._calls, self._failures, self._timeouts)

    async def close(self, grace_seconds: float = 0.0) -> None:
        """Close the connection; calls that outlast the grace break."""
        await self._channel.close(grace_seconds)

    def _token(self) -> str:
        try:
            return self.link.token()
        except (LookupError, OSError, ValueError) as exc:
            raise remote_errors.not_sent("TOOL_UNAVAILABLE", "the secret of the server cannot be read") from exc


class RemoteTool:
    """One tool of a dialled server. See `tool.Executor` for the promises."""

    def __init__(self, server: RemoteServer, tool: Tool) -> None:
        """`tool` is as the server knows it: without prefix, with the hash of that."""
        self._server = server
        self._tool = tool

    async def call(self, call: Call, progress: ShowProgress) -> Answer:
        """Make one attempt. Raises ToolFailure."""
        limits = call.timeouts
        try:
            await self._server.connect(limits)
            return await self._attempt(call, progress)
        except ToolFailure as failure:
            self._server.count(failure)
            raise

    async def cancel(self, key: str, epoch: int) -> bool:
        """Ask the server to stop a call."""
        return await self._cancel(key, epoch, UNARY_SECONDS)

    async def status(self, key: str, epoch: int, wait_seconds: float = 0.0) -> Status:
        """Ask the server what became of a call. Raises ToolFailure."""
        wait = min(wait_seconds, 30.0)
        request = GetCallStatusRequest(idempotency_key=key, epoch=epoch, wait=duration(wait))
        await self._server.connect(Timeouts())
        try:
            told = await self._server.unary("GetCallStatus", request, GetCallStatusResponse, wait + UNARY_SECONDS)
        except ToolFailure as failure:
            if _is_unimplemented(failure):
                return CannotTell()
            raise
        if told.state == CallState.CALL_STATE_NEVER_SEEN:
            return NeverSeen()
        if told.state == CallState.CALL_STATE_RUNNING:
            return Running()
        if told.state == CallState.CALL_STATE_DONE and told.HasField("result"):
            return Done(checked(self._server.validators, self._tool, told.result))
        raise remote_errors.ambiguous("TOOL_OUTCOME_UNKNOWN", "the server told a state that is not known here")

    async def _attempt(self, call: Call, progress: ShowProgress) -> Answer:
        limits = call.timeouts
        request = CallToolRequest(
            tool_name=self._tool.name,
            arguments_json=call.arguments_json,
            call_id=call.call_id,
            run_id=call.run_id,
            session_id=call.session_id,
            idempotency_key=call.key,
            attempt=call.attempt,
            epoch=call.epoch,
            deadline=timestamp(call.deadline_ns) if call.deadline_ns else None,
            start_by=timestamp(call.start_by_ns) if call.start_by_ns else None,
            side_effect=call.side_effect,
            tool_hash=self._tool.hash,
        )
        stream = self._server.stream(request, call.traceparent, limits.start_to_close_seconds + _BACKSTOP_SECONDS)
        try:
            async with asyncio.timeout(limits.start_to_close_seconds):
                given = await self._read(stream, limits.heartbeat_seconds, progress)
            await _end(stream)
            return given
        except TimeoutError as exc:
            await self._cancel(call.key, call.epoch, CANCEL_SECONDS)
            limit = f"no result within {limits.start_to_close_seconds:g} s"
            raise remote_errors.ambiguous("TOOL_TIMEOUT", limit) from exc
        except grpc.aio.AioRpcError as exc:
            raise self._server.failure(exc) from exc
        except asyncio.CancelledError as exc:
            if _is_cancelled():
                raise
            raise remote_errors.ambiguous("TOOL_UNAVAILABLE", "the connection to the server was closed") from exc
        except _Stopped as exc:
            await self._cancel(call.key, call.epoch, CANCEL_SECONDS)
            raise exc.failure from exc
        finally:
            stream.cancel()

    async def _read(
        self,
        stream: grpc.aio.UnaryStreamCall[CallToolRequest, bytes],
        heartbeat_seconds: float | None,
        progress: ShowProgress,
    ) -> Answer:
        """Read up to the result. Raises what the stream raises, ToolFailure, and _Stopped for a call to cancel."""
        link = self._server.link
        chunks = bytearray()
        shown_bytes = 0
        while True:
            data = await _next(stream, heartbeat_seconds)
            if data is None:
                raise remote_errors.ambiguous("TOOL_UNAVAILABLE", "the call ended without a result")
            frame = _frame(data)
            kind = frame.WhichOneof("frame")
            if kind == "result":
                if len(data) + len(chunks) > link.result_limit_bytes:
                    raise too_large(link.result_limit_bytes)
                return checked(self._server.validators, self._tool, frame.result, bytes(chunks))
            if kind == "chunk":
                chunks += frame.chunk
                if len(chunks) > link.result_limit_bytes:
                    raise _Stopped(too_large(link.result_limit_bytes))
            elif kind == "progress":
                shown_bytes += len(data)
                if shown_bytes > link.progress_limit_bytes:
                    limit = f"progress exceeds the limit of {link.progress_limit_bytes} bytes"
                    raise _Stopped(remote_errors.ambiguous("TOOL_RESULT_TOO_LARGE", limit))
                progress(frame.progress)

    async def _cancel(self, key: str, epoch: int, timeout_seconds: float) -> bool:
        request = CancelCallRequest(idempotency_key=key, epoch=epoch)
        try:
            told = await self._server.unary("CancelCall", request, CancelCallResponse, timeout_seconds)
        except ToolFailure:
            return False
        return told.acknowledged


class _Stopped(Exception):
    """Raised when we stop reading a call that goes on, so that the server must be told."""

    def __init__(self, failure: ToolFailure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


async def _next(
    stream: grpc.aio.UnaryStreamCall[CallToolRequest, bytes], heartbeat_seconds: float | None
) -> bytes | None:
    """Read a frame, None at the end. Raises _Stopped when the server is silent for longer than its heartbeat."""
    if heartbeat_seconds is None:
        data: Any = await stream.read()
    else:
        silence = asyncio.timeout(heartbeat_seconds)
        try:
            async with silence:
                data = await stream.read()
        except TimeoutError as exc:
            if not silence.expired():
                raise
            limit = f"no sign of life within {heartbeat_seconds:g} s"
            raise _Stopped(remote_errors.ambiguous("TOOL_TIMEOUT", limit)) from exc
    return data if isinstance(data, bytes) else None


async def _end(stream: grpc.aio.UnaryStreamCall[CallToolRequest, bytes]) -> None:
    """Let the stream end as its server means it to; what comes after the result changes nothing."""
    try:
        async with asyncio.timeout(_END_SECONDS):
            await stream.read()
    except (TimeoutError, grpc.aio.AioRpcError):
        return


def _frame(data: bytes) -> CallToolResponse:
    try:
        return CallToolResponse.FromString(data)
    except DecodeError as exc:
        raise remote_errors.unusable("TOOL_RESULT_INVALID", "a frame of the answer cannot be read") from exc


def _is_cancelled() -> bool:
    """Tell a real cancellation from a channel that was closed under a call, which the transport shows as one."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _is_unimplemented(failure: ToolFailure) -> bool:
    cause = failure.__cause__
    return isinstance(cause, grpc.aio.AioRpcError) and cause.code() is grpc.StatusCode.UNIMPLEMENTED


def _bytes_of(message: Message) -> bytes:
    return message.SerializeToString()
