"""Every command of `behest` against a real daemon process: exit codes, texts and JSON."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sysconfig
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.daemon_process import DaemonProcess, running
from tests.tool_process import tool_server

SLOW = "/delay 25 /words 80"
ENDLESS = "/delay 50 /words 100000"
BEHEST = Path(sysconfig.get_path("scripts")) / "behest"


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def documents(self) -> list[Any]:
        """Stdout as JSON: one document, or one a line."""
        try:
            return [json.loads(self.stdout)]
        except json.JSONDecodeError:
            return [json.loads(line) for line in self.stdout.splitlines()]


async def ended(process: asyncio.subprocess.Process) -> Outcome:
    """Wait for a command to end."""
    async with asyncio.timeout(20):
        stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return Outcome(process.returncode, stdout.decode(), stderr.decode())


async def line_of(process: asyncio.subprocess.Process, text: str) -> list[str]:
    """Read what a command prints up to the first line that holds a text."""
    assert process.stdout is not None
    lines = []
    async with asyncio.timeout(30):
        while line := (await process.stdout.readline()).decode():
            lines.append(line)
            if text in line:
                return lines
    raise AssertionError(lines)


class Shell:
    """Starts `behest` for one daemon."""

    def __init__(self, address: str) -> None:
        self._env = {**os.environ, "BEHEST_ADDRESS": address}

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start a command."""
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(BEHEST, *arguments, stdout=pipe, stderr=pipe, env=self._env)

    async def run(self, *arguments: str) -> Outcome:
        """Run a command to its end."""
        return await ended(await self.start(*arguments))

    async def text(self, *arguments: str) -> str:
        """Run a command that succeeds and prints text."""
        outcome = await self.run(*arguments)
        assert outcome.code == 0, outcome
        return outcome.stdout

    async def json(self, *arguments: str) -> list[Any]:
        """Run a command that succeeds and prints JSON, and nothing beside it."""
        outcome = await self.run(*arguments, "--output", "json")
        assert (outcome.code, outcome.stderr) == (0, ""), outcome
        return outcome.documents

    async def refused(self, *arguments: str) -> tuple[int, str]:
        """Run a command that fails: its exit code, and the reason."""
        outcome = await self.run(*arguments, "--output", "json")
        return outcome.code, json.loads(outcome.stderr.splitlines()[-1])["error"]["reason"]


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[DaemonProcess]:
    """A daemon process."""
    async with running(tmp_path / "daemon") as served:
        yield served


@pytest.fixture
def shell(daemon: DaemonProcess) -> Shell:
    """A shell for it."""
    return Shell(daemon.address)


async def test_a_run_is_ordered_watched_shown_and_explained(shell: Shell) -> None:  # C042, C043
    assert await shell.text("run", "say hello") == "say hello\n"
    lines = await shell.json("run", "say hello", "--label", "team=a")
    events = [line["event"] for line in lines if "event" in line]
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    run_id = events[0]["run_id"]
    assert await shell.json("watch", run_id) == [{"event": event} for event in events]
    assert await shell.json("watch", run_id, "--after", "3") == [{"event": event} for event in events[3:]]
    assert [run["id"] for run in await shell.json("runs", "list", "--label", "team=a")] == [run_id]
    assert len(await shell.json("runs", "list", "--state", "completed")) == 2
    assert (await shell.json("runs", "get", run_id))[0]["output"]["text"] == "say hello"
    assert (await shell.run("runs", "explain", run_id)).code == 0
    assert await shell.text("runs", "delete", run_id) == f"deleted {run_id}\n"
    assert await shell.refused("runs", "get", run_id) == (1, "RUN_NOT_FOUND")


async def test_exit_codes_tell_a_failed_and_a_cancelled_run(shell: Shell) -> None:  # C056
    assert await shell.refused("run", "/fail REQUEST_INVALID") == (1, "PROVIDER_REQUEST_INVALID")
    failed = (await shell.json("runs", "list", "--state", "failed"))[0]["id"]
    again = (await shell.json("retry", failed, "--no-watch"))[0]
    assert again["forked_from"]["run_id"] == failed
    assert (await shell.run("watch", again["id"])).code == 1
    run_id = (await shell.json("run", ENDLESS, "--no-watch"))[0]["id"]
    cancelled = await shell.json("cancel", run_id, "--reason", "enough")
    assert cancelled[0]["id"] == run_id
    assert (await shell.run("watch", run_id)).code == 3
    assert (await shell.run("run", ENDLESS, "--timeout", "0.2")).code == 3


async def test_sessions_hold_what_was_said(shell: Shell) -> None:
    session_id = (await shell.json("sessions", "create", "--title", "First", "--label", "team=a"))[0]["id"]
    assert await shell.text("run", "good morning", "--session", session_id) == "good morning\n"
    assert await shell.text("sessions", "messages", session_id) == "user: good morning\nassistant: good morning\n"
    assert "First" in await shell.text("sessions", "list")
    assert (await shell.json("sessions", "get", session_id))[0]["labels"] == {"team": "a"}
    fork = (await shell.json("sessions", "fork", session_id, "--title", "Second"))[0]["id"]
    assert len(await shell.json("sessions", "messages", fork)) == 2
    assert await shell.text("sessions", "delete", session_id) == f"deleted {session_id}\n"
    assert await shell.refused("sessions", "get", session_id) == (1, "SESSION_NOT_FOUND")


async def test_agents_are_kept_in_versions_and_used(shell: Shell) -> None:  # C098
    made = await shell.json("agents", "create", "id=helper", "model=scripted/text-only", "instructions=be brief")
    assert made[0]["version"] == "1"
    assert (await shell.json("agents", "update", "helper", "description=helps"))[0]["version"] == "2"
    assert [agent["id"] for agent in await shell.json("agents", "list")] == ["default", "helper"]
    assert "description" not in (await shell.json("agents", "get", "helper", "--version", "1"))[0]
    lines = await shell.json("run", "hello", "--agent", "helper")
    requested = next(line["event"]["model_requested"] for line in lines if "model_requested" in line.get("event", ()))
    assert requested["endpoint"] == "scripted/text-only"
    assert await shell.text("agents", "delete", "helper") == "deleted helper\n"
    assert await shell.refused("run", "hello", "--agent", "helper") == (1, "AGENT_NOT_FOUND")


async def test_a_tool_server_is_registered_used_and_let_go(shell: Shell, tmp_path: Path) -> None:  # C024, C033
    (tmp_path / "notes.md").write_text("# Notes\n")
    async with tool_server(tmp_path) as server:
        made = await shell.json("servers", "register", "files", server.address, "tool_policies.*.side_effect=pure")
        assert sorted(made[0]["tool_names"]) == ["count", "search"]
        assert "files" in await shell.text("servers", "list")
        assert "pure" in await shell.text("tools", "list", "--name", "count")
        assert (await shell.json("tools", "get", "count"))[0]["policy"]["side_effect"] == "SIDE_EFFECT_PURE"
        outcome = await shell.run("run", '/tool count {"what": "files", "suffix": ".md"}')
        assert (outcome.code, outcome.stdout) == (0, "count: 1\n")
        assert "→ count" in outcome.stderr
        calls = await shell.json("tools", "calls", "--tool", "count")
        assert [call["state"] for call in calls] == ["TOOL_CALL_STATE_COMPLETED"]
        assert await shell.text("servers", "unregister", made[0]["id"]) == f"unregistered {made[0]['id']}\n"
        assert await shell.json("tools", "list") == []


async def test_models_artifacts_and_the_daemon_are_shown(shell: Shell, tmp_path: Path) -> None:
    assert "scripted/echo" in await shell.text("models", "list")
    assert (await shell.json("models", "get", "scripted/priced"))[0]["id"] == "scripted/priced"
    assert await shell.refused("models", "get", "scripted/none") == (1, "PROVIDER_MODEL_NOT_FOUND")
    assert "history" in await shell.text("context", "list")
    assert (await shell.json("context", "preview", "hello"))[0]["messages"][0]["parts"][0]["text"]["text"] == "hello"
    assert len((await shell.text("embed", "one", "two", "--dimensions", "3")).splitlines()) == 2
    vectors = (await shell.json("embed", "one", "--model", "scripted/embed", "--dimensions", "3"))[0]["embeddings"]
    assert [len(vector["values"]) for vector in vectors] == [3]
    content = tmp_path / "report.txt"
    content.write_text("a report\n")
    artifact_id = (await shell.json("artifacts", "put", str(content)))[0]["id"]
    assert await shell.text("artifacts", "get", artifact_id, "-") == "a report\n"
    assert "report.txt" in await shell.text("artifacts", "list")
    assert await shell.text("artifacts", "delete", artifact_id) == f"deleted {artifact_id}\n"
    status = (await shell.json("status"))[0]
    assert set(status) == {"info", "status"}
    assert "version" in await shell.text("status")


async def test_a_command_that_follows_a_run_goes_on_over_the_death_of_the_daemon(
    shell: Shell, daemon: DaemonProcess
) -> None:  # C085
    process = await shell.start("run", SLOW, "--output", "json")
    lines = await line_of(process, '"delta"')
    await daemon.kill()
    await daemon.start()
    outcome = await ended(process)
    assert (outcome.code, outcome.stderr) == (0, "")
    documents = [json.loads(line) for line in (*lines, *outcome.stdout.splitlines())]
    events = [document["event"] for document in documents if "event" in document]
    assert {"discarded": {"step": 1, "attempt": 1}} in documents
    assert [{"event": event} for event in events] == await shell.json("watch", events[0]["run_id"])


async def test_an_interrupt_cancels_the_run_that_was_ordered_and_leaves_the_one_that_is_watched(
    shell: Shell,
) -> None:  # C056
    ordered = await shell.start("run", ENDLESS, "--output", "json")
    run_id = json.loads((await line_of(ordered, '"run_created"'))[-1])["event"]["run_id"]
    watching = await shell.start("watch", run_id, "--output", "json")
    await line_of(watching, '"delta"')
    watching.send_signal(signal.SIGINT)
    assert (await ended(watching)).code == 130
    assert [run["id"] for run in await shell.json("runs", "list", "--state", "running")] == [run_id]
    ordered.send_signal(signal.SIGINT)
    assert (await ended(ordered)).code == 3
    assert [run["id"] for run in await shell.json("runs", "list", "--state", "cancelled")] == [run_id]


async def test_a_daemon_that_is_gone_is_exit_code_4(shell: Shell, daemon: DaemonProcess) -> None:
    assert await daemon.terminate() == 0
    assert await shell.refused("status") == (4, "TRANSPORT_UNAVAILABLE")
