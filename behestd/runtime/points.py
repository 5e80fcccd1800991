"""The crash points between what a run is told and the commit of what follows. Above: the driver."""

from __future__ import annotations

from behestd.core.signals import Claim, ModelEnded, Signal, ToolEnded
from behestd.failpoint import failpoint


def hit_before_commit(signal: Signal, run_id: str) -> None:
    """Hit the point of a signal that is decided and not yet committed."""
    if isinstance(signal, ModelEnded):
        failpoint("model.before_commit", run_id)
    elif isinstance(signal, ToolEnded):
        failpoint("tool.before_commit", run_id)
    elif isinstance(signal, Claim):
        failpoint("recover.mid", run_id)
