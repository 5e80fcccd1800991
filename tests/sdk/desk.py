"""A scripted daemon for tests of attached servers: it takes each stream, and a test says what goes down on it.

Only what the contract of AttachServer says, frame by frame: what a real daemon does with it is tested with a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from behest.v1 import artifact_service_pb2, artifact_service_pb2_grpc, registry_service_pb2_grpc
from behest.v1.artifact_pb2 import Artifact
from behest.v1.daemon_service_pb2 import GetServerInfoRequest, GetServerInfoResponse
from behest.v1.daemon_service_pb2_grpc import DaemonServiceServicer, add_DaemonServiceServicer_to_server
from behest.v1.message_pb2 import ToolResult
from behest.v1.registry_service_pb2 import (
    AttachCall,
    AttachCancel,
    AttachDrain,
    AttachHello,
    AttachReply,
    AttachServerRequest,
    AttachServerResponse,
    AttachWelcome,
)
from behest.v1.tool_service_pb2 import CallToolRequest, GetCallStatusRequest
from tests import ports
from tests.sdk.daemon import abort

SECONDS = 20


class Stream:
    """One stream of a server, as its daemon sees it."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.metadata = dict(context.invocation_metadata() or ())
        self.over: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.frames: asyncio.Queue[AttachServerRequest | None] = asyncio.Queue()
        self._context = context
        self._last = 0

    async def next(self) -> AttachServerRequest | None:
        """Return the next frame that is no heartbeat; None: the server has nothing more to say."""
        async with asyncio.timeout(SECONDS):
            while True:
                frame = await self.frames.get()
                if frame is None or frame.WhichOneof("frame") is not None:
                    return frame

    async def hello(self) -> AttachHello:
        """Return the hello, which must be what comes next."""
        frame = await self.next()
        assert frame is not None
        assert frame.HasField("hello")
        return frame.hello

    async def welcomed(self, **terms: Any) -> AttachHello:
        """Take the hello, and welcome the server, for a lease and with heartbeats of a minute unless said otherwise."""
        hello = await self.hello()
        settled: dict[str, Any] = {"lease_id": "lease-1", "heartbeat": Duration(seconds=60)}
        await self.send(AttachServerResponse(welcome=AttachWelcome(**(settled | terms))))
        return hello

    async def send(self, frame: AttachServerResponse) -> None:
        """Send a frame."""
        await self._context.write(frame)

    async def call(self, **fields: Any) -> int:
        """Send a call of a tool, and return its number."""
        self._last += 1
        request = {"tool_name": "t", "arguments_json": "{}", "attempt": 1, "epoch": 1, "call_id": "call-1"} | fields
        call = AttachCall(call_number=self._last, traceparent="00-trace", call_tool=CallToolRequest(**request))
        await self.send(AttachServerResponse(call=call))
        return self._last

    async def ask(self, key: str) -> int:
        """Ask for the state of a key, and return the number of the call."""
        self._last += 1
        request = GetCallStatusRequest(idempotency_key=key, epoch=1)
        await self.send(AttachServerResponse(call=AttachCall(call_number=self._last, get_call_status=request)))
        return self._last

    async def cancel(self, number: int) -> None:
        """Cancel a call."""
        await self.send(AttachServerResponse(cancel=AttachCancel(call_number=number)))

    async def drain(self) -> None:
        """Say that no more calls come."""
        await self.send(AttachServerResponse(drain=AttachDrain()))

    async def reply(self) -> AttachReply:
        """Return the next reply, which must be what comes next."""
        frame = await self.next()
        assert frame is not None
        assert frame.HasField("reply"), frame
        return frame.reply

    async def answer(self, number: int) -> list[AttachReply]:
        """Return all replies to a call, up to its end, when those of no other come in between."""
        replies = [await self.reply()]
        while not replies[-1].HasField("end"):
            replies.append(await self.reply())
        assert {reply.call_number for reply in replies} == {number}
        return replies

    async def result(self, number: int) -> ToolResult:
        """Return the result of a call that ends well."""
        replies = await self.answer(number)
        assert not replies[-1].end.HasField("error"), replies[-1]
        return replies[-2].call_tool.result

    def break_off(self) -> None:
        """End the stream as a dying connection does."""
        self.over.set_result(None)

    def refuse(self, error: Any) -> None:
        """End the stream with a status."""
        self.over.set_result(error)


@dataclass
class Desk(
    registry_service_pb2_grpc.RegistryServiceServicer,
    artifact_service_pb2_grpc.ArtifactServiceServicer,
    DaemonServiceServicer,
):
    """The daemon: streams in the order in which they came, artifacts that were written, and who asked if it is there.

    Without `is_there` it hangs: it answers nobody who asks.
    """

    is_there: bool = True
    asked: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    streams: asyncio.Queue[Stream] = field(default_factory=asyncio.Queue)
    artifacts: list[tuple[artifact_service_pb2.WriteArtifactHeader, bytes]] = field(default_factory=list)

    async def stream(self) -> Stream:
        """Return the next stream."""
        async with asyncio.timeout(SECONDS):
            return await self.streams.get()

    async def AttachServer(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        stream = Stream(context)

        async def read() -> None:
            async for frame in request_iterator:
                stream.frames.put_nowait(frame)
            stream.frames.put_nowait(None)
            if not stream.over.done():
                stream.over.set_result("")

        reading = asyncio.ensure_future(read())
        self.streams.put_nowait(stream)
        try:
            end = await stream.over
        finally:
            reading.cancel()
        if end is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection died")
        elif end:
            await abort(context, end)

    async def WriteArtifact(self, request_iterator: Any, context: Any) -> artifact_service_pb2.WriteArtifactResponse:
        frames = [frame async for frame in request_iterator]
        self.artifacts.append((frames[0].header, b"".join(frame.chunk for frame in frames[1:])))
        artifact = Artifact(id=f"art_{len(self.artifacts)}", name=frames[0].header.name)
        return artifact_service_pb2.WriteArtifactResponse(artifact=artifact)

    async def GetServerInfo(self, request: GetServerInfoRequest, context: Any) -> GetServerInfoResponse:
        self.asked.put_nowait(None)
        if not self.is_there:
            await asyncio.get_running_loop().create_future()
        return GetServerInfoResponse()


@contextlib.asynccontextmanager
async def serving(desk: Desk, port: int = 0) -> AsyncIterator[int]:
    """Serve on a loopback port, and stop at once afterwards, cutting what is open."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(desk, server)
    artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(desk, server)
    add_DaemonServiceServicer_to_server(desk, server)
    port = server.add_insecure_port(f"127.0.0.1:{port or ports.reserved()}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)
