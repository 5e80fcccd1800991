"""A tool server in a few lines: decorate typed functions, then be dialled by daemons, or attach to one, or both.

    server = ToolServer()

    @server.tool
    async def search(query: str, limit: int = 10) -> list[str]:
        \"\"\"Find lines that hold a text.\"\"\"

    async with server:
        await server.attach("127.0.0.1:7717", name="files")
        await server.wait()

Schemas come from signatures (`behest.schema` lists the types), descriptions from docstrings. Calls are remembered by
key (`dedupe=PATH` keeps them over restarts), so that a repeated attempt is not executed again. What a function raises
is an error result for the model. Below it `behest.tool_service`, and one module for each mode.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, overload

import grpc
import grpc.aio

from behest.dedupe import RETENTION_SECONDS, MemoryDedupe, SqliteDedupe
from behest.security import Tls, check_token
from behest.tool_attach import Attachment, Target
from behest.tool_calls import Calls
from behest.tool_context import Context, ToolError
from behest.tool_dialled import listening
from behest.tool_functions import AnyFunction, Function, Mark, function_of, functions_of, tool
from behest.tool_service import Service
from behest.v1.tool_pb2 import Tool

__all__ = ["Context", "ToolError", "ToolServer", "tool"]

DRAIN_SECONDS = 60.0


class ToolServer:
    """Serves functions and objects as tools, from `async with` to its end. Register tools before that.

    `dedupe` is a path that remembers calls over restarts; empty remembers them in memory, which is enough for pure
    tools: the server then never promises that an unknown call was not executed. `token` is the bearer token that
    daemons which dial must bring. `threads` bounds the plain functions that run at once; async ones run on the loop.
    """

    def __init__(
        self,
        *,
        dedupe: str = "",
        retention_seconds: float = RETENTION_SECONDS,
        token: str = "",
        credentials: grpc.ServerCredentials | None = None,
        threads: int = 32,
    ) -> None:
        self._functions: dict[str, Function] = {}
        self._objects: list[object] = []
        store = SqliteDedupe(dedupe, retention_seconds) if dedupe else MemoryDedupe(retention_seconds)
        self._service = Service(self._functions, Calls(store, threads))
        self._token = token
        self._credentials = credentials
        self._lifetime = AsyncExitStack()
        self._group = asyncio.TaskGroup()
        self._servers: list[grpc.aio.Server] = []
        self._attachments: dict[Attachment, asyncio.Task[None]] = {}
        self._ended = asyncio.Event()

    @overload
    def tool(self, function: AnyFunction, /) -> AnyFunction: ...
    @overload
    def tool(
        self, *, name: str = "", description: str = "", side_effect: str = ""
    ) -> Callable[[AnyFunction], AnyFunction]: ...

    def tool(self, function: Any = None, *, name: str = "", description: str = "", side_effect: str = "") -> Any:
        """Register a function, as `@server.tool` or `@server.tool(name=…, description=…, side_effect=…)`.

        Name and description default to those of the function. `side_effect` ("pure", "idempotent",
        "non_idempotent_queryable", "non_idempotent") is a hint for the operator of the daemon; here it decides whether
        a call that a crash of this server interrupted is executed again when it is repeated. Raises TypeError for a
        signature without a form in JSON, ValueError for a name that is taken or not allowed.
        """

        def register(function: AnyFunction) -> AnyFunction:
            self._add(function_of(function, Mark(name, description, side_effect)))
            return function

        return register if function is None else register(function)

    def add(self, thing: object) -> None:
        """Register an object: its method `call`, named after its class, and every method marked with `@tool`.

            class Accounts:
                @tool(side_effect="pure")
                async def balance(self, account: str) -> int: ...

            server.add(Accounts())

        An object that is a context manager is entered before the first call and left after the last. Raises TypeError
        for an object without tools, and as `tool` does.
        """
        for made in functions_of(thing):
            self._add(made)
        self._objects.append(thing)

    def replace(self, functions: Iterable[Function]) -> None:
        """Serve these tools and no others from now on, also while serving: attached daemons are told at once.

        Calls that run go on. A daemon that dials learns of it when it connects again. Raises ValueError, and changes
        nothing, for a name that comes twice.
        """
        made: dict[str, Function] = {}
        for function in functions:
            if function.tool.name in made:
                raise ValueError(f"tool {function.tool.name} comes twice")
            made[function.tool.name] = function
        self._functions.clear()
        self._functions.update(made)
        for attachment in self._attachments:
            self._group.create_task(attachment.announce())

    def _add(self, made: Function) -> None:
        if made.tool.name in self._functions:
            raise ValueError(f"tool {made.tool.name} is registered already")
        self._functions[made.tool.name] = made

    @property
    def tools(self) -> list[Tool]:
        """The tools, by ascending name."""
        return self._service.tools

    async def __aenter__(self) -> Self:
        """Set up the objects, and what calls run in."""
        async with AsyncExitStack() as stack:
            for thing in self._objects:
                if hasattr(thing, "__aenter__"):
                    await stack.enter_async_context(thing)  # type: ignore[arg-type]
                elif hasattr(thing, "__enter__"):
                    stack.enter_context(thing)  # type: ignore[arg-type]
            await stack.enter_async_context(self._service.calls)
            await self._group.__aenter__()
            self._lifetime = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving at once; calls that run are lost, and remembered as such where `dedupe` is a path."""
        try:
            await self.stop()
        finally:
            # Not told of the error: the group would wrap it, and the attachments are stopped already.
            await self._group.__aexit__(None, None, None)
            await self._lifetime.aclose()

    async def serve(self, address: str) -> int:
        """Listen on `HOST:PORT` or `unix:PATH` for daemons that dial, and return the port; port 0 takes a free one.

        Raises RuntimeError when the address cannot be taken.
        """
        server, port = await listening(self._service, address, token=self._token, credentials=self._credentials)
        self._servers.append(server)
        return port

    async def attach(
        self,
        target: str,
        *,
        name: str,
        token: str = "",
        tls: Tls | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        max_concurrent_calls: int = 0,
    ) -> Attachment:
        """Attach to the daemon at `HOST:PORT` or `unix:PATH`, under a name, and return once it has taken the server.

        Waits as long as the daemon cannot be reached, and attaches again whenever the stream breaks: calls go on
        meanwhile, and their results are kept for the daemon, as long as `dedupe` remembers. `token` is what the daemon
        asks for; `max_concurrent_calls` bounds the calls at once, 0 leaves it to the daemon. Raises BehestError when
        the daemon refuses the server, such as TOOL_NAME_TAKEN, and ValueError for a token that would leave this machine
        in the clear.
        """
        check_token(token, target, has_tls=tls is not None or credentials is not None)
        attachment = Attachment(Target(target, name, token, credentials, max_concurrent_calls, tls), self._service)
        task = self._attachments[attachment] = self._group.create_task(attachment.run())
        try:
            await attachment.ready()
        except BaseException:
            task.cancel()
            del self._attachments[attachment]
            raise
        task.add_done_callback(lambda _: self._ended.set())
        return attachment

    async def wait(self) -> None:
        """Wait until the server is stopped. Raises BehestError when a daemon does not take it any more."""
        await self._ended.wait()
        for attachment, task in self._attachments.items():
            if task.done():
                await attachment.ended()

    async def drain(self, grace_seconds: float = DRAIN_SECONDS, *, alone_seconds: float | None = None) -> None:
        """Take no more calls, finish those that run and give their results, then stop; what takes longer is lost.

        So is, with `alone_seconds`, what is not done so long after the last daemon went that could be given a result.
        """
        self._service.calls.drain()
        self._service.models.drain()
        try:
            async with asyncio.timeout(grace_seconds):
                async with asyncio.TaskGroup() as group:
                    for server in self._servers:
                        group.create_task(server.stop(grace_seconds))
                    for attachment in self._attachments:
                        group.create_task(attachment.drain(alone_seconds))
                if alone_seconds is None or self._servers:
                    # Calls with a key outlive the streams of daemons that dialled.
                    async with asyncio.timeout(alone_seconds):
                        await self._service.calls.idle()
        except TimeoutError:
            pass
        finally:
            await self.stop()

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """Take no more calls, and let the streams of dialled ones that run end within the grace."""
        for task in self._attachments.values():
            task.cancel()
        for server in self._servers:
            await server.stop(grace_seconds)
        self._ended.set()
