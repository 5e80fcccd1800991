"""One answer of the scripted provider as it grows, and what it can tell of a call. Above: `scripted`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat, ChatDelta
from behest.v1.message_pb2 import Message, Part, Role
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


Piece = tuple[int, str, str]
"""(part, kind, text) of a piece of the answer, of kind `text`, `reasoning`, or `name` or `arguments` of a call."""


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
        self.pending: list[Piece] = []
        self._chat = chat
        self._parts: list[_Part] = []
        self._finish: FinishReason.ValueType = FinishReason.FINISH_REASON_UNSPECIFIED
        self._charge: Charge | None = None
        self._characters = 0

    def frame(self) -> Frame:
        """Take the waiting pieces. A frame is built in its place: what is nested is copied once for each level."""
        frame = Frame()
        deltas = frame.deltas
        for part, kind, text in self.pending:
            _say(deltas.add(), part, kind, text)
        self.pending = []
        return frame

    def last_frame(self) -> Frame:
        """Take the waiting pieces and the end."""
        frame = self.frame()
        end = frame.end
        message = end.message
        message.role = Role.ROLE_ASSISTANT
        parts = message.parts
        texts = ["".join(part.texts) for part in self._parts]
        for index, (part, text) in enumerate(zip(self._parts, texts, strict=True)):
            _finish(parts.add(), part, text, index)
        calls = any(part.kind == "tool_call" for part in self._parts)
        by_itself = FinishReason.FINISH_REASON_TOOL_CALLS if calls else FinishReason.FINISH_REASON_STOP
        end.finish_reason = self._finish or by_itself
        self._tell_usage(end.usage, texts)
        end.usage_source = UsageSource.USAGE_SOURCE_REPORTED
        end.model = self._chat.model
        return frame

    def pieces(self, directive: Directive) -> Iterator[Piece]:
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

    def _grow(self, kind: str, pieces: Iterable[str]) -> Iterator[Piece]:
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
            yield part, kind, word

    def _is_full(self, piece: str) -> bool:
        """Count a piece; an answer over the limit ends there, cut by length."""
        self._characters += len(piece)
        if self._characters <= MAX_CHARACTERS:
            return False
        self._finish = FinishReason.FINISH_REASON_LENGTH
        return True

    def _call(self, call: Invoke) -> Iterator[Piece]:
        if self._is_full(call.name + call.arguments_json):
            return
        self._parts.append(_Part("tool_call", [], call.name))
        part, texts = len(self._parts) - 1, self._parts[-1].texts
        yield part, "name", call.name
        texts.append(call.arguments_json)
        if call.arguments_json:
            yield part, "arguments", call.arguments_json

    def _tell_usage(self, usage: Usage, texts: Sequence[str]) -> None:
        """Report what the script charges, else the estimate; `texts` are those of the parts."""
        usage.attempts = 1
        charge = self._charge
        if charge is not None:
            usage.input_tokens, usage.output_tokens = charge.input_tokens, charge.output_tokens
            usage.cached_input_tokens, usage.reasoning_tokens = charge.cached_input_tokens, charge.reasoning_tokens
            return
        usage.input_tokens = estimate_chat(self._chat)
        for part, text in zip(self._parts, texts, strict=True):
            tokens = estimate_text(text)
            usage.output_tokens += tokens
            if part.kind == "reasoning":
                usage.reasoning_tokens += tokens


def _say(delta: ChatDelta, part: int, kind: str, text: str) -> None:
    delta.part = part
    if kind == "text":
        delta.text = text
    elif kind == "reasoning":
        delta.reasoning = text
    elif kind == "name":
        delta.tool_call.name = text
    else:
        delta.tool_call.arguments_json = text


def _finish(into: Part, part: _Part, text: str, index: int) -> None:
    if part.kind == "text":
        into.text.text = text
    elif part.kind == "reasoning":
        into.reasoning.text = text
    else:
        call = into.tool_call
        call.name, call.arguments_json, call.provider_call_id = part.name, text or "{}", f"call_{index}"


def said(message: Message) -> str:
    """Return what a message says, without what only looks like saying: calls, results, reasoning."""
    texts = []
    for part in message.parts[:]:
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
