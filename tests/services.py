"""Starts the real servers that tests use, on free loopback ports, and names them until it is interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from tests import llm_server


async def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with llm_server.serving() as address:
        print(f"a small model, OpenAI-compatible: {address}", flush=True)  # noqa: T201
        await stopped.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
