"""The section of telemetry: where metrics are read, and the collector that metrics and traces are sent to.

Above: `settings`. Below: `kinds`. Values go into `telemetry.settings` (`planning`). The log has a section of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

from annotated_types import Ge, Le
from pydantic import AfterValidator, Field, Strict, StringConstraints

from behestd.config.kinds import Flag, HeaderText, PositiveSeconds, Section
from behestd.service import listen


def _address(text: str) -> str:
    if not text:
        return text
    address = listen.parse(text)
    if address.path:
        raise ValueError("it is read over TCP: HOST:PORT")
    return str(address)


def _collector(text: str) -> str:
    if not text:
        return text
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or not parts.port or parts.path.strip("/"):
        raise ValueError("it is no address of a collector, as http://127.0.0.1:4317")
    if parts.username is not None:
        raise ValueError("credentials go into otlp_headers")
    return text


Share = Annotated[float, Strict(), Ge(0), Le(1)]
Header = Annotated[str, StringConstraints(pattern=r"^[a-z0-9._-]{1,128}$")]


class Telemetry(Section):
    """Metrics and traces. Nothing of it is loaded, nor counted, unless somebody is to read it."""

    prometheus: Annotated[str, AfterValidator(_address)] = ""
    """Where Prometheus reads the metrics, HOST:PORT, as 127.0.0.1:9464. There is no login: beyond this machine only
    where the network keeps others away. Empty: nowhere."""
    otlp: Annotated[str, AfterValidator(_collector)] = ""
    """The collector that traces and metrics are sent to, by OTLP over gRPC: http://HOST:PORT, or https://HOST:PORT.
    Empty: none."""
    otlp_headers: Mapping[Header, HeaderText] = Field(default_factory=dict)
    """Sent with each export; a value is a secret's reference, or a text."""
    traces: Flag = True
    """Whether traces are sent to the collector."""
    metrics: Flag = True
    """Whether metrics are sent to the collector."""
    metrics_seconds: PositiveSeconds = 15.0
    """Between two readings that are sent."""
    sampling: Share = 1.0
    """The share of traces that is recorded, of those that begin here: 0 to 1. A client's own decision stands. Can be
    changed by a reload."""
    instance: Annotated[str, StringConstraints(max_length=128)] = ""
    """What tells this daemon from others, as service.instance.id. Empty: nothing is said."""
