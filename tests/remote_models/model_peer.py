"""Model servers by hand, without the SDK: what they send is up to the test, and what reached them is written down.

`Raw` is dialled and answers a chat with whatever frames it is given, bytes that are none included. `Attending` serves
the scripted provider over the stream of an attached server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd, StreamChatRequest, StreamChatResponse
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.model_pb2 import Model, ModelCapabilities
from behest.v1.model_service_pb2 import ListModelsRequest, ListModelsResponse
from behest.v1.registry_service_pb2 import AttachCall, AttachEnd
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.providers.failure import ProviderFailure
from behestd.providers.scripted import Scripted
from tests import ports
from tests.attach.peer import Peer

WAIT_SECONDS = 60.0
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", 4_000_000),
    ("grpc.so_reuseport", 0),
)
OFFERS = (ServerOffer.SERVER_OFFER_CHAT, ServerOffer.SERVER_OFFER_EMBEDDINGS)
_ALL = ModelCapabilities(
    chat=True, streaming=True, tools=True, parallel_tool_calls=True, json_object=True, json_schema=True, reasoning=True
)

Frame = StreamChatResponse | bytes
Play = Callable[[Chat, "Seen"], AsyncIterator[Frame]]


class Refusal(Exception):
    """Raised by a play to end its call with a status."""

    def __init__(self, code: grpc.StatusCode, text: str = "no", *, reason: str = "", retry: float = 0.0) -> None:
        super().__init__(text)
        self.code = code
        self.status = Status(code=code.value[0], message=text, details=[])
        if reason:
            self._add(ErrorInfo(reason=reason, domain="behest"))
        if retry:
            delay = Duration()
            delay.FromNanoseconds(int(retry * 1e9))
            self._add(RetryInfo(retry_delay=delay))

    def _add(self, detail: Any) -> None:
        packed = AnyMessage()
        packed.Pack(detail)
        self.status.details.append(packed)


class Seen:
    """What reached a server of one call."""

    def __init__(self, chat: Chat, metadata: dict[str, Any], left_seconds: float | None) -> None:
        self.chat = chat
        self.metadata = metadata
        self.left_seconds = left_seconds
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()


def model(name: str = "m", **fields: Any) -> Model:
    """Make a model as a server lists it."""
    capabilities = ModelCapabilities(embeddings=True) if fields.pop("embeds", False) else _ALL
    return Model(id=name, capabilities=capabilities, **fields)


def piece(text: str, part: int = 0) -> StreamChatResponse:
    """Make a frame of one piece of text."""
    return StreamChatResponse(deltas=[ChatDelta(part=part, text=text)])


def end(text: str = "", *parts: Part, **fields: Any) -> StreamChatResponse:
    """Make a last frame."""
    said = [Part(text=TextPart(text=text))] if text else []
    made = {
        "message": Message(role=Role.ROLE_ASSISTANT, parts=[*said, *parts]),
        "finish_reason": FinishReason.FINISH_REASON_STOP,
        "usage": Usage(input_tokens=7, output_tokens=3, attempts=1),
        "usage_source": UsageSource.USAGE_SOURCE_REPORTED,
    }
    return StreamChatResponse(end=ChatEnd(**(made | fields)))


def saying(*frames: Frame) -> Play:
    """Play that sends these frames."""

    async def play(chat: Chat, seen: Seen) -> AsyncIterator[Frame]:
        for frame in frames:
            yield frame

    return play


async def endless(chat: Chat, seen: Seen) -> AsyncIterator[Frame]:
    """Play that says something and then waits until it is stopped, which it writes down."""
    yield piece("a ")
    seen.begun.set()
    try:
        await asyncio.Event().wait()
    except (asyncio.CancelledError, GeneratorExit):
        seen.cancelled.set()
        raise


def scripted(provider: Scripted) -> Play:
    """Play the scripted provider, whose models have its own names here."""

    async def play(chat: Chat, seen: Seen) -> AsyncIterator[Frame]:
        asked = Chat()
        asked.CopyFrom(chat)
        asked.model = "scripted/echo"
        try:
            async with aclosing(provider.stream(asked)) as frames:
                async for frame in frames:
                    yield frame
        except ProviderFailure as failure:
            code = grpc.StatusCode.FAILED_PRECONDITION
            raise Refusal(code, reason=failure.reason, retry=failure.retry_after_seconds or 0.0) from failure

    return play


async def _begun(seen: list[Seen], count: int) -> Seen:
    async with asyncio.timeout(WAIT_SECONDS):
        while len(seen) < count:
            await asyncio.sleep(0.01)
        await seen[count - 1].begun.wait()
    return seen[count - 1]


class Raw:
    """A dialled model server. `models`, `play` and `embed` may be changed while it serves."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.models = [model(), model("vectors", embeds=True)]
        self.embedded: Callable[[EmbedRequest], EmbedResponse] = lambda request: EmbedResponse()
        self.seen: list[Seen] = []
        self.listed = 0
        self.address = ""

    def registration(self, name: str = "far", **fields: Any) -> Server:
        """How it is registered."""
        dialled = ServerConnection.SERVER_CONNECTION_DIALLED
        return Server(name=name, connection=dialled, address=self.address, **({"offers": OFFERS} | fields))

    async def until(self, count: int = 1) -> Seen:
        """Wait until so many calls have come and the last of them has begun; gives it."""
        return await _begun(self.seen, count)

    async def _stream(self, request: StreamChatRequest, context: Any) -> None:
        metadata = dict(context.invocation_metadata() or ())
        seen = Seen(request.chat, metadata, context.time_remaining())
        self.seen.append(seen)
        try:
            async with aclosing(self.play(request.chat, seen)) as frames:  # type: ignore[type-var]
                async for frame in frames:
                    await context.write(frame if isinstance(frame, bytes) else frame.SerializeToString())
        except Refusal as refusal:
            details = (("grpc-status-details-bin", refusal.status.SerializeToString()),)
            await context.abort(refusal.code, str(refusal), details)

    async def _list(self, request: ListModelsRequest, context: Any) -> bytes:
        self.listed += 1
        return ListModelsResponse(models=self.models).SerializeToString()

    async def _embed(self, request: EmbedRequest, context: Any) -> bytes:
        return self.embedded(request).SerializeToString()

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Its methods."""

        def unary(method: Any, request: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(method, request.FromString, None)

        stream = grpc.unary_stream_rpc_method_handler(self._stream, StreamChatRequest.FromString, None)
        return [
            grpc.method_handlers_generic_handler("behest.v1.ChatService", {"StreamChat": stream}),
            grpc.method_handlers_generic_handler(
                "behest.v1.ModelService", {"ListModels": unary(self._list, ListModelsRequest)}
            ),
            grpc.method_handlers_generic_handler(
                "behest.v1.EmbeddingService", {"Embed": unary(self._embed, EmbedRequest)}
            ),
        ]


@asynccontextmanager
async def raw(play: Play = saying(piece("hi"), end("hi")), address: str = "") -> AsyncIterator[Raw]:  # noqa: B008
    """Serve by hand, on a free port unless an address is given."""
    made = Raw(play)
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers(tuple(made.handlers()))
    port = server.add_insecure_port(address or ports.address())
    made.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield made
    finally:
        await server.stop(0)


class Attending:
    """Answers the calls of models that come over the stream of an attached server, as a play has it."""

    def __init__(self, peer: Peer, play: Play) -> None:
        self.peer = peer
        self.play = play
        self.seen: list[Seen] = []
        self._work: dict[int, asyncio.Task[None]] = {}
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Serve until the stream ends or this is cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                frame = await self.peer.next(600)
                match frame.WhichOneof("frame"):
                    case "call":
                        self._work[frame.call.call_number] = group.create_task(self._answer(frame.call))
                    case "cancel":
                        await self._stop(frame.cancel.call_number)

    async def until(self, count: int = 1) -> Seen:
        """Wait until so many calls have come and the last of them has begun; gives it."""
        return await _begun(self.seen, count)

    async def _reply(self, number: int, **response: Any) -> None:
        async with self._writing:
            await self.peer.reply(number, **response)

    async def _stop(self, number: int) -> None:
        work = self._work[number]
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
            await self._reply(number, end=AttachEnd(error=Status(code=grpc.StatusCode.CANCELLED.value[0])))

    async def _answer(self, call: AttachCall) -> None:
        seen = Seen(call.stream_chat.chat, {"traceparent": call.traceparent}, None)
        self.seen.append(seen)
        number = call.call_number
        try:
            async with aclosing(self.play(call.stream_chat.chat, seen)) as frames:  # type: ignore[type-var]
                async for frame in frames:
                    assert not isinstance(frame, bytes)
                    await self._reply(number, stream_chat=frame)
        except Refusal as refusal:
            await self._reply(number, end=AttachEnd(error=refusal.status))
        else:
            await self._reply(number, end=AttachEnd())
