"""The metrics as Prometheus reads them: an HTTP listener of its own, in threads of its own, off the event loop.

Above: `exports`, which loads this module only when an address is configured. Below: prometheus_client, which writes
both text formats (OpenMetrics, with exemplars, for who asks for it). A reader that is slow holds up itself alone, for
at most some seconds.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as Sampled

from behestd.telemetry.instruments import Counter, Description, Exemplar, Gauge, Instrument, Total, buckets, numbers

READERS = 16
"""Readers at once; those beyond are sent away."""
_READER_SECONDS = 10.0
_LOOK_SECONDS = 0.1
"""How often to look whether this is the end."""
_UNITS = {"s": "seconds", "By": "bytes", "{token}": "tokens"}


class Endpoint:
    """Answers readers at an address, from `start` to `close`."""

    def __init__(self, host: str, port: int, instruments: Sequence[Instrument]) -> None:
        """Bind. Raises OSError when the address is taken."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Readings(instruments))
        ProcessCollector(registry=registry)
        self._server = _Server((host, port), _Handler)
        self._server.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_LOOK_SECONDS,), name="behestd-metrics", daemon=True
        )

    @property
    def address(self) -> str:
        """HOST:PORT, with the port that was found."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a reader; those that are left do not hold up the end of the process."""

    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._places = threading.BoundedSemaphore(READERS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there is a place."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def server_bind(self) -> None:
        """Bind without asking a name server what this host is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Leave alone who goes away in the middle of an answer, or sends what is no request."""


class _Handler(WSGIRequestHandler):
    """Answers one reader."""

    timeout = _READER_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: readers come every few seconds."""


class Readings(Collector):
    """The instruments, as families of Prometheus."""

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self._instruments = tuple(instruments)

    def collect(self) -> Iterable[Metric]:
        """Read every instrument."""
        return [_family(instrument) for instrument in self._instruments]


def prometheus_name(about: Description) -> str:
    """The name of an instrument at Prometheus, without what its kind adds."""
    name, unit = about.name.replace(".", "_"), _UNITS.get(about.unit, "")
    return f"{name}_{unit}" if unit and not name.endswith(unit) else name


def _family(instrument: Instrument) -> Metric:
    about = instrument.about
    name, labels = prometheus_name(about), [label.replace(".", "_") for label in about.labels]
    if isinstance(instrument, Counter | Total | Gauge):
        kind = GaugeMetricFamily if isinstance(instrument, Gauge) else CounterMetricFamily
        family = kind(name, about.text, labels=labels)
        for values, number in numbers(instrument):
            family.add_metric(values, number)
        return family
    histogram = HistogramMetricFamily(name, about.text, labels=labels)
    for values, counts, total, exemplars in buckets(instrument):
        histogram.add_metric(values, _cumulated(instrument.bounds, counts, exemplars), total)
    return histogram


def _cumulated(bounds: Sequence[float], counts: Sequence[int], exemplars: Mapping[int, Exemplar]) -> list[Any]:
    cells, count = list[Any](), 0
    for index, found in enumerate(counts):
        count += found
        bound = str(float(bounds[index])) if index < len(bounds) else "+Inf"
        exemplar = exemplars.get(index)
        if exemplar is None:
            cells.append((bound, count))
        else:
            ids = {"trace_id": exemplar.trace_id, "span_id": exemplar.span_id}
            cells.append((bound, count, Sampled(ids, exemplar.value, exemplar.time_ns / 1e9)))
    return cells
