"""Models of a server that is dialled, over gRPC: ChatService, EmbeddingService, and ModelService that lists them.

Above: `remote_provider`. Below: `wire.remote_channel`, the one connection to the server, and `remote_failure`. Answers
are bytes until they are read: garbage and text that is no UTF-8 are the server's doing. Nothing is tried twice here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from behest.v1.chat_service_pb2 import StreamChatRequest, StreamChatResponse
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.model_pb2 import Model
from behest.v1.model_service_pb2 import ListModelsRequest, ListModelsResponse
from behestd.providers import remote_failure
from behestd.providers.ambience import Ambience
from behestd.providers.failure import PERMANENT, ProviderFailure
from behestd.providers.provider import Frame
from behestd.providers.remote_provider import CONNECT_SECONDS
from behestd.wire.endpoint import EndpointRefused
from behestd.wire.remote_channel import FRAME_LIMIT_BYTES, Line, NotReached
from behestd.wire.remote_status import is_cancelled

LIST_SECONDS = 5.0
_MAX_PAGES = 40
_BACKSTOP_SECONDS = 2.0
"""How much later than ours the transport's own deadline is."""
_Answer = TypeVar("_Answer", bound=Message)


class RemoteModels:
    """The models of one dialled server. See `remote_provider.Answering`."""

    def __init__(self, line: Line) -> None:
        """`line` is shared with whatever else the server offers, and closed by its owner."""
        self._line = line

    async def list_models(self, connect_seconds: float = CONNECT_SECONDS) -> list[Model]:
        """List what the server serves, at most 40 pages. Raises ProviderFailure."""
        await self._connect(connect_seconds)
        models: list[Model] = []
        token = ""
        for _ in range(_MAX_PAGES):
            request = ListModelsRequest(page_size=1_000, page_token=token)
            page = await self._unary("ModelService/ListModels", request, ListModelsResponse, Ambience("", LIST_SECONDS))
            models.extend(page.models)
            token = page.next_page_token
            if not token:
                return models
        raise ProviderFailure("PROVIDER_MALFORMED_OUTPUT", f"the server lists more than {_MAX_PAGES} pages of models")

    async def chat(self, request: StreamChatRequest, around: Ambience) -> AsyncGenerator[Frame, None]:
        """Send a call and yield its frames."""
        _check_size(request)
        await self._connect(CONNECT_SECONDS)
        ask: grpc.aio.UnaryStreamMultiCallable[Message, bytes] = self._channel().unary_stream(
            "/behest.v1.ChatService/StreamChat", request_serializer=_bytes_of
        )
        call = ask(request, timeout=_timeout(around), metadata=self._metadata(around))
        has_begun = False
        try:
            while isinstance(data := await self._read(call, has_begun=has_begun), bytes):
                frame = _parsed(StreamChatResponse, data)
                has_begun = has_begun or bool(frame.deltas)
                yield frame
        finally:
            call.cancel()

    async def embed(self, request: EmbedRequest, around: Ambience) -> EmbedResponse:
        """Send a call and return its answer."""
        _check_size(request)
        await self._connect(CONNECT_SECONDS)
        return await self._unary("EmbeddingService/Embed", request, EmbedResponse, around)

    async def _read(self, call: Any, *, has_begun: bool) -> Any:
        """Wait for a frame, the end of the stream when there is none. Raises ProviderFailure."""
        try:
            return await call.read()
        except grpc.aio.AioRpcError as exc:
            raise self._failure(exc, has_begun=has_begun) from exc
        except asyncio.CancelledError as exc:
            if is_cancelled():
                raise
            raise _closed() from exc

    async def _unary(self, method: str, request: Message, response: type[_Answer], around: Ambience) -> _Answer:
        ask: grpc.aio.UnaryUnaryMultiCallable[Message, bytes] = self._channel().unary_unary(
            f"/behest.v1.{method}", request_serializer=_bytes_of
        )
        call = ask(request, timeout=_timeout(around), metadata=self._metadata(around))
        try:
            return _parsed(response, await call)
        except grpc.aio.AioRpcError as exc:
            raise self._failure(exc) from exc
        except asyncio.CancelledError as exc:
            if is_cancelled():
                raise
            raise _closed() from exc
        finally:
            call.cancel()

    async def _connect(self, seconds: float) -> None:
        try:
            await self._line.connect(seconds)
        except EndpointRefused as exc:
            raise ProviderFailure("PROVIDER_UNAVAILABLE", exc.message, failure_class=PERMANENT) from exc
        except NotReached as exc:
            raise remote_failure.not_sent(str(exc)) from exc

    def _channel(self) -> grpc.aio.Channel:
        try:
            return self._line.opened()
        except NotReached as exc:
            raise remote_failure.not_sent(str(exc)) from exc

    def _metadata(self, around: Ambience) -> tuple[tuple[str, str], ...]:
        try:
            return self._line.metadata((("traceparent", around.traceparent),))
        except NotReached as exc:
            raise remote_failure.not_sent(str(exc)) from exc

    def _failure(self, error: grpc.aio.AioRpcError, *, has_begun: bool = False) -> ProviderFailure:
        try:
            token = self._line.token()
        except NotReached as exc:
            return remote_failure.not_sent(str(exc))
        return remote_failure.of_error(error, token, has_begun=has_begun)


def _parsed(kind: type[_Answer], data: bytes) -> _Answer:
    try:
        return kind.FromString(data)
    except DecodeError as exc:
        raise remote_failure.malformed("the answer cannot be read") from exc


def _check_size(request: Message) -> None:
    if (size_bytes := request.ByteSize()) > FRAME_LIMIT_BYTES:
        text = f"a request of {size_bytes} bytes exceeds the limit of {FRAME_LIMIT_BYTES} bytes of a message"
        raise remote_failure.too_large(text)


def _timeout(around: Ambience) -> float | None:
    return None if around.seconds is None else around.seconds + _BACKSTOP_SECONDS


def _closed() -> ProviderFailure:
    return ProviderFailure("PROVIDER_UNAVAILABLE", "the connection to the server was closed")


def _bytes_of(message: Message) -> bytes:
    return message.SerializeToString()
