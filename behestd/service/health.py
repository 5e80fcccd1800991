"""grpc.health.v1, for balancers and probes: up or down, for the daemon ("") and each service of it.

Above it is `server`; below it `call`. Not the servicer of grpcio-health-checking: that one writes to its
watchers under the lock that setting a state needs, so a frozen watcher could hold up a drain. Here a watcher
holds nothing but its place.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2

from behestd.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from behestd.service.call import Call
    from behestd.service.methods import Handler

SERVICE = "grpc.health.v1.Health"
WHOLE = ""
"""The name of the daemon as a whole."""

_Response = health_pb2.HealthCheckResponse


class Health:
    """The states of the services. All of them are NOT_SERVING until told otherwise."""

    def __init__(self, services: Iterable[str]) -> None:
        self._states: dict[str, int] = dict.fromkeys((WHOLE, *services), _Response.NOT_SERVING)
        self._changed = asyncio.Event()

    @property
    def is_serving(self) -> bool:
        """Tell whether the daemon as a whole is up."""
        return self._states[WHOLE] == _Response.SERVING

    def set_serving(self) -> None:
        """Say that the daemon and all its services are up."""
        self._set(_Response.SERVING)

    def set_not_serving(self) -> None:
        """Say that they are down, as before a drain. Watchers are told at once."""
        self._set(_Response.NOT_SERVING)

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

    def _set(self, state: int) -> None:
        self._states = dict.fromkeys(self._states, state)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
