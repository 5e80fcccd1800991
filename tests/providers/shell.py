"""Runs a command of these tests to its end."""

from __future__ import annotations

import asyncio

SECONDS = 60


async def finished(*command: str) -> str:
    """Run a command, which must succeed, and return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()
