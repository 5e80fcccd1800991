"""The projection of a run's events into rows of usage: one for each attempt that has ended, whatever came of it.

Pure. Written in the append's own transaction, so that what is in the log is in the sums, once. What child runs used is
in their own rows and in nobody else's. Above: `runtime.commit`. Below: the values of `usage`.
"""

from __future__ import annotations

from collections.abc import Sequence

from behest.v1.context_event_pb2 import ContextCompacted, ContextCompactionFailed
from behest.v1.model_event_pb2 import ModelCompleted, ModelFailed, ModelRequested, ModelSuperseded
from behest.v1.usage_pb2 import Usage, UsageSource
from behest.v1.usage_service_pb2 import UsagePurpose
from behestd.core.run import Payload
from behestd.core.state import Run
from behestd.log.usage import Spent, figure

_RUN, _COMPACTION = UsagePurpose.USAGE_PURPOSE_RUN, UsagePurpose.USAGE_PURPOSE_COMPACTION
ENDS: dict[type, int] = {
    ModelCompleted: _RUN,
    ModelFailed: _RUN,
    ModelSuperseded: _RUN,
    ContextCompacted: _COMPACTION,
    ContextCompactionFailed: _COMPACTION,
}
"""The ends of attempts, and what these were for."""


def charged_session(run: Run) -> str:
    """The session that is charged for a run: its own, or that of the topmost run above it."""
    return run.created.parent.root_session_id or run.created.session_id


def spent(before: Run | None, after: Run, payloads: Sequence[Payload], now_ns: int) -> tuple[Spent, ...]:
    """The rows of a commit: most have none."""
    for payload in payloads:
        if type(payload) in ENDS:
            return _rows(before, after, payloads, now_ns)
    return ()


def _rows(before: Run | None, after: Run, payloads: Sequence[Payload], now_ns: int) -> tuple[Spent, ...]:
    place = (after.created.namespace, now_ns, charged_session(after), after.id, after.definition.agent_id)
    models = {step: attempt.endpoint for step, attempt in before.attempts} if before is not None else {}
    rows: list[Spent] = []
    for payload in payloads:
        kind = type(payload)
        if kind is ModelRequested:
            models[payload.step] = payload.endpoint
        purpose = ENDS.get(kind)
        if purpose is None:
            continue
        usage = payload.usage
        if not usage.attempts:
            continue
        model = models.get(payload.step, "")
        if kind is ModelSuperseded:
            rows.append(row_of(place, model, purpose, usage, is_estimated=True))
        else:
            is_estimated = payload.usage_source == UsageSource.USAGE_SOURCE_ESTIMATED
            rows.append(row_of(place, payload.endpoint or model, purpose, usage, is_estimated=is_estimated))
    return tuple(rows)


def row_of(
    place: tuple[str, int, str, str, str], model: str, purpose: int, usage: Usage, *, is_estimated: bool
) -> Spent:
    """The row of one attempt. `place` is (namespace, time, session, run, agent)."""
    return Spent(
        *place,
        model,
        purpose,
        figure(usage.input_tokens),
        figure(usage.output_tokens),
        figure(usage.cached_input_tokens),
        figure(usage.cache_write_tokens),
        figure(usage.reasoning_tokens),
        figure(usage.cost_micro_usd) if usage.HasField("cost_micro_usd") else None,
        is_estimated,
    )
