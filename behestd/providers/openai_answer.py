"""The answer of an OpenAI-compatible server as it grows, from the chunks of a stream or one whole body. Pure.

Above: `openai`. It is complete only when a finish reason has come; the caller sees to the stream's own end marker.
Unknown fields are ignored, a field of a wrong type is MALFORMED.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from behestd.providers.secret import Secret

_FINISH = {
    "stop": FinishReason.FINISH_REASON_STOP,
    "length": FinishReason.FINISH_REASON_LENGTH,
    "tool_calls": FinishReason.FINISH_REASON_TOOL_CALLS,
    "function_call": FinishReason.FINISH_REASON_TOOL_CALLS,
    "content_filter": FinishReason.FINISH_REASON_CONTENT_FILTER,
}
_CUT = frozenset({"length", "content_filter"})
"""Reasons to stop in the middle of a part."""
_REASONING_FIELDS = ("reasoning_content", "reasoning")


@dataclass(slots=True)
class _Part:
    kind: str
    texts: list[str] = field(default_factory=list)
    name: str = ""
    call_id: str = ""


class Answer:
    """One answer. `feed` takes chunks in order, `end` tells the whole."""

    is_over = False
    """No chunk says that it is the last: the stream does, by its own end marker."""

    def __init__(self, chat: Chat, secret: Secret) -> None:
        self._chat = chat
        self._secret = secret
        self._parts: list[_Part] = []
        self._calls: dict[int, int] = {}
        self._finish = ""
        self._has_refused = False
        self._usage: Usage | None = None
        self._id = ""

    def feed(self, chunk: object) -> list[ChatDelta]:
        """Take one chunk and return what it adds. Raises: ProviderFailure."""
        document = typed(chunk, dict, "chunk")
        if document.get("error"):
            error = document["error"]
            raise broke_off(error if isinstance(error, dict) else {"message": str(error)}, self._secret)
        self._id = self._id or str(document.get("id") or "")
        if document.get("usage"):
            self._usage = _usage(typed(document["usage"], dict, "usage"))
        deltas: list[ChatDelta] = []
        for choice in typed(document.get("choices") or [], list, "choices"):
            choice = typed(choice, dict, "choice")
            if choice.get("index") in (0, None):
                self._grow(typed(choice.get("delta") or choice.get("message") or {}, dict, "delta"), deltas)
                self._finish = str(choice.get("finish_reason") or self._finish)
        return deltas

    def end(self, request_id: str) -> ChatEnd:
        """Return the whole answer. Raises: ProviderFailure PROVIDER_STREAM_BROKEN when no finish reason has come."""
        if not self._finish:
            raise ProviderFailure("PROVIDER_STREAM_BROKEN", "the answer ended without a finish reason")
        last = self._parts[-1] if self._parts else None
        if self._finish in _CUT and last and last.kind == "tool_call" and not is_object("".join(last.texts)):
            # Half a call is none; without a byte of its arguments, nobody knows whether it was whole.
            self._parts.pop()
        message = Message(role=Role.ROLE_ASSISTANT, parts=[_finished(part) for part in self._parts])
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

    def _finish_reason(self) -> FinishReason.ValueType:
        finish = _FINISH.get(self._finish, FinishReason.FINISH_REASON_OTHER)
        if finish == FinishReason.FINISH_REASON_STOP and self._has_refused:
            return FinishReason.FINISH_REASON_REFUSAL
        if finish == FinishReason.FINISH_REASON_STOP and self._calls:
            # Some servers say "stop" after calls.
            return FinishReason.FINISH_REASON_TOOL_CALLS
        return finish

    def _grow(self, delta: Mapping[str, Any], deltas: list[ChatDelta]) -> None:
        for name in _REASONING_FIELDS:
            if delta.get(name):
                text = typed(delta[name], str, name)
                deltas.append(ChatDelta(part=self._extend("reasoning", text), reasoning=text))
                break
        for name in ("content", "refusal"):
            if delta.get(name):
                text = typed(delta[name], str, name)
                deltas.append(ChatDelta(part=self._extend("text", text), text=text))
        self._has_refused = self._has_refused or bool(delta.get("refusal"))
        for call in typed(delta.get("tool_calls") or [], list, "tool_calls"):
            self._grow_call(typed(call, dict, "tool call"), deltas)

    def _extend(self, kind: str, text: str) -> int:
        if not self._parts or self._parts[-1].kind != kind:
            self._parts.append(_Part(kind))
        self._parts[-1].texts.append(text)
        return len(self._parts) - 1

    def _grow_call(self, call: Mapping[str, Any], deltas: list[ChatDelta]) -> None:
        function = typed(call.get("function") or {}, dict, "function")
        name = typed(function.get("name") or "", str, "name")
        arguments = typed(function.get("arguments") or "", str, "arguments")
        index = self._index(call, name)
        is_new = index not in self._calls
        if is_new:
            self._calls[index] = len(self._parts)
            self._parts.append(_Part("tool_call"))
        number = self._calls[index]
        part = self._parts[number]
        part.call_id = part.call_id or str(call.get("id") or "")
        shown = name if not part.name else ""
        part.name = part.name or name
        part.texts.append(arguments)
        if shown or arguments:
            deltas.append(ChatDelta(part=number, tool_call=ToolCallDelta(name=shown, arguments_json=arguments)))

    def _index(self, call: Mapping[str, Any], name: str) -> int:
        """Return the call's index. A server that sends none begins a call by its name."""
        index = call.get("index")
        if index is None:
            return len(self._calls) if name or not self._calls else len(self._calls) - 1
        return int(typed(index, int, "index"))


def _finished(part: _Part) -> Part:
    text = "".join(part.texts)
    if part.kind == "text":
        return Part(text=TextPart(text=text))
    if part.kind == "reasoning":
        return Part(reasoning=ReasoningPart(text=text))
    # No argument bytes at all is how some servers write an empty object.
    arguments = text if text.strip() else "{}"
    return Part(tool_call=ToolCall(name=part.name, arguments_json=arguments, provider_call_id=part.call_id))


def _usage(usage: Mapping[str, Any]) -> Usage:
    prompt = typed(usage.get("prompt_tokens_details") or {}, dict, "details")
    completion = typed(usage.get("completion_tokens_details") or {}, dict, "details")
    return Usage(
        input_tokens=counted(usage, "prompt_tokens"),
        output_tokens=counted(usage, "completion_tokens"),
        cached_input_tokens=counted(prompt, "cached_tokens") or counted(usage, "prompt_cache_hit_tokens"),
        cache_write_tokens=counted(prompt, "cache_write_tokens"),
        reasoning_tokens=counted(completion, "reasoning_tokens"),
        attempts=1,
    )


def vectors(document: object, count: int) -> Sequence[Sequence[float]]:
    """Read the vectors of an embedding answer, in the order of the inputs. Raises: ProviderFailure."""
    data = typed(typed(document, dict, "answer").get("data"), list, "data")
    found: dict[int, Sequence[float]] = {}
    for item in data:
        item = typed(item, dict, "item")
        values = typed(item.get("embedding"), list, "embedding")
        if not all(isinstance(value, int | float) for value in values):
            raise malformed("embedding is no list of numbers")
        found[typed(item.get("index"), int, "index")] = values
    if sorted(found) != list(range(count)):
        raise malformed(f"{len(found)} vectors for {count} texts")
    return [found[index] for index in range(count)]


def prompt_usage(document: object) -> Usage | None:
    """Read the usage of an embedding answer; None when there is none. Raises: ProviderFailure."""
    usage = typed(document, dict, "answer").get("usage")
    return _usage(typed(usage, dict, "usage")) if usage else None
