"""What a daemon does on a file system that is really full; run by `test_full_disk` in a mount of its own.

`python -m tests.runs.full_disk_scene DIRECTORY` prints a line for each promise that held, and ends with `held`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from behest.client import Client
from behest.v1.run_state_pb2 import RunState
from behestd.log.sqlite import BALLAST_BYTES
from behestd.runtime.house import Limits
from tests import daemons
from tests.daemons import Served, refused
from tests.lifecycle.test_health import DOWN, UP, check
from tests.runs.scenes import NON_IDEMPOTENT, OPEN, PURE, Ledger, events_of, finished, kinds, only, tools, until_kind

LIMITS = Limits(full_retry_seconds=0.1)


def take(place: Path) -> int:
    """Take the space that is left, in a file beside those of the daemon; gives how many bytes that was."""
    before = (place / "filler").stat().st_size if (place / "filler").exists() else 0
    with (place / "filler").open("ab", buffering=0) as filler:
        for size in (1 << 20, 4096):
            try:
                while os.write(filler.fileno(), bytes(size)) == size:
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
        return os.fstat(filler.fileno()).st_size - before


async def fill(place: Path) -> None:
    """Fill the disk until it stays full: while the daemon tries to take its reserve again, it only seems to be."""
    was_full = 0
    async with asyncio.timeout(60):
        while was_full < 4:
            taken, reserve = take(place), (place / "data" / "ballast").stat()
            is_full = taken == 0 and (reserve.st_size == 0 or reserve.st_blocks * 512 >= BALLAST_BYTES)
            was_full = was_full + 1 if is_full else 0
            await asyncio.sleep(0.27)


def free(place: Path) -> None:
    """Give it back."""
    (place / "filler").unlink()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what the daemon does by itself."""
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.02)


def held(promise: str) -> None:
    sys.stdout.write(f"{promise}\n")


async def the_reserve_ends_runs(served: Served, place: Path, looks: Ledger) -> None:
    """On a full disk the daemon's reserve makes room for the ends of runs, and nothing new is begun."""
    client = served.client
    await client.run("/stall", run_id="stalled")
    done = await client.run("hi", run_id="done", request_id="created-before")
    await events_of(done)
    await fill(place)
    assert (await client.runs.cancel("stalled")).state == RunState.RUN_STATE_CANCELLED
    held("a run is cancelled by the reserve")
    assert served.daemon.log.store.is_degraded
    looks.opened.set()
    events = await until_kind(client.watch("looking"), "tool_completed")
    for _ in range(5):  # its driver looks at it again every 0.1 s
        await refused(client.run("new"))
        await asyncio.sleep(0.1)
    assert (await client.runs.get("looking")).head_sequence == events[-1].sequence
    held("what comes is recorded and nothing follows from it")
    assert list((await client.daemon.status()).refusing_reasons) == ["STORAGE_FULL"]
    for call in (
        client.run("new"),
        client.sessions.create(),
        client.artifacts.upload(b"small", name="a.txt"),
    ):
        assert (await refused(call)).reason == "STORAGE_FULL"
    held("what is new is refused")
    again = await client.run("hi", run_id="done", request_id="created-before")
    assert again.run_id == "done"
    held("what was created before is told")


async def nothing_can_be_written(served: Served, place: Path, ledger: Ledger) -> None:
    """With the reserve gone too, commands are refused, reads go on, and what effects brought is kept."""
    client = served.client
    await fill(place)
    ledger.opened.set()
    for number in range(3):
        assert (await refused(client.runs.send_input("paying", f"hurry {number}"))).reason == "STORAGE_FULL"
        assert (await refused(client.runs.cancel("paying"))).reason == "STORAGE_FULL"
        assert (await refused(client.runs.cancel("waiting"))).reason == "STORAGE_FULL"
    held("commands are refused at once")
    assert (await client.runs.get("paying")).state == RunState.RUN_STATE_RUNNING
    assert {run.id async for run in client.runs.list()} == {"stalled", "done", "paying", "waiting", "looking"}
    assert kinds(await events_of(client.watch("done")))[-1] == "run_completed"
    async with Client(client.address) as late:
        assert kinds(await until_kind(late.watch("paying"), "tool_started"))[-1] == "tool_started"
    held("reads and watches go on")

    async def is_not_ready() -> bool:
        return await check(served, "readiness") == DOWN

    await until(is_not_ready)
    assert await check(served, "liveness") == UP
    held("it says that it is not ready")


async def it_recovers_by_itself(served: Served, place: Path, ledger: Ledger) -> None:
    """When there is space again, what was kept is committed, and new runs are taken."""
    client = served.client
    free(place)
    got = await finished(client, "paying")
    events = await events_of(client.watch("paying"))
    assert got.output.text == "paid once", got
    assert only(events, "tool_completed")[0].result.parts[0].text.text == "done pay"
    assert not {"input_received", "run_cancel_requested", "tool_failed", "tool_outcome_unknown"} & set(kinds(events))
    assert ledger.calls == ["pay"]
    held("what an effect brought is kept and committed")
    assert (await finished(client, "looking")).output.text == "seen"

    async def is_open() -> bool:
        return not served.daemon.log.store.is_degraded

    await until(is_open)

    async def is_ready() -> bool:
        return await check(served, "readiness") == UP

    await until(is_ready)
    held("it says that it is ready again")
    output = await (await client.run("/say new")).result()
    assert output.text == "new"
    assert list((await client.daemon.status()).refusing_reasons) == []
    await client.runs.cancel("waiting")
    held("it recovers by itself")
    assert await served.daemon.log.store.check() == []


async def main(place: Path) -> None:
    """Play the scenes, one after the other, on one daemon."""
    ledger, looks = Ledger(), Ledger()

    async def pay() -> str:
        """Pay."""
        return await ledger.work("pay")

    async def look() -> str:
        """Look."""
        return await looks.work("look")

    offered = tools((pay, NON_IDEMPOTENT), (look, PURE))
    async with daemons.serve("sqlite", place / "data", tools=offered, operator=OPEN, limits=LIMITS) as served:
        await served.client.run("/tool pay {} /next /say paid once", run_id="paying")
        await asyncio.wait_for(ledger.reached.wait(), 20)
        await served.client.run("/stall", run_id="waiting")
        await until_kind(served.client.watch("waiting"), "model_requested")
        await served.client.run("/tool look {} /next /say seen", run_id="looking")
        await asyncio.wait_for(looks.reached.wait(), 20)
        await the_reserve_ends_runs(served, place, looks)
        await nothing_can_be_written(served, place, ledger)
        await it_recovers_by_itself(served, place, ledger)
    held("held")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
