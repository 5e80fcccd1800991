"""What a provider raises when an attempt fails, and what a caller sees of it. Below every provider.

A failure is classed here, once, and never retried here: `core/route.py` decides from the class. Its text is
safe to store and to show; adapters put no key, prompt or uncut vendor text into it.
"""

from __future__ import annotations

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.usage_pb2 import Usage
from behestd import errors

NOT_SENT = FailureClass.FAILURE_CLASS_NOT_SENT
THROTTLED = FailureClass.FAILURE_CLASS_THROTTLED
TRANSIENT = FailureClass.FAILURE_CLASS_TRANSIENT
QUOTA = FailureClass.FAILURE_CLASS_QUOTA
PERMANENT = FailureClass.FAILURE_CLASS_PERMANENT
MALFORMED = FailureClass.FAILURE_CLASS_MALFORMED

UNKNOWN_MODEL = "PROVIDER_MODEL_NOT_FOUND"

_BRANCHES: dict[str, type[errors.BehestError]] = {
    UNKNOWN_MODEL: errors.NotFound,
    "PROVIDER_NOT_FOUND": errors.NotFound,
    "PROVIDER_CAPABILITY_MISSING": errors.WrongState,
    "PROVIDER_RATE_LIMITED": errors.Exhausted,
    "PROVIDER_QUOTA": errors.Exhausted,
    "PROVIDER_UNAVAILABLE": errors.Unavailable,
    "PROVIDER_TIMEOUT": errors.TimedOut,
    "PROVIDER_STREAM_BROKEN": errors.Unavailable,
    "PROVIDER_REQUEST_INVALID": errors.WrongState,
    "PROVIDER_CREDENTIALS_REJECTED": errors.WrongState,
    "PROVIDER_MODEL_REJECTED": errors.WrongState,
    "PROVIDER_CONTEXT_TOO_LONG": errors.WrongState,
    "PROVIDER_CONTENT_REFUSED": errors.WrongState,
    "PROVIDER_MALFORMED_OUTPUT": errors.Unavailable,
    "PROVIDER_PRICE_UNKNOWN": errors.WrongState,
}

CLASSES: dict[str, FailureClass.ValueType] = {
    **dict.fromkeys(_BRANCHES, PERMANENT),
    "PROVIDER_RATE_LIMITED": THROTTLED,
    "PROVIDER_QUOTA": QUOTA,
    "PROVIDER_UNAVAILABLE": TRANSIENT,
    "PROVIDER_TIMEOUT": TRANSIENT,
    "PROVIDER_STREAM_BROKEN": TRANSIENT,
    "PROVIDER_MALFORMED_OUTPUT": MALFORMED,
}
"""The class that a reason has unless the adapter knows better."""


class ProviderFailure(Exception):
    """Raised when an attempt fails. Read only.

    `failure_class` and `reason` are of the contract, `message` is for people, `retry_after_seconds` is what
    the provider asked for (None: nothing), `usage` is what it said it charged all the same (None: not known),
    `metadata` holds the values that the message names. The class defaults to that of the reason.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        failure_class: FailureClass.ValueType | None = None,
        retry_after_seconds: float | None = None,
        usage: Usage | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.failure_class = CLASSES[reason] if failure_class is None else failure_class
        self.reason = reason
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.usage = usage
        self.metadata = metadata or {}


def to_error(failure: ProviderFailure, model: str) -> errors.BehestError:
    """Tell a failure as an error of a call; a refusal of our key is never told as the caller's."""
    metadata = {"model": model, **failure.metadata}
    if failure.retry_after_seconds is not None:
        metadata["retryAfterSeconds"] = f"{failure.retry_after_seconds:g}"
    error = _BRANCHES.get(failure.reason, errors.Unavailable)
    return error(failure.reason, f"{model}: {failure.message}", retry_seconds=failure.retry_after_seconds, **metadata)
