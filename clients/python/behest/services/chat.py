"""Single model calls through the daemon: no run, no log, no tools executed."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from behest.errors import broken_stream
from behest.v1 import chat_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from behest.calls import Calls
    from behest.v1.chat_service_pb2_grpc import ChatServiceAsyncStub

# The daemon's own limit of a model call is 10 minutes.
CHAT_SECONDS = 660.0


class Chats:
    """Calls of ChatService. All raise BehestError. Each is sent once: a model call has a price."""

    def __init__(self, stub: ChatServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def complete(self, chat: chat_service_pb2.Chat) -> chat_service_pb2.ChatEnd:
        """Return the whole answer."""
        request = chat_service_pb2.CompleteChatRequest(chat=chat)
        call = self._stub.CompleteChat
        return (await self._calls.unary(call, request, is_repeatable=False, timeout_seconds=CHAT_SECONDS)).end

    async def stream(
        self, chat: chat_service_pb2.Chat
    ) -> AsyncGenerator[chat_service_pb2.ChatDelta | chat_service_pb2.ChatEnd, None]:
        """Yield the answer as it is made, and last its end, which repeats the whole."""
        call = self._stub.StreamChat(chat_service_pb2.StreamChatRequest(chat=chat), timeout=CHAT_SECONDS)
        async with aclosing(self._calls.stream(call)) as frames:
            async for frame in frames:
                for delta in frame.deltas:
                    yield delta
                if frame.HasField("end"):
                    yield frame.end
                    return
        raise broken_stream("the answer ended without its end")
