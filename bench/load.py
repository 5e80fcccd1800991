"""Loads: so many callers at once for so many seconds, in the client's process, through the generated stubs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc

from behest.v1 import run_service_pb2 as pb
from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_service_pb2_grpc import RunServiceStub
from behest.v1.run_spec_pb2 import RunSpec

OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 16 << 20))


@asynccontextmanager
async def runs(address: str) -> AsyncIterator[RunServiceStub]:
    """RunService over a connection of its own."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        yield RunServiceStub(channel)


def order(text: str) -> RunSpec:
    """An order of one text."""
    return RunSpec(input=[Part(text=TextPart(text=text))])


async def stream(stub: RunServiceStub, text: str = "hello brave new world") -> list[pb.StreamRunResponse]:
    """Stream a run to its end."""
    return [frame async for frame in stub.StreamRun(pb.StreamRunRequest(spec=order(text)))]


async def first_delta(stub: RunServiceStub, text: str) -> float:
    """Seconds from the order to the first delta; the run is then left."""
    call = stub.StreamRun(pb.StreamRunRequest(spec=order(text)))
    begun = time.perf_counter()
    try:
        async for frame in call:
            if frame.deltas:
                return time.perf_counter() - begun
    finally:
        call.cancel()
    raise RuntimeError("the run ended without a delta")


async def rate(once: Callable[[], Awaitable[object]], callers: int, seconds: float) -> float:
    """Calls a second of so many callers at once."""
    end = time.perf_counter() + seconds
    done = 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await once()
            done += 1

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(caller())
    return done / (time.perf_counter() - begun)


async def times(once: Callable[[], Awaitable[float]], callers: int, count: int) -> list[float]:
    """The figures of so many calls by so many callers at once, ascending."""
    found: list[float] = []

    async def caller() -> None:
        while len(found) < count:
            found.append(await once())

    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(caller())
    return sorted(found)
