"""What is known of calls that went wrong: whether anything of them can have reached the MCP server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from behest.mcp.transports import KEY, Http
from tests import ports

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "add", "_meta": {KEY: "key_1"}}}


class Told:
    """What a connection tells."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.failed: list[tuple[str, bool]] = []

    async def post(self, port: int) -> None:
        """Make the call through the client of a connection. Raises what that raises."""
        dialled = Http(f"http://127.0.0.1:{port}/mcp")
        client: Any = dialled.client(lambda: None, self.sent.append, lambda *told: self.failed.append(told))
        async with client:
            await client.post(dialled.url, json=CALL)


async def test_a_call_that_finds_nobody_is_never_told_as_sent() -> None:  # N18
    told = Told()
    with pytest.raises(httpx2.ConnectError):
        await told.post(ports.reserved())
    assert (told.sent, told.failed) == ([], [("key_1", True)])


async def test_a_call_that_is_cut_while_it_connects_is_never_told_as_sent() -> None:  # N18
    told = Told()
    connecting = asyncio.Event()

    async def held(*_: Any, **__: Any) -> Any:
        connecting.set()
        await asyncio.Event().wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyio.connect_tcp", held)
        call = asyncio.create_task(told.post(ports.reserved()))
        await connecting.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert (told.sent, told.failed) == ([], [])


async def test_a_call_whose_server_goes_away_under_it_was_told_as_sent() -> None:  # N18
    async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    told = Told()
    async with await asyncio.start_server(gone, "127.0.0.1", 0) as server:
        with pytest.raises(httpx2.TransportError):
            await told.post(server.sockets[0].getsockname()[1])
    assert (told.sent, told.failed) == (["key_1"], [])
