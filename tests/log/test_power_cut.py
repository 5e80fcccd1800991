"""What is acknowledged survives a power cut: tests/shims/ploss.c puts back every write that was not synced."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from behestd.log import fsck
from behestd.log.sqlite import SqliteStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the shim."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: the power-cut shim cannot be built")
    built = tmp_path_factory.mktemp("shim") / "ploss.so"
    source = ROOT / "tests/shims/ploss.c"
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", built, source, "-ldl", "-lpthread"], check=True
    )
    return built


@contextmanager
def committer(shim: Path, data: Path, synchronous: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start the process that commits for ever."""
    variables = os.environ | {"LD_PRELOAD": str(shim), "PLOSS_DIR": str(data)} | environment
    command = [sys.executable, "-m", "tests.log.committer", str(data), synchronous]
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def cut(shim: Path, data: Path, synchronous: str, after: int) -> dict[str, int]:
    """Commit until `after` acknowledgements, cut the power, return what was acknowledged: run → last sequence."""
    acknowledged: dict[str, int] = {}
    with committer(shim, data, synchronous) as child:
        assert child.stdout is not None
        for number, line in enumerate(child.stdout, start=1):
            run_id, last = line.split()
            acknowledged[run_id] = int(last)
            if number == after:
                child.send_signal(signal.SIGUSR2)
        assert child.wait(5) == -signal.SIGKILL
    return acknowledged


async def lost(data: Path, acknowledged: dict[str, int]) -> list[str]:
    """Return the runs that miss an acknowledged event."""
    store = await SqliteStore.open(data, ballast_bytes=0)
    rows = {run_id: await store.run("default", run_id) for run_id in acknowledged}
    await store.close()
    return [run_id for run_id, row in rows.items() if row is None or row.last_sequence < acknowledged[run_id]]


@pytest.mark.timeout(120)
async def test_a_power_cut_loses_nothing_that_was_acknowledged(shim: Path, tmp_path: Path) -> None:  # C083
    acknowledged: dict[str, int] = {}
    chance = random.Random(7)
    for _ in range(6):
        acknowledged |= cut(shim, tmp_path / "data", "FULL", chance.randrange(1, 1500))
        assert await lost(tmp_path / "data", acknowledged) == []
        assert fsck.check(tmp_path / "data").problems == ()
    assert len(acknowledged) > 50


async def test_the_shim_finds_the_loss_that_a_weaker_setting_allows(shim: Path, tmp_path: Path) -> None:
    acknowledged = cut(shim, tmp_path / "data", "NORMAL", 500)
    assert await lost(tmp_path / "data", acknowledged) != []


async def test_a_failed_sync_ends_the_process_and_nothing_acknowledged_is_lost(shim: Path, tmp_path: Path) -> None:
    for number in (30, 31, 77):
        data = tmp_path / str(number)
        with committer(shim, data, "FULL", PLOSS_EIO=str(number)) as child:
            assert child.stdout is not None
            acknowledged = {line.split()[0]: int(line.split()[1]) for line in child.stdout}
            assert child.wait(5) == 70
        assert acknowledged
        assert await lost(data, acknowledged) == []
        assert fsck.check(data).problems == ()
