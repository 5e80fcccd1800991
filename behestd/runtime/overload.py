"""Whether the daemon has too much to do, measured now and then: commit times, memory, and what is left of the disk.

Above: `intake`, which refuses new runs for what is found here, and DaemonService, which shows it. Below: the store's
counters and the system. A task of its own measures, so that no call does; between two looks the last result stands.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from behestd.errors import Exhausted, Overloaded, StorageFull
from behestd.log.counts import Statistics

logger = structlog.get_logger(__name__)

LEAST_COMMITS = 100
"""Commits of a window from which on its 99th percentile says something."""
SLOW_LOOKS = 3
"""Looks of a window that must have found slow commits: a disk that halts once is not one that is too slow."""
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on it is too much. 0: never."""

    commit_seconds: float = 0.0
    """What 99 of 100 commits of the window may take."""
    window_seconds: float = 10.0
    sample_seconds: float = 1.0
    memory_bytes: int = 0
    """Resident memory of the process."""
    disk_bytes: int = 0
    """What must be free on the disk of the store."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where it is measured."""

    statistics: Callable[[], Statistics] = Statistics
    memory_bytes: Callable[[], int] = lambda: 0
    disk_bytes: Callable[[], int | None] = lambda: None
    """Free bytes; None: there is no disk."""


class Overload:
    """Measures, and holds what was found. `run` is its life; `sample` looks once."""

    def __init__(self, limits: Limits | None = None, sources: Sources | None = None) -> None:
        self.limits = limits or Limits()
        self._sources = sources or Sources()
        self._windows: deque[tuple[float, ...]] = deque()
        self._commits = self._sources.statistics().commits
        self._refusals: dict[str, Callable[[], Exhausted]] = {}
        self._closing = asyncio.Event()

    @property
    def causes(self) -> tuple[str, ...]:
        """What is too much: of `commits`, `memory` and `disk`."""
        return tuple(self._refusals)

    def check(self) -> None:
        """Refuse new work while something is too much. Raises Overloaded and StorageFull."""
        for refusal in self._refusals.values():
            raise refusal()

    def set(self, limits: Limits) -> None:
        """Put other limits in force, from the next look on."""
        self.limits = limits

    async def run(self) -> None:
        """Look again and again until `close`."""
        while not self._closing.is_set():
            self.sample()
            try:
                async with asyncio.timeout(self.limits.sample_seconds):
                    await self._closing.wait()
            except TimeoutError:
                continue

    def close(self) -> None:
        """Look no more. Idempotent."""
        self._closing.set()

    def sample(self) -> None:
        """Look once. Reads two files of the kernel at most, which takes microseconds."""
        limits, found = self.limits, dict[str, Callable[[], Exhausted]]()
        p99 = self._commit_p99() if limits.commit_seconds else 0.0
        if 0 < limits.commit_seconds < p99:
            found["commits"] = partial(Overloaded, "milliseconds of a commit", round(limits.commit_seconds * 1000))
        if 0 < limits.memory_bytes < self._sources.memory_bytes():
            found["memory"] = partial(Overloaded, "bytes of memory", limits.memory_bytes)
        free_bytes = self._sources.disk_bytes() if limits.disk_bytes else None
        if free_bytes is not None and free_bytes < limits.disk_bytes:
            found["disk"] = StorageFull
        if found.keys() != self._refusals.keys():
            say = logger.warning if found else logger.info
            say("new runs are refused" if found else "new runs are taken", causes=sorted(found), commit_p99=p99)
        self._refusals = found

    def _commit_p99(self) -> float:
        statistics = self._sources.statistics()
        new, self._commits = statistics.commits - self._commits, statistics.commits
        self._windows.append(statistics.commit_seconds[-new:] if new else ())
        while len(self._windows) > max(1, round(self.limits.window_seconds / self.limits.sample_seconds)):
            self._windows.popleft()
        times = sorted(seconds for window in self._windows for seconds in window)
        slow = sum(max(window, default=0.0) > self.limits.commit_seconds for window in self._windows)
        if len(times) < LEAST_COMMITS or slow < SLOW_LOOKS:
            return 0.0
        return times[-(len(times) // 100) - 1]


def resident_bytes() -> int:
    """Resident memory of the process; 0 where the kernel does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def free_bytes(directory: Path) -> int | None:
    """What is free for us on the disk of a directory; None where the system does not say."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def memory_limit_bytes(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """The least limit of memory of the process's control group and those above it; 0: there is none."""
    try:
        place = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return 0
    here = cgroups / place.strip("/")
    found = [_limit_of(group) for group in (here, *here.parents) if group.is_relative_to(cgroups)]
    return min((limit for limit in found if limit), default=0)


def _limit_of(group: Path) -> int:
    try:
        text = (group / "memory.max").read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0
