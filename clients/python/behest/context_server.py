"""A server of context sources in a few lines: decorate async functions, then be dialled by daemons.

    server = ContextServer()

    @server.source
    async def calendar(request: ProvideContextRequest) -> str:
        \"\"\"What is on today.\"\"\"
        return "10:00 dentist"

    async with server:
        port = await server.serve("127.0.0.1:7800")
        await server.wait()

Registered under a name, such as `home`, with the offer `context`, its sources are named `home/calendar` in the
`context_sources` of agents. A daemon asks before each step, and may ask again for the same one.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self, overload

import grpc
import grpc.aio

from behest.tool_calls import Refused
from behest.tool_dialled import OPTIONS
from behest.v1.context_pb2 import ContextSource, ContextSourceKind
from behest.v1.context_service_pb2 import (
    BuildContextRequest,
    BuildContextResponse,
    ListContextSourcesRequest,
    ListContextSourcesResponse,
    ProvideContextRequest,
    ProvideContextResponse,
)
from behest.v1.context_service_pb2_grpc import ContextServiceServicer, add_ContextServiceServicer_to_server
from behest.v1.message_pb2 import Message, Part, Role, TextPart

__all__ = ["ContextServer", "ProvideContextRequest"]

Provided = str | Message | Sequence[str | Message] | None
Function = Callable[[ProvideContextRequest], Awaitable[Provided]]


class ContextServer:
    """Serves functions as context sources, from `async with` to its end. Register functions before `serve`.

    A function takes the request and gives a text, a message of the roles USER or SYSTEM, several of both, or None for
    nothing to say. What it raises fails the source for this step. `token` is the bearer token that daemons must bring.
    """

    def __init__(self, *, token: str = "", credentials: grpc.ServerCredentials | None = None) -> None:
        self._functions: dict[str, tuple[ContextSource, Function]] = {}
        self._token = token
        self._credentials = credentials
        self._servers: list[grpc.aio.Server] = []
        self._ended = asyncio.Event()

    @overload
    def source(self, function: Function, /) -> Function: ...
    @overload
    def source(self, *, name: str = "", description: str = "") -> Callable[[Function], Function]: ...

    def source(self, function: Any = None, *, name: str = "", description: str = "") -> Any:
        """Register a function, as `@server.source` or `@server.source(name=…, description=…)`.

        Name and description default to those of the function. Raises ValueError for a name that is taken.
        """

        def register(function: Function) -> Function:
            made = ContextSource(
                name=name or getattr(function, "__name__", ""),
                kind=ContextSourceKind.CONTEXT_SOURCE_KIND_FUNCTION,
                description=description or (function.__doc__ or "").strip(),
            )
            if made.name in self._functions:
                raise ValueError(f"context source {made.name} is registered already")
            self._functions[made.name] = (made, function)
            return function

        return register if function is None else register(function)

    @property
    def sources(self) -> list[ContextSource]:
        """The sources, by ascending name."""
        return [self._functions[name][0] for name in sorted(self._functions)]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving at once."""
        await self.stop()

    async def serve(self, address: str) -> int:
        """Listen on `HOST:PORT` or `unix:PATH` for daemons that dial, and return the port; port 0 takes a free one.

        Raises RuntimeError when the address cannot be taken.
        """
        server = grpc.aio.server(options=OPTIONS)
        add_ContextServiceServicer_to_server(_Dialled(self, self._token), server)
        if self._credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, self._credentials)
        await server.start()
        self._servers.append(server)
        return port

    async def provide(self, request: ProvideContextRequest) -> ProvideContextResponse:
        """Give what a source gives. Raises Refused for one that is not there, or that raised."""
        if request.source not in self._functions:
            raise Refused("NOT_FOUND", "CONTEXT_SOURCE_NOT_FOUND", f"context source {request.source} not found")
        try:
            return ProvideContextResponse(messages=_messages(await self._functions[request.source][1](request)))
        except Refused:
            raise
        except Exception as exc:
            text = f"the function raised {type(exc).__name__}"
            raise Refused("UNAVAILABLE", "CONTEXT_SOURCE_FAILED", text) from exc

    async def wait(self) -> None:
        """Wait until the server is stopped."""
        await self._ended.wait()

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """Take no more questions, and let those that are asked be answered within the grace. Idempotent."""
        for server in self._servers:
            await server.stop(grace_seconds)
        self._ended.set()


class _Dialled(ContextServiceServicer):
    """The service as gRPC calls it."""

    def __init__(self, server: ContextServer, token: str) -> None:
        self._server = server
        self._token = f"Bearer {token}".encode() if token else b""

    async def ProvideContext(self, request: ProvideContextRequest, context: Any) -> ProvideContextResponse:
        await self._authorize(context)
        try:
            return await self._server.provide(request)
        except Refused as exc:
            await _abort(context, exc)

    async def ListContextSources(self, request: ListContextSourcesRequest, context: Any) -> ListContextSourcesResponse:
        await self._authorize(context)
        return ListContextSourcesResponse(sources=self._server.sources)

    async def BuildContext(self, request: BuildContextRequest, context: Any) -> BuildContextResponse:
        await _abort(context, Refused("UNIMPLEMENTED", "REQUEST_UNSUPPORTED", "this server has context sources alone"))

    async def _authorize(self, context: Any) -> None:
        given = str(dict(context.invocation_metadata() or ()).get("authorization", "")).encode()
        if self._token and not hmac.compare_digest(given, self._token):
            await _abort(context, Refused("UNAUTHENTICATED", "AUTH_REQUIRED", "the bearer token is missing or wrong"))


async def _abort(context: Any, refused: Refused) -> NoReturn:
    trailers = (("grpc-status-details-bin", refused.status().SerializeToString()),)
    abort: Awaitable[NoReturn] = context.abort(grpc.StatusCode[refused.code], refused.message, trailers)
    await abort
    raise AssertionError("abort returned")


def _messages(provided: Provided) -> list[Message]:
    if provided is None:
        return []
    several = [provided] if isinstance(provided, str | Message) else provided
    return [_said(each) if isinstance(each, str) else each for each in several if each != ""]


def _said(text: str) -> Message:
    return Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
