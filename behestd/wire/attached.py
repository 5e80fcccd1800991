"""Calls over the stream of an attached server that are never joined again: of models, of sources of context.

Above: who makes such calls (`providers.attached`). Below: whoever keeps the streams (`tools.attached`), where calls of
tools have ways of their own, since those outlive a stream. A call counts as one that the server takes until its end has
come; when its stream is lost, so is the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from behest.v1.registry_service_pb2 import AttachCall, AttachEnd, AttachReply

FRAME_MARGIN_BYTES = 16 * 1024
"""What a call needs in its frame beside what is asked."""

Withdraw = Callable[[], None]
"""Tells the server that the answer is not wanted any more. Nothing once the call has ended, or its stream is lost."""


class CallTooLarge(Exception):
    """Raised when a call does not fit a frame that the server takes. The text says so, with both figures."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"a call of {size_bytes} bytes exceeds the limit of {limit_bytes} bytes of a frame")


class Sink(Protocol):
    """What hears the answer to one call: parts, then either its end or that the stream was lost. Never waits."""

    def push(self, reply: AttachReply) -> None:
        """Take a part of the answer."""
        ...

    def finish(self, end: AttachEnd) -> None:
        """Take the end. Nothing comes after it."""
        ...

    def broke(self) -> None:
        """Take note that the stream is lost. Nothing comes after it."""
        ...


class Carrier(Protocol):
    """An attached server, whatever stream it is on."""

    async def open(self, call: AttachCall, sink: Sink, connect_seconds: float) -> Withdraw:
        """Send a call, whose number is set here, once the server has room for it.

        Waits for a server that is away at most so long, and for room for ever: callers bound it. Raises NotReached,
        with which nothing was sent, and CallTooLarge.
        """
        ...
