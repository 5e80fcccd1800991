"""EmbeddingService: vectors for texts, routed to the providers. Above: the edge. Below: `runtime.passthrough`."""

from __future__ import annotations

from collections.abc import Mapping

from behest.v1.embedding_service_pb2 import EmbeddingPurpose, EmbedRequest, EmbedResponse
from behestd.errors import InvalidRequest, TooLarge
from behestd.providers.ambience import surround
from behestd.runtime.passthrough import Passthrough
from behestd.service.call import Call
from behestd.service.chat_checks import MAX_NAME_BYTES
from behestd.service.methods import Handler
from behestd.service.settings import Settings
from behestd.service.validate import identifier, known, max_bytes, max_items, not_negative, required

MAX_INPUTS = 2048


class Embeddings:
    """Handlers of EmbeddingService."""

    def __init__(self, passthrough: Passthrough, settings: Settings) -> None:
        self._passthrough = passthrough
        self._settings = settings

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {"/behest.v1.EmbeddingService/Embed": self.embed}

    async def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        """Give one vector for each input, in order. Raises TooLarge when they do not fit into one response."""
        _check(request)
        surround(call.traceparent, call.remaining_seconds)
        response = await self._passthrough.embed(request, call.namespace)
        size_bytes = response.ByteSize()
        if size_bytes > self._settings.response_bytes:
            raise TooLarge("embeddings", size_bytes, self._settings.response_bytes)
        return response


def _check(request: EmbedRequest) -> None:
    max_bytes("model", request.model, MAX_NAME_BYTES)
    required("inputs", request.inputs)
    max_items("inputs", request.inputs, MAX_INPUTS)
    for index, text in enumerate(request.inputs):
        if not text:
            raise InvalidRequest(f"inputs[{index}]", "is empty")
    not_negative("dimensions", request.dimensions)
    known("purpose", request.purpose, EmbeddingPurpose.DESCRIPTOR, may_be_unset=True)
    if request.session_id:
        identifier("session_id", request.session_id)
