"""A server that implements ChatService or EmbeddingService, as a provider: one attempt a call, whatever the wire.

Above: the catalog and those who make attempts, by the port `provider`. Below: `remote` (servers that are dialled) and
`attached` (servers that call us), which move frames, and `remote_answer`, which trusts none of them. Letting go of an
answer cancels the call at the server; a connection that is lost is a broken attempt, never spliced with another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from behest.v1.chat_service_pb2 import Chat, StreamChatRequest
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.model_pb2 import Model
from behest.v1.model_pb2 import Provider as ProviderInfo
from behest.v1.server_pb2 import Server
from behestd.core.times import SECOND, duration, duration_ns
from behestd.providers.ambience import Ambience, ambience
from behestd.providers.failure import ProviderFailure
from behestd.providers.provider import Frame
from behestd.providers.remote_answer import Answer, vectors

CONNECT_SECONDS = 5.0
END_SECONDS = 0.2
"""How long a server may take to end a stream after the last frame of an answer."""


class Answering(Protocol):
    """What answers calls at the other end. One attempt each. Raises ProviderFailure."""

    def chat(self, request: StreamChatRequest, around: Ambience) -> AsyncGenerator[Frame, None]:
        """Send a call and yield the frames as they come; closing the generator cancels the call."""
        ...

    async def embed(self, request: EmbedRequest, around: Ambience) -> EmbedResponse:
        """Send a call and return its answer; cancelling cancels the call."""
        ...


class RemoteProvider:
    """The models of one registered server. See `provider.Provider`."""

    def __init__(self, server: Server, models: Sequence[Model], answering: Answering) -> None:
        """`models` are the catalog's, whose ids begin with the server's name."""
        self._server = server
        self._models = tuple(models)
        self._answering = answering

    @property
    def id(self) -> str:
        """Return the id of the provider: the name of the server."""
        return self._server.name

    def describe(self) -> ProviderInfo:
        """Describe the provider."""
        server = self._server
        return ProviderInfo(id=server.name, adapter="remote", address=server.address, server_id=server.id)

    def models(self) -> Sequence[Model]:
        """Return the models."""
        return self._models

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        """Make one attempt. See `provider.Provider`."""
        asked, around = self._asked(chat)
        answer = Answer(chat)
        last: Frame | None = None
        async with aclosing(self._answering.chat(StreamChatRequest(chat=asked), around)) as frames:
            async for frame in frames:
                taken = answer.take(frame)
                if taken.HasField("end"):
                    last = taken
                    break
                yield taken
            if last is not None:
                await _end(frames)
                yield last

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Make one attempt. See `provider.Provider`."""
        asked = EmbedRequest()
        asked.CopyFrom(request)
        asked.model = self._own_name(request.model)
        # A session of ours says nothing to anybody else.
        asked.session_id = ""
        return vectors(request, await self._answering.embed(asked, ambience()))

    async def close(self) -> None:
        """Do nothing: the connection is the registry's."""

    def _own_name(self, model: str) -> str:
        return model.removeprefix(f"{self._server.name}/")

    def _asked(self, chat: Chat) -> tuple[Chat, Ambience]:
        """The call as the server gets it: its own name of the model, and the time that is left."""
        asked, around = Chat(), ambience()
        asked.CopyFrom(chat)
        asked.model = self._own_name(chat.model)
        if chat.HasField("timeout"):
            seconds = duration_ns(chat.timeout) / SECOND
            around = replace(around, seconds=seconds if around.seconds is None else min(seconds, around.seconds))
        if around.seconds is not None:
            asked.timeout.CopyFrom(duration(around.seconds))
        return asked, around


async def _end(frames: AsyncGenerator[Frame, None]) -> None:
    """Let a stream end as its server means it to. Raises ProviderFailure when something follows the end."""
    try:
        async with asyncio.timeout(END_SECONDS):
            follows = await anext(frames, None)
    except (TimeoutError, ProviderFailure):
        # The answer is whole; how its stream ends changes nothing.
        return
    if follows is not None:
        raise ProviderFailure("PROVIDER_MALFORMED_OUTPUT", "something follows the end of the answer")
