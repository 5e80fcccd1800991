"""A collector for tests: a real gRPC server of OpenTelemetry's services, which keeps what it is sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_service
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_service
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A span as it came, with its ids in hex and its attributes as Python's values."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    is_error: bool
    service: str
    attributes: dict[str, Any]
    begin_ns: int
    end_ns: int


@dataclass
class Collector(TraceServiceServicer, MetricsServiceServicer):
    """What came, in order."""

    address: str = ""
    spans: list[Seen] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    """The last reading of each metric."""
    resource: dict[str, Any] = field(default_factory=dict)
    headers: list[dict[str, str]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    _came: threading.Event = field(default_factory=threading.Event)

    async def Export(self, request: Any, context: Any) -> Any:
        """Keep an export, of either kind."""
        self.headers.append(dict(context.invocation_metadata()))
        self.raw.append(request.SerializeToString())
        if isinstance(request, trace_service.ExportTraceServiceRequest):
            self.spans += [
                seen(span, values(each.resource.attributes).get("service.name", ""))
                for each in request.resource_spans
                for scope in each.scope_spans
                for span in scope.spans
            ]
            answer: Any = trace_service.ExportTraceServiceResponse()
        else:
            for each in request.resource_metrics:
                self.resource = values(each.resource.attributes)
                for scope in each.scope_metrics:
                    self.metrics |= {metric.name: metric for metric in scope.metrics}
            answer = metrics_service.ExportMetricsServiceResponse()
        return answer

    async def until(self, found: Callable[[], Any]) -> Any:
        """Wait until something is found, at most half a minute."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not (result := found()):
                await asyncio.sleep(0.02)
        return result

    async def named(self, *names: str) -> dict[str, Seen]:
        """Wait for the spans of these names, and give the last of each."""

        def all_of_them() -> dict[str, Seen] | None:
            by_name = {span.name: span for span in self.spans}
            return by_name if by_name.keys() >= set(names) else None

        return dict(await self.until(all_of_them))


def values(attributes: Any) -> dict[str, Any]:
    """Attributes as Python's values."""
    found: dict[str, Any] = {}
    for pair in attributes:
        kind = pair.value.WhichOneof("value") or ""
        value = getattr(pair.value, kind)
        found[pair.key] = [each.string_value for each in value.values] if kind == "array_value" else value
    return found


def seen(span: Span, service: str) -> Seen:
    """Read a span."""
    return Seen(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        is_error=span.status.code == 2,
        service=service,
        attributes=values(span.attributes),
        begin_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
    )


def texts_of(value: object) -> Iterator[str]:
    """Every text in a span."""
    if isinstance(value, Seen):
        yield value.name
        for key, each in value.attributes.items():
            yield key
            yield str(each)


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector at a free port of this machine."""
    server = grpc.aio.server()
    collector = Collector()
    add_TraceServiceServicer_to_server(collector, server)
    add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    collector.address = f"http://127.0.0.1:{port}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(0.5)
