"""What a tool server remembers of its calls."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from behest.dedupe import EVERY_ATTEMPT, HELD_KEYS, Dedupe, Entry, MemoryDedupe, SqliteDedupe, State


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


async def test_what_was_begun_or_done_is_held_the_latest_first(dedupe: Dedupe, clock: Clock) -> None:
    assert await dedupe.held() == []
    for key, state in (("a", State.RUNNING), ("b", State.RUNNING), ("c", State.BURIED), ("a", State.DONE)):
        clock.now += 1
        await dedupe.put(key, Entry(state, 1))
    assert await dedupe.held() == [("a", State.DONE), ("b", State.RUNNING)]
    clock.now += 59
    assert await dedupe.held() == [("a", State.DONE)]


async def test_no_more_keys_are_held_than_can_be_reported() -> None:
    store = MemoryDedupe()
    for number in range(HELD_KEYS + 5):
        await store.put(str(number), Entry(State.DONE, 1))
    held = await store.held()
    assert len(held) == HELD_KEYS
    assert held[0][0] == str(HELD_KEYS + 4)


async def test_memory_keeps_no_more_than_its_bytes() -> None:
    store, result = MemoryDedupe(), bytes(16 * 1024 * 1024)
    for number in range(20):
        await store.put(str(number), Entry(State.RUNNING, 1))
        await store.put(str(number), Entry(State.DONE, 1, result=result))
    assert await store.find("3") is None
    assert [key for key, _ in await store.held()] == [str(number) for number in range(19, 3, -1)]


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


async def test_a_file_of_an_earlier_version_keeps_its_promises_for_all_attempts(tmp_path: Path) -> None:
    path = str(tmp_path / "calls.sqlite3")
    old = sqlite3.connect(path)
    old.execute(
        "CREATE TABLE calls (key TEXT PRIMARY KEY, state TEXT NOT NULL, epoch INTEGER NOT NULL,"
        " digest BLOB NOT NULL, result BLOB NOT NULL, change_time REAL NOT NULL)"
    )
    old.execute("INSERT INTO calls VALUES ('a', 'buried', 7, x'', x'', 1e12), ('b', 'done', 1, x'01', x'02', 1e12)")
    old.commit()
    old.close()
    store = SqliteDedupe(path)
    assert await store.find("a") == Entry(State.BURIED, 7, attempt=EVERY_ATTEMPT)
    assert await store.find("b") == Entry(State.DONE, 1, b"\1", b"\2")
    await store.put("c", Entry(State.BURIED, 3, attempt=2))
    assert await store.find("c") == Entry(State.BURIED, 3, attempt=2)
    await store.close()
