"""Many clients that follow many runs, and what all of them must have seen whatever happened to the daemon meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from behest.calls import Patience
from behest.client import Client
from behest.runs import RunHandle

SECONDS = 300.0
PATIENCE = Patience(pause_seconds=1.0)
CLIENTS = 5
"""Connections that the watches share."""


@dataclass
class Watcher:
    """One watch, and what it has seen."""

    run_id: str
    sequences: list[int] = field(default_factory=list)
    end: str = ""
    text: str = ""

    async def follow(self, handle: RunHandle) -> None:
        """Follow the run to its end. An error is raised."""
        async for event in handle.events():
            self.sequences.append(event.sequence)
            self.end = event.WhichOneof("payload") or ""
            self.text = event.run_completed.output.text


@dataclass
class Crowd:
    """Watches that go on; half of the runs speak, the others do nothing until they are cancelled."""

    client: Client
    watchers: list[Watcher]
    silent: set[str]
    """The runs that are to be cancelled, whose watches are open until then for sure."""
    asked: int = 0
    """How many single questions were answered meanwhile."""

    async def all_have_begun(self) -> None:
        """Wait until every watch has seen an event."""
        async with asyncio.timeout(SECONDS):
            while not all(watcher.sequences for watcher in self.watchers):
                await asyncio.sleep(0.02)

    async def end(self) -> None:
        """Cancel the runs that do nothing."""
        for run_id in self.silent:
            await self.client.runs.cancel(run_id, force=True)

    async def ask(self) -> None:
        """Ask for one run after the other, until cancelled."""
        while True:
            await self.client.runs.get(self.watchers[self.asked % len(self.watchers)].run_id)
            self.asked += 1
            await asyncio.sleep(0.05)


@asynccontextmanager
async def following(address: str, *, runs: int, watches: int, order: str) -> AsyncIterator[Crowd]:
    """Order runs and follow them by many watches; the block is left when all have ended, without an error.

    Somebody asks for a run all the time, who is not to see an error either.
    """
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(address, patience=PATIENCE)) for _ in range(CLIENTS)]
        orders = [order if number % 2 else "/stall" for number in range(runs)]
        handles = [await clients[number % CLIENTS].run(said) for number, said in enumerate(orders)]
        silent = {handle.run_id for handle, said in zip(handles, orders, strict=True) if said != order}
        crowd = Crowd(clients[0], [Watcher(handles[number % runs].run_id) for number in range(watches)], silent)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        asking = tasks.create_task(crowd.ask())
        following = [
            tasks.create_task(watcher.follow(clients[number % CLIENTS].watch(watcher.run_id)))
            for number, watcher in enumerate(crowd.watchers)
        ]
        yield crowd
        async with asyncio.timeout(SECONDS):
            await asyncio.wait(following)
        asking.cancel()


def check(crowd: Crowd, text: str) -> None:
    """Nothing was lost or came twice, and every run said what it was to say."""
    heads: dict[str, int] = {}
    for watcher in crowd.watchers:
        assert watcher.sequences == list(range(1, len(watcher.sequences) + 1)), watcher.run_id
        assert heads.setdefault(watcher.run_id, len(watcher.sequences)) == len(watcher.sequences)
        expected = ("run_cancelled", "") if watcher.run_id in crowd.silent else ("run_completed", text)
        assert (watcher.end, watcher.text) == expected
    assert crowd.asked > 0


def words(count: int) -> str:
    """What the scripted model says to `/words COUNT`."""
    return " ".join(f"word{number}" for number in range(1, count + 1))
