"""One answer of the scripted provider as it grows, and what it can tell of a call. Above: `scripted`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ToolCallDelta
from behest.v1.message_pb2 import Message, Part, ReasoningPart, Role, TextPart, ToolCall
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.core.estimate import estimate_chat, estimate_text
from behestd.providers.provider import Frame
from behestd.providers.script import (
    Charge,
    Cut,
    Delay,
    Directive,
    Dump,
    Fail,
    Finish,
    Invoke,
    Mark,
    Reason,
    Recall,
    Say,
    Stall,
    Words,
)
from behestd.values import dataclass

MAX_CHARACTERS = 1_000_000
_PIECES = re.compile(r"\s*\S+|\s+\Z")
_FACT = re.compile(r"\bfact (\S+) = (\S+)")


@dataclass(slots=True)
class _Part:
    """A part of the answer as it grows."""

    kind: str
    texts: list[str]
    name: str = ""


class Answer:
    """One answer as it grows: pieces that wait to be sent, the parts that all pieces add up to, and how it ends."""

    def __init__(self, chat: Chat, turn: tuple[Directive, ...]) -> None:
        self.turn = turn
        self.pending: list[ChatDelta] = []
        self._chat = chat
        self._parts: list[_Part] = []
        self._finish: FinishReason.ValueType = FinishReason.FINISH_REASON_UNSPECIFIED
        self._charge: Charge | None = None
        self._characters = 0

    def frame(self) -> Frame:
        """Take the waiting pieces."""
        pending, self.pending = self.pending, []
        return Frame(deltas=pending)

    def last_frame(self) -> Frame:
        """Take the waiting pieces and the end."""
        parts = [_finished(part, index) for index, part in enumerate(self._parts)]
        finish = self._finish or (
            FinishReason.FINISH_REASON_TOOL_CALLS
            if any(part.kind == "tool_call" for part in self._parts)
            else FinishReason.FINISH_REASON_STOP
        )
        frame = Frame(deltas=self.pending)
        # Built in its place: what is nested is copied once for each level.
        end = frame.end
        end.message.role = Role.ROLE_ASSISTANT
        end.message.parts.extend(parts)
        end.finish_reason = finish
        end.usage.CopyFrom(self._usage())
        end.usage_source = UsageSource.USAGE_SOURCE_REPORTED
        end.model = self._chat.model
        return frame

    def pieces(self, directive: Directive) -> Iterator[ChatDelta]:
        """Yield what a directive adds to the answer; nothing once the answer is full."""
        if self._characters > MAX_CHARACTERS:
            return iter(())
        match directive:
            case Say(text):
                return self._grow("text", _PIECES.findall(text))
            case Words(count):
                return self._grow("text", (f" word{n}" if n > 1 else "word1" for n in range(1, count + 1)))
            case Reason(text):
                return self._grow("reasoning", _PIECES.findall(text))
            case Dump() | Recall():
                return self._grow("text", _PIECES.findall(self._told(directive)))
            case Invoke():
                return self._call(directive)
            case Finish(reason):
                self._finish = reason
            case Charge():
                self._charge = directive
            case Delay() | Fail() | Stall() | Cut() | Mark():
                pass
        return iter(())

    def _told(self, directive: Dump | Recall) -> str:
        """What the conversation tells."""
        if isinstance(directive, Recall):
            return recalled(self._chat, directive.key)
        return json.dumps(dump(self._chat), ensure_ascii=False)

    def _grow(self, kind: str, pieces: Iterable[str]) -> Iterator[ChatDelta]:
        """Add to the part that grows, on a new line, or begin another one."""
        if not self._parts or self._parts[-1].kind != kind:
            self._parts.append(_Part(kind, []))
        part, texts = len(self._parts) - 1, self._parts[-1].texts
        before = "\n" if texts else ""
        for piece in pieces:
            if self._is_full(piece):
                return
            word = before + piece if before else piece
            before = ""
            texts.append(word)
            yield ChatDelta(part=part, text=word) if kind == "text" else ChatDelta(part=part, reasoning=word)

    def _is_full(self, piece: str) -> bool:
        """Count a piece; an answer over the limit ends there, cut by length."""
        self._characters += len(piece)
        if self._characters <= MAX_CHARACTERS:
            return False
        self._finish = FinishReason.FINISH_REASON_LENGTH
        return True

    def _call(self, call: Invoke) -> Iterator[ChatDelta]:
        if self._is_full(call.name + call.arguments_json):
            return
        self._parts.append(_Part("tool_call", [], call.name))
        part, texts = len(self._parts) - 1, self._parts[-1].texts
        yield ChatDelta(part=part, tool_call=ToolCallDelta(name=call.name))
        texts.append(call.arguments_json)
        if call.arguments_json:
            yield ChatDelta(part=part, tool_call=ToolCallDelta(arguments_json=call.arguments_json))

    def _usage(self) -> Usage:
        charge = self._charge
        if charge is not None:
            return Usage(
                input_tokens=charge.input_tokens,
                output_tokens=charge.output_tokens,
                cached_input_tokens=charge.cached_input_tokens,
                reasoning_tokens=charge.reasoning_tokens,
                attempts=1,
            )
        reasoning = sum(estimate_text("".join(part.texts)) for part in self._parts if part.kind == "reasoning")
        rest = sum(estimate_text("".join(part.texts)) for part in self._parts if part.kind != "reasoning")
        return Usage(
            input_tokens=estimate_chat(self._chat),
            output_tokens=rest + reasoning,
            reasoning_tokens=reasoning,
            attempts=1,
        )


def _finished(part: _Part, index: int) -> Part:
    text = "".join(part.texts)
    if part.kind == "text":
        return Part(text=TextPart(text=text))
    if part.kind == "reasoning":
        return Part(reasoning=ReasoningPart(text=text))
    return Part(tool_call=ToolCall(name=part.name, arguments_json=text or "{}", provider_call_id=f"call_{index}"))


def said(message: Message) -> str:
    """Return what a message says, without what only looks like saying: calls, results, reasoning."""
    texts = []
    for part in message.parts:
        kind = part.WhichOneof("kind")
        if kind == "text":
            texts.append(part.text.text)
        elif kind == "json":
            texts.append(part.json.json)
    return "\n".join(texts)


def recalled(chat: Chat, key: str) -> str:
    """Tell the facts of the conversation, each as "fact KEY = VALUE", the latest value of each; empty key: all."""
    facts = dict(pair for message in chat.messages for pair in _FACT.findall(said(message)))
    told = [f"fact {name} = {value}" for name, value in facts.items() if key in ("", name)]
    return "\n".join(told) or "nothing"


def results(chat: Chat) -> str:
    """Tell the tool results that came last."""
    lines: list[str] = []
    for message in reversed(chat.messages):
        if message.role != Role.ROLE_TOOL:
            break
        for part in reversed(message.parts):
            result = part.tool_result
            lines.append(f"{result.name}: {said(Message(parts=result.parts))}")
    return "\n".join(reversed(lines)) or "done"


def dump(chat: Chat) -> dict[str, Any]:
    """Describe a call as it arrived: everything but what was said."""
    sampling: dict[str, Any] = {}
    for field, value in chat.sampling.ListFields():
        sampling[field.name] = list(value) if field.name == "stop" else value
    return {
        "model": chat.model,
        "messages": [
            {"role": Role.Name(message.role), "parts": [part.WhichOneof("kind") for part in message.parts]}
            for message in chat.messages
        ],
        "tools": [tool.name for tool in chat.tools],
        "tool_choice": {"mode": chat.tool_choice.mode, "tool_name": chat.tool_choice.tool_name},
        "sampling": sampling,
        "response_format": {
            "kind": chat.response_format.kind,
            "schema_name": chat.response_format.schema_name,
            "schema_json": chat.response_format.schema_json,
            "strict": chat.response_format.strict,
        },
        "provider_options_json": chat.provider_options_json,
        "run_id": chat.run_id,
    }
