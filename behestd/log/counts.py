"""What a store counts. Above: `store`, whose port tells it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the store was opened. A hop is a change of thread, `syncs` are fsync calls asked for."""

    commits: int = 0
    items: int = 0
    events: int = 0
    hops: int = 0
    reads: int = 0
    syncs: int = 0
    commit_seconds: tuple[float, ...] = field(default=())
    """The last 512 commit times, oldest first."""
