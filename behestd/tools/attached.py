"""Tools of an attached server: calls over the stream that the server opened, and over the next one when that is lost.

Above it `remote_tool`, which makes attempts, and `runtime.attached`, which brings streams and says when a server is
gone. Below it `attached_call`. A call whose stream is lost waits until the server is back: one that the server reports
is joined under the same key and is not executed again; one that the process it was sent to does not report was never
seen; of everything else nobody can say whether it took effect. Never more calls are on a stream than the server takes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.registry_service_pb2 import (
    AttachCall,
    AttachCancel,
    AttachHello,
    AttachReply,
    AttachServerResponse,
)
from behest.v1.tool_pb2 import Executed, Tool
from behest.v1.tool_service_pb2 import CallToolRequest, GetCallStatusRequest, GetCallStatusResponse
from behestd.tools import remote_errors
from behestd.tools.attached_call import AttachedCall, Terms, frames_of
from behestd.tools.remote_tool import Counters, RemoteTool
from behestd.tools.schema import Validators
from behestd.tools.tool import Timeouts, ToolFailure
from behestd.wire.attached import FRAME_MARGIN_BYTES, CallTooLarge, Sink, Withdraw
from behestd.wire.remote_channel import PROGRESS_LIMIT_BYTES, RESULT_LIMIT_BYTES, NotReached

Send = Callable[[AttachServerResponse], None]
"""Puts a frame on its way to the server."""


class Line:
    """One live stream to a server. `lease_id` names the process at its other end, `held` the keys that it reported."""

    __slots__ = ("asks", "calls", "held", "is_draining", "last_number", "lease_id", "name", "send", "sinks", "terms")

    def __init__(self, send: Send, terms: Terms, hello: AttachHello, lease_id: str, stream_id: str) -> None:
        """`stream_id` is of this stream alone."""
        self.send = send
        self.terms = terms
        self.lease_id = lease_id
        self.name = f"{lease_id}:{stream_id}"
        """What is journaled of calls that are sent here."""
        self.held = frozenset(known.idempotency_key for known in hello.held)
        self.last_number = 0
        self.calls: dict[int, AttachedCall] = {}
        """Calls of tools that have not ended, those that nobody reads included: the server still works on them."""
        self.sinks: dict[int, Sink] = {}
        """Calls of all else that have not ended, those that nobody reads included."""
        self.asks: dict[int, asyncio.Future[GetCallStatusResponse]] = {}
        self.is_draining = False
        """Whether no call may be sent any more: one of both sides is stopping."""

    @property
    def load(self) -> int:
        """How many calls have not ended."""
        return len(self.calls) + len(self.sinks)

    def number(self) -> int:
        """Make the next number of a call."""
        self.last_number += 1
        return self.last_number


class AttachedServer:
    """One attached server, whatever stream it is on. See `remote_tool.Server`."""

    __slots__ = (
        "_away",
        "_changed",
        "_is_gone",
        "_line",
        "_waiting",
        "counters",
        "longest_away_seconds",
        "strays",
        "validators",
    )

    result_limit_bytes = RESULT_LIMIT_BYTES
    progress_limit_bytes = PROGRESS_LIMIT_BYTES

    def __init__(self, validators: Validators, longest_away_seconds: float) -> None:
        self.validators = validators
        self.counters = Counters()
        self.longest_away_seconds = longest_away_seconds
        self.strays = 0
        """Replies that belonged to no call, and results that came when nobody waited for them any more."""
        self._line: Line | None = None
        self._away: list[AttachedCall] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._changed = asyncio.Event()
        self._is_gone = False

    # --- what `runtime.attached` says ---

    def attach(self, line: Line) -> None:
        """Take a new stream. Calls that wait for the server are joined, or are known to be lost."""
        if self._line is not None:
            self.detach(self._line)
        self._line, self._is_gone = line, False
        away, self._away = self._away, []
        for call in away:
            self._settle(call, line)
        self._wake()

    def detach(self, line: Line) -> None:
        """Take note that a stream is lost."""
        if self._line is line:
            self._line = None
        for ask in line.asks.values():
            if not ask.done():
                ask.set_exception(remote_errors.ambiguous("TOOL_UNAVAILABLE", "the stream of the server broke"))
        line.asks.clear()
        for sink in line.sinks.values():
            sink.broke()
        line.sinks.clear()
        self._away.extend(call for call in line.calls.values() if call.go_away())
        line.calls.clear()

    def give_up(self) -> None:
        """Take note that the server does not come back: of its calls nobody can say whether they took effect."""
        self._is_gone = True
        away, self._away = self._away, []
        for call in away:
            call.fail(remote_errors.ambiguous("TOOL_UNAVAILABLE", "the server did not come back"))
        self._wake()

    def agree(self, line: Line, terms: Terms) -> None:
        """Take new terms for a stream, whose server wants calls again."""
        line.terms, line.is_draining = terms, False
        self._wake()

    def drain(self) -> None:
        """Send no more calls on this stream."""
        if self._line is not None:
            self._line.is_draining = True

    def receive(self, line: Line, reply: AttachReply) -> None:
        """Take a part of the answer to a call. What belongs to no call is counted and dropped."""
        kind = reply.WhichOneof("response")
        call, sink = line.calls.get(reply.call_number), line.sinks.get(reply.call_number)
        if sink is not None and kind == "end":
            del line.sinks[reply.call_number]
            sink.finish(reply.end)
            self._wake()
        elif sink is not None:
            sink.push(reply)
        elif call is None:
            self._receive_status(line, reply, kind)
        elif kind == "call_tool":
            self.strays += call.is_abandoned and reply.call_tool.HasField("result")
            call.push(reply.call_tool)
        elif kind == "end":
            del line.calls[reply.call_number]
            call.finish(reply.end)
            self._wake()
        elif kind != "accepted":
            call.fail(remote_errors.unusable("TOOL_RESULT_INVALID", "the server answered something else than the call"))

    def _receive_status(self, line: Line, reply: AttachReply, kind: str | None) -> None:
        ask = line.asks.get(reply.call_number)
        if ask is None or ask.done():
            self.strays += kind != "end"
        elif kind == "get_call_status":
            ask.set_result(reply.get_call_status)
        elif kind == "end":
            if reply.end.HasField("error") and reply.end.error.code:
                ask.set_exception(remote_errors.of_end(reply.end.error, is_proof=reply.end.not_executed))
            else:
                ask.set_exception(remote_errors.ambiguous("TOOL_OUTCOME_UNKNOWN", "the server told no state"))

    # --- what tools ask for ---

    @property
    def is_open(self) -> bool:
        """Whether the server is there and takes calls."""
        return self._line is not None and not self._line.is_draining

    @property
    def is_full(self) -> bool:
        """Whether it has as many calls as it takes."""
        return self._line is not None and self._line.load >= self._line.terms.max_calls

    @property
    def _has_room(self) -> bool:
        return self.is_open and not self.is_full

    @property
    def line_name(self) -> str:
        """The name of the stream that calls go to. Empty while there is none."""
        return self._line.name if self._line is not None else ""

    def bind(self, tool: Tool) -> RemoteTool:
        """Make the executor of a tool, given as the server knows it; what `Catalog.register_server` asks for."""
        return RemoteTool(self, tool)

    async def connect(self, limits: Timeouts) -> None:
        """Wait until the server is there, then until it takes one more call. Raises ToolFailure, NOT_SENT."""
        if self._has_room:
            return
        connect_seconds = min(limits.connect_seconds, limits.start_to_close_seconds)
        try:
            async with asyncio.timeout(connect_seconds + limits.start_to_close_seconds):
                await self._room(connect_seconds)
        except NotReached as exc:
            raise remote_errors.not_sent("TOOL_UNAVAILABLE", str(exc)) from exc
        except TimeoutError as exc:
            text = "the server has as many calls as it takes" if self.is_open else "the server is not attached"
            raise remote_errors.not_sent("TOOL_UNAVAILABLE", text) from exc

    def stream(self, request: CallToolRequest, traceparent: str, timeout_seconds: float) -> AttachedCall:
        """Send a call. Raises ToolFailure, NOT_SENT."""
        line = self._line
        if line is None or line.is_draining:
            raise remote_errors.not_sent("TOOL_UNAVAILABLE", "the server is not attached")
        call = self._made(request, traceparent, line.name)
        try:
            self._send(call, line)
        except ToolFailure:
            # What makes room for a call that does not leave is room for the next one.
            self._wake()
            raise
        return call

    def resume(self, request: CallToolRequest, traceparent: str, line_name: str) -> AttachedCall:
        """Join a call that an earlier daemon sent, as soon as the server is back."""
        if self._is_gone:
            raise remote_errors.ambiguous("TOOL_UNAVAILABLE", "the server did not come back")
        call = self._made(request, traceparent, line_name)
        if self._line is None:
            self._away.append(call)
        else:
            self._settle(call, self._line)
        return call

    async def ask_status(self, request: GetCallStatusRequest, timeout_seconds: float) -> GetCallStatusResponse:
        """Ask what became of a call. Raises ToolFailure."""
        line = self._line
        if line is None:
            raise remote_errors.not_sent("TOOL_UNAVAILABLE", "the server is not attached")
        number = line.number()
        ask: asyncio.Future[GetCallStatusResponse] = asyncio.get_running_loop().create_future()
        line.asks[number] = ask
        line.send(AttachServerResponse(call=AttachCall(call_number=number, get_call_status=request)))
        try:
            async with asyncio.timeout(timeout_seconds):
                return await ask
        except TimeoutError as exc:
            raise remote_errors.ambiguous("TOOL_TIMEOUT", f"no state within {timeout_seconds:g} s") from exc
        finally:
            line.asks.pop(number, None)

    async def ask_cancel(self, key: str, epoch: int, timeout_seconds: float) -> bool:
        """Tell the server to stop a call, and wait for its end, which is the receipt."""
        line = self._line
        known = [*(line.calls.values() if line is not None else ()), *self._away]
        same = [call for call in known if call.request.idempotency_key == key]
        call = next((call for call in same if not call.is_abandoned), same[-1] if same else None)
        if call is None or epoch < call.request.epoch:
            return False
        call.is_cancelled = True
        if line is not None and call.number:
            line.send(AttachServerResponse(cancel=AttachCancel(call_number=call.number)))
        try:
            async with asyncio.timeout(timeout_seconds):
                await call.ended.wait()
        except TimeoutError:
            return False
        return True

    async def open(self, call: AttachCall, sink: Sink, connect_seconds: float) -> Withdraw:
        """Send a call that is not of a tool. See `wire.attached.Carrier`."""
        if self._is_gone and self._line is None:
            raise NotReached("the server did not come back")
        await self._room(connect_seconds)
        line = self._line
        if line is None or line.is_draining:
            raise NotReached("the server is not attached")
        call.call_number = line.number()
        limit_bytes = line.terms.max_frame_bytes - FRAME_MARGIN_BYTES
        if (size_bytes := call.ByteSize()) > limit_bytes:
            self._wake()
            raise CallTooLarge(size_bytes, limit_bytes)
        line.sinks[call.call_number] = sink
        line.send(AttachServerResponse(call=call))
        return partial(self._withdraw, line, call.call_number)

    # --- within ---

    def _withdraw(self, line: Line, number: int) -> None:
        if number in line.sinks:
            line.send(AttachServerResponse(cancel=AttachCancel(call_number=number)))

    async def _room(self, connect_seconds: float) -> None:
        """Wait so long until the server is there, then until it takes one more call. Raises NotReached."""
        try:
            async with asyncio.timeout(connect_seconds):
                while not self.is_open:
                    await self._wait()
        except TimeoutError as exc:
            raise NotReached("the server is not attached") from exc
        while not self._has_room:
            await self._wait()

    def _made(self, request: CallToolRequest, traceparent: str, line_name: str) -> AttachedCall:
        return AttachedCall(
            request,
            traceparent,
            line_name=line_name,
            limit_bytes=self.result_limit_bytes,
            longest_away_seconds=self.longest_away_seconds,
        )

    def _settle(self, call: AttachedCall, line: Line) -> None:
        """Join a call at a server that is back, or say what its silence means.

        A hello reports nothing of calls that were sent after it, as those are of a run that has a new owner here.
        """
        key = call.request.idempotency_key
        lease_id, _, _ = call.line_name.rpartition(":")
        if call.is_abandoned:
            call.ended.set()
        elif key in line.held or any(other.request.idempotency_key == key for other in line.calls.values()):
            try:
                self._send(call, line)
            except ToolFailure as failure:
                call.fail(remote_errors.ambiguous("TOOL_UNAVAILABLE", failure.message))
        elif lease_id and lease_id == line.lease_id and call.line_name != line.name:
            transient, no = FailureClass.FAILURE_CLASS_TRANSIENT, Executed.EXECUTED_NO
            call.fail(ToolFailure(transient, no, "TOOL_UNAVAILABLE", "the server never saw the call"))
        else:
            call.fail(remote_errors.ambiguous("TOOL_UNAVAILABLE", "the server came back as another process"))

    def _send(self, call: AttachedCall, line: Line) -> None:
        """Put a call on a stream. Raises ToolFailure, NOT_SENT, when it does not fit."""
        number = line.number()
        frames = list(frames_of(call, number, line.terms))
        line.calls[number] = call
        call.line_name = line.name
        call.join(number)
        for frame in frames:
            line.send(frame)
        if call.is_cancelled:
            line.send(AttachServerResponse(cancel=AttachCancel(call_number=number)))

    async def quiet(self) -> None:
        """Wait until no call is left, those included that wait for the server to come back."""
        while self._away or (self._line is not None and self._line.load):
            self._changed.clear()
            await self._changed.wait()

    async def _wait(self) -> None:
        """Wait for room; for each call that there is room for, one of those who wait is woken."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                # It was woken, and leaves its room to the next one.
                self._wake()
            elif future in self._waiting:
                self._waiting.remove(future)
            raise

    def _wake(self) -> None:
        self._changed.set()
        line = self._line
        room = line.terms.max_calls - line.load if line is not None and not line.is_draining else 0
        while room > 0 and self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                room -= 1
