"""Graphs from every language of the clients: the same order makes the same visits and the same answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.interop.common.languages import BUILD_SECONDS, PYTHON_LITE
from tests.interop.go.golang import built as go_built
from tests.interop.python_lite import processes
from tests.interop.typescript import node
from tests.reasoning.mind import ANSWER, THREE, Says, thinking

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 120)

SECONDS = 60
PROGRAMS = Path(__file__).resolve().parent / "programs"
SAYS: Says = {**THREE, "reason": "/say two, and two more"}
VISITS = {"": ("plan", "solve", "answer"), "chain_of_thought": ("think", "answer")}
"""The nodes that each strategy visits, and the graph of the programs where there is none."""

QUESTION = "what is two and two"


@dataclass(frozen=True, slots=True)
class Program:
    """The program of a language: its command from the address of a daemon and a strategy, which may be empty."""

    command: Callable[[str, str], list[str]]
    environment: Callable[[], Mapping[str, str]] = field(default=lambda: os.environ)


def python_lite(address: str, strategy: str) -> list[str]:
    """The program of the pure-Python client."""
    if not processes.INSTALLED.exists():
        pytest.skip("no environment of the pure-Python client here: run `make clients-python-lite`")
    program = [str(processes.PYTHON), "-W", "error", str(PROGRAMS / "graph_lite.py")]
    return [*program, QUESTION, address, *filter(None, [strategy])]


def go(address: str, strategy: str) -> list[str]:
    """The example of the Go client."""
    return [str(go_built("./examples/graph")), "-address", address, "-strategy", strategy, *QUESTION.split()]


def typescript(address: str, strategy: str) -> list[str]:
    """The example of the TypeScript client."""
    node.node()
    node.compiled(node.PACKAGE / "tsconfig.examples.json")
    example = node.BUILT / "examples" / "graph.js"
    return ["node", str(example), QUESTION, address, *filter(None, [strategy])]


async def printed(program: Program, address: str, strategy: str) -> list[str]:
    """Run a program to its end, and return its lines."""
    process = await asyncio.create_subprocess_exec(
        *await asyncio.to_thread(program.command, address, strategy),
        env={**await asyncio.to_thread(program.environment)},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode().splitlines()


PROGRAMS_OF = {
    "python_lite": Program(python_lite, PYTHON_LITE.environment),
    "go": Program(go),
    "typescript": Program(typescript, node.environment),
}


@pytest.mark.parametrize("name", PROGRAMS_OF)
async def test_a_graph_and_a_strategy_run_the_same_from_every_language(name: str) -> None:  # C131
    async with thinking(SAYS) as (served, mind):
        address = served.daemon.addresses[0]
        for strategy, nodes in VISITS.items():
            mind.asked.clear()
            lines = await printed(PROGRAMS_OF[name], address, strategy)
            changes = [
                f"{visit} {name} {state}"
                for visit, name in enumerate(nodes, start=1)
                for state in ("running", "completed")
            ]
            assert lines == [*changes, ANSWER]
            assert len(mind.asked) == len(nodes)
