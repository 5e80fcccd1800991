"""Calls a server under examination and reports all that comes back, good or bad, as values.

Above: the probes of tools and of models. Below: grpc.aio, raw bytes, no retries. Guarantees: no call outlasts its
limit, and no error of grpc or of decoding leaves a method: what went wrong is in the answer, since going wrong is what
is looked for.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from behest.channel import open_channel
from behest.conformance.verdict import shown
from behest.errors import read_status
from behest.security import check_token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

# More than any server may send, so that a frame over the limit is seen and not refused by this side.
RECEIVE_BYTES = 256 * 1024 * 1024
NOT_EXECUTED = "behest-not-executed"

Value = TypeVar("Value", bound=Message)
Frame = TypeVar("Frame", bound=Message)
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended: its status, and what its trailers say."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    message: str = ""
    is_proof: bool = False
    # What could not be decoded; empty when all could.
    garbage: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether it ended well and could be read."""
        return self.code is grpc.StatusCode.OK and not self.garbage

    def __str__(self) -> str:
        if self.garbage:
            return self.garbage
        return self.code.name + (f" {shown(self.reason, 40)}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Answer(Generic[Value]):
    """What a unary call gave. `value` is empty unless the call ended well."""

    ending: Ending
    value: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream(Generic[Frame]):
    """What a stream gave until it ended, or until it was no longer waited for (`is_open`). Sizes are in bytes."""

    frames: tuple[Frame, ...]
    sizes: tuple[int, ...]
    ending: Ending
    is_open: bool
    seconds: float

    def told(self, good: str) -> str:
        """Say how it ended; `good` when it ended well."""
        if self.is_open:
            return f"no end within {self.seconds:.1f} s"
        return good if self.ending.is_ok else str(self.ending)


class Ongoing(Generic[Frame, Made]):
    """A streaming call that was sent. One task reads it until it ends, or until `finish` gives it up."""

    def __init__(
        self,
        call: grpc.aio.UnaryStreamCall[Any, Any],
        frame: type[Frame],
        make: Callable[..., Made],
        group: asyncio.TaskGroup,
    ) -> None:
        """`make` gets the fields of a Stream by name and gives what `finish` returns."""
        self._call = call
        self._frame = frame
        self._make = make
        self._frames: list[Frame] = []
        self._sizes: list[int] = []
        self._ending = Ending(grpc.StatusCode.CANCELLED)
        self._began = time.monotonic()
        self._first = asyncio.Event()
        self._reader = group.create_task(self._read())

    @property
    def has_ended(self) -> bool:
        """Whether the stream has ended."""
        return self._reader.done()

    async def begun(self, seconds: float) -> bool:
        """Wait for a sign of life, or so long that the call must have arrived; whether it goes on."""
        try:
            async with asyncio.timeout(seconds):
                await self._first.wait()
        except TimeoutError:
            pass
        return not self.has_ended

    async def finish(self, seconds: float) -> Made:
        """Wait for the end, at most so long, and return all that came. The stream is broken if it has not ended."""
        done, _ = await asyncio.wait((self._reader,), timeout=seconds)
        self._call.cancel()
        await asyncio.wait((self._reader,))
        return self._make(
            frames=tuple(self._frames),
            sizes=tuple(self._sizes),
            ending=self._ending,
            is_open=not done,
            seconds=time.monotonic() - self._began,
        )

    async def _read(self) -> None:
        garbage = ""
        try:
            async for data in self._call:
                try:
                    self._frames.append(self._frame.FromString(data))
                    self._sizes.append(len(data))
                except DecodeError:
                    garbage = f"a frame that is no {self._frame.DESCRIPTOR.name}"
                self._first.set()
            self._ending = await _ended_well(self._call, garbage)
        except grpc.aio.AioRpcError as exc:
            self._ending = ending_of(exc)
        except asyncio.CancelledError:
            _raise_if_ours()
        finally:
            self._first.set()


class Link:
    """A channel to one server. Used as `async with`."""

    def __init__(self, address: str, *, token: str = "", seconds: float = 10.0, tls: bool = False) -> None:
        """`seconds` is how long an answer is waited for. Raises ValueError as `check_token`."""
        check_token(token, address, has_tls=tls)
        self.address = address
        self.token = token
        self.seconds = seconds
        # Larger requests than a server takes must reach it too.
        limits = (("grpc.max_receive_message_length", RECEIVE_BYTES), ("grpc.max_send_message_length", -1))
        credentials = grpc.ssl_channel_credentials() if tls else None
        self._channel = open_channel(address, credentials=credentials, options=limits)
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()
        await self._group.__aexit__(kind, exc, traceback)

    def stream(
        self,
        method: str,
        request: Message,
        frame: type[Frame],
        make: Callable[..., Made],
        *,
        deadline_seconds: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> Ongoing[Frame, Made]:
        """Send a call of `Service/Method`. Without a deadline of the RPC, only `finish` bounds it."""
        ask: Any = self._channel.unary_stream(f"/behest.v1.{method}", request_serializer=_serialize)
        call = ask(request, timeout=deadline_seconds, metadata=(*self._metadata(), *metadata))
        return Ongoing(call, frame, make, self._group)

    async def unary(
        self,
        method: str,
        request: Message,
        response: type[Value],
        *,
        seconds: float | None = None,
        has_token: bool = True,
    ) -> Answer[Value]:
        """Make a unary call of `Service/Method`."""
        ask: Any = self._channel.unary_unary(f"/behest.v1.{method}", request_serializer=_serialize)
        metadata = self._metadata() if has_token else ()
        call = ask(request, timeout=self.seconds if seconds is None else seconds, metadata=metadata)
        try:
            value = response.FromString(await call)
            return Answer(await _ended_well(call, ""), value)
        except grpc.aio.AioRpcError as exc:
            return Answer(ending_of(exc), response())
        except DecodeError:
            return Answer(Ending(garbage=f"an answer that is no {response.DESCRIPTOR.name}"), response())

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def ending_of(error: grpc.aio.AioRpcError) -> Ending:
    """Return how a call ended that did not end well."""
    trailers: list[tuple[str, str | bytes]] = [(key, value) for key, value in error.trailing_metadata() or ()]
    reason = garbage = ""
    for key, value in trailers:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                code, reason, _, _ = read_status(status_pb2.Status.FromString(value))
            except DecodeError:
                garbage = "status details that are no google.rpc.Status"
                continue
            if code is not error.code():
                garbage = f"status {error.code().name} whose details say {code.name}"
    is_proof = (NOT_EXECUTED, "1") in trailers
    return Ending(error.code(), reason, shown(error.details() or ""), is_proof, garbage)


async def _ended_well(call: Any, garbage: str) -> Ending:
    trailers = list(await call.trailing_metadata() or ())
    return Ending(is_proof=(NOT_EXECUTED, "1") in trailers, garbage=garbage)


def _raise_if_ours() -> None:
    """Raise the cancellation again if this task was meant; grpc says the same of a call that was cancelled."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
