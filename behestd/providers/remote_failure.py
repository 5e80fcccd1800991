"""What a broken call to a remote provider means: failure class and reason. One table.

Above: `remote` and `attached`. Below: `wire.remote_status`, which reads what a server says. A reason of the contract
that begins with PROVIDER_ keeps its meaning, so that a daemon behind a daemon fails as it would alone; everything else
goes by its code. That a server refuses our token is never told as the caller's fault.
"""

from __future__ import annotations

import grpc

from behestd.providers.failure import CLASSES, NOT_SENT, ProviderFailure
from behestd.wire import remote_status
from behestd.wire.remote_status import Told

_CODES: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAVAILABLE: "PROVIDER_UNAVAILABLE",
    grpc.StatusCode.INTERNAL: "PROVIDER_UNAVAILABLE",
    grpc.StatusCode.UNKNOWN: "PROVIDER_UNAVAILABLE",
    grpc.StatusCode.DATA_LOSS: "PROVIDER_UNAVAILABLE",
    grpc.StatusCode.ABORTED: "PROVIDER_UNAVAILABLE",
    grpc.StatusCode.CANCELLED: "PROVIDER_UNAVAILABLE",
    grpc.StatusCode.DEADLINE_EXCEEDED: "PROVIDER_TIMEOUT",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "PROVIDER_RATE_LIMITED",
    grpc.StatusCode.UNAUTHENTICATED: "PROVIDER_CREDENTIALS_REJECTED",
    grpc.StatusCode.PERMISSION_DENIED: "PROVIDER_CREDENTIALS_REJECTED",
    grpc.StatusCode.NOT_FOUND: "PROVIDER_MODEL_REJECTED",
}
"""Every other code is PROVIDER_REQUEST_INVALID."""
_BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL})
"""Codes that the transport gives itself when a connection is lost."""


def not_sent(text: str) -> ProviderFailure:
    """Make the failure of a call that never left."""
    return ProviderFailure("PROVIDER_UNAVAILABLE", text, failure_class=NOT_SENT)


def too_large(text: str) -> ProviderFailure:
    """Make the failure of a call that cannot be sent, now or later."""
    return ProviderFailure("PROVIDER_REQUEST_INVALID", text)


def malformed(problem: str) -> ProviderFailure:
    """Make the failure of an answer that makes no sense."""
    return ProviderFailure("PROVIDER_MALFORMED_OUTPUT", problem)


def stream_broken(text: str) -> ProviderFailure:
    """Make the failure of an answer of which a part has come."""
    return ProviderFailure("PROVIDER_STREAM_BROKEN", text)


def of_error(error: grpc.aio.AioRpcError, token: str = "", *, has_begun: bool = False) -> ProviderFailure:
    """Make the failure that the status of a call tells; `has_begun`: a part of the answer has come."""
    told = remote_status.of_error(error, token)
    if told.is_too_large:
        # The transport at the other end says so of what we sent, ours of a frame that it refused to read.
        is_ours = told.text.startswith("SERVER")
        return too_large(told.text) if is_ours else malformed("a frame of the answer exceeds the limit of a message")
    return of_told(told, has_begun=has_begun)


def of_told(told: Told, *, has_begun: bool = False) -> ProviderFailure:
    """Make the failure that a status means."""
    reason = _CODES.get(told.code, "PROVIDER_REQUEST_INVALID")
    if told.reason in CLASSES:
        reason = told.reason
    elif has_begun and told.code in _BROKEN:
        reason = "PROVIDER_STREAM_BROKEN"
    return ProviderFailure(reason, told.text or told.code.name, retry_after_seconds=told.retry_after_seconds)
