"""What follows when something happens to a run: signals in, payloads out. Above: the driver. Below: `turn`, `calls`.

`decide` first records what the signal says, then goes on as far as possible without the outside (`advance`), so that
all of it is one commit. Outcomes of attempts that are no longer open decide nothing. Commands that the state forbids
raise. How a run goes on is its kind's: a loop of model and tools here, a graph in the room `reasoning`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, assert_never

from behest.v1 import run_event_pb2 as events
from behest.v1.run_state_pb2 import CancelCause, CancelMode, RunState, WaitReason
from behestd.core import (
    calls,
    child_ends,
    children,
    compaction_turn,
    inputs,
    pausing,
    questions,
    recovery,
    sources_turn,
    turn,
    verdicts,
    waits,
)
from behestd.core.draft import Draft, failure_status
from behestd.core.limits import RECOVERIES
from behestd.core.run import Payload, is_idle_claim
from behestd.core.signals import (
    Cancel,
    ChildEnded,
    Claim,
    Condemn,
    ContextGathered,
    Decision,
    Given,
    Held,
    Input,
    ModelBroke,
    ModelEnded,
    Release,
    Resolution,
    Signal,
    Start,
    StatusKnown,
    SummaryBroke,
    SummaryEnded,
    ToolBroke,
    ToolEnded,
    Wake,
)
from behestd.core.state import Phase, Run, state_name
from behestd.core.times import SECOND, duration_ns
from behestd.errors import RunEnding

_QUEUED = RunState.RUN_STATE_QUEUED
_RUNNING = RunState.RUN_STATE_RUNNING
_WAITING = RunState.RUN_STATE_WAITING
_CANCELLING = RunState.RUN_STATE_CANCELLING


class Kind(Protocol):
    """How runs of one kind go on."""

    def part(self, draft: Draft, step: int) -> Draft:
        """The draft of the conversation that has a step."""
        ...

    def resume(self, draft: Draft) -> None:
        """End the wait of a run that waits if it can go on, or to see whether it can."""
        ...

    def go_on(self, draft: Draft) -> None:
        """Go on with a run that runs, as far as possible, until it ends or waits."""
        ...

    def is_unmoved(self, payloads: Sequence[Payload], before: Run) -> bool:
        """Whether what a run that waited decided comes to the same wait."""
        ...


class Loop:
    """Runs that are a loop of model and tools: one conversation."""

    def part(self, draft: Draft, step: int) -> Draft:
        """The run's own."""
        return draft

    def resume(self, draft: Draft) -> None:
        """End the wait when a call can go on."""
        waits.resume_if_due(draft)

    def go_on(self, draft: Draft) -> None:
        """Ask the model, make its calls, and so on until it has answered."""
        while draft.run.state == _RUNNING:
            if draft.given.is_draining and not turn.is_over(draft.run):
                return
            before = len(draft.payloads)
            if not draft.run.step.answered:
                turn.request(draft)
            elif any(call.phase is not Phase.DONE for call in draft.run.step.calls):
                calls.progress(draft)
            else:
                turn.conclude(draft)
            if len(draft.payloads) == before:
                break
        if draft.run.state == _RUNNING:
            waits.park(draft)

    def is_unmoved(self, payloads: Sequence[Payload], before: Run) -> bool:
        """Whether it waits for the same pause."""
        return pausing.is_unmoved(payloads, before)


LOOP = Loop()


def decide(run: Run, given: Given, signal: Signal, kind: Kind = LOOP) -> tuple[list[Payload], Run]:
    """Decide what to commit, and the run after it (its hash and log size are those before).

    Raises RunEnding, RequestIdReused, WrongState, NotFound or InvalidRequest for inputs, decisions and resolutions that
    do not fit.
    """
    draft = Draft(run, given)
    if not run.is_ended:
        _record(draft, signal, kind)
        advance(draft, kind)
    elif isinstance(signal, Input | Decision | Resolution):
        raise RunEnding(run.id, state_name(run.state))
    return draft.payloads, draft.run


def _record(draft: Draft, signal: Signal, kind: Kind) -> None:  # noqa: C901  one case a signal
    match signal:
        case Claim():
            _claim(draft, signal)
        case Start():
            _start(draft, signal)
        case Release():
            draft.note(events.RunReleased(replica=draft.given.replica))
        case Cancel():
            _cancel(draft, signal)
        case Input():
            _input(draft, signal)
        case Wake():
            _wake(draft)
        case Condemn():
            fail(draft, signal.reason, signal.message)
        case ModelEnded():
            turn.ended(kind.part(draft, signal.step), signal)
        case ModelBroke():
            turn.broke(kind.part(draft, signal.step), signal)
        case SummaryEnded():
            compaction_turn.ended(draft, signal)
        case SummaryBroke():
            compaction_turn.broke(draft, signal)
        case ContextGathered():
            sources_turn.gathered(draft, signal)
        case ToolEnded():
            calls.ended(draft, signal)
        case ToolBroke():
            calls.broke(draft, signal)
        case StatusKnown():
            calls.status_known(draft, signal)
        case ChildEnded():
            _child_ended(draft, signal)
        case Held():
            pausing.held(draft, signal)
        case Decision():
            verdicts.decided(draft, signal)
        case Resolution():
            verdicts.resolved(draft, signal)
        case _:
            assert_never(signal)


def advance(draft: Draft, kind: Kind = LOOP) -> None:
    """Go on as far as possible without the outside."""
    released = bool(draft.payloads) and isinstance(draft.payloads[-1], events.RunReleased)
    if released:
        return
    before, count = draft.run, len(draft.payloads)
    if draft.run.state == _WAITING:
        kind.resume(draft)
    _heed_deadline(draft)
    if draft.run.state == _RUNNING:
        kind.go_on(draft)
    if draft.run.state == _CANCELLING:
        _end_if_quiet(draft)
    if kind.is_unmoved(draft.payloads[count:], before):
        _stay_paused(draft, before, count)


def _stay_paused(draft: Draft, before: Run, count: int) -> None:
    """Take back what comes to waiting as before, and end a run that waited its time."""
    draft.go_back(before, count)
    wait = before.life.wait
    is_paused = wait is not None and wait.reason == WaitReason.WAIT_REASON_PAUSED
    if wait is not None and is_paused and draft.given.now_ns >= wait.until_ns:
        fail(draft, "RUNTIME_PAUSED", f"{wait.subject} stayed paused", subject=wait.subject)


def _child_ended(draft: Draft, signal: ChildEnded) -> None:
    call, wait = draft.run.call(signal.call_id), draft.run.life.wait
    if wait is not None and call is not None and children.is_open(call):
        waits.resume(draft, wait, expired=False)
    child_ends.ended(draft, signal)


# --- ownership and start ---


def _claim(draft: Draft, claim: Claim) -> None:
    """Take the run over; what was in flight is superseded, redone, asked about or left in doubt, by its class."""
    suspect = claim_count(draft.run) >= RECOVERIES
    draft.note(events.RunClaimed(replica=draft.given.replica, reason=claim.reason))  # type: ignore[arg-type]
    is_crash = claim.reason != events.ClaimReason.CLAIM_REASON_RELEASED
    if suspect:
        turn.supersede(draft, is_crash=is_crash)
        fail(
            draft,
            "RUN_RECOVERY_LIMIT",
            f"the daemon vanished {RECOVERIES} times in a row while it worked on this run",
        )
        return
    if draft.run.state in (_RUNNING, _CANCELLING):
        turn.supersede(draft, is_crash=is_crash)
        _heed_deadline(draft)
        recovery.recover(draft)


def claim_count(run: Run) -> int:
    """How many claims in a row, the next one included, follow an owner that vanished without progress."""
    return run.life.ownership.idle_claims + 1 if is_idle_claim(run) else 0


def _start(draft: Draft, start: Start) -> None:
    if draft.run.state != _QUEUED:
        return
    started = events.RunStarted()
    started.session_index = start.session_index
    deadline_ns = draft.given.now_ns + duration_ns(draft.run.created.timeout)
    started.deadline.seconds, started.deadline.nanos = divmod(deadline_ns, SECOND)
    draft.note(started)


# --- commands ---


def _cancel(draft: Draft, cancel: Cancel) -> None:
    if draft.run.state == _CANCELLING:
        if cancel.mode == CancelMode.CANCEL_MODE_FORCE:
            _end_cancelled(draft)
        return
    draft.note(
        events.RunCancelRequested(
            mode=cancel.mode,  # type: ignore[arg-type]
            cause=cancel.cause or CancelCause.CANCEL_CAUSE_CLIENT,  # type: ignore[arg-type]
            principal=cancel.principal,
            reason=cancel.reason,
        )
    )
    _begin_to_end(draft)
    if cancel.mode == CancelMode.CANCEL_MODE_FORCE:
        _end_cancelled(draft)


def _begin_to_end(draft: Draft) -> None:
    turn.supersede(draft, is_crash=False)
    recovery.drop_pure(draft)


def _input(draft: Draft, given: Input) -> None:
    if inputs.known(draft.run, given.input_id, given.message.parts):
        return
    if draft.run.state == _CANCELLING:
        raise RunEnding(draft.run.id, state_name(draft.run.state))
    question = questions.oldest(draft.run)
    draft.note(events.InputReceived(input_id=given.input_id, message=given.message, principal=given.principal))
    wait = draft.run.life.wait
    if wait is not None and (question is not None or wait.reason == WaitReason.WAIT_REASON_INPUT):
        waits.resume(draft, wait, expired=False)
    if question is not None:
        said = ToolEnded(question.call.id, question.attempt, questions.answer(question, given.message))
        calls.ended(draft, said)


# --- time ---


def _heed_deadline(draft: Draft) -> None:
    """Begin to end a run whose time is up, before anything new leaves."""
    if draft.run.state == _RUNNING and draft.given.now_ns >= draft.run.life.deadline_ns:
        draft.note(events.RunDeadlineExceeded())
        _begin_to_end(draft)


def _wake(draft: Draft) -> None:
    run, now_ns = draft.run, draft.given.now_ns
    if run.state == _QUEUED and now_ns >= run.life.create_ns + duration_ns(run.created.queue_timeout):
        error = failure_status("RUN_QUEUE_EXPIRED", "the run queued too long")
        draft.note(events.RunTimedOut(error=error))
    elif run.state == _CANCELLING and run.life.cancel is not None:
        if now_ns >= run.life.cancel.since_ns + children.grace_ns(run, draft.given.cancel_grace_ns):
            _end_cancelled(draft)
    else:
        _expire(draft)


def _expire(draft: Draft) -> None:
    """Deny approvals that nobody gave, fail for outcomes that nobody settled, and end a wait whose time is over."""
    verdicts.expire_approvals(draft)
    if draft.run.is_ended:
        return
    now_ns = draft.given.now_ns
    doubts = [call for call in draft.run.calls if call.phase is Phase.UNKNOWN and call.due_ns <= now_ns]
    if doubts:
        fail(
            draft,
            "TOOL_OUTCOME_UNKNOWN",
            "nobody settled a call whose outcome is unknown",
            tool=doubts[0].call.name,
        )
        return
    wait = draft.run.life.wait
    question = questions.oldest(draft.run)
    is_mute = question is not None and question.due_ns <= now_ns
    if not is_mute and (wait is None or now_ns < wait.until_ns):
        return
    if wait is None or is_mute or wait.reason == WaitReason.WAIT_REASON_INPUT:
        fail(draft, "RUN_INPUT_EXPIRED", "nobody gave the input that the run waited for")
    elif wait.reason != WaitReason.WAIT_REASON_PAUSED:  # Whether that still is so is seen when it tries to go on.
        waits.resume(draft, wait, expired=True)


# --- ends ---


def fail(draft: Draft, reason: str, message: str, **metadata: object) -> None:
    """End the run by force of an error: RunFailed, or the due end of a run that is being cancelled, with that error."""
    error = failure_status(reason, message, **metadata)
    if draft.run.state == _CANCELLING:
        _end_cancelled(draft, error)
    elif draft.run.state == _QUEUED:
        draft.note(events.RunTimedOut(error=error))
    else:
        turn.supersede(draft, is_crash=False)
        calls.abandon(draft)
        draft.note(events.RunFailed(error=error))


def _end_if_quiet(draft: Draft) -> None:
    if not draft.run.attempts and not recovery.awaited(draft.run):
        _end_cancelled(draft)


def _end_cancelled(draft: Draft, error: object = None) -> None:
    receipts = recovery.give_up(draft)
    cancel = draft.run.life.cancel
    if cancel is not None and cancel.cause == 0:
        seconds = duration_ns(draft.run.created.timeout) / SECOND
        due = failure_status(
            "RUN_DEADLINE_EXCEEDED",
            f"the run took longer than its {seconds:g} s",
            timeoutSeconds=f"{seconds:g}",
        )
        draft.note(events.RunTimedOut(error=error or due, receipts=receipts))  # type: ignore[arg-type]
    else:
        cause = cancel.cause if cancel is not None else 0
        draft.note(events.RunCancelled(cause=cause, receipts=receipts, error=error))  # type: ignore[arg-type]
