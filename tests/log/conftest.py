"""The stores that the contract suite runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from behestd.log.memory import MemoryStore
from behestd.log.sqlite import SqliteStore
from behestd.log.store import Store


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Yield each store in turn, empty."""
    made: Store = (
        MemoryStore() if request.param == "memory" else await SqliteStore.open(tmp_path / "data", ballast_bytes=0)
    )
    yield made
    await made.close()
