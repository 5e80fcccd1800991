"""An attached tool server by hand: each frame of the protocol is sent and read by the test itself, over a raw stub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc

from behest.v1.message_pb2 import Part, TextPart, ToolResult
from behest.v1.registry_service_pb2 import (
    AttachAccepted,
    AttachCall,
    AttachDrain,
    AttachEnd,
    AttachHeld,
    AttachHello,
    AttachReply,
    AttachServerRequest,
    AttachServerResponse,
    AttachWelcome,
)
from behest.v1.registry_service_pb2_grpc import RegistryServiceStub
from behest.v1.tool_pb2 import Progress, Tool
from behest.v1.tool_service_pb2 import CallToolResponse

WAIT_SECONDS = 20.0
"""How long a test waits for a frame: machines are slow and loaded."""


def tool(name: str = "pay", schema: str = '{"type": "object"}', **fields: str) -> Tool:
    """Make a tool."""
    return Tool(name=name, input_schema_json=schema, **fields)


def result(text: str, **fields: Any) -> ToolResult:
    """Make a result of a text."""
    return ToolResult(parts=[Part(text=TextPart(text=text))], **fields)


class Peer:
    """One stream of an attached server. Made by `attached`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stream = RegistryServiceStub(channel).AttachServer()
        self.welcome = AttachWelcome()

    async def hello(self, name: str = "till", tools: Iterable[Tool] | None = None, **fields: Any) -> AttachWelcome:
        """Say hello, and read the welcome, which comes before everything else."""
        held = [AttachHeld(idempotency_key=key, is_done=done) for key, done in fields.pop("held", {}).items()]
        hello = AttachHello(server_name=name, tools=[tool()] if tools is None else tools, held=held, **fields)
        await self.write(AttachServerRequest(hello=hello))
        frame = await self.next()
        assert frame.WhichOneof("frame") == "welcome", frame
        self.welcome = frame.welcome
        return frame.welcome

    async def write(self, frame: AttachServerRequest) -> None:
        """Send a frame."""
        async with asyncio.timeout(WAIT_SECONDS):
            await self.stream.write(frame)

    async def next(self, seconds: float = WAIT_SECONDS) -> AttachServerResponse:
        """Read the next frame that is no heartbeat. Raises AioRpcError, and EOFError at the end."""
        async with asyncio.timeout(seconds):
            while True:
                frame = await self.stream.read()
                if not isinstance(frame, AttachServerResponse):
                    raise EOFError
                if frame.WhichOneof("frame") is not None:
                    return frame

    async def call(self) -> AttachCall:
        """Read the next frame, which is a call."""
        frame = await self.next()
        assert frame.WhichOneof("frame") == "call", frame
        return frame.call

    async def reply(self, number: int, **response: Any) -> None:
        """Send a part of the answer to a call."""
        await self.write(AttachServerRequest(reply=AttachReply(call_number=number, **response)))

    async def accept(self, call: AttachCall) -> None:
        """Say that a call has begun."""
        await self.reply(call.call_number, accepted=AttachAccepted())

    async def show(self, call: AttachCall, text: str) -> None:
        """Show progress."""
        await self.reply(call.call_number, call_tool=CallToolResponse(progress=Progress(text=text)))

    async def finish(self, call: AttachCall, text: str = "paid") -> None:
        """Answer a call and end it."""
        await self.reply(call.call_number, call_tool=CallToolResponse(result=result(text)))
        await self.reply(call.call_number, end=AttachEnd())

    async def drain(self) -> None:
        """Say that no calls are wanted any more."""
        await self.write(AttachServerRequest(drain=AttachDrain()))

    async def end(self) -> None:
        """End the stream in order, and read what is left of it."""
        await self.stream.done_writing()
        async with asyncio.timeout(WAIT_SECONDS):
            while await self.stream.read() is not grpc.aio.EOF:
                pass

    async def broken(self) -> grpc.aio.AioRpcError:
        """Wait for the daemon to end the stream with an error."""
        try:
            while True:
                await self.next()
        except grpc.aio.AioRpcError as error:
            return error
        except EOFError:
            raise AssertionError("the stream ended well") from None

    def drop(self) -> None:
        """Lose the stream, as a link that breaks does."""
        self.stream.cancel()


@asynccontextmanager
async def attached(address: str, name: str = "till", **hello: Any) -> AsyncIterator[Peer]:
    """Attach over a connection of its own; the stream is lost in the end."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 8 * 1024 * 1024))
    async with grpc.aio.insecure_channel(address, options) as channel:
        peer = Peer(channel)
        try:
            await peer.hello(name, **hello)
            yield peer
        finally:
            peer.drop()


def keys(*calls: AttachCall, done: bool) -> Mapping[str, bool]:
    """What is reported of calls."""
    return {call.call_tool.idempotency_key: done for call in calls}
