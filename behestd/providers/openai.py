"""OpenAI-compatible servers over HTTP: chat and embeddings. Above: the catalog. Below: `http_client`, the wire modules.

Not on the vendor's SDK, which hides whether the end marker came and takes three times as long to the first piece
(`docs/dependencies.md`). An answer counts only when its finish reason and `[DONE]` have both come; on the vendor's
newer interface, which is spoken on request, when its last event has.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from behest.v1.chat_service_pb2 import Chat, ChatDelta
from behest.v1.embedding_service_pb2 import Embedding, EmbedRequest, EmbedResponse
from behest.v1.model_pb2 import Model
from behest.v1.model_pb2 import Provider as ProviderInfo
from behest.v1.usage_pb2 import Usage
from behestd.core.estimate import estimate_text
from behestd.providers import openai_answer, openai_responses_answer, openai_responses_request
from behestd.providers.failure import ProviderFailure
from behestd.providers.fields import parsed
from behestd.providers.http_client import HttpClient, HttpSettings, address
from behestd.providers.openai_answer import prompt_usage, vectors
from behestd.providers.openai_request import request_body
from behestd.providers.provider import Frame
from behestd.providers.secret import Secret

if TYPE_CHECKING:
    import httpx2


Answer = openai_answer.Answer | openai_responses_answer.Answer


@dataclass(frozen=True, slots=True)
class OpenAiSettings:
    """Where and how a server is reached."""

    id: str
    """The provider's id in the catalog."""
    base_url: str = "https://api.openai.com/v1"
    api_key: Secret = field(default_factory=lambda: Secret(""))
    """Empty: no Authorization header."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with each request; may hold secrets."""
    connect_seconds: float = 5.0
    interface: Literal["chat_completions", "responses"] = "chat_completions"
    """How chat is spoken to it."""
    max_tokens_field: str = "max_completion_tokens"
    """The server's name of the limit of output tokens; older servers know "max_tokens" only. In chat completions."""
    display_name: str = ""
    keepalive_seconds: float | None = None
    """How long an idle connection is kept. None: as `http_client` does."""


class OpenAi:
    """One OpenAI-compatible server."""

    def __init__(self, settings: OpenAiSettings, models: Sequence[Model]) -> None:
        """Set up without connecting.

        Raises: Unsupported when the extra is not installed, InvalidRequest when the settings fit no request.
        """
        self._settings = settings
        self._models = {model.id: model for model in models}
        headers = dict(settings.headers)
        if settings.api_key:
            headers["Authorization"] = f"Bearer {settings.api_key.reveal()}"
        self._http = HttpClient(
            HttpSettings(
                provider=settings.id,
                base_url=settings.base_url,
                headers=headers,
                secret=settings.api_key,
                extra="openai",
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
            id=settings.id, adapter="openai", display_name=settings.display_name, address=address(settings.base_url)
        )

    def models(self) -> Sequence[Model]:
        """Return the models."""
        return tuple(self._models.values())

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        """Make one request and yield a frame for each piece of the response."""
        streams = self._model(chat.model).capabilities.streaming
        path, body, answer = self._asked(chat, streams)
        async with self._http.post(path, body) as response:
            request_id = response.headers.get("x-request-id", "")
            if streams and "application/json" not in response.headers.get("content-type", ""):
                async with aclosing(self._frames(response, answer)) as frames:
                    async for frame in frames:
                        yield frame
            else:
                yield Frame(deltas=answer.feed(await self._http.read(response)))
        yield Frame(end=answer.end(request_id))

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Make one request for all texts."""
        self._model(request.model)
        body: dict[str, Any] = {
            "model": self._name(request.model),
            "input": list(request.inputs),
            "encoding_format": "float",
        }
        if request.dimensions:
            body["dimensions"] = request.dimensions
        async with self._http.post("embeddings", body) as response:
            document = await self._http.read(response)
        usage = prompt_usage(document) or Usage(input_tokens=sum(map(estimate_text, request.inputs)), attempts=1)
        found = vectors(document, len(request.inputs))
        return EmbedResponse(
            embeddings=[Embedding(values=values) for values in found], model=request.model, usage=usage
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    def _model(self, model_id: str) -> Model:
        try:
            return self._models[model_id]
        except KeyError:
            raise ProviderFailure("PROVIDER_MODEL_NOT_FOUND", "not a model of this provider") from None

    def _name(self, model_id: str) -> str:
        return model_id.removeprefix(f"{self._settings.id}/")

    def _asked(self, chat: Chat, streams: bool) -> tuple[str, Mapping[str, Any], Answer]:
        """Build a request, and what reads its answer, in the words of the interface."""
        settings, name = self._settings, self._name(chat.model)
        if settings.interface == "responses":
            body = openai_responses_request.request_body(chat, name, streams=streams)
            return "responses", body, openai_responses_answer.Answer(chat, settings.api_key)
        body = request_body(chat, name, streams=streams, max_tokens_field=settings.max_tokens_field)
        return "chat/completions", body, openai_answer.Answer(chat, settings.api_key)

    async def _frames(self, response: httpx2.Response, answer: Answer) -> AsyncGenerator[Frame, None]:
        """Yield a frame for all that each piece of the network brings, up to the end, and free the connection.

        Raises: ProviderFailure when neither the end marker nor a last event comes.
        """
        async with aclosing(self._http.events(response)) as pieces:
            async for events in pieces:
                deltas: list[ChatDelta] = []
                for event in events:
                    is_marker = event.data.strip() == "[DONE]"
                    if not is_marker:
                        deltas += answer.feed(parsed(event.data))
                    if is_marker or answer.is_over:
                        yield Frame(deltas=deltas)
                        await self._http.drain(pieces)
                        return
                yield Frame(deltas=deltas)
