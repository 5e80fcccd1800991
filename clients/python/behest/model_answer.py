"""What the functions of a provider server yield, and the frames and the end that are made of it.

Above: `model_service`. Pure. Guarantee: the end is what the pieces add up to, calls have names and a JSON object as
arguments, usage is set, and no piece is larger than a frame may be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import ChatDelta, ChatEnd, StreamChatResponse, ToolCallDelta
from behest.v1.message_pb2 import Message, Part, ReasoningPart, Role, TextPart
from behest.v1.message_pb2 import ToolCall as ToolCallPart
from behest.v1.usage_pb2 import Usage, UsageSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from behest.v1.chat_service_pb2 import Chat

PIECE_CHARACTERS = 256 * 1024
ANSWER_LIMIT_BYTES = 3 * 1024 * 1024
"""The most that one answer may hold, since its end repeats it in one frame."""
BYTES_PER_TOKEN = 4


class Finish(StrEnum):
    """Why a model stops, to be yielded last. Without it an answer ended well, with calls of tools if it holds any."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    REFUSAL = "refusal"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks, apart from its answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for, whole. `arguments` are a JSON object, as a mapping or as the model wrote it."""

    name: str
    arguments: Mapping[str, Any] | str = field(default_factory=dict)
    id: str = ""


Piece = str | Reasoning | ToolCall | Usage | Finish
"""What a chat model yields: text, thoughts, calls, what it consumed, why it stopped."""


class AnswerInvalid(Exception):
    """Raised when a function yields what is no piece of an answer."""


class Answer:
    """One answer while it is made."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._parts: list[Part] = []
        self._texts: list[str] = []
        self._kind = ""
        self._usage: Usage | None = None
        self._finish = FinishReason.FINISH_REASON_UNSPECIFIED
        self._size_bytes = 0

    def add(self, piece: object) -> Iterator[StreamChatResponse]:
        """Take a piece and yield the frames that show it. Raises AnswerInvalid."""
        match piece:
            case Usage():
                self._usage = piece
            case Finish():
                self._finish = FinishReason.Value(f"FINISH_REASON_{piece.name}")
            case str():
                yield from self._grow("text", piece)
            case Reasoning():
                yield from self._grow("reasoning", piece.text)
            case ToolCall():
                yield self._call(piece)
            case _:
                raise AnswerInvalid(f"{type(piece).__name__} is no piece of an answer")

    def end(self) -> StreamChatResponse:
        """Return the last frame."""
        self._close()
        message = Message(role=Role.ROLE_ASSISTANT, parts=self._parts)
        has_calls = any(part.HasField("tool_call") for part in self._parts)
        done = FinishReason.FINISH_REASON_TOOL_CALLS if has_calls else FinishReason.FINISH_REASON_STOP
        usage, source = self._usage, UsageSource.USAGE_SOURCE_REPORTED
        if usage is None:
            sent, said = self._chat.ByteSize(), message.ByteSize()
            usage = Usage(input_tokens=-(-sent // BYTES_PER_TOKEN), output_tokens=-(-said // BYTES_PER_TOKEN))
            source = UsageSource.USAGE_SOURCE_ESTIMATED
        usage.attempts = 1
        end = ChatEnd(
            message=message,
            finish_reason=self._finish or done,
            usage=usage,
            usage_source=source,
            model=self._chat.model,
        )
        return StreamChatResponse(end=end)

    def _grow(self, kind: str, text: str) -> Iterator[StreamChatResponse]:
        if not text:
            return
        if kind != self._kind:
            self._close()
            self._kind = kind
        # What is no UTF-8 cannot be sent.
        text = text.encode(errors="replace").decode()
        self._weigh(text)
        self._texts.append(text)
        part = len(self._parts)
        for start in range(0, len(text), PIECE_CHARACTERS):
            piece = text[start : start + PIECE_CHARACTERS]
            made = ChatDelta(part=part, text=piece) if kind == "text" else ChatDelta(part=part, reasoning=piece)
            yield StreamChatResponse(deltas=[made])

    def _close(self) -> None:
        """Make a part of the text that has come."""
        text = "".join(self._texts)
        if self._kind == "text":
            self._parts.append(Part(text=TextPart(text=text)))
        elif self._kind == "reasoning":
            self._parts.append(Part(reasoning=ReasoningPart(text=text)))
        self._kind = ""
        self._texts.clear()

    def _call(self, call: ToolCall) -> StreamChatResponse:
        if not call.name:
            raise AnswerInvalid("a call has no name")
        self._close()
        arguments = _arguments(call)
        self._weigh(arguments)
        made = ToolCallPart(name=call.name, arguments_json=arguments, provider_call_id=call.id)
        shown = ToolCallDelta(name=call.name, arguments_json=arguments)
        self._parts.append(Part(tool_call=made))
        return StreamChatResponse(deltas=[ChatDelta(part=len(self._parts) - 1, tool_call=shown)])

    def _weigh(self, text: str) -> None:
        self._size_bytes += len(text.encode())
        if self._size_bytes > ANSWER_LIMIT_BYTES:
            raise AnswerInvalid(f"the answer exceeds the limit of {ANSWER_LIMIT_BYTES} bytes")


def _arguments(call: ToolCall) -> str:
    """The arguments as JSON, as they were written if they are text. Raises AnswerInvalid."""
    if not isinstance(call.arguments, str):
        return json.dumps(dict(call.arguments), ensure_ascii=False)
    text = call.arguments.strip() and call.arguments
    try:
        is_object = isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise AnswerInvalid(f"the arguments of {call.name} are no JSON object")
    return text or "{}"
