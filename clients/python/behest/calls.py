"""How each call to the daemon is made: with a deadline, our errors, and repeats where a repeat is safe.

Above: the services and the watch. Below: grpc.aio. Guarantees: no error of grpc leaves a call, no call is left open,
and nothing is sent twice unless the second sending has the effect of the first.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

import grpc
import grpc.aio

from behest.errors import BehestError, ClientClosedError, broken_stream, from_rpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

Request = TypeVar("Request")
Response = TypeVar("Response")
Item = TypeVar("Item")


class PagedRequest(Protocol):
    """Contract: a List request says where to go on."""

    page_token: str

    def SerializeToString(self) -> bytes: ...


class Page(Protocol):
    """Contract: a List response says whether there is more."""

    @property
    def next_page_token(self) -> str: ...


# What a daemon says that drains: it was heard, and is about to be started again.
LEAVING = "RUNTIME_DRAINING"
DRAIN_SECONDS = 60.0

PageRequest = TypeVar("PageRequest", bound=PagedRequest)
PageResponse = TypeVar("PageResponse", bound=Page)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client waits and tries again. All in seconds."""

    # Deadline of one attempt of a call that answers once.
    call_seconds: float = 30.0
    # How long a repeatable call is repeated while the daemon cannot be reached.
    repeat_seconds: float = 10.0
    # How long a watch is resumed without one frame from the daemon.
    watch_seconds: float = 60.0
    # The longest silence of an open watch: three heartbeats.
    silence_seconds: float = 45.0
    # The longest pause between two attempts; the first ones are shorter.
    pause_seconds: float = 5.0
    # How long a call is repeated that the daemon has no room for and says when to make again. 0: that is the caller's.
    shed_seconds: float = 0.0
    # How long a daemon may drain and count as heard.
    drain_seconds: float = DRAIN_SECONDS


class Backoff:
    """Pauses between attempts, with full jitter, until patience is over."""

    def __init__(self, pause_seconds: float, drain_seconds: float = DRAIN_SECONDS) -> None:
        self._pause_seconds = pause_seconds
        self._drain_seconds = drain_seconds
        self._attempts = 0
        # When it was last heard, and by anything but the word that it drains; None while nothing fails.
        self._failing_since: float | None = None
        self._draining_since = 0.0

    def heard(self, *, progress: bool) -> None:
        """Note that the daemon is there; with progress, pauses are short again."""
        self._failing_since = None
        if progress:
            self._attempts = 0

    async def pause(self, error: BehestError, *, give_up_seconds: float) -> None:
        """Wait before the next attempt, as long as the daemon said and a little more.

        Raises the error when that is longer than is bearable, or the daemon was not heard for so long.
        """
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = self._draining_since = now
        if error.reason == LEAVING and now < self._draining_since + self._drain_seconds:
            self._failing_since = now
        delay = random.uniform(0, min(self._pause_seconds, 0.1 * 2 ** min(self._attempts, 16)))
        delay += error.retry_seconds or 0.0
        self._attempts += 1
        if now + delay > self._failing_since + give_up_seconds:
            raise error
        await asyncio.sleep(delay)


def unbounded() -> None:
    """Bear any silence: the daemon bounds the call, and keepalive finds a dead one."""


class Calls:
    """Makes the calls of one client."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self._is_closed = False

    def close(self) -> None:
        """Let no further attempt be made. What is open ends with the channel."""
        self._is_closed = True

    def ensure_open(self) -> None:
        """Raise ClientClosedError after `close`."""
        if self._is_closed:
            raise ClientClosedError

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        is_repeatable: bool = True,
        timeout_seconds: float | None = None,
    ) -> Response:
        """Make a call that answers once. Raises BehestError.

        A repeatable call has no effect, or one that a repeat does not double: it is sent again while the daemon cannot
        be reached or does not answer.
        """
        timeout = self.patience.call_seconds if timeout_seconds is None else timeout_seconds
        return await self.repeated(lambda: method(request, timeout=timeout), is_repeatable=is_repeatable)

    async def repeated(self, attempt: Callable[[], Awaitable[Response]], *, is_repeatable: bool = True) -> Response:
        """Make attempts until one is decided. Raises BehestError."""
        backoff = Backoff(self.patience.pause_seconds, self.patience.drain_seconds)
        while True:
            self.ensure_open()
            try:
                return await attempt()
            except grpc.aio.AioRpcError as exc:
                error = from_rpc(exc)
                # What was shed has done nothing, so anything may be sent again.
                if not (error.is_shed or (is_repeatable and error.is_undecided)):
                    raise error from exc
            except asyncio.CancelledError as exc:
                raise_unless_cancelled(exc)
            seconds = self.patience.shed_seconds if error.is_shed else self.patience.repeat_seconds
            await backoff.pause(error, give_up_seconds=seconds)

    async def stream(
        self,
        call: grpc.aio.UnaryStreamCall[Any, Response] | grpc.aio.StreamStreamCall[Any, Response],
        *,
        silence_seconds: Callable[[], float | None] = unbounded,
    ) -> AsyncGenerator[Response, None]:
        """Yield the frames of one stream, and cancel it when the caller leaves. Raises BehestError.

        The silence that is borne is asked for before each frame.
        """
        frames = aiter(call)
        try:
            while True:
                async with asyncio.timeout(silence_seconds()):
                    frame = await anext(frames, None)
                if frame is None:
                    return
                yield frame
        except TimeoutError as exc:
            raise broken_stream("the daemon fell silent") from exc
        except grpc.aio.AioRpcError as exc:
            raise from_rpc(exc) from exc
        except asyncio.CancelledError as exc:
            raise_unless_cancelled(exc)
        finally:
            # A call that is dropped without this is never collected.
            call.cancel()

    async def pages(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[PageRequest, PageResponse],
        request: PageRequest,
        items: Callable[[PageResponse], Iterable[Item]],
    ) -> AsyncGenerator[Item, None]:
        """Yield the items of all pages, each page asked for when it is needed. Raises BehestError."""
        while True:
            page = await self.unary(method, request)
            for item in items(page):
                yield item
            if not page.next_page_token:
                return
            request = following(request, page.next_page_token)


def following(request: PageRequest, page_token: str) -> PageRequest:
    """Return the request for the next page."""
    copy: Any = type(request)()
    copy.MergeFromString(request.SerializeToString())
    copy.page_token = page_token
    result: PageRequest = copy
    return result


def raise_unless_cancelled(exc: asyncio.CancelledError) -> NoReturn:
    """Raise the cancellation if the caller's task is meant, else say that the call was: grpc has one error for both."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise exc
    raise ClientClosedError from exc
