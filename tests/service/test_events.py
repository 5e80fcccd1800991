"""The events of all runs over a real channel: order, filters, cursors, resumption, heartbeats, the daemon's end."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from behest.v1.agent_pb2 import Agent
from behest.v1.event_pb2 import Event
from behest.v1.event_service_pb2 import WatchEventsRequest, WatchEventsResponse
from behest.v1.event_service_pb2_grpc import EventServiceStub
from behestd.log.store import Change, Put, Record
from behestd.service.events import Events, payload_number
from behestd.service.scopes import Caller
from tests.daemons import Served, serve
from tests.runs.scenes import OPEN, PURE, events_of, tools
from tests.service.edges import connect, failure, metadata, reason, serving


async def ran(served: Served, text: str = "hello", **order: Any) -> list[Event]:
    return await events_of(await served.client.run(text, **order))


@asynccontextmanager
async def watching(served: Served, **request: Any) -> AsyncIterator[Any]:
    stream = served.client.stubs.events.WatchEvents(WatchEventsRequest(**request))
    try:
        async with asyncio.timeout(30):
            yield stream
    finally:
        stream.cancel()


async def caught_up(stream: Any) -> tuple[list[Event], str]:
    """Read until the end of the log is reached; gives the events and the last cursor."""
    events: list[Event] = []
    while True:
        frame: WatchEventsResponse = await stream.read()
        events += frame.events
        assert frame.cursor
        if frame.caught_up:
            return events, frame.cursor


async def seen(served: Served, **request: Any) -> list[Event]:
    async with watching(served, **request) as stream:
        return (await caught_up(stream))[0]


def by_run(events: list[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        found[event.run_id].append(event)
    return dict(found)


async def test_all_events_come_each_runs_in_order_and_byte_for_byte(stored: Served) -> None:  # C088
    logs = [await ran(stored, f"run {number}") for number in range(5)]
    found = by_run(await seen(stored))
    assert list(found.values()) == logs
    for events in found.values():
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_none_is_missed_or_repeated_by_a_watcher_that_comes_and_goes(stored: Served) -> None:  # C088
    chance = random.Random(7)
    runs = 24
    got: list[Event] = []

    async def order() -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(runs):
                tasks.create_task(ran(stored, f"/words {number}"))

    def ends() -> int:
        return sum(event.WhichOneof("payload") == "run_completed" for event in got)

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(order())
        cursor = ""
        while ends() < runs:
            async with watching(stored, after_cursor=cursor) as stream:
                for _ in range(chance.randint(1, 4)):
                    frame = await stream.read()
                    got += frame.events
                    cursor = frame.cursor
                    if ends() == runs:
                        break
    found = by_run(got)
    assert len(found) == runs
    for events in found.values():
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert by_run(await seen(stored)) == found


async def test_what_comes_next_is_sent_as_it_is_committed(served: Served) -> None:
    await ran(served)
    async with watching(served, only_new=True) as stream:
        assert await caught_up(stream) == ([], (await _cursor_now(served)))
        log = await ran(served, "second")
        got: list[Event] = []
        while len(got) < len(log):
            got += (await stream.read()).events
        assert got == log


async def _cursor_now(served: Served) -> str:
    async with watching(served) as stream:
        return (await caught_up(stream))[1]


async def test_filters_let_only_matching_events_through(served: Served) -> None:  # C088
    record = Record("default", "agent", "helper", Agent(id="helper", tools=["*"]).SerializeToString())
    await served.daemon.log.commit(Change(puts=(Put(record),)))
    first = await ran(served, labels={"team": "a", "stage": "test"})
    second = await ran(served, labels={"team": "a"})
    third = await ran(served, agent_id="helper")
    assert await seen(served, session_ids=[second[0].session_id]) == second
    assert await seen(served, session_ids=[first[0].session_id, third[0].session_id]) == first + third
    assert await seen(served, agent_ids=["helper"]) == third
    assert await seen(served, labels={"team": "a"}) == first + second
    assert await seen(served, labels={"team": "a", "stage": "test"}) == first
    kinds = ["run_completed", "run_created"]
    expected = [event for event in first + second + third if event.WhichOneof("payload") in kinds]
    assert await seen(served, kinds=kinds) == expected
    assert await seen(served, kinds=["run_completed"], labels={"team": "a"}, agent_ids=["helper"]) == []


async def test_a_cursor_moves_past_what_the_filters_left_out(served: Served) -> None:
    async with watching(served, kinds=["tool_started"]) as stream:
        _, before = await caught_up(stream)
    log = await ran(served)
    async with watching(served, kinds=["tool_started"], after_cursor=before) as stream:
        events, after = await caught_up(stream)
    assert (events, after != before) == ([], True)
    assert len(log) > 1


async def test_a_long_history_comes_in_frames_and_says_when_it_is_over() -> None:
    def large() -> str:
        return "x" * 40_000

    async with serve("sqlite", tools=tools((large, PURE)), operator=OPEN) as served:
        calls = "\n".join(["/tool large"] * 8)
        log = [event for _ in range(3) for event in await ran(served, calls)]
        async with watching(served) as stream:
            frames = [await stream.read()]
            while not frames[-1].caught_up:
                frames.append(await stream.read())
    assert len(frames) > 1
    assert [event for frame in frames for event in frame.events] == log


async def test_a_silent_stream_has_heartbeats_with_its_cursor() -> None:
    async with serve(heartbeat_seconds=0.05) as served:
        await ran(served)
        async with watching(served, session_ids=["ses_other"]) as stream:
            first = await stream.read()
            second = await stream.read()
            assert (list(second.events), second.cursor, second.caught_up) == ([], first.cursor, True)


async def test_a_stranger_sees_no_event_and_cannot_use_the_cursor(served: Served) -> None:  # C140
    await ran(served)
    cursor = await _cursor_now(served)
    handlers = dict(Events(served.daemon.log, served.daemon.rooms.watches).handlers())
    eve = Caller("eve", "other", frozenset({"runs:read"}))
    async with serving(handlers, authenticate=lambda context: eve) as edge, connect(edge) as channel:
        watch = EventServiceStub(channel).WatchEvents
        first = watch(WatchEventsRequest())
        frame = await first.read()
        assert (list(frame.events), frame.caught_up) == ([], True)
        await ran(served)
        first.cancel()
        assert reason(await failure(watch(WatchEventsRequest(after_cursor=cursor)).read())) == "WATCH_CURSOR_INVALID"


async def test_a_drain_ends_the_stream_and_its_cursor_goes_on(tmp_path: Any) -> None:
    async with serve("sqlite", tmp_path) as served:
        log = await ran(served)
        stream = served.client.stubs.events.WatchEvents(WatchEventsRequest())
        events, cursor = await caught_up(stream)
        assert events == log
        served.daemon.rooms.watches.drain()
        served.daemon.log.changes.wake()
        error = await failure(stream.read())
        assert reason(error) == "RUNTIME_DRAINING"
    async with serve("sqlite", tmp_path) as served:
        second = await ran(served, "after the restart")
        assert await seen(served, after_cursor=cursor) == second


@pytest.mark.parametrize("cursor", ["x", "AAAA", "ü", "A" * 27, "A" * 500])
async def test_a_cursor_that_was_not_made_here_is_refused(served: Served, cursor: str) -> None:
    async with watching(served, after_cursor=cursor) as stream:
        error = await failure(stream.read())
    assert (reason(error), error.code()) == ("WATCH_CURSOR_INVALID", grpc.StatusCode.INVALID_ARGUMENT)
    assert metadata(error)["field"] == "after_cursor"


async def test_a_cursor_of_other_filters_is_refused(served: Served) -> None:
    cursor = await _cursor_now(served)
    async with watching(served, after_cursor=cursor, kinds=["run_created"]) as stream:
        assert reason(await failure(stream.read())) == "WATCH_CURSOR_INVALID"


async def test_a_cursor_ahead_of_the_log_is_refused() -> None:
    async with serve() as served:
        await ran(served)
        cursor = await _cursor_now(served)
    async with serve() as other, watching(other, after_cursor=cursor) as stream:
        assert reason(await failure(stream.read())) == "WATCH_AHEAD"


async def test_a_cursor_before_deleted_events_is_refused(stored: Served) -> None:
    start = await _cursor_now(stored)
    log = await ran(stored)
    await stored.client.runs.delete(log[0].run_id)
    async with watching(stored, after_cursor=start) as stream:
        assert reason(await failure(stream.read())) == "WATCH_COMPACTED"
    rest = await ran(stored)
    assert await seen(stored) == rest


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"kinds": ["run_created", "run_exploded"]}, "kinds[1]"),
        ({"session_ids": ["a b"]}, "session_ids[0]"),
        ({"session_ids": ["s"] * 257}, "session_ids"),
        ({"agent_ids": [""]}, "agent_ids[0]"),
        ({"labels": {"": "x"}}, "labels"),
        ({"only_new": True, "after_cursor": "x"}, "only_new"),
    ],
)
async def test_a_bad_filter_is_refused_by_its_field(served: Served, request_: dict[str, Any], field: str) -> None:
    async with watching(served, **request_) as stream:
        error = await failure(stream.read())
    assert (reason(error), metadata(error)["field"]) == ("REQUEST_INVALID", field)


async def test_the_kind_of_an_event_is_read_from_its_bytes_without_parsing(served: Served) -> None:
    log = await ran(served)
    numbers = {field.name: field.number for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields}
    for event in log:
        assert payload_number(event.SerializeToString()) == numbers[event.WhichOneof("payload") or ""]
    assert payload_number(b"") == 0
    for data in (b"\x0a", b"\x0a\xff", b"\xff\xff\xff", b"\x09", b"\x0d\x00"):
        assert payload_number(data) >= 0
