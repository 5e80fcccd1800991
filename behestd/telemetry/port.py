"""What is told about runs and calls while they go on: small ports, and the one that listens to nothing.

Above: drivers and performers, which tell; `metrics` and `spans` listen. Below: the values of the core. Listeners are
told on the loop, of what is durable only, in the order of each run's log; they may not wait, nor fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol

from behestd.core.run import Payload
from behestd.core.state import Run
from behestd.values import dataclass


class Listener(Protocol):
    """Hears what becomes of the runs that this daemon drives."""

    def adopted(self, run: Run, now_ns: int) -> None:
        """A run that an earlier owner left is driven here from now on."""
        ...

    def committed(self, after: Run, payloads: Sequence[Payload], now_ns: int) -> None:
        """Events of a run have become durable; this is the run after them."""
        ...

    def first_delta(self, run: Run, step: int, now_ns: int) -> None:
        """The first piece of the answer of a step's open attempt at a model has come."""
        ...

    def gone(self, run: Run) -> None:
        """A run is driven here no more: it has ended, or others go on with it."""
        ...


class Silence:
    """Hears nothing."""

    __slots__ = ()

    def adopted(self, run: Run, now_ns: int) -> None:
        """Do nothing."""

    def committed(self, after: Run, payloads: Sequence[Payload], now_ns: int) -> None:
        """Do nothing."""

    def first_delta(self, run: Run, step: int, now_ns: int) -> None:
        """Do nothing."""

    def gone(self, run: Run) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A span that has ended. `parent` is the trace context above it, `key` names the span itself (`w3c`).

    `error` is empty when it ended well. Attributes that are empty texts or None are left out.
    """

    name: str
    parent: str
    key: str
    begin_ns: int
    end_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    is_remote: bool = False
    """Whether it is of a call of another process."""


class Recorder(Protocol):
    """Takes spans."""

    def record(self, ended: Ended) -> None:
        """Take a span whose trace is recorded."""
        ...


@dataclass(frozen=True, slots=True)
class Several:
    """Tells several."""

    listeners: Sequence[Listener]

    def adopted(self, run: Run, now_ns: int) -> None:
        """See Listener."""
        for listener in self.listeners:
            listener.adopted(run, now_ns)

    def committed(self, after: Run, payloads: Sequence[Payload], now_ns: int) -> None:
        """See Listener."""
        for listener in self.listeners:
            listener.committed(after, payloads, now_ns)

    def first_delta(self, run: Run, step: int, now_ns: int) -> None:
        """See Listener."""
        for listener in self.listeners:
            listener.first_delta(run, step, now_ns)

    def gone(self, run: Run) -> None:
        """See Listener."""
        for listener in self.listeners:
            listener.gone(run)
