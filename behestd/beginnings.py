"""How the components of a daemon begin and end, where that is more than to be made. Above: `composition`."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from behestd.blobs.blob import Blobs
from behestd.changing import Changes
from behestd.components import (
    EDGE,
    HOUSE,
    LOG,
    ROOMS,
    SERVERS,
    SERVING,
    TELEMETRY,
    Life,
    Serving,
)
from behestd.errors import StorageFull
from behestd.lifecycle import Scope
from behestd.log.store import Store
from behestd.providers.leases import Leases
from behestd.reload import Reloading
from behestd.runtime import overload
from behestd.runtime.cleaning import Cleaning
from behestd.runtime.direct_calls import DirectCalls
from behestd.runtime.late import LateAnswers
from behestd.runtime.probing import Probing
from behestd.runtime.registry import Registry
from behestd.runtime.supervisor import Supervisor
from behestd.service.server import Edge
from behestd.service.telemetry import Telemetry

logger = structlog.get_logger(__name__)

SETTLE_SECONDS = 1.0
"""How long the start waits for tool servers to be reached."""
CUT_SECONDS = 1.0
"""How long calls may go on when the listeners close."""


async def close_telemetry(telemetry: Telemetry, _: float) -> None:
    await telemetry.close()


async def export(scope: Scope) -> Telemetry:
    scope[TELEMETRY].start(scope[HOUSE], scope[EDGE])
    return scope[TELEMETRY]


async def close_store(store: Store, _: float) -> None:
    await store.close()


class Closable(Protocol):
    """What ends when it is told to, by itself."""

    def close(self) -> None:
        """End."""


async def close(what: Closable, _: float) -> None:
    what.close()


async def close_blobs(blobs: Blobs, _: float) -> None:
    await blobs.close()


async def close_edge(edge: Edge, left_seconds: float) -> None:
    await edge.stop(CUT_SECONDS)


async def look_at_load(scope: Scope) -> overload.Overload:
    load = scope[HOUSE].intake.overload
    scope.spawn(load.run())
    return load


async def clean(scope: Scope) -> Cleaning:
    rooms = scope[ROOMS]
    await rooms.artifacts.sweep()
    scope.spawn(rooms.cleaning.run())
    return rooms.cleaning


async def wait_for_late(scope: Scope) -> LateAnswers:
    late = scope[ROOMS].late
    scope.spawn(late.run())
    return late


async def keep_servers(scope: Scope) -> Registry:
    registry = scope[ROOMS].registry
    scope.spawn(registry.run())
    return registry


async def take_calls(scope: Scope) -> DirectCalls:
    calls = scope[ROOMS].calls
    scope.spawn(calls.run())
    return calls


async def supervise(scope: Scope) -> Supervisor:
    """Recover what an earlier daemon left."""
    supervisor = scope[ROOMS].supervisor
    has_recovered = asyncio.Event()
    scope.spawn(supervisor.run(has_recovered.set))
    await has_recovered.wait()
    return supervisor


async def drain_runs(supervisor: Supervisor, left_seconds: float) -> None:
    runs = await supervisor.drain(left_seconds)
    logger.info("drained", runs=runs)


async def close_what_is_due(scope: Scope) -> Leases:
    leases = scope[HOUSE].leases
    scope.spawn(leases.run())
    return leases


async def answer(scope: Scope, life: Life) -> Serving:
    await scope[SERVERS].settled(SETTLE_SECONDS)
    serving = Serving(scope[EDGE], scope[ROOMS].watches, scope[LOG], life.problems)
    await serving.begin()
    scope.spawn(serving.edge.keep(), of=EDGE)
    return serving


async def reload_when_asked(scope: Scope, life: Life) -> Reloading:
    reloading = life.reloading
    reloading.begin(Changes(scope[HOUSE], scope[ROOMS], scope[EDGE], scope[TELEMETRY], lambda: reloading.plan))
    scope.spawn(reloading.run())
    return reloading


async def probe(scope: Scope, life: Life) -> Probing:
    """Look at all components that were started before."""
    serving = scope[SERVING]

    def tell(name: str, problem: str) -> None:
        life.note(name, problem)
        serving.judge()

    probing = Probing(life.probes(), tell)
    scope.spawn(probing.run())
    return probing


async def probe_store(store: Store) -> None:
    """Raise StorageFull while the disk is full."""
    if store.is_degraded:
        raise StorageFull
