"""Tools and runs of a daemon as an MCP server, over stdin and stdout or streamable HTTP.

Above: the command line. Below: the client, `answers`, `orders`, and the server of the MCP SDK. It adds no right: what
is called is what this client may call, under the operator's policies and rules. Guarantees: a call that is cancelled is
cancelled at the daemon; a repeated one with the same key, in `_meta`, is not executed twice.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import anyio
import grpc.aio
import uvicorn
from mcp import MCPError, types
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from starlette.types import ASGIApp, Receive, Scope, Send

from behest.client import Client
from behest.errors import BehestError
from behest.mcp.answers import answer_of, error_of, tool_of
from behest.mcp.orders import CANCEL_SECONDS, OrderInvalid, Orders
from behest.mcp.transports import KEY, LOOPBACK
from behest.services.ids import new_request_id
from behest.v1.message_pb2 import ToolResult
from behest.v1.tool_pb2 import Progress
from behest.v1.tool_service_pb2 import CancelCallRequest

PROGRESS_QUEUED = 256
STOP_SECONDS = 5
"""How long streams may take to end when it stops."""


@dataclass(frozen=True, slots=True)
class Face:
    """What an MCP client sees of a daemon: the tools that match a glob (none: all), and the tool that gives orders."""

    client: Client
    globs: tuple[str, ...] = ()
    orders: Orders | None = None
    has_tools: bool = True

    def server(self) -> Server[Any]:
        """Make the MCP server."""
        return Server("behest", on_list_tools=self._list, on_call_tool=self._call)

    async def _list(
        self, _: ServerRequestContext[Any], __: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        try:
            tools = [tool_of(tool) async for tool in self.client.tools.list() if self._shows(tool.name)]
        except BehestError as exc:
            raise MCPError(types.INTERNAL_ERROR, str(exc)[:2_000]) from exc
        if self.orders is not None:
            if any(tool.name == self.orders.name for tool in tools):
                text = f"the daemon has a tool {self.orders.name}: name that which gives orders otherwise, --run-tool"
                raise MCPError(types.INTERNAL_ERROR, text)
            tools.append(self.orders.tool)
        return types.ListToolsResult(tools=tools)

    async def _call(
        self, context: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        arguments = params.arguments or {}
        key = str((context.meta or {}).get(KEY, "")) or new_request_id()
        try:
            if self.orders is not None and params.name == self.orders.name:
                report = context.session.report_progress
                return await self.orders.carry_out(
                    arguments, lambda count, text: report(count, None, text), request_id=key
                )
            if not self._shows(params.name):
                raise MCPError(types.INVALID_PARAMS, f"there is no tool {params.name[:64]}")
            return await self._called(context, params.name, json.dumps(arguments, ensure_ascii=False), key)
        except OrderInvalid as exc:
            raise MCPError(types.INVALID_PARAMS, str(exc)) from exc
        except BehestError as exc:
            if exc.reason == "TOOL_NOT_FOUND":
                raise MCPError(types.INVALID_PARAMS, exc.message) from exc
            return error_of(exc)

    def _shows(self, name: str) -> bool:
        return self.has_tools and (not self.globs or any(fnmatchcase(name, glob) for glob in self.globs))

    async def _called(
        self, context: ServerRequestContext[Any], name: str, arguments_json: str, key: str
    ) -> types.CallToolResult:
        """Call a tool of the daemon, and pass on its progress. Raises BehestError."""
        shown: asyncio.Queue[Progress | None] = asyncio.Queue(PROGRESS_QUEUED)

        def show(progress: Progress) -> None:
            # What nobody reads fast enough is dropped: it is shown, never needed.
            with suppress(asyncio.QueueFull):
                shown.put_nowait(progress)

        outcome: ToolResult | BehestError
        async with anyio.create_task_group() as group:
            group.start_soon(_passed_on, shown, context)
            try:
                outcome = await self.client.tools.call(name, arguments_json, idempotency_key=key, on_progress=show)
            except BehestError as exc:
                outcome = exc
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True), anyio.move_on_after(CANCEL_SECONDS):
                    await _cancelled(self.client, key)
                raise
            await shown.put(None)
        # Raised behind the group, which would wrap it.
        if isinstance(outcome, BehestError):
            raise outcome
        return await answer_of(outcome, self.client.artifacts)


async def _passed_on(shown: asyncio.Queue[Progress | None], context: ServerRequestContext[Any]) -> None:
    """Pass progress on, up to a None. MCP wants a number that grows: without one of the tool's it is counted."""
    last = 0.0
    while (progress := await shown.get()) is not None:
        last = max(progress.current if progress.HasField("current") else last + 1, last)
        total = progress.total if progress.HasField("total") else None
        await context.session.report_progress(last, total, progress.text or None)


async def _cancelled(client: Client, key: str) -> None:
    request = CancelCallRequest(idempotency_key=key)
    # Best effort, as the call itself says.
    with suppress(grpc.aio.AioRpcError):
        await client.stubs.tools.CancelCall(request, timeout=CANCEL_SECONDS)


async def serve_stdio(face: Face) -> None:
    """Serve one client over stdin and stdout, until it closes them. Nothing else may be printed meanwhile."""
    server = face.server()
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


@dataclass(frozen=True, slots=True)
class Door:
    """Where HTTP clients come in; port 0 takes a free one. With a token, each request must bring it.

    Certificate and key are paths of PEM files, both empty for plain HTTP.
    """

    host: str
    port: int
    token: str = field(default="", repr=False)
    cert: str = ""
    key: str = ""


async def serve_http(
    face: Face, door: Door, *, stopping: asyncio.Event, on_ready: Callable[[str], None] = lambda url: None
) -> None:
    """Serve clients at `http://HOST:PORT/mcp`, or https, until it is stopping.

    Raises ValueError for an address beyond loopback without a token, OSError when the address cannot be taken, or its
    certificate cannot be read.
    """
    host, token = door.host, door.token
    if host not in LOOPBACK and not token:
        raise ValueError(f"{host} is beyond loopback: a token is needed")
    app: ASGIApp = face.server().streamable_http_app(host=host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, door.port))
        listening.listen()
        config = uvicorn.Config(
            _Guard(app, token) if token else app,
            log_level="warning",
            timeout_graceful_shutdown=STOP_SECONDS,
            ssl_certfile=door.cert or None,
            ssl_keyfile=door.key or None,
        )
        server = _HttpServer(config)
        on_ready(
            f"http{'s' if door.cert else ''}://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/mcp"
        )
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(server.stop_after(stopping))
            await server.serve(sockets=[listening])
            watching.cancel()


class _HttpServer(uvicorn.Server):
    """Leaves signals to the command, which ends it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def stop_after(self, stopping: asyncio.Event) -> None:
        """Stop once it is said."""
        await stopping.wait()
        self.should_exit = True


class _Guard:
    """Refuses requests that do not bring the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what brings the token, and what is no request."""
        given = dict(scope.get("headers") or ()).get(b"authorization", b"")
        if scope["type"] == "http" and not hmac.compare_digest(given, self._expected):
            headers = [(b"www-authenticate", b"Bearer"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, send)
