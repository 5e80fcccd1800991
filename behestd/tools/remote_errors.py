"""What a broken call to a tool server means: failure class, what is known of the effect, reason. One table.

Above it `remote`. The law: no status code proves that nothing was executed; a connection that never stood proves it,
and so does the server's trailer `behest-not-executed: 1`. What servers say is untrusted: it is cut, cleaned of control
characters and of the token that was sent to them.
"""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from behest.v1.error_reason_pb2 import ErrorReason
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed
from behestd.core.times import duration_ns
from behestd.tools.tool import ToolFailure

NOT_EXECUTED = "behest-not-executed"
_DETAILS = "grpc-status-details-bin"
_MAX_TEXT = 500

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
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

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
    trailers = dict(error.trailing_metadata() or ())
    text = clean(error.details() or "", token)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        # Our own side says so, of a frame that it refused to read; a server that says so has not less executed.
        return unusable("TOOL_RESULT_TOO_LARGE", "a frame of the result exceeds the limit of a message")
    details = trailers.get(_DETAILS)
    try:
        status = Status.FromString(details) if isinstance(details, bytes) else Status()
    except DecodeError:
        status = Status()
    return _told(error.code(), text, status, is_proof=trailers.get(NOT_EXECUTED) == "1")


def of_end(status: Status, *, is_proof: bool) -> ToolFailure:
    """Make the failure that the end of a call on a stream tells; `is_proof`: it says that nothing was executed."""
    code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    return _told(code, clean(status.message), status, is_proof=is_proof)


def _told(code: grpc.StatusCode, text: str, status: Status, *, is_proof: bool) -> ToolFailure:
    info, retry_seconds = _details(status)
    failure_class, reason = _CODES.get(code, (_PERMANENT, "TOOL_FAILED"))
    executed = Executed.EXECUTED_UNKNOWN
    if info.domain == "behest" and f"ERROR_REASON_{info.reason}" in ErrorReason.keys():
        reason = info.reason
        failure_class, executed = _REASONS.get(reason, (failure_class, executed))
    if is_proof:
        executed = Executed.EXECUTED_NO
        if failure_class == _AMBIGUOUS:
            failure_class = FailureClass.FAILURE_CLASS_TRANSIENT
    kind = Unimplemented if code is grpc.StatusCode.UNIMPLEMENTED else ToolFailure
    return kind(failure_class, executed, reason, text or reason, retry_seconds)


def clean(text: str, token: str = "") -> str:
    """Make a server's text fit to be shown: no token, no control characters, 500 characters at most."""
    if token:
        text = text.replace(token, "***")
    line = "".join(character if character.isprintable() else " " for character in text[: 2 * _MAX_TEXT])
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 1] + "…"


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
