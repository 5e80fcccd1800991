"""What tests of sub-agents share: agents that call agents, orders that nest, and the runs of a tree."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

from behest.client import Client
from behest.errors import BehestError
from behest.v1.agent_pb2 import Agent
from behest.v1.event_pb2 import Event
from behest.v1.run_event_pb2 import ChildRunStarted
from behest.v1.run_pb2 import Run
from tests.daemons import Served
from tests.runs.scenes import events_of, put_agent


def order(agent_id: str, *orders: str) -> str:
    """A directive that has an agent do something, once for each order, all at once."""
    return " ".join(f"/tool agent_{agent_id} {json.dumps({'order': said})}" for said in orders)


async def put_agents(served: Served, *agents: Agent) -> None:
    """Define agents, before the first run of the daemon."""
    for agent in agents:
        await put_agent(served, agent)


async def children_of(client: Client, run_id: str) -> list[ChildRunStarted]:
    """The child runs that a run has started so far."""
    found: list[ChildRunStarted] = []
    run = await client.runs.get(run_id)
    async with asyncio.timeout(20):
        async for event in client.watch(run_id).events():
            if event.WhichOneof("payload") == "child_run_started":
                found.append(event.child_run_started)
            if event.sequence >= run.head_sequence:
                break
    return found


async def tree_of(client: Client, run_id: str) -> list[Run]:
    """All runs below a run, level by level."""
    found: list[Run] = []
    for started in await children_of(client, run_id):
        # One that is to begin may not be there yet.
        with suppress(BehestError):
            found.append(await client.runs.get(started.child_run_id))
    for child in list(found):
        found += await tree_of(client, child.id)
    return sorted(found, key=lambda run: run.parent.depth)


async def until(seen: Callable[[], Awaitable[bool]], *, seconds: float = 60.0) -> None:
    """Look again and again until something is so."""
    async with asyncio.timeout(seconds):
        while not await seen():
            await asyncio.sleep(0.02)


async def ended(client: Client, run_id: str) -> tuple[Run, list[Event]]:
    """Wait for a run to end, however it does: the run and its log."""
    events = await events_of(client.watch(run_id), seconds=60)
    return await client.runs.get(run_id), events
