"""The promises of a watch, W1 to W13, held against frames as they come over a real channel."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.calls import Patience
from behest.client import Client
from behest.errors import BehestError, from_rpc
from behest.v1.delta_pb2 import Delta
from behest.v1.event_pb2 import Event
from behest.v1.run_service_pb2 import WatchRunRequest, WatchRunResponse
from behest.v1.run_service_pb2_grpc import RunServiceStub
from behestd.core.route import RoutePolicy
from behestd.service.settings import Settings
from behestd.tools.function import Context
from tests import daemons
from tests.daemons import Served, refused
from tests.log.items import Script
from tests.runs.scenes import PURE, TERMINAL, events_of, finished, kind_of, kinds, tools, until_kind

CLOSING = {"model_completed", "model_failed", "model_superseded"}


async def paint(context: Context, strokes: int) -> str:
    """Paint, showing each stroke."""
    for stroke in range(strokes):
        context.progress(f"stroke {stroke}")
        await asyncio.sleep(0.002)
    return "painted"


def open_stream(served: Served, run_id: str, after: int = 0) -> Any:
    return served.client.stubs.runs.WatchRun(WatchRunRequest(run_id=run_id, after_sequence=after))


async def frames_of(stream: Any, pause_seconds: float = 0.0) -> list[WatchRunResponse]:
    """Read a stream to its OK, slowly if need be."""
    frames = []
    async with asyncio.timeout(30):
        async for frame in read_all(stream):
            frames.append(frame)
            await asyncio.sleep(pause_seconds)
        assert await stream.code() == grpc.StatusCode.OK
    return frames


async def commits_of(served: Served, run_id: str) -> set[int]:
    """The last sequence of each commit of a run."""
    chunks = await served.daemon.log.store.chunks("default", run_id, 0, 1 << 30)
    return {chunk.last_sequence for chunk in chunks} | {0}


def check_frames(frames: list[WatchRunResponse], after: int, commits: set[int]) -> None:
    """Check W1, W2, W6, W7 and W8 over all frames of one stream."""
    open_attempt: tuple[int, int] | None = None
    for frame in frames:
        for event in frame.events:
            assert event.sequence == after + 1
            after += 1
            kind = kind_of(event)
            if kind == "model_requested":
                open_attempt = (event.model_requested.step, event.model_requested.attempt)
            elif kind in CLOSING:
                open_attempt = None
        assert after in commits, f"a frame ends at {after}, within a commit; commits end at {sorted(commits)}"
        assert frame.head_sequence >= after
        for delta in frame.deltas:
            if delta.WhichOneof("kind") != "tool_progress":
                assert (delta.step, delta.attempt) == open_attempt


SCRIPTS = [
    "/delay 2 /words 40",
    "/words 2000",
    "/delay 1 /cut 5 1 /say one two three four five six seven",
    '/delay 1 /say let me paint /tool paint {"strokes": 10} /next /delay 1 /say it is done',
    '/tool paint {"strokes": 3} /tool paint {"strokes": 5} /next /words 50',
    "/reasoning thinking it over /delay 1 /say here it is /finish length /next /say and there",
    "/fail UNAVAILABLE 1 /say late",
]


@pytest.mark.parametrize("pause_seconds", [0.0, 0.01])
@pytest.mark.parametrize("said", SCRIPTS)
async def test_frames_keep_order_commits_and_attempts(said: str, pause_seconds: float) -> None:  # W1 W2 W6 W7 W8
    retries = RoutePolicy((), base_seconds=0.01)
    async with daemons.serve(tools=tools((paint, PURE)), retries=retries) as served:
        run_id = await served.client.stream(said).create()
        frames = await frames_of(open_stream(served, run_id), pause_seconds)
        commits = await commits_of(served, run_id)

    check_frames(frames, 0, commits)
    assert kind_of(frames[-1].events[-1]) == "run_completed"
    assert sum(kind_of(event) in TERMINAL for frame in frames for event in frame.events) == 1


@pytest.mark.parametrize("pause_seconds", [0.0, 0.01])
async def test_frames_of_a_run_that_is_cancelled_in_the_middle_keep_whole_commits(pause_seconds: float) -> None:  # W7
    for number in range(10):
        async with daemons.serve() as served:
            run_id = await served.client.stream("/delay 1 /words 500").create()
            reading = asyncio.ensure_future(frames_of(open_stream(served, run_id), pause_seconds))
            await asyncio.sleep(0.01 + number / 500)
            await served.client.runs.send_input(run_id, "hurry")
            await served.client.runs.cancel(run_id)
            check_frames(await reading, 0, await commits_of(served, run_id))


async def test_a_watch_resumes_at_every_sequence_of_a_live_run(stored: Served) -> None:  # W4 C085
    handle = stored.client.stream("/delay 5 /say one two three /finish length /next /delay 5 /say four five six")
    run_id = await handle.create()

    async def resume(after: int) -> list[bytes]:
        while (await stored.client.runs.get(run_id)).head_sequence < after:
            await asyncio.sleep(0.002)
        return [event.SerializeToString() for event in await events_of(stored.client.watch(run_id, after=after))]

    whole, *rest = await asyncio.gather(*(resume(after) for after in range(10)))
    for after, tail in enumerate(rest, start=1):
        assert tail == whole[after:]
    again = [event.SerializeToString() for event in await events_of(stored.client.watch(run_id))]
    assert again == whole


async def test_reconnecting_after_every_event_gives_each_once(stored: Served) -> None:  # W4 C085
    run_id = await stored.client.stream("/delay 3 /say one two /finish length /next /delay 3 /say three").create()
    union: list[Event] = []
    async with asyncio.timeout(30):
        while not union or kind_of(union[-1]) not in TERMINAL:
            stream = open_stream(stored, run_id, len(union))
            async for frame in stream:
                if frame.events:
                    union.append(frame.events[0])
                    break
            stream.cancel()

    assert [event.sequence for event in union] == list(range(1, len(union) + 1))
    stored_events = await events_of(stored.client.watch(run_id))
    assert [event.SerializeToString() for event in union] == [event.SerializeToString() for event in stored_events]


async def test_a_watch_above_the_head_is_refused_and_never_waits(stored: Served) -> None:  # W5 row 51
    run = await stored.client.run("/stall")
    head = (await run.get()).head_sequence
    error = await refused(events_of(stored.client.watch(run.run_id, after=head + 5)))

    assert error.reason == "WATCH_AHEAD"
    assert error.code == grpc.StatusCode.OUT_OF_RANGE
    assert int(error.metadata["headSequence"]) == (await run.get()).head_sequence


async def test_a_watch_below_what_is_stored_is_refused(stored: Served) -> None:  # W5 row 51
    run = await stored.client.run("hi")
    events = await events_of(run)
    await stored.client.runs.delete(run.run_id)

    for after in range(len(events)):
        error = await refused(events_of(stored.client.watch(run.run_id, after=after)))
        assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "WATCH_COMPACTED")
        assert error.metadata["oldestSequence"] == str(len(events) + 1)
    frames = await frames_of(open_stream(stored, run.run_id, len(events)))
    assert [(list(frame.events), frame.head_sequence) for frame in frames] == [([], len(events))]


async def test_a_watch_of_a_run_that_has_ended_tells_the_head_and_ends(stored: Served) -> None:  # W6 W12
    run = await stored.client.run("hi")
    events = await events_of(run)
    frames = await frames_of(open_stream(stored, run.run_id, len(events)))

    assert [(list(frame.events), frame.head_sequence) for frame in frames] == [([], len(events))]


async def test_a_silent_run_has_a_heartbeat() -> None:  # W6
    async with daemons.serve(heartbeat_seconds=0.05) as served:
        run = await served.client.run("/stall")
        stream = open_stream(served, run.run_id)
        async with asyncio.timeout(30):
            frames = [await stream.read() for _ in range(5)]
        stream.cancel()

    assert len(frames[0].events) == 5
    assert all(not frame.events and frame.head_sequence == 5 for frame in frames[1:])


async def test_events_are_stored_before_anybody_sees_them(stored: Served) -> None:  # W3
    handle = stored.client.stream("/delay 2 /say a b c /finish length /next /say d")
    async with asyncio.timeout(30):
        async for event in handle.events():
            row = await stored.daemon.log.store.run("default", handle.run_id)
            assert row is not None
            assert row.last_sequence >= event.sequence


async def stored_run(served: Served, events: int, padding: int, run_id: str = "long", is_ended: bool = True) -> Script:
    """Put a long log into the store, by the log and not by a model."""
    script = Script(run_id=run_id, session_id=f"session-{run_id}")
    while script.last < events:
        batch = min(500, events - script.last)
        ends = is_ended and script.last + batch == events
        await served.daemon.log.commit(script.append(batch, padding=padding, is_ended=ends))
    return script


async def read_all(stream: Any) -> AsyncIterator[WatchRunResponse]:
    """Read what is left of a stream."""
    while (frame := await stream.read()) is not grpc.aio.EOF:
        yield frame


async def test_a_hundred_thousand_events_are_replayed_in_bounded_memory() -> None:  # C086
    async with daemons.serve("sqlite") as served:
        await stored_run(served, 20_000, 300, "short")
        await stored_run(served, 100_000, 300)
        await frames_replayed(served, "short")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.monotonic()
        last, replayed = await frames_replayed(served, "long")
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    assert last == 100_000
    assert replayed > 30 * 1024 * 1024
    assert grown_mib < 12, f"{grown_mib:.0f} MiB more for {replayed / 2**20:.0f} MiB of events"
    assert time.monotonic() - begun < 30


async def frames_replayed(served: Served, run_id: str) -> tuple[int, int]:
    """Replay a log: its last sequence, and its size in bytes."""
    last = size_bytes = 0
    async for frame in read_all(open_stream(served, run_id)):
        for event in frame.events:
            assert event.sequence == last + 1
            last += 1
        size_bytes += frame.ByteSize()
    return last, size_bytes


async def test_the_fifty_runs_of_a_session_are_each_replayed_whole(stored: Served) -> None:  # C086
    first = await stored.client.run("start")
    await first.result()
    session_id = (await first.get()).session_id
    runs = []
    for number in range(49):
        run = await stored.client.run(f"/say {number} /finish length /next /say more", session_id=session_id)
        await run.result()
        runs.append(run.run_id)
    logs = await asyncio.gather(*(events_of(stored.client.watch(run_id), seconds=20) for run_id in runs))

    assert all([event.sequence for event in log] == list(range(1, len(log) + 1)) for log in logs)
    assert [log[-1].run_completed.output.text for log in logs] == [f"{number}more" for number in range(49)]


async def stalled_at(served: Served, run_id: str) -> Any:
    """Open a watch, read one frame, and read no more."""
    stream = open_stream(served, run_id)
    assert await stream.read()
    return stream


async def test_a_client_that_does_not_read_is_let_go_and_resumes_without_a_gap() -> None:  # W10 C087 row 48
    async with daemons.serve("sqlite", edge=Settings(write_seconds=0.3, abort_seconds=0.2)) as served:
        await stored_run(served, 20_000, 2_000)
        stream = await stalled_at(served, "long")
        await asyncio.sleep(1.0)
        last, error = 0, None
        first = open_stream(served, "long")
        assert (await first.read()).events[0].sequence == 1
        first.cancel()
        try:
            async with asyncio.timeout(30):
                async for frame in read_all(stream):
                    last = frame.events[-1].sequence if frame.events else last
        except grpc.aio.AioRpcError as exc:
            error = from_rpc(exc)
        assert error is not None
        assert 0 < last < 20_000
        if error.reason:  # the abort itself blocks on a reader that does not read: then only the transport says so
            assert error.reason in ("WATCH_STALLED", "TRANSPORT_CANCELLED", "TRANSPORT_STREAM_BROKEN")
        rest = [event.sequence async for frame in read_all(open_stream(served, "long", last)) for event in frame.events]
        assert rest == list(range(last + 1, 20_001))


async def test_a_run_ends_while_all_its_neighbours_watchers_are_stalled() -> None:  # W11 C087 row 48
    async with daemons.serve() as served:
        await stored_run(served, 20_000, 2_000)
        stalled = [await stalled_at(served, "long") for _ in range(20)]
        # A run that waited for a watcher would wait for the 30 s after which a stalled one is cut.
        async with asyncio.timeout(30):
            await events_of(served.client.stream("/delay 2 /words 50", run_id="beside"), seconds=10)
        assert not any(stream.done() for stream in stalled)
        for stream in stalled:
            stream.cancel()


async def test_a_slow_watcher_gets_fewer_and_larger_deltas_and_the_whole_text(served: Served) -> None:  # W9 I16
    run_id = await served.client.stream("/delay 50 /say and so /delay 0 /words 100000").create()
    # A small window that does not grow, so that the reader's pace is what the daemon feels.
    options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
    async with grpc.aio.insecure_channel(served.daemon.addresses[0], options=options) as channel:
        stream = RunServiceStub(channel).WatchRun(WatchRunRequest(run_id=run_id))
        frames = [await stream.read()]
        await asyncio.sleep(1.0)
        frames += await frames_of(stream, 0.005)
    text = "".join(delta.text for frame in frames for delta in frame.deltas)

    completed = next(event for frame in frames for event in frame.events if kind_of(event) == "model_completed")
    assert text == completed.model_completed.message.parts[0].text.text
    assert len(text) > 900_000
    assert max(len(delta.text) for frame in frames for delta in frame.deltas) > 50_000


async def test_two_hundred_watchers_of_one_run_get_the_same(served: Served) -> None:  # W2 C090
    run_id = await served.client.stream("/delay 5 /words 10").create()
    logs = await asyncio.gather(*(events_of(served.client.watch(run_id), seconds=10) for _ in range(200)))

    first = [event.SerializeToString() for event in logs[0]]
    assert all([event.SerializeToString() for event in log] == first for log in logs)


async def test_a_drain_ends_a_watch_with_where_to_resume() -> None:  # W13
    async with daemons.serve(drain_seconds=0.0) as served:
        run = await served.client.run("/stall")
        stream = open_stream(served, run.run_id)
        frame = await stream.read()
        ending = asyncio.ensure_future(stream.read())
        served.daemon.rooms.watches.drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(ending, 5)

    error = from_rpc(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "RUNTIME_DRAINING")
    assert int(error.metadata["headSequence"]) == frame.events[-1].sequence


async def test_clients_of_the_sdk_see_a_restart_as_nothing_at_all(tmp_path: Any) -> None:  # N06 W4 W13
    async with daemons.serve("sqlite", tmp_path, drain_seconds=0.0) as served:
        address = served.client.address
        client = Client(address, patience=Patience(pause_seconds=0.2))
        handles = [client.stream(f"/delay 40 /words {10 + n}", run_id=f"r{n}") for n in range(50)]
        followed = [asyncio.ensure_future(events_of(handle, seconds=30)) for handle in handles]
        for handle in handles:
            await until_kind(served.client.watch(await handle.create()), "model_requested")
    async with daemons.serve("sqlite", tmp_path, addresses=[address]) as served:
        logs = await asyncio.gather(*followed)
        for number, log in enumerate(logs):
            assert [event.sequence for event in log] == list(range(1, len(log) + 1))
            assert log[-1].run_completed.output.text.endswith(f"word{10 + number}")
            stored = await events_of(served.client.watch(f"r{number}"))
            assert [event.SerializeToString() for event in stored] == [event.SerializeToString() for event in log]
        await client.close()


async def test_a_run_that_nobody_knows_cannot_be_watched(served: Served) -> None:
    error: BehestError = await refused(events_of(served.client.watch("nowhere")))
    assert error.reason == "RUN_NOT_FOUND"
    await finished(served.client, (await served.client.run("hi")).run_id)


async def test_a_watch_of_a_tool_that_is_called_again_after_a_restart_goes_on(tmp_path: Path) -> None:  # W4 W8
    opened = asyncio.Event()

    async def paint(context: Context) -> str:
        """Paint, showing it, until it may end."""
        context.progress("painting")
        await opened.wait()
        return "painted"

    offered = tools((paint, PURE))
    async with daemons.serve("sqlite", tmp_path, tools=offered, drain_seconds=0.0) as served:
        seen = await until_kind(await served.client.run("/tool paint {} /next /say done", run_id="r"), "tool_started")
    async with daemons.serve("sqlite", tmp_path, tools=offered) as served:
        shown = []
        async with asyncio.timeout(30):
            async for update in served.client.watch("r", after=len(seen)).updates():
                if isinstance(update, Delta) and update.HasField("tool_progress"):
                    shown.append((update.attempt, update.tool_progress.text))
                    opened.set()
        events = await events_of(served.client.watch("r", after=len(seen)))

    assert shown == [(2, "painting")]
    assert kinds(events)[-1] == "run_completed"
