"""The example tool server in a process of its own, and the ledger of what it executed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "example_tools.py"
START_SECONDS = 10.0
STOP_SECONDS = 5.0


class ToolProcess:
    """A tool server that runs at an address. Made by `tool_server`."""

    def __init__(self, address: str, process: asyncio.subprocess.Process) -> None:
        self.address = address
        self._process = process

    async def stop(self) -> list[str]:
        """End it, and name the calls that it executed, in order."""
        if self._process.returncode is None:
            self._process.terminate()
        async with asyncio.timeout(STOP_SECONDS):
            output, _ = await self._process.communicate()
        return [line.removeprefix("began ") for line in output.decode().splitlines() if line.startswith("began ")]


@asynccontextmanager
async def tool_server(directory: Path, *, delay_seconds: float = 0.0) -> AsyncIterator[ToolProcess]:
    """Start the example tool server on a free port, over a directory, and stop it in the end."""
    command = [sys.executable, str(SCRIPT), str(directory), "--delay", str(delay_seconds)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            word, _, address = (await process.stdout.readline()).decode().strip().partition(" ")
        if word != "ready":
            raise RuntimeError(f"the tool server ended with {await process.wait()}")
        yield ToolProcess(address, process)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
