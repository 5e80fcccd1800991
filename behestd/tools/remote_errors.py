"""What a broken call to a tool server means: failure class, what is known of the effect, reason. One table.

Above it `remote`; below it `wire.remote_status`, which reads what a server says. The law: no status code proves that
nothing was executed; a connection that never stood proves it, and so does the server's trailer
`behest-not-executed: 1`.
"""

from __future__ import annotations

import grpc
from google.rpc.status_pb2 import Status

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed
from behestd.tools.tool import ToolFailure
from behestd.wire import remote_status
from behestd.wire.remote_status import Told

NOT_EXECUTED = "behest-not-executed"

_AMBIGUOUS = FailureClass.FAILURE_CLASS_AMBIGUOUS
_PERMANENT = FailureClass.FAILURE_CLASS_PERMANENT

_CODES: dict[grpc.StatusCode, tuple[FailureClass.ValueType, str]] = {
    grpc.StatusCode.UNAVAILABLE: (_AMBIGUOUS, "TOOL_UNAVAILABLE"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (_AMBIGUOUS, "TOOL_TIMEOUT"),
    grpc.StatusCode.CANCELLED: (_AMBIGUOUS, "TOOL_CANCELLED"),
    grpc.StatusCode.ABORTED: (_AMBIGUOUS, "TOOL_FAILED"),
    grpc.StatusCode.INTERNAL: (_AMBIGUOUS, "TOOL_FAILED"),
    grpc.StatusCode.UNKNOWN: (_AMBIGUOUS, "TOOL_FAILED"),
    grpc.StatusCode.DATA_LOSS: (_AMBIGUOUS, "TOOL_FAILED"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (FailureClass.FAILURE_CLASS_THROTTLED, "TOOL_UNAVAILABLE"),
    grpc.StatusCode.NOT_FOUND: (_PERMANENT, "TOOL_NOT_FOUND"),
}
"""Every other code is permanent, TOOL_FAILED."""
_REASONS: dict[str, tuple[FailureClass.ValueType, Executed.ValueType]] = {
    "TOOL_ARGUMENTS_INVALID": (FailureClass.FAILURE_CLASS_MALFORMED, Executed.EXECUTED_UNKNOWN),
    "TOOL_RESULT_TOO_LARGE": (FailureClass.FAILURE_CLASS_LIMIT, Executed.EXECUTED_YES),
    "TOOL_RESULT_INVALID": (FailureClass.FAILURE_CLASS_MALFORMED, Executed.EXECUTED_YES),
}
"""What a reason says beyond its code."""


class Unimplemented(ToolFailure):
    """Raised when the server does not have what it was asked for."""


def not_sent(reason: str, message: str) -> ToolFailure:
    """Make the failure of a call that never left: proof that nothing was executed."""
    return ToolFailure(FailureClass.FAILURE_CLASS_NOT_SENT, Executed.EXECUTED_NO, reason, message)


def refused(reason: str, message: str) -> ToolFailure:
    """Make the failure of a call that may not be sent, now or later."""
    return ToolFailure(_PERMANENT, Executed.EXECUTED_NO, reason, message)


def ambiguous(reason: str, message: str) -> ToolFailure:
    """Make the failure of a call that left and may have taken effect."""
    return ToolFailure(_AMBIGUOUS, Executed.EXECUTED_UNKNOWN, reason, message)


def unusable(reason: str, message: str) -> ToolFailure:
    """Make the failure of a call that was answered in a way that cannot be used: it was executed."""
    failure_class, executed = _REASONS[reason]
    return ToolFailure(failure_class, executed, reason, message)


def of_status(error: grpc.aio.AioRpcError, token: str = "") -> ToolFailure:
    """Make the failure that a status and its trailers tell."""
    told = remote_status.of_error(error, token)
    if told.is_too_large:
        # Our own side says so, of a frame that it refused to read; a server that says so has not less executed.
        return unusable("TOOL_RESULT_TOO_LARGE", "a frame of the result exceeds the limit of a message")
    return _failure(told, is_proof=told.trailers.get(NOT_EXECUTED) == "1")


def of_end(status: Status, *, is_proof: bool) -> ToolFailure:
    """Make the failure that the end of a call on a stream tells; `is_proof`: it says that nothing was executed."""
    return _failure(remote_status.of_status(status), is_proof=is_proof)


def _failure(told: Told, *, is_proof: bool) -> ToolFailure:
    failure_class, reason = _CODES.get(told.code, (_PERMANENT, "TOOL_FAILED"))
    executed = Executed.EXECUTED_UNKNOWN
    if told.reason:
        reason = told.reason
        failure_class, executed = _REASONS.get(reason, (failure_class, executed))
    if is_proof:
        executed = Executed.EXECUTED_NO
        if failure_class == _AMBIGUOUS:
            failure_class = FailureClass.FAILURE_CLASS_TRANSIENT
    kind = Unimplemented if told.code is grpc.StatusCode.UNIMPLEMENTED else ToolFailure
    return kind(failure_class, executed, reason, told.text or reason, told.retry_after_seconds)
