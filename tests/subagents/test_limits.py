"""A tree of runs respects depth, width, budget and time, and who ends its root ends all of it."""

from __future__ import annotations

import asyncio

import pytest

from behest.v1.agent_pb2 import Agent
from behest.v1.definition_pb2 import Budgets, Limits, RunDefinition
from behest.v1.run_state_pb2 import CancelCause, RunState
from behestd.runtime.house import Limits as DaemonLimits
from tests import daemons
from tests.runs.scenes import NON_IDEMPOTENT, OPEN, Ledger, kind_of, kinds, only, tools, until_kind
from tests.subagents.scenes import children_of, ended, order, put_agents, tree_of, until

DEPTH, WIDTH = 3, 3
HELPER = Agent(id="helper")


def nested(depth: int, width: int, leaf: str) -> str:
    """An order that is handed down so many levels, to so many agents on each."""
    return leaf if depth == 0 else order("node", *[nested(depth - 1, width, leaf)] * width)


def boss(**limits: int) -> Agent:
    """An agent that calls one other, within limits."""
    return Agent(id="boss", sub_agents=["helper"], limits=Limits(**limits))


async def test_a_run_as_deep_as_it_may_be_is_offered_no_agents() -> None:  # C101
    node = Agent(id="node", sub_agents=["node"], limits=Limits(max_depth=2))
    async with daemons.serve() as served:
        await put_agents(served, node)
        run = await served.client.run(nested(2, 1, "/dump"), agent_id="node")
        await ended(served.client, run.run_id)
        below = await tree_of(served.client, run.run_id)
        assert [child.parent.depth for child in below] == [1, 2]
        assert "agent_node" not in below[-1].output.text

        run = await served.client.run(nested(3, 1, "too deep"), agent_id="node")
        await ended(served.client, run.run_id)
        below = await tree_of(served.client, run.run_id)
        assert [child.parent.depth for child in below] == [1, 2]
        _, events = await ended(served.client, below[-1].id)
        assert [failed.reason for failed in only(events, "tool_failed")] == ["TOOL_NOT_FOUND"]


async def test_an_agent_cannot_give_itself_more_levels_than_its_parent_has_left() -> None:
    deep = Agent(id="helper", sub_agents=["helper"], limits=Limits(max_depth=9, max_children=99))
    async with daemons.serve() as served:
        await put_agents(served, boss(max_depth=1, max_children=5), deep)
        run = await served.client.run(order("helper", "/dump"), agent_id="boss")
        await ended(served.client, run.run_id)
        (child,) = await tree_of(served.client, run.run_id)
        body = await served.daemon.log.store.definition(child.definition_hash)
        assert body is not None
        limits = RunDefinition.FromString(body).limits
        assert (limits.max_depth, limits.max_children, limits.max_parallel_children) == (0, 5, 4)
        assert "agent_helper" not in child.output.text


async def test_a_run_starts_so_many_child_runs_in_all() -> None:  # C101
    async with daemons.serve() as served:
        await put_agents(served, boss(max_children=2), HELPER)
        said = order("helper", "one", "two", "three") + " /next /say enough"
        run = await served.client.run(said, agent_id="boss")
        parent, events = await ended(served.client, run.run_id)
        assert len(only(events, "child_run_started")) == 2
        assert [failed.reason for failed in only(events, "tool_failed")] == ["RUN_BUDGET"]
        assert parent.output.text == "enough"


async def test_a_run_has_so_many_child_runs_at_once() -> None:  # C101
    async with daemons.serve() as served:
        await put_agents(served, boss(max_parallel_children=1), HELPER)
        run = await served.client.run(order("helper", "one", "two", "three"), agent_id="boss")
        _, events = await ended(served.client, run.run_id)
        at_once = [kind for kind in kinds(events) if kind.startswith("child_run")]
        assert at_once == ["child_run_started", "child_run_ended"] * 3


async def test_child_runs_share_what_is_left_of_a_budget() -> None:  # C101
    async with daemons.serve() as served:
        await put_agents(served, boss(max_total_tokens=3100), HELPER)
        spends = "/usage 100 200 /say spent"
        said = (
            f"/usage 50 50 {order('helper', spends, spends, '/usage 10 10 /tool nothing {}')} /next /usage 1 1 /say ok"
        )
        run = await served.client.run(said, agent_id="boss")
        parent, events = await ended(served.client, run.run_id)
        shares = [started.budgets.max_total_tokens for started in only(events, "child_run_started")]
        assert shares == [1000, 1000, 1000]
        assert parent.state == RunState.RUN_STATE_COMPLETED
        consumed = parent.usage.input_tokens + parent.usage.output_tokens
        assert 700 < consumed <= 3100


async def test_a_child_run_ends_where_its_share_ends() -> None:  # C101
    async with daemons.serve() as served:
        await put_agents(served, boss(), HELPER)
        greedy = "/usage 500 500 /tool nothing {} /next /say more"
        said = f"/usage 1 1 {order('helper', greedy)} /next /say no more"
        run = await served.client.run(said, agent_id="boss", budgets=Budgets(max_total_tokens=900))
        parent, events = await ended(served.client, run.run_id)
        (failed,) = only(events, "tool_failed")
        assert failed.reason == "RUN_BUDGET"
        assert parent.state == RunState.RUN_STATE_FAILED  # It has nothing left for a turn of its own.


async def test_the_money_of_child_runs_is_that_of_their_parent() -> None:  # C101
    priced = Agent(id="helper", model="scripted/priced")
    async with daemons.serve() as served:
        await put_agents(served, boss(max_cost_micro_usd=1000), priced)
        said = f"{order('helper', '/usage 100 100 /say dear', '/usage 100 100 /say dear')} /next /say ok"
        run = await served.client.run(said, agent_id="boss")
        parent, events = await ended(served.client, run.run_id)
        assert [started.budgets.max_cost_micro_usd for started in only(events, "child_run_started")] == [500, 500]
        assert parent.usage.cost_micro_usd == 600


async def test_a_share_that_nobody_used_goes_to_those_after_it() -> None:
    async with daemons.serve() as served:
        await put_agents(served, boss(max_total_tokens=1000, max_parallel_children=1), HELPER)
        small = "/usage 5 5 /say little"
        said = f"/usage 50 50 {order('helper', small, small, small)} /next /usage 1 1 /say ok"
        run = await served.client.run(said, agent_id="boss")
        _, events = await ended(served.client, run.run_id)
        shares = [started.budgets.max_total_tokens for started in only(events, "child_run_started")]
        assert shares == [300, 445, 880]


async def test_the_deadline_of_a_run_is_that_of_all_below_it() -> None:  # C101
    async with daemons.serve(limits=DaemonLimits(cancel_grace_seconds=5.0)) as served:
        await put_agents(served, Agent(id="node", sub_agents=["node"]))
        run = await served.client.run(nested(2, 2, "/stall"), agent_id="node", timeout_seconds=3)
        parent, _ = await ended(served.client, run.run_id)
        assert parent.state == RunState.RUN_STATE_TIMED_OUT
        below = await tree_of(served.client, run.run_id)
        assert below
        # Each has the same deadline, and whether its own clock or its parent tells it first is a matter of chance.
        over = {RunState.RUN_STATE_CANCELLED, RunState.RUN_STATE_TIMED_OUT}
        assert {(await ended(served.client, child.id))[0].state for child in below} <= over


async def grown(served: daemons.Served, leaves: int) -> None:
    """Wait until a tree has so many leaves that have asked their model."""

    async def is_grown() -> bool:
        supervisor = served.daemon.rooms.supervisor
        runs = [run for run in supervisor.runs() if run.created.parent.depth == DEPTH]
        born = [run for run in runs if supervisor.driver("default", run.id) is not None]
        return sum(run.step.open is not None for run in born) == leaves

    await until(is_grown, seconds=60)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_cancel_reaches_every_leaf_of_the_tree(store: str) -> None:  # C101
    async with daemons.serve(store) as served:
        await put_agents(served, Agent(id="node", sub_agents=["node"]))
        run = await served.client.run(nested(DEPTH, WIDTH, "/stall"), agent_id="node")
        await grown(served, WIDTH**DEPTH)
        below = await tree_of(served.client, run.run_id)
        assert [len([child for child in below if child.parent.depth == level]) for level in (1, 2, 3)] == [3, 9, 27]

        await run.cancel(reason="enough")
        parent, events = await ended(served.client, run.run_id)
        assert parent.state == RunState.RUN_STATE_CANCELLED
        assert [over.state for over in only(events, "child_run_ended")] == [RunState.RUN_STATE_CANCELLED] * WIDTH
        for child in below:
            after, log = await ended(served.client, child.id)
            assert after.state == RunState.RUN_STATE_CANCELLED
            assert [asked.cause for asked in only(log, "run_cancel_requested")] == [CancelCause.CANCEL_CAUSE_PARENT]
            assert (kind_of(log[-1]), log[-1].run_cancelled.cause) == ("run_cancelled", CancelCause.CANCEL_CAUSE_PARENT)
        assert len(served.daemon.house.kin) == 0
        assert served.daemon.house.kin.parents() == []


async def test_whenever_a_cancel_comes_no_child_run_goes_on(count: int = 24) -> None:  # C101
    async with daemons.serve() as served:
        await put_agents(served, Agent(id="node", sub_agents=["node"]))
        roots = []
        for number in range(count):
            run = await served.client.run(nested(2, 2, "/stall"), agent_id="node")
            roots.append(run.run_id)
            for _ in range(number * 4):
                await asyncio.sleep(0)
            await run.cancel(force=number % 3 == 0)
        for run_id in roots:
            assert (await ended(served.client, run_id))[0].state == RunState.RUN_STATE_CANCELLED
        await until(lambda: nothing_lives(served))
        async for each in served.client.runs.list():
            assert each.state == RunState.RUN_STATE_CANCELLED


async def nothing_lives(served: daemons.Served) -> bool:
    """Whether no run is driven any more."""
    return not served.daemon.rooms.supervisor.runs() and len(served.daemon.house.kin) == 0


async def test_a_tree_whose_root_is_ended_by_force_ends_below_too() -> None:  # C101
    async with daemons.serve() as served:
        await put_agents(served, Agent(id="node", sub_agents=["node"]))
        run = await served.client.run(nested(DEPTH, 2, "/stall"), agent_id="node")
        await grown(served, 2**DEPTH)
        below = await tree_of(served.client, run.run_id)
        await run.cancel(force=True)
        for child in below:
            after, _ = await ended(served.client, child.id)
            assert after.state == RunState.RUN_STATE_CANCELLED


async def test_a_cancel_waits_for_the_tools_of_the_leaves() -> None:
    ledger = Ledger()

    async def pay(name: str) -> str:
        """Pay."""
        return await ledger.work(name)

    node = Agent(id="node", sub_agents=["node"], tools=["pay"])
    async with daemons.serve(tools=tools((pay, NON_IDEMPOTENT)), operator=OPEN) as served:
        await put_agents(served, node)
        run = await served.client.run(nested(2, 1, '/tool pay {"name": "bill"}'), agent_id="node")
        await asyncio.wait_for(ledger.reached.wait(), 20)
        await run.cancel()
        parent, _ = await ended(served.client, run.run_id)
        assert parent.state == RunState.RUN_STATE_CANCELLED
        assert ledger.stopped == ["bill"]


async def test_a_turn_may_call_the_same_agent_and_other_tools_at_once() -> None:
    ledger = Ledger()

    async def look(name: str) -> str:
        """Look."""
        return await ledger.work(name, wait=False)

    async with daemons.serve(tools=tools((look, NON_IDEMPOTENT)), operator=OPEN) as served:
        await put_agents(served, Agent(id="boss", sub_agents=["helper"], tools=["look"]), HELPER)
        said = f'{order("helper", "one", "two")} /tool look {{"name": "x"}} /next /say all'
        run = await served.client.run(said, agent_id="boss")
        parent, events = await ended(served.client, run.run_id)
        assert parent.output.text == "all"
        assert len(only(events, "child_run_ended")) == 2
        assert len(await children_of(served.client, run.run_id)) == 2
        assert ledger.calls == ["x"]


async def test_child_runs_need_no_place_that_their_parents_hold() -> None:
    async with daemons.serve(limits=DaemonLimits(active_runs=1, queued_runs=1, tool_calls=1)) as served:
        await put_agents(served, Agent(id="node", sub_agents=["node"]))
        run = await served.client.run(nested(2, 2, "hello"), agent_id="node")
        parent, _ = await ended(served.client, run.run_id)
        assert parent.state == RunState.RUN_STATE_COMPLETED
        assert len(await tree_of(served.client, run.run_id)) == 6


async def test_a_run_with_a_timeout_hands_down_what_is_left_of_it() -> None:
    async with daemons.serve() as served:
        await put_agents(served, boss(), HELPER)
        run = await served.client.run(order("helper", "/stall"), agent_id="boss", timeout_seconds=100)
        seen = await until_kind(run, "child_run_started")
        (started,) = only(seen, "child_run_started")
        assert 0 < started.timeout.seconds < 100
        await run.cancel()
