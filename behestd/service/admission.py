"""How much is let in at once, by class of work: what matters most is still answered when it is too much.

Above it are the registered methods, which enter and leave; below it is `scopes`. Own counters instead of
gRPC's `maximum_concurrent_rpcs`, which counts idle watchers and refuses without a reason. Control and what
continues an accepted run is never refused. Whether a run may be created is asked of `may_create`, before
anything is recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from behestd.errors import Overloaded
from behestd.service.scopes import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from behestd.service.scopes import Caller


@dataclass(frozen=True, slots=True)
class Statistics:
    """Calls in flight by class, and how many were refused since the start."""

    in_flight: Mapping[Load, int]
    refused: Mapping[Load, int]


def anybody(caller: Caller) -> None:
    """Let everybody create runs: the gate of a daemon that sets no bounds."""


class Admission:
    """Counts the calls in flight by class and refuses what goes beyond the limits.

    `limits` holds the classes that are bounded; CONTROL and CONTINUE may not be among them. `may_create` is
    called for each call of class CREATE and raises what stands in the way: Overloaded, Draining, StorageFull.
    """

    def __init__(self, limits: Mapping[Load, int], may_create: Callable[[Caller], None] = anybody) -> None:
        if {Load.CONTROL, Load.CONTINUE} & limits.keys():
            raise ValueError("control and continue are never refused")
        self._limits = dict(limits)
        self._may_create = may_create
        self._in_flight = dict.fromkeys(Load, 0)
        self._refused = dict.fromkeys(Load, 0)

    def enter(self, loads: tuple[Load, ...], caller: Caller) -> None:
        """Take a place in each class, or in none. Raises Overloaded or what `may_create` raises."""
        in_flight = self._in_flight
        for load in loads:
            limit = self._limits.get(load)
            if limit is not None and in_flight[load] >= limit:
                self._refused[load] += 1
                raise Overloaded(f"calls of class {load}", limit)
            if load is Load.CREATE:
                self._may_create(caller)
        for load in loads:
            in_flight[load] += 1

    def leave(self, loads: tuple[Load, ...]) -> None:
        """Give back what `enter` took."""
        for load in loads:
            self._in_flight[load] -= 1

    def statistics(self) -> Statistics:
        """Return the counts as they are."""
        return Statistics(dict(self._in_flight), dict(self._refused))
