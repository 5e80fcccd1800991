"""Edges for tests: a real server on a free loopback port with the test's own handlers, and a real channel to it."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from behest.statuses import FirstStatus
from behest.v1 import artifact_service_pb2, daemon_service_pb2, registry_service_pb2, run_service_pb2
from behestd.service.call import Call
from behestd.service.server import Edge, Plan
from behestd.service.settings import Keepalive, Settings

GET = "/behest.v1.RunService/GetRun"
LIST = "/behest.v1.RunService/ListRuns"
CREATE = "/behest.v1.RunService/CreateRun"
CANCEL = "/behest.v1.RunService/CancelRun"
STREAM = "/behest.v1.RunService/StreamRun"
WATCH = "/behest.v1.RunService/WatchRun"
INFO = "/behest.v1.DaemonService/GetServerInfo"
WRITE = "/behest.v1.ArtifactService/WriteArtifact"
ATTACH = "/behest.v1.RegistryService/AttachServer"
QUIET = Settings(keepalive=Keepalive(interval_seconds=60))
CONTRACTS = (artifact_service_pb2, daemon_service_pb2, registry_service_pb2, run_service_pb2)

WATCHER = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
stream = channel.unary_stream("/behest.v1.RunService/WatchRun")(b"")
next(stream)
print("watching", flush=True)
sys.stdin.read()
"""

Handler = Callable[[Any, Call], Awaitable[Any]]


@asynccontextmanager
async def serving(handlers: dict[str, Handler], settings: Settings = QUIET, **plan: Any) -> AsyncIterator[Edge]:
    """Serve handlers on a free port, and stop without mercy."""
    edge = Edge(Plan(handlers, plan.pop("addresses", ("127.0.0.1:0",)), settings, **plan))
    await edge.start()
    try:
        yield edge
    finally:
        await edge.stop(0)


def connect(edge: Edge, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
    """Open a channel to the first address, shared with no other test."""
    return grpc.aio.insecure_channel(
        edge.addresses[0], options=(("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), *options)
    )


@asynccontextmanager
async def watching_process(edge: Edge) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a client of its own that has read one frame of a watch and reads no more; it is killed at the end."""
    pipe = asyncio.subprocess.PIPE
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WATCHER, edge.addresses[0], stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert client.stdout is not None
        assert await client.stdout.readline() == b"watching\n"
        yield client
    finally:
        if client.returncode is None:
            client.kill()
        await client.wait()


@dataclass
class Gate:
    """Two places to meet: a handler says that it is there, and waits until it may go on."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def pass_through(self) -> None:
        """Say that somebody is there, and wait."""
        self.reached.set()
        await self.opened.wait()


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """Wait for a call to fail, at most 30 s."""
    async with asyncio.timeout(30):
        try:
            answer = await (answered(call) if isinstance(call, grpc.aio.Call) else call)
        except grpc.aio.AioRpcError as exc:
            return exc
    raise AssertionError(f"answered {answer!r}")


async def answered(call: Any) -> Any:
    """Wait for the one answer of a call. Raises AioRpcError, with the status that the edge gave."""
    status = FirstStatus(call)
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise await status.instead_of(error) from None


async def drain(stream: Any) -> list[Any]:
    """Read a stream to its end, or what is left of it. Raises AioRpcError, with the status that the edge gave."""
    status = FirstStatus(stream)
    frames = []
    try:
        while (frame := await stream.read()) is not grpc.aio.EOF:
            frames.append(frame)
    except grpc.aio.AioRpcError as error:
        raise await status.instead_of(error) from None
    return frames


def reason(error: grpc.aio.AioRpcError) -> str:
    """The reason of the one ErrorInfo, empty when gRPC answered by itself. Its code must be that of the call."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = Status.FromString(value)
            assert (status.code, status.message) == (error.code().value[0], error.details())
            info = ErrorInfo()
            (packed,) = [detail for detail in status.details if detail.Is(ErrorInfo.DESCRIPTOR)]
            packed.Unpack(info)
            assert info.domain == "behest"
            return info.reason
    return ""


def metadata(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """The metadata of the one ErrorInfo."""
    (body,) = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    info = ErrorInfo()
    Status.FromString(body).details[0].Unpack(info)
    return dict(info.metadata)


async def until(holds: Callable[[], bool]) -> None:
    """Let other tasks run until something holds, at most 30 s."""
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)
