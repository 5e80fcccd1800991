"""A tool server process that dies, hangs or is slow when it is told to, and writes each effect to a ledger first.

python tests/tools/faulty_tools.py LEDGER DEDUPE [ADDRESS]
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from behest.tools import Context, ToolServer


def ledger(path: Path) -> ToolServer:
    """Make the server."""
    server = ToolServer(dedupe=sys.argv[2])

    def effect(context: Context) -> None:
        with path.open("a") as file:
            file.write(f"{context.idempotency_key} {context.attempt} {context.epoch}\n")
            file.flush()
            os.fsync(file.fileno())

    @server.tool
    async def act(context: Context, then: str = "answer") -> str:
        """Take effect, then answer, die, stop the process or sleep."""
        effect(context)
        if then == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if then == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if then == "sleep":
            await asyncio.Event().wait()
        return "done"

    @server.tool
    async def die(context: Context) -> str:
        """Die before any effect."""
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"

    return server


async def main() -> None:
    """Serve until the process ends."""
    async with ledger(Path(sys.argv[1])) as server:
        address = sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1:0"
        port = await server.serve(address)
        sys.stdout.write(f"ready 127.0.0.1:{port}\n")
        sys.stdout.flush()
        await server.wait()


if __name__ == "__main__":
    asyncio.run(main())
