"""Calls a provider server and reports all that comes back, good or bad, as values.

Above: `models_survey` and the checks of models. Below: `wire`, whose guarantees hold here.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from behest.conformance.wire import Link, Ongoing, Stream
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd, StreamChatRequest, StreamChatResponse

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class ChatReply(Stream[StreamChatResponse]):
    """What a StreamChat gave."""

    chat: Chat

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
        return self.told("an answer" if self.ends else "OK without an end")


ChatCall: TypeAlias = Ongoing[StreamChatResponse, ChatReply]
"""A StreamChat that was sent."""


class ModelProbe(Link):
    """A channel to one server. Used as `async with`."""

    @staticmethod
    def mark() -> str:
        """Make a word that was never used."""
        return f"mark{uuid.uuid4().hex[:12]}"

    def start(self, chat: Chat, *, deadline_seconds: float | None = None) -> ChatCall:
        """Send a call. Without a deadline of the RPC, only `finish` bounds it."""
        return self.stream(
            "ChatService/StreamChat",
            StreamChatRequest(chat=chat),
            StreamChatResponse,
            partial(ChatReply, chat),
            deadline_seconds=deadline_seconds,
        )

    async def chat(self, chat: Chat) -> ChatReply:
        """Send a call and wait for its end."""
        return await self.start(chat).finish(self.seconds)

    async def chats(self, chats: Sequence[Chat]) -> list[ChatReply]:
        """Send calls at once and wait for all."""
        started = [self.start(chat) for chat in chats]
        return [await each.finish(self.seconds) for each in started]
