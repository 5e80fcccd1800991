"""A tool server of the pure-Python client: it passes the examination, and serves a live daemon dialled and attached."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from behest.client import Client
from behest.conformance.tools import Plan, examine
from behest.conformance.verdict import Verdict
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from tests.daemon_process import DaemonProcess, running
from tests.interop.python_lite.processes import ROOT, needed, program

pytestmark = [needed, pytest.mark.timeout(180)]

TOKEN = "lite-token"
CALLS = (
    ("count", "{}"),
    ("fail", '{"why": "of course"}'),
    ("large", '{"bytes": 5242880}'),
    ("work", '{"seconds": 0.7}'),
    ("work", '{"seconds": 300}'),
)


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[DaemonProcess]:
    """A daemon process."""
    async with running(tmp_path / "daemon") as made:
        yield made


@pytest.mark.parametrize("memory", ["file", "process"])
async def test_the_server_passes_the_examination(memory: str, tmp_path: Path) -> None:  # N14
    store = [str(tmp_path / "calls.sqlite3")] if memory == "file" else []
    async with program("server.py", "serve", *store, token=TOKEN) as server:
        address = await server.line("ready")
        found = await examine(Plan(address, calls=CALLS, token=TOKEN, seconds=20.0))
    cannot = {"call.output_schema"} | ({"status.tombstone", "status.tombstone_later"} if memory == "process" else set())
    assert [each for each in found if each.verdict is not Verdict.PASS and each.check not in cannot] == []
    assert {each.verdict for each in found if each.check in cannot} == {Verdict.SKIP}


async def test_a_run_calls_a_dialled_server(daemon: DaemonProcess) -> None:  # N05
    async with program("server.py", "serve") as server, Client(daemon.address) as client:
        registered = await client.servers.register(
            Server(
                name="lite",
                connection=ServerConnection.SERVER_CONNECTION_DIALLED,
                address=await server.line("ready"),
                offers=[ServerOffer.SERVER_OFFER_TOOLS],
                tool_policies={"*": ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE)},
            )
        )
        assert registered.tool_names == ["count", "echo", "fail", "large", "work"]
        run = await client.run('/tool echo {"text": "Ünïcödé", "times": 2}')
        assert "ÜnïcödéÜnïcödé" in (await run.result()).text


async def test_a_run_calls_an_attached_server_and_its_drain_is_clean(daemon: DaemonProcess) -> None:
    async with program("server.py", "attach", daemon.address) as server, Client(daemon.address) as client:
        await server.line("ready")
        run = await client.run('/tool work {"seconds": 0.1}')
        assert "worked 1" in (await run.result()).text
        large = await client.run('/tool large {"bytes": 3000000}')
        await large.result()
        assert await server.ended() == 0


async def test_a_call_that_is_running_is_joined_when_the_daemon_comes_back(daemon: DaemonProcess) -> None:
    async with program("server.py", "attach", daemon.address) as server, Client(daemon.address) as client:
        await server.line("ready")
        run = await client.run('/tool work {"seconds": 3}')
        await server.line("began")
        await daemon.kill()
        await daemon.start()
        assert "worked 1" in (await run.result()).text
        assert await server.ended() == 0
    assert sum(line.startswith("began") for line in server.lines) == 1


async def test_a_cancelled_run_stops_the_call_of_an_attached_server(daemon: DaemonProcess) -> None:
    async with program("server.py", "attach", daemon.address) as server, Client(daemon.address) as client:
        await server.line("ready")
        run = await client.run('/tool work {"seconds": 3600}')
        await server.line("began")
        await run.cancel()
        # Its end, not an hour of work, lets the server end.
        assert await server.ended() == 0


def test_the_generated_contract_is_current() -> None:
    generator = [".venv-proto/bin/python", "clients/python-lite/generate.py", "--plugins", ".venv-lite/bin", "--check"]
    checked = subprocess.run(generator, cwd=ROOT, text=True, stderr=subprocess.PIPE, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
