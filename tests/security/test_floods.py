"""Messages that are too large, too many, too deep, or more than they say: what a real daemon spends on them is bounded.

The short forms are the same as the long ones, with fewer of everything.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from behest.client import Client
from behest.v1.artifact_service_pb2 import WriteArtifactHeader, WriteArtifactRequest
from behest.v1.message_pb2 import Part, TextPart, ToolResult
from behest.v1.run_service_pb2 import CreateRunRequest
from behest.v1.run_spec_pb2 import RunSpec
from tests.daemon_process import DaemonProcess, running
from tests.daemons import rejection, serve, writes
from tests.fuzz.http2 import (
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MOST_BYTES,
    NO_FLAGS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    connected,
    frame,
    message,
    opened,
    request_fields,
)

MIB = 1024 * 1024
CREATE = b"/behest.v1.RunService/CreateRun"
WATCH = b"/behest.v1.EventService/WatchEvents"
START = PREFACE + frame(SETTINGS, NO_FLAGS, 0)
BOMB_BYTES = 56 * MIB
GROWN_BYTES = 96 * MIB
"""What a daemon may take more than at rest: a few messages of the largest size, and buffers of connections."""


@dataclass(frozen=True, slots=True)
class Meter:
    """What a process has used."""

    pid: int

    def resident(self) -> int:
        """Most bytes of memory at once since it was forgotten last."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def forget(self) -> int:
        """Begin to count anew; gives what it has now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return self.resident()

    def cpu_seconds(self) -> float:
        """Time of processors, in all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def bounded(daemon: DaemonProcess, cpu_seconds: float) -> AsyncIterator[None]:
    """Expect a daemon to use little meanwhile, and to serve afterwards."""
    meter = Meter(daemon.pid)
    before, spent = meter.forget(), meter.cpu_seconds()
    yield
    async with Client(daemon.address) as client, asyncio.timeout(30):
        await (await client.run("hello")).result()
    assert meter.resident() - before < GROWN_BYTES
    assert meter.cpu_seconds() - spent < cpu_seconds


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DaemonProcess]:
    """One daemon for all of them: what a flood leaves behind would be seen by the next."""
    async with running(tmp_path_factory.mktemp("floods")) as process:
        yield process


async def bombs(daemon: DaemonProcess, count: int) -> None:
    """Compressed requests a thousand times as large as they are sent, many at once: none is read beyond the limit."""
    forms: dict[bytes, Callable[[], zlib._Compress]] = {
        b"gzip": lambda: zlib.compressobj(9, wbits=31),
        b"deflate": lambda: zlib.compressobj(9),
    }
    for name, make in forms.items():
        squeezer = make()
        bomb = squeezer.compress(bytes(BOMB_BYTES)) + squeezer.flush()
        # It fits what a new connection takes before anybody reads.
        assert len(bomb) < 65_000
        async with bounded(daemon, cpu_seconds=10 + count), asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(squeezed(daemon.address, name, bomb)) for _ in range(count)]
        assert all(b"grpc-status" in end.result() for end in ends)


async def squeezed(address: str, encoding: bytes, body: bytes) -> bytes:
    """Send one compressed message by hand, and read what comes until the call has ended."""
    wrapped = message(body, compressed=1)
    pieces = [wrapped[at : at + MOST_BYTES] for at in range(0, len(wrapped), MOST_BYTES)]
    told = bytearray()
    async with connected(address) as (reader, writer), asyncio.timeout(60):
        writer.write(START + frame(HEADERS, END_HEADERS, 1, request_fields(CREATE, ((b"grpc-encoding", encoding),))))
        for piece in pieces[:-1]:
            writer.write(frame(DATA, NO_FLAGS, 1, piece))
        writer.write(frame(DATA, END_STREAM, 1, pieces[-1]))
        while b"grpc-status" not in told and (more := await reader.read(65_536)):
            told += more
    return bytes(told)


async def test_messages_that_are_a_thousand_times_what_they_weigh_are_read_to_the_limit_only(  # S13
    daemon: DaemonProcess,
) -> None:
    await bombs(daemon, 8)


async def test_a_message_that_is_more_than_it_says_is_read_to_the_limit_only(daemon: DaemonProcess) -> None:  # S13
    """Over the client library, which compresses itself; the typed end is the one of a message that is too large."""
    async with bounded(daemon, cpu_seconds=15):
        async with grpc.aio.insecure_channel(daemon.address, [("grpc.max_send_message_length", -1)]) as channel:
            for form in (grpc.Compression.Gzip, grpc.Compression.Deflate):
                call = channel.unary_unary(CREATE.decode())(bytes(64 * MIB), compression=form, timeout=30)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            # What is compressed and within the limit is taken: it is not compression that is refused.
            spec = RunSpec(input=[Part(text=TextPart(text="hello " * 1_000))])
            body = CreateRunRequest(spec=spec).SerializeToString()
            assert len(gzip.compress(body)) < len(body)
            assert await channel.unary_unary(CREATE.decode())(body, compression=grpc.Compression.Gzip)


async def tiny(daemon: DaemonProcess, count: int) -> None:
    """An upload of so many messages of one byte."""

    def pieces() -> Iterator[WriteArtifactRequest]:
        yield WriteArtifactRequest(header=WriteArtifactHeader(name="tiny"))
        for _ in range(count):
            yield WriteArtifactRequest(chunk=b"x")

    async with bounded(daemon, cpu_seconds=10 + count / 500):
        async with Client(daemon.address) as client, asyncio.timeout(500):
            made = await client.stubs.artifacts.WriteArtifact(pieces())
            assert made.artifact.size_bytes == count


async def resets(daemon: DaemonProcess, count: int) -> None:
    """Calls that are given up as soon as they are begun, on one connection, as fast as they can be written."""
    async with bounded(daemon, cpu_seconds=10 + count / 100):
        sent = 0
        while sent < count:
            # A daemon may hang up on whoever does this.
            sent += await reset(daemon.address, min(count - sent, 5_000))


async def reset(address: str, count: int) -> int:
    async with connected(address) as (reader, writer), asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(swallow(reader))
        writer.write(START)
        for number in range(count):
            stream = 2 * number + 1
            path = WATCH if number % 2 else CREATE
            writer.write(opened(stream, path) + frame(RST_STREAM, NO_FLAGS, stream, CANCEL))
            try:
                await writer.drain()
            except ConnectionError:
                break
        reading.cancel()
    return count


async def swallow(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(65_536):
            pass
    except ConnectionError:
        pass


async def test_many_tiny_messages_cost_what_they_weigh(daemon: DaemonProcess) -> None:  # S13
    await tiny(daemon, 3_000)


async def test_calls_that_are_given_up_at_once_cost_little(daemon: DaemonProcess) -> None:  # S13
    await resets(daemon, 2_000)


@pytest.mark.proof
@pytest.mark.timeout(900)
async def test_a_hundred_thousand_tiny_messages_cost_what_they_weigh(daemon: DaemonProcess) -> None:  # S13
    await tiny(daemon, 100_000)


@pytest.mark.proof
@pytest.mark.timeout(900)
async def test_fifty_thousand_calls_that_are_given_up_at_once_cost_little(daemon: DaemonProcess) -> None:  # S13
    await resets(daemon, 50_000)


@pytest.mark.proof
@pytest.mark.timeout(600)
async def test_a_hundred_of_them_at_once_are_read_to_the_limit_only(daemon: DaemonProcess) -> None:  # S13
    await bombs(daemon, 100)


def deep(levels: int) -> bytes:
    """A request in which parts hold results that hold parts."""
    part = Part(text=TextPart(text="x")).SerializeToString()
    for _ in range(levels):
        result = b"\x1a" + varint(len(part)) + part
        part = bytes([Part.DESCRIPTOR.fields_by_name["tool_result"].number << 3 | 2]) + varint(len(result)) + result
    assert ToolResult.DESCRIPTOR.fields_by_name["parts"].number == 3
    spec = bytes([RunSpec.DESCRIPTOR.fields_by_name["input"].number << 3 | 2]) + varint(len(part)) + part
    return bytes([CreateRunRequest.DESCRIPTOR.fields_by_name["spec"].number << 3 | 2]) + varint(len(spec)) + spec


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


async def test_messages_that_nest_without_end_are_malformed_and_leave_nothing() -> None:  # S13
    """Known fields, and groups of unknown ones, which a reader follows as well."""
    async with serve("sqlite") as served:
        before = writes(served)
        create = served.channel.unary_unary(CREATE.decode())
        for body in (deep(200), deep(20_000), b"\xfb\x01" * 100_000, b"\xfb\x01" * 50_000 + b"\xfc\x01" * 50_000):
            found = await rejection(create(body))
            assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED")
        # As deep as it makes sense it is read, and refused for what it says.
        assert (await rejection(create(deep(20)))).reason == "REQUEST_INVALID"
        assert writes(served) == before


async def test_a_message_over_the_limit_and_metadata_over_the_limit_leave_nothing() -> None:  # S13
    async with serve("sqlite") as served:
        before = writes(served)
        spec = RunSpec(input=[Part(text=TextPart(text="x" * 4 * MIB))])
        body = CreateRunRequest(spec=spec).SerializeToString()
        create = served.channel.unary_unary(CREATE.decode())
        for call in (
            create(body),
            create(b"", metadata=(("x", "y" * 17_000),)),
            create(b"", metadata=[("x", "y" * 90)] * 200),
        ):
            assert (await rejection(call)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert writes(served) == before
