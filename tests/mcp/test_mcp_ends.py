"""`behest mcp-bridge` ends when it is told to, whatever became of its daemon and its MCP server. All parts are real."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from behest.client import Client
from behest.v1.tool_service_pb2 import CallToolRequest, ListToolsRequest
from behest.v1.tool_service_pb2_grpc import ToolServiceStub
from tests import ports
from tests.daemon_process import DaemonProcess
from tests.mcp.scenes import SECONDS, Command, Ledger, behest, bridge, http_server, stdio_server, until

pytestmark = pytest.mark.timeout(300)

END_SECONDS = 30.0
"""Much more than a bridge needs, and less than the grace of one that waits for what never comes."""
KILL, STOP = signal.SIGKILL, signal.SIGSTOP
FATES = {"killed": KILL, "stopped": STOP}
WAYS = ("stdio", "http modern", "http legacy")


@dataclass(frozen=True)
class Scene:
    """A bridge whose MCP server is in a call that never ends."""

    command: Command
    hit: Callable[[signal.Signals], None]
    """Sends the MCP server a signal."""


@asynccontextmanager
async def daemon_of(home: Path) -> AsyncIterator[DaemonProcess]:
    """Start a daemon, and kill it in the end, also when it hangs."""
    daemon = DaemonProcess(home)
    try:
        await daemon.start()
        yield daemon
    finally:
        if daemon.is_running:
            await daemon.kill()


@asynccontextmanager
async def in_a_call(way: str, address: str, home: Path, *options: str) -> AsyncIterator[Scene]:
    """Bridge an MCP server to a daemon, and let a run call it."""
    name = way.replace(" ", "-")
    ledger, flag = Ledger(home / f"{name}.ledger"), home / f"{name}.flag"
    async with AsyncExitStack() as stack:
        if way == "stdio":
            # Not started a second time.
            script = 'rm "$1" && shift && exec "$@"'
            target = ["--", "sh", "-c", script, "sh", str(flag), *stdio_server(ledger)]
            flag.touch()
        else:
            port, era = ports.reserved(), ["--legacy"] if way.endswith("legacy") else []
            await stack.enter_async_context(http_server(ledger, port, *era))
            target = ["--url", f"http://127.0.0.1:{port}/mcp"]
        named = ("--name", name, "--prefix", f"{name.replace('-', '_')}_")
        command = await stack.enter_async_context(bridge(address, *named, *options, *target))
        async with Client(address) as client:
            await client.run(f"/tool {name.replace('-', '_')}_wait")
            await until(lambda: "wait begins" in ledger.lines)
        try:
            yield Scene(command, lambda number: os.kill(ledger.pids[0], number))
        finally:
            with suppress(ProcessLookupError):
                os.kill(ledger.pids[0], KILL)
            if command.process.returncode is None:
                command.process.kill()


async def ended(command: Command) -> int:
    """Wait for the end of a bridge that was told to stop, and return its exit code."""
    async with asyncio.timeout(END_SECONDS):
        return await command.process.wait()


async def test_a_bridge_ends_when_its_daemon_hangs_and_its_servers_hang_or_are_gone(tmp_path: Path) -> None:  # N18
    async with daemon_of(tmp_path / "daemon") as daemon, AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        entering = [
            group.create_task(stack.enter_async_context(in_a_call(way, daemon.address, tmp_path, "--grace", "0.5")))
            for way in ("http legacy", "stdio")
        ]
        hanging, gone = [await each for each in entering]
        daemon.send_signal(STOP)
        hanging.hit(STOP)
        gone.hit(KILL)
        for scene in (hanging, gone):
            scene.command.process.send_signal(signal.SIGTERM)
        assert [await ended(scene.command) for scene in (hanging, gone)] == [0, 0]


async def test_a_second_signal_ends_a_bridge_at_once(tmp_path: Path) -> None:  # N18
    ledger = Ledger(tmp_path / "ledger")
    async with behest("mcp-bridge", "--listen", "127.0.0.1:0", "--", *stdio_server(ledger)) as command:
        async with grpc.aio.insecure_channel((await command.ready())["address"]) as channel:
            stub = ToolServiceStub(channel)
            stub.CallTool(CallToolRequest(tool_name="wait", arguments_json="{}", idempotency_key="k"))
            await until(lambda: "wait begins" in ledger.lines)
            command.process.send_signal(signal.SIGTERM)
            # It drains once it takes no calls of others.
            with pytest.raises(grpc.aio.AioRpcError):
                async with asyncio.timeout(SECONDS):
                    while True:
                        await stub.ListTools(ListToolsRequest())
            command.process.send_signal(signal.SIGINT)
            assert await ended(command) == -signal.SIGINT


@pytest.mark.proof
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("daemon_fate", "server_fate", "first"),
    list(itertools.product(FATES, FATES, ("daemon", "server"))),
)
async def test_a_bridge_ends_whatever_happened_to_both_in_whichever_order(
    way: str, daemon_fate: str, server_fate: str, first: str, tmp_path: Path
) -> None:  # N18
    async with daemon_of(tmp_path / "daemon") as daemon, in_a_call(way, daemon.address, tmp_path) as scene:
        hits = [lambda: daemon.send_signal(FATES[daemon_fate]), lambda: scene.hit(FATES[server_fate])]
        for hit in hits if first == "daemon" else reversed(hits):
            hit()
        scene.command.process.send_signal(signal.SIGTERM)
        assert await ended(scene.command) == 0
