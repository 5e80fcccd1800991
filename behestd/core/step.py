"""The fold of a step: what model, tool and approval events do to a run's state. Above: `run`, whose table calls it.

A step is one model turn and its tool calls. Results join the transcript when the last call has one, in the order in
which the model asked, so the transcript never holds a call without exactly one result after it.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.message_pb2 import Message, Part, Role, TextPart, ToolResult
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed, SideEffect
from behestd.core.doom_loop import fingerprint
from behestd.core.spend import settle
from behestd.core.state import Attempt, Call, Failure, Life, Ownership, Phase, Run, Step, replace
from behestd.core.structured import rejection, unusable
from behestd.core.times import nanoseconds
from behestd.core.window import is_cut
from behestd.errors import LogCorrupt

Payload = Any
"""One of the messages of the oneof `Event.payload`; the union of about forty generated classes has no better type."""


def progressed(run: Run) -> Run:
    """Note that the owner brought the run forward."""
    return run if run.life.ownership.has_progressed else replace(run, life=_progressed(run.life))


def _progressed(life: Life) -> Life:
    old = life.ownership
    if old.has_progressed:
        return life
    return replace(life, ownership=Ownership(old.claims, old.is_released, True, old.idle_claims))


def _context_built(run: Run, payload: Payload, now_ns: int) -> Run:
    """A step begins with its context: what was said since joins the transcript, the calls of the old step are done."""
    turns = run.turns
    if turns.malformed and not run.step.is_malformed:
        turns = replace(turns, malformed=0)
    recoveries = turns.length_recoveries + 1 if is_cut(run) else 0
    if recoveries != turns.length_recoveries:
        turns = replace(turns, length_recoveries=recoveries)
    return replace(
        run,
        transcript=run.transcript + run.step.inputs,
        turns=turns,
        steps=payload.step,
        step=Step(number=payload.step, context=payload if payload.outcomes or payload.calibration_permille else None),
    )


def _requested(run: Run, payload: Payload, now_ns: int) -> Run:
    reserve = payload.reserve.input_tokens + payload.reserve.output_tokens
    attempt = Attempt(payload.attempt, payload.endpoint, nanoseconds(payload.deadline), reserve, payload.reserve)
    step = replace(run.step, attempts=payload.attempt, open=attempt, inputs=())
    return replace(run, step=step, transcript=run.transcript + run.step.inputs)


def _model_completed(run: Run, payload: Payload, now_ns: int) -> Run:
    asked = [part.tool_call for part in payload.message.parts if part.HasField("tool_call")]
    calls: tuple[Call, ...] = ()
    turns = run.turns
    if asked:
        tools = {tool.name: tool for tool in run.definition.tools}
        calls = tuple(Call(call, tools.get(call.name)) for call in asked)
        seen = dict.fromkeys(
            fingerprint(call.name, call.arguments_json)
            for call in asked
            if not (call.name in tools and tools[call.name].policy.doom_loop_exempt)
        )
        turns = replace(turns, fingerprints=(*turns.fingerprints, *seen)[-256:])
    step = replace(run.step, open=None, answered=True, finish_reason=payload.finish_reason, calls=calls)
    life = _progressed(run.life)
    if life.backoff_since_ns:
        life = replace(life, backoff_since_ns=0)
    return replace(
        run,
        life=life,
        step=step,
        turns=turns,
        transcript=(*run.transcript, payload.message),
        spend=settle(run.spend, payload.usage),
    )


def _model_failed(run: Run, payload: Payload, now_ns: int) -> Run:
    due_ns = nanoseconds(payload.retry_time)
    failure = Failure(payload.endpoint, payload.failure_class, payload.reason, payload.message, due_ns)
    step = replace(run.step, open=None, failures=(*run.step.failures, failure))
    if payload.failure_class == FailureClass.FAILURE_CLASS_MALFORMED:
        run = replace(run, turns=replace(run.turns, malformed=run.turns.malformed + 1))
    return progressed(replace(run, step=step, spend=settle(run.spend, payload.usage)))


def _superseded(run: Run, payload: Payload, now_ns: int) -> Run:
    return replace(run, step=replace(run.step, open=None), spend=settle(run.spend, payload.usage))


def _answer_rejected(run: Run, payload: Payload, now_ns: int) -> Run:
    turns = replace(run.turns, malformed=run.turns.malformed + 1)
    told = unusable(payload.problem) if run.visit else rejection(payload.problem)
    inputs = (*run.step.inputs, told)
    return replace(run, turns=turns, step=replace(run.step, is_malformed=True, inputs=inputs))


def _with_call(run: Run, call: Call) -> Run:
    """Put a call back into its step; when it was the last one without a result, the results join the transcript."""
    calls = tuple(call if old.call.id == call.call.id else old for old in run.step.calls)
    was_done = all(old.phase is Phase.DONE for old in run.step.calls)
    run = replace(run, step=replace(run.step, calls=calls))
    if was_done or any(other.phase is not Phase.DONE for other in calls):
        return run
    return replace(run, transcript=(*run.transcript, results(run)))


def results(run: Run) -> Message:
    """The tool message that answers the calls of the open step, in the order in which the model asked."""
    parts = [Part(tool_result=call.result or not_executed(call)) for call in run.step.calls]
    return Message(id=message_id(run, len(run.transcript)), role=Role.ROLE_TOOL, parts=parts)


def message_id(run: Run, index: int) -> str:
    """The id of a message that the daemon makes: the same whoever folds the log.

    In a view of a visit it goes by the step, of which there is one answer and one message of results.
    """
    place = f"{run.visit}\0{run.step.number}\0{run.step.answered}" if run.visit else str(index)
    return "msg_" + sha256(f"{run.created.namespace}\0{run.id}\0{place}".encode()).hexdigest()[:32]


def not_executed(call: Call) -> ToolResult:
    """The synthetic result of a call that the run ended without."""
    text = "the outcome of this call is not known" if call.phase >= Phase.STARTED else "this call was not executed"
    return error_result(call, text)


def error_result(call: Call, text: str) -> ToolResult:
    """A result that tells the model of an error."""
    parts = [Part(text=TextPart(text=text))]
    return ToolResult(call_id=call.call.id, name=call.call.name, parts=parts, is_error=True)


def _known_call(run: Run, call_id: str) -> Call:
    call = run.call(call_id)
    if call is None:
        raise LogCorrupt(run.id, run.head.sequence + 1, f"there is no call {call_id} in the open step")
    return call


def _tool_started(run: Run, payload: Payload, now_ns: int) -> Run:
    call = _known_call(run, payload.call_id)
    spend = run.spend if call.attempt else replace(run.spend, tool_calls=run.spend.tool_calls + 1)
    call = replace(
        call,
        phase=Phase.STARTED,
        attempt=payload.attempt,
        epoch=run.head.epoch,
        started=payload,
        first_start_ns=call.first_start_ns or now_ns,
        may_have_run=call.may_have_run or call.phase is Phase.STARTED,
        due_ns=nanoseconds(payload.deadline),
    )
    return _with_call(replace(run, spend=spend), call)


def _tool_completed(run: Run, payload: Payload, now_ns: int) -> Run:
    call = replace(_known_call(run, payload.call_id), phase=Phase.DONE, result=payload.result)
    return progressed(_with_call(run, call))


def _tool_failed(run: Run, payload: Payload, now_ns: int) -> Run:
    call = _known_call(run, payload.call_id)
    malformed = payload.failure_class == FailureClass.FAILURE_CLASS_MALFORMED and payload.attempt == 0
    if malformed and not run.step.is_malformed:
        turns = replace(run.turns, malformed=run.turns.malformed + 1)
        run = replace(run, turns=turns, step=replace(run.step, is_malformed=True))
    if payload.is_final:
        result = error_result(call, payload.message)
        return progressed(_with_call(run, replace(call, phase=Phase.DONE, result=result)))
    if payload.executed != Executed.EXECUTED_NO:
        call = replace(call, may_have_run=True)
    elif payload.reason == "RUNTIME_PAUSED":
        call = replace(call, held=call.held + 1)
    asks = payload.executed != Executed.EXECUTED_NO and is_queryable(call)
    if asks:
        return _with_call(run, replace(call, phase=Phase.ASKING, due_ns=0))
    return progressed(_with_call(run, replace(call, phase=Phase.BACKOFF, due_ns=nanoseconds(payload.retry_time))))


def is_queryable(call: Call) -> bool:
    """Whether the call's server can be asked what became of it."""
    queryable = SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE
    return call.started is not None and call.started.side_effect == queryable


def _tool_denied(run: Run, payload: Payload, now_ns: int) -> Run:
    call = _known_call(run, payload.call_id)
    return _with_call(run, replace(call, phase=Phase.DONE, result=error_result(call, payload.message)))


def _tool_unknown(run: Run, payload: Payload, now_ns: int) -> Run:
    call = _known_call(run, payload.call_id)
    until_ns = nanoseconds(payload.until)
    if until_ns:
        return _with_call(run, replace(call, phase=Phase.UNKNOWN, due_ns=until_ns, in_doubt=True))
    run = _doubting(run, call)
    return _with_call(run, replace(call, phase=Phase.DONE, in_doubt=True, result=error_result(call, IN_DOUBT)))


IN_DOUBT = "the outcome of this call is not known: it may have taken effect. Do not repeat it without being asked."
"""What the model is told of a call that may have taken effect."""


def _doubting(run: Run, call: Call) -> Run:
    """Note that the same call with the same arguments needs an approval from here on."""
    doubtful = run.turns.doubtful | {fingerprint(call.call.name, call.call.arguments_json)}
    return replace(run, turns=replace(run.turns, doubtful=doubtful))


def _tool_resolved(run: Run, payload: Payload, now_ns: int) -> Run:
    call = _known_call(run, payload.call_id)
    if payload.HasField("result"):
        in_doubt = payload.executed == Executed.EXECUTED_UNKNOWN
        run = _doubting(run, call) if in_doubt else run
        call = replace(call, phase=Phase.DONE, in_doubt=in_doubt, result=payload.result)
    else:
        call = replace(call, phase=Phase.BACKOFF, in_doubt=False, due_ns=now_ns)
    return progressed(_with_call(run, call))


def _approval_requested(run: Run, payload: Payload, now_ns: int) -> Run:
    call = _known_call(run, payload.call_id)
    asked = replace(call, phase=Phase.ASKED, due_ns=nanoseconds(payload.until), asked=payload, asked_ns=now_ns)
    return _with_call(run, asked)


def _approval_decided(run: Run, payload: Payload, now_ns: int) -> Run:
    if payload.decision != ApprovalDecision.APPROVAL_DECISION_APPROVED:
        return progressed(run)
    call = _known_call(run, payload.call_id)
    asked = call.call
    if payload.arguments_json:
        asked = type(asked)(
            id=asked.id,
            name=asked.name,
            arguments_json=payload.arguments_json,
            provider_call_id=asked.provider_call_id,
        )
    allowed_by = f"approval:{payload.by}"
    return progressed(_with_call(run, replace(call, call=asked, phase=Phase.ALLOWED, allowed_by=allowed_by)))


FOLDS: dict[str, Callable[[Run, Payload, int], Run]] = {
    "context_built": _context_built,
    "model_requested": _requested,
    "model_completed": _model_completed,
    "model_failed": _model_failed,
    "model_superseded": _superseded,
    "answer_rejected": _answer_rejected,
    "tool_started": _tool_started,
    "tool_completed": _tool_completed,
    "tool_failed": _tool_failed,
    "tool_denied": _tool_denied,
    "tool_outcome_unknown": _tool_unknown,
    "tool_resolved": _tool_resolved,
    "approval_requested": _approval_requested,
    "approval_decided": _approval_decided,
}
