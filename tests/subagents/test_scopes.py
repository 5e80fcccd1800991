"""Scopes of tools: chosen for one run or one session, kept to by all below it, and gone with them."""

from __future__ import annotations

import asyncio
import json

import pytest

from behest.v1.agent_pb2 import Agent
from behest.v1.session_pb2 import Session
from tests import daemons
from tests.daemons import Served, refused
from tests.runs.scenes import OPEN, PURE, Ledger, only, tools
from tests.subagents.scenes import ended, order, put_agents, tree_of


async def red() -> str:
    """See red."""
    return "red"


async def blue() -> str:
    """See blue."""
    return "blue"


COLOURS = tools((red, PURE), (blue, PURE))
EVERYTHING = Agent(id="painter", tools=["*"], sub_agents=["helper"])
HELPER = Agent(id="helper", tools=["*"])


def seen(text: str) -> list[str]:
    """The names of the tools that a model was offered, of what /dump says."""
    return sorted(json.loads(text)["tools"])


async def offered(served: Served, said: str = "/dump", **spec: object) -> list[str]:
    """The tools that a run is offered."""
    run = await served.client.run(said, **spec)  # type: ignore[arg-type]
    after, _ = await ended(served.client, run.run_id)
    return seen(after.output.text)


@pytest.mark.parametrize("first", ["red", "blue"])
async def test_runs_at_once_see_their_own_tools_and_nothing_remains(first: str) -> None:  # C034
    ledger = Ledger()
    gates = {"red": asyncio.Event(), "blue": asyncio.Event()}

    async def hold(name: str) -> str:
        """Hold."""
        ledger.calls.append(name)
        await gates[name].wait()
        return name

    plan = tools((red, PURE), (blue, PURE), (hold, PURE))
    async with daemons.serve(tools=plan, operator=OPEN) as served:
        before = sorted(served.daemon.house.tools.snapshot("default").tools)
        runs = {}
        for colour, other in (("red", "blue"), ("blue", "red")):
            said = f'/tool hold {{"name": "{colour}"}} /next /tool {other} {{}} /tool {colour} {{}} /next /dump'
            runs[colour] = await served.client.run(said, tools=["hold", colour])
        async with asyncio.timeout(20):
            while len(ledger.calls) < 2:
                await asyncio.sleep(0.01)
        second = "blue" if first == "red" else "red"
        for colour in (first, second):
            gates[colour].set()
            after, events = await ended(served.client, runs[colour].run_id)
            assert seen(after.output.text) == sorted(["hold", colour])
            assert [failed.reason for failed in only(events, "tool_failed")] == ["TOOL_NOT_FOUND"]
            assert [started.name for started in only(events, "tool_started")] == ["hold", colour]
        # Nothing is left of either scope.
        assert sorted(served.daemon.house.tools.snapshot("default").tools) == before
        assert served.daemon.rooms.supervisor.runs() == []
        assert await offered(served) == before


async def test_the_runs_of_a_session_keep_to_its_scope() -> None:  # C034
    async with daemons.serve("sqlite", tools=COLOURS) as served:
        narrow = await served.client.sessions.create(Session(tools=["red"]))
        other = await served.client.sessions.create(Session(tools=["bl*"]))
        both = await asyncio.gather(
            offered(served, session_id=narrow.id), offered(served, session_id=other.id), offered(served)
        )
        assert both == [["red"], ["blue"], ["blue", "red"]]

        narrow.tools[:] = ["blue"]
        await served.client.sessions.update(narrow, ["tools"])
        assert await offered(served, session_id=narrow.id) == ["blue"]
        narrow = await served.client.sessions.get(narrow.id)
        del narrow.tools[:]
        await served.client.sessions.update(narrow, ["tools"])
        assert await offered(served, session_id=narrow.id) == ["blue", "red"]


async def test_a_run_narrows_the_scope_of_its_session_and_never_widens_it() -> None:  # C034
    async with daemons.serve(tools=COLOURS) as served:
        session = await served.client.sessions.create(Session(tools=["red"]))
        assert await offered(served, session_id=session.id, tools=["*"]) == ["red"]
        assert await offered(served, session_id=session.id, tools=["blue"]) == []


async def test_child_runs_keep_to_the_scopes_above_them() -> None:  # C034
    async with daemons.serve(tools=COLOURS) as served:
        await put_agents(served, EVERYTHING, HELPER)
        said = order("helper", "/dump") + " /next /dump"
        run = await served.client.run(said, agent_id="painter", tools=["agent_*", "red"])
        free = await served.client.run(said, agent_id="painter")
        after, _ = await ended(served.client, run.run_id)
        assert seen(after.output.text) == ["agent_helper", "red"]
        (child,) = await tree_of(served.client, run.run_id)
        assert seen(child.output.text) == ["red"]

        await ended(served.client, free.run_id)
        (child,) = await tree_of(served.client, free.run_id)
        assert seen(child.output.text) == ["blue", "red"]


async def test_a_scope_may_leave_agents_out() -> None:
    async with daemons.serve(tools=COLOURS) as served:
        await put_agents(served, EVERYTHING, HELPER)
        assert await offered(served, agent_id="painter", tools=["red"]) == ["red"]


async def test_a_request_may_name_tools_that_only_its_sub_agents_have() -> None:
    async with daemons.serve(tools=COLOURS) as served:
        await put_agents(served, Agent(id="boss", sub_agents=["helper"]), HELPER)
        run = await served.client.run(order("helper", "/dump"), agent_id="boss", tools=["agent_helper", "blue"])
        await ended(served.client, run.run_id)
        (child,) = await tree_of(served.client, run.run_id)
        assert seen(child.output.text) == ["blue"]
        error = await refused(served.client.run("hello", agent_id="boss", tools=["green"]))
        assert error.reason == "TOOL_NOT_FOUND"


async def test_a_scope_that_makes_no_sense_is_refused() -> None:
    async with daemons.serve() as served:
        error = await refused(served.client.sessions.create(Session(tools=[""])))
        assert error.violations[0][0] == "session.tools[0]"
