"""The answer of an Anthropic-compatible server as it grows, from the events of a stream or one whole body. Pure.

Above: `anthropic`. It is complete only when its last event and a stop reason have come and every block is closed.
Unknown events, blocks and fields are ignored, as the vendor asks; what comes twice or out of order is MALFORMED.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd, ToolCallDelta
from behest.v1.message_pb2 import Message, Part, ReasoningPart, Role, TextPart, ToolCall
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.core.estimate import estimate, estimate_chat
from behestd.providers.anthropic_request import REDACTED, SIGNED
from behestd.providers.failure import ProviderFailure
from behestd.providers.fields import counted, is_object, malformed, typed
from behestd.providers.http_failure import broke_off
from behestd.providers.secret import Secret

_STOP = {
    "end_turn": FinishReason.FINISH_REASON_STOP,
    "stop_sequence": FinishReason.FINISH_REASON_STOP,
    "max_tokens": FinishReason.FINISH_REASON_LENGTH,
    "model_context_window_exceeded": FinishReason.FINISH_REASON_LENGTH,
    "tool_use": FinishReason.FINISH_REASON_TOOL_CALLS,
    "refusal": FinishReason.FINISH_REASON_REFUSAL,
    # Not the vendor's, but of gateways that filter.
    "content_filter": FinishReason.FINISH_REASON_CONTENT_FILTER,
}
_CUT = frozenset({"max_tokens", "model_context_window_exceeded", "refusal", "content_filter"})
"""Reasons to stop in the middle of a block."""
_COUNTERS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


@dataclass(slots=True)
class _Part:
    kind: str
    texts: list[str] = field(default_factory=list)
    name: str = ""
    call_id: str = ""
    signature: str = ""
    is_open: bool = True


class Answer:
    """One answer. `feed` takes events in order, `whole` a body instead, `end` tells all of it."""

    def __init__(self, chat: Chat, secret: Secret) -> None:
        self._chat = chat
        self._secret = secret
        self._parts: list[_Part] = []
        self._blocks: dict[int, tuple[int, _Part]] = {}
        self._stop = ""
        self._counts: dict[str, int] = {}
        self._id: str | None = None
        self.is_over = False

    def feed(self, event: object) -> list[ChatDelta]:
        """Take one event and return what it adds. Raises: ProviderFailure."""
        document = typed(event, dict, "event")
        kind = document.get("type")
        if kind == "error":
            self._break_off(document)
        if kind == "message_start":
            self._begin(typed(document.get("message"), dict, "message"))
        elif kind == "content_block_start":
            return self._open(_index(document), typed(document.get("content_block"), dict, "block"))
        elif kind == "content_block_delta":
            return self._grow(_index(document), typed(document.get("delta"), dict, "delta"))
        elif kind == "content_block_stop":
            self._block(_index(document))[1].is_open = False
        elif kind == "message_delta":
            self._finish(typed(document.get("delta") or {}, dict, "delta"), document)
        elif kind == "message_stop":
            self.is_over = True
        return []

    def whole(self, body: object) -> list[ChatDelta]:
        """Take a whole answer. Raises: ProviderFailure."""
        document = typed(body, dict, "answer")
        if document.get("type") == "error":
            self._break_off(document)
        deltas: list[ChatDelta] = []
        for index, block in enumerate(typed(document.get("content") or [], list, "content")):
            deltas += self._open(index, typed(block, dict, "block"))
            self._blocks[index][1].is_open = False
        self._begin(document)
        self._finish(document, {})
        self.is_over = True
        return deltas

    def end(self, request_id: str) -> ChatEnd:
        """Return the whole answer. Raises: ProviderFailure when it is not whole."""
        if not (self.is_over and self._stop):
            raise ProviderFailure("PROVIDER_STREAM_BROKEN", "the answer ended without a stop reason")
        if any(part.is_open for _, part in self._blocks.values()):
            raise malformed("a block was never closed")
        last = self._parts[-1] if self._parts else None
        if self._stop in _CUT and last and last.kind == "tool_use" and not is_object("".join(last.texts)):
            # Half a call is none; without a byte of its arguments, nobody knows whether it was whole.
            self._parts.pop()
        message = Message(role=Role.ROLE_ASSISTANT, parts=[_finished(part) for part in self._parts])
        usage = self._usage()
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
            provider_request_id=request_id or self._id or "",
        )

    def _break_off(self, document: Mapping[str, Any]) -> None:
        error = document.get("error")
        raise broke_off(error if isinstance(error, dict) else {"message": str(error or "")}, self._secret)

    def _begin(self, message: Mapping[str, Any]) -> None:
        if self._id is not None:
            raise malformed("the answer began twice")
        self._id = str(message.get("id") or "")
        self._count(message)

    def _open(self, index: int, block: Mapping[str, Any]) -> list[ChatDelta]:
        if index in self._blocks:
            raise malformed(f"block {index} began twice")
        kind = str(block.get("type") or "")
        part = _Part(kind)
        number = len(self._parts)
        self._blocks[index] = (number, part)
        if kind in ("text", "thinking"):
            self._parts.append(part)
            part.signature = typed(block.get("signature") or "", str, "signature")
            return self._add(number, part, typed(block.get(kind) or "", str, kind))
        if kind == "redacted_thinking":
            self._parts.append(part)
            part.signature = typed(block.get("data") or "", str, "data")
        elif kind == "tool_use":
            self._parts.append(part)
            part.name = typed(block.get("name") or "", str, "name")
            part.call_id = typed(block.get("id") or "", str, "id")
            # A stream begins with an empty object and sends the bytes after it.
            given = typed(block.get("input") or {}, dict, "input")
            part.texts = [json.dumps(given, ensure_ascii=False)] if given else []
            call = ToolCallDelta(name=part.name, arguments_json="".join(part.texts))
            return [ChatDelta(part=number, tool_call=call)]
        return []

    def _grow(self, index: int, delta: Mapping[str, Any]) -> list[ChatDelta]:
        number, part = self._block(index)
        kind = delta.get("type")
        if kind == "text_delta" and part.kind == "text":
            return self._add(number, part, typed(delta.get("text"), str, "text"))
        if kind == "thinking_delta" and part.kind == "thinking":
            return self._add(number, part, typed(delta.get("thinking"), str, "thinking"))
        if kind == "input_json_delta" and part.kind == "tool_use":
            return self._add(number, part, typed(delta.get("partial_json"), str, "partial_json"))
        if kind == "signature_delta" and part.kind == "thinking":
            part.signature += typed(delta.get("signature"), str, "signature")
        return []

    def _block(self, index: int) -> tuple[int, _Part]:
        found = self._blocks.get(index)
        if found is None or not found[1].is_open:
            raise malformed(f"block {index} is not open")
        return found

    def _add(self, number: int, part: _Part, text: str) -> list[ChatDelta]:
        if not text:
            return []
        part.texts.append(text)
        if part.kind == "text":
            return [ChatDelta(part=number, text=text)]
        if part.kind == "thinking":
            return [ChatDelta(part=number, reasoning=text)]
        return [ChatDelta(part=number, tool_call=ToolCallDelta(arguments_json=text))]

    def _finish(self, delta: Mapping[str, Any], document: Mapping[str, Any]) -> None:
        self._stop = str(delta.get("stop_reason") or self._stop)
        self._count(document)

    def _count(self, document: Mapping[str, Any]) -> None:
        """Take counters, which are sums so far: the largest is the last, whatever order they come in."""
        usage = document.get("usage")
        if not usage:
            return
        usage = typed(usage, dict, "usage")
        details = typed(usage.get("output_tokens_details") or {}, dict, "details")
        for counts, names in ((usage, _COUNTERS), (details, ("thinking_tokens",))):
            for name in names:
                self._counts[name] = max(self._counts.get(name, 0), counted(counts, name))

    def _usage(self) -> Usage | None:
        """Return what was counted. The vendor counts tokens of the cache apart from the input."""
        counts = self._counts
        if not counts:
            return None
        cached, written = counts["cache_read_input_tokens"], counts["cache_creation_input_tokens"]
        return Usage(
            input_tokens=counts["input_tokens"] + cached + written,
            output_tokens=counts["output_tokens"],
            cached_input_tokens=cached,
            cache_write_tokens=written,
            reasoning_tokens=counts["thinking_tokens"],
            attempts=1,
        )

    def _finish_reason(self) -> FinishReason.ValueType:
        finish = _STOP.get(self._stop, FinishReason.FINISH_REASON_OTHER)
        if finish == FinishReason.FINISH_REASON_STOP and any(part.kind == "tool_use" for part in self._parts):
            # Some servers say "end_turn" after calls.
            return FinishReason.FINISH_REASON_TOOL_CALLS
        return finish


def _index(document: Mapping[str, Any]) -> int:
    return typed(document.get("index"), int, "index")


def _finished(part: _Part) -> Part:
    text = "".join(part.texts)
    if part.kind == "text":
        return Part(text=TextPart(text=text))
    if part.kind == "thinking":
        signature = SIGNED + part.signature.encode() if part.signature else b""
        return Part(reasoning=ReasoningPart(text=text, signature=signature))
    if part.kind == "redacted_thinking":
        return Part(reasoning=ReasoningPart(signature=REDACTED + part.signature.encode()))
    # No argument bytes at all is how a call without arguments is streamed.
    arguments = text if text.strip() else "{}"
    return Part(tool_call=ToolCall(name=part.name, arguments_json=arguments, provider_call_id=part.call_id))
