"""What the README of the client says is so: each of its snippets is run, against a daemon of its own."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from behest.client import Client
from behest.errors import RunCancelledError
from tests.daemon_process import running

ROOT = Path(__file__).resolve().parents[2] / "clients" / "python"
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
STREAM, GRAPH, EMIT, HOOKS, TOOLS, MODELS = SNIPPETS
SECONDS = 30


def command(snippet: str, address: str) -> list[str]:
    """Make the command that runs a snippet against a daemon."""
    assert snippet.count("127.0.0.1:7717") == 1
    return [sys.executable, "-c", snippet.replace("127.0.0.1:7717", address)]


async def printed(snippet: str, address: str) -> list[str]:
    """Run a snippet to its end, and return the lines that it prints."""
    process = await asyncio.create_subprocess_exec(
        *command(snippet, address), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode().splitlines()


@asynccontextmanager
async def started(snippet: str, address: str, directory: Path) -> AsyncIterator[None]:
    """Run a snippet that goes on until it is ended."""
    process = await asyncio.create_subprocess_exec(*command(snippet, address), cwd=directory)
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def test_the_first_snippet_streams_a_run(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        assert (await printed(STREAM, daemon.address))[0].startswith("say hello")


async def test_a_graph_is_followed_node_by_node(tmp_path: Path) -> None:  # C131
    async with running(tmp_path) as daemon:
        *changes, _ = (await printed(GRAPH, daemon.address))[:5]
    assert changes == ["solve 1 1", "solve 1 2", "answer 2 1", "answer 2 2"]


async def test_runs_are_emitted_under_a_control(tmp_path: Path) -> None:  # C093 C095
    async with running(tmp_path) as daemon:
        lines = await printed(EMIT, daemon.address)
    assert [line for line in lines if line.startswith("say ")] == ["say one", "say two", "say three"]
    assert [line for line in lines if line.startswith("completed ")]


async def test_the_tool_server_attaches_and_the_hooks_are_asked(tmp_path: Path) -> None:  # C025 C097
    async with running(tmp_path) as daemon, Client(daemon.address) as client:
        async with started(TOOLS, daemon.address, tmp_path), asyncio.timeout(SECONDS):
            while sorted([tool.name async for tool in client.tools.list()]) != ["add", "balance", "pay_in"]:
                await asyncio.sleep(0.05)
            paid = await client.run('/tool pay_in {"account": "ann", "amount": 3}')
            assert "8" in (await paid.result()).text
            turns = (
                '/tool balance {"account": "ann"} /next /tool balance {"account": "bob"} /next /delay 50 /words 1000'
            )
            async with started(HOOKS, daemon.address, tmp_path):
                while True:
                    # The hooks hear what comes once they are there: the first run that they hear is cancelled.
                    run = await client.run(turns)
                    try:
                        async with asyncio.timeout(5):
                            await run.result()
                    except RunCancelledError:
                        break
                    except TimeoutError:
                        await run.cancel()
            events = [event async for event in run.events()]
    [asked] = [event.run_cancel_requested for event in events if event.HasField("run_cancel_requested")]
    assert asked.reason == "two turns are enough"


async def test_the_model_server_attaches_and_is_asked(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, Client(daemon.address) as client:
        async with started(MODELS, daemon.address, tmp_path), asyncio.timeout(SECONDS):
            while "birds/parrot" not in [model.id async for model in client.models.list()]:
                await asyncio.sleep(0.05)
            run = await client.run("hello to you", model="birds/parrot")
            assert (await run.result()).text == "hello to you "
            response = await client.embeddings.embed(["a", "abc"], model="birds/lengths")
            assert [list(each.values) for each in response.embeddings] == [[1.0, 1.0], [3.0, 1.0]]


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).resolve().exists()
