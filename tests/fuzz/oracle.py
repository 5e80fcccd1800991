"""What must hold of every answer, whatever was sent, and a look at the store: whether anything was recorded."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from google.protobuf.descriptor import Descriptor
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from behest.statuses import FirstStatus, is_cut_short
from behest.v1.error_reason_pb2 import ErrorReason

REASONS = frozenset(name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:])
CALL_SECONDS = 5.0
LOOK_SECONDS = 0.02
"""How long to look whether a stream has more to say."""
FRAMES = 4
REQUEST_BYTES = 4 * 1024 * 1024

Calls = grpc.aio.StreamStreamMultiCallable[bytes, bytes]

_TELLTALE = re.compile(
    r"Traceback|File \"|line \d+, in |[A-Z]\w+(Error|Exception)\b|object at 0x|<class|google\.protobuf"
)
_INDEX = re.compile(r"\[[^\]]*\]")


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended, and the first frames that it sent. `code` None: it went on, and was cancelled by the test."""

    code: grpc.StatusCode | None
    details: str
    status: bytes
    frames: tuple[bytes, ...]

    @property
    def is_refusal(self) -> bool:
        """Whether the daemon ended the call with an error."""
        return self.code not in (None, grpc.StatusCode.OK)


async def ask(
    channel: grpc.aio.Channel, method: str, requests: Iterable[bytes], *, is_stream: bool, leaves: bool = False
) -> Answer:
    """Call any method with encoded requests, and read a little of the answer. Fails when nothing comes in 5 s.

    `is_stream` says that the answer is one. A client that `leaves` goes away after its last request instead of ending
    them.
    """
    calls: Calls = channel.stream_stream(method)
    call = calls(timeout=2 * CALL_SECONDS)
    status = FirstStatus(call)
    frames: list[bytes] = []
    try:
        async with asyncio.timeout(CALL_SECONDS):
            await _send(call, requests, leaves=leaves)
            if leaves:
                call.cancel()
            frame = await call.read()
        while frame is not grpc.aio.EOF and len(frames) < FRAMES:
            frames.append(frame)
            try:
                async with asyncio.timeout(LOOK_SECONDS if is_stream else CALL_SECONDS):
                    frame = await call.read()
            except TimeoutError:
                break
        if frame is not grpc.aio.EOF:
            return Answer(None, "", b"", tuple(frames))
        return await _ended(call, status, frames)
    except grpc.aio.AioRpcError:
        return await _ended(call, status, frames)
    except asyncio.CancelledError:
        if leaves and call.cancelled():
            return Answer(None, "", b"", ())
        raise
    except TimeoutError:
        raise AssertionError(f"{method} did not answer within {CALL_SECONDS:g} s") from None
    finally:
        call.cancel()


async def _send(call: grpc.aio.StreamStreamCall[bytes, bytes], requests: Iterable[bytes], *, leaves: bool) -> None:
    try:
        for request in requests:
            await call.write(request)
        if not leaves:
            await call.done_writing()
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        # The daemon did not wait for all of it; its answer is read next.
        return


async def _ended(call: grpc.aio.StreamStreamCall[bytes, bytes], first: FirstStatus, frames: list[bytes]) -> Answer:
    async with asyncio.timeout(CALL_SECONDS):
        trailers = await call.trailing_metadata() or grpc.aio.Metadata()
        error = grpc.aio.AioRpcError(await call.code(), grpc.aio.Metadata(), trailers, await call.details())
        if is_cut_short(error.code(), error.details()):
            given = await first.given()
            if given is None:
                return Answer(None, "", b"", tuple(frames))
            error = given
    (status, *_) = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"] or [b""]
    assert isinstance(status, bytes)
    return Answer(error.code(), error.details() or "", status, tuple(frames))


def check(answer: Answer, descriptor: Descriptor, *, size_bytes: int, is_served: bool) -> None:
    """Check an answer against what all answers must keep. `size_bytes` is that of the largest request."""
    check_code(answer)
    if not answer.is_refusal:
        return
    if not answer.status:
        # What gRPC answers by itself, without our handlers.
        is_too_large = answer.code == grpc.StatusCode.RESOURCE_EXHAUSTED and size_bytes > REQUEST_BYTES
        is_unknown = answer.code == grpc.StatusCode.UNIMPLEMENTED and not is_served
        assert is_too_large or is_unknown, answer
        return
    status = Status.FromString(answer.status)
    assert answer.code is not None
    assert (status.code, status.message) == (answer.code.value[0], answer.details)
    (info,) = _details(status, ErrorInfo)
    assert info.domain == "behest"
    assert info.reason in REASONS
    assert not _TELLTALE.search(str(status)), status
    assert answer.code != grpc.StatusCode.UNIMPLEMENTED or info.reason == "REQUEST_UNSUPPORTED"
    if answer.code == grpc.StatusCode.INVALID_ARGUMENT:
        _check_fields(status, info, descriptor)


def check_code(answer: Answer) -> None:
    """Check that an answer is no fault of the daemon, and tells nothing of how it is made."""
    assert answer.code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), answer
    assert not _TELLTALE.search(answer.details), answer


def _check_fields(status: Status, info: ErrorInfo, descriptor: Descriptor) -> None:
    """Check that a refusal of an argument says which field is meant, by a path that the request has."""
    named = [violation.field for found in _details(status, BadRequest) for violation in found.field_violations]
    named += [info.metadata["field"]] if "field" in info.metadata else []
    assert named, status
    for path in named:
        assert (path == "request" and info.reason == "REQUEST_MALFORMED") or _has(descriptor, path), (path, status)


def _details(status: Status, kind: type[BadRequest] | type[ErrorInfo]) -> list[BadRequest] | list[ErrorInfo]:
    found = []
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            detail = kind()
            packed.Unpack(detail)
            found.append(detail)
    return found


def _has(descriptor: Descriptor, path: str) -> bool:
    """Tell whether a message has a field, or a oneof, of that path; indexes and keys in brackets are left out."""
    for name in _INDEX.sub("", path).split("."):
        if name in descriptor.oneofs_by_name:
            return True
        field = descriptor.fields_by_name.get(name)
        if field is None:
            return False
        descriptor = field.message_type or descriptor
    return True


class Picture:
    """Looks at the store from outside, with a connection of its own. To be closed."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)

    def take(self) -> tuple[tuple[object, ...], ...]:
        """What is there: runs, claimed requests, and the records of each kind with their versions."""
        records = "SELECT kind, count(*), total(version) FROM records WHERE expire_time_ns = 0 GROUP BY kind"
        counts = "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM requests)"
        return (*self._connection.execute(counts), *self._connection.execute(records))

    def close(self) -> None:
        """Let go of the store."""
        self._connection.close()
