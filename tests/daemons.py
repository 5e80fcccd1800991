"""Daemons for tests: the whole daemon in the test's own process, on a free loopback port, with a client to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from behest.client import Client
from behest.errors import BehestError, from_rpc
from behestd.daemon import Daemon, Plan
from behestd.providers.catalog import snapshot
from behestd.providers.scripted import Scripted
from behestd.runtime.clock import Clock


@dataclass(frozen=True, slots=True)
class Served:
    """A daemon that serves, a client of it, and a bare channel to it for raw stubs and bytes."""

    daemon: Daemon
    client: Client
    channel: grpc.aio.Channel


@asynccontextmanager
async def serve(
    store: str = "memory", data_dir: Path | None = None, *, clock: Clock | None = None, **overrides: Any
) -> AsyncIterator[Served]:
    """Serve with a store, "memory" or "sqlite", with the scripted provider unless the plan says otherwise.

    Without a `data_dir` SQLite has one of its own, which goes with the daemon. It drains for half a second at most.
    """
    with TemporaryDirectory() as directory:
        home = (data_dir or Path(directory) / "data") if store == "sqlite" else None
        defaults = {
            "models": snapshot([Scripted()], default_model="scripted/echo"),
            "data_dir": home,
            "addresses": ["127.0.0.1:0"],
            "drain_seconds": 0.5,
        }
        async with Daemon(Plan(**(defaults | overrides)), clock) as daemon:
            address = daemon.addresses[0]
            async with Client(address) as client, grpc.aio.insecure_channel(address) as channel:
                yield Served(daemon, client, channel)


async def refused(call: Awaitable[Any]) -> BehestError:
    """Wait for a call of the client to fail, at most 30 s, and return its error."""
    async with asyncio.timeout(30):
        try:
            answer = await call
        except BehestError as error:
            return error
    raise AssertionError(f"answered {answer!r}")


@dataclass(frozen=True, slots=True)
class Rejection:
    """What a raw call was refused with; `field` is empty when the status names none."""

    code: grpc.StatusCode
    reason: str
    field: str


async def rejection(call: Awaitable[Any]) -> Rejection:
    """Wait for a call of a raw stub to fail, at most 30 s, and read its status."""
    async with asyncio.timeout(30):
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            known = from_rpc(error)
            field = known.violations[0][0] if known.violations else known.metadata.get("field", "")
            return Rejection(error.code(), known.reason, field)
    raise AssertionError(f"answered {answer!r}")


def writes(served: Served) -> int:
    """How many items the store of a daemon was given, so that a test can tell that nothing was."""
    return served.daemon.log.store.statistics().items
