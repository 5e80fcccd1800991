"""One tool of another process: one attempt a call, whatever the wire, everything that can go wrong told apart.

Above it the performer, by the port `tool`; below it `remote` (dialled servers) and `attached` (servers that call us),
which move frames and know how a connection is lost. Answers are not trusted until they are checked: too much, too late
and what makes no sense are the server's doing, after it has executed the call. Abandoning a call cancels nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from behest.v1.tool_pb2 import Progress, Tool
from behest.v1.tool_service_pb2 import (
    CallState,
    CallToolRequest,
    CallToolResponse,
    GetCallStatusRequest,
    GetCallStatusResponse,
)
from behestd.core.times import duration, timestamp
from behestd.tools import remote_errors
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
LATE_SECONDS = 60.0
"""How long an answer is still listened to that comes too late."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a call, and how large it was."""

    message: CallToolResponse
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the server is known."""

    calls: int = 0
    failures: int = 0
    timeouts: int = 0


class Counters:
    """What is counted of the calls of a server."""

    __slots__ = ("calls", "failures", "in_flight", "timeouts")

    def __init__(self) -> None:
        self.calls = self.failures = self.timeouts = self.in_flight = 0

    def failed(self, failure: ToolFailure) -> None:
        """Count a call that failed."""
        self.failures += 1
        self.timeouts += failure.reason == "TOOL_TIMEOUT"

    def statistics(self) -> Statistics:
        """The counters as they are."""
        return Statistics(self.calls, self.failures, self.timeouts)


class Stream(Protocol):
    """The answer to one call, frame by frame."""

    @property
    def is_away(self) -> bool:
        """Whether the connection is lost and may come back: meanwhile silence means nothing."""
        ...

    def keep_within(self, bound: asyncio.Timeout) -> None:
        """Take charge of the bound of the attempt, which the stream may move while it is away."""
        ...

    def outlive(self) -> None:
        """Take note that the answer may still be of use when the time of the attempt is over."""
        ...

    async def next(self) -> Frame | None:
        """Wait for a frame, None at the end. Raises ToolFailure."""
        ...

    async def end(self) -> None:
        """Let the server end a call whose result is there; what it says then changes nothing."""
        ...

    def cancel(self) -> None:
        """Let go of the call. Idempotent."""
        ...


class Server(Protocol):
    """What the tools of one server have in common."""

    counters: Counters

    @property
    def validators(self) -> Validators:
        """Checks structured results."""
        ...

    @property
    def result_limit_bytes(self) -> int:
        """Most bytes of a result."""
        ...

    @property
    def progress_limit_bytes(self) -> int:
        """Most bytes of progress of one call, all frames together."""
        ...

    async def connect(self, limits: Timeouts) -> None:
        """Wait until a call can be sent. Raises ToolFailure, NOT_SENT."""
        ...

    def stream(self, request: CallToolRequest, traceparent: str, timeout_seconds: float) -> Stream:
        """Send a call. Raises ToolFailure, NOT_SENT."""
        ...

    def resume(self, request: CallToolRequest, traceparent: str, line_name: str) -> Stream:
        """Join a call that an earlier owner sent on the stream of that name; nothing is executed again."""
        ...

    async def ask_status(self, request: GetCallStatusRequest, timeout_seconds: float) -> GetCallStatusResponse:
        """Ask what became of a call. Raises ToolFailure, Unimplemented when the server cannot tell."""
        ...

    async def ask_cancel(self, key: str, epoch: int, timeout_seconds: float) -> bool:
        """Ask that a call be stopped: whether the server acknowledged. Raises ToolFailure."""
        ...


class RemoteTool:
    """One tool of a server. See `tool.Executor` for the promises."""

    __slots__ = ("_server", "_tool")

    def __init__(self, server: Server, tool: Tool) -> None:
        """`tool` is as the server knows it: without prefix, with the hash of that."""
        self._server = server
        self._tool = tool

    async def call(self, call: Call, progress: ShowProgress) -> Answer:
        """Make one attempt, or join the one that an earlier owner made. Raises ToolFailure."""
        server, limits = self._server, call.timeouts
        server.counters.in_flight += 1
        try:
            if call.resumed_lease is not None:
                stream = server.resume(self._request(call), call.traceparent, call.resumed_lease)
            else:
                await server.connect(limits)
                server.counters.calls += 1
                kept_seconds = limits.start_to_close_seconds + (LATE_SECONDS if call.wants_late else 0.0)
                stream = server.stream(self._request(call), call.traceparent, kept_seconds)
            return await self._attempt(stream, call, progress)
        except ToolFailure as failure:
            server.counters.failed(failure)
            raise
        finally:
            server.counters.in_flight -= 1

    async def cancel(self, key: str, epoch: int) -> bool:
        """Ask the server to stop a call."""
        return await self._cancel(key, epoch, UNARY_SECONDS)

    async def status(self, key: str, epoch: int, wait_seconds: float = 0.0, attempt: int = 0) -> Status:
        """Ask the server what became of a call. Raises ToolFailure."""
        wait = min(wait_seconds, 30.0)
        request = GetCallStatusRequest(idempotency_key=key, epoch=epoch, attempt=attempt, wait=duration(wait))
        try:
            told = await self._server.ask_status(request, wait + UNARY_SECONDS)
        except remote_errors.Unimplemented:
            return CannotTell()
        except ToolFailure as failure:
            if failure.reason == "TOOL_OUTCOME_UNKNOWN":
                # Its own word: it lost the call, and will not know more when it is asked again.
                return CannotTell(failure.message)
            raise
        if told.state == CallState.CALL_STATE_NEVER_SEEN:
            return NeverSeen()
        if told.state == CallState.CALL_STATE_RUNNING:
            return Running()
        if told.state == CallState.CALL_STATE_DONE and told.HasField("result"):
            return Done(checked(self._server.validators, self._tool, told.result))
        raise remote_errors.ambiguous("TOOL_OUTCOME_UNKNOWN", "the server told a state that is not known here")

    def _request(self, call: Call) -> CallToolRequest:
        return CallToolRequest(
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

    async def _attempt(self, stream: Stream, call: Call, progress: ShowProgress) -> Answer:
        limits = call.timeouts
        late: LateStream | None = None
        if call.wants_late:
            stream.outlive()
        try:
            async with asyncio.timeout(limits.start_to_close_seconds) as bound:
                stream.keep_within(bound)
                given = await self.read(stream, limits.heartbeat_seconds, progress)
            await stream.end()
            return given
        except TimeoutError as exc:
            await self._cancel(call.key, call.epoch, CANCEL_SECONDS)
            limit = f"no result within {limits.start_to_close_seconds:g} s"
            failure = remote_errors.ambiguous("TOOL_TIMEOUT", limit)
            failure.late = late = LateStream(self, stream) if call.wants_late else None
            raise failure from exc
        except _Stopped as exc:
            await self._cancel(call.key, call.epoch, CANCEL_SECONDS)
            if call.wants_late and exc.failure.reason == "TOOL_TIMEOUT":
                exc.failure.late = late = LateStream(self, stream)
            raise exc.failure from exc
        finally:
            if late is None:
                stream.cancel()

    async def read(self, stream: Stream, heartbeat_seconds: float | None, progress: ShowProgress) -> Answer:
        """Read up to the result. Raises ToolFailure, and _Stopped for a call to cancel."""
        server = self._server
        chunks = bytearray()
        shown_bytes = 0
        while True:
            frame = await _next(stream, heartbeat_seconds)
            if frame is None:
                raise remote_errors.ambiguous("TOOL_UNAVAILABLE", "the call ended without a result")
            message = frame.message
            kind = message.WhichOneof("frame")
            if kind == "result":
                if frame.size_bytes + len(chunks) > server.result_limit_bytes:
                    raise too_large(server.result_limit_bytes)
                return checked(server.validators, self._tool, message.result, bytes(chunks))
            if kind == "chunk":
                chunks += message.chunk
                if len(chunks) > server.result_limit_bytes:
                    raise _Stopped(too_large(server.result_limit_bytes))
            elif kind == "progress":
                shown_bytes += frame.size_bytes
                if shown_bytes > server.progress_limit_bytes:
                    limit = f"progress exceeds the limit of {server.progress_limit_bytes} bytes"
                    raise _Stopped(remote_errors.ambiguous("TOOL_RESULT_TOO_LARGE", limit))
                progress(message.progress)

    async def _cancel(self, key: str, epoch: int, timeout_seconds: float) -> bool:
        try:
            return await self._server.ask_cancel(key, epoch, timeout_seconds)
        except ToolFailure:
            return False


class LateStream:
    """The stream of an attempt that ran out of its time. See `tool.Late`."""

    __slots__ = ("_stream", "_tool")

    def __init__(self, tool: RemoteTool, stream: Stream) -> None:
        self._tool = tool
        self._stream = stream

    async def answer(self) -> Answer:
        """Read on, up to the result. Raises ToolFailure."""
        try:
            async with asyncio.timeout(LATE_SECONDS):
                return await self._tool.read(self._stream, None, _show_nobody)
        except TimeoutError as exc:
            limit = f"no result within {LATE_SECONDS:g} s after its time"
            raise remote_errors.ambiguous("TOOL_TIMEOUT", limit) from exc
        except _Stopped as exc:
            raise exc.failure from exc
        finally:
            self.drop()

    def drop(self) -> None:
        """Let go of the stream."""
        self._stream.cancel()


def _show_nobody(_progress: Progress) -> None:
    """Show no progress: the attempt is over."""


class _Stopped(Exception):
    """Raised when we stop reading a call that goes on, so that the server must be told."""

    def __init__(self, failure: ToolFailure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


async def _next(stream: Stream, heartbeat_seconds: float | None) -> Frame | None:
    """Read a frame, None at the end. Raises _Stopped when the server is silent for longer than its heartbeat."""
    if heartbeat_seconds is None:
        return await stream.next()
    while True:
        silence = asyncio.timeout(heartbeat_seconds)
        try:
            async with silence:
                return await stream.next()
        except TimeoutError as exc:
            if not silence.expired():
                raise
            if stream.is_away:
                continue
            limit = f"no sign of life within {heartbeat_seconds:g} s"
            raise _Stopped(remote_errors.ambiguous("TOOL_TIMEOUT", limit)) from exc
