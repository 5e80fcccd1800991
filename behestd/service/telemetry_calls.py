"""What is counted of the calls that the edge answers. Above: `telemetry`. Below: the call that has ended."""

from __future__ import annotations

from behestd.errors import BehestError
from behestd.service.call import Call
from behestd.service.status import code_of
from behestd.telemetry.metrics import Metrics

_OK = "OK"
_FOREIGN = ("/grpc.",)
"""Health and reflection, which others ask every second."""


class CountedCalls:
    """Counts calls. An Observer."""

    __slots__ = ("_metrics", "_says_traces")

    def __init__(self, metrics: Metrics, *, says_traces: bool) -> None:
        self._metrics = metrics
        self._says_traces = says_traces

    def ended(self, method: str, call: Call, failure: BehestError | None, seconds: float) -> None:
        """See Observer."""
        if method.startswith(_FOREIGN):
            return
        metrics = self._metrics
        trace = metrics.trace(call.traceparent) if self._says_traces else None
        code = _OK if failure is None else code_of(failure).name
        metrics.rpc_duration.observe(seconds, (method[1:], code), trace)
        if failure is not None:
            metrics.rpc_refused.add((failure.reason or code,))
