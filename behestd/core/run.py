"""The fold: events in, state out. Everything that changes a run's state is in this file, driven by one table.

`evolve` applies one committed event, `fold` a whole log, `apply` one payload that is about to be committed. All are
pure and total over valid logs; an event that the table does not allow in a state means a damaged log (`LogCorrupt`), an
event of an unknown kind a newer version (`NewerFormat`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any

from google.protobuf.message_factory import GetMessageClass

from behest.v1.definition_pb2 import RunDefinition
from behest.v1.event_pb2 import Event
from behest.v1.node_event_pb2 import NodeStarted
from behest.v1.run_state_pb2 import RunState, WaitReason
from behestd.core import compaction_fold, lanes, nodes
from behestd.core.children import only_waits
from behestd.core.doom_loop import warning
from behestd.core.inputs import digest
from behestd.core.questions import oldest
from behestd.core.spend import settle
from behestd.core.state import TERMINAL, Cancel, Head, Life, Ownership, Phase, Run, Step, Wait, replace, state_name
from behestd.core.step import FOLDS, progressed, results
from behestd.core.times import nanoseconds
from behestd.errors import LogCorrupt, NewerFormat

_QUEUED = RunState.RUN_STATE_QUEUED
_RUNNING = RunState.RUN_STATE_RUNNING
_WAITING = RunState.RUN_STATE_WAITING
_CANCELLING = RunState.RUN_STATE_CANCELLING
_LIVE = (_QUEUED, _RUNNING, _WAITING, _CANCELLING)
_WORKING = (_RUNNING, _WAITING, _CANCELLING)

Payload = Any
"""One of the messages of the oneof `Event.payload`; the union of about forty generated classes has no better type."""

Kind = str
"""A field name of the oneof `Event.payload`, such as "run_started"."""

KIND: dict[type, Kind] = {
    GetMessageClass(field.message_type): field.name
    for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields
    if field.message_type is not None
}


def _stay(*states: int) -> dict[int, int]:
    return {state: state for state in states}


TRANSITIONS: dict[Kind, dict[int, int]] = {
    "run_created": {},
    "run_claimed": _stay(*_LIVE),
    "run_released": _stay(*_LIVE),
    "run_started": {_QUEUED: _RUNNING},
    "run_waiting": {_RUNNING: _WAITING},
    "run_resumed": {_WAITING: _RUNNING},
    "input_received": _stay(_QUEUED, _RUNNING, _WAITING),
    "run_cancel_requested": {_QUEUED: _CANCELLING, _RUNNING: _CANCELLING, _WAITING: _CANCELLING},
    "run_deadline_exceeded": {_RUNNING: _CANCELLING},
    "run_completed": {_RUNNING: RunState.RUN_STATE_COMPLETED},
    "run_failed": {_RUNNING: RunState.RUN_STATE_FAILED, _WAITING: RunState.RUN_STATE_FAILED},
    "run_cancelled": {_CANCELLING: RunState.RUN_STATE_CANCELLED},
    "run_timed_out": {_QUEUED: RunState.RUN_STATE_TIMED_OUT, _CANCELLING: RunState.RUN_STATE_TIMED_OUT},
    "child_run_started": _stay(_RUNNING),
    "child_run_ended": _stay(_RUNNING, _WAITING, _CANCELLING),
    "doom_loop_detected": _stay(_RUNNING),
    "model_requested": _stay(_RUNNING),
    "model_bound": _stay(_RUNNING),
    "model_completed": _stay(_RUNNING),
    "model_failed": _stay(_RUNNING),
    "model_superseded": _stay(*_WORKING),
    "answer_rejected": _stay(_RUNNING),
    "tool_started": _stay(_RUNNING),
    "tool_completed": _stay(_RUNNING, _CANCELLING),
    "tool_failed": _stay(*_WORKING),
    "tool_denied": _stay(_RUNNING, _WAITING),
    "tool_outcome_unknown": _stay(_RUNNING, _CANCELLING),
    "tool_resolved": _stay(*_WORKING),
    "approval_requested": _stay(_RUNNING),
    "approval_decided": _stay(_RUNNING, _WAITING),
    "context_built": _stay(_RUNNING),
    "context_compacted": _stay(_RUNNING),
    "compaction_circuit_opened": _stay(_RUNNING),
    "context_compaction_requested": _stay(_RUNNING),
    "context_compaction_failed": _stay(*_WORKING),
    "node_started": _stay(_RUNNING),
    "node_completed": _stay(_RUNNING),
    "node_failed": _stay(_RUNNING),
    "node_skipped": _stay(_RUNNING),
}
"""Which kinds are allowed in which state, and the state after. A kind without a row is unknown to this version."""


def rooted(run_id: str, event: Event, data: bytes, definition: RunDefinition) -> Run:
    """The state of a run after its first committed event. Raises LogCorrupt when that is not its creation."""
    if event.WhichOneof("payload") != "run_created" or event.sequence != 1:
        raise LogCorrupt(run_id, event.sequence, "the log does not begin with run_created")
    run = start(run_id, event.run_created, definition, nanoseconds(event.record_time))
    return replace(run, head=Head(1, event.epoch, sha256(data).digest(), stored_bytes(data)))


def start(run_id: str, created: Payload, definition: RunDefinition, now_ns: int) -> Run:
    """Make the state of a run that has nothing but its creation, at sequence 1 and epoch 0."""
    transcript = tuple(created.forked_from.messages) if created.HasField("forked_from") else ()
    if created.input.parts:
        transcript += (created.input,)
    life, graph = Life(create_ns=now_ns), nodes.begin(definition, created)
    return Run(run_id, created, definition, head=Head(sequence=1), life=life, transcript=transcript, nodes=graph)


def evolve(run: Run, event: Event, data: bytes) -> Run:
    """Apply a committed event; `data` is the event as it is stored.

    Raises LogCorrupt when the sequence, the epoch, the hash or the state does not fit, NewerFormat for unknown kinds.
    """
    kind = event.WhichOneof("payload")
    if kind is None or kind not in TRANSITIONS:
        raise NewerFormat(run.id, event.sequence)
    if event.sequence != run.head.sequence + 1:
        raise LogCorrupt(run.id, event.sequence, f"follows {run.head.sequence}")
    if event.epoch != run.head.epoch + (kind == "run_claimed"):
        raise LogCorrupt(run.id, event.sequence, f"epoch {event.epoch} after {run.head.epoch}")
    if event.prev_hash != run.head.hash:
        raise LogCorrupt(run.id, event.sequence, "the hash of the event before it does not fit")
    run = apply(run, getattr(event, kind), nanoseconds(event.record_time))
    head = Head(event.sequence, event.epoch, sha256(data).digest(), run.head.log_bytes + stored_bytes(data))
    return replace(run, head=head)


def stored_bytes(data: bytes) -> int:
    """The size of an event in the log: its bytes, framed by tag and length."""
    return len(data) + 1 + max(1, (len(data).bit_length() + 6) // 7)


def fold(run_id: str, log: Iterable[tuple[Event, bytes]], definition: RunDefinition) -> Run:
    """Fold a log from its first event. Raises as `evolve` does."""
    run: Run | None = None
    for event, data in log:
        run = rooted(run_id, event, data, definition) if run is None else evolve(run, event, data)
    if run is None:
        raise LogCorrupt(run_id, 0, "the log is empty")
    return run


def apply(run: Run, payload: Payload, now_ns: int) -> Run:
    """Apply a payload as the next event. The head's sequence rises; its hash and size are left to the caller."""
    kind = KIND[type(payload)]
    state = TRANSITIONS[kind].get(run.state)
    if state is None:
        raise LogCorrupt(run.id, run.head.sequence + 1, f"{kind} in state {state_name(run.state)}")
    if run.nodes is not None and kind in _OF_STEPS:
        run = lanes.fold(run, payload, now_ns, _APPLY[kind])
    else:
        run = _APPLY[kind](run, payload, now_ns)
    head = run.head
    epoch = head.epoch + 1 if kind == "run_claimed" else head.epoch
    after = Head(head.sequence + 1, epoch, head.hash, head.log_bytes)
    if state in TERMINAL:
        return replace(run, state=state, head=after, **_ending(run, now_ns))
    return replace(run, state=state, head=after)


# --- one function a kind, in the order of the table ---


def _unchanged(run: Run, payload: Payload, now_ns: int) -> Run:
    return run


def _claimed(run: Run, payload: Payload, now_ns: int) -> Run:
    before = run.life.ownership
    idle = is_idle_claim(run)
    after = Ownership(before.claims + 1, False, False, before.idle_claims + 1 if idle else 0)
    return replace(run, life=replace(run.life, ownership=after))


def is_idle_claim(run: Run) -> bool:
    """Whether the owner before a claim vanished without bringing the run forward, with something of it in flight."""
    before = run.life.ownership
    has_effects = run.state in (_RUNNING, _CANCELLING) and not only_waits(run)
    return before.claims > 0 and has_effects and not before.is_released and not before.has_progressed


def _released(run: Run, payload: Payload, now_ns: int) -> Run:
    return replace(run, life=replace(run.life, ownership=replace(run.life.ownership, is_released=True)))


def _started(run: Run, payload: Payload, now_ns: int) -> Run:
    deadline_ns = nanoseconds(payload.deadline)
    life = replace(run.life, start_ns=now_ns, deadline_ns=deadline_ns, session_index=payload.session_index)
    return replace(run, life=life)


def _waiting(run: Run, payload: Payload, now_ns: int) -> Run:
    left_ns = max(run.life.deadline_ns - now_ns, 0)
    wait = Wait(payload.reason, nanoseconds(payload.until), left_ns, now_ns, payload.subject)
    life = replace(run.life, wait=wait, deadline_ns=0)
    if payload.reason == WaitReason.WAIT_REASON_BACKOFF and not life.backoff_since_ns:
        life = replace(life, backoff_since_ns=now_ns)
    return replace(run, life=life)


def _resumed(run: Run, payload: Payload, now_ns: int) -> Run:
    if payload.reason == WaitReason.WAIT_REASON_PAUSED and run.life.wait is not None and run.calls:
        waited_ns = now_ns - run.life.wait.since_ns
        run = replace(run, step=_stood_still(run.step, waited_ns))
        if run.nodes is not None:
            run = replace(run, nodes=run.nodes.each_step(lambda step: _stood_still(step, waited_ns)))
    life = replace(run.life, wait=None, deadline_ns=nanoseconds(payload.deadline))
    return progressed(replace(run, life=life))


def _stood_still(step: Step, waited_ns: int) -> Step:
    """The step after a pause, which takes nothing from the time that its calls have for all their attempts."""
    calls = tuple(
        replace(call, first_start_ns=call.first_start_ns + waited_ns) if call.first_start_ns else call
        for call in step.calls
    )
    return replace(step, calls=calls)


def _input(run: Run, payload: Payload, now_ns: int) -> Run:
    sequence = run.head.sequence + 1
    turns = replace(
        run.turns,
        input_ids=(*run.turns.input_ids, (payload.input_id, sequence)),
        input_digests=(*run.turns.input_digests, digest(payload.message.parts)),
    )
    if run.nodes is not None and oldest(run) is None:
        run = replace(run, nodes=nodes.heard(run.nodes, payload.message))
    if oldest(run) is not None:
        return replace(run, turns=turns)  # It answers a question: it is that call's result, which comes next.
    return replace(run, turns=turns, step=replace(run.step, inputs=(*run.step.inputs, payload.message)))


def _cancel_requested(run: Run, payload: Payload, now_ns: int) -> Run:
    return replace(run, life=replace(run.life, wait=None, cancel=Cancel(payload.cause, payload.mode, now_ns)))


def _deadline_exceeded(run: Run, payload: Payload, now_ns: int) -> Run:
    return replace(run, life=replace(run.life, wait=None, cancel=Cancel(0, 0, now_ns)))


def _completed(run: Run, payload: Payload, now_ns: int) -> Run:
    run = replace(run, life=replace(run.life, output=payload.output))
    if run.nodes is None or not payload.output.HasField("message"):
        return run
    transcript = (*run.transcript, *run.step.inputs, payload.output.message)
    return replace(run, transcript=transcript, step=replace(run.step, inputs=()))


def _failed(run: Run, payload: Payload, now_ns: int) -> Run:
    return replace(run, life=replace(run.life, error=payload.error if payload.HasField("error") else None))


def _child_started(run: Run, payload: Payload, now_ns: int) -> Run:
    calls = tuple(replace(call, child=payload) if call.call.id == payload.call_id else call for call in run.step.calls)
    turns = replace(run.turns, children=run.turns.children + 1)
    return replace(run, turns=turns, step=replace(run.step, calls=calls))


def _child_ended(run: Run, payload: Payload, now_ns: int) -> Run:
    return progressed(replace(run, spend=settle(run.spend, payload.usage)))


def _doom_loop(run: Run, payload: Payload, now_ns: int) -> Run:
    turns = replace(run.turns, doom_loops=run.turns.doom_loops + 1, fingerprints=())
    if payload.stopped:
        return replace(run, turns=turns)
    return replace(run, turns=turns, step=replace(run.step, inputs=(*run.step.inputs, warning(payload))))


def _of_node(fold: Callable[[nodes.Nodes, Payload, int], nodes.Nodes]) -> Callable[[Run, Payload, int], Run]:
    """The fold of an event of a node."""

    def apply(run: Run, payload: Payload, now_ns: int) -> Run:
        if run.nodes is None:
            raise LogCorrupt(run.id, run.head.sequence + 1, "the run has no graph")
        steps = payload.step or run.steps if isinstance(payload, NodeStarted) else run.steps
        try:
            folded = fold(run.nodes, payload, now_ns)
        except LookupError:
            raise LogCorrupt(run.id, run.head.sequence + 1, "there is no such node, or no such visit") from None
        return progressed(replace(run, nodes=folded, steps=steps))

    return apply


def _ending(run: Run, now_ns: int) -> dict[str, object]:
    """What ends with a run: calls without a result get a synthetic one, what was said too late joins the transcript."""
    transcript, calls = run.transcript, run.step.calls
    if calls and any(call.phase is not Phase.DONE for call in calls):
        transcript = (*transcript, results(run))
    return {
        "life": replace(run.life, end_ns=now_ns, wait=None, deadline_ns=0),
        "transcript": transcript + run.step.inputs,
        "nodes": nodes.closed(run.nodes, now_ns) if run.nodes is not None else None,
    }


_APPLY: dict[Kind, Callable[[Run, Payload, int], Run]] = {
    **dict.fromkeys(TRANSITIONS, _unchanged),
    **FOLDS,
    **compaction_fold.FOLDS,
    "run_claimed": _claimed,
    "run_released": _released,
    "run_started": _started,
    "run_waiting": _waiting,
    "run_resumed": _resumed,
    "input_received": _input,
    "run_cancel_requested": _cancel_requested,
    "run_deadline_exceeded": _deadline_exceeded,
    "run_completed": _completed,
    "run_failed": _failed,
    "run_cancelled": _failed,
    "run_timed_out": _failed,
    "child_run_started": _child_started,
    "child_run_ended": _child_ended,
    "doom_loop_detected": _doom_loop,
    **{kind: _of_node(fold) for kind, fold in nodes.FOLDS.items()},
}

_OF_STEPS = FOLDS.keys() | {"child_run_started", "child_run_ended", "doom_loop_detected"}
"""Kinds that a run with a graph has of each of its lanes."""
