"""HTTP as the adapters of HTTP providers use it: one call is one request, no redirects, no proxy from the environment.

Above: `openai`, `anthropic`. Below: httpx2, `sse`, `http_failure`. Nothing of the client comes out: its exceptions are
failures here, and what it says about an address, a header or a key is not repeated.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from behestd.errors import InvalidRequest, Unsupported
from behestd.providers.failure import NOT_SENT, ProviderFailure
from behestd.providers.fields import malformed, parsed
from behestd.providers.http_failure import MAX_BODY_BYTES, refused
from behestd.providers.provider import broken
from behestd.providers.secret import Secret
from behestd.providers.sse import Decoder, ServerEvent, TooLong

if TYPE_CHECKING:
    import httpx2

_DRAIN_SECONDS = 0.05
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Where and how a server is reached."""

    provider: str
    """The provider's id in the catalog."""
    base_url: str
    headers: Mapping[str, str] = field(repr=False)
    """Sent with each request; may hold secrets."""
    secret: Secret
    """What no text of a failure may hold."""
    extra: str
    """The extra that brings the client, for who has it not."""
    connect_seconds: float = 5.0
    keepalive_seconds: float | None = None
    """How long an idle connection is kept. None: 30 over TLS, 0 in the clear, where a new one costs nothing and some
    servers (llama.cpp) close after a stream without saying so, into the next request."""


def load_httpx(extra: str) -> Any:
    """Load the HTTP client. Raises: Unsupported when the extra that brings it is not installed."""
    try:
        return importlib.import_module("httpx2")
    except ImportError as error:
        raise Unsupported(
            "REQUEST_UNSUPPORTED",
            f"the adapter needs the extra behestd[{extra}]: pip install 'behestd[{extra}]'",
            feature=f"behestd[{extra}]",
        ) from error


class HttpClient:
    """The connections to one server."""

    def __init__(self, settings: HttpSettings) -> None:
        """Set up without connecting.

        Raises: Unsupported when the extra is not installed, InvalidRequest when the settings fit no request.
        """
        self._settings = settings
        self._httpx = load_httpx(settings.extra)
        self._keepalive_seconds = settings.keepalive_seconds
        if self._keepalive_seconds is None:
            self._keepalive_seconds = 30.0 if settings.base_url.startswith("https:") else 0.0
        try:
            self._client: httpx2.AsyncClient = self._httpx.AsyncClient(
                base_url=settings.base_url.rstrip("/") + "/",
                headers={"User-Agent": "behestd", **settings.headers},
                # How long to wait for bytes is decided above, for all providers alike.
                timeout=self._httpx.Timeout(None, connect=settings.connect_seconds),
                limits=self._httpx.Limits(
                    max_connections=None,
                    max_keepalive_connections=100 if self._keepalive_seconds else 0,
                    keepalive_expiry=self._keepalive_seconds,
                ),
                trust_env=False,
            )
        except (self._httpx.InvalidURL, UnicodeError):
            # The cause would show the key.
            raise InvalidRequest(f"providers.{settings.provider}", "address, headers or key fit no request") from None

    @asynccontextmanager
    async def post(self, path: str, body: object) -> AsyncIterator[httpx2.Response]:
        """Make one request with a JSON body and hand out the response once it is a success.

        Raises: ProviderFailure, also for what goes wrong while the response is read.
        """
        content = _encoded(body)
        with self._told():
            async with self._client.stream("POST", path, content=content, headers=_JSON) as response:
                if not response.is_success:
                    read = await _read(response, MAX_BODY_BYTES, cut=True)
                    raise refused(response.status_code, response.headers, read, self._settings.secret)
                yield response

    async def read(self, response: httpx2.Response) -> object:
        """Read a whole body of JSON. Raises: ProviderFailure."""
        return parsed(await _read(response, _MAX_ANSWER_BYTES))

    async def events(self, response: httpx2.Response) -> AsyncGenerator[list[ServerEvent], None]:
        """Yield what each piece of the network completes. To be left at the end marker: the end of bytes is none.

        Raises: ProviderFailure when the bytes end.
        """
        decoder = Decoder()
        try:
            async for chunk in response.aiter_bytes():
                yield decoder.feed(chunk)
        except self._httpx.TransportError as error:
            raise broken() from error
        raise broken()

    async def drain(self, events: AsyncIterator[list[ServerEvent]]) -> None:
        """Read the rest, so that the connection can serve again; whatever it brings, the answer is there."""
        if not self._keepalive_seconds:
            return
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for _ in events:
                    pass
        except (TimeoutError, ProviderFailure, ValueError, self._httpx.DecodingError):
            return

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn the client's exceptions into failures, the most specific first; what they say is not repeated."""
        httpx = self._httpx
        try:
            yield
        except httpx.ConnectTimeout as error:
            limit = f"{self._settings.connect_seconds:g}"
            raise ProviderFailure(
                "PROVIDER_TIMEOUT", f"no connection within {limit} s", metadata={"limitSeconds": limit}
            ) from error
        except httpx.ConnectError as error:
            raise ProviderFailure(
                "PROVIDER_UNAVAILABLE", "the provider cannot be reached", failure_class=NOT_SENT
            ) from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError) as error:
            raise ProviderFailure("PROVIDER_REQUEST_INVALID", "the request cannot be sent as it is") from error
        except httpx.DecodingError as error:
            raise malformed("the response is not in its content encoding") from error
        except httpx.TransportError as error:
            raise ProviderFailure("PROVIDER_UNAVAILABLE", "the connection broke") from error
        except (UnicodeDecodeError, TooLong) as error:
            raise malformed("the stream is no server-sent events") from error


def address(url: str) -> str:
    """Return an address without what stands before its host, or behind its path."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _encoded(body: object) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        # Infinity, half a surrogate pair, or what nests without end.
        raise ProviderFailure("PROVIDER_REQUEST_INVALID", "the request holds what JSON cannot say") from error


async def _read(response: httpx2.Response, limit_bytes: int, *, cut: bool = False) -> bytes:
    """Read a body up to a limit. Raises: ProviderFailure when it is longer, unless it may be cut."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > limit_bytes:
            if cut:
                break
            raise malformed(f"the answer has more than {limit_bytes} bytes")
    return bytes(body[:limit_bytes])
