"""Decides whether one more run is taken: what the daemon can bear, what a namespace may have of it, and quotas.

Above: RunService, which asks before it looks at anything, and the supervisor, which asks again where the run would
begin. Below: `quotas` and `overload`. A run that was taken is never given up for others; child runs go on with work
that was taken, so they are counted and not refused. Asking reads nothing and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from behestd.errors import BehestError, Overloaded
from behestd.runtime import overload as loads
from behestd.runtime.overload import Overload
from behestd.runtime.quotas import Quotas, Rules

MOST_RUNS = 1_000_000
"""Where nobody says how many."""


class Numbers(Protocol):
    """How many runs there may be."""

    @property
    def active_runs(self) -> int:
        """Runs that work at once."""
        ...

    @property
    def queued_runs(self) -> int:
        """Runs beside those."""
        ...


class Planned(Protocol):
    """What a plan says of all this."""

    @property
    def limits(self) -> Numbers:
        """The limits of the runtime."""
        ...

    @property
    def quotas(self) -> Rules:
        """What principals and namespaces may use."""
        ...

    @property
    def overload(self) -> loads.Limits:
        """From where on it is too much."""
        ...


class Intake:
    """Counts the runs that are there, and refuses more."""

    def __init__(
        self, most_runs: int = MOST_RUNS, quotas: Quotas | None = None, overload: Overload | None = None
    ) -> None:
        """`most_runs` is how many that have not ended there may be."""
        self.quotas = Quotas() if quotas is None else quotas
        self.overload = Overload() if overload is None else overload
        self.refused = 0
        """Runs refused since the start, for any reason."""
        self._most = most_runs
        self._runs = 0

    def began(self, namespace: str, principal: str) -> None:
        """Count a run in."""
        self._runs += 1
        self.quotas.run_began(namespace, principal)

    def ended(self, namespace: str, principal: str) -> None:
        """Count a run out."""
        self._runs -= 1
        self.quotas.run_ended(namespace, principal)

    @property
    def causes(self) -> tuple[str, ...]:
        """What is too much at present, so that nobody's runs are taken: of `commits`, `memory`, `disk` and `runs`."""
        causes = self.overload.causes
        return (*causes, "runs") if self._runs >= self._most else causes

    def is_shedding(self) -> bool:
        """Whether nobody's runs are taken."""
        return bool(self.causes)

    def ask(self, namespace: str, principal: str) -> None:
        """Ask for a run, which counts against the rates. Raises Overloaded, StorageFull and QuotaExceeded."""
        try:
            self.overload.check()
            self.check(namespace, principal)
            self.quotas.take_run(namespace, principal)
        except BehestError:
            self.refused += 1
            raise

    def check(self, namespace: str, principal: str) -> None:
        """Refuse a run beyond those that may be there. Raises Overloaded and QuotaExceeded."""
        if self._runs >= self._most:
            raise Overloaded("runs that have not ended", self._most)
        share = max(1, int(self._most * self.quotas.rules.queue_share))
        if self.quotas.runs_of(namespace) >= share:
            raise Overloaded("runs of the namespace that have not ended", share)
        self.quotas.check_runs(namespace, principal)

    def prepare(self, plan: Planned) -> Callable[[], None]:
        """Take other limits and quotas; what is returned puts them in force for what comes from then on."""
        most_runs, quotas, limits = plan.limits.active_runs + plan.limits.queued_runs, plan.quotas, plan.overload

        def swap() -> None:
            self._most = most_runs
            self.quotas.set(quotas)
            self.overload.set(limits)

        return swap
