"""Retention: logs go when their time is over; tombstones and messages stay. Nothing goes unless it was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_service_pb2 import CreateRunRequest, ListRunsRequest, WatchRunRequest
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.run_state_pb2 import RunState
from behestd.config.retention import Kept
from behestd.config.retention import Retention as Section
from behestd.core.times import SECOND
from behestd.log import fsck, sqlite_wipe
from behestd.planning.retention import rules
from behestd.runtime import retention
from behestd.runtime.clock import SystemClock
from behestd.runtime.retention import Rules
from tests import daemons
from tests.daemons import Served, refused
from tests.data.scenes import Canaries, fill, found, put_agents, until, with_tools
from tests.runs.scenes import events_of

DAY = 86_400.0


class LaterClock(SystemClock):
    """A clock that a test can put forward."""

    def forward(self, seconds: float) -> None:
        """Put it forward."""
        self._offset_ns += int(seconds * SECOND)


def spec(said: str, run_id: str, session_id: str = "") -> RunSpec:
    return RunSpec(input=[Part(text=TextPart(text=said))], run_id=run_id, session_id=session_id)


async def listed(served: Served) -> list[str]:
    return sorted([run.id async for run in served.client.runs.list(ListRunsRequest())])


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_log_whose_time_is_over_leaves_a_tombstone_and_its_messages(store: str) -> None:  # matrix row 51
    clock = LaterClock()
    async with daemons.serve(store, clock=clock, retention=Rules(run_seconds=10.0)) as served:
        stub, cleaning = served.client.stubs.runs, served.daemon.rooms.cleaning
        order = CreateRunRequest(spec=spec("/usage 30 7 /say one", "one"), request_id="r1")
        await stub.CreateRun(order)
        events = await events_of(served.client.watch("one"))
        one = await served.client.runs.get("one")
        clock.forward(5)
        two = await served.client.run("/say two", run_id="two", session_id=one.session_id)
        await two.result()
        await served.client.run("/stall", run_id="working", session_id=one.session_id)
        clock.forward(6)
        await cleaning.clean()

        assert await listed(served) == ["two", "working"]
        assert cleaning.statistics().logs == 1
        error = await refused(served.client.runs.get("one"))
        assert error.reason == "RUN_NOT_FOUND"
        head = events[-1].sequence
        compacted = await refused(anext(served.client.watch("one", after=0).events()))
        assert (compacted.reason, compacted.metadata["oldestSequence"]) == ("WATCH_COMPACTED", str(head + 1))
        frames = stub.WatchRun(WatchRunRequest(run_id="one", after_sequence=head))
        assert [event async for frame in frames for event in frame.events] == []
        row = await served.daemon.log.store.run("default", "one")
        assert row is not None
        assert (row.state, row.last_sequence, len(row.last_hash)) == (RunState.RUN_STATE_COMPLETED, head, 32)
        said = [message async for message in served.client.sessions.messages(one.session_id)]
        assert [part.text.text for message in said for part in message.parts][:2] == ["/usage 30 7 /say one", "one"]
        usage = await served.client.usage.query()
        assert usage.total.usage.input_tokens >= 30
        # Its request id is taken for a day, so that a late repeat starts nothing.
        again = await stub.CreateRun(order)
        assert (again.replayed, again.run.id, again.run.head_sequence) == (True, "one", head)
        clock.forward(2 * DAY)
        await served.client.runs.cancel("working")
        await events_of(served.client.watch("working"))
        await cleaning.clean()
        assert await listed(served) == ["working"]
        third = await served.client.run("/dump", session_id=one.session_id)
        shown = json.loads((await third.result()).text)["messages"]
        assert len(shown) >= 6, "what was said is still seen"
        assert (await third.get()).session_index == 4
        assert await served.daemon.log.store.check() == []


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_nothing_is_deleted_by_default_and_each_namespace_has_its_own_time(store: str) -> None:
    clock = LaterClock()
    async with daemons.serve(store, clock=clock) as served:
        await (await served.client.run("/say one", run_id="one")).result()
        clock.forward(1000 * DAY)
        cleaning = served.daemon.rooms.cleaning
        reads = served.daemon.log.store.statistics().reads
        assert await cleaning.retention.round() == 0
        assert served.daemon.log.store.statistics().reads == reads, "not even a look"
        cleaning.retention.rules = Rules(run_seconds=1.0, namespaces={"default": None})
        assert await cleaning.retention.round() == 0
        cleaning.retention.rules = Rules(namespaces={"default": 1.0})
        assert await cleaning.retention.round() == 1
        assert await listed(served) == []
        assert await cleaning.retention.round() == 0


async def test_the_log_of_a_child_run_stays_while_its_parent_works() -> None:
    clock = LaterClock()
    async with daemons.serve(clock=clock, retention=Rules(run_seconds=1.0)) as served:
        await put_agents(served)
        order = json.dumps({"order": "/say hello"})
        said = f"/tool agent_helper {order} /next /stall"
        await served.client.run(said, agent_id="boss", run_id="boss")
        store = served.daemon.log.store

        async def ended() -> list[str]:
            return [row.run_id for row in await store.ended("default", 1 << 62, 10)]

        while not await ended():
            await served.daemon.log.changes.wait(1.0)
        (child,) = await ended()
        clock.forward(60)
        await served.daemon.rooms.cleaning.clean()
        assert (await served.client.runs.get(child)).output.text == "hello"
        await served.client.runs.cancel("boss")
        await events_of(served.client.watch("boss"))
        clock.forward(60)
        await served.daemon.rooms.cleaning.clean()
        assert await ended() == []


async def test_a_round_does_a_bounded_amount_and_runs_go_on_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "RUNS_A_ROUND", 10)
    clock = LaterClock()
    async with daemons.serve("sqlite", clock=clock, retention=Rules(run_seconds=1.0)) as served:
        for number in range(25):
            await (await served.client.run("/say hi", run_id=f"run-{number:02}")).result()
        clock.forward(60)
        rounds = served.daemon.rooms.cleaning.retention
        assert await rounds.round() == 10
        assert (await listed(served))[0] == "run-10", "those that ended first"
        before = served.daemon.log.store.statistics().commits
        assert await rounds.round() == 10
        assert served.daemon.log.store.statistics().commits - before == 10, "one commit a log"
        assert await rounds.round() == 5
        await (await served.client.run("/say hi", run_id="new")).result()
        assert await rounds.round() == 0
        assert await listed(served) == ["new"]


async def test_the_raw_bytes_of_what_retention_deleted_go_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # S22
    monkeypatch.setattr(sqlite_wipe, "WIPE_SECONDS", 0.2)
    data = tmp_path / "data"
    clock, canaries = LaterClock(), Canaries("old")
    catalog, operator = with_tools(canaries)
    kept = Rules(run_seconds=1.0)
    async with daemons.serve("sqlite", data, clock=clock, tools=catalog, operator=operator, retention=kept) as served:
        await put_agents(served)
        await fill(served, canaries)
        gone = [canary for canary in canaries.planted if canary.endswith(("run-label", "-reason"))]
        assert len(gone) == 2
        clock.forward(60)
        await served.daemon.rooms.cleaning.clean()
        await until(lambda: not found(data, gone))
        assert found(data, canaries.planted), "what was said stays"
    assert fsck.check_all(data).problems == ()


def test_rules_come_from_the_configuration() -> None:
    section = Section(run_seconds=30 * DAY, namespaces={"short": Kept(run_seconds=DAY), "ever": Kept()})
    made = rules(section)
    assert (made.seconds("any"), made.seconds("short"), made.seconds("ever")) == (30 * DAY, DAY, None)
    assert not rules(Section()).is_active
