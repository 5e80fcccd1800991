"""Reading a Prometheus endpoint as Prometheus does: both text formats, by the parsers of its own library."""

from __future__ import annotations

import asyncio
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_text

from behestd.components import TELEMETRY
from tests.daemons import Served

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


@dataclass(frozen=True, slots=True)
class Scrape:
    """What an endpoint said: its text, and the families in it by name."""

    text: str
    families: Mapping[str, Any]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of a name that have these labels; 0 when there are none."""
        return sum(sample.value for sample in self.samples(name, **labels))

    def samples(self, name: str, **labels: str) -> list[Any]:
        """The samples of a name that have these labels."""
        every = (sample for family in self.families.values() for sample in family.samples)
        return [sample for sample in every if sample.name == name and labels.items() <= sample.labels.items()]


async def scrape(address: str, *, is_open: bool = False) -> Scrape:
    """Read an endpoint, at most half a minute."""
    request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": OPEN_METRICS} if is_open else {})

    def read() -> str:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    text = await asyncio.to_thread(read)
    parse = read_open if is_open else read_text
    return Scrape(text, {family.name: family for family in parse(text)})


def address_of(served: Served) -> str:
    """Where a daemon's metrics are read."""
    return served.daemon.lifecycle[TELEMETRY].address


def check_histograms(found: Scrape) -> int:
    """Check that each histogram is one: buckets that rise, up to a count that fits. Gives how many series there are."""
    series = 0
    for name, family in found.families.items():
        if family.type != "histogram":
            continue
        cells: dict[frozenset[Any], list[tuple[float, float]]] = defaultdict(list)
        for sample in found.samples(f"{name}_bucket"):
            labels = frozenset(pair for pair in sample.labels.items() if pair[0] != "le")
            cells[labels].append((float(sample.labels["le"]), sample.value))
        for labels, buckets in cells.items():
            series += 1
            assert rising(bound for bound, _ in buckets), name
            assert rising((count for _, count in buckets), is_strict=False), name
            assert buckets[-1][0] == float("inf")
            assert found.value(f"{name}_count", **dict(labels)) == buckets[-1][1]
    return series


def rising(values: Iterable[float], *, is_strict: bool = True) -> bool:
    """Whether each value is above the one before it, or not below."""
    found = list(values)
    return all(a < b or (a == b and not is_strict) for a, b in pairwise(found))
