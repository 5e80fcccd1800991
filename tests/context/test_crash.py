"""A daemon that dies with context in hand: what a step began with is not asked for again, anything else is."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from behest.client import Client
from behest.errors import BehestError
from behest.v1.agent_pb2 import Agent
from behest.v1.event_pb2 import Event
from tests.daemon_process import running

CONFIG = '[extensions]\nmodules = ["counting"]\n'
EXTENSION = """
from pathlib import Path

async def news(request):
    with Path({ledger!r}).open("a") as ledger:
        ledger.write(f"{{request.step}}\\n")
    return f"fact news = {{len(Path({ledger!r}).read_text().split())}}"

def register(registry):
    registry.context(news)
"""


async def events_of(address: str) -> list[Event]:
    """The whole log of the run, once it has ended."""
    async with Client(address) as client, asyncio.timeout(60):
        return [event async for event in client.watch("run-1").events()]


@pytest.mark.parametrize(
    ("point", "asked"),
    [("model.before_send", ["1"]), ("context.before_ask", ["1"])],
)
async def test_a_killed_daemon_asks_for_nothing_twice(tmp_path: Path, point: str, asked: list[str]) -> None:  # C102
    ledger = tmp_path / "ledger"
    ledger.touch()
    (tmp_path / "counting.py").write_text(EXTENSION.format(ledger=str(ledger)))
    env = {"PYTHONPATH": str(tmp_path)}
    async with running(tmp_path / "home", config=CONFIG, env=env | {"BEHEST_FP": f"{point}=kill"}) as daemon:
        async with Client(daemon.address) as client:
            agent = await client.agents.create(Agent(context_sources=["news"]))
            order = asyncio.create_task(client.run("/recall", agent_id=agent.id, run_id="run-1"))
            async with asyncio.timeout(60):
                assert await daemon.ended() == -signal.SIGKILL
            order.cancel()
            with suppress(asyncio.CancelledError, BehestError):
                await order  # Whether it was answered before the daemon died is chance.
    async with running(tmp_path / "home", config=CONFIG, env=env) as daemon:
        log = await events_of(daemon.address)
    assert ledger.read_text().split() == asked
    built = [event.context_built for event in log if event.WhichOneof("payload") == "context_built"]
    assert [[message.parts[0].text.text for message in each.provided] for each in built] == [["fact news = 1"]]
    assert log[-1].run_completed.output.text == "fact news = 1"
