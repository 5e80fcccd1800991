"""What the model sees: instructions, the session's history, the run's transcript, composed into one call.

The history is always valid: each tool call in it has exactly one result, and each result its call. Whoever hands in a
broken one (an import, an old log) gets it mended here rather than refused by a provider.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import Message, Part, Role, TextPart, ToolResult
from behestd.core.spend import estimate, estimate_text
from behestd.core.state import Run

CONTINUE = "Continue exactly where you stopped."
"""What the model is told when its answer was cut by length."""


@dataclass(frozen=True, slots=True)
class Window:
    """A model call and where its tokens come from."""

    chat: Chat
    tokens_by_source: dict[str, int]
    trimmed_messages: int

    @property
    def input_tokens(self) -> int:
        """Tokens that the call sends, estimated."""
        return sum(self.tokens_by_source.values())


def compose(run: Run, history: Sequence[Message], endpoint: str) -> Window:
    """Compose the open model call of a run, or the next one. Pure: the same run and history give the same bytes.

    What is said while a call is open belongs to the next one, so a call is composed alike before and after it left.
    """
    definition = run.definition
    limits = definition.limits
    kept = tuple(history)
    if limits.HasField("max_history_messages"):
        kept = trim(kept, limits.max_history_messages)
    chat = Chat(
        model=endpoint,
        tools=definition.tools,
        provider_options_json=definition.provider_options_json,
        run_id=run.id,
    )
    if definition.HasField("tool_choice"):
        chat.tool_choice.CopyFrom(definition.tool_choice)
    if definition.HasField("sampling"):
        chat.sampling.CopyFrom(definition.sampling)
    if definition.HasField("response_format"):
        chat.response_format.CopyFrom(definition.response_format)
    if definition.instructions:
        chat.messages.append(said(Role.ROLE_SYSTEM, definition.instructions))
    chat.messages.extend(mended(kept))
    transcript = run.transcript if run.step.open is not None else run.transcript + run.step.inputs
    chat.messages.extend(transcript)
    if is_cut(run):
        chat.messages.append(said(Role.ROLE_USER, CONTINUE))
    tokens = {
        "instructions": estimate_text(definition.instructions),
        "history": sum(map(estimate, kept)),
        "run": sum(map(estimate, transcript)),
        "tools": sum(-(-tool.ByteSize() // 4) for tool in definition.tools),
    }
    sources = {source: count for source, count in tokens.items() if count}
    return Window(chat, sources, len(history) - len(kept))


def is_cut(run: Run) -> bool:
    """Whether the conversation ends with an answer that was cut by length and is to be continued."""
    is_over = run.step.inputs and run.step.open is None
    if is_over or not run.transcript or run.transcript[-1].role != Role.ROLE_ASSISTANT:
        return False
    if run.step.answered:
        return run.step.finish_reason == FinishReason.FINISH_REASON_LENGTH
    return run.turns.length_recoveries > 0


def said(role: Role.ValueType, text: str) -> Message:
    """A message of one text."""
    return Message(role=role, parts=[Part(text=TextPart(text=text))])


def trim(history: Sequence[Message], limit: int) -> tuple[Message, ...]:
    """The latest messages, `limit` at most, beginning where somebody speaks, so that no result loses its call."""
    start = max(len(history) - limit, 0)
    while start and start < len(history) and history[start].role != Role.ROLE_USER:
        start += 1
    return tuple(history[start:])


def call_ids(message: Message) -> list[str]:
    """The calls that a message asks for, in order."""
    return [part.tool_call.id for part in message.parts if part.WhichOneof("kind") == "tool_call"]


def result_ids(message: Message) -> list[str]:
    """The calls that a message answers, in order."""
    return [part.tool_result.call_id for part in message.parts if part.WhichOneof("kind") == "tool_result"]


def is_valid(messages: Iterable[Message]) -> bool:
    """Whether each call has exactly one result, in the messages right after it, and each result its call."""
    expected: list[str] = []
    for message in messages:
        answered = result_ids(message)
        if answered:
            if any(call_id not in expected for call_id in answered) or len(set(answered)) != len(answered):
                return False
            expected = [call_id for call_id in expected if call_id not in answered]
            continue
        if expected:
            return False
        expected = call_ids(message)
    return not expected


def mended(history: Sequence[Message]) -> Sequence[Message]:
    """The history with a synthetic result for each call that has none, and without results that have no call."""
    if is_valid(history):
        return history
    mended: list[Message] = []
    expected: list[str] = []
    for message in history:
        answered = [call_id for call_id in dict.fromkeys(result_ids(message)) if call_id in expected]
        if result_ids(message):
            parts = {part.tool_result.call_id: part for part in message.parts}
            if answered:
                mended.append(
                    Message(id=message.id, role=Role.ROLE_TOOL, parts=[parts[call_id] for call_id in answered])
                )
            expected = [call_id for call_id in expected if call_id not in answered]
            continue
        if expected:
            mended.append(missing(expected))
        mended.append(message)
        expected = call_ids(message)
    if expected:
        mended.append(missing(expected))
    return mended


def missing(call_ids: Iterable[str], text: str = "this call was not executed") -> Message:
    """A tool message that answers calls which have no result."""
    return Message(
        role=Role.ROLE_TOOL,
        parts=[
            Part(tool_result=ToolResult(call_id=call_id, parts=[Part(text=TextPart(text=text))], is_error=True))
            for call_id in call_ids
        ],
    )
