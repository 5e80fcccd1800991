"""One call of an attached server: its frames as they come, over one stream of the server or over several.

Above it `remote_tool`, which reads; beside it `attached`, which writes. While its server is away the call waits: the
bound of its attempt is moved, and a result that came in part is forgotten, since the whole comes again. What is queued
is bounded by the limits of a result and of progress; a server that says more is stopped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.registry_service_pb2 import AttachArguments, AttachCall, AttachEnd, AttachServerResponse
from behest.v1.tool_pb2 import Executed
from behest.v1.tool_service_pb2 import CallToolRequest, CallToolResponse
from behestd.tools import remote_errors
from behestd.tools.remote_tool import Frame
from behestd.tools.tool import ToolFailure
from behestd.wire.attached import FRAME_MARGIN_BYTES

ARGUMENTS_BYTES = 256 * 1024
"""Arguments over this go in several frames to a server that takes them so."""
_CHUNK_BYTES = 256 * 1024
JOIN_SECONDS = 10.0
"""What a call that is joined has at least, so that a result which is there can be told."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What daemon and server have agreed on: how many calls at once, how large a frame, whether arguments come cut."""

    max_calls: int
    max_frame_bytes: int
    takes_chunks: bool = False


class AttachedCall:
    """The answer to one call. See `remote_tool.Stream`."""

    __slots__ = (
        "_bound",
        "_chunk_bytes",
        "_chunks",
        "_failure",
        "_frames",
        "_last",
        "_limit_bytes",
        "_wake",
        "_when",
        "ended",
        "is_abandoned",
        "is_cancelled",
        "is_complete",
        "line_name",
        "longest_away_seconds",
        "number",
        "request",
        "traceparent",
    )

    def __init__(
        self,
        request: CallToolRequest,
        traceparent: str,
        *,
        line_name: str,
        limit_bytes: int,
        longest_away_seconds: float,
    ) -> None:
        """`line_name` names the stream that the call was, or is, sent on."""
        self.request = request
        self.traceparent = traceparent
        self.line_name = line_name
        self.longest_away_seconds = longest_away_seconds
        self.number = 0
        """On the stream that it is on; 0: on none."""
        self.ended = asyncio.Event()
        """Set when the server has said its last word about it."""
        self.is_abandoned = False
        """Whether nobody reads it any more."""
        self.is_cancelled = False
        """Whether the server is to be told to stop it."""
        self.is_complete = False
        """Whether its result or its failure is there."""
        self._limit_bytes = limit_bytes
        self._frames: deque[Frame] = deque()
        self._chunks: list[Frame] = []
        self._chunk_bytes = 0
        self._failure: ToolFailure | None = None
        self._wake: asyncio.Future[None] | None = None
        self._bound: asyncio.Timeout | None = None
        self._when = self._last = 0.0

    # --- who reads ---

    @property
    def is_away(self) -> bool:
        """Whether it is on no stream, and may come to be on one."""
        return not self.number and not self.is_complete

    def keep_within(self, bound: asyncio.Timeout) -> None:
        """Take charge of the bound of the attempt."""
        self._bound, self._when = bound, bound.when() or 0.0
        self._last = self._when + self.longest_away_seconds + JOIN_SECONDS
        if self.is_away:
            self._move_bound(self._last)

    def outlive(self) -> None:
        """Do nothing: what comes is kept whoever waits for it."""

    async def next(self) -> Frame | None:
        """Wait for a frame, None at the end. Raises ToolFailure."""
        while not self._frames:
            if self._failure is not None:
                raise self._failure
            if self.ended.is_set():
                return None
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        return self._frames.popleft()

    async def end(self) -> None:
        """Return: the server's last word is heeded whoever waits for it."""

    def cancel(self) -> None:
        """Let go of the call: what still comes is dropped."""
        self.is_abandoned = True
        self._frames.clear()
        self._chunks.clear()

    # --- who writes ---

    def push(self, message: CallToolResponse) -> None:
        """Take a frame. The chunks of a result are kept back until the result is there."""
        if self.is_abandoned or self.is_complete:
            return
        frame = Frame(message, message.ByteSize())
        kind = message.WhichOneof("frame")
        if kind == "chunk":
            self._chunks.append(frame)
            self._chunk_bytes += frame.size_bytes
            if self._chunk_bytes <= self._limit_bytes:
                return
        if kind != "progress":
            self._frames.extend(self._chunks)
            self._chunks.clear()
            self.is_complete = kind == "result"
        if kind != "chunk":
            self._frames.append(frame)
        self._wake_up()

    def finish(self, end: AttachEnd) -> None:
        """Take the end."""
        self.number = 0
        if end.HasField("error") and end.error.code and not self.is_complete:
            self._failure = remote_errors.of_end(end.error, is_proof=end.not_executed)
        self._settle()

    def fail(self, failure: ToolFailure) -> None:
        """End it without its server."""
        self.number = 0
        self._failure = self._failure or failure
        self._settle()

    def go_away(self) -> bool:
        """Take note that its stream is lost: whether it waits for another one."""
        self.number = 0
        if self.is_complete or self.is_abandoned:
            self._settle()
            return False
        self._chunks.clear()
        self._chunk_bytes = 0
        self._move_bound(self._last)
        return True

    def join(self, number: int) -> None:
        """Take note that it is on a stream."""
        self.number = number
        soon = asyncio.get_running_loop().time() + JOIN_SECONDS
        self._move_bound(min(max(self._when, soon), self._last))

    def _settle(self) -> None:
        self.is_complete = True
        self.ended.set()
        self._wake_up()

    def _move_bound(self, when: float) -> None:
        if self._bound is not None:
            # The attempt may be over already, and be telling the server so.
            with suppress(RuntimeError):
                self._bound.reschedule(when)

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def frames_of(call: AttachedCall, number: int, terms: Terms) -> Iterator[AttachServerResponse]:
    """The frames that make a call. Raises ToolFailure for arguments that do not fit."""
    request = call.request
    made = AttachCall(call_number=number, traceparent=call.traceparent)
    if request.HasField("deadline"):
        made.deadline.CopyFrom(request.deadline)
    made.call_tool.CopyFrom(request)
    is_large = len(request.arguments_json) * 4 > ARGUMENTS_BYTES
    arguments = request.arguments_json.encode() if is_large else b""
    if len(arguments) > ARGUMENTS_BYTES and terms.takes_chunks:
        made.call_tool.arguments_json = ""
        made.more = True
        yield AttachServerResponse(call=made)
        for start in range(0, len(arguments), _CHUNK_BYTES):
            end = start + _CHUNK_BYTES
            part = AttachArguments(call_number=number, chunk=arguments[start:end], more=end < len(arguments))
            yield AttachServerResponse(arguments=part)
        return
    limit_bytes = terms.max_frame_bytes - FRAME_MARGIN_BYTES
    if len(arguments) > limit_bytes:
        text = f"arguments of {len(arguments)} bytes exceed the limit of {limit_bytes} bytes of a frame"
        limit, no = FailureClass.FAILURE_CLASS_LIMIT, Executed.EXECUTED_NO
        raise ToolFailure(limit, no, "TOOL_ARGUMENTS_INVALID", text)
    yield AttachServerResponse(call=made)
