"""Health: what the daemon says of itself and of each service, pushed to those who watch, and what is behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from behest.v1.component_pb2 import ComponentState
from behestd.errors import StorageFull
from behestd.runtime.house import Limits
from behestd.runtime.probing import Probing
from tests import daemons
from tests.daemons import Served, refused
from tests.runs.scenes import OPEN, PURE, Ledger, tools
from tests.runs.test_full_disk import LARGE, limit_pages

UP, DOWN = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SECONDS = 20
RUNS = "behest.v1.RunService"


async def check(served: Served, service: str) -> int:
    """Ask for the state of a service."""
    answer = await HealthStub(served.channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
    return int(answer.status)


class Watcher:
    """Hears of the states of a service."""

    def __init__(self, states: AsyncIterator[health_pb2.HealthCheckResponse]) -> None:
        self._states = states

    async def next(self) -> int:
        """Wait for a state that is another one."""
        async with asyncio.timeout(SECONDS):
            return int((await anext(self._states)).status)


@asynccontextmanager
async def watching(channel: grpc.aio.Channel, service: str) -> AsyncIterator[Watcher]:
    """Watch a service."""
    call = HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
    try:
        yield Watcher(aiter(call))
    finally:
        call.cancel()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what the daemon does by itself."""
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)


async def keep_full(served: Served) -> None:
    """Try to write what does not fit, again and again, as clients do."""
    while True:
        await refused(served.client.run(LARGE))


async def test_a_store_that_is_full_flips_readiness_and_back_and_watchers_are_told() -> None:  # C134
    async with (
        daemons.serve("sqlite", limits=Limits(full_retry_seconds=0.05)) as served,
        watching(served.channel, "") as whole,
        watching(served.channel, RUNS) as runs,
    ):
        assert (await whole.next(), await runs.next()) == (UP, UP)
        limit_pages(served, 5)
        trying = asyncio.get_running_loop().create_task(keep_full(served))
        assert (await whole.next(), await runs.next()) == (DOWN, DOWN)
        assert await check(served, "readiness") == DOWN
        assert await check(served, "liveness") == UP
        assert await check(served, "behest.v1.DaemonService") == UP
        trying.cancel()
        limit_pages(served, 1 << 20)
        async with asyncio.timeout(SECONDS):
            while await whole.next() != UP:
                pass
            while await runs.next() != UP:
                pass
        assert await check(served, "readiness") == UP
        assert (await (await served.client.run("/say new")).result()).text == "new"


async def test_status_shows_components_and_what_is_wrong_with_them() -> None:  # C134
    async with daemons.serve("sqlite", limits=Limits(full_retry_seconds=0.05)) as served:
        known = {each.name: each for each in (await served.client.daemon.status()).components}
        assert {"store", "blobs", "log", "listeners", "servers", "runs", "reloads", "serving"} <= known.keys()
        assert {each.state for each in known.values()} == {ComponentState.COMPONENT_STATE_RUNNING}
        assert all(each.since_time.seconds and not each.problem for each in known.values())

        limit_pages(served, 5)
        trying = asyncio.get_running_loop().create_task(keep_full(served))
        seen = []

        async def is_impaired() -> bool:
            store = next(each for each in (await served.client.daemon.status()).components if each.name == "store")
            seen.append(store)
            return store.state == ComponentState.COMPONENT_STATE_IMPAIRED

        await until(is_impaired)
        trying.cancel()
        limit_pages(served, 1 << 20)
    assert seen[-1].problem.startswith("STORAGE_FULL: ")


async def test_a_drain_is_told_before_anything_ends() -> None:  # C134, C136
    ledger = Ledger()

    async def look() -> str:
        """Look."""
        return await ledger.work("look")

    async with (
        daemons.serve(drain_seconds=3.0 * SECONDS, tools=tools((look, PURE)), operator=OPEN) as served,
        watching(served.channel, "") as whole,
        watching(served.channel, "liveness") as alive,
    ):
        assert (await whole.next(), await alive.next()) == (UP, UP)
        await served.client.run("/tool look {} /next /say seen")
        await asyncio.wait_for(ledger.reached.wait(), SECONDS)
        async with asyncio.TaskGroup() as group:
            leaving = group.create_task(served.daemon.lifecycle.stop(3.0 * SECONDS))
            assert await whole.next() == DOWN
            assert await check(served, "liveness") == UP
            assert await check(served, "readiness") == DOWN
            assert not leaving.done()
            ledger.opened.set()


@pytest.mark.parametrize("service", ["nobody", "behest.v1.Nothing"])
async def test_a_service_that_is_not_there_is_unknown(service: str) -> None:  # C134
    async with daemons.serve() as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(served, service)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        async with watching(served.channel, service) as watcher:
            assert await watcher.next() == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_each_probe_has_its_time_and_what_changes_is_told_once() -> None:  # C134
    told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    problems: dict[str, Exception | None] = {"full": StorageFull(), "gone": FileNotFoundError(2, "No such file")}

    async def slow() -> None:
        await asyncio.Event().wait()

    def ask(name: str) -> Callable[[], Awaitable[None]]:
        async def probe() -> None:
            if (problem := problems[name]) is not None:
                raise problem

        return probe

    probing = Probing(
        {"slow": slow, "full": ask("full"), "gone": ask("gone")},
        lambda name, problem: told.put_nowait((name, problem)),
        every_seconds=0.01,
        timeout_seconds=0.1,
    )
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
        group.create_task(probing.run())
        first = dict([await told.get() for _ in range(3)])
        problems["full"] = None
        assert await told.get() == ("full", "")
        probing.close()
    assert first["slow"] == "no answer within 0.1 s"
    assert first["full"].startswith("STORAGE_FULL: ")
    assert first["gone"] == "No such file"
    assert told.empty()
