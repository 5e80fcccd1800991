"""The crash points between what a run is told and the commit of what follows, and beside it. Above: the driver."""

from __future__ import annotations

from collections.abc import Sequence

from behest.v1.node_event_pb2 import NodeCompleted, NodeFailed, NodeSkipped, NodeStarted
from behestd.core.run import Payload
from behestd.core.signals import Claim, ModelEnded, Signal, ToolEnded
from behestd.core.state import Run
from behestd.failpoint import failpoint

_OF_NODES = (NodeStarted, NodeCompleted, NodeFailed, NodeSkipped)


def hit_before_commit(signal: Signal, run_id: str) -> None:
    """Hit the point of a signal that is decided and not yet committed."""
    if isinstance(signal, ModelEnded):
        failpoint("model.before_commit", run_id)
    elif isinstance(signal, ToolEnded):
        failpoint("tool.before_commit", run_id)
    elif isinstance(signal, Claim):
        failpoint("recover.mid", run_id)


def hit_at_nodes(point: str, payloads: Sequence[Payload], run: Run) -> None:
    """Hit a point beside a commit in which nodes of the run's graph begin or end."""
    if run.nodes is not None and any(isinstance(payload, _OF_NODES) for payload in payloads):
        failpoint(point, run.id)
