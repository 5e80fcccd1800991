"""What a store counts. Above: `store`, whose port tells it."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field, replace

from behestd.telemetry.instruments import QUICK_SECONDS

LAST = 512


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
    commit_buckets: tuple[int, ...] = field(default=())
    """How many commits took how long, by the bounds of `QUICK_SECONDS`; the last count is of those beyond."""
    commit_total_seconds: float = 0.0


class Times:
    """The times of commits: the last ones, and how many there were of each size."""

    __slots__ = ("_buckets", "_last", "_total_seconds")

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=LAST)
        self._buckets = [0] * (len(QUICK_SECONDS) + 1)
        self._total_seconds = 0.0

    def append(self, seconds: float) -> None:
        """Count a commit."""
        self._last.append(seconds)
        self._buckets[bisect_left(QUICK_SECONDS, seconds)] += 1
        self._total_seconds += seconds

    def add_to(self, counts: Statistics, **more: int) -> Statistics:
        """Complete a store's counters."""
        return replace(
            counts,
            commit_seconds=tuple(self._last),
            commit_buckets=tuple(self._buckets),
            commit_total_seconds=self._total_seconds,
            **more,
        )
