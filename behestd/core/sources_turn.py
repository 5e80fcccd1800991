"""Decisions about context sources: what their answers lead to.

Above: `decide`. Below: `turn`, which begins the step. Nothing of an answer is committed by itself: the step
begins with it, in the commit of its model request, or it is asked for again.
"""

from __future__ import annotations

from behest.v1 import run_event_pb2 as events
from behestd.core import turn
from behestd.core.draft import Draft, failure_status
from behestd.core.signals import ContextGathered
from behestd.core.sources import failed, take


def gathered(draft: Draft, signal: ContextGathered) -> None:
    """Begin the step that waited for its context, or end the run for a source that it cannot do without."""
    run = draft.run
    if not turn.awaits(run) or signal.step != run.step.number + 1:
        return
    given = take(run.definition, signal.answers, draft.given.calibration)
    bad = failed(run.definition, given)
    if bad is not None:
        text = f"context source {bad.source} failed: {bad.skipped_message}"
        error = failure_status("CONTEXT_SOURCE_FAILED", text, source=bad.source, cause=bad.skipped_reason)
        draft.note(events.RunFailed(error=error))
        return
    turn.request(draft, given)
