"""A daemon in the test's own process that was started from a file, and reads it again when it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from behest.client import Client
from behestd.config.source import Origin
from behestd.daemon import Daemon
from behestd.planning import again
from tests.daemons import Served

HEAD = """
[server]
listen = ["127.0.0.1:0"]
[storage]
kind = "memory"
"""


@dataclass(frozen=True, slots=True)
class Configured:
    """A daemon that serves, and its file."""

    served: Served
    file: Path

    @property
    def client(self) -> Client:
        """Its client."""
        return self.served.client

    @property
    def daemon(self) -> Daemon:
        """The daemon."""
        return self.served.daemon

    def write(self, text: str) -> None:
        """Write the file anew."""
        self.file.write_text(HEAD + text)

    async def reload(self, text: str | None = None) -> tuple[list[str], list[str]]:
        """Write the file if there is something to write, and have it read; gives the keys that changed."""
        if text is not None:
            self.write(text)
        told = await self.client.daemon.reload()
        return list(told.changed_keys), list(told.restart_keys)


@asynccontextmanager
async def configured(place: Path, text: str = "", environ: dict[str, str] | None = None) -> AsyncIterator[Configured]:
    """Serve as a file says, beneath the environment."""
    file = place / "behestd.toml"
    file.write_text(HEAD + text)
    origin = Origin(file, {"HOME": str(place), "BEHEST__LIMITS__DRAIN_SECONDS": "0.5", **(environ or {})})
    async with Daemon(again.plan(origin.load(), origin)) as daemon:
        address = daemon.addresses[0]
        async with Client(address) as client, grpc.aio.insecure_channel(address) as channel:
            yield Configured(Served(daemon, client, channel), file)
