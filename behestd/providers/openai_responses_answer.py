"""The answer of the vendor's newer interface as it grows, from the events of a stream or one whole body. Pure.

Above: `openai`. It is complete only when its last event has come; what comes twice, out of order, or adds up to
something else than the server says, is MALFORMED. Unknown events and items are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd, ToolCallDelta
from behest.v1.message_pb2 import Message, Part, ReasoningPart, Role, TextPart, ToolCall
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.core.estimate import estimate, estimate_chat
from behestd.providers.failure import ProviderFailure
from behestd.providers.fields import counted, is_object, malformed, typed
from behestd.providers.http_failure import broke_off
from behestd.providers.openai_responses_request import seal
from behestd.providers.secret import Secret

_CUT = {
    "max_output_tokens": FinishReason.FINISH_REASON_LENGTH,
    "content_filter": FinishReason.FINISH_REASON_CONTENT_FILTER,
}
_GROWING = {
    "response.output_text.delta": "message",
    "response.refusal.delta": "message",
    "response.function_call_arguments.delta": "function_call",
    "response.reasoning_summary_text.delta": "reasoning",
    "response.reasoning_text.delta": "reasoning",
}
_PARAGRAPH = "\n\n"


@dataclass(slots=True)
class _Item:
    kind: str
    number: int
    name: str = ""
    call_id: str = ""
    texts: list[str] = field(default_factory=list)
    signature: bytes = b""
    is_open: bool = True

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Answer:
    """One answer. `feed` takes events in order, or a whole body; `end` tells all of it."""

    def __init__(self, chat: Chat, secret: Secret) -> None:
        self._chat = chat
        self._secret = secret
        self._items: dict[int, _Item | None] = {}
        self._parts: list[_Item] = []
        self._last = -1
        self._finish: FinishReason.ValueType = FinishReason.FINISH_REASON_UNSPECIFIED
        self._has_refused = False
        self._usage: Usage | None = None
        self._id = ""

    @property
    def is_over(self) -> bool:
        """Whether the last event has come."""
        return self._finish != FinishReason.FINISH_REASON_UNSPECIFIED

    def feed(self, document: object) -> list[ChatDelta]:
        """Take one event, or a whole body, and return what it adds. Raises: ProviderFailure."""
        event = typed(document, dict, "event")
        if event.get("object") == "response":
            return self._whole(event)
        self._in_order(event)
        kind = str(event.get("type") or "")
        if kind == "error":
            error = event.get("error")
            raise broke_off(error if isinstance(error, dict) else event, self._secret)
        if kind == "response.output_item.added":
            return self._open(_index(event), typed(event.get("item"), dict, "item"))
        if kind in _GROWING:
            self._has_refused = self._has_refused or kind == "response.refusal.delta"
            return self._add(self._item(event, _GROWING[kind]), typed(event.get("delta"), str, "delta"))
        if kind == "response.reasoning_summary_part.added" and event.get("summary_index"):
            return self._add(self._item(event, "reasoning"), _PARAGRAPH)
        if kind == "response.output_item.done":
            return self._close(_index(event), typed(event.get("item"), dict, "item"))
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self._end(typed(event.get("response"), dict, "response"))
        return []

    def end(self, request_id: str) -> ChatEnd:
        """Return the whole answer. Raises: ProviderFailure when it is not whole."""
        if not self.is_over:
            raise ProviderFailure("PROVIDER_STREAM_BROKEN", "the answer ended without its last event")
        last = self._parts[-1] if self._parts else None
        is_cut = self._finish in _CUT.values()
        if is_cut and last is not None and last.kind == "function_call" and not is_object(last.text):
            # Half a call is none; without a byte of its arguments, nobody knows whether it was whole.
            self._parts.pop()
        elif not is_cut and any(item.is_open for item in self._parts):
            raise malformed("an item was never closed")
        message = Message(role=Role.ROLE_ASSISTANT, parts=[_finished(item) for item in self._parts])
        usage = self._usage
        source = UsageSource.USAGE_SOURCE_REPORTED
        if usage is None:
            source = UsageSource.USAGE_SOURCE_ESTIMATED
            usage = Usage(input_tokens=estimate_chat(self._chat), output_tokens=estimate(message), attempts=1)
        return ChatEnd(
            message=message,
            finish_reason=self._finish_reason(),
            usage=usage,
            usage_source=source,
            model=self._chat.model,
            provider_request_id=request_id or self._id,
        )

    def _whole(self, response: Mapping[str, Any]) -> list[ChatDelta]:
        deltas: list[ChatDelta] = []
        for index, item in enumerate(typed(response.get("output") or [], list, "output")):
            item = typed(item, dict, "item")
            deltas += self._open(index, item)
            deltas += self._close(index, item)
        self._end(response)
        return deltas

    def _in_order(self, event: Mapping[str, Any]) -> None:
        """Refuse an event whose number is not above the one before; servers that give none are believed."""
        number = event.get("sequence_number")
        if isinstance(number, int):
            if number <= self._last:
                raise malformed(f"event {number} came after event {self._last}")
            self._last = number

    def _open(self, index: int, item: Mapping[str, Any]) -> list[ChatDelta]:
        if index in self._items:
            raise malformed(f"item {index} began twice")
        kind = str(item.get("type") or "")
        if kind not in ("message", "function_call", "reasoning"):
            self._items[index] = None
            return []
        opened = _Item(kind, len(self._parts))
        self._items[index] = opened
        self._parts.append(opened)
        if kind != "function_call":
            return []
        opened.name = typed(item.get("name") or "", str, "name")
        opened.call_id = str(item.get("call_id") or item.get("id") or "")
        return [ChatDelta(part=opened.number, tool_call=ToolCallDelta(name=opened.name))]

    def _item(self, event: Mapping[str, Any], kind: str) -> _Item:
        found = self._items.get(_index(event))
        if found is None or found.kind != kind or not found.is_open:
            raise malformed(f"item {event.get('output_index')} is no open {kind}")
        return found

    def _add(self, item: _Item, text: str) -> list[ChatDelta]:
        if not text:
            return []
        item.texts.append(text)
        if item.kind == "message":
            return [ChatDelta(part=item.number, text=text)]
        if item.kind == "reasoning":
            return [ChatDelta(part=item.number, reasoning=text)]
        return [ChatDelta(part=item.number, tool_call=ToolCallDelta(arguments_json=text))]

    def _close(self, index: int, told: Mapping[str, Any]) -> list[ChatDelta]:
        """Take the whole of an item, which is what its pieces add up to, or comes without pieces."""
        if index not in self._items:
            raise malformed(f"item {index} ended before it began")
        item = self._items[index]
        if item is None:
            return []
        if not item.is_open:
            raise malformed(f"item {index} ended twice")
        whole = self._text(item.kind, told)
        deltas = [] if item.texts else self._add(item, whole)
        if item.text != whole:
            raise malformed(f"the pieces of item {index} are not its whole")
        if item.kind == "reasoning" and told.get("encrypted_content"):
            content = typed(told["encrypted_content"], str, "content")
            item.signature = seal(self._chat.model, str(told.get("id") or ""), content)
        item.is_open = False
        return deltas

    def _text(self, kind: str, told: Mapping[str, Any]) -> str:
        if kind == "function_call":
            return typed(told.get("arguments") or "", str, "arguments")
        if kind == "reasoning":
            pieces = typed(told.get("content") or told.get("summary") or [], list, "summary")
            return _PARAGRAPH.join(typed(typed(piece, dict, "piece").get("text"), str, "text") for piece in pieces)
        texts = []
        for piece in typed(told.get("content") or [], list, "content"):
            piece = typed(piece, dict, "piece")
            self._has_refused = self._has_refused or piece.get("type") == "refusal"
            texts.append(typed(piece.get("text") or piece.get("refusal") or "", str, "text"))
        return "".join(texts)

    def _end(self, response: Mapping[str, Any]) -> None:
        self._id = str(response.get("id") or "")
        if response.get("usage"):
            self._usage = _usage(typed(response["usage"], dict, "usage"))
        status = response.get("status")
        if status == "completed":
            self._finish = FinishReason.FINISH_REASON_STOP
        elif status == "incomplete":
            details = typed(response.get("incomplete_details") or {}, dict, "details")
            self._finish = _CUT.get(str(details.get("reason")), FinishReason.FINISH_REASON_OTHER)
        else:
            raise broke_off(typed(response.get("error") or {}, dict, "error"), self._secret)

    def _finish_reason(self) -> FinishReason.ValueType:
        if self._finish != FinishReason.FINISH_REASON_STOP:
            return self._finish
        if self._has_refused:
            return FinishReason.FINISH_REASON_REFUSAL
        is_calling = any(item.kind == "function_call" for item in self._parts)
        return FinishReason.FINISH_REASON_TOOL_CALLS if is_calling else self._finish


def _index(event: Mapping[str, Any]) -> int:
    return typed(event.get("output_index"), int, "output_index")


def _finished(item: _Item) -> Part:
    if item.kind == "message":
        return Part(text=TextPart(text=item.text))
    if item.kind == "reasoning":
        return Part(reasoning=ReasoningPart(text=item.text, signature=item.signature))
    arguments = item.text if item.text.strip() else "{}"
    return Part(tool_call=ToolCall(name=item.name, arguments_json=arguments, provider_call_id=item.call_id))


def _usage(usage: Mapping[str, Any]) -> Usage:
    prompt = typed(usage.get("input_tokens_details") or {}, dict, "details")
    answer = typed(usage.get("output_tokens_details") or {}, dict, "details")
    return Usage(
        input_tokens=counted(usage, "input_tokens"),
        output_tokens=counted(usage, "output_tokens"),
        cached_input_tokens=counted(prompt, "cached_tokens"),
        cache_write_tokens=counted(prompt, "cache_write_tokens"),
        reasoning_tokens=counted(answer, "reasoning_tokens"),
        attempts=1,
    )
