"""What became of the nodes of a run's graph, read from its events.

Above: `runs`. Below: the messages of the contract. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from behest.v1 import event_pb2, run_pb2

STATES = {
    "node_started": run_pb2.NODE_STATE_RUNNING,
    "node_completed": run_pb2.NODE_STATE_COMPLETED,
    "node_failed": run_pb2.NODE_STATE_FAILED,
    "node_skipped": run_pb2.NODE_STATE_SKIPPED,
}


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A node of a run's graph has another state now. The rest is in the event."""

    node: str
    """The node, with the subgraphs that it is in: "solve" or "inner/solve"."""
    visit: int
    """The visit, counted from 1 within the run; 0 for a node that is left out before it began."""
    state: run_pb2.NodeState.ValueType
    event: event_pb2.Event


def change_of(event: event_pb2.Event) -> NodeChange | None:
    """Return what an event says of a node; None when it says nothing of one."""
    kind = event.WhichOneof("payload") or ""
    if kind not in STATES:
        return None
    told = getattr(event, kind)
    return NodeChange(told.node, told.visit, STATES[kind], event)
