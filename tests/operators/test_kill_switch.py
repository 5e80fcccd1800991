"""The kill switch on a real daemon that is killed: by the ledger of the tool server itself, nothing leaves after it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from behest.client import Client
from behest.runs import RunHandle
from behest.tools import Context, ToolServer
from behest.v1.run_state_pb2 import RunState
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from behestd.core.times import nanoseconds
from behestd.log import audit
from tests.daemon_process import running
from tests.operators.scenes import LOOK, waiting
from tests.runs.scenes import finished, kind_of, until_kind

RUNS, CALLS, SOON = 4, 20, 12
CONFIG = "[limits.run]\nmax_steps = 100\n"


async def reached(ledger: Sequence[str], count: int) -> None:
    """Wait until so many calls have reached the tool server."""
    async with asyncio.timeout(30):
        while len(ledger) < count:
            await asyncio.sleep(0.01)


async def begin(client: Client, calls: int) -> RunHandle:
    """Order a run that calls the tool so many times, one after the other."""
    said = "".join(f'/tool look {{"number": {number}}} /next ' for number in range(calls))
    return await client.run(said + "/say done")


async def test_not_one_call_leaves_after_the_answer_and_a_kill_changes_nothing(tmp_path: Path) -> None:  # N17
    ledger: list[str] = []

    async def look(context: Context, number: int) -> str:
        """Look a number up."""
        ledger.append(context.idempotency_key)
        return f"{number} is even" if number % 2 == 0 else f"{number} is odd"

    server = ToolServer()
    server.tool(side_effect="non_idempotent")(look)
    async with server, running(tmp_path, config=CONFIG) as daemon:
        port = await server.serve("127.0.0.1:0")
        dialled = ServerConnection.SERVER_CONNECTION_DIALLED
        policy = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_NON_IDEMPOTENT)
        async with Client(daemon.address) as client:
            eyes = Server(
                name="eyes",
                connection=dialled,
                address=f"127.0.0.1:{port}",
                offers=[ServerOffer.SERVER_OFFER_TOOLS],
                tool_policies={"look": policy},
            )
            await client.servers.register(eyes)
            runs = [await begin(client, CALLS) for _ in range(RUNS)]
            await reached(ledger, SOON)
            (pause,) = await client.daemon.pause(LOOK, "it sees what is not there")
            for run in runs:
                await waiting(client, run.run_id)
            seen = list(ledger)
            late = await begin(client, 1)
            await waiting(client, late.run_id)
            assert ledger == seen
            assert SOON <= len(seen) < RUNS * CALLS
            for run in runs:
                events = await until_kind(client.watch(run.run_id), "run_waiting")
                started = [each for each in events if kind_of(each) == "tool_started"]
                assert all(nanoseconds(each.record_time) <= nanoseconds(pause.create_time) for each in started)

            await daemon.kill()
            rows = [body for body, _ in audit.rows(tmp_path / "data" / audit.DIRECTORY)]
            (row,) = [body for body in rows if body["method"] == "DaemonService/SetPaused"]
            assert (row["code"], row["targets"]) == (
                "OK",
                {"tool_name": "look", "paused": "true", "why": "it sees what is not there"},
            )
            await daemon.start()

            assert list((await client.daemon.status()).pauses) == [pause]
            for run in (*runs, late):
                await until_kind(client.watch(run.run_id), "run_claimed", 2)
                assert (await client.runs.get(run.run_id)).state == RunState.RUN_STATE_WAITING
            assert ledger == seen

            await client.daemon.unpause(LOOK)
            for run in (*runs, late):
                ended = await finished(client, run.run_id)
                assert (ended.state, ended.output.text) == (RunState.RUN_STATE_COMPLETED, "done")
    assert len(ledger) == len(set(ledger)) == RUNS * CALLS + 1
