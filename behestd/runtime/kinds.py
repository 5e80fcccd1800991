"""The kinds of runs: which decisions a run's pinned definition leads to. Above: the driver, the ledger, the performer.

Below: the core, for loops of model and tools, and the room `reasoning`, for graphs.
"""

from __future__ import annotations

from collections.abc import Callable

from behestd.core import wanted as loop
from behestd.core.decide import LOOP
from behestd.core.decide import decide as decide_as
from behestd.core.pauses import Pauses
from behestd.core.run import Payload
from behestd.core.signals import Effect, Given, Signal
from behestd.core.state import Run
from behestd.reasoning import conduct


def decide(run: Run, given: Given, signal: Signal) -> tuple[list[Payload], Run]:
    """Decide what to commit, and the run after it. Raises as `core.decide` does."""
    return decide_as(run, given, signal, LOOP if run.nodes is None else conduct.GRAPH)


def wanted(run: Run) -> tuple[Effect, ...]:
    """What should be going on for a run."""
    return loop.wanted(run) if run.nodes is None else conduct.wanted(run)


def alarm_ns(run: Run, cancel_grace_ns: int, pauses: Pauses, given: Callable[[], Given]) -> int:
    """When a run is to be looked at again at the latest; 0 never. `given` is what a decision may use now."""
    if run.nodes is None:
        return loop.alarm_ns(run, cancel_grace_ns, pauses)
    return conduct.alarm_ns(run, cancel_grace_ns, pauses, given)


def seen_by(run: Run, effect: Effect) -> Run:
    """The run as one of its effects sees it."""
    return run if run.nodes is None else conduct.view_of(run, effect)
