"""Calls a provider server and reports all that comes back, good or bad, as values.

Above: `models_survey` and the checks of models. Below: grpc.aio, raw bytes, no retries. Guarantees: no call outlasts
its limit, and no error of grpc or of decoding leaves a method: what went wrong is in the answer.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from behest.channel import open_channel
from behest.conformance.probe import RECEIVE_BYTES, Answer, Ending, Value, ending_of
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd, StreamChatRequest, StreamChatResponse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What a StreamChat gave until it ended, or until it was no longer waited for (`is_open`). Sizes are in bytes."""

    chat: Chat
    frames: tuple[StreamChatResponse, ...]
    sizes: tuple[int, ...]
    ending: Ending
    is_open: bool
    seconds: float

    @property
    def deltas(self) -> list[ChatDelta]:
        """All pieces, in order."""
        return [delta for frame in self.frames for delta in frame.deltas]

    @property
    def ends(self) -> list[ChatEnd]:
        """Every end that came."""
        return [frame.end for frame in self.frames if frame.HasField("end")]

    @property
    def end(self) -> ChatEnd:
        """The first end, empty when none came."""
        return next(iter(self.ends), ChatEnd())

    @property
    def is_good(self) -> bool:
        """Whether the call ended well, with an end."""
        return not self.is_open and self.ending.is_ok and bool(self.ends)

    @property
    def text(self) -> str:
        """The text of the end."""
        return "".join(part.text.text for part in self.end.message.parts)

    def __str__(self) -> str:
        if self.is_open:
            return f"no end within {self.seconds:.1f} s"
        if not self.ending.is_ok:
            return str(self.ending)
        return "an answer" if self.ends else "OK without an end"


class OngoingChat:
    """A StreamChat that was sent. One task reads it until it ends, or until `finish` gives it up."""

    def __init__(self, chat: Chat, call: grpc.aio.UnaryStreamCall[Any, Any], group: asyncio.TaskGroup) -> None:
        self._chat = chat
        self._call = call
        self._frames: list[StreamChatResponse] = []
        self._sizes: list[int] = []
        self._ending = Ending(grpc.StatusCode.CANCELLED)
        self._began = time.monotonic()
        self._first = asyncio.Event()
        self._ended = asyncio.Event()
        self._reader = group.create_task(self._read())

    async def begun(self, seconds: float) -> bool:
        """Wait for a first frame, at most so long; whether the call goes on."""
        try:
            async with asyncio.timeout(seconds):
                await self._first.wait()
        except TimeoutError:
            pass
        return not self._ended.is_set()

    async def finish(self, seconds: float) -> ChatReply:
        """Wait for the end, at most so long, and return all that came. The stream is cancelled if it has not ended."""
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
            is_open = False
        except TimeoutError:
            is_open = True
        self._call.cancel()
        await self._ended.wait()
        taken = time.monotonic() - self._began
        return ChatReply(self._chat, tuple(self._frames), tuple(self._sizes), self._ending, is_open, taken)

    async def _read(self) -> None:
        garbage = ""
        try:
            async for data in self._call:
                try:
                    self._frames.append(StreamChatResponse.FromString(data))
                    self._sizes.append(len(data))
                except DecodeError:
                    garbage = "a frame that is no StreamChatResponse"
                self._first.set()
            self._ending = Ending(garbage=garbage)
        except grpc.aio.AioRpcError as exc:
            self._ending = ending_of(exc)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        finally:
            self._first.set()
            self._ended.set()


class ModelProbe:
    """A channel to one server. Used as `async with`."""

    def __init__(self, address: str, *, token: str = "", seconds: float = 10.0, tls: bool = False) -> None:
        """`seconds` is how long an answer is waited for."""
        self.token = token
        self.seconds = seconds
        # Larger requests than a server takes must reach it too.
        limits = (("grpc.max_receive_message_length", RECEIVE_BYTES), ("grpc.max_send_message_length", -1))
        credentials = grpc.ssl_channel_credentials() if tls else None
        self._channel = open_channel(address, credentials=credentials, options=limits)
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()
        await self._group.__aexit__(kind, exc, traceback)

    @staticmethod
    def mark() -> str:
        """Make a word that was never used."""
        return f"mark{uuid.uuid4().hex[:12]}"

    def start(self, chat: Chat, *, deadline_seconds: float | None = None) -> OngoingChat:
        """Send a call. Without a deadline of the RPC, only `finish` bounds it."""
        ask: grpc.aio.UnaryStreamMultiCallable[StreamChatRequest, bytes] = self._channel.unary_stream(
            "/behest.v1.ChatService/StreamChat", request_serializer=StreamChatRequest.SerializeToString
        )
        call = ask(StreamChatRequest(chat=chat), timeout=deadline_seconds, metadata=self._metadata())
        return OngoingChat(chat, call, self._group)

    async def chat(self, chat: Chat) -> ChatReply:
        """Send a call and wait for its end."""
        return await self.start(chat).finish(self.seconds)

    async def chats(self, chats: Sequence[Chat]) -> list[ChatReply]:
        """Send calls at once and wait for all."""
        started = [self.start(chat) for chat in chats]
        return [await each.finish(self.seconds) for each in started]

    async def unary(
        self, method: str, request: Message, response: type[Value], *, has_token: bool = True
    ) -> Answer[Value]:
        """Make a unary call; the method is given as `Service/Method`."""
        ask: Any = self._channel.unary_unary(
            f"/behest.v1.{method}", request_serializer=lambda message: message.SerializeToString()
        )
        try:
            data = await ask(request, timeout=self.seconds, metadata=self._metadata() if has_token else ())
            return Answer(Ending(), response.FromString(data))
        except grpc.aio.AioRpcError as exc:
            return Answer(ending_of(exc), response())
        except DecodeError:
            return Answer(Ending(garbage=f"an answer that is no {response.DESCRIPTOR.name}"), response())

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()
