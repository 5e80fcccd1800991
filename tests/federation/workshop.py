"""A tool server in a process of its own that writes down what it is told of each call, and works until it may stop.

    python -m tests.federation.workshop HOME HOST:PORT

Four tools, one for each class of effect. Prints `ready PORT`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path

from behest.tools import Context, ToolServer

LEDGER = "ledger"
RELEASE = "release"
"""A file with this name and the mark of a call lets the call end."""


class Workshop:
    """What the tools do, and the ledger of it, synced line by line."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file = os.open(home / LEDGER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, what: str, mark: str, context: Context) -> None:
        """Add a line, durably."""
        deadline = context.deadline
        line = {
            "what": what,
            "mark": mark,
            "key": context.idempotency_key,
            "trace": context.traceparent,
            "deadline": deadline.timestamp() if deadline is not None else None,
        }
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)

    async def act(self, context: Context, mark: str, hold: bool) -> str:
        """Take effect, show progress, and answer as soon as the call may end."""
        self.write("effect", mark, context)
        context.progress(f"working on {mark}")
        try:
            while hold and not (self._home / f"{RELEASE}-{mark}").exists():
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.write("cancelled", mark, context)
            raise
        return f"made {mark}"


def served(workshop: Workshop, home: Path) -> ToolServer:
    """A server of the four tools."""
    server = ToolServer(dedupe=str(home / "dedupe"))

    @server.tool(side_effect="pure")
    async def pure(context: Context, mark: str, hold: bool = False) -> str:
        """Look something up."""
        return await workshop.act(context, mark, hold)

    @server.tool(side_effect="idempotent")
    async def idempotent(context: Context, mark: str, hold: bool = False) -> str:
        """Set something to a value."""
        return await workshop.act(context, mark, hold)

    @server.tool(side_effect="non_idempotent_queryable")
    async def queryable(context: Context, mark: str, hold: bool = False) -> str:
        """Order something; the server can be asked whether it was ordered."""
        return await workshop.act(context, mark, hold)

    @server.tool(side_effect="non_idempotent")
    async def payment(context: Context, mark: str, hold: bool = False) -> str:
        """Pay."""
        return await workshop.act(context, mark, hold)

    return server


async def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("address")
    options = parser.parse_args()
    home: Path = options.home
    async with served(Workshop(home), home) as server:
        print(f"ready {await server.serve(options.address)}", flush=True)  # noqa: T201
        await server.wait()


if __name__ == "__main__":
    asyncio.run(main())
