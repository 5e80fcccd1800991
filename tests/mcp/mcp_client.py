"""An MCP client made with the official SDK, in a process of its own: carries out commands from stdin, one a line.

    python mcp_client.py URL
    python mcp_client.py -- COMMAND [ARGS]…

Each command is JSON, and so is each line of stdout: what happened, progress as it comes, results in the end.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from typing import Any

import anyio
import httpx2
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client


def tell(**document: Any) -> None:
    """Print a line."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


class Session:
    """One client, and the calls that it makes at the same time, by the id that the command gives them."""

    def __init__(self, client: Client, group: anyio.abc.TaskGroup) -> None:
        self._client = client
        self._group = group
        self._calls: dict[str, anyio.CancelScope] = {}

    async def carry_out(self, command: dict[str, Any]) -> None:
        """Carry out a command."""
        match command["do"]:
            case "list":
                try:
                    listed = await self._client.list_tools(cache_mode="refresh")
                except MCPError as exc:
                    tell(error=exc.message)
                    return
                tell(tools=[tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in listed.tools])
            case "call":
                self._group.start_soon(self._call, command)
            case "cancel":
                self._calls[command["id"]].cancel()

    async def _call(self, command: dict[str, Any]) -> None:
        call_id = command["id"]

        async def show(progress: float, total: float | None, message: str | None) -> None:
            tell(id=call_id, progress=progress, total=total, message=message)

        with anyio.CancelScope() as scope:
            self._calls[call_id] = scope
            try:
                result = await self._client.call_tool(
                    command["tool"], command.get("arguments"), progress_callback=show, meta=command.get("meta")
                )
                tell(id=call_id, result=result.model_dump(mode="json", by_alias=True, exclude_none=True))
            except MCPError as exc:
                tell(id=call_id, error=exc.message, code=exc.code)
        if scope.cancelled_caught:
            tell(id=call_id, cancelled=True)


async def main() -> None:
    """Carry out commands until stdin ends."""
    async with anyio.create_task_group() as group:
        if sys.argv[1] == "--":
            connected = Client(StdioServerParameters(command=sys.argv[2], args=sys.argv[3:], env=dict(os.environ)))
        else:
            token = os.environ.get("MCP_TOKEN")
            http = httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"} if token else {})
            connected = Client(streamable_http_client(sys.argv[1], http_client=http))
        async with connected as client:
            tell(protocol=client.protocol_version)
            session = Session(client, group)
            while line := await anyio.to_thread.run_sync(partial(sys.stdin.readline), abandon_on_cancel=True):
                await session.carry_out(json.loads(line))
            group.cancel_scope.cancel()


anyio.run(main)
