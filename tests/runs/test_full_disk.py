"""A daemon whose disk is full: commands are refused at once, reads go on, nothing is lost, it recovers by itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from behest.v1.run_state_pb2 import RunState
from behestd.log.sqlite import SqliteStore
from behestd.runtime.house import Limits
from tests import daemons
from tests.daemons import Served, refused
from tests.runs.scenes import NON_IDEMPOTENT, OPEN, Ledger, events_of, finished, kinds, only, tools, until_kind

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(full_retry_seconds=0.05)
LARGE = "x" * 200_000
"""An input that needs more pages than are left."""
PROMISES = [
    "a run is cancelled by the reserve",
    "what comes is recorded and nothing follows from it",
    "what is new is refused",
    "what was created before is told",
    "commands are refused at once",
    "reads and watches go on",
    "it says that it is not ready",
    "what an effect brought is kept and committed",
    "it says that it is ready again",
    "it recovers by itself",
    "held",
]


def limit_pages(served: Served, more: int) -> None:
    """Let the store's file grow by so many pages only."""
    store = served.daemon.log.store
    assert isinstance(store, SqliteStore)
    connection = store._writer._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + more}")


def test_a_daemon_on_a_really_full_file_system_keeps_its_promises(tmp_path: Path) -> None:  # matrix row 16, C134
    place = tmp_path / "small"
    place.mkdir()
    mounted = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=80m tmpfs "$1" && shift && exec "$@"', "sh"]
    if subprocess.run([*mounted, str(place), "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs in a namespace of our own is not permitted here")
    command = [*mounted, str(place), sys.executable, "-m", "tests.runs.full_disk_scene", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    told = [line for line in done.stdout.splitlines() if line in PROMISES]
    assert (done.returncode, told) == (0, PROMISES), done.stdout[-3000:] + done.stderr[-3000:]


async def test_an_input_that_does_not_fit_is_refused_and_was_never_said() -> None:  # matrix row 16
    async with daemons.serve("sqlite", limits=LIMITS) as served:
        client = served.client
        run = await client.run("/stall", run_id="r")
        await until_kind(client.watch("r"), "model_requested")
        limit_pages(served, 5)
        errors = await asyncio.gather(*(refused(client.runs.send_input("r", LARGE)) for _ in range(3)))
        assert [error.reason for error in errors] == ["STORAGE_FULL"] * 3
        assert (await refused(client.run(LARGE))).reason == "STORAGE_FULL"
        limit_pages(served, 1 << 20)
        await client.runs.send_input("r", "go on", request_id="said")
        await run.cancel()
        events = await events_of(client.watch("r"))

    assert [each.message.parts[0].text.text for each in only(events, "input_received")] == ["go on"]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_what_a_tool_brought_waits_for_space_and_commands_meanwhile_do_not() -> None:  # matrix row 16
    ledger = Ledger()

    async def pay() -> str:
        """Pay, and say much about it."""
        await ledger.work("pay")
        return LARGE[:40_000]

    offered = tools((pay, NON_IDEMPOTENT))
    async with daemons.serve("sqlite", tools=offered, operator=OPEN, limits=LIMITS) as served:
        client = served.client
        run = await client.run("/tool pay {} /next /say paid")
        await asyncio.wait_for(ledger.reached.wait(), 20)
        limit_pages(served, 2)
        ledger.opened.set()
        await until_full(served)
        for _ in range(3):
            assert (await refused(client.runs.send_input(run.run_id, LARGE))).reason == "STORAGE_FULL"
        assert (await client.runs.get(run.run_id)).state == RunState.RUN_STATE_RUNNING
        causes = (await client.runs.explain(run.run_id)).obstacles  # N07
        assert [each.kind for each in causes][-1] == "storage_full"
        limit_pages(served, 1 << 20)
        got = await finished(client, run.run_id)
        events = await events_of(client.watch(run.run_id))

    assert got.output.text == "paid"
    assert len(only(events, "tool_completed")[0].result.parts[0].text.text) == 40_000
    assert not {"input_received", "tool_failed", "tool_outcome_unknown"} & set(kinds(events))
    assert ledger.calls == ["pay"]


async def until_full(served: Served) -> None:
    """Wait until a commit has found the disk full."""
    async with asyncio.timeout(20):
        while not served.daemon.log.store.is_degraded:
            await asyncio.sleep(0.005)


async def test_a_result_that_is_kept_as_an_artifact_is_held_until_there_is_space() -> None:  # matrix row 16
    ledger = Ledger()

    async def pay() -> str:
        """Pay, and say more about it than a model is told."""
        await ledger.work("pay")
        return "\n".join(["line"] * 100_000)

    async with daemons.serve("sqlite", tools=tools((pay, NON_IDEMPOTENT)), operator=OPEN, limits=LIMITS) as served:
        client = served.client
        run = await client.run("/tool pay {} /next /say paid")
        await asyncio.wait_for(ledger.reached.wait(), 20)
        limit_pages(served, 0)
        assert (await refused(client.runs.send_input(run.run_id, LARGE))).reason == "STORAGE_FULL"
        ledger.opened.set()
        limit_pages(served, 1 << 20)
        got = await finished(client, run.run_id)
        events = await events_of(client.watch(run.run_id))

    assert got.output.text == "paid"
    assert only(events, "tool_completed")[0].truncated
    assert not only(events, "tool_failed")
