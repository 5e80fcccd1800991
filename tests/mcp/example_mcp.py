"""An MCP server made with the official SDK, which writes each execution to a ledger before it acts.

    python example_mcp.py LEDGER [--http PORT] [--legacy]

Over stdin and stdout unless a port is given. `--legacy` knows no version of MCP since 2026.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import anyio
from mcp import MCPError
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.runner import serve_loop
from mcp.server.stdio import stdio_server
from mcp.types import (
    METHOD_NOT_FOUND,
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    RequestParams,
    ResourceLink,
    TextContent,
    TextResourceContents,
    ToolAnnotations,
)
from pydantic import BaseModel

LEDGER = Path()
server = MCPServer("example", log_level="ERROR")


def note(*words: object) -> None:
    """Write a line to the ledger, durably."""
    with LEDGER.open("a") as file:
        print(*words, file=file, flush=True)
        os.fsync(file.fileno())


class Forecast(BaseModel):
    """What the weather will be."""

    city: str
    degrees: float


@server.tool(annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
def add(a: int, b: int) -> int:
    """Add two integers."""
    note("add", a, b)
    return a + b


@server.tool(name="weather.of", title="Weather")
def weather(city: str) -> Forecast:
    """Tell the weather."""
    note("weather", city)
    return Forecast(city=city, degrees=21.5)


@server.tool(structured_output=False)
async def count(ctx: Context, to: int) -> str:
    """Count, with progress."""
    for number in range(1, to + 1):
        await ctx.report_progress(number, to, f"at {number}")
    return f"counted to {to}"


@server.tool(structured_output=False)
async def wait(ctx: Context) -> str:
    """Wait until it is cancelled."""
    note("wait begins")
    await ctx.report_progress(1, None, "waiting")
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        note("wait cancelled")
        raise
    return "never"


@server.tool(structured_output=False)
def media() -> CallToolResult:
    """Give content of every kind."""
    blob = "aGVsbG8="
    pdf = BlobResourceContents(uri="file:///a/b.pdf", blob=blob, mime_type="application/pdf")
    return CallToolResult(
        content=[
            TextContent(text="all kinds"),
            Image(data=b"\x89PNG small", format="png").to_image_content(),
            Image(data=b"\x89PNG" + b"x" * 300_000, format="png").to_image_content(),
            AudioContent(data=blob, mime_type="audio/wav"),
            EmbeddedResource(resource=TextResourceContents(uri="note://1", text="a note", mime_type="text/plain")),
            EmbeddedResource(resource=pdf),
            ResourceLink(uri="https://example.com/doc", name="doc", mime_type="text/html"),
        ]
    )


@server.tool(structured_output=False)
def fail() -> str:
    """Fail."""
    raise ToolError("there is no such account")


@server.tool(structured_output=False)
def die(word: str = "") -> str:
    """End the process in the middle of the call."""
    note("die", word)
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@server.tool(structured_output=False)
def key(ctx: Context) -> str:
    """Tell the key that the call carries."""
    meta: Any = ctx.request_context.meta or {}
    return str(meta.get("behest/idempotencyKey"))


@server.tool(structured_output=False)
async def grow(ctx: Context) -> str:
    """Offer one tool more, and say so."""
    server.add_tool(lambda: "grown", name="grown", description="Was not there before.", structured_output=False)
    await ctx.notify_tools_changed()
    if ctx.protocol_version and ctx.protocol_version < "2026":
        await ctx.session.send_tool_list_changed()
    return "grew"


async def serve_legacy_stdio() -> None:
    """Serve with the handshake of earlier versions and nothing else."""
    lowlevel = server._lowlevel_server
    options = lowlevel.create_initialization_options(NotificationOptions(tools_changed=True))
    async with stdio_server() as (reading, writing), lowlevel.lifespan(lowlevel) as state:
        await serve_loop(lowlevel, reading, writing, lifespan_state=state, init_options=options)


async def no_discovery(ctx: Any, params: Any) -> Any:
    """Answer as a server that was made before the method was."""
    raise MCPError(METHOD_NOT_FOUND, "Method not found")


def main() -> None:
    """Serve until the end of stdin, or a signal."""
    global LEDGER
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--http", type=int)
    parser.add_argument("--legacy", action="store_true")
    options = parser.parse_args()
    LEDGER = options.ledger
    if options.legacy:
        server._lowlevel_server.add_request_handler("server/discover", RequestParams, no_discovery)
    note("pid", os.getpid())
    if options.http is None and options.legacy:
        anyio.run(serve_legacy_stdio)
    elif options.http is None:
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=options.http)


if __name__ == "__main__":
    main()
