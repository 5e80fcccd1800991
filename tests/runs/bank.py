"""A tool server in both modes behind a link that can be cut and held: what tests of late answers and of time share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

from behest.tools import Context, ToolServer
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import ToolPolicy
from behestd.core.times import duration
from tests.daemons import Served, serve
from tests.payment.proxy import Proxy, proxy
from tests.runs.scenes import OPEN

MODES = ("dialled", "attached")
RECEIPT = "the receipt"
NAME = "bank"


@dataclass
class Bank:
    """What was asked for, by key and attempt, and when a call that waits may end."""

    calls: list[tuple[str, int]] = field(default_factory=list)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    def served(self) -> ToolServer:
        """A server of tools: they answer, wait once, wait, wait whatever they are told, show progress without end."""
        server = ToolServer()

        @server.tool
        async def pay(context: Context) -> str:
            self.calls.append((context.idempotency_key, context.attempt))
            return RECEIPT

        @server.tool
        async def hesitate(context: Context) -> str:
            self.calls.append((context.idempotency_key, context.attempt))
            if context.attempt == 1:
                await self.opened.wait()
            return RECEIPT

        @server.tool
        async def ponder(context: Context) -> str:
            self.calls.append((context.idempotency_key, context.attempt))
            await self.opened.wait()
            return RECEIPT

        @server.tool
        async def persist(context: Context) -> str:
            self.calls.append((context.idempotency_key, context.attempt))
            while not self.opened.is_set():
                # It does not stop when it is told to.
                with suppress(asyncio.CancelledError):
                    await self.opened.wait()
            return RECEIPT

        @server.tool
        async def drip(context: Context) -> str:
            self.calls.append((context.idempotency_key, context.attempt))
            while not self.opened.is_set():
                context.progress(".")
                await asyncio.sleep(0.02)
            return RECEIPT

        return server


@dataclass(frozen=True, slots=True)
class Place:
    """A daemon, a bank and the link between them, which `leave` takes away."""

    served: Served
    bank: Bank
    link: Proxy
    leave: AsyncExitStack


@asynccontextmanager
async def banking(mode: str, policy: ToolPolicy) -> AsyncIterator[Place]:
    """Serve a daemon and a bank, all of whose tools have one policy."""
    bank = Bank()
    is_dialled = mode == "dialled"
    dialled, attached = ServerConnection.SERVER_CONNECTION_DIALLED, ServerConnection.SERVER_CONNECTION_ATTACHED
    async with serve(operator=OPEN) as served, AsyncExitStack() as leave, bank.served() as server:
        port = await server.serve("127.0.0.1:0") if is_dialled else 0
        target = f"127.0.0.1:{port}" if is_dialled else served.daemon.addresses[0]
        link = await leave.enter_async_context(proxy(target))
        asked = Server(
            name=NAME,
            connection=dialled if is_dialled else attached,
            address=link.address if is_dialled else "",
            offers=[ServerOffer.SERVER_OFFER_TOOLS],
            tool_policies={"*": policy},
            dedupe_retention=duration(72 * 3600),
        )
        await served.client.servers.register(asked)
        if not is_dialled:
            await server.attach(link.address, name=NAME)
        async with asyncio.timeout(20):
            while not [tool async for tool in served.client.tools.list()]:
                await asyncio.sleep(0.02)
        try:
            yield Place(served, bank, link, leave)
        finally:
            bank.opened.set()
            link.release()
