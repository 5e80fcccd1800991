"""Spans and metrics on their way to a collector, by OTLP over gRPC, in threads of the exporters.

Above: `exports`, which loads this module only when a collector is configured. Below: the SDK of OpenTelemetry and its
exporters. A collector that is slow or away costs spans, and readings of counters that the next one makes good; it costs
no run any time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from behestd import __version__
from behestd.telemetry import names
from behestd.telemetry.instruments import (
    Description,
    Exemplar,
    Gauge,
    Histogram,
    Instrument,
    Labels,
    Taken,
    buckets,
    numbers,
)
from behestd.telemetry.settings import Settings

EXPORT_SECONDS = 5.0
"""How long one export is tried."""
SPAN_SECONDS = 1
"""How long a span that has ended waits for others at most."""
ATTRIBUTE_CHARACTERS = 256


class LiveSampler(Sampler):
    """Decides about traces that begin here by a share that can be changed at any time."""

    def __init__(self, share: float) -> None:
        self._sampler = TraceIdRatioBased(share)

    def set_share(self, share: float) -> None:
        """Record this share of the traces that begin from now on: 0 none, 1 all."""
        self._sampler = TraceIdRatioBased(share)

    def should_sample(self, parent_context, trace_id, *args, **kwargs) -> SamplingResult:  # type: ignore[no-untyped-def]
        """See Sampler."""
        return self._sampler.should_sample(parent_context, trace_id, *args, **kwargs)

    def get_description(self) -> str:
        """See Sampler."""
        return self._sampler.get_description()


class NamedIds(RandomIdGenerator):
    """Gives the next span the id that it is told, once; else a random one. Used on one thread."""

    def __init__(self) -> None:
        self.next_id = 0

    def generate_span_id(self) -> int:
        """See IdGenerator."""
        span_id, self.next_id = self.next_id, 0
        return span_id or super().generate_span_id()


class Tracing:
    """What makes spans and sends them."""

    def __init__(self, settings: Settings) -> None:
        self.sampler = LiveSampler(settings.sampling)
        self.ids = NamedIds()
        self._provider = TracerProvider(
            sampler=ParentBased(self.sampler),
            resource=resource(settings),
            shutdown_on_exit=False,
            id_generator=self.ids,
            span_limits=SpanLimits(max_span_attribute_length=ATTRIBUTE_CHARACTERS),
        )
        exporter = OTLPSpanExporter(settings.otlp, headers=dict(settings.headers) or None, timeout=EXPORT_SECONDS)
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=1000 * SPAN_SECONDS)
        self._provider.add_span_processor(self._processor)
        self.tracer = self._provider.get_tracer(names.SERVICE, __version__)

    def close(self) -> None:
        """Send what is left. May take as long as one export."""
        self._provider.shutdown()


class Pushing:
    """Sends readings of the instruments to a collector, again and again, and once more in the end."""

    def __init__(self, settings: Settings, instruments: Sequence[Instrument]) -> None:
        self._instruments = tuple(instruments)
        self._seconds = settings.metrics_seconds
        self._resource = resource(settings)
        self._start_ns = time.time_ns()
        self._exporter = OTLPMetricExporter(
            settings.otlp, headers=dict(settings.headers) or None, timeout=EXPORT_SECONDS
        )
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="behestd-otlp", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self) -> None:
        """Send a last reading. May take as long as one export."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(2 * EXPORT_SECONDS)
        self._exporter.shutdown()

    def _run(self) -> None:
        while not self._closing.wait(self._seconds):
            self._exporter.export(self._reading())
        self._exporter.export(self._reading())

    def _reading(self) -> sdk.MetricsData:
        now_ns = time.time_ns()
        metrics = [_metric(each, self._start_ns, now_ns) for each in self._instruments]
        scope = sdk.ScopeMetrics(InstrumentationScope(names.SERVICE, __version__), metrics, "")
        return sdk.MetricsData([sdk.ResourceMetrics(self._resource, [scope], "")])


def resource(settings: Settings) -> Resource:
    """What the daemon is called, which OTEL_RESOURCE_ATTRIBUTES may add to."""
    given = {"service.name": names.SERVICE, "service.version": __version__, "service.instance.id": settings.instance}
    return Resource.create({name: value for name, value in given.items() if value})


def _metric(instrument: Instrument, start_ns: int, now_ns: int) -> sdk.Metric:
    about = instrument.about
    data: sdk.Gauge | sdk.Sum | sdk.Histogram
    if isinstance(instrument, Histogram | Taken):
        data = sdk.Histogram(_cells(instrument, start_ns, now_ns), sdk.AggregationTemporality.CUMULATIVE)
    else:
        points = [
            sdk.NumberDataPoint(_attributes(about, labels), start_ns, now_ns, number)
            for labels, number in numbers(instrument)
        ]
        is_gauge = isinstance(instrument, Gauge)
        data = sdk.Gauge(points) if is_gauge else sdk.Sum(points, sdk.AggregationTemporality.CUMULATIVE, True)
    return sdk.Metric(about.name, about.text, about.unit, data)


def _cells(instrument: Histogram | Taken, start_ns: int, now_ns: int) -> list[sdk.HistogramDataPoint]:
    bounds = instrument.bounds
    return [
        sdk.HistogramDataPoint(
            attributes=_attributes(instrument.about, labels),
            start_time_unix_nano=start_ns,
            time_unix_nano=now_ns,
            count=sum(counts),
            sum=total,
            bucket_counts=counts,
            explicit_bounds=bounds,
            min=None,  # type: ignore[arg-type]  # not kept; the wire knows it as unset
            max=None,  # type: ignore[arg-type]
            exemplars=[_exemplar(each) for each in exemplars.values()],
        )
        for labels, counts, total, exemplars in buckets(instrument)
    ]


def _attributes(about: Description, labels: Labels) -> dict[str, str]:
    """Attributes with their values; one without a value is left out, as Prometheus does by itself."""
    return {name: value for name, value in zip(about.labels, labels, strict=True) if value}


def _exemplar(source: Exemplar) -> SdkExemplar:
    return SdkExemplar({}, source.value, source.time_ns, int(source.span_id, 16), int(source.trace_id, 16))
