"""ChatService: single model calls, routed to the providers. Above: the edge. Below: `runtime.passthrough`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing

from behest.v1 import chat_service_pb2 as pb
from behestd.providers.ambience import surround
from behestd.runtime.merging import forward
from behestd.runtime.passthrough import Passthrough
from behestd.service.call import Call
from behestd.service.chat_checks import check_chat
from behestd.service.methods import Handler
from behestd.service.validate import required_message

_NAME = "/behest.v1.ChatService/"


class Chats:
    """Handlers of ChatService."""

    def __init__(self, passthrough: Passthrough) -> None:
        self._passthrough = passthrough

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {_NAME + "CompleteChat": self.complete_chat, _NAME + "StreamChat": self.stream_chat}

    async def complete_chat(self, request: pb.CompleteChatRequest, call: Call) -> pb.CompleteChatResponse:
        """Answer once, with the whole message."""
        required_message(request, "chat")
        check_chat(request.chat)
        surround(call.traceparent, call.remaining_seconds)
        return pb.CompleteChatResponse(end=await self._passthrough.complete(request.chat, call.namespace))

    async def stream_chat(self, request: pb.StreamChatRequest, call: Call) -> None:
        """Send the answer as it is made."""
        required_message(request, "chat")
        check_chat(request.chat)
        surround(call.traceparent, call.remaining_seconds)
        async with aclosing(self._passthrough.stream(request.chat, call.namespace)) as frames:
            await forward(frames, call.send)
