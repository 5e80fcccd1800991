"""OpenAI-compatible servers over HTTP: chat and embeddings. Above: the catalog. Below: httpx2, `sse`, the wire modules.

One call is one request, no redirects, no proxy from the environment. Not on the vendor's SDK, which hides whether the
end marker came and takes three times as long to the first piece (`docs/dependencies.md`). An answer counts only when
its finish reason and `[DONE]` have both come.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from behest.v1.chat_service_pb2 import Chat, ChatDelta
from behest.v1.embedding_service_pb2 import Embedding, EmbedRequest, EmbedResponse
from behest.v1.model_pb2 import Model
from behest.v1.model_pb2 import Provider as ProviderInfo
from behest.v1.usage_pb2 import Usage
from behestd.core.spend import estimate_text
from behestd.errors import InvalidRequest, Unsupported
from behestd.providers.failure import NOT_SENT, ProviderFailure
from behestd.providers.http_failure import MAX_BODY_BYTES, refused
from behestd.providers.openai_answer import Answer, malformed, prompt_usage, vectors
from behestd.providers.openai_request import request_body
from behestd.providers.provider import Frame, broken
from behestd.providers.secret import Secret
from behestd.providers.sse import Decoder, TooLong

if TYPE_CHECKING:
    import httpx2

_DRAIN_SECONDS = 0.05
_MAX_ANSWER_BYTES = 64 * 1024 * 1024


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
    max_tokens_field: str = "max_completion_tokens"
    """The server's name of the limit of output tokens; older servers know "max_tokens" only."""
    display_name: str = ""
    keepalive_seconds: float | None = None
    """How long an idle connection is kept. None: 30 over TLS, 0 in the clear, where a new one costs nothing and some
    servers (llama.cpp) close after a stream without saying so, into the next request."""


def load_httpx() -> Any:
    """Load the HTTP client. Raises: Unsupported when the extra `openai` is not installed."""
    try:
        return importlib.import_module("httpx2")
    except ImportError as error:
        raise Unsupported(
            "REQUEST_UNSUPPORTED",
            "the OpenAI adapter needs the extra behestd[openai]: pip install 'behestd[openai]'",
            feature="behestd[openai]",
        ) from error


class OpenAi:
    """One OpenAI-compatible server."""

    def __init__(self, settings: OpenAiSettings, models: Sequence[Model]) -> None:
        """Set up without connecting.

        Raises: Unsupported when the extra is not installed, InvalidRequest when the settings fit no request.
        """
        self._settings = settings
        self._models = {model.id: model for model in models}
        self._httpx = load_httpx()
        self._keepalive_seconds = settings.keepalive_seconds
        if self._keepalive_seconds is None:
            self._keepalive_seconds = 30.0 if settings.base_url.startswith("https:") else 0.0
        headers = {"User-Agent": "behestd", **settings.headers}
        if settings.api_key:
            headers["Authorization"] = f"Bearer {settings.api_key.reveal()}"
        try:
            self._client: httpx2.AsyncClient = self._httpx.AsyncClient(
                base_url=settings.base_url.rstrip("/") + "/",
                headers=headers,
                # How long to wait for bytes is decided above, for all providers alike.
                timeout=self._httpx.Timeout(None, connect=settings.connect_seconds),
                limits=self._httpx.Limits(
                    max_connections=None,
                    max_keepalive_connections=100 if self._keepalive_seconds else 0,
                    keepalive_expiry=self._keepalive_seconds,
                ),
                trust_env=False,
            )
        except (self._httpx.InvalidURL, UnicodeError):
            # The cause would show the key.
            raise InvalidRequest(f"providers.{settings.id}", "address, headers or key fit no request") from None

    @property
    def id(self) -> str:
        """Return the id of the provider."""
        return self._settings.id

    def describe(self) -> ProviderInfo:
        """Describe the provider."""
        settings = self._settings
        return ProviderInfo(
            id=settings.id, adapter="openai", display_name=settings.display_name, address=_address(settings.base_url)
        )

    def models(self) -> Sequence[Model]:
        """Return the models."""
        return tuple(self._models.values())

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        """Make one request and yield a frame for each piece of the response."""
        streams = self._model(chat.model).capabilities.streaming
        body = request_body(
            chat,
            self._name(chat.model),
            streams=streams,
            max_tokens_field=self._settings.max_tokens_field,
        )
        answer = Answer(chat, self._settings.api_key)
        with self._told():
            async with self._client.stream("POST", "chat/completions", json=body) as response:
                await self._check(response)
                request_id = response.headers.get("x-request-id", "")
                if streams and "application/json" not in response.headers.get("content-type", ""):
                    async with aclosing(self._frames(response, answer)) as frames:
                        async for frame in frames:
                            yield frame
                else:
                    yield Frame(deltas=answer.feed(_document(await _read(response, _MAX_ANSWER_BYTES))))
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
        with self._told():
            async with self._client.stream("POST", "embeddings", json=body) as response:
                await self._check(response)
                document = _document(await _read(response, _MAX_ANSWER_BYTES))
        usage = prompt_usage(document) or Usage(input_tokens=sum(map(estimate_text, request.inputs)), attempts=1)
        found = vectors(document, len(request.inputs))
        return EmbedResponse(
            embeddings=[Embedding(values=values) for values in found], model=request.model, usage=usage
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _model(self, model_id: str) -> Model:
        try:
            return self._models[model_id]
        except KeyError:
            raise ProviderFailure("PROVIDER_MODEL_NOT_FOUND", "not a model of this provider") from None

    def _name(self, model_id: str) -> str:
        return model_id.removeprefix(f"{self._settings.id}/")

    async def _check(self, response: httpx2.Response) -> None:
        """Raise what a response that is no success means."""
        if not response.is_success:
            body = await _read(response, MAX_BODY_BYTES, cut=True)
            raise refused(response.status_code, response.headers, body, self._settings.api_key)

    async def _frames(self, response: httpx2.Response, answer: Answer) -> AsyncGenerator[Frame, None]:
        """Yield a frame for all that each piece of the network brings, up to the end marker, and free the connection.

        Raises: ProviderFailure when the marker does not come.
        """
        decoder = Decoder()
        chunks = response.aiter_bytes()
        try:
            async for chunk in chunks:
                deltas: list[ChatDelta] = []
                for event in decoder.feed(chunk):
                    if event.data.strip() == "[DONE]":
                        yield Frame(deltas=deltas)
                        await self._drain(chunks)
                        return
                    deltas += answer.feed(_document(event.data))
                yield Frame(deltas=deltas)
        except self._httpx.TransportError as error:
            raise broken() from error
        raise broken()

    async def _drain(self, chunks: AsyncIterator[bytes]) -> None:
        """Read the rest, so that the connection can serve again; whatever it brings, the answer is there."""
        if not self._keepalive_seconds:
            return
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for _ in chunks:
                    pass
        except (TimeoutError, self._httpx.TransportError):
            return

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn the client's exceptions into failures, the most specific first; what they say is not repeated."""
        httpx = self._httpx
        try:
            yield
        except httpx.ConnectTimeout as error:
            limit = f"{self._settings.connect_seconds:g}"
            raise ProviderFailure(
                "PROVIDER_TIMEOUT", f"no connection within {limit} s", metadata={"limitSeconds": limit}
            ) from error
        except httpx.ConnectError as error:
            raise ProviderFailure(
                "PROVIDER_UNAVAILABLE", "the provider cannot be reached", failure_class=NOT_SENT
            ) from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError) as error:
            raise ProviderFailure("PROVIDER_REQUEST_INVALID", "the request cannot be sent as it is") from error
        except httpx.DecodingError as error:
            raise malformed("the response is not in its content encoding") from error
        except httpx.TransportError as error:
            raise ProviderFailure("PROVIDER_UNAVAILABLE", "the connection broke") from error
        except (UnicodeDecodeError, TooLong) as error:
            raise malformed("the stream is no server-sent events") from error


async def _read(response: httpx2.Response, limit_bytes: int, *, cut: bool = False) -> bytes:
    """Read a body up to a limit. Raises: ProviderFailure when it is longer, unless it may be cut."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > limit_bytes:
            if cut:
                break
            raise malformed(f"the answer has more than {limit_bytes} bytes")
    return bytes(body[:limit_bytes])


def _address(url: str) -> str:
    """Return an address without what stands before its host, or behind its path."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _document(text: str | bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise malformed("the answer is no JSON") from error
