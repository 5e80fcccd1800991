"""What should be going on for a run in its state: its effects, and when to look at it again. The shell makes it so."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from behest.v1.run_state_pb2 import RunState
from behest.v1.tool_pb2 import SideEffect
from behestd.core import children
from behestd.core.pauses import NONE, Pauses
from behestd.core.questions import is_open, is_question
from behestd.core.signals import AskContext, AskStatus, CallModel, CallTool, CancelTool, Effect, Summarise
from behestd.core.state import Call, Phase, Run, replace
from behestd.core.times import duration_ns
from behestd.core.turn import awaits


def wanted(run: Run) -> tuple[Effect, ...]:
    """The effects of a run, calls in the order in which the model asked."""
    step = run.step
    if run.state == RunState.RUN_STATE_RUNNING:
        if run.compaction.open is not None:
            wish = run.compaction.open
            return (Summarise(wish.number, wish.endpoint, wish.deadline_ns),)
        if step.open is not None:
            attempt = step.open
            return (CallModel(step.number, attempt.number, attempt.endpoint, attempt.deadline_ns),)
        if awaits(run):
            return (AskContext(step.number + 1, run.life.deadline_ns),)
        return tuple(effect for call in step.calls for effect in _of_call(call))
    if run.state == RunState.RUN_STATE_CANCELLING:
        return tuple(effect for call in step.calls for effect in _of_cancelled_call(call))
    if run.state == RunState.RUN_STATE_WAITING:
        return tuple(CallTool(call.call.id, call.attempt) for call in step.calls if children.is_open(call))
    return ()


def _of_call(call: Call) -> tuple[Effect, ...]:
    if call.phase is Phase.STARTED and not is_question(call):
        return (CallTool(call.call.id, call.attempt),)
    if call.phase is Phase.ASKING:
        return (AskStatus(call.call.id, call.attempt),)
    return ()


def _of_cancelled_call(call: Call) -> tuple[Effect, ...]:
    if not is_awaited(call):
        return ()
    if call.phase is Phase.ASKING:
        return (AskStatus(call.call.id, call.attempt),)
    return (CallTool(call.call.id, call.attempt), CancelTool(call.call.id, call.attempt))


def is_awaited(call: Call) -> bool:
    """Whether a cancelled run waits for this call: one in flight that may have an effect."""
    if call.phase not in (Phase.STARTED, Phase.ASKING):
        return False
    return call.started is not None and call.started.side_effect != SideEffect.SIDE_EFFECT_PURE


def has_room(run: Run, call: Call) -> bool:
    """Whether a call may be in flight beside those that are: within the limit, and an exclusive one alone.

    Questions take no room.
    """
    if is_question(call):
        return True
    if children.is_child(call) and not children.has_room(run):
        return False
    busy = [
        other
        for other in run.step.calls + run.beside
        if other.phase in (Phase.STARTED, Phase.ASKING) and not is_open(other)
    ]
    if len(busy) >= run.definition.limits.max_parallel_tool_calls:
        return False
    return not busy or not any(_is_exclusive(one) for one in (call, *busy))


def _is_exclusive(call: Call) -> bool:
    return call.tool is not None and call.tool.policy.exclusive


def alarm_ns(run: Run, cancel_grace_ns: int, pauses: Pauses = NONE) -> int:
    """When the run is to be looked at again at the latest; 0 never. A call that is held back needs no time."""
    if pauses:
        calls = run.step.calls
        free = tuple(call for call in calls if call.phase is not Phase.BACKOFF or not pauses.of_call(run, call))
        run = replace(run, step=replace(run.step, calls=free)) if len(free) < len(calls) else run
    return min(filter(None, _times(run, cancel_grace_ns)), default=0)


def _times(run: Run, cancel_grace_ns: int) -> list[int]:
    life, step = run.life, run.step
    if run.state == RunState.RUN_STATE_QUEUED:
        return [life.create_ns + duration_ns(run.created.queue_timeout)]
    if run.state == RunState.RUN_STATE_CANCELLING and life.cancel is not None:
        return [life.cancel.since_ns + children.grace_ns(run, cancel_grace_ns)]
    if run.state == RunState.RUN_STATE_WAITING and life.wait is not None:
        return [life.wait.until_ns, *(call.due_ns for call in step.calls if call.phase in _WAITS or is_open(call))]
    if run.state != RunState.RUN_STATE_RUNNING:
        return []
    times = [life.deadline_ns]
    if step.open is None and not step.answered and step.failures and run.compaction.open is None:
        times.append(step.failures[-1].due_ns)
    if step.calls:
        times.extend(call.due_ns for call in step.calls if call.phase in (Phase.ASKED, Phase.UNKNOWN) or is_open(call))
        times.extend(_retry_times(run))
    return times


_WAITS = (Phase.ASKED, Phase.UNKNOWN, Phase.BACKOFF)


def _retry_times(run: Run) -> Iterator[int]:
    """When calls are sent again by time alone; a call without room, and those behind it, wait for others to end."""
    held_from_ns: float = inf
    for call in run.step.calls:
        if call.phase not in (Phase.NEW, Phase.ALLOWED, Phase.BACKOFF):
            continue
        if not has_room(run, call):
            held_from_ns = min(held_from_ns, call.due_ns if call.phase is Phase.BACKOFF else 0)
        elif call.phase is Phase.BACKOFF and call.due_ns < held_from_ns:
            yield call.due_ns
