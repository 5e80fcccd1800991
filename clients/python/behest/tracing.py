"""Traces, for programs that make some with OpenTelemetry: calls go out under the span of the moment, tools continue it.

Above: the channel and the tool server. Below: OpenTelemetry's API, if the program has loaded it; nothing of it is
loaded here, and a program without it pays for one look into a dictionary.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from behest.security import TokenChannel

TRACEPARENT = "traceparent"
_CONTEXT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def current() -> str:
    """The W3C trace context of the span that this code runs in; empty when there is none."""
    api: Any = sys.modules.get("opentelemetry.trace")
    found = api.get_current_span().get_span_context() if api is not None else None
    if found is None or not found.is_valid:
        return ""
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags) & 1:02x}"


@contextmanager
def continued(traceparent: str) -> Iterator[None]:
    """Let the spans that are begun within be part of a trace that somebody else began."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    context: Any = sys.modules.get("opentelemetry.context")
    found = _CONTEXT.fullmatch(traceparent)
    if trace is None or context is None or found is None:
        yield
        return
    trace_id, span_id, flags = (int(field, 16) for field in found.groups())
    above = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags & 1))
    token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(above)))
    try:
        yield
    finally:
        context.detach(token)


class TracedChannel(TokenChannel):
    """A channel whose calls say which trace they are part of, if any, and bring a token, if there is one."""

    def __init__(self, channel: Any, token: str = "") -> None:
        super().__init__(channel, token)
        self._given = self._own if token else ()

    def _bringing(self, method: Any) -> Any:
        def call(*arguments: Any, metadata: Any = (), **named: Any) -> Any:
            given = (*(metadata or ()), *self._given)
            parent = current()
            if parent and all(pair[0] != TRACEPARENT for pair in given):
                given = (*given, (TRACEPARENT, parent))
            return method(*arguments, metadata=given, **named)

        return call
