"""Benchmarks of tool calls through the daemon: one at a time, many over one server and eight; idle servers' memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager

import grpc

from behest.v1 import registry_service_pb2 as registry
from behest.v1 import run_service_pb2 as pb
from behest.v1 import tool_service_pb2 as tools
from behest.v1.registry_service_pb2_grpc import RegistryServiceStub
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_service_pb2_grpc import ToolServiceStub
from bench.figures import Figures
from bench.load import OPTIONS, rate, runs, stream, times
from bench.processes import Process, daemon, started

SERVERS = (1, 8)
IDLE_SERVERS = 1000
_SERVERS_A_CHANNEL = 50
_READY_SECONDS = 30.0


@contextmanager
def dialled(daemon_address: str, name: str) -> Iterator[Process]:
    """A tool server that listens. It is not registered yet."""
    with started("-m", "bench.tool_server") as process:
        yield process


@contextmanager
def attached(daemon_address: str, name: str) -> Iterator[Process]:
    """A tool server that is attached to the daemon."""
    with started("-m", "bench.tool_server", "--attach", daemon_address, "--name", name) as process:
        yield process


@asynccontextmanager
async def services(address: str) -> AsyncIterator[tuple[ToolServiceStub, RegistryServiceStub]]:
    """ToolService and RegistryService over a connection of their own."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        await asyncio.wait_for(channel.channel_ready(), _READY_SECONDS)
        yield ToolServiceStub(channel), RegistryServiceStub(channel)


async def call(stub: ToolServiceStub) -> None:
    """Call the tool and read its result. Raises RuntimeError when there is none."""
    request = tools.CallToolRequest(tool_name="echo", arguments_json='{"text": "hello"}')
    frames = [frame async for frame in stub.CallTool(request)]
    if frames[-1].result.is_error or not frames[-1].HasField("result"):
        raise RuntimeError("the call has no result")


async def _register(stub: RegistryServiceStub, name: str, address: str) -> None:
    server = Server(
        name=name,
        connection=ServerConnection.SERVER_CONNECTION_DIALLED,
        address=address,
        offers=[ServerOffer.SERVER_OFFER_TOOLS],
    )
    await stub.RegisterServer(registry.RegisterServerRequest(server=server))


async def _median_ms(once: Callable[[], Awaitable[object]], count: int) -> float:
    async def timed() -> float:
        begun = time.perf_counter()
        await once()
        return time.perf_counter() - begun

    found = await times(timed, 1, count)
    return found[len(found) // 2] * 1000


async def round_trips(figures: Figures, bare: Process, run_id: str, count: int, seconds: float) -> None:
    """One call at a time beside two bare unary calls, and calls a second of 64 callers over one server and eight."""
    for kind, serving in (("dialled", dialled), ("attached", attached)):
        with daemon() as ours, ExitStack() as stack:
            async with services(ours.address) as (stub, registrar), runs(bare.address) as plain:
                begun = 0
                for servers in SERVERS:
                    for number in range(begun, servers):
                        process = stack.enter_context(serving(ours.address, f"echo-{number}"))
                        if serving is dialled:
                            await _register(registrar, f"echo-{number}", process.address)
                    begun = servers
                    if servers == 1:
                        await call(stub)
                        mine = await _median_ms(lambda stub=stub: call(stub), count)
                        request = pb.GetRunRequest(run_id=run_id)
                        theirs = await _median_ms(lambda plain=plain, request=request: plain.GetRun(request), count)
                        figures.note(f"tool round trip ms, {kind}", mine)
                        figures.ratio(f"two_bare_calls_vs_tool_{kind}", [2 * theirs / mine])
                    figures.note(
                        f"tool calls/s, {servers} {kind}", await rate(lambda stub=stub: call(stub), 64, seconds)
                    )


async def idle_servers(figures: Figures, count: int = IDLE_SERVERS) -> None:
    """What an attached server that is not called holds in the daemon."""
    async with AsyncExitStack() as stack:
        ours = stack.enter_context(daemon())
        async with runs(ours.address) as stub:
            for _ in range(20):
                await stream(stub)
        before = ours.memory_bytes()
        streams = []
        for at in range(0, count, _SERVERS_A_CHANNEL):
            _, stub_ = await stack.enter_async_context(services(ours.address))
            for number in range(at, min(at + _SERVERS_A_CHANNEL, count)):
                hello = registry.AttachHello(server_name=f"idle-{number}")
                attach = stub_.AttachServer()
                await attach.write(registry.AttachServerRequest(hello=hello))
                streams.append(attach)
        for attach in streams:
            answer = await asyncio.wait_for(attach.read(), _READY_SECONDS)
            if answer is grpc.aio.EOF:
                raise RuntimeError(await attach.details())
        figures.note("attached server, idle, KiB", (ours.memory_bytes() - before) / count / 1024)
        for attach in streams:
            attach.cancel()
