"""Anthropic-compatible servers over HTTP: chat. Above: the catalog. Below: `http_client`, the wire modules.

Not on the vendor's SDK, for the reasons of the other adapter (`docs/decisions/0002`). An answer counts only when its
stop reason and its last event, `message_stop`, have both come.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from behest.v1.chat_service_pb2 import Chat, ChatDelta
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.model_pb2 import Model
from behest.v1.model_pb2 import Provider as ProviderInfo
from behestd.providers.anthropic_answer import Answer
from behestd.providers.anthropic_request import request_body
from behestd.providers.failure import ProviderFailure
from behestd.providers.fields import parsed
from behestd.providers.http_client import HttpClient, HttpSettings, address
from behestd.providers.provider import Frame
from behestd.providers.secret import Secret

if TYPE_CHECKING:
    import httpx2

VERSION = "2023-06-01"
"""The version of the interface, which every request names."""


@dataclass(frozen=True, slots=True)
class AnthropicSettings:
    """Where and how a server is reached."""

    id: str
    """The provider's id in the catalog."""
    base_url: str = "https://api.anthropic.com/v1"
    api_key: Secret = field(default_factory=lambda: Secret(""))
    """Empty: no key is sent."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with each request; may hold secrets."""
    connect_seconds: float = 5.0
    display_name: str = ""
    keepalive_seconds: float | None = None
    """How long an idle connection is kept. None: as `http_client` does."""


class Anthropic:
    """One Anthropic-compatible server."""

    def __init__(self, settings: AnthropicSettings, models: Sequence[Model]) -> None:
        """Set up without connecting.

        Raises: Unsupported when the extra is not installed, InvalidRequest when the settings fit no request.
        """
        self._settings = settings
        self._models = {model.id: model for model in models}
        headers = {"anthropic-version": VERSION, **settings.headers}
        if settings.api_key:
            headers["x-api-key"] = settings.api_key.reveal()
        self._http = HttpClient(
            HttpSettings(
                provider=settings.id,
                base_url=settings.base_url,
                headers=headers,
                secret=settings.api_key,
                extra="anthropic",
                connect_seconds=settings.connect_seconds,
                keepalive_seconds=settings.keepalive_seconds,
            )
        )

    @property
    def id(self) -> str:
        """Return the id of the provider."""
        return self._settings.id

    def describe(self) -> ProviderInfo:
        """Describe the provider."""
        settings = self._settings
        return ProviderInfo(
            id=settings.id, adapter="anthropic", display_name=settings.display_name, address=address(settings.base_url)
        )

    def models(self) -> Sequence[Model]:
        """Return the models."""
        return tuple(self._models.values())

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        """Make one request and yield a frame for each piece of the response."""
        model = self._model(chat.model)
        streams = model.capabilities.streaming
        body = request_body(chat, chat.model.removeprefix(f"{self.id}/"), model, streams=streams)
        answer = Answer(chat, self._settings.api_key)
        async with self._http.post("messages", body) as response:
            request_id = response.headers.get("request-id", "")
            if streams and "application/json" not in response.headers.get("content-type", ""):
                async with aclosing(self._frames(response, answer)) as frames:
                    async for frame in frames:
                        yield frame
            else:
                yield Frame(deltas=answer.whole(await self._http.read(response)))
        yield Frame(end=answer.end(request_id))

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Refuse: there are no embeddings behind this interface."""
        self._model(request.model)
        raise ProviderFailure("PROVIDER_CAPABILITY_MISSING", "this provider makes no embeddings")

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    def _model(self, model_id: str) -> Model:
        try:
            return self._models[model_id]
        except KeyError:
            raise ProviderFailure("PROVIDER_MODEL_NOT_FOUND", "not a model of this provider") from None

    async def _frames(self, response: httpx2.Response, answer: Answer) -> AsyncGenerator[Frame, None]:
        """Yield a frame for all that each piece of the network brings, up to the last event, and free the connection.

        Raises: ProviderFailure when the last event does not come.
        """
        async with aclosing(self._http.events(response)) as pieces:
            async for events in pieces:
                deltas: list[ChatDelta] = []
                for event in events:
                    deltas += answer.feed(parsed(event.data))
                    if answer.is_over:
                        yield Frame(deltas=deltas)
                        await self._http.drain(pieces)
                        return
                yield Frame(deltas=deltas)
