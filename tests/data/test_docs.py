"""The commands of the page on data are run as they are written."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
from pathlib import Path

import click

from behest.cli import PLACES
from behest.cli.lazy import LazyGroup
from behestd.cli import Commands
from tests import daemons
from tests.data.scenes import Canaries, fill, put_agents, with_tools

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def commands() -> list[list[str]]:
    """The commands of the page's shell blocks, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def read(program: str, arguments: list[str]) -> None:
    """Read a command's arguments as it does. Raises click.UsageError."""
    group = LazyGroup(PLACES) if program == "behest" else Commands()
    command = group.get_command(click.Context(group), arguments[0])
    assert command is not None
    command.make_context(arguments[0], arguments[1:])


async def run(home: Path, address: str, program: str, *arguments: str) -> tuple[int, str]:
    """Run a command to its end: exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name(program),
        *arguments,
        cwd=home,
        env={**os.environ, "BEHEST_ADDRESS": address},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path) -> None:
    found = commands()
    assert len(found) >= 10
    canaries = Canaries("docs")
    catalog, operator = with_tools(canaries)
    stopped, live = tmp_path / "stopped", tmp_path / "data"
    async with daemons.serve("sqlite", stopped, tools=catalog, operator=operator) as served:
        await put_agents(served)
        await fill(served, canaries)
    names = {
        "STOPPED": str(stopped), "DATA": str(live), "BACKUP": str(tmp_path / "backup"), "NEW": str(tmp_path / "new"),
        "SESSION": "ses-full", "RUN": "run-done",
    }  # fmt: skip
    async with (
        daemons.serve("sqlite", live, tools=catalog, operator=operator) as served,
        daemons.serve() as empty,
    ):
        await put_agents(served)
        await fill(served, canaries)
        seen: set[tuple[str, ...]] = set()
        for program, *arguments in found:
            given = [names.get(each, each) for each in arguments]
            if tuple(given[:2]) in seen or (program == "behestd" and (given[0],) in seen):
                # A process each takes its time: what differs in its options alone is only read.
                read(program, given)
                continue
            seen |= {(given[0],), tuple(given[:2])}
            target = empty if "import" in given else served
            code, said = await run(tmp_path, target.daemon.addresses[0], program, *given)
            assert code == 0, (arguments, said)
        events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
        assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
        assert "run_completed" in events[-1]
        assert (await empty.client.sessions.get("ses-full")).title
        assert (await empty.client.runs.get("run-done")).output.text
