"""The streams of attached servers: hello and welcome, heartbeats, frames in both directions, until one side ends it.

Above: RegistryService. Below: `registry`, which knows the servers, and `attached`. A stream has two tasks, one that
reads and one that writes; frames to be written are bounded by the calls that a server takes. What a server sends that
makes no sense ends its stream with a typed error, and its calls wait for the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from behest.v1.registry_service_pb2 import (
    AttachHello,
    AttachServerRequest,
    AttachServerResponse,
    AttachWelcome,
)
from behestd.core.times import duration
from behestd.errors import BehestError, InvalidRequest, Unavailable
from behestd.runtime.attached import Attached
from behestd.runtime.house import House
from behestd.runtime.registration import Owner
from behestd.runtime.registry import Registry
from behestd.tools.attached import Line
from behestd.tools.attached_call import Terms

_MISSED = 3
"""A stream on which so many heartbeats in a row did not come is dead."""
_HEARTBEAT = AttachServerResponse()

Write = Callable[[AttachServerResponse], Awaitable[None]]
"""Sends a frame, and waits until the transport has taken it."""
Take = Callable[[AttachServerRequest], Awaitable[None]]
Check = Callable[[AttachHello], None]


@dataclass(frozen=True, slots=True)
class Wire:
    """A stream as the edge gives it."""

    frames: AsyncIterator[Any]
    """What the server sends after its first hello, decoded. Raises InvalidRequest for what cannot be."""
    write: Write
    check: Check
    """Refuses a hello that makes no sense. Raises InvalidRequest, Unsupported."""
    max_frame_bytes: int


class AttachedStreams:
    """Serves the streams of attached servers."""

    def __init__(self, house: House, registry: Registry) -> None:
        self._house = house
        self._registry = registry

    async def serve(self, namespace: str, hello: AttachHello, owner: Owner, wire: Wire) -> None:
        """Attach a server, and serve its stream until it ends.

        Raises what `Registry.attach` raises, StreamReplaced, Draining, and what the frames of the server are refused
        with.
        """
        wire.check(hello)
        server = await self._attach(namespace, hello, owner)
        stream = AttachStream(self._house.limits.attach_heartbeat_seconds)
        ids = self._house.ids
        lease_id = hello.lease_id or ids.make("lease")
        line = Line(stream.send, self._terms(hello, wire), hello, lease_id, ids.make("stream"))
        server.connect(line, stream, self._house.clock.now_ns())
        stream.send(self._welcome(server, line))
        server.begin(line)
        self._registry.came_back(namespace, server.registration.id, line.held)
        take = partial(self._take, server, line, (owner, wire, stream))
        try:
            await stream.run(wire.frames, take, wire.write)
        finally:
            server.disconnect(line, self._house.clock.now_ns(), self._house.limits.reconnect_seconds)

    async def _attach(self, namespace: str, hello: AttachHello, owner: Owner) -> Attached:
        try:
            return await self._registry.attach(namespace, hello, owner)
        except InvalidRequest as error:
            raise error.below("hello") from None

    async def _take(
        self, server: Attached, line: Line, around: tuple[Owner, Wire, AttachStream], frame: AttachServerRequest
    ) -> None:
        """Take a frame of a server."""
        match frame.WhichOneof("frame"):
            case "reply":
                server.remote.receive(line, frame.reply)
            case "hello":
                await self._take_hello(server, line, around, frame.hello)
            case "drain":
                server.stop_dispatch()
            case None:
                pass

    async def _take_hello(
        self, server: Attached, line: Line, around: tuple[Owner, Wire, AttachStream], hello: AttachHello
    ) -> None:
        """Take another offer in place of the one before."""
        owner, wire, stream = around
        wire.check(hello)
        if hello.server_name != server.name:
            raise InvalidRequest("hello.server_name", "is not that of the first hello")
        await self._attach(server.namespace, hello, owner)
        server.remote.agree(line, self._terms(hello, wire))
        server.resume_dispatch()
        stream.send(self._welcome(server, line))

    def _terms(self, hello: AttachHello, wire: Wire) -> Terms:
        limit = self._house.limits.tool_calls
        return Terms(
            max_calls=min(hello.max_concurrent_calls or limit, limit),
            max_frame_bytes=wire.max_frame_bytes,
            takes_chunks=hello.takes_chunked_arguments,
        )

    def _welcome(self, server: Attached, line: Line) -> AttachServerResponse:
        limits = self._house.limits
        welcome = AttachWelcome(
            server=server.report(),
            reconnect_window=duration(limits.reconnect_seconds),
            heartbeat=duration(limits.attach_heartbeat_seconds),
            lease_id=line.lease_id,
            max_frame_bytes=line.terms.max_frame_bytes,
            max_concurrent_calls=line.terms.max_calls,
        )
        return AttachServerResponse(welcome=welcome)


class AttachStream:
    """One live stream: what is to be written, when something was heard last, and how it ends."""

    __slots__ = ("_ends", "_error", "_heard", "_heartbeat_seconds", "_loop", "_out", "_wake")

    def __init__(self, heartbeat_seconds: float) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        self._loop = asyncio.get_running_loop()
        self._out: deque[AttachServerResponse] = deque()
        self._wake = asyncio.Event()
        self._ends = False
        self._error: BehestError | None = None
        self._heard = self._loop.time()

    def send(self, frame: AttachServerResponse) -> None:
        """Put a frame on its way. Nothing is sent any more once the stream ends."""
        if not self._ends:
            self._out.append(frame)
            self._wake.set()

    def end(self, error: BehestError | None = None) -> None:
        """End the stream once everything is on its way. The first end counts."""
        if not self._ends:
            self._ends, self._error = True, error
            self._wake.set()

    async def run(self, frames: AsyncIterator[Any], take: Take, write: Write) -> None:
        """Read and write until one side ends the stream. Raises the error that it ends with."""
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(frames, take))
            try:
                await self._write(write)
            except BehestError as error:
                self.end(error)
            finally:
                reader.cancel()
        if self._error is not None:
            raise self._error

    async def _read(self, frames: AsyncIterator[Any], take: Take) -> None:
        try:
            async for frame in frames:
                self._heard = self._loop.time()
                if self._ends:
                    return
                await take(frame)
        except BehestError as error:
            self.end(error)
        self.end()

    async def _write(self, write: Write) -> None:
        """Write what is there, and a heartbeat when nothing is. Raises Unavailable when the server is silent."""
        silence_seconds = _MISSED * self._heartbeat_seconds
        while True:
            while self._out:
                await write(self._out.popleft())
            if self._ends:
                return
            if self._loop.time() - self._heard > silence_seconds:
                text = f"no sign of life within {silence_seconds:g} s"
                raise Unavailable("TRANSPORT_STREAM_BROKEN", text)
            self._wake.clear()
            try:
                async with asyncio.timeout(self._heartbeat_seconds):
                    await self._wake.wait()
            except TimeoutError:
                await write(_HEARTBEAT)
