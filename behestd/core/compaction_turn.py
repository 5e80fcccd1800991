"""Decisions about summaries: when to ask for one, and what its answer or its failure leads to.

Above: `turn`, which asks for room before each model call, and `decide`. A summary is asked for at most once a step
beforehand, and once more when the model refuses the call for its length; each time every model that may write it is
tried once. A run never ends for want of a summary: without one it goes on with what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from behest.v1.chat_service_pb2 import Chat
from behest.v1.context_event_pb2 import CompactionCircuitOpened, ContextCompacted
from behest.v1.context_event_pb2 import ContextCompactionFailed as CompactionFailed
from behest.v1.context_event_pb2 import ContextCompactionRequested as CompactionRequested
from behest.v1.message_pb2 import Message
from behest.v1.model_event_pb2 import FailureClass, SupersedeReason
from behest.v1.model_pb2 import Price
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.core import pausing
from behestd.core.compaction import Need, conversation, cut, room
from behestd.core.compaction_call import chat, in_prompt, summary_of, text_of
from behestd.core.draft import Draft
from behestd.core.estimate import estimate, estimate_chat
from behestd.core.limits import excess_of_attempt, excess_of_step
from behestd.core.pauses import Pause
from behestd.core.signals import Given, SummaryBroke, SummaryEnded
from behestd.core.sources import limits_of
from behestd.core.spend import priced
from behestd.core.state import Run, Summarising
from behestd.core.step import message_id
from behestd.core.times import duration_ns, timestamp
from behestd.core.window import Window

TOO_LONG = frozenset({"PROVIDER_CONTEXT_TOO_LONG", "CONTEXT_WINDOW_EXCEEDED"})
"""Reasons of failures that a shorter conversation may help against."""


def make_room(draft: Draft, window: Window, endpoint: str, *, begins: bool) -> bool:
    """Ask for a summary when a call is too long for its model. Whether one is asked for."""
    run, tokens = draft.run, window.whole_tokens
    if not window.model_tokens or not run.definition.HasField("compaction"):
        return False
    step = run.step.number + begins
    threshold = run.definition.compaction.policy.threshold
    if tokens <= window.model_tokens * threshold or run.compaction.step == step:
        return False
    return _ask(draft, (step, endpoint, tokens), is_reactive=False)


def react(draft: Draft, measure: Callable[[str], int]) -> bool:
    """Ask for a summary when the model refused the open step's call for its length. Whether one is asked for.

    `measure` estimates the call to a model.
    """
    run = draft.run
    failures = run.step.failures
    if not failures or failures[-1].reason not in TOO_LONG or run.compaction.reacted == run.step.number:
        return False
    if not run.definition.HasField("compaction"):
        return False
    endpoint = failures[-1].endpoint
    return _ask(draft, (run.step.number, endpoint, measure(endpoint)), is_reactive=True)


def window_of(run: Run, endpoint: str) -> int:
    """Tokens that fit into a model, 0 when that is not known or nothing is ever summarised."""
    definition = run.definition
    return limits_of(definition, endpoint).context_window_tokens if definition.HasField("compaction") else 0


def _ask(draft: Draft, wish: tuple[int, str, int], *, is_reactive: bool) -> bool:
    """Note the intent of a call for a summary, if there is who can write it, of what, and money for it."""
    run, given = draft.run, draft.given
    step, endpoint, tokens = wish
    writer = _writer(run, given, endpoint)
    if not writer and (pause := _pause(run, given, endpoint)):
        pausing.wait_for(draft, pause)
        return True
    if not writer or given.is_draining or given.circuit.open_until_ns > given.now_ns:
        return False
    policy, window = run.definition.compaction.policy, _writer_window(run, writer)
    before, own = conversation(run, given.history)
    messages = (*before, *own)
    fixed = max(tokens - sum(map(estimate, messages)), 0)
    bounds = room(policy, Need(window_of(run, endpoint), tokens, fixed, is_reactive), window)
    count = cut(messages, bounds, estimate, in_prompt(window))
    if not count:
        return False
    asked = chat(messages[:count], policy, writer, window, run.id)
    most = Usage(input_tokens=estimate_chat(asked), output_tokens=asked.sampling.max_output_tokens)
    reserve = priced(most, _price(run, writer))
    check = excess_of_step if step > run.step.number else excess_of_attempt
    if given.refusal is not None or check(run, reserve) is not None:
        return False
    upto, run_messages = _upto(run, before, count)
    draft.note(
        CompactionRequested(
            step=step,
            attempt=run.compaction.attempts + 1,
            request_hash=sha256(asked.SerializeToString(deterministic=True)).digest(),
            endpoint=writer,
            reserve=reserve,
            deadline=timestamp(min(given.now_ns + duration_ns(policy.timeout), run.life.deadline_ns)),
            upto_message_id=upto,
            run_messages=run_messages,
            tokens_before=tokens,
            is_reactive=is_reactive,
        )
    )
    return True


def _writer(run: Run, given: Given, endpoint: str) -> str:
    """The next model to write the summary: the one configured, else that of the run; empty when none is left."""
    left = [model for model in _writers(run, endpoint) if given.health.open_until_ns.get(model, 0) <= given.now_ns]
    return next((model for model in left if not given.pauses.of_run_model(run, model)), "")


def _writers(run: Run, endpoint: str) -> list[str]:
    """The models that may write the summary and have not failed at it."""
    candidates = dict.fromkeys(filter(None, (run.definition.compaction.policy.model, endpoint)))
    return [model for model in candidates if model not in run.compaction.failed]


def _pause(run: Run, given: Given, endpoint: str) -> Pause | None:
    """The pause of a model that may write the summary, if there is one."""
    found = (given.pauses.of_run_model(run, model) for model in _writers(run, endpoint))
    return next(filter(None, found), None)


def _writer_window(run: Run, writer: str) -> int:
    return window_of(run, writer) if writer in run.definition.models else run.definition.compaction.window


def _price(run: Run, writer: str) -> Price | None:
    for model, price in zip(run.definition.models, run.definition.prices, strict=False):
        if model == writer:
            return price
    return run.definition.compaction.price


def _upto(run: Run, before: Sequence[Message], count: int) -> tuple[str, int]:
    """The last of the first `count` messages, and how many of the run's own a summary of them stands for."""
    own = count - len(before)
    if own <= 0:
        return before[count - 1].id, 0
    index = run.compaction.run_messages + own
    return run.transcript[index - 1].id or message_id(run, index - 1), index


def asked_for(run: Run, history: Sequence[Message]) -> Chat:
    """Compose the open call for a summary. Pure: the same run and history give the same bytes."""
    wish = run.compaction.open
    assert wish is not None
    policy, window = run.definition.compaction.policy, _writer_window(run, wish.endpoint)
    return chat(_summarised(run, history, wish), policy, wish.endpoint, window, run.id)


def _summarised(run: Run, history: Sequence[Message], wish: Summarising) -> tuple[Message, ...]:
    """The messages that the open attempt is of."""
    before, own = conversation(run, history)
    if wish.run_messages:
        return (*before, *own[: wish.run_messages - run.compaction.run_messages])
    return before[: next((at + 1 for at, said in enumerate(before) if said.id == wish.upto_message_id), 0)]


# --- outcomes ---


def ended(draft: Draft, signal: SummaryEnded) -> None:
    """Put the summary in the place of what it stands for, unless it is none, or no shorter."""
    run, wish, end = draft.run, draft.run.compaction.open, signal.end
    if wish is None or wish.number != signal.attempt:
        return
    text = text_of(end)
    replaced = sum(map(estimate, _summarised(run, draft.given.history, wish)))
    made = estimate(summary_of(text, wish.upto_message_id, ""))
    if not text or made >= replaced:
        problem = "the summary is no shorter than what it stands for" if text else "the answer holds no summary"
        malformed = FailureClass.FAILURE_CLASS_MALFORMED
        broke(draft, SummaryBroke(wish.number, malformed, "PROVIDER_MALFORMED_OUTPUT", problem, end.usage))
        return
    usage, source = end.usage, end.usage_source
    if not usage.input_tokens and not usage.output_tokens:
        usage = Usage(input_tokens=wish.reserve.input_tokens, output_tokens=made)
        source = UsageSource.USAGE_SOURCE_ESTIMATED
    usage = priced(usage, _price(run, wish.endpoint))
    seed = f"{run.created.namespace}\0{run.id}\0summary\0{wish.number}"
    summary = summary_of(text, wish.upto_message_id, seed, usage)
    draft.note(
        ContextCompacted(
            summary=summary,
            tokens_before=wish.tokens_before,
            tokens_after=max(wish.tokens_before - replaced, 0) + made,
            usage=usage,
            upto_message_id=wish.upto_message_id,
            attempt=wish.number,
            endpoint=wish.endpoint,
            usage_source=source,
            step=wish.step,
            run_messages=wish.run_messages,
        )
    )


def broke(draft: Draft, signal: SummaryBroke) -> None:
    """Record that the open attempt failed; three in a row open the circuit."""
    run, given, wish = draft.run, draft.given, draft.run.compaction.open
    if wish is None or wish.number != signal.attempt:
        return
    usage, source = signal.usage, UsageSource.USAGE_SOURCE_REPORTED
    if usage is None:
        sent = signal.failure_class != FailureClass.FAILURE_CLASS_NOT_SENT
        usage = Usage(input_tokens=wish.reserve.input_tokens if sent else 0)
        source = UsageSource.USAGE_SOURCE_ESTIMATED
    policy = run.definition.compaction.policy
    models = run.definition.models
    is_final = wish.endpoint in models or all(given.health.open_until_ns.get(each, 0) > given.now_ns for each in models)
    draft.note(
        CompactionFailed(
            step=wish.step,
            attempt=wish.number,
            failure_class=signal.failure_class,  # type: ignore[arg-type]
            reason=signal.reason,
            message=signal.message,
            usage=priced(usage, _price(run, wish.endpoint)),
            usage_source=source,
            endpoint=wish.endpoint,
            is_final=is_final,
        )
    )
    failures = given.circuit.failures + 1
    if is_final and failures >= policy.failures:
        until_ns = given.now_ns + duration_ns(policy.cool_down)
        draft.note(CompactionCircuitOpened(failures=failures, until=timestamp(until_ns)))


def supersede(draft: Draft, reason: SupersedeReason.ValueType) -> None:
    """Void the open attempt, if there is one: it is lost, or no longer wanted. What it may have used is booked."""
    wish = draft.run.compaction.open
    if wish is None:
        return
    draft.note(
        CompactionFailed(
            step=wish.step,
            attempt=wish.number,
            usage=priced(Usage(input_tokens=wish.reserve.input_tokens), _price(draft.run, wish.endpoint)),
            usage_source=UsageSource.USAGE_SOURCE_ESTIMATED,
            endpoint=wish.endpoint,
            superseded=reason,
        )
    )
