"""Builds the TypeScript client and the programs of these tests, and runs them.

Above: the tests of this folder. What is missing is installed by the targets of the Makefile, once a session; where that
cannot be done, the tests are skipped, and the reason is printed. Sessions beside each other build one after the other.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
PACKAGE = ROOT / "clients" / "typescript"
BUILT = PACKAGE / "build"
INSTALL_SECONDS = 300
SECONDS = 30.0


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock under which things are built here."""
    place = ROOT / ".cache" / "typescript.lock"
    place.parent.mkdir(exist_ok=True)
    with place.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make(target: str) -> subprocess.CompletedProcess[str]:
    """Run a target of the Makefile."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "--silent", target],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=INSTALL_SECONDS,
        check=False,
    )


@cache
def installed() -> tuple[str, str]:
    """Build the client: the folder of node, or empty with the reason why it cannot be had."""
    try:
        with alone():
            built = make("clients-typescript")
        if built.returncode != 0:
            return "", built.stdout[-500:]
        return make("clients-typescript-bin").stdout.strip(), ""
    except subprocess.TimeoutExpired:
        return "", f"it took longer than {INSTALL_SECONDS} s to install it"


def node() -> str:
    """Find the folder of node, with the client built. Skips the test when it cannot be had."""
    folder, reason = installed()
    if not folder:
        pytest.skip(f"no TypeScript client here: {reason}")
    return folder


def environment() -> dict[str, str]:
    """Give what a program of node needs."""
    return {**os.environ, "PATH": f"{node()}{os.pathsep}{os.environ['PATH']}"}


@cache
def compiled(project: Path, name: str = "") -> None:
    """Compile the programs of a project, unless that was done. Raises AssertionError with what the compiler says.

    `name` tells it from other projects, where that of its folder does not.
    """
    sources = sorted(path for path in project.rglob("*") if path.suffix in (".ts", ".mts", ".json"))
    content = b"".join(path.read_bytes() for path in [*sources, PACKAGE / "dist" / ".built"])
    digest = sha256(content + str((PACKAGE / "dist" / ".built").stat().st_mtime_ns).encode()).hexdigest()
    stamp = BUILT / f"{name or project.name}.compiled"
    with alone():
        if not stamp.exists() or stamp.read_text() != digest:
            _compile(project)
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(digest)


def _compile(project: Path) -> None:
    command = [str(PACKAGE / "node_modules/.bin/tsc"), "--project", str(project)]
    done = subprocess.run(
        command,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout


class Program:
    """A program of node that runs. Made by `program`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        """Wait for its next line; empty when it has ended."""
        assert self.process.stdout is not None
        async with asyncio.timeout(SECONDS):
            return (await self.process.stdout.readline()).decode().rstrip("\n")

    async def lines(self) -> AsyncIterator[str]:
        """Give its lines until it has ended."""
        while line := await self.line():
            yield line

    async def expect(self, wanted: str) -> str:
        """Wait for a line that begins so, and give the rest of it. Raises AssertionError when it ends before."""
        async for line in self.lines():
            if line.startswith(wanted):
                return line.removeprefix(wanted).strip()
        raise AssertionError(f"it ended without {wanted!r}")

    async def end(self) -> int:
        """Wait until it has ended by itself. Gives the exit code."""
        async with asyncio.timeout(SECONDS):
            return await self.process.wait()

    async def kill(self) -> None:
        """End it at once, as a crash does."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def running(script: Path, *arguments: str) -> AsyncIterator[Program]:
    """Run a compiled script until the block ends."""
    process = await asyncio.create_subprocess_exec(
        "node", str(script), *arguments, env=environment(), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    made = Program(process)
    try:
        yield made
    finally:
        await made.kill()


@asynccontextmanager
async def program(name: str, *arguments: str) -> AsyncIterator[Program]:
    """Run a program of these tests until the block ends."""
    node()
    compiled(HERE)
    async with running(BUILT / "interop" / f"{name}.mjs", *arguments) as made:
        yield made


async def facts(*arguments: str) -> list[dict[str, Any]]:
    """Run the client program to its end, and give what it told."""
    async with program("client", *arguments) as client:
        told = [json.loads(line) async for line in client.lines()]
        assert await client.end() == 0
    return told
