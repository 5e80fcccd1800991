"""Decisions about waiting: when a run rests, for what, and what ends that before its time. Above: `decide`.

Below: the parts that know what calls, child runs and pauses wait for. A run waits when everything that is open about
it is a wait, so that nothing of it is in flight.
"""

from __future__ import annotations

from behest.v1 import run_event_pb2 as events
from behest.v1.run_state_pb2 import WaitReason
from behestd.core import children, pausing, questions, turn
from behestd.core.draft import Draft
from behestd.core.limits import BACKOFF_WAIT_SECONDS
from behestd.core.pauses import Pause
from behestd.core.state import Call, Phase, Wait
from behestd.core.times import SECOND, timestamp

_CHILD = WaitReason.WAIT_REASON_CHILD
_WAITS = {
    Phase.ASKED: WaitReason.WAIT_REASON_APPROVAL,
    Phase.STARTED: WaitReason.WAIT_REASON_INPUT,
    Phase.UNKNOWN: WaitReason.WAIT_REASON_OUTCOME_UNKNOWN,
    Phase.BACKOFF: WaitReason.WAIT_REASON_BACKOFF,
}
"""What a run waits for when its calls are in these phases, the first that applies. STARTED is that of questions."""
_WAITS_FOR_PEOPLE = (
    WaitReason.WAIT_REASON_APPROVAL,
    WaitReason.WAIT_REASON_INPUT,
    WaitReason.WAIT_REASON_OUTCOME_UNKNOWN,
)


def resume_if_due(draft: Draft) -> None:
    """End a wait as soon as one of the calls can go on, or none is left that waits for the same people."""
    wait, open_calls = draft.run.life.wait, draft.run.step.calls
    if wait is not None and children.moves(draft.given.kin, draft.run):
        resume(draft, wait, expired=False)
        return
    if wait is not None and _may_be_lifted(draft, wait):
        resume(draft, wait, expired=False)
        return
    if wait is None or wait.reason not in _WAITS_FOR_PEOPLE:
        return
    is_input = wait.reason == WaitReason.WAIT_REASON_INPUT  # which only an input ends
    is_stuck = is_input or any(_WAITS.get(call.phase) == wait.reason for call in open_calls)
    if not is_stuck or pausing.can_go(draft):
        resume(draft, wait, expired=False)


def _may_be_lifted(draft: Draft, wait: Wait) -> bool:
    """Whether a pause that held a run, or a call of one that waits for something else beside it, may be over."""
    if wait.reason == WaitReason.WAIT_REASON_PAUSED:
        return not draft.given.is_draining
    return wait.reason in (_CHILD, WaitReason.WAIT_REASON_BACKOFF) and pausing.can_go(draft)


def resume(draft: Draft, wait: Wait, *, expired: bool) -> None:
    """End a wait; the deadline goes on from where it stood."""
    deadline = timestamp(draft.given.now_ns + wait.remaining_ns)
    draft.note(events.RunResumed(reason=wait.reason, expired=expired, deadline=deadline))  # type: ignore[arg-type]  # an enum's number


def park(draft: Draft) -> None:
    """Have the run wait when everything that is open about it is a wait."""
    step = draft.run.step
    if step.open is not None or not step.answered or draft.run.compaction.open is not None:
        return
    if turn.awaits(draft.run):
        return
    due_ns: dict[int, int] = {}
    pause: Pause | None = None
    for call in step.calls:
        if call.phase is Phase.DONE:
            continue
        if hold := pausing.hold_of(draft, call):
            pause = pause or hold
            continue
        reason, until_ns = _wait_of(draft, call)
        if not until_ns:
            return
        due_ns[reason] = min(until_ns, due_ns.get(reason, until_ns))
    if pause is not None and due_ns.keys() <= {_CHILD}:
        pausing.wait_for(draft, pause)
        return
    reason = next(reason for reason in (*_WAITS.values(), _CHILD) if reason in due_ns)
    draft.note(events.RunWaiting(reason=reason, until=timestamp(due_ns[reason])))


def _wait_of(draft: Draft, call: Call) -> tuple[int, int]:
    """What an open call waits for, and until when; 0: it does not wait, or not for long."""
    now_ns = draft.given.now_ns
    if children.is_open(call):
        until_ns = children.rests_until_ns(draft.given.kin, draft.run, call)
        return _CHILD, until_ns if until_ns > now_ns else 0
    soon_ns = now_ns + int(BACKOFF_WAIT_SECONDS * SECOND)
    is_at_work = call.phase is Phase.STARTED and not questions.is_question(call)
    if is_at_work or call.phase not in _WAITS or (call.phase is Phase.BACKOFF and call.due_ns <= soon_ns):
        return 0, 0
    return _WAITS[call.phase], call.due_ns
