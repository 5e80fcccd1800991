"""One call as a handler sees it: who calls, how long it may take, and the way to write frames.

Above it are the handlers, which need no gRPC for what they do; below it is the servicer context of grpc.aio.
A handler is `async def handler(request, call)`; it returns the response of a unary method, and writes the
frames of a stream. Streams are written, not yielded: that costs the same, and only so can a write have a time
limit of its own. The guarantee: a write that takes too long ends the stream with WATCH_STALLED, and a client
that went away is always a CancelledError.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError, Message

from behestd.errors import BehestError, InvalidRequest, WatchStalled
from behestd.service.scopes import NOBODY
from behestd.telemetry import w3c

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Patience:
    """Cancels its task when one wait of it takes longer than a limit.

    One lazy timer a stream: `asyncio.timeout` around each write was measured at a tenth of what the write
    itself costs.
    """

    __slots__ = ("_limit_seconds", "_loop", "_since", "_task", "_timer", "is_over")

    def __init__(self, task: asyncio.Task[Any], limit_seconds: float) -> None:
        self._task = task
        self._limit_seconds = limit_seconds
        self._loop = task.get_loop()
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_over = False

    def begin(self) -> None:
        """Say that a wait begins."""
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._limit_seconds, self._look)

    def end(self) -> None:
        """Say that it is over."""
        self._since = None

    @property
    def is_waiting(self) -> bool:
        """Tell whether a wait has begun and not ended."""
        return self._since is not None

    def close(self) -> None:
        """Let the timer go. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return
        left_seconds = self._since + self._limit_seconds - self._loop.time()
        if left_seconds > 0:
            self._timer = self._loop.call_later(left_seconds, self._look)
        else:
            self.is_over = True
            self._task.cancel()


class Exchange:
    """What was said in a call that is to be recorded, as far as that is one message each."""

    __slots__ = ("is_recorded", "reply", "request", "targets")

    def __init__(self) -> None:
        self.request: Message | None = None
        self.reply: Message | None = None
        self.targets: dict[str, str] = {}
        """Ids of things that neither message names."""
        self.is_recorded = False


class Call:
    """A call being answered. Lives as long as its handler; not to be kept."""

    __slots__ = ("_context", "_ending", "_has_begun", "_is_cut", "_is_gone", "_patience", "_task", "caller", "exchange")

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], write_timeout_seconds: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is answered in a task")
        self.caller = NOBODY
        self.exchange: Exchange | None = None
        self._context = context
        self._task = task
        self._has_begun = False
        self._is_gone = False
        self._ending: BehestError | None = None
        self._is_cut = False
        self._patience = Patience(task, write_timeout_seconds)

    @property
    def is_over(self) -> bool:
        """Tell whether nobody waits for an answer any more: the client left, its deadline passed, or we stop."""
        return self._is_gone or self._task.cancelling() > 0 or self._ending is not None

    @property
    def namespace(self) -> str:
        """The caller's namespace, with which every key begins."""
        return self.caller.namespace

    @property
    def remaining_seconds(self) -> float | None:
        """What is left of the deadline that the client set. None: it set none."""
        return self._context.time_remaining()

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """What the client sent beside its request; of a key sent twice the last value."""
        return dict(self._context.invocation_metadata() or ())

    @property
    def peer(self) -> str:
        """Where the client is, as gRPC names it."""
        return str(self._context.peer())

    def names(self, **targets: str) -> None:
        """Say what a call is about that its messages do not name, for the audit."""
        if self.exchange is not None:
            self.exchange.targets |= targets

    @property
    def traceparent(self) -> str:
        """The trace that the call is part of, as W3C trace context. Empty: none."""
        found = ""
        for key, value in self._context.invocation_metadata() or ():
            if key == "traceparent":
                found = w3c.valid(value) if isinstance(value, str) else ""
        return found

    async def send_initial_metadata(self, **values: str) -> None:
        """Send metadata before the first frame, at most once; underscores become hyphens."""
        self._has_begun = True
        pairs = tuple((key.replace("_", "-"), value) for key, value in values.items())
        self._patience.begin()
        try:
            await self._context.send_initial_metadata(pairs)
        except grpc.aio.InternalError:
            self._is_gone = True
            raise asyncio.CancelledError from None
        finally:
            self._patience.end()
        self._end_here()

    async def confirm_end(self) -> None:
        """Make sure that requests have ended because the client said so. Raises CancelledError when it went away.

        gRPC reports both in the same way, and the cancellation comes a moment later: half an upload would pass for a
        whole one. Only sending something tells; nothing can be sent twice, so this holds for calls not yet answered.
        """
        if not self._has_begun:
            await self.send_initial_metadata()

    async def write(self, frame: bytes, resume_after: int = 0) -> None:
        """Send one encoded frame, and wait until the transport has taken it.

        `resume_after` is the sequence after which a client that is cut here goes on. Raises WatchStalled when
        the client does not read in time, and CancelledError when it is gone.
        """
        self._has_begun = True
        self._patience.begin()
        try:
            await self._context.write(frame)
        except asyncio.CancelledError:
            if not self._patience.is_over:
                raise
            self._patience.is_over = False
            if self._task.uncancel() > 0:
                raise
            raise WatchStalled(resume_after) from None
        except grpc.aio.InternalError:
            # What grpc.aio says of a write that was blocked when the client went away.
            self._is_gone = True
            raise asyncio.CancelledError from None
        finally:
            self._patience.end()
        self._end_here()

    async def send(self, message: Message) -> None:
        """Encode a message and write it."""
        await self.write(message.SerializeToString())

    def end(self, why: BehestError) -> None:
        """End the call from outside, with an error: its handler sees a cancellation. The first reason counts.

        What is being sent is sent first: a status behind a write that was cut never leaves.
        """
        if self._ending is None:
            self._ending = why
            if not self._patience.is_waiting:
                self._cut()

    def ending(self) -> BehestError | None:
        """Take the error that the call was ended with from outside; the cancellation that came with it is over then."""
        why, self._ending = self._ending, None
        if self._is_cut:
            self._is_cut = False
            self._task.uncancel()
        return why

    def _cut(self) -> None:
        self._is_cut = True
        self._task.cancel()

    def _end_here(self) -> None:
        """Stop the sender when the call was ended while it sent."""
        if self._ending is None:
            return
        if asyncio.current_task() is not self._task and not self._is_cut:
            self._cut()
        raise asyncio.CancelledError

    def close(self) -> None:
        """Let go of what the call holds."""
        self._patience.close()


def decode(parse: Callable[[bytes], Message], body: bytes) -> Message:
    """Read a request. Raises InvalidRequest of reason REQUEST_MALFORMED."""
    try:
        return parse(body)
    except DecodeError:
        raise InvalidRequest("request", "cannot be decoded", reason="REQUEST_MALFORMED") from None


class Requests:
    """The requests of a stream as they come, until the client has no more. To be read once, by one reader."""

    __slots__ = ("_call", "_context", "_parse")

    def __init__(
        self, parse: Callable[[bytes], Message], context: grpc.aio.ServicerContext[Any, Any], call: Call
    ) -> None:
        self._parse = parse
        self._context = context
        self._call = call

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Message:
        """Return the next request. Raises as `decode`."""
        body = await self._context.read()
        if body is grpc.aio.EOF:
            await self._call.confirm_end()
            raise StopAsyncIteration
        return decode(self._parse, body)
