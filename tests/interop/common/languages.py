"""The languages of the clients: how the two programs of each are made and run, and what they print.

Above: the suites of this folder, which say once what holds in every language. Below: the builders of the languages'
own suites. In `programs` each language has a tool server, with the same tools, and a client, that follow one command
line. What cannot be built here is skipped, and the reason is printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from behest.conformance.probe import Probe
from tests.interop.go import golang
from tests.interop.python_lite import processes
from tests.interop.typescript import node

PROGRAMS = Path(__file__).resolve().parent / "programs"
TOOLS = ("count", "echo", "fail", "keep", "large", "mirror", "work")
BUILD_SECONDS = golang.BUILD_SECONDS + node.INSTALL_SECONDS
SECONDS = 60.0
# What a server prints once it listens, with its address, or once it is attached.
_READY = re.compile(r"^ready ?(?P<address>\S*)|tool server ready.* address=(?P<listens>\S+)|tool server attached")


@dataclass(frozen=True, slots=True)
class Language:
    """A language: how the command of a program is made, which is `tools` or `client`, and the environment it needs."""

    name: str
    command: Callable[[str], list[str]]
    environment: Callable[[], Mapping[str, str]] = field(default=lambda: os.environ)
    # What its server cannot offer.
    lacks: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name


def _python(program: str) -> list[str]:
    return [sys.executable, str(PROGRAMS / f"{program}_python.py")]


def _python_lite(program: str) -> list[str]:
    if not processes.INSTALLED.exists():
        pytest.skip("no environment of the pure-Python client here: run `make clients-python-lite`")
    return [str(processes.PYTHON), "-W", "error", str(PROGRAMS / f"{program}_python_lite.py")]


def _python_lite_environment() -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(processes.ROOT / "clients" / "python-lite")}


def _go(program: str) -> list[str]:
    return [str(golang.built(str(PROGRAMS / f"{program}.go")))]


def _typescript(program: str) -> list[str]:
    node.node()
    node.compiled(PROGRAMS, "common")
    return ["node", str(node.BUILT / "common" / f"{program}.mjs")]


PYTHON = Language("python", _python)
PYTHON_LITE = Language("python-lite", _python_lite, _python_lite_environment, frozenset({"keep"}))
GO = Language("go", _go)
TYPESCRIPT = Language("typescript", _typescript, node.environment)
LANGUAGES = (PYTHON, PYTHON_LITE, GO, TYPESCRIPT)


class Program:
    """A program that runs, and the lines that it has printed. Made by `program`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []

    @property
    def begun(self) -> list[str]:
        """The keys of the calls of `work` that it has printed so far, in order."""
        return [line.removeprefix("began work ") for line in self.lines if line.startswith("began work ")]

    async def line(self) -> str:
        """Wait for the next line. Raises AssertionError, with the last ones, when it ended instead."""
        assert self._process.stdout is not None
        async with asyncio.timeout(SECONDS):
            line = (await self._process.stdout.readline()).decode().rstrip("\n")
        assert line, f"it ended after {self.lines[-5:]}"
        self.lines.append(line)
        return line

    async def ready(self) -> str:
        """Wait until a server serves: its address, empty when it is attached."""
        while (found := _READY.search(await self.line())) is None:
            pass
        return found["address"] or found["listens"] or ""

    async def work(self) -> str:
        """Wait until another call of `work` was begun, and return its key."""
        while not (line := await self.line()).startswith("began work "):
            pass
        return line.removeprefix("began work ")

    async def fact(self) -> dict[str, Any]:
        """Return the next thing that a client tells."""
        fact: dict[str, Any] = json.loads(await self.line())
        return fact

    async def facts(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what a client tells, up to how its run ended."""
        fact: dict[str, Any] = {}
        while "end" not in fact:
            fact = await self.fact()
            yield fact

    async def end(self) -> int:
        """Read it to its end, which it comes to by itself, and return the exit code."""
        assert self._process.stdout is not None
        async with asyncio.timeout(SECONDS):
            self.lines += (await self._process.stdout.read()).decode().splitlines()
            return await self._process.wait()

    async def terminate(self) -> int:
        """Ask it to end, and return the exit code."""
        self._process.terminate()
        return await self.end()

    async def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def program(
    language: Language, name: str, *arguments: str, more: Mapping[str, str] | None = None
) -> AsyncIterator[Program]:
    """Run a program of a language until the block ends, with more in its environment."""
    process = await asyncio.create_subprocess_exec(
        *await asyncio.to_thread(language.command, name),
        *arguments,
        env={**await asyncio.to_thread(language.environment), "BEHEST_ADDRESS": "", **(more or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        limit=64 * 1024 * 1024,
    )
    made = Program(process)
    try:
        yield made
    finally:
        await made.kill()


@asynccontextmanager
async def serving(language: Language, store: Path | str = "", token: str = "") -> AsyncIterator[tuple[Program, Probe]]:
    """Run the tool server of a language as one that is dialled; gives it with a probe of it."""
    async with program(language, "tools", "serve", "127.0.0.1:0", str(store), token) as server:
        async with Probe(await server.ready(), token=token, seconds=SECONDS) as probe:
            yield server, probe


async def told(
    language: Language, *arguments: str, more: Mapping[str, str] | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run the client of a language to its end: what it saw, and how its run ended."""
    async with program(language, "client", *arguments, more=more) as client:
        *seen, end = [fact async for fact in client.facts()]
        assert await client.end() == 0
    return seen, end
