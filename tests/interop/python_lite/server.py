"""A tool server of the pure-Python client, in its own environment: dialled or attached.

    python server.py serve [STORE]            prints `ready HOST:PORT`
    python server.py attach ADDRESS [STORE]   prints `ready` at each welcome; stops at the end of stdin

Each execution of a tool is a line `began NAME KEY`. A token in BEHEST_TOOL_TOKEN is asked of every caller.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys

from behest_lite.tools import Context, ToolError, ToolServer


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def made(store: str) -> ToolServer:
    """Make the server, with a tool for everything that an examination looks for."""
    server = ToolServer(store=store, token=os.environ.get("BEHEST_TOOL_TOKEN", ""))
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
    """Serve as the command line says."""
    how, *rest = sys.argv[1:]
    if how == "serve":
        async with made(rest[0] if rest else "") as server:
            say(f"ready 127.0.0.1:{await server.serve('127.0.0.1:0')}")
            await server.wait()
        return
    stopping = asyncio.Event()
    async with made(rest[1] if len(rest) > 1 else "") as server, asyncio.TaskGroup() as group:

        async def until_told() -> None:
            await asyncio.to_thread(sys.stdin.read)
            stopping.set()

        group.create_task(until_told())
        await server.attach(rest[0], name="lite", ready=lambda: say("ready"), stopping=stopping)


if __name__ == "__main__":
    asyncio.run(main())
