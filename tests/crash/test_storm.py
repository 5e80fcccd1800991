"""Everything at once: two hundred runs, people who cancel and interrupt, a daemon that is killed again and again."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from behest.client import Client
from behest.errors import BehestError
from behest.v1.event_pb2 import Event
from behest.v1.run_state_pb2 import RunState
from tests.crash.checker import check_captures, check_ledger, check_run, check_sessions
from tests.crash.conftest import Tools
from tests.crash.harness import EFFECTS, Site, site
from tests.runs.scenes import TERMINAL, kind_of

STOPPED = (RunState.RUN_STATE_COMPLETED, RunState.RUN_STATE_FAILED, RunState.RUN_STATE_CANCELLED)
ENDINGS = {"RUN_ENDING", "RUN_NOT_FOUND"}


@dataclass
class Story:
    """What one client did, and what it knows."""

    run_id: str
    said: str
    events: list[Event] = field(default_factory=list)
    acked_inputs: list[str] = field(default_factory=list)


@dataclass
class Storm:
    """A seeded storm over one site."""

    seed: int
    place: Site
    stories: list[Story]
    kills: int = 0
    killed_in_flight: int = 0

    async def live(self, client: Client, story: Story, chance: random.Random, session_id: str) -> None:
        """Order a run, follow it to its end, and on the way perhaps say something to it or cancel it."""
        await asyncio.sleep(chance.uniform(0, 6))
        order = {"session_id": session_id} if session_id else {}
        handle = client.stream(story.said, run_id=story.run_id, request_id=f"req-{story.run_id}", **order)  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as tasks:
            if chance.random() < 0.5:
                tasks.create_task(self.meddle(client, story, chance))
            async for event in handle.events():
                story.events.append(event)
                if kind_of(event) == "run_waiting":
                    # Its payment is in doubt, and nobody will ever say a word about it.
                    await client.runs.cancel(story.run_id)

    async def meddle(self, client: Client, story: Story, chance: random.Random) -> None:
        """Say something to the run or cancel it, after a while."""
        await asyncio.sleep(chance.uniform(0.1, 2))
        try:
            if chance.random() < 0.5:
                input_id = f"in-{story.run_id}"
                await client.runs.send_input(story.run_id, "and quickly", request_id=input_id)
                story.acked_inputs.append(input_id)
            else:
                shown = await client.runs.cancel(story.run_id, force=chance.random() < 0.3)
                assert shown.state in (*STOPPED, RunState.RUN_STATE_CANCELLING)
        except BehestError as error:
            assert error.reason in ENDINGS, error

    async def rage(self, chance: random.Random, kills: int) -> None:
        """Kill the daemon at random moments and start it again."""
        for _ in range(kills):
            await asyncio.sleep(chance.uniform(0.3, 1.5))
            await self.place.running[-1].kill()
            self.kills += 1
            open_runs = [story for story in self.stories if story.events and kind_of(story.events[-1]) not in TERMINAL]
            self.killed_in_flight += len(open_runs)
            await asyncio.sleep(chance.uniform(0, 0.3))
            await self.place.start()


def script(chance: random.Random) -> str:
    """Make up a run: some turns, some tools, some delays."""
    turns = []
    for _ in range(chance.randint(0, 2)):
        tools = chance.sample(list(EFFECTS), chance.randint(1, 3))
        calls = " ".join(f'/tool {tool} {{"ms": {chance.randint(0, 400)}}}' for tool in tools)
        turns.append(f"/delay {chance.randint(1, 60)} /say hm {calls}")
    return " /next ".join([*turns, f"/delay {chance.randint(1, 60)} /words {chance.randint(1, 12)}"])


@pytest.mark.parametrize(
    ("seed", "runs", "kills"), [(1, 200, 6), *(pytest.param(n, 400, 20, marks=pytest.mark.proof) for n in range(2, 12))]
)
@pytest.mark.timeout(300)
async def test_whatever_happens_logs_are_whole_and_payments_are_made_once(
    home: Path, tools: Tools, seed: int, runs: int, kills: int
) -> None:  # C049 C050 C079 C084 N01 N02 I1 I2 I4 I5 I6 I7 I8 I11 I12 I13 I14 I19
    chance = random.Random(seed)
    stories = [Story(f"s{seed}-{number:03}", script(chance)) for number in range(runs)]
    async with site(home, tools=tools.address) as place, asyncio.timeout(200):
        await place.start()
        storm = Storm(seed, place, stories)
        clients = [place.client() for _ in range(8)]
        shared = [(await clients[0].sessions.create()).id for _ in range(runs // 20)]
        sessions = [chance.choice(shared) if number % 2 else "" for number in range(runs)]
        try:
            async with asyncio.timeout(30 + runs / 5), asyncio.TaskGroup() as tasks:
                for number, story in enumerate(stories):
                    life = storm.live(clients[number % 8], story, random.Random(chance.random()), sessions[number])
                    tasks.create_task(life)
                tasks.create_task(storm.rage(random.Random(chance.random()), kills))
        except TimeoutError:
            pytest.fail(await stuck(storm, clients[0]))
        for client in clients:
            await client.close()
        assert (await place.running[-1].stop()).code == 0
        check(place, tools, storm)


async def stuck(storm: Storm, client: Client) -> str:
    """Tell of each run that has not ended: what its log and its daemon say, and what its client saw."""
    found = [f"{len(storm.stories)} runs, {storm.kills} kills"]
    remains = storm.place.remains()
    for story in storm.stories:
        if not story.events or kind_of(story.events[-1]) not in TERMINAL:
            kinds = remains.kinds(story.run_id)
            why = (await client.runs.explain(story.run_id)).obstacles if kinds else []
            told = [(obstacle.kind, obstacle.subject, obstacle.message) for obstacle in why]
            found.append(f"{story.run_id}: seen {len(story.events)} of {len(kinds)}: {' '.join(kinds)}, {told}")
    last = max(storm.place.home.glob("stderr-*"), key=lambda path: path.stat().st_mtime)
    found.append(last.read_text()[-3000:])
    return "\n".join(found)


def check(place: Site, tools: Tools, storm: Storm) -> None:
    """Hold everything that is known against everything that is stored."""
    remains, run_ids = place.remains(), [story.run_id for story in storm.stories]
    assert remains.run_ids() == sorted(run_ids)
    for story in storm.stories:
        check_run(remains, story.run_id)
        check_captures(remains, story.run_id, story.events)
        assert kind_of(story.events[-1]) in TERMINAL
        received = [each.input_received.input_id for each in story.events if each.HasField("input_received")]
        assert sorted(set(received)) == sorted(received)
        assert set(story.acked_inputs) <= set(received)
    dispatched = check_ledger(remains, tools.ledger, run_ids)
    longest = check_sessions(remains)
    # A storm in which nothing was hit proves nothing.
    assert storm.kills >= 6
    assert storm.killed_in_flight >= 30
    assert longest >= 5
    assert min(dispatched[tool] for tool in EFFECTS) >= 20
    assert sum(event.HasField("tool_outcome_unknown") for story in storm.stories for event in story.events) >= 3
