"""Telemetry of a daemon, put together: what counts and records, what is measured, and where it is exported to.

Above: the composition, which makes it first and stops it last. Below: `telemetry`, the measured parts of the runtime,
and libraries that are loaded only for what is configured: a daemon that nobody watches pays for none of it.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from behestd.core.circuit import CircuitPolicy
from behestd.errors import BehestError, Unsupported
from behestd.providers.catalog import Catalog as Models
from behestd.runtime.clock import Clock
from behestd.runtime.direct_calls import DirectCalls
from behestd.runtime.health import Endpoints
from behestd.runtime.house import House
from behestd.runtime.measured import MeasuredCalls, MeasuredEndpoints, Meter
from behestd.runtime.model_limits import Allowance
from behestd.service import listen
from behestd.service.telemetry_calls import CountedCalls
from behestd.service.telemetry_gauges import gauges
from behestd.telemetry.instruments import Instrument
from behestd.telemetry.logs import Logs
from behestd.telemetry.metrics import Metrics
from behestd.telemetry.port import Listener, Several, Silence
from behestd.telemetry.settings import Settings

if TYPE_CHECKING:
    import grpc

    from behestd.service.methods import Observer
    from behestd.service.server import Edge

logger = structlog.get_logger(__name__)

CLOSE_SECONDS = 3.0
"""How long the last exports may take."""
EXTRA = "telemetry"


class Planned(Protocol):
    """The part of a daemon's plan that is told here."""

    @property
    def telemetry(self) -> Settings:
        """The settings of telemetry."""
        ...


class Telemetry:
    """Everything that tells of this daemon. `listener`, `observers` and `interceptors` go where their names say."""

    def __init__(self, settings: Settings, clock: Clock, new_key: Callable[[], str], logs: Logs | None = None) -> None:
        """Load what the settings ask for. Raises Unsupported when the extra is not installed."""
        self._settings = settings
        self._logs = logs
        self._tracing: Any = _load("otlp").Tracing(settings) if settings.traces else None
        self._prometheus: Any = None
        self._pushing: Any = None
        self.instruments: tuple[Instrument, ...] = ()
        """Everything that is exported."""
        self.observers: tuple[Observer, ...] = ()
        self.interceptors: tuple[grpc.aio.ServerInterceptor, ...] = ()
        self.listener: Listener = Silence()
        self._meter: Meter | None = None
        if settings.counts or settings.traces:
            self._listen(Metrics(says_traces=settings.traces), clock, new_key)

    def _listen(self, metrics: Metrics, clock: Clock, new_key: Callable[[], str]) -> None:
        self._meter = Meter(metrics, clock, new_key)
        listeners: list[Listener] = []
        if self._settings.counts:
            listeners.append(metrics)
            self.observers += (CountedCalls(metrics, says_traces=self._tracing is not None),)
        if self._tracing is not None:
            spans, rpc = _load("spans"), importlib.import_module("behestd.service.telemetry_spans")
            recorder = spans.TracerRecorder(self._tracing.tracer, self._tracing.ids)
            self._meter = replace(self._meter, recorder=recorder)
            listeners.append(spans.Spans(recorder))
            self.interceptors = (rpc.RpcSpans(self._tracing.tracer),)
            self.observers += (rpc.NamedEnds(),)
        self.listener = listeners[0] if len(listeners) == 1 else Several(tuple(listeners))

    # --- what is measured ---

    def endpoints(
        self, clock: Clock, policy: CircuitPolicy, allowances: Mapping[str, Allowance], models: Models
    ) -> Endpoints:
        """Make what knows of the models that are called, measured if somebody asks."""
        if self._meter is None:
            return Endpoints(clock, policy, allowances)

        def is_embedding(namespace: str, model: str) -> bool:
            try:
                return models.of(namespace).resolve(model).model.capabilities.embeddings
            except BehestError:
                return False

        self._meter = replace(self._meter, is_embedding=is_embedding)
        return MeasuredEndpoints(clock, policy, allowances, self._meter)

    def calls(self, house: House) -> DirectCalls:
        """Make direct calls of tools, measured if somebody asks."""
        return DirectCalls(house) if self._meter is None else MeasuredCalls(house, self._meter)

    # --- its life ---

    def start(self, house: House, edge: Edge) -> None:
        """Begin to export. Raises AddressUnusable."""
        if self._meter is None or not self._settings.counts:
            return
        instruments = self.instruments = (*self._meter.metrics.instruments, *gauges(house, edge, self._logs))
        if self._settings.prometheus:
            self._prometheus = self._bound(instruments)
            self._prometheus.start()
            logger.info("metrics are served", address=self.address)
        if self._settings.otlp and self._settings.has_metrics:
            self._pushing = _load("otlp").Pushing(self._settings, instruments)
            self._pushing.start()

    def _bound(self, instruments: Sequence[Instrument]) -> Any:
        address = listen.parse(self._settings.prometheus)
        try:
            return _load("prometheus").Endpoint(address.host, address.port, instruments)
        except OSError:
            raise listen.AddressUnusable(f"cannot listen on {address}: it is taken, or not of this machine") from None

    @property
    def address(self) -> str:
        """Where metrics are read, with the port that was found; empty: nowhere."""
        return str(self._prometheus.address) if self._prometheus is not None else ""

    async def close(self) -> None:
        """Export what is left, within some seconds."""
        parts = [part for part in (self._prometheus, self._pushing, self._tracing) if part is not None]
        if not parts:
            return
        threads = [threading.Thread(target=part.close, daemon=True) for part in parts]
        for thread in threads:
            thread.start()

        def join() -> None:
            for thread in threads:
                thread.join(CLOSE_SECONDS)

        await asyncio.to_thread(join)

    def prepare(self, plan: Planned) -> Callable[[], None]:
        """Take other settings; what is returned puts them in force: the level of the log, and the sampling.

        Everything else changes at the next start.
        """
        settings = plan.telemetry

        def swap() -> None:
            if self._logs is not None:
                self._logs.set_level(settings.level)
            if self._tracing is not None:
                self._tracing.sampler.set_share(settings.sampling)

        return swap


def _load(name: str) -> Any:
    """Load a part of telemetry that needs the extra. Raises Unsupported when that is not installed."""
    try:
        return importlib.import_module(f"behestd.telemetry.{name}")
    except ImportError as error:
        raise Unsupported(
            "REQUEST_UNSUPPORTED",
            f"telemetry needs the extra behestd[{EXTRA}]: pip install 'behestd[{EXTRA}]'",
            feature=f"behestd[{EXTRA}]",
        ) from error
