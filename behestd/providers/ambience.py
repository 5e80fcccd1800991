"""What surrounds a call of a model without being part of it: the trace that it belongs to, and the time it has.

Above: who makes attempts, and sets it in the task that reads the answer. Below: providers that are processes of their
own and are told of it; all others leave it alone. A context variable, since the port of providers is the call and
nothing else.
"""

from __future__ import annotations

from contextvars import ContextVar

from behestd.values import dataclass


@dataclass(frozen=True, slots=True)
class Ambience:
    """The trace of a call, as W3C trace context (empty: none), and how long its answer is waited for (None: ever)."""

    traceparent: str = ""
    seconds: float | None = None


_NOTHING = Ambience()
_AMBIENCE: ContextVar[Ambience] = ContextVar("behest_ambience", default=_NOTHING)


def surround(traceparent: str, seconds: float | None) -> None:
    """Say what surrounds the calls of models that this task makes from now on."""
    _AMBIENCE.set(Ambience(traceparent, seconds))


def ambience() -> Ambience:
    """What surrounds the calls of this task."""
    return _AMBIENCE.get()
