"""Below gRPC: whatever bytes come over a connection, the daemon serves the others, and lets go of what was sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_service_pb2 import CreateRunRequest
from behest.v1.run_spec_pb2 import RunSpec
from behestd.log import fsck
from behestd.service import server
from tests import daemons
from tests.daemons import Served, writes
from tests.fuzz import scene
from tests.fuzz.http2 import (
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MOST_BYTES,
    NO_FLAGS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    message,
    opened,
    request_fields,
    send,
)
from tests.service.edges import until

CREATE, INFO, WATCH = (
    b"/behest.v1." + name
    for name in (b"RunService/CreateRun", b"DaemonService/GetServerInfo", b"EventService/WatchEvents")
)
WRITE = b"/behest.v1.ArtifactService/WriteArtifact"
START = PREFACE + frame(SETTINGS, NO_FLAGS, 0)
ALL = END_HEADERS | END_STREAM
GOOD = CreateRunRequest(spec=RunSpec(input=[Part(text=TextPart(text="hello"))])).SerializeToString()
FLOOD = 500
"""Most of anything that one test sends."""


def begun(flags: int, *more: tuple[bytes, bytes], path: bytes = CREATE) -> bytes:
    """The headers of a call, with more than they need."""
    return frame(HEADERS, flags, 1, request_fields(path, more))


def called(*data: bytes, path: bytes = CREATE) -> list[bytes]:
    """A call that sends some frames of data, the last of which ends it."""
    ends = [NO_FLAGS] * (len(data) - 1) + [END_STREAM]
    return [START, opened(1, path), *(frame(DATA, flags, 1, body) for flags, body in zip(ends, data, strict=True))]


def flood(*pieces: bytes) -> Iterator[bytes]:
    """The same a few hundred times."""
    for _ in range(FLOOD):
        yield from pieces


def reset(path: bytes, *data: bytes) -> Iterator[bytes]:
    """Calls that are given up as soon as they are begun."""
    for stream in range(1, 2 * FLOOD, 2):
        yield opened(stream, path) + b"".join(frame(DATA, NO_FLAGS, stream, body) for body in data)
        yield frame(RST_STREAM, NO_FLAGS, stream, CANCEL)


CASES: dict[str, Sequence[bytes]] = {
    "nothing": [],
    "HTTP/1": [b"GET / HTTP/1.1\r\nHost: behest\r\n\r\n"],
    "TLS": [bytes.fromhex("16030100a5010000a10303") + b"\0" * 160],
    "noise": [bytes(range(256)) * 64],
    "half a preface": [PREFACE[:11]],
    "a wrong preface": [PREFACE.replace(b"2.0", b"3.0") + frame(SETTINGS, NO_FLAGS, 0)],
    "a preface alone": [PREFACE],
    "settings that are no pairs": [PREFACE, frame(SETTINGS, NO_FLAGS, 0, b"12345")],
    "impossible settings": [PREFACE, frame(SETTINGS, NO_FLAGS, 0, (5).to_bytes(2, "big") + b"\xff" * 4)],
    "half a frame": [START, frame(HEADERS, END_HEADERS, 1, b"abc", length=9)],
    "half headers": [START, frame(HEADERS, NO_FLAGS, 1, request_fields(CREATE)[:20])],
    "headers that never end": [START, begun(NO_FLAGS), *flood(frame(CONTINUATION, NO_FLAGS, 1, b""))],
    "headers that never end and grow": [START, begun(NO_FLAGS), *flood(frame(CONTINUATION, NO_FLAGS, 1, b"\0\1x\1y"))],
    "headers of noise": [START, frame(HEADERS, END_HEADERS, 1, bytes(range(256)))],
    "no path": [START, begun(ALL, path=b"")],
    "a path of noise": [START, opened(1, b"/\0\r\n/x", ends=True)],
    "a path that is long": [START, opened(1, b"/" + b"x" * 4000, ends=True)],
    "headers over the limit": [START, begun(ALL, (b"x", b"y" * 16_000))],
    "binary metadata that is none": [START, begun(ALL, (b"x-bin", b"!"))],
    "a timeout that is none": [START, begun(ALL, (b"grpc-timeout", b"soon"))],
    "a call without a message": [START, opened(1, CREATE, ends=True)],
    "a message that is cut": called(message(GOOD, size=len(GOOD) + 1)),
    "a message that is cut in its head": called(message(GOOD)[:3]),
    "a message that is said to be huge": called(message(GOOD, size=2**32 - 1)),
    "a message that is said to be compressed": called(message(GOOD, compressed=1)),
    "a message of no known form": called(message(GOOD, compressed=255)),
    "a message over the limit": called(*[message(b"x" * MOST_BYTES)[:MOST_BYTES]]),
    "more than one message": called(message(b"") + message(GOOD)[:-1], path=INFO),
    "an upload that is cut": called(message(b"\n\0") + message(b"\x12\x05abc"), path=WRITE)[:-1],
    "data for no call": [START, frame(DATA, NO_FLAGS, 1, b"x")],
    "data for the connection": [START, frame(DATA, NO_FLAGS, 0, b"x")],
    "a frame that is too large": [START, opened(1, CREATE), frame(DATA, NO_FLAGS, 1, b"x" * (MOST_BYTES + 1))],
    "a frame of no known kind": [START, frame(0xEE, 0xFF, 1, b"x")],
    "an even call": [START, opened(2, CREATE)],
    "calls in the wrong order": [START, opened(3, INFO, ends=True), opened(1, INFO, ends=True)],
    "a window that overflows": [START, opened(1, CREATE), frame(WINDOW_UPDATE, NO_FLAGS, 1, b"\x7f\xff\xff\xff") * 2],
    "a window of nothing": [START, opened(1, CREATE), frame(WINDOW_UPDATE, NO_FLAGS, 1, b"\0" * 4)],
    "good-bye and on": [START, frame(GOAWAY, NO_FLAGS, 0, b"\0" * 8), opened(1, INFO, ends=True)],
    "a flood of pings": [START, *flood(frame(PING, NO_FLAGS, 0, b"12345678"))],
    "a flood of settings": [START, *flood(frame(SETTINGS, NO_FLAGS, 0))],
    "a flood of empty frames": [START, opened(1, CREATE), *flood(frame(DATA, NO_FLAGS, 1))],
    "a flood of calls given up": [START, *reset(CREATE)],
    "a flood of calls given up after half a message": [START, *reset(CREATE, message(GOOD)[:-1])],
    "a flood of watches given up": [START, *reset(WATCH, message(b""))],
    "a flood of uploads given up": [START, *reset(WRITE, message(b"\n\0"))],
}  # fmt: skip


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A daemon on SQLite, sound at its end."""
    async with daemons.serve("sqlite", tmp_path / "data") as made:
        yield made
    assert fsck.check(tmp_path / "data").problems == ()


async def check(served: Served) -> None:
    """Check that a daemon answers others, and has let go of what was begun."""
    assert await scene.serves(served)
    admission = served.daemon.edge.admission
    await until(lambda: not any(admission.statistics().in_flight.values()))


async def test_bad_bytes_harm_nobody_and_leave_nothing(served: Served) -> None:  # S13
    for name, pieces in CASES.items():
        await send(served.daemon.addresses[0], pieces)
        assert await scene.serves(served), name
        assert writes(served) == 0, name
    await check(served)
    assert writes(served) == 0


async def test_bytes_that_are_right_are_understood(served: Served) -> None:
    """What the cases are made of would be a good call: they are not refused for something else."""
    before = writes(served)
    told = await send(served.daemon.addresses[0], called(message(GOOD)), look_seconds=0.5)
    assert b"run_" in told
    assert writes(served) > before


async def test_others_are_served_while_a_flood_goes_on(served: Served) -> None:  # S13
    address = served.daemon.addresses[0]
    names = ("a flood of calls given up", "a flood of watches given up", "a flood of pings", "half headers")
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(send(address, CASES[name], look_seconds=0.2))
        for _ in range(20):
            await (await served.client.run("hello")).result()
    await check(served)


async def test_a_path_that_is_no_utf_8_does_not_end_the_daemon(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the server of grpc.aio, which is made anew on the same port; whoever watches goes on where it was."""
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(server, "LEFT_SECONDS", 0.05)
    run = await served.client.run("/delay 20 " + "/say a b c d e f g h i j " * 5)
    address = served.daemon.addresses[0]
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(run.result())
        for path in (b"/\xff", b"/\xc3", b"\x80"):
            await send(address, [START, opened(1, path, ends=True)])
            await _back(served)
    assert watching.result().text.startswith("a b c")
    assert served.daemon.addresses[0] == address
    await check(served)


async def test_a_daemon_whose_server_was_ended_stops_all_the_same(tmp_path: Path) -> None:
    async with asyncio.timeout(10), daemons.serve("sqlite", tmp_path / "data") as served:
        await send(served.daemon.addresses[0], [START, opened(1, b"/\xff", ends=True)])


async def _back(served: Served) -> None:
    """Wait until a daemon serves, at most 5 s."""
    async with asyncio.timeout(5):
        while not await scene.serves(served):
            await asyncio.sleep(0.01)
