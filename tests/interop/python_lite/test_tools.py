"""What is special to tool servers of the pure-Python client: in a daemon's hands, and the generated contract."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from behest.client import Client
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from tests.daemon_process import running
from tests.interop.python_lite.processes import ROOT, needed, program

pytestmark = [needed, pytest.mark.timeout(180)]


async def test_a_run_calls_a_dialled_server(tmp_path: Path) -> None:  # N05
    async with (
        running(tmp_path / "daemon") as daemon,
        program("server.py", "serve") as server,
        Client(daemon.address) as client,
    ):
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


def test_the_generated_contract_is_current() -> None:
    generator = [".venv-proto/bin/python", "clients/python-lite/generate.py", "--plugins", ".venv-lite/bin", "--check"]
    checked = subprocess.run(generator, cwd=ROOT, text=True, stderr=subprocess.PIPE, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
