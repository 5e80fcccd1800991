"""Requests that outlive the daemon that made them: killed while a run waits, asked again, decided, gone on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from behest.calls import Patience
from behest.client import Client
from behest.v1.approval_pb2 import ApprovalState
from behest.v1.run_state_pb2 import RunState
from tests.approvals.scenes import asking, events_of, listed, pay, until_kind, witness
from tests.daemon_process import running
from tests.runs.scenes import kinds, only

PATIENCE = Patience(pause_seconds=0.2, repeat_seconds=45.0)
CONFIG = """
[permissions]
default = "ask"

[[permissions.rules]]
tool = "pay"
action = "ask"

[[permissions.rules]]
tool = "pay"
action = "deny"
arguments = {{ to = "mallory" }}
reason = "mallory is not paid"

[[tools.servers]]
name = "witness"
address = "{address}"

[tools.servers.policies.look]
side_effect = "pure"
"""


async def test_a_request_outlives_a_killed_daemon_and_its_run_goes_on_once(tmp_path: Path) -> None:  # C040
    async with (
        witness(tmp_path) as tools,
        running(tmp_path / "daemon", config=CONFIG.format(address=tools.address)) as daemon,
        Client(daemon.address, patience=PATIENCE) as client,
    ):
        run, (asked,) = await asking(client, f"{pay('ann', 5)} /next {pay('bob', 6)} /next /say thanks")
        await daemon.kill()
        await daemon.start()
        assert await listed(client) == [asked]
        watched = client.watch(run.run_id)
        assert kinds(await until_kind(watched, "run_waiting"))[-2:] == ["approval_requested", "run_waiting"]
        assert [each.call.id for each in (await run.get()).pending_approvals] == [asked.call_id]
        assert tools.calls(run.run_id) == []

        decided = await client.approvals.approve(asked, reason="after all")
        await until_kind(client.watch(run.run_id), "run_waiting", 2)
        await daemon.kill()
        await daemon.start()
        assert await client.approvals.approve(asked, reason="after all") == decided
        (second,) = await listed(client)
        await client.approvals.deny(second.call_id, reason="not bob")

        events = await events_of(client.watch(run.run_id))
        assert kinds(events).count("run_claimed") == 3
        assert [each.call_id for each in only(events, "tool_started")] == [asked.call_id]
        assert (await run.get()).state == RunState.RUN_STATE_COMPLETED
        assert tools.calls(run.run_id) == [("pay", asked.arguments_json)]
        states = [each.state for each in await listed(client, states=list(ApprovalState.values())[1:])]
        assert states == [ApprovalState.APPROVAL_STATE_DECIDED] * 2


async def test_a_daemon_killed_at_the_word_has_it_or_takes_it_again(tmp_path: Path) -> None:  # C040 N03
    async with (
        witness(tmp_path) as tools,
        running(tmp_path / "daemon", config=CONFIG.format(address=tools.address)) as daemon,
        Client(daemon.address, patience=PATIENCE) as client,
    ):
        run, (asked,) = await asking(client, pay("ann", 5) + " /next /say thanks")
        async with asyncio.TaskGroup() as tasks:
            word = tasks.create_task(client.approvals.approve(asked))
            tasks.create_task(daemon.kill())
            await asyncio.sleep(0)
            while daemon.is_running:
                await asyncio.sleep(0.01)
            await daemon.start()
        assert word.result().state == ApprovalState.APPROVAL_STATE_DECIDED
        again = await client.approvals.approve(asked)
        assert again == word.result()
        events = await events_of(client.watch(run.run_id))
        assert kinds(events).count("approval_decided") == 1
        assert len(tools.calls(run.run_id)) <= 1
