"""The answer of a remote provider: handed through frame by frame, and trusted only once it adds up.

Above: `remote_provider`. Frames go on as they are; the end is put into the form that every provider's has, and is
refused when it is not what its pieces add up to, when a call has no name or no JSON object, or when it says nothing of
why it ended. Pure: no I/O.
"""

from __future__ import annotations

import math

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd, StreamChatResponse
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.message_pb2 import Message, Part, Role
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.core.estimate import estimate, estimate_chat, estimate_text
from behestd.providers.failure import ProviderFailure

ANSWER_LIMIT_BYTES = 16 * 1024 * 1024
"""Most bytes of all pieces of one answer."""
_MAX_PARTS = 10_000
_MAX_COUNT = 1 << 53
_KINDS = ("text", "reasoning", "tool_call")
_CUT = frozenset({FinishReason.FINISH_REASON_LENGTH, FinishReason.FINISH_REASON_CONTENT_FILTER})
"""Ends after which half a call may have been shown, which is none."""
_COUNTS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens")


class Answer:
    """One answer as it comes. `has_begun` once a piece was there."""

    __slots__ = ("_chat", "_names", "_pieces", "_size_bytes", "has_begun")

    def __init__(self, chat: Chat) -> None:
        """`chat` is the call as it was made here: its model is the whole id."""
        self._chat = chat
        self._pieces: dict[int, tuple[str, list[str]]] = {}
        self._names: dict[int, str] = {}
        self._size_bytes = 0
        self.has_begun = False

    def take(self, frame: StreamChatResponse) -> StreamChatResponse:
        """Check a frame and return what is handed on. Raises ProviderFailure PROVIDER_MALFORMED_OUTPUT."""
        for delta in frame.deltas:
            self._grow(delta)
        if not frame.HasField("end"):
            return frame
        return StreamChatResponse(deltas=frame.deltas, end=self._ended(frame.end))

    def _grow(self, delta: ChatDelta) -> None:
        self.has_begun = True
        kind = delta.WhichOneof("kind")
        if kind is None or not 0 <= delta.part < _MAX_PARTS:
            raise _malformed("a piece of the answer is of no kind or no part")
        known, texts = self._pieces.setdefault(delta.part, (kind, []))
        if known != kind:
            raise _malformed(f"part {delta.part} is of two kinds")
        text = delta.tool_call.arguments_json if kind == "tool_call" else getattr(delta, kind)
        if kind == "tool_call":
            self._names.setdefault(delta.part, delta.tool_call.name)
        self._size_bytes += len(text)
        if self._size_bytes > ANSWER_LIMIT_BYTES:
            raise _malformed(f"the answer exceeds the limit of {ANSWER_LIMIT_BYTES} bytes")
        texts.append(text)

    def _ended(self, end: ChatEnd) -> ChatEnd:
        if end.message.role != Role.ROLE_ASSISTANT:
            raise _malformed("the answer is not the assistant's")
        if end.finish_reason == FinishReason.FINISH_REASON_UNSPECIFIED:
            raise _malformed("the answer ended without a finish reason")
        is_known = end.finish_reason in FinishReason.values()
        finish = end.finish_reason if is_known else FinishReason.FINISH_REASON_OTHER
        parts = [self._part(index, part) for index, part in enumerate(end.message.parts)]
        for index, (kind, texts) in self._pieces.items():
            is_half = kind == "tool_call" and finish in _CUT
            if index >= len(parts) and any(texts) and not is_half:
                raise _malformed(f"the answer lacks part {index}, of which pieces came")
        message = Message(role=Role.ROLE_ASSISTANT, parts=parts)
        usage, source = self._usage(end, message)
        return ChatEnd(
            message=message,
            finish_reason=finish,
            usage=usage,
            usage_source=source,
            model=self._chat.model,
            provider_request_id=end.provider_request_id[:256],
        )

    def _part(self, index: int, part: Part) -> Part:
        """Check a part against its pieces, and put it into the form of every provider."""
        kind = part.WhichOneof("kind") or ""
        if kind not in _KINDS:
            raise _malformed(f"part {index} of the answer is of kind {kind or 'none'}")
        shown, texts = self._pieces.get(index, (kind, []))
        said = "".join(texts)
        text = part.tool_call.arguments_json if kind == "tool_call" else getattr(part, kind).text
        if kind == "tool_call" and not said.strip() and text in ("", "{}"):
            said = text
        if shown != kind or said != text:
            raise _malformed(f"part {index} of the answer is not what its pieces add up to")
        return self._call(index, part) if kind == "tool_call" else part

    def _call(self, index: int, part: Part) -> Part:
        call = part.tool_call
        if not call.name:
            raise _malformed(f"the call in part {index} has no name")
        if self._names.get(index, call.name) != call.name:
            raise _malformed(f"the call in part {index} has another name than its first piece")
        made = Part()
        made.tool_call.name = call.name
        made.tool_call.arguments_json = call.arguments_json if call.arguments_json.strip() else "{}"
        made.tool_call.provider_call_id = call.provider_call_id or call.id
        return made

    def _usage(self, end: ChatEnd, message: Message) -> tuple[Usage, UsageSource.ValueType]:
        """What the answer consumed as the server says it, or as it is estimated when it does not say."""
        usage = counted(end.usage)
        if not usage.input_tokens and not usage.output_tokens:
            usage = Usage(input_tokens=estimate_chat(self._chat), output_tokens=estimate(message), attempts=1)
            return usage, UsageSource.USAGE_SOURCE_ESTIMATED
        is_estimate = end.usage_source == UsageSource.USAGE_SOURCE_ESTIMATED
        return usage, UsageSource.USAGE_SOURCE_ESTIMATED if is_estimate else UsageSource.USAGE_SOURCE_REPORTED


def vectors(request: EmbedRequest, response: EmbedResponse) -> EmbedResponse:
    """Check the vectors of a server. Raises ProviderFailure PROVIDER_MALFORMED_OUTPUT."""
    found = response.embeddings
    if len(found) != len(request.inputs):
        raise _malformed(f"{len(found)} vectors for {len(request.inputs)} texts")
    lengths = {len(each.values) for each in found}
    if len(lengths) != 1 or 0 in lengths:
        raise _malformed("the vectors are empty, or of different lengths")
    if request.dimensions and lengths != {request.dimensions}:
        raise _malformed(f"the vectors have {lengths.pop()} numbers, not {request.dimensions}")
    if not all(math.isfinite(sum(each.values)) for each in found):
        raise _malformed("the vectors hold something that is no number")
    usage = counted(response.usage)
    if not usage.input_tokens:
        usage = Usage(input_tokens=sum(map(estimate_text, request.inputs)), attempts=1)
    return EmbedResponse(embeddings=found, model=request.model, usage=usage)


def counted(usage: Usage) -> Usage:
    """The counts of one attempt; what it cost is said by the prices of the model. Raises ProviderFailure."""
    counts = {name: getattr(usage, name) for name in _COUNTS}
    if not all(0 <= count < _MAX_COUNT for count in counts.values()):
        raise _malformed("the usage holds something that is no count")
    return Usage(**counts, attempts=1)


def _malformed(problem: str) -> ProviderFailure:
    return ProviderFailure("PROVIDER_MALFORMED_OUTPUT", problem)
