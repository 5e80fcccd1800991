"""A flood: ten times as many orders as the daemon can do, sent whether or not they are answered, by one of two tenants.

What counts: whether everything that was accepted is done, how much is done meanwhile beside the best that was seen, how
quickly the others are turned away, how quickly a run is cancelled amid it, and what the other tenant feels of it. The
runs wait for their model for most of their time, as runs do, so that capacity is in places and not in processors.
"""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from behest.v1 import event_service_pb2
from behest.v1 import run_service_pb2 as pb
from behest.v1.event_service_pb2_grpc import EventServiceStub
from behest.v1.run_service_pb2_grpc import RunServiceStub
from behest.v1.run_state_pb2 import RunState
from bench.figures import Figures
from bench.load import OPTIONS, order
from bench.processes import Process, daemon

FLOORS = {"flood_goodput_vs_peak": 0.6, "flood_quiet_tenant_vs_alone": 0.25, "flood_shed_vs_accepted": 0.8}
ACTIVE, QUEUED = 12, 24
WORK = "/delay 100 /say done now"
"""About a fifth of a second, in two pieces."""
FACTOR = 10
TENANTS = ("flooder", "quiet")
ENDED = {RunState.RUN_STATE_COMPLETED, RunState.RUN_STATE_CANCELLED}


def token(tenant: str) -> str:
    """The token of a tenant: of this benchmark, and worth nothing elsewhere."""
    return f"behest_{tenant.rjust(8, 'a')[:8]}_{'x' * 43}"


def configuration() -> str:
    """Two tenants, and few places."""
    lines = ["[limits]", f"active_runs = {ACTIVE}", f"queued_runs = {QUEUED}"]
    for tenant in TENANTS:
        text = token(tenant)
        lines += ["[[auth.tokens]]", f'id = "{text.split("_")[1]}"', f'principal = "{tenant}"', 'role = "user"']
        lines += [f'namespace = "{tenant}"', f'hash = "sha256:{hashlib.sha256(text.encode()).hexdigest()}"']
    return "\n".join(lines) + "\n"


@dataclass(slots=True)
class Tenant:
    """One tenant's connection."""

    stub: RunServiceStub
    events: EventServiceStub
    metadata: tuple[tuple[str, str], ...]

    async def create(self) -> str:
        """Order a run, and give its id."""
        request = pb.CreateRunRequest(spec=order(WORK))
        return (await self.stub.CreateRun(request, metadata=self.metadata, timeout=30)).run.id

    async def stream(self) -> float:
        """Seconds from an order to the end of its run."""
        begun = time.perf_counter()
        request = pb.StreamRunRequest(spec=order(WORK))
        async for _ in self.stub.StreamRun(request, metadata=self.metadata, timeout=60):
            pass
        return time.perf_counter() - begun

    async def states(self) -> dict[str, int]:
        """The states of all runs, by id."""
        found: dict[str, int] = {}
        page = pb.ListRunsRequest(page_size=1_000)
        while True:
            answer = await self.stub.ListRuns(page, metadata=self.metadata, timeout=30)
            found |= {run.id: run.state for run in answer.runs}
            if not answer.next_page_token:
                return found
            page.page_token = answer.next_page_token


@asynccontextmanager
async def tenant(process: Process, name: str) -> AsyncIterator[Tenant]:
    """A tenant with a connection of its own."""
    async with grpc.aio.insecure_channel(process.address, options=OPTIONS) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        metadata = (("authorization", f"Bearer {token(name)}"),)
        yield Tenant(RunServiceStub(channel), EventServiceStub(channel), metadata)


@dataclass(slots=True)
class Found:
    """What a flood led to. Times in seconds."""

    accepted: list[str] = field(default_factory=list)
    accepted_seconds: list[float] = field(default_factory=list)
    shed_seconds: list[float] = field(default_factory=list)
    other: int = 0
    cancel_seconds: list[float] = field(default_factory=list)
    quiet_seconds: list[float] = field(default_factory=list)
    done: int = 0
    late_seconds: float = 0.0
    """How far the generator was behind at worst."""


async def flood(flooder: Tenant, rate: float, seconds: float, found: Found) -> None:
    """Order at a rate, come what may."""

    async def one() -> None:
        begun = time.perf_counter()
        try:
            run_id = await flooder.create()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                found.shed_seconds.append(time.perf_counter() - begun)
            else:
                found.other += 1
        else:
            found.accepted_seconds.append(time.perf_counter() - begun)
            found.accepted.append(run_id)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            ahead = begun + number / rate - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            else:
                found.late_seconds = max(found.late_seconds, -ahead)
            tasks.create_task(one())


async def cancel(flooder: Tenant, found: Found) -> None:
    """Cancel one of the last accepted runs again and again."""
    while True:
        await asyncio.sleep(0.1)
        if not found.accepted:
            continue
        begun = time.perf_counter()
        request = pb.CancelRunRequest(run_id=found.accepted[-1])
        await flooder.stub.CancelRun(request, metadata=flooder.metadata, timeout=30)
        found.cancel_seconds.append(time.perf_counter() - begun)


async def count(flooder: Tenant, found: Found) -> None:
    """Count the runs that are completed from now on."""
    request = event_service_pb2.WatchEventsRequest(only_new=True, kinds=["run_completed"])
    async for frame in flooder.events.WatchEvents(request, metadata=flooder.metadata):
        found.done += len(frame.events)


async def again(once: Callable[[], Awaitable[float]], found: list[float]) -> None:
    """Do something again and again."""
    while True:
        found.append(await once())


async def during(seconds: float, *others: Awaitable[None]) -> None:
    """Let others go on for so long, or for as long as the first of them."""
    async with asyncio.TaskGroup() as tasks:
        made = [tasks.create_task(_of(other)) for other in others]
        if seconds:
            await asyncio.sleep(seconds)
        else:
            await made[0]
        for task in made:
            task.cancel()


async def _of(other: Awaitable[None]) -> None:
    await other


async def measured(process: Process, seconds: float) -> tuple[float, list[float], Found]:
    """The best rate of runs, how long a quiet tenant's take alone, and a flood of ten times that rate."""
    async with tenant(process, "flooder") as flooder, tenant(process, "quiet") as quiet:
        peak, alone = Found(), list[float]()
        await asyncio.gather(*(flooder.stream() for _ in range(8)))
        callers = [again(flooder.stream, []) for _ in range(ACTIVE)]
        await during(seconds, count(flooder, peak), *callers)
        await settled(flooder)
        await during(max(seconds / 2, 0.6), again(quiet.stream, alone))
        best = peak.done / seconds
        return best, alone, await flooded(flooder, quiet, FACTOR * best, seconds)


async def flooded(flooder: Tenant, quiet: Tenant, rate: float, seconds: float) -> Found:
    """Flood, and let the other tenant go on. Raises RuntimeError when anything that was accepted did not end well."""
    found = Found()
    others = (count(flooder, found), cancel(flooder, found), again(quiet.stream, found.quiet_seconds))
    await during(0, flood(flooder, rate, seconds, found), *others)
    await settled(flooder)
    states = await flooder.states()
    lost = [run_id for run_id in found.accepted if run_id not in states]
    broken = {states[run_id] for run_id in found.accepted if run_id in states} - ENDED
    if lost or broken or found.other:
        raise RuntimeError(f"of the accepted runs {len(lost)} are lost, {broken} is no end; {found.other} failed")
    return found


async def settled(flooder: Tenant) -> None:
    """Wait until all runs have ended."""
    async with asyncio.timeout(60):
        while True:
            if not set((await flooder.states()).values()) - ENDED:
                return
            await asyncio.sleep(0.1)


def percentile(found: list[float], part: float) -> float:
    """A percentile in milliseconds."""
    ordered = sorted(found)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)] * 1000 if ordered else 0.0


async def through(figures: Figures, rounds: int, seconds: float) -> None:
    """Flood a daemon so many times, and take the medians."""
    goodput, fair, quick = [], [], []
    with tempfile.TemporaryDirectory(prefix="behest-bench-") as folder:
        config = Path(folder) / "behestd.toml"
        config.write_text(configuration())
        for _ in range(rounds):
            with daemon("--config", str(config)) as process:
                best, alone, found = await measured(process, seconds)
            goodput.append(found.done / seconds / best)
            fair.append(statistics.median(alone) / statistics.median(found.quiet_seconds))
            quick.append(statistics.median(found.accepted_seconds) / statistics.median(found.shed_seconds))
    figures.note("flood: peak runs/s", best)
    figures.note("flood: orders/s", FACTOR * best)
    figures.note("flood: accepted", len(found.accepted))
    figures.note("flood: shed", len(found.shed_seconds))
    for name, times in (("shed", found.shed_seconds), ("cancel", found.cancel_seconds)):
        figures.note(f"flood: {name} p50 ms", percentile(times, 0.5))
        figures.note(f"flood: {name} p99 ms", percentile(times, 0.99))
    figures.note("flood: quiet tenant p50 ms alone", percentile(alone, 0.5))
    figures.note("flood: quiet tenant p50 ms in the flood", percentile(found.quiet_seconds, 0.5))
    figures.note("flood: generator behind by ms at worst", found.late_seconds * 1000)
    figures.ratio("flood_goodput_vs_peak", goodput)
    figures.ratio("flood_quiet_tenant_vs_alone", fair)
    figures.ratio("flood_shed_vs_accepted", quick)
