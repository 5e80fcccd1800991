"""A provider server that is dialled: ChatService, EmbeddingService and ModelService over gRPC.

Above: `tool_dialled`, which listens. Below: `model_service`, of which each method here is the translation. Each checks
the token first. gRPC cancels a method whose caller has left, and so the function that answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar

import grpc.aio

from behest.model_service import Models
from behest.tool_calls import Refused
from behest.v1.chat_service_pb2 import CompleteChatRequest, CompleteChatResponse, StreamChatRequest
from behest.v1.chat_service_pb2_grpc import ChatServiceServicer, add_ChatServiceServicer_to_server
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.embedding_service_pb2_grpc import EmbeddingServiceServicer, add_EmbeddingServiceServicer_to_server
from behest.v1.model_service_pb2 import (
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
    ListProvidersRequest,
    ListProvidersResponse,
)
from behest.v1.model_service_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server

Authorize = Callable[[Any], Awaitable[None]]
"""Aborts a call that does not bring the token."""
Abort = Callable[[Any, Refused], Awaitable[NoReturn]]
"""Ends a call with what it was refused with."""

Value = TypeVar("Value")


def add_to(server: grpc.aio.Server, models: Models, authorize: Authorize, abort: Abort) -> None:
    """Serve models on a server that has not started."""
    dialled = Dialled(models, authorize, abort)
    add_ChatServiceServicer_to_server(dialled, server)
    add_EmbeddingServiceServicer_to_server(dialled, server)
    add_ModelServiceServicer_to_server(dialled, server)


class Dialled(ChatServiceServicer, EmbeddingServiceServicer, ModelServiceServicer):
    """The services as gRPC calls them."""

    def __init__(self, models: Models, authorize: Authorize, abort: Abort) -> None:
        self._models = models
        self._authorize = authorize
        self._abort = abort

    async def ListModels(self, request: ListModelsRequest, context: Any) -> ListModelsResponse:
        return await self._answered(context, lambda: _now(self._models.list_models(request)))

    async def GetModel(self, request: GetModelRequest, context: Any) -> GetModelResponse:
        return await self._answered(context, lambda: _now(self._models.get_model(request)))

    async def Embed(self, request: EmbedRequest, context: Any) -> EmbedResponse:
        return await self._answered(context, lambda: self._models.embed(request, _trace(context), _deadline(context)))

    async def CompleteChat(self, request: CompleteChatRequest, context: Any) -> CompleteChatResponse:
        async def last() -> CompleteChatResponse:
            response = CompleteChatResponse()
            async with aclosing(self._models.stream(request.chat, _trace(context), _deadline(context))) as frames:
                async for frame in frames:
                    response.end.CopyFrom(frame.end)
            return response

        return await self._answered(context, last)

    # A coroutine that writes is the other form of a streaming method, which the stubs do not know.
    async def StreamChat(self, request: StreamChatRequest, context: Any) -> None:  # type: ignore[override]
        async def write() -> None:
            async with aclosing(self._models.stream(request.chat, _trace(context), _deadline(context))) as frames:
                async for frame in frames:
                    await context.write(frame)

        await self._answered(context, write)

    async def ListProviders(self, request: ListProvidersRequest, context: Any) -> ListProvidersResponse:
        text = "this server is one provider: its models are listed"
        await self._abort(context, Refused("UNIMPLEMENTED", "REQUEST_UNSUPPORTED", text))

    async def _answered(self, context: Any, work: Callable[[], Awaitable[Value]]) -> Value:
        await self._authorize(context)
        try:
            return await work()
        except Refused as exc:
            await self._abort(context, exc)


async def _now(value: Value) -> Value:
    return value


def _trace(context: Any) -> str:
    return str(dict(context.invocation_metadata() or ()).get("traceparent", ""))


def _deadline(context: Any) -> datetime | None:
    left = context.time_remaining()
    return None if left is None else datetime.now(UTC) + timedelta(seconds=min(left, 86_400.0 * 365))
