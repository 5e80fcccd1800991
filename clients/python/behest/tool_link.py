"""One stream of an attached server: calls come down, answers go up, until it ends.

Above: `tool_attach`, which opens the next stream when this one is over. Below: `tool_service`, which answers.
Guarantees: each call ends by one `end`, each write is alone on the stream, and both sides hear each other every
heartbeat or the stream is dead. What runs when the stream breaks goes on, and keeps its result, if it has a key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from behest.errors import BehestError, broken_stream, from_rpc
from behest.statuses import FirstStatus, is_cut_short
from behest.tool_calls import Refused
from behest.tool_context import Origin
from behest.tool_results import FRAME_BYTES
from behest.v1.registry_service_pb2 import (
    AttachAccepted,
    AttachDrain,
    AttachEnd,
    AttachReply,
    AttachServerRequest,
    AttachWelcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from behest.calls import Calls
    from behest.services.artifacts import Artifacts
    from behest.tool_calls import Running
    from behest.tool_service import Service
    from behest.v1.registry_service_pb2 import AttachArguments, AttachCall, AttachHello, AttachServerResponse

_log = logging.getLogger("behest.tools")

WELCOME_SECONDS = 30.0
HEARTBEAT_SECONDS = 15.0
"""The longest silence between two frames where the daemon names none."""
SILENT_HEARTBEATS = 3
ARGUMENTS_LIMIT_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class Open:
    """A call that has not ended on this stream: of a tool its arguments so far, then what runs; of a model its task."""

    call: AttachCall
    arguments: list[bytes] = field(default_factory=list)
    arguments_bytes: int = 0
    running: Running | None = None
    work: asyncio.Task[Any] | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What outlives a stream: whether the server drains, and the keys whose call came and whose end was not sent."""

    artifacts: Artifacts
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    owed: set[str] = field(default_factory=set)


class Link:
    """One stream, from hello to end."""

    def __init__(
        self, stream: grpc.aio.StreamStreamCall[Any, AttachServerResponse], service: Service, standing: Standing
    ) -> None:
        self._stream = stream
        self._status = FirstStatus(stream)
        self._service = service
        self._standing = standing
        # Frames of all calls share the stream, where each write must be alone; a queue would hold results twice.
        self._writing = asyncio.Lock()
        self._welcome = AttachWelcome()
        self._open: dict[int, Open] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_finishing = False
        # Keys whose result was sent or offered, and when: the daemon has it, unless the stream is dead already.
        self._offered: deque[tuple[float, str]] = deque()

    async def serve(self, hello: AttachHello, calls: Calls, on_welcome: Callable[[AttachWelcome], None]) -> None:
        """Serve until the stream ends; returns when it ended well. Raises BehestError when it broke or was refused."""
        error: BehestError | None = None
        async with (
            aclosing(calls.stream(self._stream, silence_seconds=self._silence_seconds)) as frames,
            asyncio.TaskGroup() as group,
        ):
            self._start(group, self._greet(hello))
            try:
                async for frame in frames:
                    if frame.HasField("welcome"):
                        is_first = not self._welcome.lease_id
                        self._welcome = frame.welcome
                        on_welcome(frame.welcome)
                        if is_first:
                            self._start(group, self._beat())
                            self._start(group, self._drain())
                    self._take(frame, group)
            except BehestError as exc:
                # Raised behind the group, which would wrap it.
                error = exc
            finally:
                for task in self._tasks:
                    task.cancel()
        if error is not None and is_cut_short(error.code, error.message):
            given = await self._status.given()
            if given is not None:
                error = None if given.code() is grpc.StatusCode.OK else from_rpc(given)
        if error is None and not self._welcome.lease_id:
            error = broken_stream("the daemon ended the stream without a welcome")
        if error is not None:
            raise error

    async def announce(self, hello: AttachHello) -> None:
        """Say hello again, with another offer in place of the one before."""
        await self._send(AttachServerRequest(hello=hello))

    @property
    def _heartbeat_seconds(self) -> float:
        return self._welcome.heartbeat.ToTimedelta().total_seconds() or HEARTBEAT_SECONDS

    def _silence_seconds(self) -> float:
        return self._heartbeat_seconds * SILENT_HEARTBEATS if self._welcome.lease_id else WELCOME_SECONDS

    async def _greet(self, hello: AttachHello) -> None:
        said_at = time.monotonic()
        self._offered.extend((said_at, held.idempotency_key) for held in hello.held if held.is_done)
        await self._send(AttachServerRequest(hello=hello))

    async def _beat(self) -> None:
        """Be heard, also when there is nothing to say."""
        is_heard = True
        while is_heard:
            is_heard = await self._send(AttachServerRequest())
            await asyncio.sleep(self._heartbeat_seconds / 2)

    def _take(self, frame: AttachServerResponse, group: asyncio.TaskGroup) -> None:
        """Act on a frame; what takes time or writes is a task, so that the next frame is read."""
        settled = time.monotonic() - self._heartbeat_seconds * SILENT_HEARTBEATS
        while self._offered and self._offered[0][0] < settled:
            self._service.calls.taken(self._offered.popleft()[1])
        match frame.WhichOneof("frame"):
            case "call":
                self._start(group, self._taken_call(frame.call))
            case "arguments":
                self._start(group, self._taken_arguments(frame.arguments))
            case "cancel":
                self._start(group, self._cancelled(frame.cancel.call_number))
            case "drain":
                self._start(group, self._finish())
            case "welcome" | None:
                pass

    def _start(self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> None:
        task = group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        """Once the server drains, say so, and end the stream when everything is done and sent."""
        await self._standing.draining.wait()
        await self._send(AttachServerRequest(drain=AttachDrain()))
        await self._service.calls.idle()
        await self._finish()

    async def _finish(self) -> None:
        """End the stream once no call is open on it; the daemon then ends it too."""
        self._is_finishing = True
        is_owing = self._standing.draining.is_set() and self._standing.owed
        if not self._open and not is_owing:
            async with self._writing:
                # A stream that is over already cannot be ended, and need not be.
                with suppress(grpc.aio.InternalError):
                    await self._stream.done_writing()

    async def _taken_call(self, call: AttachCall) -> None:
        number = call.call_number
        kind = call.WhichOneof("request")
        limit = self._welcome.max_concurrent_calls
        if kind == "get_call_status":
            await self._answer_status(call)
        elif kind not in ("call_tool", "stream_chat", "embed"):
            text = f"this server serves tools and models, not {kind or 'nothing'}"
            await self._end(number, Refused("UNIMPLEMENTED", "REQUEST_UNSUPPORTED", text))
        elif limit and len(self._open) >= limit:
            text = f"more calls at once than the {limit} that were agreed"
            await self._end(number, Refused("RESOURCE_EXHAUSTED", "RUNTIME_OVERLOADED", text))
        elif kind == "call_tool":
            self._open[number] = Open(call)
            if not call.more:
                await self._answer(number)
        else:
            self._open[number] = Open(call, work=asyncio.current_task())
            await self._answer_model(call)

    async def _taken_arguments(self, part: AttachArguments) -> None:
        opened = self._open.get(part.call_number)
        if opened is None or opened.running is not None:
            return
        opened.arguments.append(part.chunk)
        opened.arguments_bytes += len(part.chunk)
        if opened.arguments_bytes > ARGUMENTS_LIMIT_BYTES:
            text = f"arguments exceed the limit of {ARGUMENTS_LIMIT_BYTES} bytes"
            await self._end(part.call_number, Refused("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE", text))
        elif not part.more:
            try:
                opened.call.call_tool.arguments_json = b"".join(opened.arguments).decode()
            except UnicodeDecodeError:
                refused = Refused("INVALID_ARGUMENT", "REQUEST_MALFORMED", "the arguments are no UTF-8")
                await self._end(part.call_number, refused)
            else:
                await self._answer(part.call_number)

    async def _cancelled(self, number: int) -> None:
        opened = self._open.get(number)
        if opened is not None and opened.running is not None:
            opened.running.cancel()
        elif opened is not None and opened.work is not None:
            opened.work.cancel()
            # The end is the receipt: it is sent when the function has stopped.
            await asyncio.wait({opened.work})
            if number in self._open:
                await self._end(number, Refused("CANCELLED", "TRANSPORT_CANCELLED", "the call was cancelled"))
        elif opened is not None:
            await self._end(number, Refused("CANCELLED", "TOOL_CANCELLED", "the call was cancelled before it began"))

    async def _answer(self, number: int) -> None:
        """Answer a call of a tool, as far as the stream lets.

        Nothing ends at the deadline: the tool knows it, the daemon cancels, and a late answer may still settle a doubt.
        """
        call = self._open[number].call
        request = call.call_tool
        if request.idempotency_key:
            self._standing.owed.add(request.idempotency_key)
        try:
            running = self._service.call_tool(request, Origin(call.traceparent, self._standing.artifacts))
            self._open[number].running = running
            frames = self._service.frames(running, frame_bytes=self._welcome.max_frame_bytes or FRAME_BYTES)
            async with aclosing(frames) as answers:
                async for frame in answers:
                    part = AttachReply(call_number=number, call_tool=frame)
                    if frame.WhichOneof("frame") is None:
                        part = AttachReply(call_number=number, accepted=AttachAccepted())
                    if not await self._send(AttachServerRequest(reply=part)):
                        return
            ended = await self._end(number)
        except Refused as exc:
            ended = await self._end(number, exc)
        if ended and request.idempotency_key:
            self._offered.append((time.monotonic(), request.idempotency_key))

    async def _answer_model(self, call: AttachCall) -> None:
        """Answer a call of a model, which is over when the stream is."""
        try:
            async with aclosing(self._service.models.replies(call)) as replies:
                async for reply in replies:
                    if not await self._send(AttachServerRequest(reply=reply)):
                        return
            await self._end(call.call_number)
        except Refused as exc:
            await self._end(call.call_number, exc)

    async def _answer_status(self, call: AttachCall) -> None:
        try:
            response = await self._service.get_call_status(call.get_call_status)
        except Refused as exc:
            await self._end(call.call_number, exc)
        except Exception:  # noqa: BLE001  a store that fails must not end the stream
            _log.exception("the store of calls failed")
            failed = Refused("INTERNAL", "TOOL_FAILED", "the server failed", is_proof=False)
            await self._end(call.call_number, failed)
        else:
            part = AttachReply(call_number=call.call_number, get_call_status=response)
            if await self._send(AttachServerRequest(reply=part)):
                await self._end(call.call_number)

    async def _end(self, number: int, refused: Refused | None = None) -> bool:
        """End a call, and the stream if that was the last one it waits for: whether the daemon can know."""
        end = AttachEnd() if refused is None else AttachEnd(error=refused.status(), not_executed=refused.is_proof)
        is_sent = await self._send(AttachServerRequest(reply=AttachReply(call_number=number, end=end)))
        opened = self._open.pop(number, None)
        if is_sent and opened is not None:
            self._standing.owed.discard(opened.call.call_tool.idempotency_key)
        if self._is_finishing:
            await self._finish()
        return is_sent

    async def _send(self, frame: AttachServerRequest) -> bool:
        """Send a frame: whether the stream took it. If not, it is over, and reading it says why."""
        async with self._writing:
            try:
                await self._stream.write(frame)
            except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                return False
            return True
