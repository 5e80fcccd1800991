"""The sections of fairness: what principals and namespaces may use, and when the daemon takes no new runs.

Above: `settings`. Below: `kinds`. Values go into `runtime.quotas` and `runtime.overload` (`planning`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from annotated_types import Gt, Le
from pydantic import Field, Strict

from behestd.config.auth import Principal
from behestd.config.kinds import MIB, Count, Name, PositiveSeconds, Seconds, Section

Share = Annotated[float, Strict(), Gt(0), Le(1)]


class Quota(Section):
    """What one principal may use. 0: no limit."""

    requests_per_minute: Count = 0
    """Calls, those that control apart: cancel, approve, health. A tenth of them may come at once."""
    runs_per_minute: Count = 0
    """Runs created. A tenth of them may come at once."""
    streams: Count = 0
    """Calls at once that stream in either direction, watches among them."""
    watches: Count = 0
    """Watches at once."""
    runs: Count = 0
    """Runs that have not ended: working, waiting and queued ones."""
    sessions: Count = 0
    """Sessions that it created, in one namespace."""


class NamespaceQuota(Quota):
    """What all callers of one namespace may use together. 0: no limit."""

    watches: Count = 0
    """Watches at once. 0: as many as quotas.queue_share says."""
    sessions: Count = 0
    """Sessions."""
    active_runs: Count = 0
    """Runs that work at once. More are taken, and wait."""
    artifact_bytes: Count = 0
    """Bytes of all artifacts."""


class Quotas(Section):
    """Quotas of principals and namespaces: one for each that has none of its own, and those of single ones."""

    active_share: Share = 0.75
    """Part of limits.active_runs that one namespace may have. In local mode, where there is one, all of them."""
    queue_share: Share = 0.5
    """Part that one namespace may have of all runs, limits.active_runs and limits.queued_runs together, and of
    server.watches. In local mode all of them."""
    principal: Quota = Quota()
    namespace: NamespaceQuota = NamespaceQuota()
    principals: Mapping[Principal, Quota] = Field(default_factory=dict)
    namespaces: Mapping[Name, NamespaceQuota] = Field(default_factory=dict)


class Overload(Section):
    """When the daemon takes no new runs for a while. Those that it has taken go on."""

    commit_seconds: Seconds = 0.25
    """What 99 of 100 commits of the last window may take. 0: any time."""
    window_seconds: PositiveSeconds = 10.0
    """The window; one with fewer than 100 commits says nothing."""
    sample_seconds: PositiveSeconds = 1.0
    """Between two looks."""
    memory_share: Share = 0.8
    """Part of the memory limit that the process may have."""
    memory_bytes: Count | None = None
    """The memory limit. Unset: that of the process's control group. 0: none."""
    disk_bytes: Count = 64 * MIB
    """What must be free on the disk of the data directory. 0: nothing."""
