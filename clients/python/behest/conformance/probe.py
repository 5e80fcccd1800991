"""Calls a ToolService and reports all that comes back, good or bad, as values.

Above: the checks. Below: grpc.aio, raw bytes, no retries. Guarantees: no call outlasts its limit, and no error of grpc
or of decoding leaves a method: what went wrong is in the answer, since going wrong is what is looked for.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from behest.channel import open_channel
from behest.conformance.verdict import shown
from behest.errors import read_status
from behest.v1.message_pb2 import ToolResult
from behest.v1.tool_pb2 import Progress
from behest.v1.tool_service_pb2 import CallToolRequest, CallToolResponse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

# More than any server may send, so that a frame over the limit is seen and not refused by this side.
RECEIVE_BYTES = 256 * 1024 * 1024
NOT_EXECUTED = "behest-not-executed"
_SERVICE = "/behest.v1.ToolService/"
_Pairs = tuple[tuple[str, str], ...]

Value = TypeVar("Value", bound=Message)


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


@dataclass(frozen=True, slots=True)
class Reply:
    """What a CallTool gave until it ended, or until it was no longer waited for (`is_open`). Sizes are in bytes."""

    request: CallToolRequest
    frames: tuple[CallToolResponse, ...]
    sizes: tuple[int, ...]
    ending: Ending
    is_open: bool
    seconds: float

    @property
    def kinds(self) -> list[str]:
        """What each frame holds; empty for one that holds nothing."""
        return [frame.WhichOneof("frame") or "" for frame in self.frames]

    @property
    def result(self) -> ToolResult | None:
        """The first result, as it was sent."""
        return next((frame.result for frame in self.frames if frame.WhichOneof("frame") == "result"), None)

    @property
    def progress(self) -> list[Progress]:
        """All progress, in order."""
        return [frame.progress for frame in self.frames if frame.WhichOneof("frame") == "progress"]

    @property
    def chunks(self) -> list[bytes]:
        """All chunks, in order."""
        return [frame.chunk for frame in self.frames if frame.WhichOneof("frame") == "chunk"]

    @property
    def is_good(self) -> bool:
        """Whether the call ended well with a result that is no error."""
        return not self.is_open and self.ending.is_ok and self.result is not None and not self.result.is_error

    def __str__(self) -> str:
        if self.is_open:
            return f"no end within {self.seconds:.1f} s"
        if not self.ending.is_ok:
            return str(self.ending)
        if self.result is None:
            return "OK without a result"
        return "an error result" if self.result.is_error else "a result"


class Ongoing:
    """A CallTool that was sent. One task reads it until it ends, or until `finish` gives it up."""

    def __init__(
        self, request: CallToolRequest, call: grpc.aio.UnaryStreamCall[Any, Any], group: asyncio.TaskGroup
    ) -> None:
        self._request = request
        self._call = call
        self._frames: list[CallToolResponse] = []
        self._sizes: list[int] = []
        self._ending = Ending(grpc.StatusCode.CANCELLED)
        self._began = time.monotonic()
        self._first = asyncio.Event()
        self._ended = asyncio.Event()
        self._reader = group.create_task(self._read())

    @property
    def has_ended(self) -> bool:
        """Whether the stream has ended."""
        return self._ended.is_set()

    async def begun(self, seconds: float) -> bool:
        """Wait for a sign of life, or so long that the call must have arrived; whether it goes on."""
        try:
            async with asyncio.timeout(seconds):
                await self._first.wait()
        except TimeoutError:
            pass
        return not self._ended.is_set()

    async def finish(self, seconds: float) -> Reply:
        """Wait for the end, at most so long, and return all that came. The stream is broken if it has not ended."""
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
            is_open = False
        except TimeoutError:
            is_open = True
        self._call.cancel()
        await self._ended.wait()
        taken = time.monotonic() - self._began
        return Reply(self._request, tuple(self._frames), tuple(self._sizes), self._ending, is_open, taken)

    async def _read(self) -> None:
        garbage = ""
        try:
            async for data in self._call:
                try:
                    self._frames.append(CallToolResponse.FromString(data))
                    self._sizes.append(len(data))
                except DecodeError:
                    garbage = "a frame that is no CallToolResponse"
                self._first.set()
            self._ending = await _ended_well(self._call, garbage)
        except grpc.aio.AioRpcError as exc:
            self._ending = ending_of(exc)
        except asyncio.CancelledError:
            _raise_if_ours()
        finally:
            self._first.set()
            self._ended.set()


class Probe:
    """A channel to one server, and names for calls that no other examination uses. Used as `async with`."""

    def __init__(self, address: str, *, token: str = "", seconds: float = 10.0, tls: bool = False) -> None:
        """`seconds` is how long an answer is waited for."""
        self.address = address
        self.token = token
        self.seconds = seconds
        # Larger requests than a server takes must reach it too.
        limits = (("grpc.max_receive_message_length", RECEIVE_BYTES), ("grpc.max_send_message_length", -1))
        credentials = grpc.ssl_channel_credentials() if tls else None
        self._channel = open_channel(address, credentials=credentials, options=limits)
        self._call_tool: grpc.aio.UnaryStreamMultiCallable[CallToolRequest, bytes] = self._channel.unary_stream(
            _SERVICE + "CallTool", request_serializer=CallToolRequest.SerializeToString
        )
        self._group = asyncio.TaskGroup()
        self._session = uuid.uuid4().hex[:12]
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()
        await self._group.__aexit__(kind, exc, traceback)

    def key(self) -> str:
        """Make a key that was never used."""
        return f"conformance-{self._session}-{next(self._numbers)}"

    def request(self, tool_name: str, arguments_json: str, **fields: Any) -> CallToolRequest:
        """Make the first attempt of a new call; fields change it."""
        key = str(fields.pop("idempotency_key", None) or self.key())
        given = {"call_id": f"call-{key}", "idempotency_key": key, "attempt": 1, "epoch": 1, **fields}
        return CallToolRequest(tool_name=tool_name, arguments_json=arguments_json, **given)

    def start(self, request: CallToolRequest, *, deadline_seconds: float | None = None) -> Ongoing:
        """Send a call. Without a deadline of the RPC, only `finish` bounds it."""
        metadata = (
            *self._metadata(),
            ("behest-idempotency-key", request.idempotency_key),
            ("behest-attempt", str(request.attempt)),
            ("behest-epoch", str(request.epoch)),
        )
        told = tuple((key, value) for key, value in metadata if value)
        return Ongoing(request, self._call_tool(request, timeout=deadline_seconds, metadata=told), self._group)

    async def call(self, request: CallToolRequest, *, seconds: float | None = None) -> Reply:
        """Send a call and wait for its end."""
        return await self.start(request).finish(self.seconds if seconds is None else seconds)

    async def calls(self, requests: Sequence[CallToolRequest]) -> list[Reply]:
        """Send calls at once and wait for all."""
        started = [self.start(request) for request in requests]
        return [await each.finish(self.seconds) for each in started]

    async def unary(
        self,
        method: str,
        request: Message,
        response: type[Value],
        *,
        seconds: float | None = None,
        has_token: bool = True,
    ) -> Answer[Value]:
        """Make a unary call."""
        ask: Any = self._channel.unary_unary(
            _SERVICE + method, request_serializer=lambda message: message.SerializeToString()
        )
        metadata = self._metadata() if has_token else ()
        call = ask(request, timeout=self.seconds if seconds is None else seconds, metadata=metadata)
        try:
            value = response.FromString(await call)
            return Answer(await _ended_well(call, ""), value)
        except grpc.aio.AioRpcError as exc:
            return Answer(ending_of(exc), response())
        except DecodeError:
            return Answer(Ending(garbage=f"an answer that is no {response.DESCRIPTOR.name}"), response())

    def _metadata(self) -> _Pairs:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


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
