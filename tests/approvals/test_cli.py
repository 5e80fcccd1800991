"""`behest approvals` against a real daemon process: exit codes and JSON."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from behest.client import Client
from behest.v1.agent_pb2 import Agent
from tests.approvals.scenes import asking, events_of, pay, witness
from tests.approvals.test_restart import CONFIG
from tests.daemon_process import running

BEHEST = Path(sysconfig.get_path("scripts")) / "behest"


class Shell:
    """Runs `behest` for one daemon."""

    def __init__(self, address: str) -> None:
        self._env = {**os.environ, "BEHEST_ADDRESS": address}

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start a command that prints text."""
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(BEHEST, *arguments, stdout=pipe, stderr=pipe, env=self._env)

    async def run(self, *arguments: str) -> tuple[int, list[Any], str]:
        """Run a command to its end: exit code, JSON of stdout, one document a line, and stderr."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            BEHEST, *arguments, "--output", "json", stdout=pipe, stderr=pipe, env=self._env
        )
        async with asyncio.timeout(30):
            stdout, stderr = await process.communicate()
        assert process.returncode is not None
        text = stdout.decode().strip()
        try:
            documents = [json.loads(text)] if text else []
        except json.JSONDecodeError:
            documents = [json.loads(line) for line in text.splitlines()]
        return process.returncode, documents, stderr.decode()

    async def done(self, *arguments: str) -> list[Any]:
        """Run a command that succeeds."""
        code, documents, stderr = await self.run(*arguments)
        assert (code, stderr) == (0, "")
        return documents

    async def refused(self, *arguments: str) -> tuple[int, str]:
        """Run a command that the daemon refuses: the exit code, and the reason."""
        code, _, stderr = await self.run(*arguments)
        return code, json.loads(stderr.splitlines()[-1])["error"]["reason"]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[tuple[Client, Shell]]:
    """A client and a shell for a daemon with the witness's tools."""
    async with (
        witness(tmp_path) as tools,
        running(tmp_path / "daemon", config=CONFIG.format(address=tools.address)) as daemon,
        Client(daemon.address) as client,
    ):
        yield client, Shell(daemon.address)


async def test_approvals_are_listed_shown_given_and_refused(scene: tuple[Client, Shell]) -> None:  # C038 C041
    client, shell = scene
    run, asked = await asking(client, f"{pay('ann', 1)} {pay('bob', 2)} /next /say done", 2)
    listed = await shell.done("approvals", "list", "--run", run.run_id)
    assert [each["call_id"] for each in listed] == [each.call_id for each in asked]
    by_name = {json.loads(each["arguments_json"])["to"]: each["call_id"] for each in listed}
    assert (await shell.done("approvals", "show", by_name["ann"]))[0]["state"] == "APPROVAL_STATE_PENDING"

    code, _, _ = await shell.run("approvals", "approve", by_name["ann"], "--hash", "00" * 32)
    assert code == 1
    edited = '{"to": "ann", "amount": 3}'
    approve = ("approvals", "approve", by_name["ann"], "--reason", "fine", "--arguments", edited)
    (approved,) = await shell.done(*approve)
    assert (approved["decided_arguments_json"], approved["reason"]) == (edited, "fine")
    assert await shell.done(*approve) == [approved]
    assert await shell.refused("approvals", "deny", by_name["ann"]) == (1, "APPROVAL_DECIDED")
    (denied,) = await shell.done("approvals", "deny", by_name["bob"], "--reason", "not him")
    assert (denied["decision"], denied["decided_by"]) == ("APPROVAL_DECISION_DENIED", "local")

    await events_of(client.watch(run.run_id))
    assert await shell.done("approvals", "list") == []
    record = await shell.done("approvals", "list", "--state", "decided", "--session", approved["session_id"])
    assert {each["call_id"] for each in record} == set(by_name.values())
    assert await shell.done("approvals", "list", "--state", "all") == record
    assert await shell.done("approvals", "list", "--state", "all", "--agent", "nobody") == []
    assert await shell.refused("approvals", "show", "call_unknown") == (1, "APPROVAL_NOT_FOUND")


async def test_a_run_that_is_followed_tells_what_it_waits_for_and_can_be_answered(
    scene: tuple[Client, Shell],
) -> None:  # C038
    client, shell = scene
    await client.agents.create(Agent(id="curious", tools=["ask_user", "pay"]))
    order = pay("ann", 1) + ' /next /tool ask_user {"question": "and bob?"} /next /say as you say'
    following = await shell.start("run", order, "--agent", "curious")
    call_id = await said_by(following, r"\? pay waits for an approval: behest approvals show (\S+)")
    await shell.done("approvals", "deny", call_id, "--reason", "too dear")
    assert await said_by(following, r"! pay (.+)") == "denied by local: too dear"
    await said_by(following, "(waiting: input)")
    (run,) = [run async for run in client.runs.list()]
    await shell.done("runs", "send", run.id, "not bob")
    async with asyncio.timeout(30):
        stdout, stderr = await following.communicate()
    assert (following.returncode, stdout.decode()) == (0, "as you say\n")
    assert "ask_user: not bob" in stderr.decode()


async def said_by(process: asyncio.subprocess.Process, pattern: str) -> str:
    """Read the notes of a command up to one that has a pattern; gives what its group holds."""
    assert process.stderr is not None
    lines = []
    async with asyncio.timeout(30):
        while line := (await process.stderr.readline()).decode():
            lines.append(line)
            if (found := re.search(pattern, line)) is not None:
                return found[1]
    raise AssertionError(lines)
