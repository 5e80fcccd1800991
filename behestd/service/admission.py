"""How much is let in at once, by class of work: what matters most is still answered when it is too much.

Above it are the registered methods, which enter and leave; below it are `scopes` and, of the runtime, the quotas of
callers. Own counters instead of gRPC's `maximum_concurrent_rpcs`, which counts idle watchers and refuses without a
reason. Control and what continues an accepted run is never refused for what others do; a caller's own rate and streams
bound all but control. Whether a run may be created is asked by RunService, which knows a repeat of a request, and
`may_create` is asked before anything is read. While the daemon takes no runs, fewer lists are answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from behestd.errors import Overloaded
from behestd.runtime.quotas import Quotas
from behestd.service.scopes import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from behestd.service.scopes import Caller

SHED_LISTS = 8
"""The part of the lists that are answered at once while the daemon takes no runs: one in so many."""
_KINDS = {Load.STREAM: "streams", Load.WATCH: "watches"}


@dataclass(frozen=True, slots=True)
class Statistics:
    """Calls in flight by class, and how many were refused since the start."""

    in_flight: Mapping[Load, int]
    refused: Mapping[Load, int]


def anybody(caller: Caller) -> None:
    """Let everybody create runs: the gate of a daemon that sets no bounds."""


def never() -> bool:
    """Tell that nothing is too much: the word of a daemon that measures nothing."""
    return False


class Admission:
    """Counts the calls in flight by class and by caller, and refuses what goes beyond the limits.

    `limits` holds the classes that are bounded; CONTROL and CONTINUE may not be among them. `may_create` is
    called for each call of class CREATE and raises what stands in the way: Overloaded, Draining, StorageFull.
    """

    def __init__(
        self,
        limits: Mapping[Load, int],
        may_create: Callable[[Caller], None] = anybody,
        *,
        quotas: Quotas | None = None,
        is_shedding: Callable[[], bool] = never,
    ) -> None:
        if {Load.CONTROL, Load.CONTINUE} & limits.keys():
            raise ValueError("control and continue are never refused")
        self._limits = dict(limits)
        self._may_create = may_create
        self._quotas = Quotas() if quotas is None else quotas
        self._is_shedding = is_shedding
        self._kinds: dict[tuple[Load, ...], tuple[str, ...]] = {}
        self._in_flight = dict.fromkeys(Load, 0)
        self._refused = dict.fromkeys(Load, 0)

    def enter(self, loads: tuple[Load, ...], caller: Caller) -> None:
        """Take a place in each class, or in none. Raises Overloaded, QuotaExceeded or what `may_create` raises."""
        in_flight = self._in_flight
        for load in loads:
            limit = self._limits.get(load)
            if limit is not None and in_flight[load] >= limit // SHED_LISTS:
                self._check(load, limit)
            if load is Load.CREATE:
                self._may_create(caller)
        kinds = self._kinds_of(loads)
        if caller.namespace and (kinds or (self._quotas.has_rates and Load.CONTROL not in loads)):
            self._quotas.enter_call(caller.namespace, caller.principal, kinds)
        for load in loads:
            in_flight[load] += 1

    def _check(self, load: Load, limit: int) -> None:
        if load is Load.LIST and self._is_shedding():
            limit = max(1, limit // SHED_LISTS)
        if self._in_flight[load] >= limit:
            self._refused[load] += 1
            raise Overloaded(f"calls of class {load}", limit)

    def leave(self, loads: tuple[Load, ...], caller: Caller) -> None:
        """Give back what `enter` took."""
        for load in loads:
            self._in_flight[load] -= 1
        if caller.namespace and (kinds := self._kinds_of(loads)):
            self._quotas.leave_call(caller.namespace, caller.principal, kinds)

    def _kinds_of(self, loads: tuple[Load, ...]) -> tuple[str, ...]:
        kinds = self._kinds.get(loads)
        if kinds is None:
            kinds = self._kinds[loads] = tuple(_KINDS[load] for load in loads if load in _KINDS)
        return kinds

    def statistics(self) -> Statistics:
        """Return the counts as they are."""
        return Statistics(dict(self._in_flight), dict(self._refused))
