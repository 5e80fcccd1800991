"""Context sources as a run is pinned to them: their order, what their limits leave of what they give. Pure.

Above: `window`, which puts what they gave into calls, `turn`, which records it, `definition`, which pins them, and the
runtime, which asks those that must be asked. What was given is recorded cut, so that a call is composed alike for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from behest.v1.context_event_pb2 import ContextBuilt
from behest.v1.context_pb2 import (
    ContextFailurePolicy,
    ContextOutcome,
    ContextSource,
    ContextSourceKind,
)
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.model_pb2 import ModelLimits
from behestd.core.estimate import EXACT, corrected, estimate, estimate_text
from behestd.core.state import Run
from behestd.core.times import SECOND, duration

HISTORY = "history"
RESERVED = frozenset({HISTORY, "instructions", "run", "tools"})
"""Names of parts of a call, which no source of an operator may have."""
MAX_SOURCES = 32
MOST_BYTES = 2 * 1024 * 1024
"""Most that the sources of one step give together: it is one event, which must fit a frame to every watcher."""

HISTORY_SOURCE = ContextSource(name=HISTORY, kind=ContextSourceKind.CONTEXT_SOURCE_KIND_HISTORY)
_ASKED = (ContextSourceKind.CONTEXT_SOURCE_KIND_FUNCTION, ContextSourceKind.CONTEXT_SOURCE_KIND_REMOTE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a source that was asked said, or why it said nothing that can be used (`reason`)."""

    messages: tuple[Message, ...] = ()
    reason: str = ""
    message: str = ""
    elapsed_ns: int = 0


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a step's calls are composed of beside the log of the run before it."""

    provided: dict[str, tuple[Message, ...]] = field(default_factory=dict)
    """By the name of the source, cut to its limits."""
    ratios: tuple[int, ...] = ()
    """By how much estimates are corrected, for each of the definition's models. Empty: not at all."""
    outcomes: tuple[ContextOutcome, ...] = ()

    @property
    def messages(self) -> list[Message]:
        """Everything that was provided, in the order of the outcomes."""
        return [message for outcome in self.outcomes for message in self.provided.get(outcome.source, ())]

    def ratio(self, definition: RunDefinition, endpoint: str) -> int:
        """The ratio of a model, in thousandths."""
        if not self.ratios:
            return EXACT
        for model, ratio in zip(definition.models, self.ratios, strict=False):
            if model == endpoint:
                return ratio
        return EXACT


NOTHING = Gathered()


# --- pinning ---


def ordered(sources: Sequence[ContextSource]) -> list[ContextSource]:
    """Put the sources that an agent names into the order in which what they give stands before the model.

    A list that names `history` is that order. In one that does not, static sources come first, then history, then what
    is asked: a provider's cache holds as long as a call begins alike.
    """
    if any(source.name == HISTORY for source in sources):
        return list(sources)
    return [
        *(source for source in sources if not is_asked(source)),
        HISTORY_SOURCE,
        *(source for source in sources if is_asked(source)),
    ]


def pinned(source: ContextSource, limits: ModelLimits) -> ContextSource:
    """A source as a definition holds it: the text of a static one is cut, so that it never changes in a run."""
    made = ContextSource()
    made.CopyFrom(source)
    limit = limit_tokens(source, limits)
    if source.text and limit:
        made.text = cut_text(source.text, limit)
        made.cut_tokens = max(estimate_text(source.text) - estimate_text(made.text), 0)
    return made


def is_asked(source: ContextSource) -> bool:
    """Whether somebody must be asked for what it gives."""
    return source.kind in _ASKED


def asked(definition: RunDefinition) -> list[ContextSource]:
    """The sources that are asked before each step, in their order."""
    return [source for source in definition.sources if is_asked(source)]


def limit_tokens(source: ContextSource, limits: ModelLimits) -> int:
    """Most tokens that a source gives; 0: no limit, or none that is known."""
    share = limits.context_window_tokens * source.max_share_percent // 100
    return min((limit for limit in (source.max_tokens, share) if limit), default=0)


def limits_of(definition: RunDefinition, endpoint: str) -> ModelLimits:
    """What fits into a model of a run, as it is pinned; empty where that is unknown."""
    for model, limits in zip(definition.models, definition.model_limits, strict=False):
        if model == endpoint:
            return limits
    return _UNKNOWN


_UNKNOWN = ModelLimits()


# --- what was given ---


def take(definition: RunDefinition, answers: Mapping[str, Answer], calibration: Mapping[str, int]) -> Gathered:
    """Make of what sources said what their limits leave of it, with the outcome of each."""
    ratios = planned(definition, calibration).ratios
    provided: dict[str, tuple[Message, ...]] = {}
    outcomes: list[ContextOutcome] = []
    limits = definition.model_limits[0] if definition.model_limits else _UNKNOWN
    ratio = ratios[0] if ratios else EXACT
    left = MOST_BYTES
    for source in asked(definition):
        answer = answers.get(source.name, Answer(reason="CONTEXT_SOURCE_FAILED", message="it was not asked"))
        whole = tokens_of(answer.messages, ratio)
        limit = limit_tokens(source, limits)
        kept = cut(answer.messages, limit * EXACT // ratio) if limit and whole > limit else answer.messages
        size = sum(message.ByteSize() for message in kept)
        outcome = ContextOutcome(source=source.name, elapsed=duration(answer.elapsed_ns / SECOND))
        if size > left:
            text = f"what the sources of a step give exceeds {MOST_BYTES} bytes with it"
            answer = Answer(reason="CONTEXT_SOURCE_FAILED", message=text)
        if answer.reason:
            outcome.skipped_reason, outcome.skipped_message = answer.reason, answer.message
        else:
            left -= size
            provided[source.name] = kept
            outcome.messages, outcome.tokens = len(kept), tokens_of(kept, ratio)
            outcome.cut_tokens = max(whole - outcome.tokens, 0)
        outcomes.append(outcome)
    return Gathered(provided, ratios, tuple(outcomes))


def failed(definition: RunDefinition, given: Gathered) -> ContextOutcome | None:
    """The first source that failed and whose policy is to fail the run."""
    strict = {
        source.name
        for source in definition.sources
        if source.on_failure == ContextFailurePolicy.CONTEXT_FAILURE_POLICY_FAIL
    }
    return next((each for each in given.outcomes if each.skipped_reason and each.source in strict), None)


def planned(definition: RunDefinition, calibration: Mapping[str, int]) -> Gathered:
    """What a step is composed of that asks nobody. `calibration` has ratios by model, where they are known."""
    if not calibration or not any(model in calibration for model in definition.models):
        return NOTHING
    return Gathered(ratios=tuple(calibration.get(model, EXACT) for model in definition.models))


def recorded(run: Run) -> Gathered:
    """What was recorded for the open step."""
    built = run.step.context
    return NOTHING if built is None else read(built)


def read(built: ContextBuilt) -> Gathered:
    """Read what an event records."""
    provided: dict[str, tuple[Message, ...]] = {}
    start = 0
    for outcome in built.outcomes:
        end = start + outcome.messages
        provided[outcome.source] = tuple(built.provided[start:end])
        start = end
    return Gathered(provided, tuple(built.calibration_permille), tuple(built.outcomes))


def tokens_of(messages: Iterable[Message], ratio: int = EXACT) -> int:
    """Tokens of messages, estimated and corrected."""
    return corrected(sum(map(estimate, messages)), ratio)


def cut(messages: Sequence[Message], limit: int) -> tuple[Message, ...]:
    """The first messages, so many tokens at most; a text of the first that does not fit is cut at its end."""
    kept: list[Message] = []
    left = limit
    for message in messages:
        tokens = estimate(message)
        if tokens > left:
            short = _shortened(message, left)
            return (*kept, short) if short is not None else tuple(kept)
        kept.append(message)
        left -= tokens
    return tuple(kept)


def _shortened(message: Message, limit: int) -> Message | None:
    """A message whose first text is cut so that it fits, without what stands behind it; None when nothing is left."""
    first = message.parts[0] if message.parts else Part()
    left = limit - estimate(Message(role=message.role))
    text = cut_text(first.text.text, left) if first.WhichOneof("kind") == "text" and left > 0 else ""
    return Message(role=message.role, parts=[Part(text=TextPart(text=text))]) if text else None


def cut_text(text: str, limit: int) -> str:
    """The longest beginning of a text, nearly, that is estimated at so many tokens at most."""
    tokens = estimate_text(text)
    size = len(text)
    while tokens > limit and size:
        # What is left is of the same kind, mostly, so this takes few rounds.
        size = min(size * limit // tokens, size - 1)
        text = text[:size]
        tokens = estimate_text(text)
    return text


def static_message(source: ContextSource) -> Message:
    """The message that a static source gives."""
    return Message(role=Role.ROLE_SYSTEM, parts=[Part(text=TextPart(text=source.text))])
