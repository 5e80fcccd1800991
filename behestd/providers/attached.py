"""Models of an attached server: calls over the stream that the server opened.

Above: `remote_provider`. Below: `wire.attached`, which carries a call over whatever stream the server is on, as soon as
it takes one more. A call whose stream is lost is broken: what came of its answer is shown to nobody any more, and the
next attempt goes over the next stream. Of an answer that nobody reads the server is told, and what still comes is
dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

from behest.v1.chat_service_pb2 import StreamChatRequest
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.registry_service_pb2 import AttachCall, AttachEnd, AttachReply
from behestd.core.times import SECOND, timestamp
from behestd.providers import remote_failure
from behestd.providers.ambience import Ambience
from behestd.providers.failure import ProviderFailure
from behestd.providers.provider import Frame
from behestd.providers.remote_answer import ANSWER_LIMIT_BYTES
from behestd.providers.remote_provider import CONNECT_SECONDS
from behestd.wire import remote_status
from behestd.wire.attached import CallTooLarge, Carrier
from behestd.wire.remote_channel import NotReached


class AttachedModels:
    """The models of one attached server. See `remote_provider.Answering`."""

    def __init__(self, carrier: Carrier, now_ns: Callable[[], int]) -> None:
        self._carrier = carrier
        self._now_ns = now_ns

    async def chat(self, request: StreamChatRequest, around: Ambience) -> AsyncGenerator[Frame, None]:
        """Send a call and yield its frames."""
        call = self._made(around)
        call.stream_chat.CopyFrom(request)
        answer = _Replies("stream_chat")
        await self._send(call, answer)
        try:
            while (reply := await answer.next()) is not None:
                yield reply.stream_chat
        finally:
            answer.let_go()

    async def embed(self, request: EmbedRequest, around: Ambience) -> EmbedResponse:
        """Send a call and return its answer."""
        call = self._made(around)
        call.embed.CopyFrom(request)
        answer = _Replies("embed")
        await self._send(call, answer)
        try:
            reply = await answer.next()
            if reply is None:
                raise remote_failure.malformed("the call ended without vectors")
            return reply.embed
        finally:
            answer.let_go()

    def _made(self, around: Ambience) -> AttachCall:
        call = AttachCall(traceparent=around.traceparent)
        if around.seconds is not None:
            call.deadline.CopyFrom(timestamp(self._now_ns() + int(around.seconds * SECOND)))
        return call

    async def _send(self, call: AttachCall, answer: _Replies) -> None:
        try:
            answer.withdraw = await self._carrier.open(call, answer, CONNECT_SECONDS)
        except NotReached as exc:
            raise remote_failure.not_sent(str(exc)) from exc
        except CallTooLarge as exc:
            raise remote_failure.too_large(str(exc)) from exc


class _Replies:
    """The answer to one call, as it comes. See `wire.attached.Sink`. What is queued is bounded; more is malformed."""

    __slots__ = (
        "_failure",
        "_has_begun",
        "_is_answered",
        "_is_over",
        "_kind",
        "_queue",
        "_size_bytes",
        "_wake",
        "withdraw",
    )

    def __init__(self, kind: str) -> None:
        """`kind` is the only one of replies that makes sense."""
        self._kind = kind
        self._queue: deque[AttachReply] = deque()
        self._size_bytes = 0
        self._has_begun = False
        self._is_answered = False
        self._is_over = False
        self._failure: ProviderFailure | None = None
        self._wake: asyncio.Future[None] | None = None
        self.withdraw = _nothing

    # --- who reads ---

    async def next(self) -> AttachReply | None:
        """Wait for a part, None at the end. Raises ProviderFailure."""
        while not self._queue:
            if self._failure is not None:
                raise self._failure
            if self._is_over:
                return None
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        reply = self._queue.popleft()
        self._size_bytes -= reply.ByteSize()
        return reply

    def let_go(self) -> None:
        """Read no more; the server is told, unless it has answered. Idempotent."""
        self._queue.clear()
        if not self._is_over:
            self._is_over = True
            if not self._is_answered:
                self.withdraw()

    # --- who writes ---

    def push(self, reply: AttachReply) -> None:
        """Take a part of the answer."""
        kind = reply.WhichOneof("response")
        if self._is_over or self._failure is not None or kind == "accepted":
            return
        self._has_begun = True
        self._is_answered = kind == "embed" or reply.stream_chat.HasField("end")
        self._queue.append(reply)
        self._size_bytes += reply.ByteSize()
        if kind != self._kind:
            self._fail(remote_failure.malformed("the server answered something else than the call"))
        elif self._size_bytes > ANSWER_LIMIT_BYTES:
            self._fail(remote_failure.malformed(f"the answer exceeds the limit of {ANSWER_LIMIT_BYTES} bytes"))
        self._wake_up()

    def finish(self, end: AttachEnd) -> None:
        """Take the end."""
        if end.HasField("error") and end.error.code and self._failure is None:
            told = remote_status.of_status(end.error)
            self._failure = remote_failure.of_told(told, has_begun=self._has_begun)
        self._is_over = True
        self._wake_up()

    def broke(self) -> None:
        """Take note that the stream is lost."""
        text = "the stream of the server broke"
        lost = remote_failure.stream_broken(text) if self._has_begun else ProviderFailure("PROVIDER_UNAVAILABLE", text)
        self._failure = self._failure or lost
        self._is_over = True
        self._wake_up()

    def _fail(self, failure: ProviderFailure) -> None:
        self._queue.clear()
        self._failure = failure

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def _nothing() -> None:
    """Nothing was sent."""
