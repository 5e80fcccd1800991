"""A tool server in a few lines: decorate typed functions, and let a daemon dial them, or attach them to it.

    server = ToolServer()

    @server.tool
    async def search(query: str, limit: int = 10) -> list[str]:
        \"\"\"Find lines that hold a text.\"\"\"

    async with server:
        port = await server.serve("127.0.0.1:0")                       # the daemon dials this
        await server.attach("127.0.0.1:7717", name="search")           # or: this attaches to the daemon, until it ends

Schemas come from signatures (`behest_lite.schema` lists the types), descriptions from docstrings. Calls are remembered
by key (`store=PATH` keeps them over restarts), so that a repeated attempt is not executed again. What a function raises
is an error result for the model. Below: `dialled`, `attached`, `calls`.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import re
import socket
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from grpclib.server import Server

from behest_lite import schema
from behest_lite.attached import Attachment
from behest_lite.calls import Calls, Context, Function, ToolError
from behest_lite.contract.behest.v1 import SideEffect, Tool, ToolHints
from behest_lite.dialled import Dialled
from behest_lite.errors import StatusCodec
from behest_lite.store import MemoryStore, SqliteStore, Store

__all__ = ["Context", "ToolError", "ToolServer"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class ToolServer:
    """Serves functions as tools, from `async with` to its end. Register tools before.

    `store` is a path that remembers calls over restarts; empty remembers them in memory. `token` is the bearer token
    that callers must bring to `serve`, and that `attach` brings to the daemon.
    """

    def __init__(self, *, store: str = "", token: str = "", tls: ssl.SSLContext | None = None) -> None:
        self._functions: dict[str, Function] = {}
        self._store: Store = SqliteStore(store) if store else MemoryStore()
        self._token = token
        self._tls = tls
        self._group = asyncio.TaskGroup()
        self._calls = Calls(self._functions, self._store, self._group)
        self._servers: list[Server] = []

    @overload
    def tool(self, function: _Function, /) -> _Function: ...
    @overload
    def tool(self, *, name: str = "", side_effect: str = "") -> Callable[[_Function], _Function]: ...

    def tool(self, function: Any = None, *, name: str = "", side_effect: str = "") -> Any:
        """Register a function, as `@server.tool` or `@server.tool(name=…, side_effect=…)`.

        `side_effect` ("pure", "idempotent", "non_idempotent_queryable", "non_idempotent") is a hint for the operator;
        here it decides whether a call that a crash of this server interrupted is executed again when it is repeated.
        Raises TypeError for a signature without a form in JSON, ValueError for a name that is taken or not allowed.
        """

        def register(function: _Function) -> _Function:
            made = _made(function, name or function.__name__, side_effect)
            if not _NAME.fullmatch(made.tool.name):
                raise ValueError(f"{made.tool.name!r} is not [A-Za-z0-9_-]{{1,64}}")
            if made.tool.name in self._functions:
                raise ValueError(f"tool {made.tool.name} is registered already")
            self._functions[made.tool.name] = made
            return function

        return register if function is None else register(function)

    def tools(self) -> list[Tool]:
        """Return the tools, by ascending name."""
        return [self._functions[name].tool for name in sorted(self._functions)]

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop at once; calls that run are lost, and remembered as such where `store` is a path."""
        try:
            for server in self._servers:
                server.close()
                await server.wait_closed()
        finally:
            self._calls.stop()
            await self._group.__aexit__(None, None, None)
            await self._store.close()

    async def serve(self, address: str) -> int:
        """Listen on `HOST:PORT`, and return the port; port 0 takes a free one. Raises OSError."""
        handlers = [Dialled(self.tools, self._calls, self._token)]
        server = Server(handlers, status_details_codec=StatusCodec())
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host.strip("[]"), int(port)), family=family)
        await server.start(sock=listening, ssl=self._tls)
        self._servers.append(server)
        return int(listening.getsockname()[1])

    async def wait(self) -> None:
        """Wait until the server is stopped."""
        for server in self._servers:
            await server.wait_closed()

    async def attach(
        self,
        address: str,
        *,
        name: str,
        max_concurrent_calls: int = 0,
        tls: ssl.SSLContext | None = None,
        ready: Callable[[], None] = lambda: None,
        stopping: asyncio.Event | None = None,
    ) -> None:
        """Serve a daemon over a stream to it, opened again whenever it breaks, until `stopping` is set.

        Then no call is taken any more, those that run are finished and answered. `ready` is called at each welcome.
        `max_concurrent_calls` 0: as many as the daemon allows. Raises BehestError when the daemon refuses the server.
        """
        attachment = Attachment(address, name, self._calls, self.tools, token=self._token, tls=tls)
        await attachment.run(max_concurrent_calls, ready, stopping or asyncio.Event())


def _made(function: Callable[..., Any], name: str, side_effect: str) -> Function:
    found, context = schema.of_function(function, Context)
    effect = SideEffect[side_effect.upper()] if side_effect else SideEffect.UNSPECIFIED
    tool = Tool(
        name=name,
        description=inspect.getdoc(function) or name,
        input_schema_json=json.dumps(found, ensure_ascii=False),
        hints=ToolHints(side_effect=effect) if effect else None,
    )
    tool.hash = _hash(tool)
    return Function(tool, function, found, context)


def _hash(tool: Tool) -> bytes:
    """SHA-256 over name, description, input schema and output schema, each as its length in 8 bytes and its UTF-8."""
    digest = hashlib.sha256()
    for text in (tool.name, tool.description, tool.input_schema_json, tool.output_schema_json):
        digest.update(len(text.encode()).to_bytes(8, "big") + text.encode())
    return digest.digest()
