"""Serves, by the Python SDK, the tools that the suites of all languages call, dialled or attached.

python tools_python.py serve|attach HOST:PORT STORE TOKEN
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys

from behest.security import Tls
from behest.tools import Context, ToolError, ToolServer


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def made(store: str, token: str) -> ToolServer:
    """Make the server with its tools."""
    server = ToolServer(dedupe=store, token=token)
    counted = itertools.count(1)

    @server.tool
    def count() -> dict[str, int]:
        """Count on."""
        return {"n": next(counted)}

    @server.tool(side_effect="pure")
    def echo(text: str, times: int = 1) -> str:
        """Repeat a text."""
        return text * times

    @server.tool
    def fail(why: str) -> str:
        """Fail."""
        raise ToolError(why)

    @server.tool
    def large(bytes: int) -> str:
        """Be large."""
        return "ä" * (bytes // 2)

    @server.tool(side_effect="pure")
    def mirror(text: str, whole: int, ratio: float, yes: bool, words: list[str]) -> dict[str, object]:
        """Give back values of every kind."""
        return {"text": text, "whole": whole, "ratio": ratio, "yes": yes, "words": words}

    @server.tool
    async def keep(context: Context, text: str) -> dict[str, str]:
        """Keep a text."""
        kept = await context.artifact(text.encode(), name="kept.txt", media_type="text/plain")
        return {"id": kept.id, "trace": context.traceparent}

    @server.tool
    async def work(context: Context, seconds: float) -> str:
        """Take time."""
        say(f"began work {context.idempotency_key}")
        for step in range(5):
            context.progress(f"step {step}", current=step, total=4)
            await asyncio.sleep(seconds / 5)
        return f"worked {next(counted)}"

    return server


async def main() -> None:
    """Serve as the command line says, until SIGTERM."""
    how, address, store, token = sys.argv[1:]
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with made(store, token) as server:
        if how == "attach":
            tls = Tls(ca=os.environ["CA_FILE"]) if "CA_FILE" in os.environ else None
            await server.attach(address, name="common", token=token, tls=tls)
            say("ready")
        else:
            say(f"ready 127.0.0.1:{await server.serve(address)}")
        await stopping.wait()
        await server.drain(10)


if __name__ == "__main__":
    asyncio.run(main())
