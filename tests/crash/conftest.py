"""What crash tests share: a place on the disk that goes with the test, and one ledger server for a module."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.crash.harness import LedgerFile


@dataclass(frozen=True, slots=True)
class Tools:
    """A ledger server in a process of its own."""

    address: str
    ledger: LedgerFile


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that is gone after the test: the reserve of each store is 64 MiB."""
    with TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def tools() -> Iterator[Tools]:
    """A ledger server for the module's tests, each with run ids of its own."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "ledger"
        path.touch()
        command = [sys.executable, "-m", "tests.crash.ledger_server", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield Tools(process.stdout.readline().split()[1], LedgerFile(path))
            finally:
                process.kill()
