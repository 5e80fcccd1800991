"""A daemon as the tool server of another daemon: what passes through it, and what is left of a call when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from behest.client import Client
from behest.v1.event_pb2 import Event
from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_service_pb2 import CreateRunRequest
from behest.v1.run_spec_pb2 import RunSpec
from tests.federation.stage import CLASSES, GIVE_UP_SECONDS, PREFIX, stage
from tests.runs.scenes import TERMINAL, kind_of, kinds, only, updates_of

pytestmark = pytest.mark.timeout(240)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that is gone after the test: the reserve of each store is 64 MiB."""
    with TemporaryDirectory() as directory:
        yield Path(directory)


def order(tool: str, mark: str, *, hold: bool = False) -> str:
    """What to say for a run that calls a tool of the far daemon."""
    held = "true" if hold else "false"
    return f'/tool {PREFIX}{tool} {{"mark": "{mark}", "hold": {held}}} /next /say done'


async def settled(client: Client, run_id: str) -> list[Event]:
    """Follow a run, over whatever happens to its daemon, until it has ended or waits for somebody's word."""
    events: list[Event] = []
    async with asyncio.timeout(GIVE_UP_SECONDS):
        async for event in client.watch(run_id).events():
            events.append(event)
            if kind_of(event) in TERMINAL or kind_of(event) == "run_waiting":
                return events
    raise AssertionError(f"{run_id} neither ended nor waits")


async def test_a_run_calls_a_tool_of_another_daemon_within_its_trace_and_its_deadline(home: Path) -> None:  # N05
    async with stage(home) as place, place.near.client() as client:
        said = [Part(text=TextPart(text=order("queryable", "m")))]
        request = CreateRunRequest(request_id="r", spec=RunSpec(run_id="run-1", input=said))
        parent = f"00-{TRACE_ID}-b7ad6b7169203331-01"
        await client.stubs.runs.CreateRun(request, metadata=(("traceparent", parent),))
        updates = await updates_of(client.watch("run-1"), seconds=GIVE_UP_SECONDS)
        events = [update for update in updates if isinstance(update, Event)]
        (started,), (completed,) = only(events, "tool_started"), only(events, "tool_completed")
        assert completed.result.parts[0].text.text == "made m"
        assert events[0].trace_id == TRACE_ID
        (line,) = place.lines("m")
        version, trace_id, span_id, flags = line["trace"].split("-")
        assert (version, trace_id, len(span_id), flags) == ("00", TRACE_ID, 16, "01")
        # The far daemon knows the near one's key, and the workshop one that nobody else could have chosen.
        assert line["key"] not in ("", started.key)
        assert line["deadline"] <= started.deadline.seconds + started.deadline.nanos / 1e9 + 0.001


async def test_a_cancel_reaches_the_tool_behind_the_other_daemon(home: Path) -> None:  # N05
    async with stage(home) as place, place.near.client() as client:
        await client.run(order("payment", "m", hold=True), run_id="run-1")
        await place.until("m", "effect")
        await client.runs.cancel("run-1")
        await place.until("m", "cancelled")
        events = await settled(client, "run-1")
    assert kinds(events)[-1] == "run_cancelled"
    assert only(events, "run_cancelled")[0].receipts[0].acknowledged


async def test_a_deadline_of_the_near_daemon_ends_the_tool_behind_the_other_one(home: Path) -> None:  # N05
    async with stage(home, limits={"start_to_close": 1.0}) as place, place.near.client() as client:
        await client.run(order("payment", "m", hold=True), run_id="run-1")
        line = await place.until("m", "effect")
        await place.until("m", "cancelled")
        events = await settled(client, "run-1")
        (started,) = only(events, "tool_started")
        assert line["deadline"] <= started.deadline.seconds + started.deadline.nanos / 1e9 + 0.001
        assert "tool_outcome_unknown" in kinds(events)
        assert place.count("m", "effect") == 1


async def test_a_key_means_one_call_over_both_daemons(home: Path) -> None:  # N05
    async with stage(home) as place, place.near.client() as client:
        arguments = '{"mark": "m"}'
        first = await client.tools.call(f"{PREFIX}payment", arguments, idempotency_key="k")
        await place.near.running[-1].kill()
        await place.near.start()
        assert await client.tools.call(f"{PREFIX}payment", arguments, idempotency_key="k") == first
        await place.far.running[-1].kill()
        await place.far.start()
        assert await client.tools.call(f"{PREFIX}payment", arguments, idempotency_key="k") == first
        assert place.count("m", "effect") == 1


async def test_a_near_daemon_that_was_killed_joins_the_call_that_goes_on_behind_the_other_one(home: Path) -> None:
    async with stage(home) as place, place.near.client() as client:
        for tool in ("idempotent", "queryable"):
            await client.run(order(tool, tool, hold=True), run_id=f"run-{tool}")
            await place.until(tool, "effect")
        await place.near.running[-1].kill()
        await place.near.start()
        for tool in ("idempotent", "queryable"):
            place.release(tool)
            events = await settled(client, f"run-{tool}")
            assert kinds(events)[-1] == "run_completed", kinds(events)
            assert place.count(tool, "effect") == 1


@pytest.mark.parametrize("tool", CLASSES)
async def test_a_daemon_killed_between_run_and_tool_leaves_one_effect(home: Path, tool: str) -> None:  # N05
    async with stage(home) as place, place.near.client() as client:
        await client.run(order(tool, "m", hold=True), run_id="run-1")
        await place.until("m", "effect")
        await place.far.running[-1].kill()
        await place.far.start()
        place.release("m")
        events = await settled(client, "run-1")
        assert place.count("m", "effect") == 1, kinds(events)
        if tool == "payment":
            # Nobody may send it again, and nobody was told what became of it.
            assert kinds(events)[-2:] == ["tool_outcome_unknown", "run_waiting"]
        else:
            assert kinds(events)[-1] == "run_completed", kinds(events)
            results = only(events, "tool_completed") or only(events, "tool_resolved")
            assert results[0].result.parts[0].text.text == "made m"


async def test_what_the_tool_lost_is_in_doubt_at_once_also_behind_another_daemon(home: Path) -> None:  # N05
    async with stage(home) as place, place.near.client() as client:
        await client.run(order("queryable", "m", hold=True), run_id="run-1")
        await place.until("m", "effect")
        await place.workshop.kill()
        await place.far.running[-1].kill()
        await place.workshop.start()
        await place.far.start()
        events = await settled(client, "run-1")
        assert kinds(events)[-2:] == ["tool_outcome_unknown", "run_waiting"]
        assert only(events, "tool_outcome_unknown")[0].reason == "TOOL_OUTCOME_UNKNOWN"
        assert place.count("m", "effect") == 1
