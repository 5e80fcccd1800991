"""Calls that are measured: attempts at models, whoever makes them, and direct calls of tools. Only when somebody asks.

Above: the composition, which builds these in the place of those that they extend, when there are metrics or traces.
Below: `telemetry`. What a call does is that of the class it extends; here it gets a beginning, an end, and for what
belongs to no run a span of its own, which the other side is told of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from behest.v1.usage_pb2 import Usage
from behestd.core.circuit import CircuitPolicy
from behestd.core.times import SECOND
from behestd.errors import BehestError
from behestd.providers.ambience import ambience, surround
from behestd.providers.catalog import parted
from behestd.providers.failure import ProviderFailure
from behestd.runtime.clock import Clock
from behestd.runtime.direct_call import DirectCall
from behestd.runtime.direct_calls import DirectCalls
from behestd.runtime.health import Asked, Attempt, Endpoints
from behestd.runtime.house import House
from behestd.runtime.model_limits import Allowance, Gate
from behestd.telemetry import names, w3c
from behestd.telemetry.metrics import Metrics
from behestd.telemetry.port import Ended, Recorder
from behestd.tools.tool import Answer, Executor, ToolFailure


@dataclass(frozen=True, slots=True)
class Meter:
    """Who is told of calls. `recorder` None: nobody wants spans."""

    metrics: Metrics
    clock: Clock
    new_key: Callable[[], str]
    """Names the span of a call that nothing in a log names."""
    recorder: Recorder | None = None
    is_embedding: Callable[[str, str], bool] = lambda namespace, model: False
    """Whether a model makes embeddings: by namespace and id."""

    def span(self, traceparent: str) -> str:
        """Name a span under a trace context; empty when it is not recorded."""
        return self.new_key() if self.recorder is not None and w3c.is_recorded(traceparent) else ""


class MeasuredEndpoints(Endpoints):
    """Endpoints whose attempts are measured."""

    __slots__ = ("_meter",)

    def __init__(
        self, clock: Clock, policy: CircuitPolicy | None, allowances: Mapping[str, Allowance] | None, meter: Meter
    ) -> None:
        super().__init__(clock, policy, allowances)
        self._meter = meter

    def attempt(self, endpoint: str, deadline_ns: int, *, is_retry: bool, tokens: int, namespace: str = "") -> Attempt:
        """See Endpoints."""
        asked = (deadline_ns, is_retry, tokens, namespace)
        return MeasuredAttempt(self, endpoint, self._gate(endpoint), asked, self._meter)

    def opened(self) -> list[tuple[str, str]]:
        """The models that are left alone, by namespace (empty: everybody's) and id. May be called from any thread."""
        conditions = list(self._conditions.items())
        return [parted(endpoint) for endpoint, condition in conditions if condition.opened]


class MeasuredAttempt(Attempt):
    """An attempt at a model that is measured from when it may leave.

    One of a run is told by its run's events; any other has a span if it is made within a trace.
    """

    __slots__ = ("_around", "_begin_ns", "_key", "_meter")

    def __init__(self, endpoints: Endpoints, endpoint: str, gate: Gate | None, asked: Asked, meter: Meter) -> None:
        super().__init__(endpoints, endpoint, gate, asked)
        self._meter = meter
        self._around = ambience()
        self._begin_ns = 0
        self._key = ""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        around = self._around
        self._begin_ns = self._meter.clock.now_ns()
        self._key = self._meter.span(around.traceparent)
        if self._key:
            surround(w3c.under(around.traceparent, self._key), around.seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now_ns, metrics = self._meter.clock.now_ns(), self._meter.metrics
        namespace, model = parted(self._endpoint)
        usage = self._usage or (error.usage if isinstance(error, ProviderFailure) else None) or Usage()
        is_embedding = self._meter.is_embedding(namespace, model)
        operation = names.OPERATION_EMBEDDINGS if is_embedding else names.OPERATION_CHAT
        told = metrics.trace(ambience().traceparent)
        metrics.model(operation, (namespace, model), (now_ns - self._begin_ns) / SECOND, _named(error), told)
        if usage.input_tokens or usage.output_tokens:
            metrics.tokens((namespace, model), usage.input_tokens, usage.output_tokens)
        if self._key:
            self._record(operation, model, usage, now_ns, _named(error))
            surround(self._around.traceparent, self._around.seconds)
        await super().__aexit__(kind, error, trace)

    def _record(self, operation: str, model: str, usage: Usage, now_ns: int, error: str) -> None:
        attributes: dict[str, Any] = {
            names.OPERATION: operation,
            names.PROVIDER: model.partition("/")[0],
            names.MODEL: model,
            names.INPUT_TOKENS: usage.input_tokens,
            names.OUTPUT_TOKENS: usage.output_tokens,
        }
        assert self._meter.recorder is not None
        parent, times = self._around.traceparent, (self._begin_ns, now_ns)
        name = f"{operation} {model}"
        self._meter.recorder.record(Ended(name, parent, self._key, *times, attributes, error, is_remote=True))


class MeasuredCalls(DirectCalls):
    """Direct calls of tools that are measured."""

    def __init__(self, house: House, meter: Meter) -> None:
        super().__init__(house)
        self._meter = meter

    async def _sent(self, call: DirectCall, executor: Executor) -> Answer:
        """See DirectCalls."""
        begin_ns, parent = self._meter.clock.now_ns(), call.sent.traceparent
        key, error = self._meter.span(parent), ""
        if key:
            call.sent = replace(call.sent, traceparent=w3c.under(parent, key))
        try:
            answer = await super()._sent(call, executor)
            error = "tool_error" if answer.is_error else ""
            return answer
        except BaseException as failure:
            error = _named(failure)
            raise
        finally:
            self._ended(call, parent, key, begin_ns, error)

    def _ended(self, call: DirectCall, parent: str, key: str, begin_ns: int, error: str) -> None:
        now_ns, name = self._meter.clock.now_ns(), call.sent.name
        trace = self._meter.metrics.trace(call.sent.traceparent)
        self._meter.metrics.tool_duration.observe(
            (now_ns - begin_ns) / SECOND, (name, call.sent.namespace, error), trace
        )
        if key and self._meter.recorder is not None:
            attributes = {names.OPERATION: names.OPERATION_TOOL, names.TOOL: name, names.TOOL_CALL: call.call_id}
            times, is_remote = (begin_ns, now_ns), bool(call.server_id)
            span = f"{names.OPERATION_TOOL} {name}"
            self._meter.recorder.record(Ended(span, parent, key, *times, attributes, error, is_remote))


def _named(error: BaseException | None) -> str:
    """What an error is called in metrics and spans: a reason of the contract, never a text."""
    if error is None:
        return ""
    if isinstance(error, ProviderFailure | ToolFailure | BehestError):
        return error.reason
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    return "RUNTIME_INTERNAL"
