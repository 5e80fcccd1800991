"""A daemon is itself a tool server: what it passes on to another server keeps the contract as that one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from behest.client import Client
from behest.conformance.tools import Plan, examine
from behest.conformance.verdict import Verdict
from behest.order import duration
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import SideEffect, ToolPolicy, ToolTimeouts
from tests.conformance.broken_server import serving
from tests.conformance.test_tools import EVERY
from tests.daemon_process import running


@pytest.mark.timeout(180)
async def test_a_daemon_passes_as_the_tool_server_that_it_is(tmp_path: Path) -> None:  # N05
    policy = ToolPolicy(
        side_effect=SideEffect.SIDE_EFFECT_IDEMPOTENT, timeouts=ToolTimeouts(start_to_close=duration(400))
    )
    async with serving() as address, running(tmp_path) as daemon, Client(daemon.address) as client:
        await client.servers.register(
            Server(
                name="tools",
                connection=ServerConnection.SERVER_CONNECTION_DIALLED,
                address=address,
                offers=[ServerOffer.SERVER_OFFER_TOOLS],
                tool_policies={"*": policy},
                dedupe_retention=duration(72 * 3600),
            )
        )
        found = await examine(Plan(daemon.address, calls=EVERY, seconds=20.0))
    # No token is asked here.
    cannot = {"error.token"}
    assert [each for each in found if each.verdict is not Verdict.PASS and each.check not in cannot] == []
    assert {each.verdict for each in found if each.check in cannot} == {Verdict.SKIP}
