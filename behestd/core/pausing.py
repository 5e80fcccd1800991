"""Decisions about pauses: waiting for what is paused, and going on when it is lifted.

Above: `decide`, and `turn`, `calls` and `recovery`, which ask before anything is sent. Below: `pauses`. A run whose
next effect is held back, and that does nothing else, waits for at most a day; what it tried to do while it still
waits for the same leaves no trace in its log.
"""

from __future__ import annotations

from collections.abc import Sequence

from behest.v1 import model_event_pb2 as models
from behest.v1.context_event_pb2 import ContextCompactionFailed
from behest.v1.model_event_pb2 import FailureClass, SupersedeReason
from behest.v1.run_event_pb2 import RunResumed, RunWaiting
from behest.v1.run_state_pb2 import RunState, WaitReason
from behest.v1.tool_event_pb2 import ToolFailed
from behest.v1.tool_pb2 import Executed
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.core.draft import Draft
from behestd.core.limits import WAIT_SECONDS
from behestd.core.pauses import Pause
from behestd.core.run import Payload
from behestd.core.signals import CallModel, CallTool, Held, Summarise
from behestd.core.state import Call, Phase, Run
from behestd.core.times import SECOND, timestamp

_PAUSED = WaitReason.WAIT_REASON_PAUSED
_REASON = SupersedeReason.SUPERSEDE_REASON_PAUSED


def wait_for(draft: Draft, pause: Pause) -> None:
    """Wait until a pause is lifted."""
    until = timestamp(draft.given.now_ns + int(WAIT_SECONDS * SECOND))
    draft.note(RunWaiting(reason=_PAUSED, until=until, subject=pause.subject, message=pause.reason))


def holds_run(draft: Draft) -> bool:
    """Wait if all that the run would do is paused. Whether it is."""
    pauses = draft.given.pauses
    pause = pauses.of_run(draft.run) if pauses else None
    if pause is not None:
        wait_for(draft, pause)
    return pause is not None


def holds_model(draft: Draft, endpoint: str) -> bool:
    """Wait if the model that is to be called is paused. Whether it is."""
    pauses = draft.given.pauses
    pause = pauses.of_run_model(draft.run, endpoint) if pauses else None
    if pause is not None:
        wait_for(draft, pause)
    return pause is not None


def hold_of(draft: Draft, call: Call) -> Pause | None:
    """The pause that alone keeps a call from being sent."""
    return draft.given.pauses.holds(draft.run, call)


def can_go(draft: Draft) -> bool:
    """Whether some call of a run that waits could be sent."""
    now_ns = draft.given.now_ns
    ready = (call for call in draft.run.step.calls if call.phase in (Phase.NEW, Phase.ALLOWED, Phase.BACKOFF))
    return any(
        hold_of(draft, call) is None and not (call.phase is Phase.BACKOFF and call.due_ns > now_ns) for call in ready
    )


def is_unmoved(payloads: Sequence[Payload], before: Run) -> bool:
    """Whether what a waiting run decided comes to waiting for the same pause."""
    wait = before.life.wait
    if wait is None or wait.reason != _PAUSED or len(payloads) != 2:
        return False
    resumed, waiting = payloads
    is_same = isinstance(waiting, RunWaiting) and (waiting.reason, waiting.subject) == (_PAUSED, wait.subject)
    return isinstance(resumed, RunResumed) and is_same


def held(draft: Draft, signal: Held) -> None:
    """Take back an intent of which nothing left; what follows is held back by the pause, or tried again."""
    match signal.effect:
        case CallModel(step, attempt):
            if any((number, open_.number) == (step, attempt) for number, open_ in draft.run.attempts):
                draft.note(models.ModelSuperseded(step=step, attempt=attempt, reason=_REASON, usage=Usage()))
        case Summarise(attempt):
            _summary_held(draft, attempt)
        case CallTool(call_id, attempt):
            _call_held(draft, call_id, attempt)


def _summary_held(draft: Draft, attempt: int) -> None:
    wish = draft.run.compaction.open
    if wish is None or wish.number != attempt:
        return
    draft.note(
        ContextCompactionFailed(
            step=wish.step,
            attempt=attempt,
            usage=Usage(),
            usage_source=UsageSource.USAGE_SOURCE_REPORTED,
            endpoint=wish.endpoint,
            superseded=_REASON,
        )
    )


def _call_held(draft: Draft, call_id: str, attempt: int) -> None:
    call = draft.run.call(call_id)
    if call is None or call.attempt != attempt or call.phase is not Phase.STARTED:
        return
    is_ending = draft.run.state == RunState.RUN_STATE_CANCELLING
    draft.note(
        ToolFailed(
            call_id=call_id,
            attempt=attempt,
            failure_class=FailureClass.FAILURE_CLASS_NOT_SENT,
            executed=Executed.EXECUTED_NO,
            reason="RUNTIME_PAUSED",
            message="what the call needs was paused before it left",
            retry_time=None if is_ending else timestamp(draft.given.now_ns),
            is_final=is_ending,
        )
    )
