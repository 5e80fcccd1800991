"""Ways to an MCP server: a process of our own, spoken to over stdin and stdout, or streamable HTTP.

Above: `upstream`. Below: the transports of the MCP SDK. Guarantees: the end of a connection is told at once, also while
nothing is asked; a call that may have reached the server is known by the key that it carried, whatever came of it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import httpx2
from mcp import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

KEY = "behest/idempotencyKey"
"""Where `_meta` of a call carries its key, also for MCP servers that dedupe by it."""
HTTP_SECONDS = 30.0
GOODBYE_SECONDS = 2.0
"""How long a server may take to forget a session that is given up."""
_SESSION = "mcp-session-id"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

Streams = tuple[Any, Any]


OnEnd = Callable[[], None]
"""Called once a connection is over, maybe more than once."""
OnSent = Callable[[str], None]
"""Called with the key of a call before the first byte of it may reach the server."""
Note = Callable[[str, bool], None]
"""Takes the key of a call that was not answered, and whether it is proved that it was not executed."""


class Dial(Protocol):
    """Contract: opens one connection, and tells of its end, of calls that leave and of those that go wrong."""

    def __call__(self, on_end: OnEnd, on_sent: OnSent, note: Note) -> AbstractAsyncContextManager[Streams]: ...


@dataclass(frozen=True, slots=True)
class Process:
    """A command that is started anew for each connection. It gets `env`, and of our environment what is harmless."""

    command: str
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    @asynccontextmanager
    async def __call__(self, on_end: OnEnd, on_sent: OnSent, note: Note) -> AsyncIterator[Streams]:
        """Start it, and stop it in the end. Raises OSError."""
        parameters = StdioServerParameters(command=self.command, args=list(self.arguments), env=dict(self.env))
        async with stdio_client(parameters) as (reading, writing):
            yield _Reading(reading, on_end), _Writing(writing, on_sent)


@dataclass(frozen=True, slots=True)
class Http:
    """A server at a URL, with headers such as `Authorization`."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @asynccontextmanager
    async def __call__(self, on_end: OnEnd, on_sent: OnSent, note: Note) -> AsyncIterator[Streams]:
        """Open it. Raises httpx2.HTTPError once it is used, alone or in a group."""
        async with (
            self.client(on_end, on_sent, note) as client,
            streamable_http_client(self.url, http_client=client) as (reading, writing),
        ):
            yield _Reading(reading, on_end), writing

    def client(self, on_end: OnEnd, on_sent: OnSent, note: Note) -> httpx2.AsyncClient:
        """Make the client of one connection. How long an answer may take is the caller's to say: it cancels."""
        timeout = httpx2.Timeout(HTTP_SECONDS, read=None)
        return _HttpClient(on_end, on_sent, note, headers=dict(self.headers), timeout=timeout)


class _HttpClient(httpx2.AsyncClient):
    """Tells of calls that did not reach the server, of those that it or a proxy failed, and of a forgotten session."""

    def __init__(self, on_end: OnEnd, on_sent: OnSent, note: Note, **settings: Any) -> None:
        super().__init__(**settings)
        self._on_end = on_end
        self._on_sent = on_sent
        self._note = note

    async def send(self, request: httpx2.Request, **settings: Any) -> httpx2.Response:
        """Send a request."""
        key = _key_of(request)

        async def trace(name: str, info: Mapping[str, Any]) -> None:
            if name.endswith(".send_request_headers.started"):
                self._on_sent(key)

        if key:
            request.extensions = {**request.extensions, "trace": trace}
        try:
            # The SDK waits for the answer to a DELETE before it lets go, and answers have no limit here.
            async with asyncio.timeout(GOODBYE_SECONDS if request.method == "DELETE" else None):
                response = await super().send(request, **settings)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            self._note(key, True)
            raise
        if response.status_code >= httpx2.codes.INTERNAL_SERVER_ERROR:
            self._note(key, False)
        elif request.method == "POST" and _SESSION in request.headers and await _is_forgotten(response):
            self._note(key, True)
            self._on_end()
        return response


async def _is_forgotten(response: httpx2.Response) -> bool:
    """Whether the server does not know the session of a request, as after its restart: it then did nothing.

    MCP wants 404; there are servers that say 400 and speak of the session.
    """
    if response.status_code == httpx2.codes.BAD_REQUEST:
        return b"session" in (await response.aread()).lower()
    return response.status_code == httpx2.codes.NOT_FOUND


def _key_of(request: httpx2.Request) -> str:
    """The key of the call that a request is. Empty for anything else."""
    try:
        return _key_in(json.loads(request.content)["params"])
    except (ValueError, KeyError, TypeError, httpx2.RequestNotRead):
        return ""


def _key_in(params: Any) -> str:
    """The key in the parameters of a call. Raises KeyError or TypeError when there is none."""
    return str(params["_meta"][KEY])


class _Writing:
    """A stream of messages that tells which calls it takes."""

    def __init__(self, stream: Any, on_sent: OnSent) -> None:
        self._stream = stream
        self._on_sent = on_sent

    async def send(self, message: SessionMessage) -> None:
        """Give it the next message."""
        try:
            self._on_sent(_key_in(getattr(message.message, "params", None)))
        except (KeyError, TypeError):
            pass  # No call of ours: it has no key.
        await self._stream.send(message)

    async def aclose(self) -> None:
        """Close it."""
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *details: Any) -> None:
        await self._stream.__aexit__(*details)


class _Reading:
    """A stream of messages that tells when it has ended."""

    def __init__(self, stream: Any, on_end: OnEnd) -> None:
        self._stream = stream
        self._on_end = on_end

    @property
    def last_context(self) -> Any:
        """The context of who sent the last message, where the stream knows it."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        """Wait for the next message."""
        message: SessionMessage | Exception = await self._stream.receive()
        return message

    async def aclose(self) -> None:
        """Close it."""
        self._on_end()
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            message: SessionMessage | Exception = await anext(self._stream)
        except BaseException:
            self._on_end()
            raise
        return message

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *details: Any) -> None:
        self._on_end()
        await self._stream.__aexit__(*details)
