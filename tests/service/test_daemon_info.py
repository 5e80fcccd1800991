"""What the daemon tells of itself, over a real channel, and the end that an operator asks for."""

from __future__ import annotations

import asyncio
import sqlite3

from behest.v1.daemon_service_pb2 import (
    DrainRequest,
    GetConfigRequest,
    ReloadRequest,
)
from behest.v1.event_service_pb2 import WatchEventsRequest
from behest.v1.run_state_pb2 import DurabilityClass, RunState
from behestd import __version__
from behestd.core.times import duration, duration_ns, nanoseconds
from behestd.runtime.house import Limits
from tests.daemons import Served, serve
from tests.runs.scenes import OPEN, PURE, Ledger, events_of, tools, until_kind
from tests.service.edges import failure, metadata, reason, until


async def test_a_client_is_told_version_limits_storage_and_keepalive() -> None:
    async with serve("sqlite", limits=Limits(session_queue=5), heartbeat_seconds=7.0) as served:
        info = await served.client.daemon.info()
        assert (info.version, info.replica) == (__version__, served.daemon.house.replica)
        assert (info.namespace, info.principal, list(info.scopes)) == ("default", "local", ["admin"])
        assert nanoseconds(info.start_time) <= served.daemon.house.clock.now_ns()
        storage = info.storage
        assert (storage.engine, storage.engine_version) == ("sqlite", sqlite3.sqlite_version)
        assert storage.durability_class == DurabilityClass.DURABILITY_CLASS_LOCAL
        assert info.limits.session_queue == 5
        assert info.limits.request_bytes == 4 * 1024 * 1024
        assert info.limits.page_size == 1000
        assert duration_ns(info.limits.watch_heartbeat) == 7_000_000_000
        # Every limit that is published is one.
        unset = {field.name for field in info.limits.DESCRIPTOR.fields} - {f.name for f, _ in info.limits.ListFields()}
        assert unset == set()
        assert duration_ns(info.keepalive.min_interval) < duration_ns(info.keepalive.interval)
        assert info.local_mode


async def test_memory_says_what_it_is_worth(served: Served) -> None:
    info = await served.client.daemon.info()
    assert (info.storage.engine, info.storage.durability_class) == ("memory", DurabilityClass.DURABILITY_CLASS_NONE)


async def test_the_status_counts_runs_calls_watches_and_commits() -> None:
    ledger = Ledger()

    async def work() -> str:
        return await ledger.work("work")

    async with serve("sqlite", tools=tools((work, PURE)), operator=OPEN) as served:
        empty = await served.client.daemon.status()
        assert (empty.accepting, list(empty.runs), empty.tool_calls, empty.watchers) == (True, [], 0, 0)
        assert (empty.tools, empty.max_active_runs, empty.max_queued_runs) == (1, 512, 10_000)
        first = await served.client.run("/tool work")
        started = await until_kind(first, "tool_started")
        second = await served.client.run("hello", session_id=started[0].session_id)
        watch = served.client.stubs.events.WatchEvents(WatchEventsRequest())
        await watch.read()
        status = await served.client.daemon.status()
        counts = {RunState.Name(count.state): count.runs for count in status.runs}
        assert counts == {"RUN_STATE_QUEUED": 1, "RUN_STATE_RUNNING": 1}
        assert (status.tool_calls, status.watchers) == (1, 1)
        assert status.commits.commits > 0
        assert 0 < duration_ns(status.commits.median) <= duration_ns(status.commits.p99)
        assert status.memory_bytes > 1024 * 1024
        watch.cancel()
        ledger.opened.set()
        await events_of(second)
        await until(lambda: served.daemon.rooms.supervisor.runs() == [])
        assert (await served.client.daemon.status()).tool_calls == 0


async def test_a_daemon_that_is_full_says_so() -> None:
    ledger = Ledger()

    async def work() -> str:
        return await ledger.work("work")

    limits = Limits(active_runs=1, queued_runs=0)
    async with serve(tools=tools((work, PURE)), limits=limits) as served:
        run = await served.client.run("/tool work")
        await until_kind(run, "tool_started")
        status = await served.client.daemon.status()
        assert (status.accepting, list(status.refusing_reasons)) == (False, ["RUNTIME_OVERLOADED"])
        ledger.opened.set()


async def test_a_drain_begins_at_once_and_cannot_be_taken_back(served: Served) -> None:  # C136
    stub = served.client.stubs.daemon
    error = await failure(stub.Drain(DrainRequest(timeout=duration(-1))))
    assert (reason(error), metadata(error)["field"]) == ("REQUEST_INVALID", "timeout")
    before_ns = served.daemon.house.clock.now_ns()
    first = await stub.Drain(DrainRequest(timeout=duration(0.25)))
    assert first.runs == 0
    assert 0 < nanoseconds(first.deadline) - before_ns < 5_000_000_000
    again = await stub.Drain(DrainRequest(timeout=duration(3600)))
    assert again.deadline == first.deadline
    async with asyncio.timeout(30):
        assert await served.daemon.stopped() == 0


async def test_a_daemon_that_no_configuration_was_read_for_has_none_to_show(served: Served) -> None:
    stub = served.client.stubs.daemon
    for call in (stub.GetConfig(GetConfigRequest()), stub.Reload(ReloadRequest())):
        assert reason(await failure(call)) == "REQUEST_UNSUPPORTED"
