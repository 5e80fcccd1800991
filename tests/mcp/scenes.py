"""Processes of the MCP tests: servers and clients of the official SDK, and the two commands that stand between.

Everything here is a process of its own, ended by its id. Waits are generous, since machines are slow and shared.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import sysconfig
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

SECONDS = 90.0
SERVER = Path(__file__).resolve().parent / "example_mcp.py"
CLIENT = Path(__file__).resolve().parent / "mcp_client.py"
BEHEST = Path(sysconfig.get_path("scripts")) / "behest"
PIPE = asyncio.subprocess.PIPE


class Ledger:
    """What the MCP server wrote of its executions. Outside of what is tested."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[str]:
        """The executions, in order."""
        return [line.strip() for line in self._all if not line.startswith("pid ")]

    @property
    def pids(self) -> list[int]:
        """The processes that were started, in order."""
        return [int(line.removeprefix("pid ")) for line in self._all if line.startswith("pid ")]

    @property
    def _all(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


async def until(condition: Callable[[], Any]) -> None:
    """Wait until something that is watched from outside is so."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


def stdio_server(ledger: Ledger, *options: str) -> list[str]:
    """Return the command of an MCP server over stdin and stdout."""
    return [sys.executable, str(SERVER), str(ledger.path), *options]


async def listening(port: int) -> None:
    """Wait until somebody listens on a port."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            await writer.wait_closed()
            return


@asynccontextmanager
async def http_server(ledger: Ledger, port: int, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start an MCP server over HTTP, which listens some time later, and kill it in the end."""
    command = stdio_server(ledger, "--http", str(port), *options)
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
    try:
        yield process
    finally:
        await killed(process)


async def killed(process: asyncio.subprocess.Process) -> None:
    """Kill a process that may have ended, and wait for its end."""
    if process.returncode is None:
        process.kill()
    await process.wait()


class Command:
    """A command of `behest` that runs until it is told to stop. Made by `bridge` and `face`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ready(self) -> dict[str, str]:
        """Wait until it says that it is ready, and return what it says. Raises RuntimeError when it ends instead."""
        assert self.process.stdout is not None
        async with asyncio.timeout(SECONDS):
            line = (await self.process.stdout.readline()).decode()
        word, _, rest = line.strip().partition(" ")
        if word != "ready":
            raise RuntimeError(f"it ended with {await self.process.wait()}")
        return dict(pair.split("=", 1) for pair in rest.split())

    async def stop(self) -> int:
        """Ask it to stop, as a service is asked, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            return await self.process.wait()


@asynccontextmanager
async def behest(*arguments: str, **env: str) -> AsyncIterator[Command]:
    """Start a command of `behest`, and stop it in the end."""
    process = await asyncio.create_subprocess_exec(
        BEHEST, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, env={**os.environ, **env}
    )
    command = Command(process)
    try:
        yield command
    finally:
        if process.returncode is None:
            await command.stop()


@asynccontextmanager
async def bridge(address: str, *arguments: str) -> AsyncIterator[Command]:
    """Attach an MCP server to the daemon at an address."""
    async with behest("mcp-bridge", "--name", "example", "--target", address, *arguments) as command:
        await command.ready()
        yield command


async def ended(*arguments: str) -> tuple[int, str]:
    """Run a command of `behest` to its end, and return its exit code and stderr."""
    process = await asyncio.create_subprocess_exec(
        BEHEST, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(SECONDS):
        _, stderr = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stderr.decode()


class McpClient:
    """An MCP client in a process of its own. Made by `mcp_client`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def tell(self, **command: Any) -> None:
        """Give it a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self._process.stdin.drain()

    async def next(self) -> dict[str, Any]:
        """Return the next thing that happened there."""
        assert self._process.stdout is not None
        async with asyncio.timeout(SECONDS):
            line = await self._process.stdout.readline()
        assert line, f"the client ended with {await self._process.wait()}"
        document: dict[str, Any] = json.loads(line)
        return document

    async def tools(self) -> dict[str, dict[str, Any]]:
        """List the tools, by name. Gives `error` alone when they cannot be listed."""
        await self.tell(do="list")
        return {tool["name"]: tool for tool in (await self.next())["tools"]}

    async def call(self, tool: str, _id: str = "1", _meta: Any = None, **arguments: Any) -> list[dict[str, Any]]:
        """Call a tool; return all that happened up to its end, which is last."""
        await self.tell(do="call", id=_id, tool=tool, arguments=arguments, meta=_meta)
        happened = [await self.next()]
        while "progress" in happened[-1]:
            happened.append(await self.next())
        return happened

    async def close(self) -> None:
        """Close its stdin, which ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(SECONDS):
            await self._process.wait()


@asynccontextmanager
async def mcp_client(*arguments: str, **env: str) -> AsyncIterator[McpClient]:
    """Connect an MCP client to a URL, or to a command behind `--`."""
    command = [sys.executable, str(CLIENT), *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env={**os.environ, **env})
    client = McpClient(process)
    try:
        await client.next()
        yield client
        await client.close()
    finally:
        await killed(process)


@asynccontextmanager
async def face(address: str, *arguments: str) -> AsyncIterator[McpClient]:
    """Connect an MCP client to a daemon, over stdin and stdout of `behest mcp-serve`."""
    async with mcp_client("--", str(BEHEST), "mcp-serve", "--target", address, *arguments) as client:
        yield client
