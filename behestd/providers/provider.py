"""The port of model providers: one attempt, never a retry. Above: the performers. Below: the adapters.

A stream is a sequence of the contract's own frames (`StreamChatResponse`): each holds the pieces that are
there now, so a provider that does not wait puts its whole answer into one, and a remote provider hands its
frames through. The last frame holds the end. `guarded` puts the time limits on any stream and refuses one
that stops without its end; nothing above reads a stream in another way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from behest.v1.chat_service_pb2 import Chat, ChatEnd, StreamChatResponse
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.model_pb2 import Model
from behest.v1.model_pb2 import Provider as ProviderInfo
from behestd.providers.failure import ProviderFailure
from behestd.values import dataclass

Frame = StreamChatResponse


@dataclass(frozen=True, slots=True)
class ProviderTimeouts:
    """Limits of one attempt, in seconds."""

    connect_seconds: float = 5.0
    first_byte_seconds: float = 60.0
    """From the start to the first frame."""
    stall_seconds: float = 30.0
    """Between two frames."""
    total_seconds: float = 600.0

    def within(self, seconds: float) -> ProviderTimeouts:
        """Return these limits with a total of at most `seconds`."""
        if seconds >= self.total_seconds:
            return self
        return ProviderTimeouts(self.connect_seconds, self.first_byte_seconds, self.stall_seconds, seconds)


class Provider(Protocol):
    """A source of models. All methods may be called at the same time, any number of times.

    One call is one request to the vendor: a provider never tries again by itself. Every failure is raised as
    `ProviderFailure`, which alone says whether trying again makes sense; vendor exceptions do not come out.
    Cancelling a call, or closing a stream, ends the vendor's request and releases its connection.
    """

    @property
    def id(self) -> str:
        """Return the id of the provider, the part of its models' ids before the first slash."""
        ...

    def describe(self) -> ProviderInfo:
        """Describe the provider, without credentials and without health."""
        ...

    def models(self) -> Sequence[Model]:
        """Return the models, without health. They stay the same for the life of the provider."""
        ...

    def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        """Make one attempt. `chat.model` is the id of one of `models()`; artifacts are inlined beforehand.

        Yields frames in order; pieces of one part follow each other. A frame without pieces says that the
        vendor is alive. The last frame holds `end` with the whole answer: its text is what the pieces add up
        to, its tool calls carry the vendor's ids as `provider_call_id` and no `id`, arguments are never
        empty, usage is set. An iteration that stops without that frame is a broken stream. Raises:
        ProviderFailure.
        """
        ...

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Return one vector an input, in order; `request.model` is the id of one of `models()`.

        Raises: ProviderFailure.
        """
        ...

    async def close(self) -> None:
        """Release connections. Idempotent; open calls may fail."""
        ...


async def complete(provider: Provider, chat: Chat, timeouts: ProviderTimeouts) -> ChatEnd:
    """Make one attempt and return the whole answer. Raises: ProviderFailure."""
    async with aclosing(guarded(provider.stream(chat), timeouts)) as frames:
        async for frame in frames:
            if frame.HasField("end"):
                return frame.end
    raise broken()


async def embed(provider: Provider, request: EmbedRequest, timeouts: ProviderTimeouts) -> EmbedResponse:
    """Make one attempt within the total limit. Raises: ProviderFailure."""
    try:
        async with asyncio.timeout(timeouts.total_seconds):
            return await provider.embed(request)
    except TimeoutError as error:
        raise timed_out("no vectors", timeouts.total_seconds) from error


def guarded(stream: AsyncGenerator[Frame, None], timeouts: ProviderTimeouts) -> Guarded:
    """Put limits on one attempt. To be read, and closed, inside a running loop."""
    return Guarded(stream, timeouts)


def broken() -> ProviderFailure:
    """Make the failure of a stream that stops without its end."""
    return ProviderFailure("PROVIDER_STREAM_BROKEN", "the answer ended without its end marker")


def timed_out(what: str, limit_seconds: float) -> ProviderFailure:
    """Make the failure of an attempt that passed one of its limits."""
    limit = f"{limit_seconds:g}"
    return ProviderFailure("PROVIDER_TIMEOUT", f"{what} within {limit} s", metadata={"limitSeconds": limit})


class Guarded:
    """The frames of one attempt within its limits, empty ones left out, up to and with the end.

    The stream is closed in the end, whatever happens. Time spent by the consumer counts for the total only: a limit
    that passes cancels the wait for a frame, and nothing else. One timer serves the whole stream: it is moved when it
    fires, not when a frame comes, so a frame costs no timer. (`asyncio.timeout` would need a timer for each frame, or
    would fire into the consumer.)

    Raises: ProviderFailure PROVIDER_TIMEOUT, PROVIDER_STREAM_BROKEN, and what the stream raises.
    """

    __slots__ = (
        "_due",
        "_has_begun",
        "_is_late",
        "_is_over",
        "_limits",
        "_loop",
        "_stream",
        "_timer",
        "_total_due",
        "_waiting",
    )

    def __init__(self, stream: AsyncGenerator[Frame, None], limits: ProviderTimeouts) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._total_due = self._loop.time() + limits.total_seconds
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: asyncio.Task[object] | None = None
        self._has_begun = False
        self._is_late = False
        self._is_over = False

    def __aiter__(self) -> Guarded:
        return self

    async def __anext__(self) -> Frame:
        """Return the next frame that says something."""
        if self._is_over:
            raise StopAsyncIteration
        try:
            frame = await self._next()
            while not frame.deltas and not frame.HasField("end"):
                frame = await self._next()
        except BaseException:
            await self.aclose()
            raise
        if frame.HasField("end"):
            await self.aclose()
        return frame

    async def aclose(self) -> None:
        """Let go of the timer and close the stream. Idempotent."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._stream.aclose()

    async def _next(self) -> Frame:
        """Wait for a frame."""
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        self._waiting = task
        self._start()
        try:
            frame = await anext(self._stream, None)
        except asyncio.CancelledError:
            if self._is_late and task.uncancel() <= before:
                raise self._failure() from None
            raise
        finally:
            self._waiting = None
        if self._is_late:
            # The stream kept the cancellation to itself.
            task.uncancel()
            raise self._failure()
        if frame is None:
            raise broken()
        self._has_begun = True
        return frame

    def _limit_seconds(self) -> float:
        return self._limits.stall_seconds if self._has_begun else self._limits.first_byte_seconds

    def _start(self) -> None:
        self._due = min(self._loop.time() + self._limit_seconds(), self._total_due)
        if self._timer is not None and self._timer.when() > self._due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self._waiting is None:
            return
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._fire)
        else:
            self._is_late = True
            self._waiting.cancel()

    def _failure(self) -> ProviderFailure:
        if self._due == self._total_due:
            return timed_out("no end of the answer", self._limits.total_seconds)
        what = "no further piece of the answer" if self._has_begun else "no answer"
        return timed_out(what, self._limit_seconds())
