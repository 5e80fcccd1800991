"""What the operator sets of telemetry. Above: planning, which makes it. Below: nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of logs, metrics and traces. With the defaults nothing is counted, and no library is loaded."""

    level: str = "info"
    prometheus: str = ""
    """Where metrics are read, HOST:PORT. Empty: nowhere."""
    otlp: str = ""
    """The collector that spans and metrics are sent to, http://HOST:PORT or https://HOST:PORT. Empty: none."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with each export; may hold secrets."""
    has_traces: bool = True
    has_metrics: bool = True
    metrics_seconds: float = 15.0
    """Between two readings that are sent."""
    sampling: float = 1.0
    """The share of the traces begun here that is recorded."""
    instance: str = ""
    """What tells this daemon from others of its kind."""

    @property
    def counts(self) -> bool:
        """Whether anybody reads metrics."""
        return bool(self.prometheus) or (bool(self.otlp) and self.has_metrics)

    @property
    def traces(self) -> bool:
        """Whether anybody reads spans."""
        return bool(self.otlp) and self.has_traces
