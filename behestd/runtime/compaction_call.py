"""Makes the call that a run's wish for a summary leads to: one attempt. Whether there is another the core decides.

Above: the performer. Below: providers.
"""

from __future__ import annotations

from collections.abc import Sequence

from behest.v1.message_pb2 import Message
from behest.v1.model_event_pb2 import FailureClass
from behestd.core.compaction_turn import asked_for
from behestd.core.signals import Summarise, SummaryBroke, SummaryEnded
from behestd.core.state import Run
from behestd.errors import BehestError
from behestd.failpoint import failpoint
from behestd.providers.ambience import surround
from behestd.providers.catalog import check
from behestd.providers.failure import ProviderFailure
from behestd.providers.provider import complete
from behestd.runtime.house import House
from behestd.telemetry import w3c


async def summarise(
    house: House, effect: Summarise, run: Run, history: Sequence[Message]
) -> SummaryEnded | SummaryBroke:
    """Ask for the summary that a run waits for. Raises HeldBack when its model was paused meanwhile."""
    try:
        chat = asked_for(run, history)
        resolved = house.resolved(run, effect.endpoint)
        check(chat, resolved.model)
        wish = run.compaction.open
        tokens = wish.reserve.input_tokens if wish is not None else 0
        tried = house.endpoints.attempt(
            resolved.endpoint, effect.deadline_ns, is_retry=False, tokens=tokens, namespace=run.created.namespace
        )
        async with house.leases.hold(resolved.provider), tried as attempt:
            left_seconds = max(house.endpoints.left_seconds(effect.deadline_ns), 0.0)
            key = w3c.summary_key(run.id, effect.attempt)
            surround(w3c.under(run.created.traceparent, key), left_seconds)
            failpoint("summary.before_send", run.id)
            house.switch.hold_model(run, effect.endpoint)
            end = await complete(resolved.provider, chat, house.model_timeouts.within(left_seconds))
            attempt.used(end.usage)
        failpoint("summary.before_commit", run.id)
        return SummaryEnded(effect.attempt, end)
    except ProviderFailure as failure:
        return SummaryBroke(effect.attempt, failure.failure_class, failure.reason, failure.message, failure.usage)
    except BehestError as error:
        return SummaryBroke(effect.attempt, FailureClass.FAILURE_CLASS_PERMANENT, error.reason, error.message)
