"""The fold of what happens to summaries: intent, outcome, failure. Above: `run`, whose table calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from behestd.core.spend import settle
from behestd.core.state import Compaction, Run, Summarising, replace
from behestd.core.step import progressed
from behestd.core.times import nanoseconds

Payload = Any
"""One of the messages of the oneof `Event.payload`; the union of about forty generated classes has no better type."""


def _requested(run: Run, payload: Payload, now_ns: int) -> Run:
    wish = Summarising(
        number=payload.attempt,
        endpoint=payload.endpoint,
        deadline_ns=nanoseconds(payload.deadline),
        reserve=payload.reserve,
        upto_message_id=payload.upto_message_id,
        run_messages=payload.run_messages,
        tokens_before=payload.tokens_before,
        step=payload.step,
        is_reactive=payload.is_reactive,
    )
    return replace(run, compaction=replace(run.compaction, open=wish, attempts=payload.attempt))


def _compacted(run: Run, payload: Payload, now_ns: int) -> Run:
    """The summary takes its place; a call that was refused for its length is made as if for the first time."""
    made = replace(_settled(run.compaction), summary=payload.summary, run_messages=payload.run_messages)
    step = run.step
    if run.compaction.open is not None and run.compaction.open.is_reactive:
        step = replace(step, failures=())
    return progressed(replace(run, compaction=made, step=step, spend=settle(run.spend, payload.usage)))


def _failed(run: Run, payload: Payload, now_ns: int) -> Run:
    spend = settle(run.spend, payload.usage)
    if payload.superseded:
        return replace(run, compaction=replace(run.compaction, open=None), spend=spend)
    if payload.is_final:
        after = _settled(run.compaction)
    else:
        after = replace(run.compaction, open=None, failed=(*run.compaction.failed, payload.endpoint))
    return progressed(replace(run, compaction=after, spend=spend))


def _settled(before: Compaction) -> Compaction:
    """Nothing more is tried for the step."""
    wish = before.open
    if wish is None:
        return before
    if wish.is_reactive:
        return replace(before, open=None, failed=(), reacted=wish.step)
    return replace(before, open=None, failed=(), step=wish.step)


FOLDS: dict[str, Callable[[Run, Payload, int], Run]] = {
    "context_compaction_requested": _requested,
    "context_compacted": _compacted,
    "context_compaction_failed": _failed,
}
