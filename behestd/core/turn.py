"""Decisions about the model's turn: asking, answers, failures, and what a whole turn leads to. Above: `decide`."""

from __future__ import annotations

from hashlib import sha256

from behest.v1 import model_event_pb2 as models
from behest.v1 import run_event_pb2 as events
from behest.v1.definition_pb2 import DoomLoopAction
from behest.v1.message_pb2 import Message, Part, Role, ToolCall
from behest.v1.model_event_pb2 import FailureClass, SupersedeReason
from behest.v1.model_pb2 import Price
from behest.v1.run_state_pb2 import RunOutput, WaitReason
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.core import compaction_turn, pausing, route, structured
from behestd.core.doom_loop import find_cycle
from behestd.core.draft import Draft, failure_status
from behestd.core.estimate import estimate
from behestd.core.limits import (
    BACKOFF_WAIT_SECONDS,
    MALFORMED_TURNS,
    WAIT_SECONDS,
    Excess,
    excess_of_attempt,
    excess_of_step,
    most_of,
)
from behestd.core.signals import Given, ModelBroke, ModelEnded
from behestd.core.sources import Gathered, is_asked, limits_of, planned
from behestd.core.spend import priced
from behestd.core.state import Failure, Phase, Run
from behestd.core.step import message_id
from behestd.core.times import SECOND, timestamp
from behestd.core.window import Window, built, compose, is_cut


def request(draft: Draft, gathered: Gathered | None = None) -> None:
    """Ask the model: begin a step when the last one is over, and make an attempt if one is due.

    `gathered` is what the context sources of a new step gave; without it a step that has such sources waits for them.
    """
    run = draft.run
    if run.step.open is not None or run.compaction.open is not None or pausing.holds_run(draft):
        return
    begins = run.step.number == 0 or run.step.answered
    if not begins and compaction_turn.react(draft, lambda model: compose(run, draft.given.history, model).whole_tokens):
        return
    chosen = _next(draft, () if begins else run.step.failures)
    if not isinstance(chosen, route.Try):
        _go_without(draft, chosen)
        return
    if pausing.holds_model(draft, chosen.endpoint):
        return
    context = (gathered or planned(run.definition, draft.given.calibration)) if begins else None
    window = compose(run, draft.given.history, chosen.endpoint, context)
    if compaction_turn.make_room(draft, window, chosen.endpoint, begins=begins):
        return
    reserve = priced(most_of(run, window.input_tokens), price_of(run, chosen.endpoint))
    if _is_refused(draft, window, reserve, chosen.endpoint, begins=begins):
        return
    if context is not None:
        if gathered is None and awaits(run):
            return
        draft.note(built(run, window, context))
        if gathered is not None and draft.given.is_draining:
            return
    run, attempt = draft.run, draft.run.step.attempts + 1
    draft.given.composed.keep(run.step.number, attempt, window)
    deadline_ns = min(draft.given.now_ns + draft.given.model_timeout_ns, run.life.deadline_ns)
    requested = models.ModelRequested()
    requested.step, requested.attempt = run.step.number, attempt
    requested.request_hash = sha256(window.chat.SerializeToString(deterministic=True)).digest()
    requested.endpoint = chosen.endpoint
    requested.input_upto_sequence = run.head.sequence
    requested.reserve.CopyFrom(reserve)
    requested.deadline.seconds, requested.deadline.nanos = divmod(deadline_ns, SECOND)
    draft.note(requested)


def _go_without(draft: Draft, chosen: route.WaitUntil | route.GiveUp) -> None:
    if isinstance(chosen, route.WaitUntil):
        _wait_for_model(draft, chosen)
    else:
        _give_up(draft, chosen.failure)


def _policy(run: Run, given: Given) -> route.RoutePolicy:
    base = given.retries
    return route.RoutePolicy(
        tuple(run.definition.models),
        base.attempts_per_endpoint,
        base.attempts_per_step,
        base.base_seconds,
        base.cap_seconds,
    )


def _next(draft: Draft, failures: tuple[Failure, ...]) -> route.Next:
    run, given = draft.run, draft.given
    if not (failures or given.health.open_until_ns or given.health.spent_until_ns):
        return route.Try(run.definition.models[0])
    quota = [failure for failure in failures if failure.failure_class == FailureClass.FAILURE_CLASS_QUOTA]
    if len(quota) == 1 and quota[0] is failures[-1] and quota[0].due_ns <= given.now_ns:
        return route.Try(quota[0].endpoint)
    return route.next_attempt(_policy(run, given), failures, given.health, given.now_ns, given.random)


def due_ns(draft: Draft) -> int:
    """When the next attempt of a conversation that rests for its model is to be made; 0: not by time alone."""
    run, step = draft.run, draft.run.step
    failures = () if step.number == 0 or step.answered else step.failures
    chosen = _next(draft, failures)
    if isinstance(chosen, route.WaitUntil):
        return chosen.due_ns
    pauses = draft.given.pauses
    is_paused = isinstance(chosen, route.Try) and pauses and pauses.of_run_model(run, chosen.endpoint)
    return failures[-1].due_ns if failures and not is_paused else 0


def _wait_for_model(draft: Draft, wait: route.WaitUntil) -> None:
    """Wait, but for models that are left alone no longer than a run may wait for anything."""
    run, since_ns = draft.run, draft.run.life.backoff_since_ns
    if not (wait.is_barred and since_ns and draft.given.now_ns - since_ns >= int(WAIT_SECONDS * SECOND)):
        _back_off(draft, wait.due_ns)
        return
    text = f"no model could be asked for {WAIT_SECONDS:g} s"
    draft.note(events.RunFailed(error=failure_status("PROVIDER_UNAVAILABLE", text, model=run.definition.models[0])))


def _back_off(draft: Draft, due_ns: int) -> None:
    """Let time pass: short waits are a timer of a running run, long ones and open breakers park it."""
    soon = due_ns - draft.given.now_ns <= BACKOFF_WAIT_SECONDS * SECOND
    failures = draft.run.step.failures
    if soon and failures and failures[-1].due_ns == due_ns:
        return
    draft.note(events.RunWaiting(reason=WaitReason.WAIT_REASON_BACKOFF, until=timestamp(due_ns)))


def _give_up(draft: Draft, failure: Failure) -> None:
    run, now_ns = draft.run, draft.given.now_ns
    quota = [old for old in run.step.failures if old.failure_class == FailureClass.FAILURE_CLASS_QUOTA]
    if failure.failure_class == FailureClass.FAILURE_CLASS_QUOTA and len(quota) == 1 and failure.due_ns > now_ns:
        draft.note(events.RunWaiting(reason=WaitReason.WAIT_REASON_QUOTA, until=timestamp(failure.due_ns)))
        return
    draft.note(events.RunFailed(error=failure_status(failure.reason, failure.message, model=failure.endpoint)))


def _exceed(draft: Draft, excess: Excess, endpoint: str) -> None:
    facts: dict[str, object] = {"budget": excess.name, "limit": excess.limit, "used": excess.reached}
    if excess.whose != "run":
        facts["reserved"] = excess.reserved
    message = excess.told
    if excess.reason == "PROVIDER_PRICE_UNKNOWN":
        message, facts["model"] = f"{excess.name} is set and the price of {endpoint} is not known", endpoint
    draft.note(events.RunFailed(error=failure_status(excess.reason, message, **facts)))


def _is_refused(draft: Draft, window: Window, reserve: Usage, endpoint: str, *, begins: bool) -> bool:
    """End the run when a call would pass one of its limits, or its model's window. Whether it would."""
    check = excess_of_step if begins else excess_of_attempt
    excess = check(draft.run, reserve) or draft.given.refusal
    if excess is not None:
        _exceed(draft, excess, endpoint)
    elif window.is_too_long:
        _too_long(draft, window.input_tokens, endpoint)
    return excess is not None or window.is_too_long


def _too_long(draft: Draft, tokens: int, endpoint: str) -> None:
    limit = limits_of(draft.run.definition, endpoint).context_window_tokens
    text = f"prompt of about {tokens} tokens exceeds the window of {limit} tokens of {endpoint}"
    error = failure_status("PROVIDER_CONTEXT_TOO_LONG", text, model=endpoint, tokens=tokens, limitTokens=limit)
    draft.note(events.RunFailed(error=error))


def awaits(run: Run) -> bool:
    """Whether the next step, which is due, needs what context sources are asked for. Those of nodes need none."""
    if not run.definition.sources or run.visit or not any(map(is_asked, run.definition.sources)):
        return False
    step = run.step
    if step.open is not None or run.compaction.open is not None:
        return False
    if step.number == 0:
        return True
    return step.answered and all(call.phase is Phase.DONE for call in step.calls) and not is_over(run)


def broke(draft: Draft, signal: ModelBroke) -> None:
    """Record that the open attempt failed, with the time at which the next one is due."""
    run, given = draft.run, draft.given
    attempt = run.step.open
    if attempt is None or (run.step.number, attempt.number) != (signal.step, signal.attempt):
        return
    tries = 1 + sum(1 for failure in run.step.failures if failure.endpoint == attempt.endpoint)
    policy = _policy(run, given)
    due_ns = route.retry_due_ns(
        policy, signal.failure_class, tries, signal.retry_after_ns, (given.now_ns, given.random)
    )
    if tries >= policy.attempts_per_endpoint or len(run.step.failures) + 1 >= policy.attempts_per_step:
        due_ns = 0
    if signal.failure_class == FailureClass.FAILURE_CLASS_QUOTA:
        due_ns = given.now_ns + (signal.retry_after_ns or int(WAIT_SECONDS * SECOND))
    usage, source = signal.usage, UsageSource.USAGE_SOURCE_REPORTED
    if usage is None:
        sent = signal.failure_class != FailureClass.FAILURE_CLASS_NOT_SENT
        usage = Usage(input_tokens=attempt.reserve.input_tokens if sent else 0)
        source = UsageSource.USAGE_SOURCE_ESTIMATED
    draft.note(
        models.ModelFailed(
            step=signal.step,
            attempt=signal.attempt,
            failure_class=signal.failure_class,  # type: ignore[arg-type]
            reason=signal.reason,
            message=signal.message,
            retry_time=timestamp(due_ns) if due_ns else None,
            usage=priced(usage, price_of(run, attempt.endpoint)),
            usage_source=source,
            endpoint=attempt.endpoint,
        )
    )
    if draft.run.turns.malformed > MALFORMED_TURNS:
        _malformed(draft)


def _malformed(draft: Draft) -> None:
    text = f"the model's output made no sense {draft.run.turns.malformed} times in a row"
    draft.note(events.RunFailed(error=failure_status("PROVIDER_MALFORMED_OUTPUT", text)))


def ended(draft: Draft, signal: ModelEnded) -> None:
    """Record the answer: calls get ids of ours, usage its price, empty arguments become an empty object."""
    run = draft.run
    attempt = run.step.open
    if attempt is None or (run.step.number, attempt.number) != (signal.step, signal.attempt):
        return
    end = signal.end
    usage = end.usage
    source = end.usage_source
    if not usage.input_tokens and not usage.output_tokens:
        usage = Usage(input_tokens=attempt.reserve.input_tokens, output_tokens=estimate(end.message))
        source = UsageSource.USAGE_SOURCE_ESTIMATED
    usage = priced(usage, price_of(run, attempt.endpoint))
    message = Message()
    message.id, message.role = message_id(run, len(run.transcript)), Role.ROLE_ASSISTANT
    message.parts.extend(_renamed(run, attempt.number, index, part) for index, part in enumerate(end.message.parts))
    message.usage.CopyFrom(usage)
    completed = models.ModelCompleted()
    completed.step, completed.attempt = signal.step, signal.attempt
    completed.message.CopyFrom(message)
    completed.finish_reason = end.finish_reason
    completed.usage.CopyFrom(usage)
    completed.usage_source = source
    completed.endpoint = attempt.endpoint
    completed.provider_request_id = end.provider_request_id
    draft.note(completed)
    _detect_doom_loop(draft)


def _renamed(run: Run, attempt: int, index: int, part: Part) -> Part:
    if part.WhichOneof("kind") != "tool_call":
        return part
    asked = part.tool_call
    seed = f"{run.created.namespace}\0{run.id}\0{run.step.number}\0{attempt}\0{index}"
    call = ToolCall(
        id="call_" + sha256(seed.encode()).hexdigest()[:32],
        name=asked.name,
        arguments_json=asked.arguments_json.strip() or "{}",
        provider_call_id=asked.provider_call_id or asked.id,
    )
    return Part(tool_call=call)


def _detect_doom_loop(draft: Draft) -> None:
    run = draft.run
    if not run.step.calls:
        return
    policy = run.definition.limits.doom_loop
    if policy.action == DoomLoopAction.DOOM_LOOP_ACTION_OFF:
        return
    length = find_cycle(run.turns.fingerprints, policy.repeats)
    if not length:
        return
    warns = policy.action == DoomLoopAction.DOOM_LOOP_ACTION_WARN or run.turns.doom_loops < policy.warnings
    cycle = _names_counted(run)[-length:]
    draft.note(events.DoomLoopDetected(cycle=cycle, repeats=policy.repeats, stopped=not warns, visit=run.visit))
    if not warns:
        text = f"the model made the same calls ({', '.join(cycle)}) {policy.repeats} times"
        error = failure_status("RUN_DOOM_LOOP", text, cycle=",".join(cycle), repeats=policy.repeats)
        draft.note(events.RunFailed(error=error))


def _names_counted(run: Run) -> list[str]:
    """The names of the calls so far that count for doom loops, as the fold counts them."""
    exempt = {tool.name for tool in run.definition.tools if tool.policy.doom_loop_exempt}
    names: list[str] = []
    for message in run.transcript:
        asked = [part.tool_call for part in message.parts if part.WhichOneof("kind") == "tool_call"]
        counted = {(call.name, call.arguments_json): call.name for call in asked if call.name not in exempt}
        names.extend(counted.values())
    return names


def price_of(run: Run, endpoint: str) -> Price | None:
    """The price of a model as it was when the run was created."""
    for model, price in zip(run.definition.models, run.definition.prices, strict=False):
        if model == endpoint:
            return price
    return next((model.price for model in run.definition.node_models if model.endpoint == endpoint), None)


def supersede(draft: Draft, *, is_crash: bool) -> None:
    """Void what is open of model attempts: they are lost, or no longer wanted."""
    run = draft.run
    reason = SupersedeReason.SUPERSEDE_REASON_RELEASE
    if is_crash:
        reason = SupersedeReason.SUPERSEDE_REASON_CRASH
    elif run.life.cancel is not None:
        reason = SupersedeReason.SUPERSEDE_REASON_CANCEL
    compaction_turn.supersede(draft, reason)
    for step, attempt in run.attempts:
        usage = priced(Usage(input_tokens=attempt.reserve.input_tokens), price_of(run, attempt.endpoint))
        draft.note(models.ModelSuperseded(step=step, attempt=attempt.number, reason=reason, usage=usage))


def conclude(draft: Draft) -> None:
    """After an answer whose calls are all done: the next step, a continuation, or the end."""
    run = draft.run
    step = run.step
    if run.turns.malformed > MALFORMED_TURNS and step.is_malformed:
        _malformed(draft)
        return
    if not is_over(run):
        request(draft)
        return
    answer = output(run)
    found = structured.problem(run.definition.response_format, answer.text, answer.finish_reason, draft.given.validate)
    if found:
        draft.note(models.AnswerRejected(step=step.number, problem=found))
    else:
        draft.note(events.RunCompleted(output=answer))


def is_over(run: Run) -> bool:
    """Whether the last answer is the run's end: nothing was asked for in it or said since, and it is whole."""
    return run.step.answered and not (run.step.calls or run.step.inputs or _may_continue(run))


def _may_continue(run: Run) -> bool:
    return is_cut(run) and run.turns.length_recoveries < run.definition.limits.max_length_recoveries


def output(run: Run) -> RunOutput:
    """What came of the run: the last answer, with the pieces that length cut before it."""
    pieces = run.transcript[-1 - run.turns.length_recoveries :]
    text = "".join(part.text.text for message in pieces for part in message.parts if part.HasField("text"))
    answer = RunOutput()
    answer.text = text
    answer.json = structured.result(run.definition.response_format, text, run.step.finish_reason)
    answer.message.CopyFrom(run.transcript[-1])
    answer.finish_reason = run.step.finish_reason  # type: ignore[assignment]  # an enum's number
    return answer
