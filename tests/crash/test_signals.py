"""SIGTERM, twice, SIGKILL during a drain, and a second daemon on the same data."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from behest.v1.model_event_pb2 import SupersedeReason
from behest.v1.run_state_pb2 import RunState
from tests.crash.harness import Unready, site
from tests.runs.scenes import events_of, kinds, only

RUNS = 50


async def test_sigterm_with_fifty_runs_loses_nothing_and_every_client_goes_on(home: Path) -> None:  # 69 C136 N06
    async with site(home, drain_seconds=1.0) as place, asyncio.timeout(50):
        daemon = await place.start()
        async with place.client() as client, asyncio.TaskGroup() as tasks:
            handles = [
                client.stream(f"/delay {20 if number % 2 else 400} /words 8", run_id=f"t{number:02}")
                for number in range(RUNS)
            ]
            followed = [tasks.create_task(events_of(handle, seconds=40)) for handle in handles]
            for handle in handles:
                await handle.create()
            begun = time.monotonic()
            dead = await daemon.stop()
            assert dead.code == 0
            assert time.monotonic() - begun < 1.0 + 5.0
            ends = [place.remains().kinds(f"t{number:02}")[-1] for number in range(RUNS)]
            assert set(ends) == {"run_completed", "run_released"}
            await place.start()
        for number, task in enumerate(followed):
            events = task.result()
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert only(events, "run_completed")[0].output.text.endswith("word8")
            stored = place.remains().events(f"t{number:02}")
            assert [event.SerializeToString() for event in events] == [event.SerializeToString() for event in stored]
            reasons = {each.reason for each in only(events, "model_superseded")}
            assert reasons <= {SupersedeReason.SUPERSEDE_REASON_RELEASE}


async def test_a_second_sigterm_ends_a_drain_at_once(home: Path) -> None:  # 70
    async with site(home, drain_seconds=30.0) as place, asyncio.timeout(50):
        daemon = await place.start()
        async with place.client() as client:
            run = await client.run("/delay 200 /words 8", run_id="twice")
            daemon.send(signal.SIGTERM)
            await said(daemon.log, "stopping")
            daemon.send(signal.SIGTERM)
            begun = time.monotonic()
            assert (await daemon.dead()).code == 0
            assert time.monotonic() - begun < 3.0
            await place.start()
            assert (await run.result()).text.endswith("word8")


async def test_a_drain_that_is_killed_is_recovered_as_any_crash(home: Path) -> None:  # 70
    async with site(home, drain_seconds=30.0) as place, asyncio.timeout(50):
        daemon = await place.start()
        async with place.client() as client:
            run = await client.run("/delay 200 /words 8", run_id="killed")
            daemon.send(signal.SIGTERM)
            await said(daemon.log, "stopping")
            assert (await daemon.kill()).code == -signal.SIGKILL
            assert "run_released" not in place.remains().kinds("killed")
            await place.start()
            assert (await run.result()).text.endswith("word8")
            events = await events_of(client.watch("killed"))
        assert kinds(events).count("run_claimed") == 2


async def said(log: Path, word: str) -> None:
    """Wait until a daemon has written a word to its log."""
    async with asyncio.timeout(30):
        while word not in log.read_text():
            await asyncio.sleep(0.01)


async def test_a_second_daemon_on_the_same_data_is_refused(home: Path) -> None:  # 20
    async with site(home) as place, asyncio.timeout(30):
        await place.start()
        address, place.address = place.address, "127.0.0.1:0"
        with pytest.raises(Unready) as caught:
            await place.start()
        place.address = address
        assert caught.value.code == 69
        async with place.client() as client:
            run = await client.run("still here")
            assert (await run.result()).text == "still here"
            assert (await run.get()).state == RunState.RUN_STATE_COMPLETED


async def test_a_taken_address_is_refused(home: Path, tmp_path: Path) -> None:
    async with site(home) as place, asyncio.timeout(30):
        await place.start()
        async with site(tmp_path, address=place.address) as other:
            with pytest.raises(Unready) as caught:
                await other.start()
        assert caught.value.code == 69


@pytest.mark.parametrize("point", ["log.before_commit", "log.after_commit"])
async def test_an_unknown_commit_stops_the_daemon_with_70_and_nothing_is_told(home: Path, point: str) -> None:  # 17 I20
    async with site(home) as place, asyncio.timeout(30):
        daemon = await place.start(f"{point}=exit,after:1")
        async with place.client() as client:
            run = client.stream("/say all there", run_id="unknown")
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(events_of(run, seconds=20))
                assert (await daemon.dead()).code == 70
                await place.start()
                events = await following
        stored = [event.SerializeToString() for event in place.remains().events("unknown")]
        assert [event.SerializeToString() for event in events] == stored
        assert kinds(events)[-1] == "run_completed"
