"""What is too much is measured now and then: commits, memory, disk. Each has its own reason, and is forgotten."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from behestd.errors import BehestError
from behestd.log.counts import Statistics
from behestd.runtime import overload
from behestd.runtime.overload import Limits, Overload, Sources

ALL = Limits(commit_seconds=0.25, window_seconds=3.0, sample_seconds=1.0, memory_bytes=1_000, disk_bytes=500)


@dataclass
class Machine:
    """What would be measured."""

    memory_bytes: int = 100
    disk_bytes: int | None = 10_000
    times: list[float] = field(default_factory=list)
    looks: int = 0

    def statistics(self) -> Statistics:
        """Those of a store, which remembers 512 times."""
        self.looks += 1
        return Statistics(commits=len(self.times), commit_seconds=tuple(self.times[-512:]))

    def overload(self, limits: Limits = ALL) -> Overload:
        """Measure this."""
        return Overload(limits, Sources(self.statistics, lambda: self.memory_bytes, lambda: self.disk_bytes))


def reason(found: Overload) -> str:
    """What new work is refused with; empty when it is not."""
    try:
        found.check()
    except BehestError as error:
        assert error.retry_seconds is not None
        return error.reason
    return ""


def test_memory_beyond_the_limit_refuses_until_it_is_free_again() -> None:
    machine = Machine()
    found = machine.overload()
    found.sample()
    assert (found.causes, reason(found)) == ((), "")
    machine.memory_bytes = 1_001
    assert reason(found) == ""
    found.sample()
    assert (found.causes, reason(found)) == (("memory",), "RUNTIME_OVERLOADED")
    machine.memory_bytes = 1_000
    found.sample()
    assert (found.causes, reason(found)) == ((), "")


def test_a_disk_below_its_reserve_is_told_as_a_full_one() -> None:
    machine = Machine(disk_bytes=499)
    found = machine.overload()
    found.sample()
    assert (found.causes, reason(found)) == (("disk",), "STORAGE_FULL")
    machine.disk_bytes = None
    found.sample()
    assert reason(found) == ""


def test_commits_count_by_their_last_percentile_over_the_window_and_not_longer() -> None:
    machine = Machine()
    found = machine.overload()
    for slow in (0, 1, 1):
        machine.times += [0.01] * (100 - slow) + [0.3] * slow
        found.sample()
    assert reason(found) == "", "one in a hundred may be slow"
    for _ in range(2):
        machine.times += [0.01] * 98 + [0.3] * 2
        found.sample()
    assert (found.causes, reason(found)) == (("commits",), "RUNTIME_OVERLOADED")
    for _ in range(2):
        machine.times += [0.01] * 100
        found.sample()
    assert reason(found) == "", "what was slow has left the window"


def test_a_few_slow_commits_say_nothing_nor_does_a_disk_that_halts_once() -> None:
    machine = Machine(times=[])
    found = machine.overload()
    for _ in range(3):
        machine.times += [5.0] * 33
        found.sample()
    assert reason(found) == ""
    for _ in range(2):
        machine.times += [0.01] * 100
        found.sample()
    machine.times += [5.0] * 100
    found.sample()
    assert reason(found) == ""


def test_what_was_committed_before_the_first_look_does_not_count() -> None:
    machine = Machine(times=[5.0] * 500)
    found = machine.overload()
    found.sample()
    assert reason(found) == ""


def test_asking_measures_nothing() -> None:
    machine = Machine(memory_bytes=10_000)
    found = machine.overload()
    found.sample()
    looks = machine.looks
    for _ in range(1_000):
        assert reason(found)
    assert machine.looks == looks


def test_without_limits_nothing_is_too_much() -> None:
    machine = Machine(memory_bytes=1 << 50, disk_bytes=0, times=[])
    found = machine.overload(Limits())
    machine.times += [60.0] * 500
    found.sample()
    assert found.causes == ()


async def test_it_looks_again_and_again_until_it_is_closed() -> None:
    looks: list[int] = []

    def memory_bytes() -> int:
        looks.append(0)
        if len(looks) == 3:
            found.close()
        return 0

    found = Overload(Limits(sample_seconds=0.001, memory_bytes=1), Sources(memory_bytes=memory_bytes))
    async with asyncio.timeout(30):
        await found.run()
    assert len(looks) == 3


def group(place: Path, limit: str) -> None:
    """Make a control group."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "memory.max").write_text(f"{limit}\n")


@pytest.mark.parametrize(
    ("own", "above", "found"),
    [("max", "max", 0), ("1000", "max", 1_000), ("1000", "500", 500), ("max", "500", 500)],
)
def test_the_memory_limit_is_the_least_of_the_control_groups_on_the_way_up(
    tmp_path: Path, own: str, above: str, found: int
) -> None:
    root = tmp_path / "cgroup"
    group(root / "system.slice", above)
    group(root / "system.slice/behestd.service", own)
    (tmp_path / "self").write_text("0::/system.slice/behestd.service\n")
    assert overload.memory_limit_bytes(root, tmp_path / "self") == found


def test_without_control_groups_there_is_no_memory_limit(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("1:name=systemd:/\n")
    assert overload.memory_limit_bytes(tmp_path, tmp_path / "self") == 0
    assert overload.memory_limit_bytes(tmp_path, tmp_path / "missing") == 0


def test_this_process_and_this_disk_can_be_measured(tmp_path: Path) -> None:
    assert overload.resident_bytes() > 1024 * 1024
    assert (overload.free_bytes(tmp_path) or 0) > 0
    assert overload.free_bytes(tmp_path / "missing") is None
