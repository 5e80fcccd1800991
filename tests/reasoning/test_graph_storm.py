"""Everything at once: runs of graphs, people who cancel and interrupt, a daemon that is killed again and again."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from behest.client import Client
from behest.errors import BehestError
from behest.v1.event_pb2 import Event
from behest.v1.graph_pb2 import (
    Branch,
    BranchCondition,
    FanIn,
    FanInMode,
    FanOut,
    Graph,
    GraphNode,
    Loop,
    Race,
    Retry,
)
from tests.crash.checker import check_captures, check_ledger, check_run, check_sessions
from tests.crash.conftest import Tools
from tests.crash.harness import EFFECTS, Site, site
from tests.reasoning.house import chain, edge
from tests.runs.scenes import TERMINAL, kind_of, only

ENDINGS = {"RUN_ENDING", "RUN_NOT_FOUND"}
ENDS = ("node_completed", "node_failed", "node_skipped")
FAILURE = BranchCondition.BRANCH_CONDITION_FAILURE


def made_up(chance: random.Random) -> Graph:
    """Two to four nodes side by side, some with tools; what brings them together; perhaps all of it again."""
    names = [f"part_{number}" for number in range(chance.randint(2, 4))]
    is_race = chance.random() < 0.3
    beside: dict[str, Any] = {"race": Race()} if is_race else {"fan_out": FanOut(parallelism=chance.randint(1, 4))}
    modes = (FanInMode.FAN_IN_MODE_ALL, FanInMode.FAN_IN_MODE_BEST, FanInMode.FAN_IN_MODE_FIRST)
    mode = chance.choice(modes)
    edges = [edge("start", name, **beside) for name in names]
    edges += [edge(name, "join") if is_race else edge(name, "join", fan_in=FanIn(mode=mode)) for name in names]
    if chance.random() < 0.4:
        edges.append(edge("join", "start", loop=Loop(max_iterations=chance.randint(1, 2))))
    if chance.random() < 0.4:
        # It fails, in each of its visits, and something else is done.
        edges += [
            edge("odd", "odd", retry=Retry(max_attempts=2)),
            edge("odd", "start", branch=Branch(condition=FAILURE)),
        ]
    parts = [part(chance, name) for name in names]
    odd = [GraphNode(id="odd", operator="reason", prompt="/begin /fail REQUEST_INVALID /end")]
    start = [*(odd if edges[-1].WhichOneof("kind") == "branch" else ()), GraphNode(id="start", operator="analyze")]
    ends = [GraphNode(id="join", operator="synthesize"), GraphNode(id="answer", operator="answer")]
    return Graph(nodes=[*start, *parts, *ends], edges=[*edges, edge("join", "answer")])


def part(chance: random.Random, name: str) -> GraphNode:
    """A node that says something or acts, and takes its time; perhaps in a subgraph."""
    if name.startswith("part") and chance.random() < 0.25:
        inner = [part(chance, "one"), part(chance, "two"), GraphNode(id="tell", operator="answer")]
        return GraphNode(id=name, subgraph=chain(*inner))
    wait = f"/delay {chance.randint(1, 60)}"
    if chance.random() < 0.5:
        return GraphNode(id=name, operator="generate", prompt=f"/begin {wait} /words {chance.randint(1, 8)} /end")
    used = chance.sample(list(EFFECTS), chance.randint(1, 2))
    calls = " ".join(f'/tool {tool} {{"ms": {chance.randint(0, 300)}}}' for tool in used)
    return GraphNode(id=name, operator="act", prompt=f"/begin {wait} /say hm {calls} /end")


@dataclass
class Story:
    """What one client did, and what it saw."""

    run_id: str
    graph: Graph
    events: list[Event] = field(default_factory=list)


@dataclass
class Storm:
    """A storm over one site."""

    place: Site
    stories: list[Story]
    killed_in_flight: int = 0

    async def live(self, client: Client, story: Story, chance: random.Random, session_id: str) -> None:
        """Order a run, follow it to its end, and on the way perhaps say something to it or cancel it."""
        await asyncio.sleep(chance.uniform(0, 5))
        order = {"session_id": session_id} if session_id else {}
        handle = client.stream("find out", graph=story.graph, run_id=story.run_id, **order)  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as tasks:
            if chance.random() < 0.4:
                tasks.create_task(self.meddle(client, story, chance))
            async for event in handle.events():
                story.events.append(event)
                if kind_of(event) == "run_waiting":
                    # A payment is in doubt, and nobody will ever say a word about it.
                    await client.runs.cancel(story.run_id)

    async def meddle(self, client: Client, story: Story, chance: random.Random) -> None:
        """Say something to the run or cancel it, after a while."""
        await asyncio.sleep(chance.uniform(0.1, 2))
        try:
            if chance.random() < 0.5:
                await client.runs.send_input(story.run_id, "and quickly", request_id=f"in-{story.run_id}")
            else:
                await client.runs.cancel(story.run_id, force=chance.random() < 0.3)
        except BehestError as error:
            assert error.reason in ENDINGS, error

    async def rage(self, chance: random.Random, kills: int) -> None:
        """End the daemon at random moments, mostly by a kill, and start it again."""
        for _ in range(kills):
            await asyncio.sleep(chance.uniform(0.3, 1.5))
            daemon = self.place.running[-1]
            await (daemon.stop() if chance.random() < 0.2 else daemon.kill())
            at_work = [story for story in self.stories if story.events and kind_of(story.events[-1]) not in TERMINAL]
            self.killed_in_flight += len(at_work)
            await self.place.start()


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.timeout(200)
async def test_whatever_happens_no_node_is_visited_twice_and_payments_are_made_once(
    home: Path, tools: Tools, seed: int
) -> None:  # C129 N16
    chance = random.Random(seed)
    stories = [Story(f"g{seed}-{number:03}", made_up(chance)) for number in range(80)]
    async with site(home, tools=tools.address) as place, asyncio.timeout(180):
        await place.start()
        storm = Storm(place, stories)
        clients = [place.client() for _ in range(4)]
        shared = [(await clients[0].sessions.create()).id for _ in range(5)]
        async with asyncio.TaskGroup() as tasks:
            for number, story in enumerate(stories):
                session_id = chance.choice(shared) if number % 2 else ""
                life = storm.live(clients[number % 4], story, random.Random(chance.random()), session_id)
                tasks.create_task(life)
            tasks.create_task(storm.rage(random.Random(chance.random()), 8))
        for client in clients:
            await client.close()
        assert (await place.running[-1].stop()).code == 0
        check(place, tools, storm)


def check(place: Site, tools: Tools, storm: Storm) -> None:
    """Hold what is known against what is stored."""
    remains, run_ids = place.remains(), [story.run_id for story in storm.stories]
    assert remains.run_ids() == sorted(run_ids)
    for story in storm.stories:
        check_run(remains, story.run_id)
        check_captures(remains, story.run_id, story.events)
        begun = Counter(each.visit for each in only(story.events, "node_started"))
        ended = Counter(each.visit for kind in ENDS for each in only(story.events, kind) if each.visit)
        assert set(begun.values()) | set(ended.values()) <= {1}, story.run_id
        assert ended.keys() <= begun.keys()
        if kind_of(story.events[-1]) == "run_completed":
            assert ended == begun
    dispatched = check_ledger(remains, tools.ledger, run_ids)
    check_sessions(remains)
    # A storm in which nothing was hit proves nothing.
    assert storm.killed_in_flight >= 10
    assert sum(kind_of(story.events[-1]) == "run_completed" for story in storm.stories) >= 30
    assert min(dispatched[tool] for tool in EFFECTS) >= 5
