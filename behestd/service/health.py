"""grpc.health.v1, for balancers and probes: up or down, for the daemon and each service of it.

"" and "readiness" say whether the daemon can take runs, "liveness" whether its process works: one that is impaired, or
about to stop, is alive all the same. Above it is `server`; below it `call`. Not the servicer of grpcio-health-checking:
that one writes to its watchers under the lock that setting a state needs, so a frozen watcher could hold up a drain.
Here a watcher holds nothing but its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2

from behestd.errors import NotFound

if TYPE_CHECKING:
    from behestd.service.call import Call
    from behestd.service.methods import Handler

SERVICE = "grpc.health.v1.Health"
WHOLE = ""
"""The name of the daemon as a whole."""
READINESS = "readiness"
LIVENESS = "liveness"

NEEDS: Mapping[str, frozenset[str]] = {
    LIVENESS: frozenset(),
    "behest.v1.DaemonService": frozenset(),
}
"""The components that a service needs."""
OTHERS_NEED = frozenset({"store", "audit"})
"""Those that all other services need."""

_Response = health_pb2.HealthCheckResponse


class Health:
    """The states of the services. All of them are NOT_SERVING until told otherwise."""

    def __init__(self, services: Iterable[str]) -> None:
        names = (WHOLE, READINESS, LIVENESS, *services)
        self._states: dict[str, int] = dict.fromkeys(names, _Response.NOT_SERVING)
        self._changed = asyncio.Event()

    @property
    def is_serving(self) -> bool:
        """Tell whether the daemon as a whole is up."""
        return self._states[WHOLE] == _Response.SERVING

    def set_serving(self) -> None:
        """Say that the daemon and all its services are up."""
        self._set(frozenset())

    def set_impaired(self, components: Iterable[str]) -> None:
        """Say that the daemon is up, but for what needs these components."""
        impaired = frozenset(components)
        down = {name for name in self._states if not impaired.isdisjoint(NEEDS.get(name, OTHERS_NEED))}
        self._set(down)

    def set_not_serving(self) -> None:
        """Say that they are down, as before a drain, and that the process works. Watchers are told at once."""
        is_alive = self._states[LIVENESS] == _Response.SERVING
        self._set(self._states.keys() - ({LIVENESS} if is_alive else set()))

    def handlers(self) -> Mapping[str, Handler]:
        """Return the methods of the protocol by full name."""
        return {
            f"/{SERVICE}/Check": self.check,
            f"/{SERVICE}/Watch": self.watch,
        }

    async def check(self, request: health_pb2.HealthCheckRequest, call: Call) -> _Response:
        """Return the state of a service. Raises NotFound, without a reason: the protocol is not ours."""
        state = self._states.get(request.service)
        if state is None:
            raise NotFound("", "no such service")
        return _Response(status=state)

    async def watch(self, request: health_pb2.HealthCheckRequest, call: Call) -> None:
        """Send the state of a service, then each change of it. One we do not know is SERVICE_UNKNOWN."""
        told: int | None = None
        while True:
            changed = self._changed
            state = self._states.get(request.service, _Response.SERVICE_UNKNOWN)
            if state != told:
                await call.send(_Response(status=state))
                told = state
            await changed.wait()

    def _set(self, down: Set[str]) -> None:
        states: dict[str, int] = {
            name: _Response.NOT_SERVING if name in down else _Response.SERVING for name in self._states
        }
        if states == self._states:
            return
        self._states = states
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
