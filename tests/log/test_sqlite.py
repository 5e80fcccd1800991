"""What only the SQLite store promises: the file, the lock, the disk, and what happens when they fail."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from behestd import errors
from behestd.log import fsck, sqlite_schema, sqlite_writer
from behestd.log.directory import StoreInUse
from behestd.log.sqlite import SqliteStore
from behestd.log.sqlite_schema import MIGRATIONS, NewerStore, StoreCorrupt, migrate
from behestd.log.store import (
    Change,
    Committed,
    CommitUnknown,
    DeleteRun,
    DeleteSession,
    Full,
)
from tests.log.items import NAMESPACE, Script, entry, put

ROOT = Path(__file__).resolve().parents[2]
MANY = 1 << 30


opened: list[SqliteStore] = []


@pytest.fixture(autouse=True)
async def readers_of_failed_tests_end() -> AsyncIterator[None]:
    """Close what a failed test left open: the threads of readers would keep the process from ending."""
    yield
    for store in opened:
        await store._reader.close()
    opened.clear()


async def open_store(tmp_path: Path, *, ballast_bytes: int = 0) -> SqliteStore:
    """Open the store of a test, without ballast unless told."""
    opened.append(await SqliteStore.open(tmp_path / "data", ballast_bytes=ballast_bytes))
    return opened[-1]


def database(tmp_path: Path) -> Path:
    return tmp_path / "data" / sqlite_schema.FILE_NAME


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait for something that the writer's thread does by itself, which wakes nobody."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


# --- restarts and formats ---


async def test_everything_is_there_after_a_restart_and_positions_go_on(tmp_path: Path) -> None:  # C083
    store = await open_store(tmp_path)
    run, gone = Script(), Script("run_2", "session_2")
    await store.write([run.append(3, entries=(entry("a", 1),)), Change(puts=(put("b"),))])
    await store.write([gone.append(), gone.append(is_ended=True)])
    await store.write([DeleteRun(NAMESPACE, "run_2"), DeleteSession(NAMESPACE, "session_2")])
    await store.close()
    again = await open_store(tmp_path)
    assert (await again.run(NAMESPACE, "run_1")).last_sequence == 3  # type: ignore[union-attr]
    assert await again.entry(NAMESPACE, "message", "a") == entry("a", 1)
    assert await again.record(NAMESPACE, "agent", "b", 0) is not None
    assert await again.positions() == (1, 3)
    assert await again.write([run.append()]) == [Committed(4)], "the positions of deleted chunks are not given again"
    assert again.mark.store_id == store.mark.store_id
    assert again.mark.generation == store.mark.generation + 1
    assert not again.was_set_back
    assert await again.check() == []
    await again.close()


def test_an_old_file_is_brought_to_the_newest_format(tmp_path: Path) -> None:  # C114
    with closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as connection:
        assert migrate(connection, MIGRATIONS) == 0
        connection.execute("INSERT INTO definitions VALUES (x'01', x'02')")
        newer = (*MIGRATIONS, "ALTER TABLE definitions ADD COLUMN note TEXT; CREATE TABLE more (id INTEGER)")
        assert migrate(connection, newer) == len(MIGRATIONS)
        assert connection.execute("SELECT * FROM definitions").fetchall() == [(b"\x01", b"\x02", None)]
        assert migrate(connection, newer) == len(newer)


async def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:  # C114
    await (await open_store(tmp_path)).close()
    with closing(sqlite3.connect(database(tmp_path))) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(NewerStore) as refused:
        await open_store(tmp_path)
    assert refused.value.metadata == {"version": "99", "supported": str(len(MIGRATIONS))}
    with pytest.raises(NewerStore):
        fsck.check(tmp_path / "data")
    with closing(sqlite3.connect(database(tmp_path))) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)


async def test_a_store_set_back_to_a_backup_is_noticed(tmp_path: Path) -> None:
    await (await open_store(tmp_path)).close()
    backup = database(tmp_path).read_bytes()
    await (await open_store(tmp_path)).close()
    database(tmp_path).write_bytes(backup)
    store = await open_store(tmp_path)
    assert store.was_set_back
    await store.close()
    again = await open_store(tmp_path)
    assert not again.was_set_back
    await again.close()


# --- the lock and the files ---


async def test_a_second_daemon_on_the_directory_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    with pytest.raises(StoreInUse) as refused:
        await open_store(tmp_path)
    assert refused.value.reason == "STORAGE_BUSY"
    assert refused.value.metadata["pid"] == str(store.mark.pid)
    await store.close()
    await (await open_store(tmp_path)).close()


async def test_all_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    store = await open_store(tmp_path, ballast_bytes=4096)
    await store.write([Script().append()])
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").iterdir()}
    assert {"lock", "ballast", "behestd.db", "behestd.db-wal"} <= set(found)
    assert set(found.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    await store.close()


async def test_deleted_bytes_are_gone_from_the_files(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    run = Script()
    for step in range(20):
        view = entry(str(step), step, body=b"canary-entry" * 500)
        await store.write([run.append(padding=5000, entries=(view,), body=b"canary-body" * 500, is_ended=step == 19)])
    await store.write([Change(puts=(put("a", parent="session_1", body=b"canary-record" * 500),))])
    await store.write([DeleteSession(NAMESPACE, "session_1")])
    files = [path for path in (tmp_path / "data").iterdir() if not path.name.endswith("-shm")]
    await store.write([])  # comes after what the deletion left to do
    assert not any(b"canary" in path.read_bytes() or b"run_1-" in path.read_bytes() for path in files)
    await store.close()


# --- counts ---


async def test_a_commit_costs_one_hop_one_sync_and_no_read(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    before = store.statistics()
    runs = [Script(f"run_{n}") for n in range(64)]
    await store.write([run.append(2) for run in runs])
    await store.write([run.append() for run in runs])
    after = store.statistics()
    counted = [
        getattr(after, name) - getattr(before, name)
        for name in ("commits", "items", "events", "hops", "syncs", "reads")
    ]
    assert counted == [2, 128, 192, 2, 2, 0]
    assert len(after.commit_seconds) == 2
    await store.write([runs[0].attempt(epoch=0, is_ended=True), Script("run_1").attempt()])
    await store.write([Script("run_1").attempt()])
    assert store.statistics().syncs == after.syncs + 1, "a batch of losers writes nothing"
    await store.close()


async def test_the_wal_is_folded_in_between_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_writer, "CHECKPOINT_PAGES", 50)
    store = await open_store(tmp_path)
    run = Script()
    for _ in range(100):
        await store.write([run.append(padding=20_000)])
    wal = database(tmp_path).with_name("behestd.db-wal")
    assert wal.stat().st_size < 100 * 20_000
    await until(lambda: database(tmp_path).stat().st_size > 100 * 20_000)
    assert (await store.run(NAMESPACE, "run_1")).last_sequence == 100  # type: ignore[union-attr]
    await store.close()
    assert not wal.exists()


async def test_a_busy_loop_does_not_starve_commits(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    is_over = False

    async def keep_busy() -> None:
        while not is_over:
            sum(range(2000))
            await asyncio.sleep(0)

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(keep_busy())
        run = Script()
        for _ in range(5):
            await store.write([run.append()])
        is_over = True
    await store.close()


# --- another process in the way ---

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


@contextmanager
def foreign_writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold the write lock of a file from another process until its stdin gets a line."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


async def test_a_commit_waits_for_a_foreign_process(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    with foreign_writer(database(tmp_path)) as holder:
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, holder.kill)
        assert await store.write([Script().append()]) == [Committed(1)]
    await store.close()


async def test_a_foreign_process_that_never_lets_go_makes_the_commit_unknown(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    store._writer._connection.execute("PRAGMA busy_timeout = 50")
    with foreign_writer(database(tmp_path)), pytest.raises(CommitUnknown):
        await store.write([Script().append()])
    with pytest.raises(CommitUnknown):
        await store.write([Script().append()])
    await store.close()


# --- a full disk ---


def limit_pages(store: SqliteStore, more: int) -> None:
    """Let the file grow by so many pages only."""
    connection = store._writer._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + more}")


async def test_a_full_disk_is_definite_and_the_ballast_makes_room_for_the_ends(tmp_path: Path) -> None:
    store = await open_store(tmp_path, ballast_bytes=1 << 20)
    ballast = tmp_path / "data" / "ballast"
    assert ballast.stat().st_blocks * 512 >= 1 << 20
    run = Script()
    await store.write([run.append()])
    limit_pages(store, 10)
    big, small = Script("big"), Script("small")
    assert await store.write([small.attempt(), big.attempt(padding=200_000)]) == [Full(), Full()]
    assert store.is_degraded
    assert await store.run(NAMESPACE, "small") is None
    assert await store.positions() == (1, 1)
    assert await store.write([run.append(is_ended=True)]) == [Committed(2)]
    assert await store.check() == []
    limit_pages(store, 1 << 20)
    await until(lambda: not store.is_degraded)
    assert ballast.stat().st_blocks * 512 >= 1 << 20
    assert await store.write([small.append(), big.append(padding=200_000)]) == [Committed(3), Committed(4)]
    await store.close()


FILL = """
import asyncio, os, sys
from pathlib import Path
from behestd.log.sqlite import SqliteStore
from behestd.log.store import Committed, Full
from tests.log.items import Script

async def main(data):
    store = await SqliteStore.open(data, ballast_bytes=1 << 20)
    live = Script("live")
    outcomes = await store.write([live.append()])
    for number in range(10_000):
        outcomes = await store.write([Script(f"run_{number}").append(padding=20_000)])
        if outcomes == [Full()]:
            break
    assert outcomes == [Full()], outcomes
    assert store.is_degraded
    assert (data / "ballast").stat().st_size == 0
    assert await store.write([live.append(is_ended=True)]) == [Committed(number + 2)]
    assert await store.check() == []
    await store.close()
    again = await SqliteStore.open(data, ballast_bytes=1 << 20)
    assert again.is_degraded
    assert (await again.run("default", "live")).is_ended
    assert len(await again.unended(20_000)) == number
    await again.close()
    print("ended", number)

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_really_full_file_system_lets_a_run_end_and_loses_nothing(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=6m tmpfs "$1" && shift && exec "$@"', "sh"]
    if subprocess.run([*mounted, str(place), "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs in a namespace of our own is not permitted here")
    command = [*mounted, str(place), sys.executable, "-c", FILL, str(place / "data")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ended")


# --- unknown commits ---


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Make writes past a size fail with EFBIG, which SQLite takes for an I/O error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


async def test_an_unknown_commit_poisons_the_store_and_the_next_start_reads_the_truth(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    run = Script()
    assert await store.write([run.append()]) == [Committed(1)]
    wal = database(tmp_path).with_name("behestd.db-wal")
    with file_size_limit(wal.stat().st_size + 10_000):
        with pytest.raises(CommitUnknown):
            await store.write([run.attempt(padding=100_000)])
    with pytest.raises(CommitUnknown):
        await store.write([run.attempt()])
    with pytest.raises(CommitUnknown):
        await store.run(NAMESPACE, "run_1")
    size = wal.stat().st_size
    await store.close()
    assert wal.stat().st_size == size, "nothing was checkpointed on the way out"
    again = await open_store(tmp_path)
    assert not again.was_set_back
    assert (await again.run(NAMESPACE, "run_1")).last_sequence == 1  # type: ignore[union-attr]
    assert await again.write([run.append()]) == [Committed(2)]
    await again.close()


# --- damage ---


async def damaged(tmp_path: Path, statement: str) -> None:
    """Leave a store with one live and one ended run behind and change it by hand."""
    store = await open_store(tmp_path)
    for run, is_ended in ((Script("live"), False), (Script("ended"), True)):
        await store.write([run.append(3), run.append(2, epoch=2), run.append(is_ended=is_ended)])
    await store.close()
    assert fsck.check(tmp_path / "data").problems == ()
    with closing(sqlite3.connect(database(tmp_path), isolation_level=None)) as connection:
        connection.execute(statement)


LIVE = "run = (SELECT key FROM runs WHERE run_id = 'live')"


@pytest.mark.parametrize(
    ("statement", "sequence"),
    [
        (f"DELETE FROM chunks WHERE {LIVE} AND first_sequence = 4", "6"),
        (f"DELETE FROM chunks WHERE {LIVE} AND first_sequence = 6", "5"),
        (f"UPDATE chunks SET data = CAST(replace(data, 'live-2', 'live-9') AS BLOB) WHERE {LIVE}", "3"),
        (f"UPDATE chunks SET data = CAST(replace(data, 'live-6', 'live-9') AS BLOB) WHERE {LIVE}", "6"),
        (f"UPDATE chunks SET data = x'0a05ffffffffff' WHERE {LIVE} AND first_sequence = 6", "6"),
        (f"UPDATE chunks SET data = x'0a80808080' WHERE {LIVE} AND first_sequence = 6", "6"),
        (f"UPDATE chunks SET data = substr(data, 1, length(data) - 1) WHERE {LIVE} AND first_sequence = 6", "6"),
        (f"UPDATE chunks SET last_sequence = 7 WHERE {LIVE} AND first_sequence = 6", "6"),
        ("UPDATE runs SET epoch = 1 WHERE run_id = 'live'", "6"),
        ("UPDATE runs SET last_sequence = 5 WHERE run_id = 'live'", "6"),
        ("UPDATE runs SET first_sequence = 9 WHERE run_id = 'live'", "6"),
    ],
)
async def test_a_damaged_log_of_a_live_run_stops_the_start(tmp_path: Path, statement: str, sequence: str) -> None:
    await damaged(tmp_path, statement)
    with pytest.raises(errors.LogCorrupt) as refused:
        await open_store(tmp_path)
    assert (refused.value.metadata["runId"], refused.value.metadata["sequence"]) == ("live", sequence)
    assert len(fsck.check(tmp_path / "data").problems) >= 1


async def test_a_damaged_log_of_an_ended_run_is_found_by_fsck_and_stops_nobody(tmp_path: Path) -> None:
    await damaged(tmp_path, f"UPDATE chunks SET data = x'' WHERE NOT {LIVE}")
    store = await open_store(tmp_path)
    assert len(await store.check()) == 1
    await store.close()
    report = fsck.check(tmp_path / "data")
    assert (report.runs, report.events, report.generation, len(report.problems)) == (2, 12, 2, 1)


async def bytes_read(tmp_path: Path, every_page_bytes: int) -> int:
    """Check a store as at the start, by a connection of its own, and count the bytes that this takes from the file."""
    place = Path("/proc/thread-self/io")
    with closing(sqlite3.connect(database(tmp_path), isolation_level=None)) as connection:
        before = int(place.read_text().split()[1])
        sqlite_schema.verify(connection, every_page_bytes)
        return int(place.read_text().split()[1]) - before


async def test_the_start_reads_every_page_of_a_small_store_and_of_a_large_one_what_lives(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    for number in range(20):
        await store.write([Script(f"run_{number}").append(padding=200_000, is_ended=True)])
    await store.write([Script("live").append(padding=100)])
    await store.close()
    size = database(tmp_path).stat().st_size
    assert size > 20 * 200_000
    assert await bytes_read(tmp_path, size) >= size * 0.9
    assert await bytes_read(tmp_path, size - 1) < size * 0.1


async def test_a_large_store_starts_over_a_page_that_nothing_live_is_on_and_fsck_finds_it(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await store.write([Script("ended").append(padding=200_000, is_ended=True), Script("live").append()])
    await store.close()
    content = database(tmp_path).read_bytes()
    place = content.index(b"x" * 4092) // 4096 * 4096
    database(tmp_path).write_bytes(content[:place] + b"\xff" * 4096 + content[place + 4096 :])
    with closing(sqlite3.connect(database(tmp_path), isolation_level=None)) as connection:
        sqlite_schema.verify(connection, every_page_bytes=0)
        with pytest.raises(errors.Corrupt):
            sqlite_schema.verify(connection)
    assert fsck.check(tmp_path / "data").problems != ()


@pytest.mark.parametrize("offset", [0, 18, 100, 4096 + 3, 3 * 4096, 9 * 4096 + 5])
async def test_flipped_pages_are_refused_at_the_start(tmp_path: Path, offset: int) -> None:
    store = await open_store(tmp_path)
    for number in range(50):
        await store.write([Script(f"run_{number}").append(padding=500)])
    await store.close()
    content = bytearray(database(tmp_path).read_bytes())
    content[offset : offset + 64] = bytes(byte ^ 0xFF for byte in content[offset : offset + 64])
    database(tmp_path).write_bytes(content)
    with pytest.raises(errors.Corrupt):
        await open_store(tmp_path)
    assert fsck.check(tmp_path / "data").problems != ()
    assert database(tmp_path).read_bytes() == bytes(content), "nothing is repaired"


async def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    database(tmp_path).write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreCorrupt):
        await open_store(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsck.check(tmp_path)
