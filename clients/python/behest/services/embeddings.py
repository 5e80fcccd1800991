"""Vectors for texts, made by a model of the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.v1 import embedding_service_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from behest.calls import Calls
    from behest.v1.embedding_service_pb2_grpc import EmbeddingServiceAsyncStub

# The daemon's own limit of a model call is 10 minutes.
EMBED_SECONDS = 660.0


class Embeddings:
    """Calls of EmbeddingService. All raise BehestError. Each is sent once: a model call has a price."""

    def __init__(self, stub: EmbeddingServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def embed(
        self, texts: Sequence[str], *, model: str = "", dimensions: int = 0, session_id: str = ""
    ) -> embedding_service_pb2.EmbedResponse:
        """Return one vector a text, in order. An empty model is the daemon's default, 0 dimensions the model's own."""
        request = embedding_service_pb2.EmbedRequest(
            model=model, inputs=texts, dimensions=dimensions, session_id=session_id
        )
        return await self._calls.unary(self._stub.Embed, request, is_repeatable=False, timeout_seconds=EMBED_SECONDS)
