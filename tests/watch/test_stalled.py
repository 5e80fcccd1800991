"""Watchers that read no more cost a run nothing: its commits wait for none of them, and nothing is kept for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from behest.client import Client
from behest.v1.run_service_pb2 import WatchRunRequest, WatchRunResponse
from behest.v1.run_service_pb2_grpc import RunServiceStub
from behestd.log.counts import Statistics
from behestd.runtime.house import Limits
from behestd.service.scopes import Load
from behestd.service.settings import Settings
from tests import daemons
from tests.daemon_process import running
from tests.runs.scenes import events_of, kinds

PATIENT = Settings(write_seconds=120, abort_seconds=1)
"""An edge that does not let go of a client that does not read while a test looks."""
# A connection of its own, and a small window that does not grow: it is full after the first frames.
NARROW = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_536),
    ("grpc.use_local_subchannel_pool", 1),
)
SAID = " /next ".join(["/words 30000 /finish length"] * 3 + ["/words 30000"])
"""About 1.1 MB of deltas, and 2 MB of events."""


@asynccontextmanager
async def stalled(address: str, run_id: str, count: int) -> AsyncIterator[list[Any]]:
    """So many watchers of a run that have read one frame and read no more."""
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(count):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=NARROW))
            stream = RunServiceStub(channel).WatchRun(WatchRunRequest(run_id=run_id))
            assert isinstance(await stream.read(), WatchRunResponse)
            streams.append(stream)
        yield streams
        for stream in streams:
            stream.cancel()


def counts(before: Statistics, after: Statistics) -> tuple[int, ...]:
    """What a run cost the store: commits, events, syncs, hops."""
    return tuple(
        getattr(after, name) - getattr(before, name) for name in ("commits", "items", "events", "syncs", "hops")
    )


async def until_quiet(client: Client) -> int:
    """Wait until no run is at work, without watching one; gives the resident bytes of the daemon then."""
    async with asyncio.timeout(120):
        while (status := await client.daemon.status()).runs:
            await asyncio.sleep(0.05)
    return status.memory_bytes


async def test_the_commits_of_a_run_wait_for_none_of_its_watchers() -> None:  # W11 C087 row 48
    async with daemons.serve("sqlite", edge=PATIENT, limits=Limits(clean_seconds=3600)) as served:
        store = served.daemon.log.store
        begun = store.statistics()
        await served.client.stream(f"/delay 100 /say a /delay 0 {SAID}", run_id="alone").create()
        await until_quiet(served.client)
        alone = counts(begun, store.statistics())

        begun = store.statistics()
        await served.client.stream(f"/delay 100 /say a /delay 0 {SAID}", run_id="watched").create()
        async with stalled(served.client.address, "watched", 20) as streams:
            await until_quiet(served.client)
            watched = counts(begun, store.statistics())
            watching = served.daemon.edge.admission.statistics().in_flight[Load.WATCH]
            assert watching == 20, "each of them was still writing when the last commit was made"
            assert watched == alone, "and none of them cost a commit, a sync or a change of thread"
            rest = [await asyncio.wait_for(read_on(stream), 60) for stream in streams[:3]]
        events = await events_of(served.client.watch("watched"), seconds=60)

    assert kinds(events)[-1] == "run_completed"
    sequences = [event.sequence for event in events]
    for seen in rest:
        assert seen == sequences[-len(seen) :], "who reads on misses nothing of what came meanwhile"


async def read_on(stream: Any) -> list[int]:
    """Read what is left of a stream, to its OK: the sequences of its events."""
    seen: list[int] = []
    while (frame := await stream.read()) is not grpc.aio.EOF:
        seen += [event.sequence for event in frame.events]
    assert await stream.code() == grpc.StatusCode.OK
    return seen


async def test_nothing_is_kept_for_a_watcher_that_does_not_read(tmp_path: Path) -> None:  # W9 C087 row 48
    watchers = 40
    async with running(tmp_path, config="[server]\nwrite_seconds = 120\n") as daemon, Client(daemon.address) as client:

        async def memory_after(run_id: str, count: int) -> int:
            """Resident bytes of the daemon when a run has ended that so many stalled watchers look at."""
            await client.stream(f"/delay 100 /say a /delay 0 {SAID}", run_id=run_id).create()
            async with stalled(daemon.address, run_id, count):
                return await until_quiet(client)

        for number in range(6):
            before = await memory_after(f"alone-{number}", 0)
        grown_mib = (await memory_after("watched", watchers) - before) / 2**20

    # The runs before have brought it to its size; each watcher has about 3 MiB before it that it does not read.
    assert grown_mib < watchers * 1.0, f"{grown_mib:.1f} MiB more for {watchers} watchers"
