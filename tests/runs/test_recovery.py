"""Runs that outlive their daemon, in one process: what a restart takes up, and what it leaves alone."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from behest.v1.chat_pb2 import Sampling
from behest.v1.run_event_pb2 import ClaimReason
from behest.v1.run_state_pb2 import RunState, WaitReason
from behestd.log.sqlite_schema import FILE_NAME
from tests import daemons
from tests.runs.scenes import (
    NON_IDEMPOTENT,
    PURE,
    Ledger,
    check_pairs,
    events_of,
    finished,
    kinds,
    only,
    tools,
    until_kind,
)


async def test_runs_that_were_let_go_are_taken_up_and_completed(tmp_path: Path) -> None:  # C081 C079
    async with daemons.serve("sqlite", tmp_path, drain_seconds=0.0) as served:
        runs = [await served.client.run(f"/delay 60 /words {5 + n}", run_id=f"r{n}") for n in range(10)]
        for run in runs:
            await until_kind(run, "model_requested")
    async with daemons.serve("sqlite", tmp_path) as served:
        for n in range(10):
            events = await events_of(served.client.watch(f"r{n}"))
            assert kinds(events).count("run_released") == 1
            assert [each.reason for each in only(events, "run_claimed")] == [
                ClaimReason.CLAIM_REASON_CREATED,
                ClaimReason.CLAIM_REASON_RELEASED,
            ]
            assert events[-1].run_completed.output.text.endswith(f"word{5 + n}")


async def test_a_doom_loop_goes_on_being_counted_after_a_restart(tmp_path: Path) -> None:  # C069
    ledger = Ledger()

    async def poll(job: int) -> str:
        """Look at a job."""
        return await ledger.work(f"poll {job}", wait=len(ledger.calls) == 1)

    said = '/tool poll {"job": 1} /repeat'
    async with daemons.serve("sqlite", tmp_path, tools=tools((poll, PURE)), drain_seconds=0.0) as served:
        await until_kind(await served.client.run(said, run_id="looping"), "tool_started", 2)
    ledger.opened.set()
    async with daemons.serve("sqlite", tmp_path, tools=tools((poll, PURE))) as served:
        events = await events_of(served.client.watch("looping"))

    (detected,) = only(events, "doom_loop_detected")
    assert detected.repeats == 3
    assert len(only(events, "model_completed")) == 3


async def test_a_run_that_waits_for_an_approval_still_waits_after_a_restart(tmp_path: Path) -> None:  # C040 C081
    async def pay() -> str:
        """Pay."""
        return "paid"

    offered = tools((pay, NON_IDEMPOTENT))
    async with daemons.serve("sqlite", tmp_path, tools=offered) as served:
        await until_kind(await served.client.run("/tool pay {}", run_id="asks"), "run_waiting")
    async with daemons.serve("sqlite", tmp_path, tools=offered) as served:
        got = await served.client.runs.get("asks")
        assert (got.state, got.wait.reason) == (RunState.RUN_STATE_WAITING, WaitReason.WAIT_REASON_APPROVAL)
        assert [pending.call.name for pending in got.pending_approvals] == ["pay"]
        blocked = await served.client.run("next", session_id=got.session_id)
        assert (await blocked.get()).state == RunState.RUN_STATE_QUEUED
        await served.client.runs.cancel("asks")
        check_pairs((await finished(served.client, "asks")).messages)
        assert (await blocked.result()).text == "next"


async def test_a_deadline_that_passed_while_nobody_was_there_ends_the_run_at_the_start(tmp_path: Path) -> None:
    async with daemons.serve("sqlite", tmp_path, drain_seconds=0.0) as served:  # C048
        await until_kind(await served.client.run("/stall", run_id="late", timeout_seconds=0.4), "model_requested")
    await asyncio.sleep(0.5)
    async with daemons.serve("sqlite", tmp_path) as served:
        events = await events_of(served.client.watch("late"))

    assert kinds(events)[-1] == "run_timed_out"
    assert len(only(events, "model_requested")) == 1


async def test_a_log_that_does_not_fold_is_reported_and_holds_up_nobody(tmp_path: Path) -> None:  # C082
    async with daemons.serve("sqlite", tmp_path, drain_seconds=0.0) as served:
        for name, sampling in (("bad", Sampling(temperature=0.5)), ("good", Sampling())):
            run = await served.client.run("/delay 30 /words 4", run_id=name, sampling=sampling)
            events = await until_kind(run, "model_requested")
            if name == "bad":
                digest = events[0].run_created.definition_hash
    connection = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    connection.execute("DELETE FROM definitions WHERE hash = ?", (digest,))
    connection.close()
    async with daemons.serve("sqlite", tmp_path) as served:
        assert (await finished(served.client, "good")).state == RunState.RUN_STATE_COMPLETED
        await (await served.client.run("others go on")).result()
        obstacles = (await served.client.runs.explain("bad")).obstacles
        assert [obstacle.kind for obstacle in obstacles] == ["unfit"]
