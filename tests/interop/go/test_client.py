"""The Go client against a real daemon: a run, its stream, its result, its end, and a watch over a restart."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from behest.client import Client
from tests.daemon_process import running
from tests.interop.go.golang import BUILD_SECONDS, program

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 120)

CLIENT = "./internal/interop/client"
QUICK_STOP = "[limits]\ndrain_seconds = 0.1\n"
SLOW = "/delay 25 /words 80"


async def told(*arguments: str) -> list[dict[str, Any]]:
    """Run the client program to its end, and give what it told."""
    async with program(CLIENT, *arguments) as client:
        lines = [json.loads(line) async for line in client.lines()]
        assert await client.end() == 0
    return lines


async def logged(address: str, run_id: str) -> list[bytes]:
    """Read the whole log of a run, as bytes."""
    async with Client(address) as client:
        return [event.SerializeToString(deterministic=True) async for event in client.watch(run_id).events()]


def sequences(lines: list[dict[str, Any]]) -> list[int]:
    """Pick the sequences of the events."""
    return [line["sequence"] for line in lines if "event" in line]


def said(lines: list[dict[str, Any]]) -> str:
    """Join the pieces of text, as far as they were not taken back."""
    text = ""
    for line in lines:
        text = "" if "discarded" in line else text + line.get("text", "")
    return text


async def test_a_run_is_streamed_and_its_result_is_that_of_its_log(tmp_path: Path) -> None:  # C042
    async with running(tmp_path, config=QUICK_STOP) as daemon:
        lines = await told(daemon.address, "stream", "hello from Go")
        end = lines[-1]
        events = await logged(daemon.address, end["run_id"])
    assert sequences(lines) == list(range(1, len(events) + 1))
    assert [len(base64.b64decode(line["event"])) for line in lines if "event" in line] == [len(each) for each in events]
    assert said(lines) == end["result"] == "hello from Go"
    assert end["state"] == "COMPLETED"


@pytest.mark.parametrize("is_crash", [True, False], ids=["killed", "drained"])
async def test_a_watch_goes_on_over_a_restart_without_a_lost_or_repeated_event(  # C081, C083, C085
    tmp_path: Path, is_crash: bool
) -> None:
    async with (
        running(tmp_path, config=QUICK_STOP) as daemon,
        program(CLIENT, daemon.address, "stream", SLOW) as client,
    ):
        lines: list[dict[str, Any]] = []
        async for line in client.lines():
            lines.append(json.loads(line))
            if "text" in lines[-1] and sum("text" in each for each in lines) == 5:
                await (daemon.kill() if is_crash else daemon.terminate())
                await daemon.start()
        assert await client.end() == 0
        events = await logged(daemon.address, lines[-1]["run_id"])
    assert sequences(lines) == list(range(1, len(events) + 1))
    assert lines[-1]["state"] == "COMPLETED", lines[-1]
    assert said(lines) == lines[-1]["result"]
    assert len(said(lines).split()) == 80


async def test_a_run_that_has_ended_is_watched_from_any_sequence(tmp_path: Path) -> None:
    async with running(tmp_path, config=QUICK_STOP) as daemon:
        lines = await told(daemon.address, "stream", "hello")
        run_id, head = lines[-1]["run_id"], sequences(lines)[-1]
        for after in (0, 2, head):
            again = await told(daemon.address, "watch", run_id, str(after))
            assert sequences(again) == list(range(after + 1, head + 1))
            assert again[-1]["result"] == "hello"


async def test_errors_carry_their_stable_reason(tmp_path: Path) -> None:
    async with running(tmp_path, config=QUICK_STOP) as daemon:
        unknown = await told(daemon.address, "watch", "run_none", "0")
        failed = await told(daemon.address, "stream", "/fail CREDENTIALS_REJECTED")
    assert [line["reason"] for line in unknown] == ["RUN_NOT_FOUND", "RUN_NOT_FOUND"]
    assert (failed[-1]["state"], failed[-1]["reason"]) == ("RUN_STATE_FAILED", "PROVIDER_CREDENTIALS_REJECTED")


async def test_a_cancelled_run_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, config=QUICK_STOP) as daemon:
        lines = await told(daemon.address, "cancel", SLOW)
    assert lines[-1]["state"] == "RUN_STATE_CANCELLED"


async def test_the_example_prints_the_answer(tmp_path: Path) -> None:
    async with (
        running(tmp_path, config=QUICK_STOP, address="127.0.0.1:0") as daemon,
        program("./examples/run", "-address", daemon.address, "say", "hello") as example,
    ):
        assert await example.line() == "say hello\n"
        assert (await example.line()).endswith(" completed\n")
