"""Embeddings made inside the daemon, with no key and no network. Above: the catalog. Below: `embedded_model`.

The model is loaded by the first call and computes on one thread of its own, a few texts at a time: the event loop stays
free, calls take turns, and a call that is cancelled stops at its next turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeVar

from behest.v1.chat_service_pb2 import Chat
from behest.v1.embedding_service_pb2 import Embedding, EmbedRequest, EmbedResponse
from behest.v1.model_pb2 import Model
from behest.v1.model_pb2 import Provider as ProviderInfo
from behest.v1.usage_pb2 import Usage
from behestd.providers.embedded_model import DIMENSIONS, MAX_TOKENS, SentenceModel, require
from behestd.providers.failure import NOT_SENT, ProviderFailure
from behestd.providers.provider import Frame

_BATCH_TOKENS = 1024
"""Most tokens computed in one turn of the thread, padding included: some tenths of a second."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """What a provider is called."""

    id: str
    """The provider's id in the catalog."""
    display_name: str = ""


class Embedded:
    """The packaged model, as a provider."""

    def __init__(self, settings: EmbeddedSettings, models: Sequence[Model]) -> None:
        """Set up without loading. Raises: Unsupported when the extra is not installed."""
        require()
        self._settings = settings
        self._models = {model.id: model for model in models}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embeddings")
        # Called by that thread alone.
        self._loaded = cache(SentenceModel)

    @property
    def id(self) -> str:
        """Return the id of the provider."""
        return self._settings.id

    def describe(self) -> ProviderInfo:
        """Describe the provider."""
        return ProviderInfo(id=self.id, adapter="embedded", display_name=self._settings.display_name)

    def models(self) -> Sequence[Model]:
        """Return the models."""
        return tuple(self._models.values())

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        """Refuse: it makes embeddings only."""
        self._model(chat.model)
        raise ProviderFailure("PROVIDER_CAPABILITY_MISSING", "this provider makes embeddings only")
        yield Frame()

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Compute the vectors, texts of like length together."""
        model = self._model(request.model)
        if request.dimensions not in (0, DIMENSIONS):
            raise ProviderFailure(
                "PROVIDER_REQUEST_INVALID",
                f"{request.dimensions} dimensions asked of a model whose vectors have {DIMENSIONS}",
                metadata={"dimensions": str(request.dimensions), "limit": str(DIMENSIONS)},
            )
        rows = await self._computed(partial(self._tokens, list(request.inputs)))
        _check(rows, model.limits.context_window_tokens or MAX_TOKENS)
        vectors: dict[int, list[float]] = {}
        for places in _batches(rows):
            vectors |= await self._computed(partial(self._batch, rows, places))
        return EmbedResponse(
            embeddings=[Embedding(values=vectors[at]) for at in range(len(rows))],
            model=request.model,
            usage=Usage(input_tokens=sum(map(len, rows)), attempts=1),
        )

    async def close(self) -> None:
        """Let the thread end once it has computed what it was given."""
        self._thread.shutdown(wait=False)

    def _model(self, model_id: str) -> Model:
        try:
            return self._models[model_id]
        except KeyError:
            raise ProviderFailure("PROVIDER_MODEL_NOT_FOUND", "not a model of this provider") from None

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self._loaded().tokens(texts)

    def _batch(self, rows: Sequence[Sequence[int]], places: Sequence[int]) -> dict[int, list[float]]:
        return dict(zip(places, self._loaded().vectors([rows[at] for at in places]), strict=True))

    async def _computed(self, work: Callable[[], _T]) -> _T:
        """Run work on the thread. Raises: ProviderFailure when it is closed, or the model cannot be loaded."""
        try:
            future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        except RuntimeError as error:
            raise ProviderFailure("PROVIDER_UNAVAILABLE", "the provider is closed", failure_class=NOT_SENT) from error
        try:
            return await future
        except (ImportError, OSError) as error:
            raise ProviderFailure("PROVIDER_UNAVAILABLE", "the packaged model cannot be loaded") from error


def _check(rows: Sequence[Sequence[int]], limit: int) -> None:
    for index, row in enumerate(rows):
        if len(row) > limit:
            raise ProviderFailure(
                "PROVIDER_CONTEXT_TOO_LONG",
                f"inputs[{index}] of {len(row)} tokens exceeds the limit of {limit} tokens",
                metadata={"index": str(index), "tokens": str(len(row)), "limitTokens": str(limit)},
            )


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield the places of the texts, those of like length together, so that little is padded."""
    batch: list[int] = []
    for at in sorted(range(len(rows)), key=lambda at: len(rows[at])):
        if batch and (len(batch) + 1) * len(rows[at]) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
