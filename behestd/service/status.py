"""What a caller is told of a failure: the one table from errors to gRPC codes, and the shape of a status.

Above it are the registered methods, which abort with what is made here; below it is `errors` alone. A status
carries exactly one `ErrorInfo` of the domain "behest"; what does not fit into the trailers of a call is cut,
so that no error is lost because it is too long to be sent. No other module names a code.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from behestd import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

DOMAIN = "behest"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
NOT_EXECUTED_KEY = "behest-not-executed"

# Clients take 8 KiB of trailers by default; details travel as base64, the message once more, percent-encoded.
MAX_MESSAGE_BYTES = 384
MAX_NAME_BYTES = 96
MAX_VALUE_BYTES = 192
MAX_VIOLATIONS = 8
MAX_VALUES = 6
_ELLIPSIS = "…".encode()

CODES: Mapping[type[errors.BehestError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LostRace: grpc.StatusCode.ABORTED,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.TimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.Corrupt: grpc.StatusCode.DATA_LOSS,
    errors.Internal: grpc.StatusCode.INTERNAL,
    # An error of no branch is a mistake of ours.
    errors.BehestError: grpc.StatusCode.INTERNAL,
}


def code_of(error: errors.BehestError) -> grpc.StatusCode:
    """Return the code of the nearest branch of the error's class."""
    return next(CODES[base] for base in type(error).__mro__ if base in CODES)


def is_fault(error: errors.BehestError) -> bool:
    """Tell whether an operator must hear of the error: a fault of ours, or damaged data."""
    return code_of(error) in (grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)


def internal() -> errors.Internal:
    """Make the error that stands for an exception nobody expected. It repeats nothing of it."""
    return errors.Internal("RUNTIME_INTERNAL", "a fault of the daemon; its log says more")


def to_status(error: errors.BehestError) -> Status:
    """Make the status of a call that failed. An empty reason leaves ErrorInfo out: foreign protocols."""
    status = _bare(error)
    if isinstance(error, errors.InvalidRequest):
        fields = BadRequest()
        for field, problem in error.violations[:MAX_VIOLATIONS]:
            fields.field_violations.add(field=_cut(field, MAX_NAME_BYTES), description=_cut(problem, MAX_VALUE_BYTES))
        status.details.add().Pack(fields)
    if error.retry_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(_milliseconds(error.retry_seconds) * 1_000_000)
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    return status


def run_error(error: BaseException) -> Status:
    """Make the status that `RunFailed` and its kin keep: code, reason, metadata, no advice for a caller.

    An exception that is no error of ours becomes RUNTIME_INTERNAL.
    """
    return _bare(error if isinstance(error, errors.BehestError) else internal())


def trailers(error: errors.BehestError, status: Status) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata that carries a status, and how long a client's own retries should wait."""
    found: list[tuple[str, str | bytes]] = []
    if status.details:
        found.append((DETAILS_KEY, status.SerializeToString()))
    if error.retry_seconds is not None:
        found.append((PUSHBACK_KEY, str(_milliseconds(error.retry_seconds))))
    if error.not_executed:
        found.append((NOT_EXECUTED_KEY, "1"))
    return tuple(found)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: errors.BehestError, timeout_seconds: float) -> None:
    """End a call with an error.

    Returns without having told it when the client does not read within `timeout_seconds`, which blocks an
    abort as it blocks a write; else raises AbortError, which nobody may catch.
    """
    status = to_status(error)
    try:
        async with asyncio.timeout(timeout_seconds):
            await context.abort(code_of(error), status.message, trailers(error, status))
    except (TimeoutError, grpc.aio.InternalError):
        return


def _bare(error: errors.BehestError) -> Status:
    status = Status(code=code_of(error).value[0], message=_cut(error.message, MAX_MESSAGE_BYTES))
    if error.reason:
        first = list(error.metadata.items())[:MAX_VALUES]
        values = {_cut(key, MAX_NAME_BYTES): _cut(value, MAX_VALUE_BYTES) for key, value in first}
        status.details.add().Pack(ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=values))
    return status


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _cut(text: str, limit_bytes: int) -> str:
    """Shorten a text, and replace what cannot be sent: surrogates, as file names may hold them."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: limit_bytes - len(_ELLIPSIS)].decode("utf-8", "ignore") + _ELLIPSIS.decode()
