"""A tool server attached to a daemon: one stream at a time, opened again whenever it breaks.

Above: `tools`. Below: `calls`. Guarantees: each stream first reports every key that is held, so that the daemon joins
what runs and takes what is done; each call ends by one `end`; both sides hear each other every heartbeat, or the stream
is dead. What runs when a stream breaks goes on, and keeps its result, if it has a key.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, aclosing, suppress
from datetime import timedelta
from typing import Any

from grpclib.client import Stream
from grpclib.const import Cardinality, Status
from grpclib.exceptions import ProtocolError, StreamTerminatedError

from behest_lite.calls import Call, Calls, Refused
from behest_lite.client import bearer, open_channel
from behest_lite.contract.behest.v1 import (
    AttachAccepted,
    AttachArguments,
    AttachCall,
    AttachDrain,
    AttachEnd,
    AttachHeld,
    AttachHello,
    AttachReply,
    AttachServerRequest,
    AttachServerResponse,
    AttachWelcome,
    CallToolRequest,
    CallToolResponse,
    Tool,
)
from behest_lite.errors import DOMAIN, BehestError, ErrorInfo, broken, rpc_status, translated
from behest_lite.follow import Backoff
from behest_lite.results import CHUNK_BYTES
from behest_lite.store import RETENTION_SECONDS

ROUTE = "/behest.v1.RegistryService/AttachServer"
WELCOME_SECONDS = 30.0
HEARTBEAT_SECONDS = 15.0
SILENT_HEARTBEATS = 3
ARGUMENTS_BYTES = 16 * 1024 * 1024


class Attachment:
    """The attachment of one server to one daemon."""

    def __init__(
        self,
        address: str,
        name: str,
        calls: Calls,
        tools: Callable[[], list[Tool]],
        *,
        token: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Raise ValueError for a token that would leave this machine in the clear."""
        self._address = address
        self._tls = tls
        self._name = name
        self._calls = calls
        self._tools = tools
        self._metadata = bearer(token, address, tls)
        self._lease_id = ""

    async def run(self, max_concurrent_calls: int, ready: Callable[[], None], stopping: asyncio.Event) -> None:
        """Attach, and attach again, until stopping is set. Raises BehestError when no repeat could help."""
        backoff = Backoff(math.inf)
        channel = open_channel(self._address, self._tls)

        def welcomed(welcome: AttachWelcome) -> None:
            self._lease_id = welcome.lease_id
            backoff.heard()
            ready()

        try:
            while not stopping.is_set():
                try:
                    with translated():
                        async with channel.request(
                            ROUTE,
                            Cardinality.STREAM_STREAM,
                            AttachServerRequest,
                            AttachServerResponse,
                            metadata=self._metadata,
                        ) as stream:
                            await Link(stream, self._calls, welcomed).serve(
                                await self._hello(max_concurrent_calls), stopping
                            )
                    error = broken("the daemon ended the stream")
                except BehestError as exc:
                    if not exc.is_undecided:
                        raise
                    error = exc
                if not stopping.is_set():
                    await backoff.pause(error)
        finally:
            channel.close()

    async def _hello(self, max_concurrent_calls: int) -> AttachHello:
        held = await self._calls.held()
        retention = timedelta(seconds=RETENTION_SECONDS) if self._calls.is_durable else None
        return AttachHello(
            server_name=self._name,
            tools=self._tools(),
            dedupe_retention=retention,
            max_concurrent_calls=max_concurrent_calls,
            held=[AttachHeld(idempotency_key=key, is_done=is_done) for key, is_done in held],
            lease_id=self._lease_id,
            takes_chunked_arguments=True,
        )


class Link:
    """One stream, from hello to end."""

    def __init__(
        self,
        stream: Stream[AttachServerRequest, AttachServerResponse],
        calls: Calls,
        welcomed: Callable[[AttachWelcome], None],
    ) -> None:
        self._stream = stream
        self._calls = calls
        self._welcomed = welcomed
        self._welcome: AttachWelcome | None = None
        # Frames of all calls share the stream, where each write must be alone.
        self._writing = asyncio.Lock()
        self._arguments: dict[int, tuple[AttachCall, bytearray]] = {}
        self._open: dict[int, Call | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_finishing = False

    async def serve(self, hello: AttachHello, stopping: asyncio.Event) -> None:
        """Serve until the stream ends. Raises what grpclib raises, TimeoutError after too long a silence."""
        error: Exception | None = None
        await self._stream.send_request()
        async with asyncio.TaskGroup() as group:
            self._start(group, self._greet(hello))
            self._start(group, self._stop(stopping))
            try:
                while (frame := await self._next()) is not None:
                    self._take(frame, group)
                await self._stream.recv_trailing_metadata()
            except Exception as exc:  # noqa: BLE001  raised again behind the group, which would wrap it
                error = exc
            for task in self._tasks:
                task.cancel()
        if error is not None:
            raise error

    async def _next(self) -> AttachServerResponse | None:
        silence = WELCOME_SECONDS if self._welcome is None else self._heartbeat_seconds * SILENT_HEARTBEATS
        async with asyncio.timeout(silence):
            return await self._stream.recv_message()

    @property
    def _heartbeat_seconds(self) -> float:
        heartbeat = self._welcome.heartbeat if self._welcome is not None else None
        return (heartbeat.total_seconds() if heartbeat is not None else 0.0) or HEARTBEAT_SECONDS

    @property
    def _limit_bytes(self) -> int:
        """How much content a frame may carry, with room for what is around it."""
        agreed = self._welcome.max_frame_bytes if self._welcome is not None else 0
        return min(CHUNK_BYTES, agreed // 2) if agreed else CHUNK_BYTES

    def _start(self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> None:
        task = group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _greet(self, hello: AttachHello) -> None:
        await self._send(AttachServerRequest(hello=hello))
        while True:
            await asyncio.sleep(self._heartbeat_seconds / 2)
            await self._send(AttachServerRequest())

    async def _stop(self, stopping: asyncio.Event) -> None:
        """Once the server stops, say so, finish what runs, and end the stream."""
        await stopping.wait()
        await self._send(AttachServerRequest(drain=AttachDrain()))
        await self._calls.idle()
        await self._finish()

    async def _finish(self) -> None:
        """End the stream once no call is open on it; the daemon then ends it too."""
        self._is_finishing = True
        if not self._open:
            async with self._writing:
                with _given_up():
                    await self._stream.end()

    def _take(self, frame: AttachServerResponse, group: asyncio.TaskGroup) -> None:
        """Act on a frame; what takes time is a task, so that the next frame is read."""
        if frame.welcome is not None:
            self._welcome = frame.welcome
            self._welcomed(frame.welcome)
        elif frame.call is not None:
            self._open[frame.call.call_number] = None
            if frame.call.more:
                self._arguments[frame.call.call_number] = (frame.call, bytearray())
            else:
                self._start(group, self._answer(frame.call))
        elif frame.arguments is not None:
            self._take_arguments(frame.arguments, group)
        elif frame.cancel is not None:
            call = self._open.get(frame.cancel.call_number)
            if call is not None:
                call.cancel()
            elif self._arguments.pop(frame.cancel.call_number, None) is not None:
                refused = Refused(Status.CANCELLED, "TOOL_CANCELLED", "the call was cancelled before it began")
                self._start(group, self._end(frame.cancel.call_number, refused))
        elif frame.drain is not None:
            self._start(group, self._finish())

    def _take_arguments(self, part: AttachArguments, group: asyncio.TaskGroup) -> None:
        opened = self._arguments.get(part.call_number)
        if opened is None:
            return
        call, data = opened
        data += part.chunk
        if part.more and len(data) <= ARGUMENTS_BYTES:
            return
        del self._arguments[part.call_number]
        if len(data) > ARGUMENTS_BYTES:
            text = f"arguments exceed the limit of {ARGUMENTS_BYTES} bytes"
            refused = Refused(Status.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE", text)
            self._start(group, self._end(part.call_number, refused))
            return
        request = call.call_tool or CallToolRequest()
        request.arguments_json = data.decode(errors="replace")
        self._start(group, self._answer(call))

    async def _answer(self, call: AttachCall) -> None:
        number = call.call_number
        try:
            if call.call_tool is not None:
                await self._answer_call(number, call.call_tool)
            elif call.get_call_status is not None:
                told = await self._calls.status(call.get_call_status)
                await self._reply(AttachReply(call_number=number, get_call_status=told))
            else:
                raise Refused(Status.UNIMPLEMENTED, "REQUEST_UNSUPPORTED", "this server serves tools alone")
            await self._end(number, None)
        except Refused as exc:
            await self._end(number, exc)

    async def _answer_call(self, number: int, request: CallToolRequest) -> None:
        call = self._open[number] = self._calls.begin(request)
        try:
            async with aclosing(call.frames(self._limit_bytes)) as frames:
                async for frame in frames:
                    if frame == CallToolResponse():
                        await self._reply(AttachReply(call_number=number, accepted=AttachAccepted()))
                    else:
                        await self._reply(AttachReply(call_number=number, call_tool=frame))
        finally:
            if not request.idempotency_key and call.outcome is None:
                call.cancel()

    async def _end(self, number: int, refused: Refused | None) -> None:
        end = AttachEnd()
        if refused is not None:
            info = ErrorInfo(reason=refused.reason, domain=DOMAIN)
            end.error = rpc_status(refused.status, refused.message, info)
            end.not_executed = refused.is_proof
        await self._reply(AttachReply(call_number=number, end=end))
        self._open.pop(number, None)
        if self._is_finishing:
            await self._finish()

    async def _reply(self, reply: AttachReply) -> None:
        await self._send(AttachServerRequest(reply=reply))

    async def _send(self, frame: AttachServerRequest) -> None:
        """Send a frame. One that the stream does not take is given up: reading it says why it is over."""
        async with self._writing:
            with _given_up():
                await self._stream.send_message(frame)


def _given_up() -> AbstractContextManager[None]:
    return suppress(StreamTerminatedError, ProtocolError, OSError)
