"""Daemons that tests ask for by name."""

from __future__ import annotations

from collections.abc import AsyncIterator

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
