"""Metrics that others count: what the store, the blobs, the edge and the log say of themselves, when somebody reads it.

Above: `telemetry`. Below: the `statistics` of the parts. All of it may be read from any thread: single numbers, and
copies that are made in one go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from behestd.runtime.house import House
from behestd.runtime.measured import MeasuredEndpoints
from behestd.service.scopes import Load
from behestd.telemetry import names
from behestd.telemetry.instruments import QUICK_SECONDS, Description, Gauge, Instrument, Labels, Taken, Total
from behestd.telemetry.logs import Logs

if TYPE_CHECKING:
    from behestd.service.server import Edge

WATCHERS = Description("behest.watchers", "{call}", "Watches that are open.")
SHEDDING = Description("behest.shedding", "1", "1 while the daemon takes no new runs because it has too much to do.")
_MODEL = (names.MODEL, names.NAMESPACE)
CIRCUITS = Description("behest.model.circuits.open", "{circuit}", "Models that are left alone.", _MODEL)
COMMITS = Description("behest.log.commits", "{commit}", "Transactions of the store.")
EVENTS = Description("behest.log.events", "{event}", "Events committed.")
READS = Description("behest.log.reads", "{read}", "Reads of the store.")
COMMIT_DURATION = Description("behest.log.commit.duration", "s", "How long a transaction of the store took.")
BLOB_BYTES = Description("behest.blobs.written", "By", "Bytes of large values written.")
LINES = Description("behest.log_lines.written", "{line}", "Lines of the daemon's own log written.")
DROPPED = Description("behest.log_lines.dropped", "{line}", "Lines dropped, as nobody read them in time.")


def gauges(house: House, edge: Edge, logs: Logs | None) -> list[Instrument]:
    """Make the instruments that read what others count."""
    store, blobs, endpoints = house.log.store, house.blobs, house.endpoints

    def commits() -> tuple[tuple[int, ...], float]:
        found = store.statistics()
        return found.commit_buckets, found.commit_total_seconds

    def circuits() -> Mapping[Labels, float]:
        found = endpoints.opened() if isinstance(endpoints, MeasuredEndpoints) else ()
        return {(model, namespace): 1 for namespace, model in found}

    made: list[Instrument] = [
        Gauge(WATCHERS, lambda: {(): edge.admission.statistics().in_flight.get(Load.WATCH, 0)}),
        Gauge(SHEDDING, lambda: {(): int(house.intake.is_shedding())}),
        Gauge(CIRCUITS, circuits),
        Total(COMMITS, lambda: {(): store.statistics().commits}),
        Total(EVENTS, lambda: {(): store.statistics().events}),
        Total(READS, lambda: {(): store.statistics().reads}),
        Taken(COMMIT_DURATION, QUICK_SECONDS, commits),
        Total(BLOB_BYTES, lambda: {(): blobs.statistics().written_bytes}),
    ]
    if logs is not None:
        made += [
            Total(LINES, lambda: {(): logs.statistics().written}),
            Total(DROPPED, lambda: {(): logs.statistics().dropped}),
        ]
    return made
