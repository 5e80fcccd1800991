"""What a remote process says when a call fails: its status, cleaned, with the reason and the delay that it names.

Above: one table for each thing that is called, which says what it means (`tools.remote_errors`,
`providers.remote_failure`). What servers say is untrusted: it is cut, cleaned of control characters and of the token
that was sent to them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from behest.v1.error_reason_pb2 import ErrorReason
from behestd.core.times import duration_ns

_DETAILS = "grpc-status-details-bin"
_MAX_TEXT = 500
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Told:
    """A status as far as it makes sense. `reason` is one of the contract, or empty."""

    code: grpc.StatusCode
    text: str
    reason: str = ""
    retry_after_seconds: float | None = None
    trailers: dict[str, str | bytes] = field(default_factory=dict)

    @property
    def is_too_large(self) -> bool:
        """Whether one of both sides refused to read a message because of its size."""
        return self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in self.text


def of_error(error: grpc.aio.AioRpcError, token: str = "") -> Told:
    """Read the status of a call over a channel."""
    trailers = dict(error.trailing_metadata() or ())
    details = trailers.get(_DETAILS)
    try:
        status = Status.FromString(details) if isinstance(details, bytes) else Status()
    except DecodeError:
        status = Status()
    return _told(error.code(), clean(error.details() or "", token), status, trailers)


def of_status(status: Status) -> Told:
    """Read a status that came in a message."""
    return _told(_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN), clean(status.message), status, {})


def _told(code: grpc.StatusCode, text: str, status: Status, trailers: dict[str, str | bytes]) -> Told:
    info, retry_seconds = _details(status)
    is_known = info.domain == "behest" and f"ERROR_REASON_{info.reason}" in ErrorReason.keys()
    return Told(code, text, info.reason if is_known else "", retry_seconds, trailers)


def clean(text: str, token: str = "") -> str:
    """Make a server's text fit to be shown: no token, no control characters, 500 characters at most."""
    if token:
        text = text.replace(token, "***")
    line = "".join(character if character.isprintable() else " " for character in text[: 2 * _MAX_TEXT])
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 1] + "…"


def is_cancelled() -> bool:
    """Tell a real cancellation from a channel that was closed under a call, which the transport shows as one."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _details(status: Status) -> tuple[ErrorInfo, float | None]:
    """Read reason and delay out of a status; what is not there stays empty."""
    info, retry = ErrorInfo(), RetryInfo()
    try:
        for detail in status.details:
            # Unpack looks at the type first, and leaves what is of another one alone.
            detail.Unpack(info) or detail.Unpack(retry)
    except DecodeError:
        return ErrorInfo(), None
    return info, duration_ns(retry.retry_delay) / 1e9 if retry.HasField("retry_delay") else None
