"""What the model sees: instructions, context, the session's history, the run's transcript, composed into one call.

What does not change comes first, so that calls of a run begin alike and a provider's prompt cache holds. The history is
bounded by messages, by tokens and by the model's window, and always valid: each tool call in it has exactly one result,
and each result its call. Whoever hands in a broken one (an import, an old log) gets it mended here rather than refused
by a provider.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat
from behest.v1.context_event_pb2 import ContextBuilt
from behest.v1.context_pb2 import ContextSource, ContextTrim, ContextTrimReason
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.message_pb2 import Message, Part, Role, TextPart, ToolResult
from behest.v1.model_pb2 import ModelLimits
from behestd.core import structured
from behestd.core.compaction import conversation, is_summary
from behestd.core.estimate import EXACT, corrected, estimate, estimate_text, estimate_tool
from behestd.core.pruning import prune
from behestd.core.sources import HISTORY, Gathered, limits_of, recorded, static_message
from behestd.core.state import Run
from behestd.values import dataclass

CONTINUE = "Continue exactly where you stopped."
"""What the model is told when its answer was cut by length."""
ANSWER_SHARE = 8
"""At most one part in so many of a window is kept for the answer, unless the run asks for longer ones."""
_MESSAGES = ContextTrimReason.CONTEXT_TRIM_REASON_MESSAGES
_TOKENS = ContextTrimReason.CONTEXT_TRIM_REASON_TOKENS
_WINDOW = ContextTrimReason.CONTEXT_TRIM_REASON_WINDOW
TRIM_STEPS = 8
"""What a window has no room for is left out in steps of one part in so many of it: the beginning stays for a while."""


@dataclass(frozen=True, slots=True)
class Window:
    """A model call, where its tokens come from, and what was left out of it."""

    chat: Chat
    tokens_by_source: dict[str, int]
    input_tokens: int
    """Tokens that the call sends, estimated."""
    trims: tuple[ContextTrim, ...] = ()
    model_tokens: int = 0
    """Tokens that fit into the model. 0: unknown."""
    limit_tokens: int = 0
    """Most tokens that leave room for the answer. 0: unknown."""
    raw_tokens: int = 0
    """Tokens that the call sends, estimated and not corrected for the model."""

    @property
    def is_too_long(self) -> bool:
        """Whether it does not fit the model's window, even without room for the answer."""
        return 0 < self.model_tokens < self.input_tokens

    @property
    def whole_tokens(self) -> int:
        """The same with what the model's window has no room for: what a shorter history would have to be made of."""
        left_out = sum(trim.tokens for trim in self.trims if trim.reason == _WINDOW) if self.trims else 0
        return self.input_tokens + left_out

    @property
    def trimmed_messages(self) -> int:
        """How many messages of the history were left out."""
        return sum(trim.messages for trim in self.trims) if self.trims else 0


def compose(run: Run, history: Sequence[Message], endpoint: str, gathered: Gathered | None = None) -> Window:
    """Compose the open model call of a run, or the next one. Pure: the same run and history give the same bytes.

    `gathered` is for a step that has not begun; what a step that has begun is composed of is recorded. What is said
    while a call is open belongs to the next one, so a call is composed alike before and after it left.
    """
    definition = run.definition
    given = recorded(run) if gathered is None else gathered
    ratio = given.ratio(definition, endpoint)
    before, transcript = conversation(run, history)
    if run.step.open is None:
        transcript += run.step.inputs
    if definition.HasField("pruning"):
        pruned = prune((*before, *transcript), definition.pruning)
        before, transcript = tuple(pruned[: len(before)]), tuple(pruned[len(before) :])
    if is_cut(run):
        transcript += (said(Role.ROLE_USER, CONTINUE),)
    instructions = structured.instructions(definition, endpoint)
    parts = _context(definition, given) if definition.sources else []
    raw = {
        "instructions": estimate_text(instructions),
        "run": sum(map(estimate, transcript)),
        "tools": sum(map(estimate_tool, definition.tools)) if definition.tools else 0,
        **{name: sum(map(estimate, context)) for name, context in parts},
    }
    tokens = raw if ratio == EXACT else {name: corrected(count, ratio) for name, count in raw.items()}
    limits = limits_of(definition, endpoint)
    most = _most_input(definition, limits)
    left = most - sum(tokens.values()) if most else None
    kept, trims, size = _fitted(definition, before, ratio, left, limits)
    messages: list[Message] = []
    if instructions:
        messages.append(said(Role.ROLE_SYSTEM, instructions))
    for name, context in parts or ((HISTORY, ()),):
        messages.extend(mended(kept) if name == HISTORY else context)
    messages.extend(transcript)
    used = {name: count for name, count in {**tokens, HISTORY: size}.items() if count}
    total = sum(used.values())
    return Window(
        chat=_call(run, endpoint, messages),
        tokens_by_source=used,
        input_tokens=total,
        trims=trims,
        model_tokens=limits.context_window_tokens,
        limit_tokens=most,
        raw_tokens=total if ratio == EXACT else sum(raw.values()) + sum(map(estimate, kept)),
    )


def built(run: Run, window: Window, given: Gathered) -> ContextBuilt:
    """The event with which a step begins."""
    event = ContextBuilt()
    event.step, event.visit = run.steps + 1, run.visit
    event.messages = len(window.chat.messages)
    event.tokens_by_source.update(window.tokens_by_source)
    if window.trims:
        event.trimmed_messages = window.trimmed_messages
        event.trims.extend(window.trims)
    if given.outcomes:
        event.provided.extend(given.messages)
        event.outcomes.extend(given.outcomes)
    if given.ratios:
        event.calibration_permille.extend(given.ratios)
    return event


def _call(run: Run, endpoint: str, messages: Sequence[Message]) -> Chat:
    """The call with these messages."""
    definition = run.definition
    chat = Chat(messages=messages)
    chat.model, chat.run_id = endpoint, run.id
    if definition.tools:
        chat.tools.extend(definition.tools)
    if definition.provider_options_json:
        chat.provider_options_json = definition.provider_options_json
    if definition.HasField("tool_choice"):
        chat.tool_choice.CopyFrom(definition.tool_choice)
    if definition.HasField("sampling"):
        chat.sampling.CopyFrom(definition.sampling)
    form = structured.form_of(definition, endpoint)
    if form is not None:
        chat.response_format.CopyFrom(form)
    return chat


def _context(definition: RunDefinition, given: Gathered) -> list[tuple[str, tuple[Message, ...]]]:
    """What sources give, in order, with a place for the history. Empty: there is nothing but history."""
    return [
        (
            source.name,
            () if source.name == HISTORY else given.provided.get(source.name) or _of_static(source),
        )
        for source in definition.sources
    ]


def _of_static(source: ContextSource) -> tuple[Message, ...]:
    return (static_message(source),) if source.text else ()


def _most_input(definition: RunDefinition, limits: ModelLimits) -> int:
    """Most tokens that may be sent so that there is room for the answer; 0: the window is not known."""
    window = limits.context_window_tokens
    if not window:
        return 0
    share = window // ANSWER_SHARE
    answer = min(limits.max_output_tokens, share) if limits.max_output_tokens else share
    if definition.sampling.HasField("max_output_tokens"):
        answer = min(definition.sampling.max_output_tokens, window)
    return max(window - answer, 1)


# --- limits of the history ---


def _fitted(
    definition: RunDefinition, history: tuple[Message, ...], ratio: int, left: int | None, limits: ModelLimits
) -> tuple[tuple[Message, ...], tuple[ContextTrim, ...], int]:
    """The latest part of the history within all limits, what was left out for which, and the tokens of what is kept.

    `left` is what the window has room for, None: any number. A summary at the beginning stays where the rest goes.
    """
    if not history:
        return (), (), 0
    summary = history[:1] if is_summary(history[0]) else ()
    kept = history[len(summary) :]
    sizes = [corrected(estimate(message), ratio) for message in kept]
    above = sum(corrected(estimate(message), ratio) for message in summary)
    bounds = definition.limits
    rules: list[tuple[ContextTrimReason.ValueType, int]] = []
    if bounds.HasField("max_history_messages"):
        rules.append((_MESSAGES, bounds.max_history_messages))
    if bounds.HasField("max_history_tokens"):
        rules.append((_TOKENS, bounds.max_history_tokens))
    if left is not None:
        rules.append((_WINDOW, max(left, 0)))
    trims: list[ContextTrim] = []
    for reason, limit in rules:
        room = limit if reason == _MESSAGES else limit - above
        start = _spoken(kept, _first(reason, sizes, room, limits.context_window_tokens // TRIM_STEPS))
        if start:
            trims.append(ContextTrim(reason=reason, messages=start, tokens=sum(sizes[:start]), limit=limit))
            kept, sizes = kept[start:], sizes[start:]
    return (*summary, *kept), tuple(trims), above + sum(sizes)


def _first(reason: ContextTrimReason.ValueType, sizes: Sequence[int], room: int, step: int) -> int:
    """The first of the messages of these sizes that a limit leaves; what a window leaves moves on in steps."""
    if reason == _MESSAGES:
        return max(len(sizes) - room, 0)
    total = sum(sizes)
    if total <= room:
        return 0
    excess = -(-(total - room) // step) * step if reason == _WINDOW and step else total - room
    return _start(sizes, total - excess)


def _start(sizes: Sequence[int], limit: int) -> int:
    """The first of the latest messages that have so many tokens at most."""
    left, start = limit, len(sizes)
    while start and sizes[start - 1] <= left:
        start -= 1
        left -= sizes[start]
    return start


def _spoken(history: Sequence[Message], start: int) -> int:
    """Where somebody speaks, from a message on, so that no result loses its call; the end when nobody does."""
    while start and start < len(history) and history[start].role != Role.ROLE_USER:
        start += 1
    return start


def trim(history: Sequence[Message], limit: int) -> tuple[Message, ...]:
    """The latest messages, `limit` at most, beginning where somebody speaks, so that no result loses its call."""
    return tuple(history[_spoken(history, max(len(history) - limit, 0)) :])


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


def call_ids(message: Message) -> list[str]:
    """The calls that a message asks for, in order."""
    return [part.tool_call.id for part in message.parts if part.WhichOneof("kind") == "tool_call"]


def result_ids(message: Message) -> list[str]:
    """The calls that a message answers, in order."""
    return [part.tool_result.call_id for part in message.parts if part.WhichOneof("kind") == "tool_result"]


def is_valid(messages: Iterable[Message]) -> bool:
    """Whether each call has exactly one result, in the messages right after it, and each result its call."""
    expected: set[str] = set()
    for message in messages:
        asked, answered = _calls_of(message)
        if answered:
            if len(set(answered)) != len(answered) or not expected.issuperset(answered):
                return False
            expected = expected.difference(answered)
        elif expected:
            return False
        else:
            expected = set(asked)
    return not expected


def _calls_of(message: Message) -> tuple[list[str], list[str]]:
    """The calls that a message asks for, and those that it answers."""
    asked: list[str] = []
    answered: list[str] = []
    for part in message.parts:
        if part.HasField("tool_call"):
            asked.append(part.tool_call.id)
        elif part.HasField("tool_result"):
            answered.append(part.tool_result.call_id)
    return asked, answered


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
