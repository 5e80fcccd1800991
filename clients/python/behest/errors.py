"""What a call or a run can end with, decoded once from the wire into one tree.

    BehestError                 a call failed; `reason` says why
    ├── UnreachableError        the daemon could not be reached, or went away, for longer than the client's patience
    ├── ClientClosedError       the client was closed while the call was open
    ├── ControlCancelledError   the control of an order was cancelled before the order was sent
    ├── WatchOrderError         the daemon broke the order of a watch: a gap, a repeat, an event after the end
    └── RunEndedError           the run ended, and not well
        ├── RunFailedError
        ├── RunCancelledError
        └── RunTimedOutError

Reasons are names of `ErrorReason` without their prefix: compare them, never texts. What gRPC answers by itself, without
our details, gets a reason that begins with TRANSPORT_. Above: every module of the client. Below: grpc and google.rpc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from behest.v1 import run_state_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DOMAIN = "behest"
CODES = {code.value[0]: code for code in grpc.StatusCode}
TRANSPORT_REASONS = {
    grpc.StatusCode.UNAVAILABLE: "TRANSPORT_UNAVAILABLE",
    grpc.StatusCode.DEADLINE_EXCEEDED: "TRANSPORT_DEADLINE",
    grpc.StatusCode.CANCELLED: "TRANSPORT_CANCELLED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "TRANSPORT_TOO_LARGE",
    grpc.StatusCode.UNIMPLEMENTED: "TRANSPORT_UNIMPLEMENTED",
    # What gRPC makes of a connection that dies at the wrong moment.
    grpc.StatusCode.UNKNOWN: "TRANSPORT_STREAM_BROKEN",
    grpc.StatusCode.INTERNAL: "TRANSPORT_STREAM_BROKEN",
}
# Nothing was decided about the request: the same one may be sent again, if it carries a request_id or has no effect.
UNDECIDED_REASONS = frozenset(
    {"TRANSPORT_UNAVAILABLE", "TRANSPORT_DEADLINE", "TRANSPORT_STREAM_BROKEN", "TRANSPORT_CANCELLED"}
    | {"RUNTIME_DRAINING", "STORAGE_FAILED", "STORAGE_BUSY", "WATCH_STALLED"}
)


class BehestError(Exception):
    """Raised when a call failed.

    `code` is gRPC's, `reason` is stable (empty when the other side is no behestd and gave none), `metadata` holds every
    value that the message names, `retry_seconds` says when trying again makes sense (None: not said), and `violations`
    pairs each wrong field with what is wrong with it.
    """

    # Whether another attempt cannot help, whatever the reason.
    is_final = False

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_seconds: float | None = None,
        violations: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(f"{reason or code.name}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_seconds = retry_seconds
        self.violations = tuple(violations)

    @property
    def is_undecided(self) -> bool:
        """Whether it is not known if the call took effect, so that only a repeatable one may be sent again."""
        return not self.is_final and self.reason in UNDECIDED_REASONS

    @property
    def is_resumable(self) -> bool:
        """Whether a watch that ended so can be resumed."""
        is_away = self.code is grpc.StatusCode.UNAVAILABLE or self.reason in UNDECIDED_REASONS
        return not self.is_final and (is_away or self.is_shed)

    @property
    def is_shed(self) -> bool:
        """Whether the daemon has no room for the call just now, did nothing, and says when to make it again."""
        return self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and self.retry_seconds is not None


class UnreachableError(BehestError):
    """Raised when the daemon cannot be reached, or the connection broke and did not come back in time."""


class ClientClosedError(BehestError):
    """Raised when the client was closed while the call was open."""

    is_final = True

    def __init__(self) -> None:
        super().__init__(grpc.StatusCode.CANCELLED, "TRANSPORT_CANCELLED", "the client was closed")


class ControlCancelledError(BehestError):
    """Raised when a run was not ordered, because its control was cancelled first."""

    is_final = True

    def __init__(self) -> None:
        super().__init__(grpc.StatusCode.CANCELLED, "TRANSPORT_CANCELLED", "the control was cancelled; no run was made")


class WatchOrderError(BehestError):
    """Raised when a watch brings an event other than the next one: the client stops rather than guess."""

    is_final = True

    def __init__(self, run_id: str, expected: int, received: int) -> None:
        super().__init__(
            grpc.StatusCode.DATA_LOSS,
            "TRANSPORT_STREAM_BROKEN",
            f"watch of run {run_id} brought event {received} where {expected} is next",
            metadata={"runId": run_id, "expected": str(expected), "received": str(received)},
        )
        self.expected = expected
        self.received = received


class RunEndedError(BehestError):
    """Raised when a run whose result is asked for ended, and not well. `status` is the run's own error."""

    is_final = True
    state = run_state_pb2.RUN_STATE_UNSPECIFIED

    def __init__(self, run_id: str, status: status_pb2.Status) -> None:
        code, reason, message, details = read_status(status)
        super().__init__(code, reason, message or f"run {run_id} ended without a word", **details)
        self.run_id = run_id
        self.status = status


class RunFailedError(RunEndedError):
    """Raised when the run failed; `reason` says why."""

    state = run_state_pb2.RUN_STATE_FAILED


class RunCancelledError(RunEndedError):
    """Raised when the run was cancelled. `reason` is empty unless a failure forced the end."""

    state = run_state_pb2.RUN_STATE_CANCELLED


class RunTimedOutError(RunEndedError):
    """Raised when the run ran out of time, working or queueing."""

    state = run_state_pb2.RUN_STATE_TIMED_OUT


class Fields(TypedDict, total=False):
    """What the details of a Status say, as keyword arguments of an error."""

    metadata: Mapping[str, str]
    retry_seconds: float | None
    violations: Iterable[tuple[str, str]]


def read_status(status: status_pb2.Status) -> tuple[grpc.StatusCode, str, str, Fields]:
    """Return code, reason, message and the other fields of an error. Details of unknown types are passed over."""
    reason = ""
    fields: Fields = {}
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        # Unpack says whether the detail is of the type.
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason, fields["metadata"] = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            fields["retry_seconds"] = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(bad):
            fields["violations"] = [(each.field, each.description) for each in bad.field_violations]
    return CODES.get(status.code, grpc.StatusCode.UNKNOWN), reason, status.message, fields


def from_rpc(error: grpc.aio.AioRpcError) -> BehestError:
    """Return our error for one of grpc's. A code without our details was given by gRPC itself."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                _, reason, message, fields = read_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
            if reason:
                return BehestError(error.code(), reason, message, **fields)
    return transport_error(error.code(), error.details() or "no details")


def transport_error(code: grpc.StatusCode, message: str) -> BehestError:
    """Return the error for a code that gRPC gave by itself."""
    kind = UnreachableError if code is grpc.StatusCode.UNAVAILABLE else BehestError
    return kind(code, TRANSPORT_REASONS.get(code, ""), message)


def broken_stream(message: str) -> UnreachableError:
    """Return the error of a stream that ended without its last word."""
    return UnreachableError(grpc.StatusCode.UNAVAILABLE, "TRANSPORT_STREAM_BROKEN", message)
