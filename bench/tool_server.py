"""A tool server with one tool that does nothing: dialled, or attached to a daemon. What the tool benchmarks call.

python -m bench.tool_server --ready-fd N [--attach HOST:PORT --name NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import os

from behest.tools import ToolServer

server = ToolServer()


@server.tool
def echo(text: str) -> str:
    """Return the text."""
    return text


async def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--attach", default="")
    parser.add_argument("--name", default="echo")
    options = parser.parse_args()
    async with server:
        if options.attach:
            address = options.attach
            await server.attach(options.attach, name=options.name)
        else:
            address = f"127.0.0.1:{await server.serve('127.0.0.1:0')}"
        with os.fdopen(options.ready_fd, "w") as pipe:
            pipe.write(f"{address}\n")
        await server.wait()


if __name__ == "__main__":
    asyncio.run(main())
