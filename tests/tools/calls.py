"""What the tests of tools share: a call, a link to a server on loopback, a place for progress."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from behest.v1.tool_pb2 import Progress, SideEffect, Tool
from behestd.tools.catalog import tool_hash
from behestd.tools.remote import RemoteServer
from behestd.tools.schema import Validators
from behestd.tools.tool import Call, Timeouts
from behestd.wire.endpoint import Rules, check
from behestd.wire.remote_channel import Link

TESTS = Path(__file__).resolve().parent.parent

CALL = Call(
    namespace="default",
    run_id="run-1",
    session_id="session-1",
    call_id="call-1",
    name="tool",
    arguments_json="{}",
    key="key-1",
    attempt=1,
    epoch=1,
    side_effect=SideEffect.SIDE_EFFECT_NON_IDEMPOTENT,
    tool_hash=b"",
    timeouts=Timeouts(connect_seconds=2.0, start_to_close_seconds=4.0),
)


def call(**changes: Any) -> Call:
    """Make a call with these fields."""
    return replace(CALL, **changes)


def limits(**changes: float) -> Timeouts:
    """Make time limits with these fields."""
    return replace(CALL.timeouts, **changes)


def tool(name: str = "tool", schema: str = '{"type": "object"}', **fields: str) -> Tool:
    """Make a tool with its hash."""
    made = Tool(name=name, input_schema_json=schema, **fields)
    made.hash = tool_hash(made)
    return made


def nowhere(_progress: Progress) -> None:
    """Show progress to nobody."""


@asynccontextmanager
async def dialled(address: str, **link: Any) -> AsyncIterator[RemoteServer]:
    """Dial a server on loopback."""
    checked = check(address, Rules(allow_loopback=True), has_tls=link.get("tls") is not None)
    server = RemoteServer(Link("server-1", checked, **link), Validators())
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def process(script: str, *arguments: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Run a tool server as a process until the block ends: its address, and the process."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, str(TESTS / script), *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert started.stdout is not None
        async with asyncio.timeout(20):
            line = (await started.stdout.readline()).decode().split()
        assert line[0] == "ready"
        yield line[1], started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()
