"""What was deleted is gone from the raw file, also what SQLite left in the slack of pages, and nothing is harmed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from behestd.log import fsck, sqlite_wipe
from behestd.log.sqlite import SqliteStore
from behestd.log.sqlite_schema import FILE_NAME
from behestd.log.store import Change, Claim, Committed, DeleteSession, Entry, Item, Put, Record
from tests.data.scenes import until
from tests.log.items import NAMESPACE, Script


def a_session(number: int, chance: random.Random) -> list[Item]:
    """A session whose rows are of all sizes, so that pages are split and joined."""
    name, text = f"s{number}", f"canary-{number:05}-"
    body = (text + "y" * chance.choice([1, 50, 600, 5000])).encode()
    run = Script(f"r{number}", name)
    entries = tuple(Entry("message", f"m{number}-{i}", name, run.run_id, i + 1, body) for i in range(4))
    first = run.append(
        chance.randint(1, 4),
        entries=entries,
        puts=(Put(Record(NAMESPACE, "session", name, body)),),
        definition=(text.encode(), body),
        claim=Claim(NAMESPACE, text, b"digest", run.run_id),
    )
    data = tuple(Put(Record(NAMESPACE, "data", f"{text}{i}", body, parent=name)) for i in range(chance.randint(0, 5)))
    return [first, run.append(is_ended=True, body=body), Change(puts=data)]


def left(data: Path, numbers: list[int]) -> list[int]:
    """Which of the sessions are still to be found in the raw files."""
    raw = b"".join(path.read_bytes() for path in data.glob(f"{FILE_NAME}*"))
    return [number for number in numbers if f"canary-{number:05}-".encode() in raw]


async def churn(store: SqliteStore, chance: random.Random, live: list[int], rounds: int) -> list[int]:
    """Write and delete sessions, a few at a time; gives those that are gone."""
    gone: list[int] = []
    for _ in range(rounds):
        fresh = range(start := (max([*live, *gone], default=0) + 1), start + 20)
        outcomes = await store.write([item for number in fresh for item in a_session(number, chance)])
        assert all(isinstance(outcome, Committed) for outcome in outcomes)
        live += fresh
        chosen = chance.sample(live, chance.randint(5, 20))
        gone += chosen
        live[:] = [number for number in live if number not in chosen]
        await store.write([DeleteSession(NAMESPACE, f"s{number}") for number in chosen])
    return gone


@pytest.mark.parametrize("seed", [2, *(pytest.param(seed, marks=pytest.mark.proof) for seed in range(3, 9))])
async def test_nothing_deleted_is_left_in_the_raw_file_however_its_pages_were_moved(
    seed: int, tmp_path: Path
) -> None:  # S22
    data, chance = tmp_path / "data", random.Random(seed)
    live: list[int] = []
    store = await SqliteStore.open(data, ballast_bytes=0)
    gone = await churn(store, chance, live, 12)
    await until(lambda: not left(data, gone))
    # What the connection had in memory does not bring it back.
    more = await churn(store, chance, live, 4)
    await until(lambda: not left(data, [*gone, *more]))
    for number in live:
        assert await store.record(NAMESPACE, "session", f"s{number}", 0) is not None
        assert await store.chunks(NAMESPACE, f"r{number}", 0, 1 << 20)
    await store.close()
    assert left(data, [*gone, *more]) == []
    assert set(left(data, live)) == set(live)
    assert fsck.check(data).problems == ()


async def test_a_pass_goes_on_in_steps_between_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # S22
    monkeypatch.setattr(sqlite_wipe, "STEP_BYTES", 16 * 4096)
    monkeypatch.setattr(sqlite_wipe, "PAUSE_SECONDS", 0.01)
    data, chance = tmp_path / "data", random.Random(3)
    live: list[int] = []
    store = await SqliteStore.open(data, ballast_bytes=0)
    gone = await churn(store, chance, live, 8)
    assert (data / FILE_NAME).stat().st_size > 8 * 16 * 4096 or left(data, gone) == []
    await until(lambda: not left(data, gone))
    await store.close()
    assert fsck.check(data).problems == ()


async def test_slack_that_a_killed_process_left_is_seen_to_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # S22
    data, chance = tmp_path / "data", random.Random(2)
    live: list[int] = []
    monkeypatch.setattr(sqlite_wipe.Wiper, "note", lambda self, batch: None)
    store = await SqliteStore.open(data, ballast_bytes=0)
    gone = await churn(store, chance, live, 12)
    await store.close()
    assert left(data, gone), "this is what the pass is for"
    monkeypatch.undo()
    monkeypatch.setattr(sqlite_wipe, "SCRUB_SECONDS", 0.0)
    store = await SqliteStore.open(data, ballast_bytes=0)
    await store.write([Change(puts=(Put(Record(NAMESPACE, "data", "wakes the writer", b"")),))])
    await until(lambda: not left(data, gone))
    await store.close()
    assert fsck.check(data).problems == ()
