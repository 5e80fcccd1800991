"""Programs of the pure-Python client in their own environment, where neither grpcio nor protobuf is installed."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
PYTHON = ROOT / ".venv-lite" / "bin" / "python"
INSTALLED = ROOT / ".venv-lite" / ".installed"
SECONDS = 40.0

needed = pytest.mark.skipif(not INSTALLED.exists(), reason="run `make clients-python-lite` first")


class Program:
    """A program that runs, and what it has printed. Made by `program`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []

    async def line(self, word: str) -> str:
        """Wait for a line that begins with a word, and return the rest of it."""
        assert self._process.stdout is not None
        async with asyncio.timeout(SECONDS):
            while data := await self._process.stdout.readline():
                self.lines.append(data.decode().rstrip("\n"))
                if self.lines[-1].startswith(word):
                    return self.lines[-1].removeprefix(word).strip()
        raise AssertionError(f"ended without {word!r} after {self.lines[-5:]}")

    async def document(self, field: str) -> dict[str, Any]:
        """Wait for a JSON line with a field, and return it."""
        while True:
            await self.line("{")
            document: dict[str, Any] = json.loads(self.lines[-1])
            if field in document:
                return document

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The JSON lines so far."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    async def ended(self) -> int:
        """Close its input, read it to its end and return the exit code."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        async with asyncio.timeout(SECONDS):
            rest = await self._process.stdout.read()
            self.lines += rest.decode().splitlines()
            return await self._process.wait()

    async def kill(self) -> None:
        """End it at once, as a crash does."""
        self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def program(name: str, *arguments: str, token: str = "") -> AsyncIterator[Program]:
    """Start a program of this folder, and stop it in the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python-lite"), "BEHEST_TOOL_TOKEN": token}
    process = await asyncio.create_subprocess_exec(
        *(str(PYTHON), "-W", "error", str(HERE / name), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
