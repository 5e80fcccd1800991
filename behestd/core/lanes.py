"""Lanes: the conversations of a run with a graph, each looked at as a run of its own.

A view is a Run whose step, transcript and turns are those of one lane, so that everything that is known of a loop of
model and tools holds for a lane: how a model is asked, what becomes of calls, what waits. What the lanes of a run have
in common stays common: its life, what it spends, how many steps and child runs it began, which calls are in doubt.
Above: `run`, whose fold goes through here for the events of steps, and the decisions about graphs. Below: `nodes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from behestd.core.nodes import Lane, spent
from behestd.core.state import Call, Phase, Run, replace
from behestd.core.step import Payload
from behestd.errors import LogCorrupt

_BUSY = (Phase.STARTED, Phase.ASKING)


def view(run: Run, lane: Lane, busy: Sequence[Call] | None = None) -> Run:
    """The run as one of its lanes sees it. `busy` is what `busy_calls` tells, for whoever looks at many lanes."""
    found = busy_calls(run) if busy is None else busy
    beside = tuple(call for call in found if call not in lane.step.calls) if found else ()
    turns = replace(lane.turns, children=run.turns.children, doubtful=run.turns.doubtful)
    return replace(
        run,
        step=lane.step,
        transcript=lane.transcript,
        turns=turns,
        nodes=None,
        visit=lane.visit,
        beside=beside,
    )


def busy_calls(run: Run) -> tuple[Call, ...]:
    """The calls in flight of all lanes."""
    lanes = run.nodes.lanes.values() if run.nodes is not None else ()
    return tuple(call for lane in lanes for call in lane.step.calls if call.phase in _BUSY)


def lane_of_step(run: Run, step: int) -> Lane | None:
    """The lane whose open step has this number."""
    lanes = run.nodes.lanes.values() if run.nodes is not None else ()
    return next((lane for lane in lanes if lane.step.number == step), None)


def lane_of_call(run: Run, call_id: str) -> Lane | None:
    """The lane that has this call open."""
    lanes = run.nodes.lanes.values() if run.nodes is not None else ()
    return next((lane for lane in lanes if any(call.call.id == call_id for call in lane.step.calls)), None)


def fold(run: Run, payload: Payload, now_ns: int, apply: Callable[[Run, Payload, int], Run]) -> Run:
    """Apply the event of a step to the lane that it belongs to. Raises LogCorrupt when there is none."""
    lane = _lane_of(run, payload)
    if lane is None or run.nodes is None:
        raise LogCorrupt(run.id, run.head.sequence + 1, "no node at work has such a step")
    before = view(run, lane)
    after = apply(before, payload, now_ns)
    nodes = run.nodes
    if after.step is not lane.step or after.transcript is not lane.transcript or after.turns is not before.turns:
        new = Lane(lane.visit, after.step, after.transcript, after.turns)
        nodes = replace(nodes, lanes={**nodes.lanes, lane.visit: new})
    return replace(
        run,
        life=after.life,
        spend=after.spend,
        steps=after.steps,
        turns=replace(run.turns, children=after.turns.children, doubtful=after.turns.doubtful),
        nodes=spent(nodes, lane.visit, run.spend, after.spend),
    )


def _lane_of(run: Run, payload: Payload) -> Lane | None:
    fields = payload.DESCRIPTOR.fields_by_name
    if "visit" in fields:
        return run.nodes.lanes.get(payload.visit) if run.nodes is not None else None
    if "step" in fields:
        return lane_of_step(run, payload.step)
    return lane_of_call(run, payload.call_id)
