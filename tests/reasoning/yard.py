"""A tool server on a port of its own that daemons of tests dial, and what it was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from behest.tools import ToolServer
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from tests.daemons import Served, serve
from tests.runs.scenes import NON_IDEMPOTENT, OPEN, PURE

SECONDS = 30.0


@dataclass
class Yard:
    """A tool server of its own port, and what it was asked for."""

    calls: list[str] = field(default_factory=list)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    def served(self) -> ToolServer:
        """The server."""
        server = ToolServer()

        @server.tool
        def look(at: str) -> str:
            """Look at something."""
            self.calls.append(f"look at {at}")
            return f"{at} is fine"

        @server.tool
        def pay(to: str) -> str:
            """Pay somebody."""
            self.calls.append(f"pay {to}")
            return f"paid {to}"

        @server.tool
        def measure(task: str) -> str:
            """Measure what is shown."""
            self.calls.append("measure")
            return '{"stars": 7}' if "count the stars" in task else "{}"

        @server.tool
        async def wait(why: str) -> str:
            """Wait until somebody opens."""
            self.calls.append(f"wait {why}")
            await self.opened.wait()
            return "it is open"

        return server


@asynccontextmanager
async def with_yard(**overrides: Any) -> AsyncIterator[tuple[Served, Yard]]:
    """Serve a daemon that dials a tool server."""
    yard = Yard()
    async with serve(**({"operator": OPEN} | overrides)) as served, yard.served() as server:
        await register(served, f"127.0.0.1:{await server.serve('127.0.0.1:0')}")
        yield served, yard


async def register(served: Served, address: str) -> None:
    """Let a daemon dial the tool server, all of whose tools are pure but `pay`, and wait until it has."""
    asked = Server(
        name="yard",
        connection=ServerConnection.SERVER_CONNECTION_DIALLED,
        address=address,
        offers=[ServerOffer.SERVER_OFFER_TOOLS],
        tool_policies={"*": PURE, "pay": NON_IDEMPOTENT},
    )
    await served.client.servers.register(asked)
    async with asyncio.timeout(SECONDS):
        while not [tool async for tool in served.client.tools.list()]:
            await asyncio.sleep(0.02)
