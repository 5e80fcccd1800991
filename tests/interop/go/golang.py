"""Builds the Go client's programs, and runs them.

Above: the tests of this folder. The toolchain is that of the system, or the one that `make clients-go` installs; where
neither is there, or the modules cannot be had, the tests are skipped, and the reason is printed.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent.parent
MODULE = ROOT / "clients" / "go"
BUILD_SECONDS = 600
SECONDS = 60.0


def go(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the toolchain in the module. Skips the test when there is none."""
    place = toolchain()
    if place is None:
        pytest.skip("no Go here: neither in PATH nor in .venv-go (make clients-go installs it)")
    return subprocess.run(
        [str(place), *arguments],
        cwd=MODULE,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=BUILD_SECONDS,
        check=False,
    )


def toolchain() -> Path | None:
    """Find the `go` command."""
    installed = ROOT / ".venv-go" / "bin" / "go"
    found = shutil.which("go") or (str(installed) if installed.exists() else None)
    return Path(found) if found else None


@cache
def downloaded() -> str:
    """Get the modules that the client needs: empty, or why they cannot be had."""
    done = go("mod", "download")
    return "" if done.returncode == 0 else done.stdout[-500:]


@cache
def built(package: str) -> Path:
    """Build a program of the module, or a file: the binary. Raises AssertionError with what the compiler says."""
    if reason := downloaded():
        pytest.skip(f"the modules of the Go client cannot be had: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="behest-go-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    binary = folder / "program"
    done = go("build", "-buildvcs=false", "-o", str(binary), package)
    assert done.returncode == 0, done.stdout
    return binary


class Program:
    """A Go program that runs. Made by `program`."""

    def __init__(self, process: asyncio.subprocess.Process, lines: asyncio.StreamReader) -> None:
        self._process = process
        self._lines = lines

    async def line(self) -> str:
        """Wait for its next line; empty when it has ended."""
        async with asyncio.timeout(SECONDS):
            return (await self._lines.readline()).decode()

    async def lines(self) -> AsyncIterator[str]:
        """Give its lines until it has ended."""
        while line := await self.line():
            yield line

    async def expect(self, wanted: str) -> str:
        """Wait for a line that holds a text. Raises AssertionError, with what it said instead, when it ends before."""
        told = []
        async for line in self.lines():
            told.append(line)
            if wanted in line:
                return line
        raise AssertionError(f"it ended without {wanted!r}: {told}")

    async def end(self) -> int:
        """Wait until it has ended by itself. Gives the exit code."""
        async with asyncio.timeout(SECONDS):
            return await self._process.wait()

    async def terminate(self) -> int:
        """Ask it to end. Gives the exit code."""
        self._process.terminate()
        return await self.end()

    async def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def program(package: str, *arguments: str) -> AsyncIterator[Program]:
    """Run a program of the module until the block ends. Its lines are what it prints and what it logs."""
    process = await asyncio.create_subprocess_exec(
        str(await asyncio.to_thread(built, package)),
        *arguments,
        env={**os.environ, "BEHEST_ADDRESS": ""},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=64 * 1024 * 1024,
    )
    assert process.stdout is not None
    made = Program(process, process.stdout)
    try:
        yield made
    finally:
        await made.kill()
