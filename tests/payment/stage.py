"""The stage of the payment tests: a daemon, a shop and the link between them, each of which can be cut down.

The ledger is written by the shop, outside the daemon, and is the witness of what took effect.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from behest.client import Client
from behest.v1.event_pb2 import Event
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from tests import ports
from tests.crash.harness import LedgerFile, Site, site
from tests.payment.proxy import Proxy, proxy
from tests.payment.shop import NAME
from tests.runs.scenes import TERMINAL, kind_of

CLASSES = {
    "pure": SideEffect.SIDE_EFFECT_PURE,
    "idempotent": SideEffect.SIDE_EFFECT_IDEMPOTENT,
    "queryable": SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE,
    "payment": SideEffect.SIDE_EFFECT_NON_IDEMPOTENT,
}
RETENTION_SECONDS = 72 * 3600
GIVE_UP_SECONDS = 90


@dataclass
class Stage:
    """A daemon, a shop and a proxy between them. `mode` is dialled or attached."""

    mode: str
    home: Path
    place: Site
    link: Proxy | None = None
    shop: asyncio.subprocess.Process | None = None
    port: int = field(default_factory=ports.reserved)
    exits: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def open(self) -> None:
        """Start it all."""
        (self.home / "ledger").touch()
        await self.place.start()
        if self.mode == "dialled":
            await self.open_shop()
            self.link = await self.exits.enter_async_context(proxy(f"127.0.0.1:{self.port}"))
            await self.register()
        else:
            self.link = await self.exits.enter_async_context(proxy(self.place.address))
            await self.register()
            await self.open_shop()

    async def register(self) -> None:
        """Register the shop with the classes of its tools."""
        is_dialled = self.mode == "dialled"
        server = Server(
            name=NAME,
            connection=(
                ServerConnection.SERVER_CONNECTION_DIALLED
                if is_dialled
                else ServerConnection.SERVER_CONNECTION_ATTACHED
            ),
            address=self.link.address if is_dialled and self.link is not None else "",
            offers=[ServerOffer.SERVER_OFFER_TOOLS],
            tool_policies={tool: ToolPolicy(side_effect=effect) for tool, effect in CLASSES.items()},
        )
        server.dedupe_retention.seconds = RETENTION_SECONDS
        async with self.place.client() as client:
            await client.servers.register(server)

    async def open_shop(self) -> None:
        """Start the shop, on what an earlier one left."""
        where = ["--listen", f"127.0.0.1:{self.port}"]
        if self.mode == "attached":
            assert self.link is not None
            where = ["--attach", self.link.address]
        files = [str(self.home / "ledger"), str(self.home / "dedupe")]
        self.shop = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.payment.shop", *files, *where, stdout=asyncio.subprocess.PIPE
        )
        assert self.shop.stdout is not None
        async with asyncio.timeout(GIVE_UP_SECONDS):
            word, _, port = (await self.shop.stdout.readline()).decode().partition(" ")
        assert word == "ready"
        self.port = int(port)

    async def shop_died(self) -> None:
        """Wait until the shop has killed itself, and start another."""
        assert self.shop is not None
        async with asyncio.timeout(GIVE_UP_SECONDS):
            assert await self.shop.wait() == -signal.SIGKILL
        await self.open_shop()

    def ledger(self) -> LedgerFile:
        """The ledger, read from outside."""
        return LedgerFile(self.home / "ledger")

    async def close(self) -> None:
        """End what still runs."""
        if self.shop is not None and self.shop.returncode is None:
            self.shop.kill()
            await self.shop.wait()
        await self.exits.aclose()


@asynccontextmanager
async def stage(mode: str, home: Path) -> AsyncIterator[Stage]:
    """Set the stage for one test."""
    async with site(home) as place:
        made = Stage(mode, home, place)
        try:
            await made.open()
            yield made
        finally:
            await made.close()


async def settled(client: Client, run_id: str) -> list[Event]:
    """Follow a run, over whatever happens to the daemon, until it has ended or waits for somebody's word."""
    events: list[Event] = []
    async with asyncio.timeout(GIVE_UP_SECONDS):
        async for update in client.watch(run_id).updates():
            if isinstance(update, Event):
                events.append(update)
                if kind_of(update) in TERMINAL or kind_of(update) == "run_waiting":
                    return events
    raise AssertionError(f"{run_id} neither ended nor waits")
