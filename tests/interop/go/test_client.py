"""What is special to the Go client: its example."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon_process import running
from tests.interop.go.golang import BUILD_SECONDS, program

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 120)


async def test_the_example_prints_the_answer(tmp_path: Path) -> None:
    async with (
        running(tmp_path, config="[limits]\ndrain_seconds = 0.1\n", address="127.0.0.1:0") as daemon,
        program("./examples/run", "-address", daemon.address, "say", "hello") as example,
    ):
        assert await example.line() == "say hello\n"
        assert (await example.line()).endswith(" completed\n")
