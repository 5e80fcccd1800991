"""How far the graph of a run is, as clients see it. Above: who reads runs. Below: the fold of nodes, how graphs end."""

from __future__ import annotations

from behest.v1.run_pb2 import NodeVisit, Reasoning
from behest.v1.run_state_pb2 import RunState
from behestd.core.nodes import Nodes, NodeStatus, Visit
from behestd.core.spend import total
from behestd.core.state import Run
from behestd.core.task import TaskState, message
from behestd.core.times import timestamp
from behestd.reasoning.endings import came_to
from behestd.reasoning.schedule import Answered, Completed, ending


def reasoning(run: Run) -> Reasoning | None:
    """How far the graph of a run is; None when it has none."""
    nodes = run.nodes
    if nodes is None:
        return None
    return Reasoning(
        graph=run.definition.graph,
        visits=[_visit(run, visit) for visit in nodes.visits],
        skipped=nodes.skipped,
        task=message(_task(run, nodes)),
        iteration=nodes.scopes[0].iteration,
    )


def _visit(run: Run, visit: Visit) -> NodeVisit:
    """One visit. The end of its run stops a visit that is at work."""
    is_stopped = run.is_ended and visit.status is NodeStatus.RUNNING
    end_ns = run.life.end_ns if is_stopped else visit.end_ns
    return NodeVisit(
        started=visit.started,
        state=(NodeStatus.SKIPPED if is_stopped else visit.status).value,  # type: ignore[arg-type]  # as NodeState is
        outcome=visit.outcome,  # type: ignore[arg-type]  # a NodeOutcome
        score=visit.score,
        reason=visit.reason,
        message=visit.message,
        start_time=timestamp(visit.start_ns),
        end_time=timestamp(end_ns) if end_ns else None,
        usage=total(visit.spend),
        delta=visit.delta,
    )


def _task(run: Run, nodes: Nodes) -> TaskState:
    """The task that a run came to; before, as the visit left it that ended last in the run's own graph."""
    if run.state == RunState.RUN_STATE_COMPLETED:
        end = ending(nodes.shape, nodes.scopes[0], nodes.after, nodes.score)
        if isinstance(end, Answered | Completed):
            return came_to(nodes, nodes.scopes[0], end)
    own = [visit for visit in nodes.visits if not visit.started.scope and visit.after is not None]
    latest = max(own, key=lambda visit: (visit.end_ns, visit.number), default=None)
    return nodes.after(latest.number) if latest is not None else nodes.task
