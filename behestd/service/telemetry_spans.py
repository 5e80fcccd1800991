"""Spans of the calls that the edge answers, by OpenTelemetry's own instrumentation of gRPC.

Above: `telemetry`, which loads this module only when there is a collector. Below: the instrumentation, which continues
the trace of the client. Two things are ours: our handlers write their streams, so a stream is one coroutine too, and no
text of an error gets into a span. What a handler begins stands under the span of its call: it reads of that span where
else it reads of the client's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import filters
from opentelemetry.instrumentation.grpc._aio_server import OpenTelemetryAioServerInterceptor
from opentelemetry.trace import Span, Status, StatusCode, Tracer

from behestd.errors import BehestError
from behestd.service.call import Call
from behestd.service.status import code_of
from behestd.telemetry import about, names

Behaviour = Callable[[Any, Any], Awaitable[Any]]
TRACEPARENT = "traceparent"


class RpcSpans(OpenTelemetryAioServerInterceptor):
    """Makes a span of each call of the contract."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__(_Quiet(tracer), filters.service_prefix("behest.v1."))  # type: ignore[no-untyped-call]  # theirs

    def _intercept_aio_server_unary(self, behavior: Behaviour, handler_call_details: Any) -> Behaviour:
        async def answer(request: Any, context: Any) -> Any:
            with self._set_remote_context(context):
                with self._start_span(handler_call_details, context) as span:  # type: ignore[no-untyped-call]  # theirs
                    about.say("", "", f"{span.get_span_context().trace_id:032x}")
                    return await behavior(request, _Within(context, span))

        return answer

    def _intercept_aio_server_stream(self, behavior: Behaviour, handler_call_details: Any) -> Behaviour:
        return self._intercept_aio_server_unary(behavior, handler_call_details)


class NamedEnds:
    """Says in the span of a call how it ended: its code and reason. An Observer."""

    __slots__ = ()

    def ended(self, method: str, call: Call, failure: BehestError | None, seconds: float) -> None:
        """See Observer."""
        if failure is None:
            return
        span = trace.get_current_span()
        span.set_attribute("rpc.grpc.status_code", code_of(failure).value[0])
        span.set_attribute(names.ERROR, failure.reason)
        span.set_status(Status(StatusCode.ERROR))


class _Quiet:
    """A tracer whose spans do not hold the texts and the traces of exceptions."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def start_as_current_span(self, **given: Any) -> AbstractContextManager[Span]:
        """See Tracer."""
        return self._tracer.start_as_current_span(record_exception=False, **given)


class _Within:
    """The context of a call, whose metadata say that it is part of the span of the call."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], span: Span) -> None:
        self._context = context
        self._span = span

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """See ServicerContext."""
        found = self._span.get_span_context()
        parent = f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags) & 1:02x}"
        given = tuple(pair for pair in self._context.invocation_metadata() or () if pair[0] != TRACEPARENT)
        return (*given, (TRACEPARENT, parent))
