"""Instruments: what is counted, as plain numbers in this process, read by whoever exports them.

Above: `metrics`, which counts on the loop, and the exporters, which read from threads of their own. Below: nothing.
Counting takes no lock: every instrument is written by one thread, and a reader sees each number as it was at some
moment of its reading; counts of a histogram are made of its buckets, so that they always fit. The number of series is
bounded: what comes beyond the bound is counted under `other`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from behestd.values import dataclass

OTHER = "other"
MAX_SERIES = 1000
"""Series of one instrument."""
MAX_LABEL_CHARACTERS = 128
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
QUICK_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)

Labels = tuple[str, ...]


class Exemplar(NamedTuple):
    """One observation that stands for its bucket, and the trace that it was made in."""

    value: float
    time_ns: int
    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True)
class Description:
    """What an instrument is: its name and unit after the conventions of OpenTelemetry, its text, its attributes."""

    name: str
    unit: str
    text: str
    labels: Labels = ()


class Counter:
    """Counts what happens. Never falls while the process lives."""

    __slots__ = ("about", "series")

    def __init__(self, about: Description) -> None:
        self.about = about
        self.series: dict[Labels, float] = {}

    def add(self, labels: Labels = (), count: float = 1) -> None:
        """Add to a series."""
        series = self.series
        known = series.get(labels)
        if known is None:
            labels = room_for(labels, series)
            known = series.get(labels, 0)
        series[labels] = known + count


class Buckets:
    """One series of a histogram: how many observations fell into each bucket (the last has no bound), and their sum."""

    __slots__ = ("counts", "exemplars", "total")

    def __init__(self, size: int) -> None:
        self.counts = [0] * size
        self.total: float = 0.0
        self.exemplars: dict[int, Exemplar] = {}


class Histogram:
    """Counts observations by size. A value on a bound belongs to the bucket below it."""

    __slots__ = ("about", "bounds", "series")

    def __init__(self, about: Description, bounds: Sequence[float] = SECONDS) -> None:
        self.about = about
        self.bounds = tuple(bounds)
        self.series: dict[Labels, Buckets] = {}

    def observe(self, value: float, labels: Labels = (), trace: tuple[str, str] | None = None) -> None:
        """Count an observation, made in a trace: (trace id, span id)."""
        series = self.series.get(labels)
        if series is None:
            series = self.series.setdefault(room_for(labels, self.series), Buckets(len(self.bounds) + 1))
        bucket = bisect_left(self.bounds, value)
        series.counts[bucket] += 1
        series.total += value
        if trace is not None:
            series.exemplars[bucket] = Exemplar(value, time.time_ns(), *trace)


class Gauge:
    """Says how much there is of something at present. It is asked when it is read, from any thread."""

    __slots__ = ("about", "read")

    def __init__(self, about: Description, read: Callable[[], Mapping[Labels, float]]) -> None:
        self.about = about
        self.read = read


class Total:
    """Says what another part of the daemon has counted since it began: a counter that is kept elsewhere."""

    __slots__ = ("about", "read")

    def __init__(self, about: Description, read: Callable[[], Mapping[Labels, float]]) -> None:
        self.about = about
        self.read = read


class Taken:
    """A histogram that is kept elsewhere: `read` gives its counts, one more than the bounds, and the sum."""

    __slots__ = ("about", "bounds", "read")

    def __init__(
        self, about: Description, bounds: Sequence[float], read: Callable[[], tuple[Sequence[int], float]]
    ) -> None:
        self.about = about
        self.bounds = tuple(bounds)
        self.read = read


Instrument = Counter | Histogram | Gauge | Total | Taken


def room_for(labels: Labels, series: Mapping[Labels, object]) -> Labels:
    """The series that new labels are counted in: their own while there is room, cut to a bounded size."""
    if len(series) >= MAX_SERIES:
        return (OTHER,) * len(labels)
    return tuple(label[:MAX_LABEL_CHARACTERS] for label in labels)


def numbers(instrument: Counter | Gauge | Total) -> Iterable[tuple[Labels, float]]:
    """The series of an instrument of numbers, as they are now."""
    return list((instrument.series if isinstance(instrument, Counter) else instrument.read()).items())


def buckets(instrument: Histogram | Taken) -> Iterable[tuple[Labels, list[int], float, Mapping[int, Exemplar]]]:
    """The series of a histogram, as they are now: labels, counts, sum, and an exemplar of some buckets."""
    if isinstance(instrument, Taken):
        counts, total = instrument.read()
        return [((), list(counts), total, {})]
    found = list(instrument.series.items())
    return [(labels, list(each.counts), each.total, dict(each.exemplars)) for labels, each in found]
