"""The daemon dies at every step of a call of an agent: the parent finds its child run again, never makes a second.

Each case proves first that its point was hit. What is on the disk between two lives is read from the files.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from behest.client import Client
from behest.v1.agent_pb2 import Agent
from behest.v1.run_state_pb2 import CancelCause, RunState
from tests.crash.harness import Site, site
from tests.runs.scenes import check_pairs, kinds, only
from tests.subagents.scenes import ended, order, tree_of, until

CANCELLED = RunState.RUN_STATE_CANCELLED
COMPLETED = RunState.RUN_STATE_COMPLETED
SLOW = "/delay 1000 /usage 10 20 /say slept"
"""An order that takes a second, also for whoever takes it up again."""


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that is gone after the test."""
    with TemporaryDirectory() as directory:
        yield Path(directory)


async def define(client: Client) -> None:
    """Define the agents: one that calls itself, so that trees have any depth."""
    await client.agents.create(Agent(id="node", sub_agents=["node"]))


def whole(place: Site, parent_id: str) -> list[str]:
    """The child runs on the disk; checks that the parent's log names each once, and that there is no other run."""
    events = place.remains().events(parent_id)
    started = [event.child_run_id for event in only(events, "child_run_started")]
    assert len(set(started)) == len(started)
    return started


async def check_tree(place: Site, client: Client, parent_id: str, said: str, usage: int) -> None:
    """Check that a parent ended well with the answer of its one child run, counted once."""
    parent, events = await ended(client, parent_id)
    assert (parent.state, parent.output.text) == (COMPLETED, said)
    check_pairs(parent.messages)
    (child_id,) = whole(place, parent_id)
    assert sorted(place.remains().run_ids()) == sorted([parent_id, child_id])
    (over,) = only(events, "child_run_ended")
    assert (over.state, over.usage.output_tokens) == (COMPLETED, usage)
    own = sum(completed.usage.output_tokens for completed in only(events, "model_completed"))
    assert parent.usage.output_tokens == own + usage
    assert len(only(events, "tool_completed")) == 1


@pytest.mark.parametrize("point", ["child.before_create", "child.after_create", "child.before_commit"])
async def test_killed_around_a_child_run_the_parent_finds_it_again(home: Path, point: str) -> None:  # C101
    async with site(home) as place, asyncio.timeout(240):
        daemon = await place.start(f"{point}=kill,run=p1")
        async with place.client() as client:
            await define(client)
            said = order("node", "/usage 10 20 /say slept") + " /next /say done"
            await client.run(said, agent_id="node", run_id="p1")
            (await daemon.dead(30)).assert_killed_at(point)
            (child_id,) = whole(place, "p1")
            exists = child_id in place.remains().run_ids()
            assert exists == (point != "child.before_create")
            await place.start()
            await check_tree(place, client, "p1", "done", 20)


async def test_killed_while_a_child_run_works_both_go_on(home: Path) -> None:  # C101
    async with site(home) as place, asyncio.timeout(240):
        daemon = await place.start()
        async with place.client() as client:
            await define(client)
            run = await client.run(order("node", SLOW) + " /next /say done", agent_id="node", run_id="p2")

            async def works() -> bool:
                below = await tree_of(client, run.run_id)
                return bool(below) and below[0].state == RunState.RUN_STATE_RUNNING

            await until(works)
            await daemon.kill()
            (child_id,) = whole(place, "p2")
            assert place.remains().state(child_id) == RunState.RUN_STATE_RUNNING
            await place.start()
            await check_tree(place, client, "p2", "done", 20)
            _, log = await ended(client, child_id)
            assert kinds(log).count("run_claimed") == 2


async def test_of_a_parent_and_its_child_run_only_the_one_that_works_is_condemned(home: Path) -> None:
    async with site(home) as place, asyncio.timeout(240):
        await place.start()
        async with place.client() as client:
            await define(client)
            await client.run(order("node", "/stall") + " /next /say done", agent_id="node", run_id="p3")
            for _ in range(3):
                await until_alive(client, "p3")
                await place.running[-1].kill()
                await place.start()
            parent, events = await ended(client, "p3")
            assert (parent.state, parent.output.text) == (COMPLETED, "done")
            assert [failed.reason for failed in only(events, "tool_failed")] == ["RUN_RECOVERY_LIMIT"]
            assert kinds(events).count("run_claimed") == 4
            assert len(only(events, "child_run_started")) == 1


async def until_alive(client: Client, run_id: str) -> None:
    """Wait until a run has been taken up and has its child run."""

    async def is_alive() -> bool:
        return bool(await tree_of(client, run_id))

    await until(is_alive)


async def test_stopped_and_started_a_parent_goes_on_waiting(home: Path) -> None:
    async with site(home) as place, asyncio.timeout(240):
        daemon = await place.start()
        async with place.client() as client:
            await define(client)
            await client.run(order("node", order("node", SLOW)) + " /next /say done", agent_id="node", run_id="p4")
            await until_alive(client, "p4")
            daemon.send(signal.SIGTERM)
            assert (await daemon.dead(30)).code == 0
            await place.start()
            parent, events = await ended(client, "p4")
            assert (parent.state, parent.output.text) == (COMPLETED, "done")
            assert len(only(events, "child_run_started")) == 1
            assert len(place.remains().run_ids()) == 3


@pytest.mark.parametrize("point", ["child.before_cancel", "child.before_forsake"])
async def test_killed_before_a_cancel_reached_the_child_runs_it_reaches_them_later(home: Path, point: str) -> None:
    async with site(home) as place, asyncio.timeout(240):  # C101
        daemon = await place.start(f"{point}=kill,run=p5")
        async with place.client() as client:
            await define(client)
            await client.run(order("node", *[order("node", "/stall", "/stall")] * 2), agent_id="node", run_id="p5")

            async def is_grown() -> bool:
                return len(await tree_of(client, "p5")) == 6

            await until(is_grown)
            asking = client.runs.cancel("p5", force=point == "child.before_forsake")
            async with asyncio.TaskGroup() as tasks:
                cancelling = tasks.create_task(asking)
                (await daemon.dead(30)).assert_killed_at(point)
                assert "run_cancel_requested" in place.remains().kinds("p5")
                below = [run_id for run_id in place.remains().run_ids() if run_id != "p5"]
                assert len(below) == 6
                assert all("run_cancel_requested" not in place.remains().kinds(run_id) for run_id in below)
                await place.start()
                await cancelling
            parent, _ = await ended(client, "p5")
            assert parent.state == CANCELLED
            for run_id in below:
                child, log = await ended(client, run_id)
                assert child.state == CANCELLED
                causes = [asked.cause for asked in only(log, "run_cancel_requested")]
                assert causes == [CancelCause.CANCEL_CAUSE_PARENT]
                # Nothing of it began again.
                assert "model_requested" not in kinds(log)[kinds(log).index("run_cancel_requested") :]
                assert kinds(log).count("model_requested") == 1
            assert len(place.remains().run_ids()) == 7


async def test_a_deadline_that_passed_while_nobody_was_there_reaches_the_child_runs(home: Path) -> None:
    async with site(home) as place, asyncio.timeout(240):  # C101
        daemon = await place.start()
        async with place.client() as client:
            await define(client)
            said = order("node", *[order("node", "/stall")] * 2)
            await client.run(said, agent_id="node", run_id="p6", timeout_seconds=4)
            await until_alive(client, "p6")
            await daemon.kill()
            await place.start()
            parent, _ = await ended(client, "p6")
            assert parent.state == RunState.RUN_STATE_TIMED_OUT
            for run_id in place.remains().run_ids():
                assert (await ended(client, run_id))[0].state in (CANCELLED, RunState.RUN_STATE_TIMED_OUT)


async def test_a_tree_that_is_killed_while_it_works_comes_through_whole(home: Path) -> None:  # C101
    async with site(home) as place, asyncio.timeout(240):
        await place.start()
        async with place.client() as client:
            await define(client)
            leaf = "/delay 300 /say leaf"
            said = order("node", *[order("node", *[leaf] * 3) + " /next /say twig"] * 3) + " /next /say tree"
            await client.run(said, agent_id="node", run_id="p7")
            for _ in range(2):
                await until_alive(client, "p7")
                await place.running[-1].kill()
                await place.start()
            parent, events = await ended(client, "p7")
            assert (parent.state, parent.output.text) == (COMPLETED, "tree")
            assert len(only(events, "child_run_ended")) == 3
            assert len(place.remains().run_ids()) == 13
            below = await tree_of(client, "p7")
            assert {child.state for child in below} == {COMPLETED}
            assert len({child.parent.call_id for child in below}) == 12
