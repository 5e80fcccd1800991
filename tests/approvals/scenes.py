"""What tests of approvals share: runs that ask, and a tool server of its own process that witnesses what it got."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from behest.client import Client
from behest.runs import RunHandle
from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.approval_pb2 import Approval, ApprovalState
from behest.v1.approval_service_pb2 import ListApprovalsRequest
from behest.v1.definition_pb2 import PermissionAction, PermissionRule
from behest.v1.event_pb2 import Event
from behest.v1.run_pb2 import Run
from behestd.core.definition import Operator
from behestd.tools.catalog import Catalog
from behestd.tools.schema import Validators
from tests.runs.scenes import NON_IDEMPOTENT, PURE, kind_of, tools

ALLOW = PermissionAction.PERMISSION_ACTION_ALLOW
ASK = PermissionAction.PERMISSION_ACTION_ASK
DENY = PermissionAction.PERMISSION_ACTION_DENY
APPROVED = ApprovalDecision.APPROVAL_DECISION_APPROVED
DENIED = ApprovalDecision.APPROVAL_DECISION_DENIED
EXPIRED = ApprovalDecision.APPROVAL_DECISION_EXPIRED
ALL_STATES = [state for state in ApprovalState.values() if state]
CAREFUL = Operator(default_permission=ASK)
"""An operator who is asked about everything that has an effect."""
READY_SECONDS = 20.0
PATIENCE_SECONDS = 30.0
"""How long a machine whose cores are all busy may take."""


def rule(action: PermissionAction.ValueType, tool: str = "*", **arguments: str) -> PermissionRule:
    """A rule of the operator or of an agent."""
    return PermissionRule(tool=tool, action=action, arguments=arguments, reason="the rules say so")


def payments(paid: list[tuple[str, int]]) -> Callable[[Validators], Catalog]:
    """The tools of a daemon: one that pays and notes it, one that only looks."""

    def pay(to: str, amount: int) -> str:
        """Pay somebody."""
        paid.append((to, amount))
        return f"paid {amount} to {to}"

    def look(what: str) -> str:
        """Look at something."""
        return f"{what} is there"

    return tools((pay, NON_IDEMPOTENT), (look, PURE))


def pay(to: str, amount: int) -> str:
    """The directive for one payment."""
    return "/tool pay " + json.dumps({"to": to, "amount": amount})


async def asking(client: Client, said: str, count: int = 1, **order: Any) -> tuple[RunHandle, list[Approval]]:
    """Order a run, wait until it waits, and get what it asks for."""
    run = await client.run(said, **order)
    await until_kind(run, "run_waiting")
    asked = await listed(client, run_id=run.run_id)
    assert len(asked) == count
    return run, asked


async def events_of(run: RunHandle) -> list[Event]:
    """Follow a run to its end."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [event async for event in run.events()]


async def until_kind(run: RunHandle, kind: str, count: int = 1) -> list[Event]:
    """Follow a run until it has had an event of a kind so many times, and leave it."""
    seen: list[Event] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for event in run.events():
            seen.append(event)
            if sum(kind_of(each) == kind for each in seen) >= count:
                return seen
    raise AssertionError([kind_of(each) for each in seen])


async def finished(client: Client, run_id: str) -> Run:
    """Wait for a run to end, however it does, and get it."""
    await events_of(client.watch(run_id))
    return await client.runs.get(run_id)


async def listed(client: Client, **filters: Any) -> list[Approval]:
    """The approvals that a list shows."""
    return [approval async for approval in client.approvals.list(ListApprovalsRequest(**filters))]


@dataclass(frozen=True, slots=True)
class Witness:
    """A tool server in a process of its own; its ledger is written by nobody else."""

    address: str
    path: Path

    def calls(self, run_id: str) -> list[tuple[str, str]]:
        """The tools that a run called and the text of their arguments, in order."""
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [(line["tool"], line["arguments"]) for line in lines if line["run"] == run_id]


@asynccontextmanager
async def witness(directory: Path) -> AsyncIterator[Witness]:
    """Start a witness on a free port, and end it with the block."""
    path = directory / "ledger"
    path.touch()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.approvals.witness", str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_SECONDS):
            word, address = (await process.stdout.readline()).decode().split()
        assert word == "ready"
        yield Witness(address, path)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
