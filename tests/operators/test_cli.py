"""The operators' commands of `behest` against a real daemon: texts, JSON, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from behest.v1.daemon_service_pb2 import GetStatusResponse
from behest.v1.model_service_pb2 import ListModelsResponse
from behest.v1.run_state_pb2 import RunState
from tests import daemons, ports
from tests.daemons import Served
from tests.operators.scenes import ALL, waiting
from tests.runs.scenes import finished

SCRIPTS = Path(sysconfig.get_path("scripts"))
ENDLESS = "/delay 50 /words 100000"


async def behest(
    served: Served | None, *arguments: str, said: str = "", address: str = "", program: str = "behest"
) -> tuple[int, str, str]:
    """Run a command to its end: exit code, stdout, stderr."""
    pipe = asyncio.subprocess.PIPE
    where = address or (served.daemon.addresses[0] if served is not None else "")
    process = await asyncio.create_subprocess_exec(
        SCRIPTS / program, *arguments, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, "BEHEST_ADDRESS": where}
    )
    async with asyncio.timeout(40):
        stdout, stderr = await process.communicate(said.encode())
    assert process.returncode is not None
    return process.returncode, stdout.decode(), stderr.decode()


async def as_json(served: Served, *arguments: str) -> Any:
    """Run a command that prints one JSON document, and nothing beside it."""
    code, stdout, stderr = await behest(served, *arguments, "--output", "json")
    assert (code, stderr) == (0, "")
    return json.loads(stdout)


async def test_an_operator_pauses_explains_and_lifts() -> None:  # N07, N17
    async with daemons.serve() as served:
        code, stdout, _ = await behest(served, "pause", "model", "scripted/echo", "--reason", "an incident")
        assert code == 0
        assert "paused: model scripted/echo, by local at" in stdout
        run = await served.client.run("hello")
        await waiting(served.client, run.run_id)
        code, stdout, _ = await behest(served, "explain", run.run_id)
        assert code == 0
        assert f"{run.run_id} is waiting" in stdout
        assert "paused model scripted/echo" in stdout
        (obstacle,) = (await as_json(served, "explain", run.run_id))["obstacles"]
        assert obstacle["kind"] == "paused"
        assert await as_json(served, "unpause", "model", "scripted/echo") == {"pauses": []}
        assert (await finished(served.client, run.run_id)).state == RunState.RUN_STATE_COMPLETED


async def test_a_pause_of_what_nobody_knows_is_told() -> None:  # N17
    async with daemons.serve() as served:
        code, _, stderr = await behest(served, "pause", "tool", "chrage_card", "--reason", "an incident")
        assert code == 0
        assert "there is no tool chrage_card at present" in stderr
        assert [each.target.tool_name for each in (await served.client.daemon.status()).pauses] == ["chrage_card"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("pause", "all", "name", "--reason", "x"),
        ("pause", "tool", "--reason", "x"),
        ("pause", "all"),
        ("cancel",),
        ("cancel", "run_1", "--all"),
        ("cancel", "--all", "--session", "ses_1"),
    ],
)
async def test_what_is_not_meant_so_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    async with daemons.serve() as served:
        assert (await behest(served, *arguments))[0] == 2


async def test_runs_are_cancelled_by_session_by_agent_and_all() -> None:  # N17
    async with daemons.serve() as served:
        client = served.client
        await client.daemon.pause(ALL, "an incident")
        runs = [await client.run("hello") for _ in range(5)]
        for run in runs:
            await waiting(client, run.run_id)
        session_id = (await client.runs.get(runs[0].run_id)).session_id
        told = await as_json(served, "cancel", "--session", session_id, "--reason", "enough")
        assert told == {"runs": 1, "cancelled": 1, "failed": 0}
        told = await as_json(served, "cancel", "--agent", "nobody")
        assert told == {"runs": 0, "cancelled": 0, "failed": 0}
        code, _, stderr = await behest(served, "cancel", "--all", said="n\n")
        assert code == 1
        assert "cancel 4 runs?" in stderr
        code, stdout, _ = await behest(served, "cancel", "--all", said="y\n")
        assert (code, stdout.strip()) == (0, "cancelled 4 of 4 runs")
        for run in runs:
            assert (await finished(client, run.run_id)).state == RunState.RUN_STATE_CANCELLED


async def test_top_shows_what_goes_on() -> None:
    async with daemons.serve("sqlite") as served:
        await finished(served.client, (await served.client.run("hello")).run_id)
        run = await served.client.run(ENDLESS)
        async with asyncio.timeout(30):
            while (await served.client.runs.get(run.run_id)).state != RunState.RUN_STATE_RUNNING:
                await asyncio.sleep(0.02)
        code, stdout, _ = await behest(served, "top", "--once")
        assert code == 0
        assert "accepting" in stdout
        assert "running 1" in stdout
        assert next(line for line in stdout.splitlines() if line.startswith("scripted/echo")).split()[1:3] == [
            "healthy",
            "1",
        ]
        told = await as_json(served, "top", "--once")
        status = ParseDict(told["status"], GetStatusResponse())
        assert [(each.model, each.in_flight) for each in status.load.models] == [("scripted/echo", 1)]
        assert status.load.models[0].HasField("latency")
        assert status.load.disk.total_bytes > 0
        assert ParseDict({"models": told["models"]}, ListModelsResponse()).models
        await served.client.runs.cancel(run.run_id, force=True)


async def test_the_doctor_finds_a_sound_set_up_sound_and_says_what_to_mend() -> None:
    async with daemons.serve("sqlite") as served:
        checks = {each["name"]: each for each in (await as_json(served, "doctor"))["checks"]}
        for name in ("reachable", "version", "caller", "accepting", "clock", "commits", "default model", "servers"):
            assert checks[name]["outcome"] == "ok", checks[name]
        assert {"storage", "disk", "file system", "open files", "approvals"} <= checks.keys()
    async with daemons.serve() as served:
        await served.client.daemon.pause(ALL, "an incident")
        code, stdout, _ = await behest(served, "doctor")
        assert code == 0  # warnings are no failures
        assert "warn  storage: memory" in stdout
        assert "behest unpause all" in stdout


async def test_the_doctor_fails_where_nobody_answers() -> None:
    code, stdout, stderr = await behest(None, "doctor", "--output", "json", address=ports.address())
    told = json.loads(stdout)
    assert (code, stderr, told["ok"]) == (1, "", False)
    assert [(each["name"], each["outcome"]) for each in told["checks"]] == [("reachable", "fail")]
    assert "behestd" in told["checks"][0]["remedy"]


async def test_a_daemon_is_drained_from_the_command_line() -> None:
    async with daemons.serve() as served:
        code, _, _ = await behest(served, "drain", said="n\n")
        assert code == 1
        assert "deadline" in await as_json(served, "drain", "--timeout", "0")
        async with asyncio.timeout(30):
            assert await served.daemon.stopped() == 0
