"""A long conversation with a summary in the place of its oldest part, and where to cut it. Pure.

Above: `window`, which composes calls of what is `seen`, `compaction_turn`, which decides about summaries, and the
manual compaction of the runtime. A summary is a message of the session that names the last message that it stands for;
what it stands for stays stored and can be listed. A cut never parts a tool call from its result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from behest.v1.definition_pb2 import Compaction
from behest.v1.message_pb2 import Message, Role
from behestd.core.state import Run
from behestd.core.times import duration

THRESHOLD = 0.8
TAIL_SHARE = 0.25
PROMPT_SHARE = 0.8
"""The part of a window that the conversation in a call for a summary may take, together with the summary."""
SUMMARY_SHARE = 8
"""A summary takes one part in so many of a window at most."""
LEAST_SHARE = 10
"""Less than one part in so many of a window is not worth a summary, unless the model refused the call."""
SUMMARY_TOKENS = 1024
TIMEOUT_SECONDS = 120.0
FAILURES = 3
COOL_DOWN_SECONDS = 300.0

DEFAULTS = Compaction(
    enabled=True,
    threshold=THRESHOLD,
    summary_tokens=SUMMARY_TOKENS,
    timeout=duration(TIMEOUT_SECONDS),
    failures=FAILURES,
    cool_down=duration(COOL_DOWN_SECONDS),
)


@dataclass(frozen=True, slots=True)
class Circuit:
    """How summarising a session fares: failures in a row, and until when nothing is tried."""

    failures: int = 0
    open_until_ns: int = 0
    reason: str = ""
    """Of the last failure."""


CLOSED = Circuit()


def in_force(agent: Compaction, configured: Compaction | None = None) -> Compaction:
    """An agent's policy over the operator's over the defaults."""
    merged = Compaction()
    for layer in (DEFAULTS, configured or Compaction(), agent):
        merged.MergeFrom(layer)
        # Merging would mix the seconds of one with the nanoseconds of the other.
        if layer.HasField("timeout"):
            merged.timeout.CopyFrom(layer.timeout)
        if layer.HasField("cool_down"):
            merged.cool_down.CopyFrom(layer.cool_down)
    return merged


# --- what is seen ---


def is_summary(message: Message) -> bool:
    """Whether a message stands for others."""
    return bool(message.summary_upto_message_id)


def seen(history: Sequence[Message]) -> tuple[Message, ...]:
    """The history in which the latest summary stands for what it summarises, and no other summary is left."""
    if not history:
        return ()
    found = next((at for at in range(len(history) - 1, -1, -1) if is_summary(history[at])), -1)
    if found <= 0:
        return tuple(history)
    summary = history[found]
    return (summary, *_behind(history, summary.summary_upto_message_id))


def _behind(history: Sequence[Message], message_id: str) -> list[Message]:
    """The messages behind one of them, all when it is not there, without summaries."""
    start = next((at + 1 for at, message in enumerate(history) if message.id == message_id), 0)
    return [message for message in history[start:] if not is_summary(message)]


def conversation(run: Run, history: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """What the run's model sees of what was before the run, and of the run's own transcript."""
    before, made = seen(history), run.compaction
    if made.summary is None:
        return before, run.transcript
    if made.run_messages:
        return (made.summary,), run.transcript[made.run_messages :]
    return (made.summary, *_behind(before, made.summary.summary_upto_message_id)), run.transcript


# --- where to cut ---


@dataclass(frozen=True, slots=True)
class Room:
    """How much may stay, and how much may be summarised at once; 0 messages: any number, None tokens: any number."""

    tail_tokens: int
    tail_messages: int = 0
    prompt_tokens: int | None = None
    least_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Need:
    """A call that is too long: the window of its model (0: unknown), its tokens, and those of them that stay."""

    window: int
    tokens: int
    fixed: int = 0
    """Instructions, context, tools."""
    is_reactive: bool = False
    """Whether the model refused it for its length."""


Measure = Callable[[Message], int]
"""Estimates the tokens of a message."""


def room(policy: Compaction, need: Need, writer_window: int) -> Room:
    """How a call is to be made smaller, by a summary of a model of this window (0: unknown).

    A call that was refused is larger than the model's window, whatever is known of it: it must be halved at least.
    """
    size = min(need.window or need.tokens, need.tokens) if need.is_reactive else need.window or need.tokens
    known = writer_window or size
    prompt = min(known, size) if need.is_reactive else known
    summary = summary_tokens(policy, prompt)
    tail_tokens = policy.tail_tokens if policy.HasField("tail_tokens") else int(size * TAIL_SHARE)
    # Else the next call would be too long again.
    most = max(int(size * policy.threshold) - need.fixed - summary, 0) // 2
    return Room(
        tail_tokens=min(tail_tokens, most),
        tail_messages=policy.tail_messages,
        prompt_tokens=int(prompt * PROMPT_SHARE) - summary,
        least_tokens=0 if need.is_reactive else size // LEAST_SHARE,
    )


def summary_tokens(policy: Compaction, window: int) -> int:
    """The most tokens of a summary that a model of this window (0: unknown) writes."""
    return min(policy.summary_tokens, window // SUMMARY_SHARE) if window else policy.summary_tokens


def cut(messages: Sequence[Message], bounds: Room, measure: Measure, in_prompt: Measure) -> int:
    """How many of the oldest messages are to be summarised; 0 when that makes no sense.

    `measure` estimates a message in a call, `in_prompt` in the text that is summarised. The last message stays, with
    the call that it answers; a tail that begins with a result never comes out.
    """
    starts = [index for index in range(1, len(messages)) if messages[index].role != Role.ROLE_TOOL]
    if not starts:
        return 0
    start = _tail_start(messages, starts, bounds, measure)
    used, end = 0, 0
    legal = set(starts)
    for index in range(start):
        used += in_prompt(messages[index])
        if bounds.prompt_tokens is not None and used > bounds.prompt_tokens:
            break
        if index + 1 in legal:
            end = index + 1
    new = messages[1 if is_summary(messages[0]) else 0 : end]
    gain = sum(map(measure, new))
    return end if new and gain >= bounds.least_tokens else 0


def _tail_start(messages: Sequence[Message], starts: Sequence[int], bounds: Room, measure: Measure) -> int:
    """The first legal start of a tail that is within its bounds, else the last legal one."""
    tokens, best = 0, starts[-1]
    index = len(messages)
    for start in reversed(starts):
        tokens += sum(map(measure, messages[start:index]))
        index = start
        if tokens > bounds.tail_tokens or (bounds.tail_messages and len(messages) - start > bounds.tail_messages):
            break
        best = start
    return best
