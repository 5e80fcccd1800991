"""The stage of the federation tests: a daemon whose tool server is a daemon whose tool server is a process of its own.

All three are real processes. The ledger is written by the last one, outside both daemons, and is the witness.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from behestd.core.times import duration
from tests import ports
from tests.crash.harness import Site, site
from tests.federation.workshop import LEDGER, RELEASE

CLASSES = {
    "pure": SideEffect.SIDE_EFFECT_PURE,
    "idempotent": SideEffect.SIDE_EFFECT_IDEMPOTENT,
    "queryable": SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE,
    "payment": SideEffect.SIDE_EFFECT_NON_IDEMPOTENT,
}
PREFIX = "far_"
"""What the near daemon puts before the names of the far one's tools."""
RETENTION_SECONDS = 72 * 3600
ATTEMPTS = 100
"""More than a call can need while its server is started again: those that are refused are over at once."""
GIVE_UP_SECONDS = 60


@dataclass
class Workshop:
    """The process that has the tools, at one address however often it is started."""

    home: Path
    address: str = field(default_factory=ports.address)
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it on what an earlier one left."""
        (self.home / LEDGER).touch()
        command = [sys.executable, "-m", "tests.federation.workshop", str(self.home), self.address]
        self.process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert self.process.stdout is not None
        async with asyncio.timeout(GIVE_UP_SECONDS):
            word, _, port = (await self.process.stdout.readline()).decode().strip().partition(" ")
        assert word == "ready"
        self.address = f"127.0.0.1:{port}"

    async def kill(self) -> None:
        """End it with SIGKILL."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@dataclass
class Stage:
    """The near daemon, which has the runs, the far one, which is its tool server, and the workshop behind that."""

    near: Site
    far: Site
    workshop: Workshop

    def lines(self, mark: str) -> list[dict[str, Any]]:
        """What the workshop wrote down of a call."""
        lines = [json.loads(line) for line in (self.workshop.home / LEDGER).read_text().splitlines()]
        return [line for line in lines if line["mark"] == mark]

    def count(self, mark: str, what: str) -> int:
        """How often something happened."""
        return sum(line["what"] == what for line in self.lines(mark))

    async def until(self, mark: str, what: str) -> dict[str, Any]:
        """Wait until something has happened."""
        async with asyncio.timeout(GIVE_UP_SECONDS):
            while not (found := [line for line in self.lines(mark) if line["what"] == what]):
                await asyncio.sleep(0.02)
        return found[0]

    def release(self, mark: str) -> None:
        """Let a call end."""
        (self.workshop.home / f"{RELEASE}-{mark}").touch()

    async def register(self, limits: dict[str, float] | None = None) -> None:
        """Register the far daemon with the near one, with limits of time for its tools."""
        policies = _policies(PREFIX)
        for name, seconds in (limits or {}).items():
            for policy in policies.values():
                getattr(policy.timeouts, name).CopyFrom(duration(seconds))
        await _register(self.near, "far", self.far.address, policies, PREFIX)


def _policies(prefix: str) -> dict[str, ToolPolicy]:
    return {prefix + tool: ToolPolicy(side_effect=effect, max_attempts=ATTEMPTS) for tool, effect in CLASSES.items()}


async def _register(at: Site, name: str, address: str, policies: dict[str, ToolPolicy], prefix: str = "") -> None:
    server = Server(
        name=name,
        connection=ServerConnection.SERVER_CONNECTION_DIALLED,
        address=address,
        offers=[ServerOffer.SERVER_OFFER_TOOLS],
        tool_policies=policies,
        name_prefix=prefix,
        dedupe_retention=duration(RETENTION_SECONDS),
    )
    async with at.client() as client:
        await client.servers.register(server)
        names = [tool.name async for tool in client.tools.list()]
    assert {prefix + tool for tool in CLASSES} <= set(names)


@asynccontextmanager
async def stage(home: Path, limits: dict[str, float] | None = None) -> AsyncIterator[Stage]:
    """Set the stage for one test."""
    homes = {name: home / name for name in ("near", "far", "workshop")}
    for place in homes.values():
        place.mkdir()
    workshop = Workshop(homes["workshop"])
    try:
        await workshop.start()
        async with site(homes["far"]) as far, site(homes["near"]) as near:
            await far.start()
            await near.start()
            await _register(far, "workshop", workshop.address, _policies(""))
            made = Stage(near, far, workshop)
            await made.register(limits)
            yield made
    finally:
        await workshop.kill()
