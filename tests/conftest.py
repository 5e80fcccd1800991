"""Daemons that tests ask for by name, and reports that can be sent between processes."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Generator

import pytest

from tests import daemons


@pytest.fixture
async def served() -> AsyncIterator[daemons.Served]:
    """A daemon that keeps everything in memory."""
    async with daemons.serve() as made:
        yield made


@pytest.fixture(params=["memory", "sqlite"])
async def stored(request: pytest.FixtureRequest) -> AsyncIterator[daemons.Served]:
    """A daemon on each store in turn."""
    async with daemons.serve(request.param) as made:
        yield made


def pytest_collection_finish() -> None:
    """Leave what five thousand collected tests hold out of every later look for garbage, of which tests make many."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what hostile tests write and UTF-8 cannot: a worker could not send its report."""
    report = yield
    report.sections = [
        (name, content.encode("utf-8", "backslashreplace").decode()) for name, content in report.sections
    ]
    return report
