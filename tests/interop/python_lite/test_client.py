"""The pure-Python client against a live daemon: it orders, follows over a crash, cancels and tells what went wrong."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from behest.client import Client
from tests.daemon_process import DaemonProcess, running
from tests.interop.python_lite.processes import ROOT, Program, needed, program

README = ROOT / "clients" / "python-lite" / "README.md"

pytestmark = [needed, pytest.mark.timeout(180)]


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[DaemonProcess]:
    """A daemon process."""
    async with running(tmp_path) as made:
        yield made


def sequences(program: Program) -> list[int]:
    """Return the sequences of the events that a program has printed."""
    return [document["sequence"] for document in program.documents if "sequence" in document]


async def test_a_run_is_followed_to_its_output_without_foreign_modules(daemon: DaemonProcess) -> None:
    async with program("client.py", daemon.address, "follow", "/say one two three") as client:
        assert await client.ended() == 0
    told = {name: value for document in client.documents for name, value in document.items()}
    assert sequences(client) == list(range(1, len(sequences(client)) + 1))
    assert ("".join(told["text"]), told["output"], told["foreign"]) == ("one two three", "one two three", [])


async def test_a_watch_goes_on_over_a_crash_of_the_daemon(daemon: DaemonProcess) -> None:
    async with program("client.py", daemon.address, "follow", "/delay 40 /words 60") as client:
        await client.document("sequence")
        await daemon.kill()
        await daemon.start()
        assert await client.ended() == 0
    told = {name: value for document in client.documents for name, value in document.items()}
    assert sequences(client) == list(range(1, len(sequences(client)) + 1))
    assert len(told["output"].split()) == 60
    assert "".join(told["text"]).endswith(told["output"])


async def test_a_watch_begins_after_the_sequence_that_it_is_given(daemon: DaemonProcess) -> None:
    async with Client(daemon.address) as other:
        run = await other.run("/say done")
        await run.result()
        head = run.sequence
        async with program("client.py", daemon.address, "watch", run.run_id, "2") as client:
            assert await client.ended() == 0
        async with program("client.py", daemon.address, "watch", run.run_id, str(head)) as late:
            assert await late.ended() == 0
    assert client.documents[:2] == [{"sequences": list(range(3, head + 1))}, {"output": "done"}]
    assert late.documents[:2] == [{"sequences": []}, {"output": "done"}]


async def test_a_cancelled_run_ends_cancelled(daemon: DaemonProcess) -> None:
    async with program("client.py", daemon.address, "cancel", "/delay 50 /words 100000") as client:
        assert await client.ended() == 0
    assert client.documents[0]["ended"] == "run_cancelled"


async def test_errors_carry_their_reason(daemon: DaemonProcess) -> None:
    async with program("client.py", daemon.address, "refuse") as client:
        assert await client.ended() == 0
    unknown, failed = client.documents[:2]
    assert (unknown["error"], unknown["code"], unknown["metadata"]) == (
        "RUN_NOT_FOUND",
        "NOT_FOUND",
        {"runId": "no-such-run"},
    )
    assert (failed["ended"], failed["reason"][:9]) == ("run_failed", "PROVIDER_")


async def test_the_snippets_of_the_readme_do_what_they_say(daemon: DaemonProcess, tmp_path: Path) -> None:
    client, server = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    port = int(daemon.address.rpartition(":")[2])
    (tmp_path / "client.py").write_text(client.replace("7717", str(port)))
    async with program(str(tmp_path / "client.py")) as run:
        assert await run.ended() == 0
    assert run.lines[0].startswith("say hello")
    (tmp_path / "server.py").write_text(f"import sys\nsys.stdout.reconfigure(line_buffering=True)\n{told(server)}")
    async with program(str(tmp_path / "server.py")) as tools, Client(await tools.line("ready")) as direct:
        assert [tool.name async for tool in direct.tools.list()] == ["add"]


def told(server: str) -> str:
    """Make the server of the README take a free port and tell it."""
    serve = 'await server.serve("127.0.0.1:7801")'
    assert serve in server
    return server.replace(serve, 'print("ready 127.0.0.1:%d" % await server.serve("127.0.0.1:0"))')
