"""What a tool server remembers of its calls."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from behest.dedupe import Dedupe, Entry, MemoryDedupe, SqliteDedupe, State


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


STORES: dict[str, Callable[[Path, Clock], Dedupe]] = {
    "memory": lambda _path, clock: MemoryDedupe(60.0, clock),
    "sqlite": lambda path, clock: SqliteDedupe(str(path / "calls.sqlite3"), 60.0, clock),
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES)
async def dedupe(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Dedupe]:
    store = STORES[request.param](tmp_path, clock)
    yield store
    await store.close()


async def test_what_was_put_last_is_found(dedupe: Dedupe) -> None:
    assert await dedupe.find("a") is None
    await dedupe.put("a", Entry(State.RUNNING, 3, b"digest"))
    await dedupe.put("a", Entry(State.DONE, 3, b"digest", b"result"))
    assert await dedupe.find("a") == Entry(State.DONE, 3, b"digest", b"result")
    assert await dedupe.find("b") is None


async def test_entries_live_for_the_retention_after_their_last_change(dedupe: Dedupe, clock: Clock) -> None:
    await dedupe.put("a", Entry(State.RUNNING, 1))
    await dedupe.put("b", Entry(State.RUNNING, 1))
    clock.now += 59
    await dedupe.put("a", Entry(State.DONE, 1))
    clock.now += 2
    assert await dedupe.find("a") is not None
    assert await dedupe.find("b") is None
    clock.now += 60
    await dedupe.put("c", Entry(State.DONE, 1))
    assert await dedupe.find("a") is None


async def test_a_file_remembers_over_restarts(tmp_path: Path) -> None:
    path = str(tmp_path / "calls.sqlite3")
    first = SqliteDedupe(path)
    await first.put("a", Entry(State.BURIED, 7))
    await first.close()
    second = SqliteDedupe(path)
    assert await second.find("a") == Entry(State.BURIED, 7)
    await second.close()


async def test_a_change_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "calls.sqlite3")
    store = SqliteDedupe(path)
    other = sqlite3.connect(path, timeout=0)
    other.execute("DROP TABLE calls")
    other.close()
    with pytest.raises(sqlite3.Error):
        await store.put("a", Entry(State.DONE, 1))
    await store.close()
