"""A server that speaks the vendors' formats and was not written here: aimock, in a process of its own.

Above: the tests that use it. The first use installs it by the Makefile's target `tests-aimock`, pinned in `aimock/`;
where that cannot be done, the tests are skipped, and the reason is printed.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.interop.typescript.node import INSTALL_SECONDS, ROOT, make

HERE = Path(__file__).resolve().parent / "aimock"
PROGRAM = HERE / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
START_SECONDS = 30
SECONDS = 10


class Aimock:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.base_url = f"{url}/v1"
        self._url = url

    async def asked(self) -> list[dict[str, Any]]:
        """Give the bodies of the requests so far, in order."""

        def journal() -> Any:
            with urlopen(f"{self._url}/__aimock/journal", timeout=SECONDS) as answer:
                return json.load(answer)

        entries = await asyncio.to_thread(journal)
        return [entry["body"] for entry in entries]


@cache
def installed() -> tuple[str, str]:
    """Install it: the folder of node, or empty with the reason why it cannot be had."""
    place = ROOT / ".cache" / "aimock.lock"
    place.parent.mkdir(exist_ok=True)
    try:
        with place.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            done = make("tests-aimock")
        if done.returncode != 0:
            return "", done.stdout[-500:]
        return make("clients-typescript-bin").stdout.strip(), ""
    except subprocess.TimeoutExpired:
        return "", f"it took longer than {INSTALL_SECONDS} s to install it"


@asynccontextmanager
async def serving(home: Path, fixtures: Sequence[object]) -> AsyncIterator[Aimock]:
    """Serve answers, in aimock's own words, on a free port. What no answer is there for is refused."""
    folder, reason = installed()
    if not folder:
        pytest.skip(f"no aimock here: {reason}")
    answers = home / "answers.json"
    answers.write_text(json.dumps({"fixtures": fixtures}))
    command = [f"{folder}/node", str(PROGRAM), "--port", "0", "--fixtures", str(answers), "--strict"]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ["PATH"]},
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            url = await _address(process)
        yield Aimock(url)
    finally:
        if process.returncode is None:
            process.kill()
        # Read to the end, so that the pipe's transport says goodbye inside the loop.
        await process.communicate()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    said = ""
    while line := (await process.stdout.readline()).decode():
        said += line
        if found := re.search(r"listening on (http://\S+)", line):
            return found[1]
    raise RuntimeError(f"aimock ended: {said[-2000:]}")
