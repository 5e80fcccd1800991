"""A daemon that is killed: what was used is counted once, and what was set aside is right again."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from behest.calls import Patience
from behest.client import Client
from behest.errors import BehestError
from behest.v1 import usage_service_pb2 as pb
from behest.v1.chat_pb2 import Sampling
from behest.v1.session_pb2 import Session
from behest.v1.usage_pb2 import Budget, Usage
from tests import ports
from tests.daemon_process import DaemonProcess
from tests.runs.scenes import TERMINAL

PATIENCE = Patience(pause_seconds=0.2, repeat_seconds=60.0)
BOUNDED = Sampling(max_output_tokens=40)
CONFIG = """
[limits]
drain_seconds = 0.5
[budgets.default]
max_total_tokens = {tokens}
"""
ENDS = ("model_completed", "model_failed", "model_superseded")


async def attempts_of(client: Client, run_id: str) -> list[Usage]:
    """What each attempt of a run used, as its log says. Waits for the run's end."""
    found = []
    async with asyncio.timeout(60):
        async for event in client.watch(run_id).events():
            kind = event.WhichOneof("payload") or ""
            if kind in ENDS:
                found.append(getattr(event, kind).usage)
            if kind in TERMINAL:
                return found
    raise AssertionError("no end")


def tokens_of(usages: list[Usage]) -> int:
    return sum(usage.input_tokens + usage.output_tokens for usage in usages)


async def start(home: Path, address: str, tokens: int, points: str = "") -> DaemonProcess:
    """Start a daemon on the data of the one before."""
    env = {"BEHEST_FP": points}
    daemon = DaemonProcess(home, config=CONFIG.format(tokens=tokens), env=env, address=address)
    await daemon.start()
    return daemon


@pytest.mark.parametrize(
    ("point", "ended_before"),
    [("model.before_commit", 0), ("log.after_commit", None)],
)
async def test_an_attempt_that_a_crash_cut_is_counted_once_and_its_reservation_is_gone(
    tmp_path: Path, point: str, ended_before: int | None
) -> None:  # N10 C115
    skip = ",after:1" if ended_before is None else ""
    daemon = await start(tmp_path, ports.address(), 10_000, f"{point}=kill{skip}")
    try:
        async with Client(daemon.address, patience=PATIENCE) as client:
            running = asyncio.create_task(client.run("/usage 30 5 /say done", run_id="r1", sampling=BOUNDED))
            async with asyncio.timeout(30):
                assert await daemon.ended() == -9
            daemon = await start(tmp_path, daemon.address, 10_000)
            await running
            attempts = await attempts_of(client, "r1")
            found = await client.usage.query()
            session = await client.runs.get("r1")
    finally:
        await daemon.kill()

    assert found.total.usage.attempts == len(attempts) == session.usage.attempts
    if ended_before is not None:
        assert len(attempts) == 2, "the one that was cut, and the one that took its place"
    assert found.budget.tokens == tokens_of(attempts) == tokens_of([found.total.usage])
    assert (found.budget.reserved_tokens, found.budget.reserved_calls) == (0, 0)


async def test_runs_that_are_killed_again_and_again_never_overspend_and_settle_once(tmp_path: Path) -> None:  # N10
    chance = random.Random(7)
    runs = [f"r{number}" for number in range(40)]
    daemon = await start(tmp_path, ports.address(), 1_500)
    try:
        async with Client(daemon.address, patience=PATIENCE) as client:
            session = await client.sessions.create(Session(budget=Budget(max_calls=5)))
            orders = [
                asyncio.create_task(client.run("/delay 15 /usage 9 30 /words 12", run_id=run_id, sampling=BOUNDED))
                for run_id in runs
            ]
            orders.append(asyncio.create_task(client.run("/delay 900 /words 9", run_id="s1", session_id=session.id)))
            for _ in range(2):
                await asyncio.sleep(chance.uniform(0.1, 0.3))
                await daemon.kill()
                daemon = await start(tmp_path, daemon.address, 1_500)
                found = await client.usage.query()
                use = found.budget
                assert use.tokens + use.reserved_tokens <= 1_500
                assert found.total.usage.attempts <= use.calls, "what is being committed is charged already"
            await asyncio.gather(*orders)
            attempts = [usage for run_id in (*runs, "s1") for usage in await attempts_of(client, run_id)]
            found = await client.usage.query()
            of_session = (await client.sessions.get(session.id)).budget_use
            in_session = await client.usage.query(pb.QueryUsageRequest(session_id=session.id))
            refused = [run_id for run_id in runs if await _reason(client, run_id) == "RUNTIME_BUDGET"]
    finally:
        await daemon.kill()

    assert refused, "there was not enough for all of them"
    assert len(attempts) == found.total.usage.attempts == found.budget.calls
    assert tokens_of(attempts) == tokens_of([found.total.usage]) == found.budget.tokens <= 1_500
    assert (found.budget.reserved_tokens, found.budget.reserved_calls) == (0, 0)
    assert of_session.calls == in_session.total.usage.attempts
    assert of_session.reserved_calls == 0


async def _reason(client: Client, run_id: str) -> str:
    try:
        await client.watch(run_id).result()
    except BehestError as error:
        return error.reason
    return ""
