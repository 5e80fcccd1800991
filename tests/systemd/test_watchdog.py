"""What the daemon tells the service manager, and that a sign of life is one."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from behestd.log.sqlite_schema import FILE_NAME
from behestd.notify import STATUS_CHARACTERS, ServiceManager
from behestd.watchdog import KIND, prove
from tests.daemon_process import DaemonProcess, running
from tests.daemons import Served
from tests.systemd.manager import SECONDS, listening

HALF_SECOND = {"WATCHDOG_USEC": "500000"}


async def _logged(daemon: DaemonProcess, text: str) -> str:
    """Wait until the log has a text, and return all of it."""
    async with asyncio.timeout(SECONDS):
        while text not in daemon.log:
            await asyncio.sleep(0.05)
    return daemon.log


async def test_the_service_manager_is_told_of_every_phase(tmp_path: Path) -> None:
    async with listening() as manager, running(tmp_path, env={"NOTIFY_SOCKET": manager.address}) as daemon:
        started = await manager.heard("EXTEND_TIMEOUT_USEC")
        ready = await manager.heard("READY")
        assert await daemon.terminate() == 0
        stopping = await manager.heard("STOPPING")
        await manager.heard("EXTEND_TIMEOUT_USEC", times=manager.count("EXTEND_TIMEOUT_USEC") + 1)
    assert manager.told[0]["STATUS"] == "starting"
    assert int(started["EXTEND_TIMEOUT_USEC"]) > 10_000_000
    assert ready == {"READY": "1", "STATUS": f"serving on {daemon.address}"}
    assert stopping == {"STOPPING": "1", "STATUS": "stopping: 0 live runs, 0 watches"}
    assert manager.count("WATCHDOG") == 0, "nobody asked for signs of life"


async def test_each_sign_of_life_stands_behind_a_commit(tmp_path: Path) -> None:
    async with listening() as manager:
        async with running(tmp_path, env={"NOTIFY_SOCKET": manager.address} | HALF_SECOND):
            alive = await manager.heard("WATCHDOG", times=3)
        # What was told and not read yet.
        await manager.heard("STOPPING")
        signs = manager.count("WATCHDOG")
    assert alive["STATUS"] == "serving: 0 live runs, 0 watches"
    with sqlite3.connect(tmp_path / "data" / FILE_NAME) as store:
        ((version,),) = store.execute("SELECT version FROM records WHERE kind = ?", (KIND,)).fetchall()
    store.close()
    assert version >= signs >= 3


async def test_a_blocked_loop_gives_no_sign_of_life_and_leaves_its_stack(tmp_path: Path) -> None:  # matrix row 74
    env = HALF_SECOND | {"BEHEST_FP": "loop.block=sleep:1500,after:8,once"}
    async with listening() as manager:
        async with running(tmp_path, env=env | {"NOTIFY_SOCKET": manager.address}) as daemon:
            log = await _logged(daemon, "event loop was blocked")
            await manager.heard("WATCHDOG", times=manager.count("WATCHDOG") + 1)
    stack = log.partition("Timeout (")[2]
    assert "in failpoint" in stack
    assert "in _turn" in stack
    assert log.index("in _turn") < log.index("event loop was blocked"), "the stack is there while it is blocked"


async def test_a_store_that_hangs_gives_no_sign_of_life_until_it_answers(tmp_path: Path) -> None:
    async with listening() as manager:
        async with running(tmp_path, env=HALF_SECOND | {"NOTIFY_SOCKET": manager.address}) as daemon:
            await manager.heard("WATCHDOG")
            with sqlite3.connect(tmp_path / "data" / FILE_NAME, isolation_level=None) as intruder:
                intruder.execute("BEGIN IMMEDIATE")
                log = await _logged(daemon, "store does not answer")
                intruder.execute("ROLLBACK")
            intruder.close()
            # Two more than were told before: one that was on its way, and one that was earned.
            await manager.heard("WATCHDOG", times=manager.count("WATCHDOG") + 2)
    assert "behestd-log" in log or "sqlite_writer.py" in log, "the stack of the thread that hangs"


async def test_the_store_is_proved_by_one_record_that_is_written_again(stored: Served) -> None:
    log = stored.daemon.log
    for _ in range(3):
        await prove(log)
    record = await log.store.record("", KIND, KIND, 1)
    assert record is not None
    assert record.version == 3


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_signs_of_life_are_given_when_this_process_was_asked_for_them(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert ServiceManager.from_environment(environ, 7).watchdog_seconds == seconds


async def test_a_status_is_one_line(tmp_path: Path) -> None:
    async with listening() as manager:
        ServiceManager(manager.address).status("one\nREADY=1\n" + "x" * 1000)
        told = await manager.heard("STATUS")
    assert told == {"STATUS": ("one READY=1 " + "x" * 1000)[:STATUS_CHARACTERS]}


async def test_a_reload_tells_when_it_began(tmp_path: Path) -> None:
    async with listening() as manager:
        ServiceManager(manager.address).reloading()
        told = await manager.heard("RELOADING")
    assert told["RELOADING"] == "1"
    assert int(told["MONOTONIC_USEC"]) > 0
