"""Decisions about calls in flight when their run is taken over or is about to end. Above: `decide`. Below: `calls`."""

from __future__ import annotations

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.run_event_pb2 import CancelReceipt
from behest.v1.run_state_pb2 import RunState
from behest.v1.tool_pb2 import Executed, SideEffect
from behestd.core import calls, children
from behestd.core.draft import Draft
from behestd.core.questions import is_question
from behestd.core.signals import ToolBroke
from behestd.core.state import Call, Phase, Run
from behestd.core.step import is_queryable
from behestd.core.wanted import is_awaited


def recover(draft: Draft) -> None:
    """Settle what a vanished owner left in flight, by class."""
    cancelling = draft.run.state == RunState.RUN_STATE_CANCELLING
    for call in draft.run.calls:
        if call.phase is not Phase.STARTED or call.started is None or draft.run.is_ended:
            continue
        if (is_question(call) and not cancelling) or children.is_child(call):
            continue
        if not cancelling and draft.given.places.rejoins(draft.run.created.namespace, call.started.endpoint):
            # The same attempt goes on: its server is joined, or that fails as the attempt would.
            continue
        if is_queryable(call):
            lost = ToolBroke(
                call.call.id,
                call.attempt,
                FailureClass.FAILURE_CLASS_AMBIGUOUS,
                Executed.EXECUTED_UNKNOWN,
                "TOOL_UNAVAILABLE",
                "the daemon stopped during the call",
            )
            calls.record_failure(draft, call, lost, 0, is_final=False)
        elif call.started.side_effect == SideEffect.SIDE_EFFECT_PURE and cancelling:
            calls.drop(draft, call)
        elif call.started.side_effect in calls.REDOABLE and not cancelling:
            _redo(draft, call)
        else:
            calls.doubt(draft, call)


def _redo(draft: Draft, call: Call) -> None:
    """Send a call again, or have it sent when what it needs is paused no more."""
    if not draft.given.pauses.of_call(draft.run, call):
        calls.send(draft, call, call.started.allowed_by if call.started is not None else "")
        return
    transient, unknown = FailureClass.FAILURE_CLASS_TRANSIENT, Executed.EXECUTED_UNKNOWN
    text = "the daemon stopped during the call, and what it needs is paused"
    lost = ToolBroke(call.call.id, call.attempt, transient, unknown, "RUNTIME_PAUSED", text)
    calls.record_failure(draft, call, lost, draft.given.now_ns, is_final=False)


def drop_pure(draft: Draft) -> None:
    """Let go of calls in flight that have no effect."""
    for call in draft.run.calls:
        if call.phase is Phase.STARTED and not is_awaited(call):
            calls.drop(draft, call)


def awaited(run: Run) -> bool:
    """Whether a cancelled run still waits for a call."""
    return any(is_awaited(call) for call in run.calls)


def give_up(draft: Draft) -> list[CancelReceipt]:
    """Leave in doubt what is still in flight, and account for every call that is in doubt or was told to stop."""
    for call in draft.run.calls:
        if is_awaited(call):
            calls.doubt(draft, call)
    acknowledged = draft.given.acknowledged
    return [
        CancelReceipt(
            call_id=call.call.id,
            endpoint=call.started.endpoint if call.started is not None else "",
            acknowledged=call.call.id in acknowledged,
            in_doubt=call.in_doubt,
        )
        for call in draft.run.calls
        if call.in_doubt or call.call.id in acknowledged
    ]
