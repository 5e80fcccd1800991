"""What is special to the pure-Python client: it loads nothing of grpcio and protobuf, and its README's snippets run."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from behest.client import Client
from tests.daemon_process import DaemonProcess, running
from tests.interop.python_lite.processes import ROOT, needed, program

README = ROOT / "clients" / "python-lite" / "README.md"

pytestmark = [needed, pytest.mark.timeout(180)]


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[DaemonProcess]:
    """A daemon process."""
    async with running(tmp_path) as made:
        yield made


async def test_a_run_is_followed_to_its_output_without_foreign_modules(daemon: DaemonProcess) -> None:
    async with program("client.py", daemon.address, "/say one two three") as client:
        told = await client.document("output")
    assert told == {"output": "one two three", "foreign": []}


async def test_the_snippets_of_the_readme_do_what_they_say(daemon: DaemonProcess, tmp_path: Path) -> None:
    client, graph, server = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    port = int(daemon.address.rpartition(":")[2])
    (tmp_path / "client.py").write_text(client.replace("7717", str(port)))
    async with program(str(tmp_path / "client.py")) as run:
        assert await run.ended() == 0
    assert run.lines[0].startswith("say hello")
    (tmp_path / "graph.py").write_text(graph.replace("7717", str(port)))
    async with program(str(tmp_path / "graph.py")) as run:
        assert await run.ended() == 0
    assert [line.split()[0] for line in run.lines[:4]] == ["solve", "solve", "answer", "answer"]
    (tmp_path / "server.py").write_text(f"import sys\nsys.stdout.reconfigure(line_buffering=True)\n{told(server)}")
    async with program(str(tmp_path / "server.py")) as tools, Client(await tools.line("ready")) as direct:
        assert [tool.name async for tool in direct.tools.list()] == ["add"]


def told(server: str) -> str:
    """Make the server of the README take a free port and tell it."""
    serve = 'await server.serve("127.0.0.1:7801")'
    assert serve in server
    return server.replace(serve, 'print("ready 127.0.0.1:%d" % await server.serve("127.0.0.1:0"))')
