"""Makes the rules of retention. Above: `plan`. Below: the runtime's values."""

from __future__ import annotations

from behestd.config.retention import Retention
from behestd.runtime.retention import Rules


def rules(section: Retention) -> Rules:
    """Make the rules."""
    return Rules(section.run_seconds, {name: kept.run_seconds for name, kept in section.namespaces.items()})
