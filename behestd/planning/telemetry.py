"""Makes the settings of telemetry. Above: `plan`. Below: the values of `telemetry`."""

from __future__ import annotations

from behestd.config.source import Configuration
from behestd.telemetry.settings import Settings


def settings(configuration: Configuration) -> Settings:
    """Make the settings of logs, metrics and traces. Raises ConfigInvalid for a header that cannot be read."""
    section, vault = configuration.settings.telemetry, configuration.vault
    return Settings(
        level=configuration.settings.log.level,
        prometheus=section.prometheus,
        otlp=section.otlp,
        headers={name: vault.read(value).reveal() for name, value in section.otlp_headers.items()},
        has_traces=section.traces,
        has_metrics=section.metrics,
        metrics_seconds=section.metrics_seconds,
        sampling=section.sampling,
        instance=section.instance,
    )
