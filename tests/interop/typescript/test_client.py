"""The TypeScript client against a real daemon: a run, its stream, its result, its end, and a watch over a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from behest.client import Client
from tests.daemon_process import running
from tests.interop.typescript.node import INSTALL_SECONDS, facts, program

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 120)

CANCELLED = 1
NOT_FOUND = 5
CANCELLING, ENDED_CANCELLED = 4, 7
SLOW = "/delay 25 /words 80"
WORDS = " ".join(f"word{number}" for number in range(1, 81))


def sequences(told: list[dict[str, Any]]) -> list[int]:
    """Pick the sequences of the events."""
    return [fact["event"] for fact in told if "event" in fact]


def said(told: list[dict[str, Any]]) -> str:
    """Join the deltas, as far as they were not taken back."""
    text = ""
    for fact in told:
        text = "" if "discarded" in fact else text + fact.get("delta", "")
    return text


async def test_a_run_is_streamed_and_its_result_is_that_of_its_last_event(tmp_path: Path) -> None:  # C042
    async with running(tmp_path) as daemon:
        told = await facts(daemon.address, "follow", "hello from TypeScript")
        [result] = [fact for fact in told if "result" in fact]
        async with Client(daemon.address) as client:
            events = [event async for event in client.watch(result["run"]).events()]
    assert sequences(told) == [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert said(told) == result["result"] == result["again"] == "hello from TypeScript"
    assert result["head"] == len(events)


@pytest.mark.parametrize("crash", [True, False])
async def test_a_stream_goes_on_over_a_restart_without_a_lost_or_repeated_event(  # C081, C083, C085
    crash: bool, tmp_path: Path
) -> None:
    async with running(tmp_path, config="[limits]\ndrain_seconds = 0.1\n") as daemon:
        async with program("client", daemon.address, "follow", SLOW) as client:
            told: list[dict[str, Any]] = []
            async for line in client.lines():
                told.append(json.loads(line))
                if "delta" in told[-1] and sum("delta" in fact for fact in told) == 5:
                    await (daemon.kill() if crash else daemon.terminate())
                    await daemon.start()
            assert await client.end() == 0
    [result] = [fact for fact in told if "result" in fact]
    assert sequences(told) == list(range(1, result["head"] + 1))
    assert result["result"] == said(told) == WORDS
    assert any("discarded" in fact for fact in told)


async def test_a_watch_begins_after_the_sequence_that_is_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, Client(daemon.address) as client:
        run = await client.run("hello")
        await run.result()
        told = await facts(daemon.address, "watch", run.run_id, "2")
    assert sequences(told) == list(range(3, run.sequence + 1))


async def test_cancelling_ends_the_run_and_its_result_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        state, end = await facts(daemon.address, "cancel", "/stall")
    assert state["state"] in (CANCELLING, ENDED_CANCELLED)
    assert end["error"] == "RunCancelledError"
    assert end["code"] == CANCELLED


async def test_the_same_request_id_is_the_same_run(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        created, streamed = await facts(daemon.address, "twice", "hello")
    assert created == {"same": True, "replayed": [False, True]}
    assert streamed == {"same": True, "replayed": [True]}


async def test_a_refusal_and_a_failed_run_carry_their_reasons(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        [refused] = await facts(daemon.address, "fail", "hello", "scripted/no-such")
        [failed] = await facts(daemon.address, "fail", "/fail CONTENT_REFUSED")
    assert (refused["error"], refused["reason"], refused["code"]) == (
        "BehestError",
        "PROVIDER_MODEL_NOT_FOUND",
        NOT_FOUND,
    )
    assert refused["metadata"]["model"] == "scripted/no-such"
    assert (failed["error"], failed["reason"]) == ("RunFailedError", "PROVIDER_CONTENT_REFUSED")
