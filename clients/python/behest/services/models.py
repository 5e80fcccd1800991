"""Models and their providers: what the daemon can call, what it costs and how it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.v1 import model_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from behest.calls import Calls
    from behest.v1 import model_pb2
    from behest.v1.model_service_pb2_grpc import ModelServiceAsyncStub


class Models:
    """Calls of ModelService. All raise BehestError."""

    def __init__(self, stub: ModelServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def get(self, model: str) -> model_pb2.Model:
        """Return a model by `provider/name` or alias."""
        return (await self._calls.unary(self._stub.GetModel, model_service_pb2.GetModelRequest(model=model))).model

    def list(self, request: model_service_pb2.ListModelsRequest | None = None) -> AsyncGenerator[model_pb2.Model, None]:
        """Yield the models that a request asks for, page after page."""
        return self._calls.pages(
            self._stub.ListModels, request or model_service_pb2.ListModelsRequest(), lambda page: page.models
        )

    def providers(self) -> AsyncGenerator[model_pb2.Provider, None]:
        """Yield the providers."""
        request = model_service_pb2.ListProvidersRequest()
        return self._calls.pages(self._stub.ListProviders, request, lambda page: page.providers)
