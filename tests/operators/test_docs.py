"""The commands of the operators' pages are run as they are written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from behest.cli import PLACES
from behest.cli.lazy import LazyGroup
from behestd.cli import Commands
from tests import daemons
from tests.operators.scenes import ALL, waiting
from tests.operators.test_cli import behest

DOCS = Path(__file__).parents[2] / "docs"


def commands(page: str) -> list[list[str]]:
    """The commands of a page's shell blocks, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def read(program: str, arguments: list[str]) -> None:
    """Read a command's arguments as it does. Raises click.UsageError."""
    group = LazyGroup(PLACES) if program == "behest" else Commands()
    command = group.get_command(click.Context(group), arguments[0])
    assert command is not None
    command.make_context(arguments[0], arguments[1:])


@pytest.mark.parametrize("page", ["pausing.md", "audit.md"])
async def test_the_commands_of_a_page_do_what_it_says(page: str, tmp_path: Path) -> None:  # C146, N17
    found = commands(page)
    assert len(found) >= 4
    data_dir = tmp_path / "data"
    async with daemons.serve("sqlite", data_dir) as served:
        await served.client.daemon.pause(ALL, "an incident")
        run = await served.client.run("hello")
        await waiting(served.client, run.run_id)
        await served.client.daemon.unpause(ALL)
        names = {"RUN": run.run_id, "DATA": str(data_dir)}
        seen = set()
        for program, *arguments in found:
            given = [names.get(each, each) for each in arguments]
            verb = tuple(given[:1])
            if verb in seen:  # A process each takes its time: what differs in its arguments alone is only read.
                read(program, given)
                continue
            seen.add(verb)
            code, stdout, stderr = await behest(served, *given, program=program)
            assert (code, bool(stdout)) == (0, True), (arguments, stderr)
