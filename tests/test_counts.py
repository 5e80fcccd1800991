"""What a run costs, counted on the whole daemon with SQLite: commits, fsyncs, hops, reads, encodings, frames.

The counts of the store are its own, but for two that are taken from outside, so that its word can be trusted: the hops
by counting what reaches the event loop from other threads, the encodings by counting at the one place that encodes.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.v1.event_pb2 import Event
from behest.v1.event_service_pb2 import WatchEventsRequest
from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_service_pb2 import StreamRunRequest, WatchRunRequest, WatchRunResponse
from behest.v1.run_spec_pb2 import RunSpec
from behestd.log import sqlite_schema
from behestd.log.store import Statistics
from behestd.runtime import commit
from tests import daemons
from tests.daemons import Served
from tests.runs.scenes import OPEN, PURE, tools

ROOT = Path(__file__).resolve().parent.parent / "behestd"
STREAM, WATCH = "/behest.v1.RunService/StreamRun", "/behest.v1.RunService/WatchRun"
WATCH_EVENTS = "/behest.v1.EventService/WatchEvents"


@dataclass(frozen=True, slots=True)
class Cost:
    """What something cost the store."""

    commits: int
    syncs: int
    hops: int
    reads: int
    events: int


def difference(before: Statistics, after: Statistics) -> Cost:
    """What was added."""
    names = ("commits", "syncs", "hops", "reads", "events")
    return Cost(*(getattr(after, name) - getattr(before, name) for name in names))


def look_up(key: str) -> str:
    """Look a thing up."""
    return f"{key} is 42"


@asynccontextmanager
async def warm(home: Path | None = None) -> AsyncIterator[Served]:
    """A daemon on SQLite that has done a run of each kind, so that nothing is done for the first time."""
    async with daemons.serve("sqlite", home, tools=tools((look_up, PURE)), operator=OPEN) as served:
        for said in ("warm", '/tool look_up {"key": "it"} /next /say done'):
            await stream(served, said)
        yield served


async def stream(served: Served, said: str, *, run_id: str = "") -> list[bytes]:
    """Stream a run in a new session to its end, and give its frames as they came."""
    spec = RunSpec(input=[Part(text=TextPart(text=said))], run_id=run_id)
    return await frames(served.channel, STREAM, StreamRunRequest(spec=spec).SerializeToString())


async def frames(channel: grpc.aio.Channel, method: str, request: bytes) -> list[bytes]:
    """Read a stream to its end, at most 30 s."""
    async with asyncio.timeout(30):
        return [frame async for frame in channel.unary_stream(method)(request)]


async def cost(served: Served, said: str) -> Cost:
    """What a run costs that nothing runs beside."""
    store = served.daemon.log.store
    before = store.statistics()
    got = [WatchRunResponse.FromString(frame) for frame in await stream(served, said)]
    assert got[-1].events[-1].WhichOneof("payload") == "run_completed"
    return difference(before, store.statistics())


async def test_a_run_without_tools_is_two_commits_and_two_fsyncs_and_reads_nothing() -> None:
    async with warm() as served:
        for _ in range(3):
            found = await cost(served, "hello brave new world")
            assert found.commits == found.syncs == 2, "at most 3 by design"
            assert found.reads == 0
            assert found.events == 7


async def test_a_commit_is_two_hops_between_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    real: Callable[..., Any] = loop.call_soon_threadsafe
    back: list[str] = []

    def counted(callback: Callable[..., Any], *args: Any, **more: Any) -> Any:
        back.append(getattr(callback, "__qualname__", repr(callback)))
        return real(callback, *args, **more)

    async with warm() as served:
        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        found = await cost(served, "hello")
        monkeypatch.undo()

    # There by the writer's queue, and back: 2 hops a commit, at most 3 by design.
    assert len(back) == found.commits == found.hops, back


@pytest.mark.parametrize("calls", [1, 2, 4, 8])
async def test_a_turn_with_tools_is_at_most_one_commit_more_than_it_has_calls(calls: int) -> None:
    said = " ".join(f'/tool look_up {{"key": "{number}"}}' for number in range(calls)) + " /next /say done"
    async with warm() as served:
        plain = await cost(served, "hello")
        found = await cost(served, said)

    assert found.commits - plain.commits <= calls + 1
    assert found.syncs == found.commits
    assert found.events == plain.events + 2 * calls + 3
    assert found.reads == 0


async def test_a_run_whose_provider_does_not_wait_is_told_in_few_frames() -> None:
    async with warm() as served:
        for said in ("hi", "/say one two three four five six seven eight", "/words 200"):
            assert len(await stream(served, said)) <= 4


async def test_a_run_that_has_ended_leaves_nothing_to_the_garbage_collector() -> None:
    async with warm() as served:
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for said in ("hello", '/tool look_up {"key": "it"} /next /say done', "hello again"):
                await stream(served, said)
            gc.collect()
            left = {type(found).__qualname__ for found in gc.garbage if type(found).__module__.startswith("behestd.")}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()

    assert left == set()


class _Counted:
    """An event that counts how often it is encoded."""

    encoded: int = 0

    def __init__(self) -> None:
        object.__setattr__(self, "event", Event())

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "event"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "event"), name, value)

    def SerializeToString(self) -> bytes:
        """Encode the event, and count."""
        _Counted.encoded += 1
        return self.event.SerializeToString()


async def test_an_event_is_encoded_once_for_the_store_and_all_watchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "data"
    async with warm(home) as served:
        monkeypatch.setattr(_Counted, "encoded", 0)
        monkeypatch.setattr(commit, "Event", _Counted)
        before = served.daemon.log.store.statistics()
        mine = await stream(served, '/tool look_up {"key": "it"} /next /say done', run_id="watched")
        request = WatchRunRequest(run_id="watched").SerializeToString()
        theirs = await frames(served.channel, WATCH, request)
        all_events = served.channel.unary_stream(WATCH_EVENTS)(WatchEventsRequest().SerializeToString())
        async with asyncio.timeout(30):
            everybody = await all_events.read()
        all_events.cancel()
        found = difference(before, served.daemon.log.store.statistics())
    with closing(sqlite3.connect(home / sqlite_schema.FILE_NAME)) as store:
        query = "SELECT data FROM chunks JOIN runs ON runs.key = chunks.run WHERE run_id = 'watched' ORDER BY position"
        stored = [bytes(data) for (data,) in store.execute(query)]

    assert _Counted.encoded == found.events == 12
    assert len(stored) == found.commits
    for chunk in stored:
        assert chunk in b"".join(mine)
        assert chunk in b"".join(theirs)
        assert chunk in everybody


def test_events_are_made_by_the_commit_alone_and_not_taken_apart_on_their_way() -> None:
    makers = set()
    for path in ROOT.rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(isinstance(called, ast.Name) and called.id == "Event" for called in calls):
            makers.add(path.relative_to(ROOT).as_posix())
    assert makers == {"runtime/commit.py"}

    for name in ("service/watch.py", "log/log.py", "log/tail.py", "log/frames.py", "log/sqlite_reader.py"):
        text = (ROOT / name).read_text()
        assert "event_pb2" not in text
        assert "SerializeToString" not in text
