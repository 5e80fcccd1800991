"""What a call can end with, as one class of error, and how statuses travel.

Above: every module of the client. Below: grpclib. Reasons are names of `ErrorReason` without their prefix: compare
them, never texts. What the transport says by itself gets a reason that begins with TRANSPORT_.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any as Anything

import betterproto2
from grpclib.const import Status
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from behest_lite.contract.google.protobuf import Any
from behest_lite.contract.google.rpc import Status as RpcStatus

DOMAIN = "behest"
_INFO_URL = "type.googleapis.com/google.rpc.ErrorInfo"
_TRANSPORT = {
    Status.UNAVAILABLE: "TRANSPORT_UNAVAILABLE",
    Status.DEADLINE_EXCEEDED: "TRANSPORT_DEADLINE",
    Status.CANCELLED: "TRANSPORT_CANCELLED",
    Status.RESOURCE_EXHAUSTED: "TRANSPORT_TOO_LARGE",
    Status.UNIMPLEMENTED: "TRANSPORT_UNIMPLEMENTED",
    Status.UNKNOWN: "TRANSPORT_STREAM_BROKEN",
    Status.INTERNAL: "TRANSPORT_STREAM_BROKEN",
}
_UNDECIDED = frozenset(
    {"TRANSPORT_UNAVAILABLE", "TRANSPORT_DEADLINE", "TRANSPORT_STREAM_BROKEN", "TRANSPORT_CANCELLED"}
    | {"RUNTIME_DRAINING", "STORAGE_FAILED", "STORAGE_BUSY", "WATCH_STALLED"}
)


@dataclass(eq=False, repr=False)
class ErrorInfo(betterproto2.Message):
    """google.rpc.ErrorInfo, which the contract refers to only in words."""

    reason: str = betterproto2.field(1, betterproto2.TYPE_STRING)
    domain: str = betterproto2.field(2, betterproto2.TYPE_STRING)
    metadata: dict[str, str] = betterproto2.field(  # noqa: RUF009  how betterproto2 declares fields
        3, betterproto2.TYPE_MAP, map_meta=betterproto2.map_meta(betterproto2.TYPE_STRING, betterproto2.TYPE_STRING)
    )


class BehestError(Exception):
    """Raised when a call failed. `reason` is stable, `metadata` holds every value that the message names."""

    def __init__(self, code: Status, reason: str, message: str, metadata: dict[str, str] | None = None) -> None:
        super().__init__(f"{reason or code.name}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = metadata or {}

    @property
    def is_undecided(self) -> bool:
        """Whether it is not known if the call took effect: one that a repeat does not double may be sent again."""
        return self.code is Status.UNAVAILABLE or self.reason in _UNDECIDED


class RunEndedError(BehestError):
    """Raised when a run whose result is asked for ended, and not well. `kind` is that of its terminal event."""

    def __init__(self, kind: str, status: RpcStatus | None) -> None:
        told = status or RpcStatus()
        info = info_of(told) or ErrorInfo()
        code = Status(told.code or Status.CANCELLED.value)
        super().__init__(code, info.reason, told.message or kind.replace("_", " "), info.metadata)
        self.kind = kind


class StatusCodec(StatusDetailsCodecBase):
    """Reads and writes the details of a status as one ErrorInfo."""

    def encode(self, status: Status, message: str | None, details: Anything) -> bytes:
        """Write a status; details are an ErrorInfo or None."""
        return bytes(rpc_status(status, message or "", details))

    def decode(self, status: Status, message: str | None, data: bytes) -> ErrorInfo | None:
        """Read the ErrorInfo of a status, None when there is none of ours."""
        try:
            return info_of(RpcStatus.FromString(data))
        except ValueError:
            return None


def rpc_status(status: Status, message: str, info: ErrorInfo | None) -> RpcStatus:
    """Make a google.rpc.Status."""
    details = [Any(type_url=_INFO_URL, value=bytes(info))] if info is not None else []
    return RpcStatus(code=status.value, message=message, details=details)


def info_of(status: RpcStatus) -> ErrorInfo | None:
    """Find the ErrorInfo of our domain in a status."""
    for detail in status.details:
        if detail.type_url == _INFO_URL:
            info = ErrorInfo.FromString(detail.value)
            if info.domain == DOMAIN:
                return info
    return None


def broken(message: str) -> BehestError:
    """Return the error of a connection or stream that broke."""
    return BehestError(Status.UNAVAILABLE, "TRANSPORT_STREAM_BROKEN", message)


def from_rpc(error: GRPCError) -> BehestError:
    """Return our error for one of grpclib's."""
    info = error.details
    if isinstance(info, ErrorInfo):
        return BehestError(error.status, info.reason, error.message or "", dict(info.metadata))
    return BehestError(error.status, _TRANSPORT.get(error.status, ""), error.message or "no details")


@contextmanager
def translated() -> Iterator[None]:
    """Let no error of the transport out of a block but ours. Raises BehestError."""
    try:
        yield
    except GRPCError as exc:
        raise from_rpc(exc) from exc
    except (StreamTerminatedError, ProtocolError, OSError) as exc:
        text = "the call took too long" if isinstance(exc, TimeoutError) else "the connection broke"
        raise broken(text) from exc
