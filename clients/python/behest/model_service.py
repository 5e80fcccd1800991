"""ChatService, EmbeddingService and ModelService without a transport: what a provider server answers.

Above: `model_dialled`, which serves it over gRPC, and `tool_link`, which serves it over the stream of an attached
server. Below: `model_answer`. Nothing is remembered: one call is one run of a function, which is stopped where it waits
when nobody waits for its answer. Every refusal is a Refused, with a reason.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo

from behest.model_answer import Answer, AnswerInvalid, Piece
from behest.tool_calls import Refused
from behest.v1.chat_pb2 import ResponseFormatKind
from behest.v1.embedding_service_pb2 import Embedding, EmbedResponse
from behest.v1.model_pb2 import Model
from behest.v1.model_service_pb2 import GetModelResponse, ListModelsResponse
from behest.v1.registry_service_pb2 import AttachReply
from behest.v1.usage_pb2 import Usage

if TYPE_CHECKING:
    from google.rpc.status_pb2 import Status

    from behest.v1.chat_service_pb2 import Chat, StreamChatResponse
    from behest.v1.embedding_service_pb2 import EmbedRequest
    from behest.v1.model_service_pb2 import GetModelRequest, ListModelsRequest
    from behest.v1.registry_service_pb2 import AttachCall

_log = logging.getLogger("behest.models")

MAX_INPUTS = 2048
_CODES = {
    "PROVIDER_MODEL_NOT_FOUND": "NOT_FOUND",
    "PROVIDER_RATE_LIMITED": "RESOURCE_EXHAUSTED",
    "PROVIDER_QUOTA": "RESOURCE_EXHAUSTED",
    "PROVIDER_UNAVAILABLE": "UNAVAILABLE",
    "PROVIDER_STREAM_BROKEN": "UNAVAILABLE",
    "PROVIDER_MALFORMED_OUTPUT": "UNAVAILABLE",
    "PROVIDER_TIMEOUT": "DEADLINE_EXCEEDED",
    "PROVIDER_REQUEST_INVALID": "INVALID_ARGUMENT",
}
"""The code of each reason; every other one is FAILED_PRECONDITION."""
_FORMATS = {
    int(ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT): "json_object",
    int(ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA): "json_schema",
}

ChatFunction = Callable[..., AsyncIterator[Piece] | Awaitable[str | Iterable[Piece] | None]]
EmbedFunction = Callable[..., Awaitable[Iterable[Iterable[float]]] | Iterable[Iterable[float]]]


class ModelError(Exception):
    """Raised by a model to fail in a way that the daemon understands.

    raise ModelError("PROVIDER_RATE_LIMITED", "one request at a time", retry_after_seconds=2.0)

    The reason is one of the contract that begins with PROVIDER_: it decides whether the daemon tries again. Raises
    ValueError for another one.
    """

    def __init__(self, reason: str, message: str, *, retry_after_seconds: float | None = None) -> None:
        if not reason.startswith("PROVIDER_"):
            raise ValueError(f"{reason} does not begin with PROVIDER_")
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class Failed(Refused):
    """Raised when a model failed: as Refused, with the delay that it asks for."""

    def __init__(self, error: ModelError) -> None:
        super().__init__(_CODES.get(error.reason, "FAILED_PRECONDITION"), error.reason, error.message, is_proof=False)
        self._retry_after_seconds = error.retry_after_seconds

    def status(self) -> Status:
        """Return it as every error of a call is written."""
        status = super().status()
        if self._retry_after_seconds is not None:
            delay = Duration()
            delay.FromTimedelta(timedelta(seconds=self._retry_after_seconds))
            status.details.add().Pack(RetryInfo(retry_delay=delay))
        return status


@dataclass(frozen=True, slots=True)
class ModelContext:
    """What a model may know of its call beside what is asked: a second parameter of its function gets it.

    `request` is what was asked, whole; `traceparent` is the W3C trace context, empty for none; `deadline` is when the
    answer is no longer waited for, in UTC (None: no such time), and the call is stopped then.
    """

    request: Chat | EmbedRequest
    traceparent: str = ""
    deadline: datetime | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered model: what it is, and the function that answers. `takes_context`: it has a second parameter."""

    model: Model
    function: Callable[..., Any]
    takes_context: bool

    def call(self, asked: object, context: ModelContext) -> Any:
        """Call the function."""
        return self.function(asked, context) if self.takes_context else self.function(asked)


def entry_of(model: Model, function: Callable[..., Any]) -> Entry:
    """Make the entry of a function. Raises TypeError for one that does not take what is asked."""
    count = len(inspect.signature(function).parameters)
    if count not in (1, 2):
        raise TypeError(f"{function!r} must take what is asked, and may take the context")
    return Entry(model, function, count == 2)


class Models:
    """The models of one server, and its answers."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._is_draining = False

    def add(self, entry: Entry) -> None:
        """Register a model. Raises ValueError for a name that is taken, or none."""
        name = entry.model.id
        if not name or not name.isprintable() or " " in name or len(name) > 128:
            raise ValueError(f"{name!r} is no name of a model")
        if name in self._entries:
            raise ValueError(f"model {name} is registered already")
        self._entries[name] = entry

    @property
    def listed(self) -> list[Model]:
        """The models, by ascending name."""
        return [self._entries[name].model for name in sorted(self._entries)]

    def drain(self) -> None:
        """Take no more calls."""
        self._is_draining = True

    def list_models(self, request: ListModelsRequest) -> ListModelsResponse:
        """Return a page of the models. Raises Refused."""
        if request.page_size < 0:
            raise _invalid(f"page_size {request.page_size} is negative")
        size = min(request.page_size or 50, 1_000)
        wanted = [field.name for field, _ in request.capabilities.ListFields()]
        found = [
            model
            for model in self.listed
            if model.id > request.page_token and all(getattr(model.capabilities, name) for name in wanted)
        ]
        token = found[size - 1].id if len(found) > size else ""
        return ListModelsResponse(models=found[:size], next_page_token=token)

    def get_model(self, request: GetModelRequest) -> GetModelResponse:
        """Return one model. Raises Refused."""
        return GetModelResponse(model=self._find(request.model, "").model)

    async def stream(
        self, chat: Chat, traceparent: str = "", deadline: datetime | None = None
    ) -> AsyncGenerator[StreamChatResponse, None]:
        """Answer a chat, frame by frame, the last one with the end. Raises Refused."""
        entry = self._find(chat.model, "chat")
        _check_chat(chat, entry.model)
        if chat.HasField("timeout"):
            due = datetime.now(UTC) + chat.timeout.ToTimedelta()
            deadline = due if deadline is None else min(due, deadline)
        answer = Answer(chat)
        context = ModelContext(chat, traceparent, deadline)
        async with aclosing(_pieces(entry, chat, context)) as pieces:
            while True:
                piece = await _within(deadline, anext(pieces, None))
                if piece is None:
                    break
                for frame in _made(entry, answer, piece):
                    yield frame
        yield answer.end()

    async def embed(
        self, request: EmbedRequest, traceparent: str = "", deadline: datetime | None = None
    ) -> EmbedResponse:
        """Answer with vectors. Raises Refused."""
        entry = self._find(request.model, "embeddings")
        if not 1 <= len(request.inputs) <= MAX_INPUTS or not all(request.inputs):
            raise _invalid(f"inputs must be 1 to {MAX_INPUTS} texts, none empty")
        if request.dimensions < 0:
            raise _invalid(f"dimensions {request.dimensions} is negative")
        length = entry.model.limits.embedding_dimensions
        if request.dimensions and length and request.dimensions != length and not entry.takes_context:
            raise _invalid(f"the vectors of this model have {length} numbers, not {request.dimensions}")
        context = ModelContext(request, traceparent, deadline)
        found = await _within(deadline, _vectors(entry, list(request.inputs), context))
        if len(found) != len(request.inputs) or len({len(each.values) for each in found}) != 1:
            _log.error("model %s gave %d vectors for %d texts", entry.model.id, len(found), len(request.inputs))
            raise _broken()
        tokens = sum(-(-len(text.encode()) // 4) for text in request.inputs)
        return EmbedResponse(embeddings=found, model=request.model, usage=Usage(input_tokens=tokens, attempts=1))

    async def replies(self, call: AttachCall) -> AsyncGenerator[AttachReply, None]:
        """Answer a call that came over the stream of an attached server. Raises Refused."""
        number = call.call_number
        deadline = call.deadline.ToDatetime(tzinfo=UTC) if call.HasField("deadline") else None
        if call.WhichOneof("request") == "embed":
            yield AttachReply(call_number=number, embed=await self.embed(call.embed, call.traceparent, deadline))
            return
        async with aclosing(self.stream(call.stream_chat.chat, call.traceparent, deadline)) as frames:
            async for frame in frames:
                yield AttachReply(call_number=number, stream_chat=frame)

    def _find(self, name: str, capability: str) -> Entry:
        if self._is_draining and capability:
            raise Refused("UNAVAILABLE", "RUNTIME_DRAINING", "the server is stopping")
        entry = self._entries.get(name)
        if entry is None:
            raise Refused("NOT_FOUND", "PROVIDER_MODEL_NOT_FOUND", f"model {name[:64]} not found")
        if capability and not getattr(entry.model.capabilities, capability):
            raise _lacks(entry.model, capability)
        return entry


def _check_chat(chat: Chat, model: Model) -> None:
    """Refuse what makes no sense, and what the model cannot do. Raises Refused."""
    if not chat.messages:
        raise _invalid("chat.messages is empty")
    if any(not message.role or not message.parts for message in chat.messages):
        raise _invalid("a message of the chat has no role or no parts")
    if chat.HasField("timeout") and chat.timeout.ToTimedelta() <= timedelta():
        raise _invalid("chat.timeout must be longer than 0 s")
    if chat.tools and not model.capabilities.tools:
        raise _lacks(model, "tools")
    capability = _FORMATS.get(chat.response_format.kind, "")
    if capability and not getattr(model.capabilities, capability):
        raise _lacks(model, capability)


async def _pieces(entry: Entry, chat: Chat, context: ModelContext) -> AsyncGenerator[object, None]:
    """Yield what a function yields or returns. Raises Failed."""
    try:
        given = entry.call(chat, context)
        if hasattr(given, "__aiter__"):
            # Closed where nobody reads on, so that the function can clean up at once.
            async with aclosing(given) as pieces:
                async for piece in pieces:
                    yield piece
            return
        said = await given
        for piece in (said,) if isinstance(said, str) else said or ():
            yield piece
    except Refused:
        raise
    except Exception as exc:
        raise _failed(entry, exc) from exc


def _made(entry: Entry, answer: Answer, piece: object) -> list[StreamChatResponse]:
    try:
        return list(answer.add(piece))
    except AnswerInvalid as exc:
        raise _failed(entry, exc) from exc


async def _vectors(entry: Entry, inputs: list[str], context: ModelContext) -> list[Embedding]:
    try:
        if inspect.iscoroutinefunction(entry.function):
            given = await entry.call(inputs, context)
        else:
            given = await asyncio.to_thread(entry.call, inputs, context)
        return [Embedding(values=values) for values in given]
    except Refused:
        raise
    except Exception as exc:
        raise _failed(entry, exc) from exc


async def _within(deadline: datetime | None, work: Awaitable[Any]) -> Any:
    """Wait for work until a deadline. Raises Failed."""
    left = None if deadline is None else max(deadline.timestamp() - time.time(), 0.0)
    bound = asyncio.timeout(left)
    try:
        async with bound:
            return await work
    except TimeoutError as exc:
        if not bound.expired():
            raise
        raise Failed(ModelError("PROVIDER_TIMEOUT", "the time for the answer is over")) from exc


def _failed(entry: Entry, error: Exception) -> Failed:
    """What a call ends with whose function raised: what it means to say, or nothing that was not meant to be seen."""
    if isinstance(error, ModelError):
        return Failed(error)
    _log.error("model %s failed", entry.model.id, exc_info=error)
    return _broken()


def _broken() -> Failed:
    return Failed(ModelError("PROVIDER_UNAVAILABLE", "the model failed"))


def _invalid(text: str) -> Refused:
    return Refused("INVALID_ARGUMENT", "REQUEST_INVALID", text)


def _lacks(model: Model, capability: str) -> Refused:
    return Refused("FAILED_PRECONDITION", "PROVIDER_CAPABILITY_MISSING", f"model {model.id} lacks {capability}")
