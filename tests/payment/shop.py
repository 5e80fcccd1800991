"""A tool server in a process of its own whose every effect is a line in a ledger, synced to the disk.

    python -m tests.payment.shop LEDGER DEDUPE (--listen HOST:PORT | --attach HOST:PORT)

Four tools, one for each class of effect; only `idempotent` looks at its key before it acts, as a bank would that is
given one. The first attempt of a call dies where its arguments say. Prints `ready PORT` (0 when it is attached).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Literal

from behest.tools import Context, ToolServer

NAME = "shop"
Place = Literal["", "before_effect", "after_effect", "after_result"]


class Ledger:
    """The lines, in a file that is synced after each."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._path = path

    def write(self, what: str, tool: str, context: Context) -> None:
        """Add a line, durably."""
        line = {"what": what, "tool": tool, "key": context.idempotency_key, "run": context.run_id}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)

    def count(self, what: str, key: str) -> int:
        """How many lines there are of a kind and a key."""
        lines = [json.loads(line) for line in self._path.read_text().splitlines()]
        return sum(line["what"] == what and line["key"] == key for line in lines)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Shop:
    """What the four tools do, which is the same but for the class that the operator gives them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def act(self, tool: str, context: Context, work_ms: int, die: Place) -> str:
        """Take effect, show progress, work on, and answer with the number of effects so far."""
        ledger, key = self._ledger, context.idempotency_key
        ledger.write("dispatch", tool, context)
        dies = die if ledger.count("dispatch", key) == 1 else ""
        if dies == "before_effect":
            _die()
        if tool != "idempotent" or not ledger.count("effect", key):
            ledger.write("effect", tool, context)
        if dies == "after_effect":
            _die()
        context.progress("working")
        await asyncio.sleep(work_ms / 1000)
        if dies == "after_result":
            asyncio.get_running_loop().call_later(0.02, _die)
        return f"effects: {ledger.count('effect', key)}"


def served(shop: Shop, dedupe: Path) -> ToolServer:
    """A server of the four tools."""
    server = ToolServer(dedupe=str(dedupe))

    @server.tool(side_effect="pure")
    async def pure(context: Context, mark: str = "", work_ms: int = 0, die: Place = "") -> str:
        """Look something up."""
        return await shop.act("pure", context, work_ms, die)

    @server.tool(side_effect="idempotent")
    async def idempotent(context: Context, mark: str = "", work_ms: int = 0, die: Place = "") -> str:
        """Set something to a value."""
        return await shop.act("idempotent", context, work_ms, die)

    @server.tool(side_effect="non_idempotent_queryable")
    async def queryable(context: Context, mark: str = "", work_ms: int = 0, die: Place = "") -> str:
        """Order something; the server can be asked whether it was ordered."""
        return await shop.act("queryable", context, work_ms, die)

    @server.tool(side_effect="non_idempotent")
    async def payment(context: Context, mark: str = "", work_ms: int = 0, die: Place = "") -> str:
        """Pay."""
        return await shop.act("payment", context, work_ms, die)

    return server


async def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger", type=Path)
    parser.add_argument("dedupe", type=Path)
    parser.add_argument("--listen", default="")
    parser.add_argument("--attach", default="")
    options = parser.parse_args()
    port = 0
    async with served(Shop(Ledger(options.ledger)), options.dedupe) as server:
        if options.attach:
            await server.attach(options.attach, name=NAME)
        else:
            port = await server.serve(options.listen)
        print(f"ready {port}", flush=True)  # noqa: T201
        await server.wait()


if __name__ == "__main__":
    asyncio.run(main())
