"""The bridge: the tools of one MCP server, served as a tool server that is attached to a daemon, dialled, or both.

Above: the command line. Below: `upstream` towards the MCP server, `behest.tools` towards daemons. Guarantees: what the
daemon is offered is what the MCP server offers, also after it changed; while that is away its tools stay, and calls
of them are refused with the proof that nothing was executed.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any, Self

from mcp import types

from behest.mcp.offer import Choice, OfferRefused, offered
from behest.mcp.results import result_of
from behest.mcp.transports import Dial
from behest.mcp.upstream import Upstream
from behest.tool_context import Context
from behest.tool_functions import Function, function_given
from behest.tools import ToolServer
from behest.v1.message_pb2 import ToolResult
from behest.v1.tool_pb2 import Tool

_log = logging.getLogger("behest.mcp")


class Bridge:
    """Keeps the tools of an MCP server on a tool server, from `async with` to its end.

    The tool server is the caller's, and is entered within: its calls must end before the connection does. Entering
    waits until the tools are there, `patience_seconds` at most. Raises OfferRefused, and TimeoutError with what failed.
    """

    def __init__(self, server: ToolServer, dial: Dial, choice: Choice, *, patience_seconds: float = 30.0) -> None:
        self._server = server
        self._choice = choice
        self._patience_seconds = patience_seconds
        self._upstream = Upstream(dial, self._take)
        self._group = asyncio.TaskGroup()
        self._running: asyncio.Task[None] | None = None
        self._offer: dict[str, Tool] | None = None
        self._refused: OfferRefused | None = None
        self._told = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._running = self._group.create_task(self._upstream.run())
        try:
            await self._ready()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the MCP server; a process of ours is stopped."""
        if self._running is not None:
            self._running.cancel()
        # Not told of the error: the group would wrap it.
        await self._group.__aexit__(None, None, None)

    async def _ready(self) -> None:
        try:
            async with asyncio.timeout(self._patience_seconds):
                await self._told.wait()
        except TimeoutError as exc:
            raise TimeoutError(self._upstream.failure or "it does not answer") from exc
        if self._refused is not None:
            raise self._refused

    def _take(self, tools: list[types.Tool]) -> None:
        """Serve the tools as they are now; an offer that cannot be served leaves the one before in place."""
        self._told.set()
        try:
            offer = offered(tools, self._choice)
        except OfferRefused as exc:
            self._refused = exc
            _log.warning("the offer of the MCP server is refused: %s", exc)
            return
        if offer != self._offer:
            self._offer = offer
            self._server.replace(self._function(name, tool) for name, tool in offer.items())

    def _function(self, name: str, tool: Tool) -> Function:
        async def call(context: Context, arguments: dict[str, Any]) -> ToolResult:
            return await result_of(await self._upstream.call(name, arguments, context), tool.name, context)

        return function_given(tool, call)
