"""Inputs by their ids: the same again is answered by the first, another one under the same id is refused."""

from __future__ import annotations

from pathlib import Path

import grpc

from tests import daemons
from tests.daemons import Served, refused
from tests.runs.scenes import events_of, finished, only, until_kind


async def test_an_input_that_is_said_again_is_said_once_and_another_one_of_its_id_is_refused(
    stored: Served,
) -> None:  # C058
    run = await stored.client.run("/stall")
    first = await stored.client.runs.send_input(run.run_id, "hurry", request_id="said-1")
    again = await stored.client.runs.send_input(run.run_id, "hurry", request_id="said-1")
    error = await refused(stored.client.runs.send_input(run.run_id, "take your time", request_id="said-1"))
    other = await stored.client.runs.send_input(run.run_id, "hurry", request_id="said-2")
    await run.cancel()
    await finished(stored.client, run.run_id)
    after_the_end = await stored.client.runs.send_input(run.run_id, "hurry", request_id="said-1")
    refused_after = await refused(stored.client.runs.send_input(run.run_id, "no", request_id="said-1"))
    too_late = await refused(stored.client.runs.send_input(run.run_id, "hurry", request_id="said-3"))
    events = await events_of(stored.client.watch(run.run_id))

    assert first == again == after_the_end < other
    assert (error.reason, error.code) == ("REQUEST_ID_REUSED", grpc.StatusCode.ALREADY_EXISTS)
    assert error.metadata["requestId"] == "said-1"
    assert (refused_after.reason, too_late.reason) == ("REQUEST_ID_REUSED", "RUN_ENDING")
    assert [each.message.parts[0].text.text for each in only(events, "input_received")] == ["hurry", "hurry"]


async def test_the_ids_of_inputs_are_known_after_a_restart(tmp_path: Path) -> None:  # C058
    async with daemons.serve("sqlite", tmp_path, drain_seconds=0.0) as served:
        run = await served.client.run("/stall", run_id="r")
        await until_kind(run, "model_requested")
        first = await served.client.runs.send_input("r", "hurry", request_id="said-1")
    async with daemons.serve("sqlite", tmp_path) as served:
        assert await served.client.runs.send_input("r", "hurry", request_id="said-1") == first
        error = await refused(served.client.runs.send_input("r", "slow down", request_id="said-1"))
        await served.client.runs.cancel("r")

    assert error.reason == "REQUEST_ID_REUSED"
