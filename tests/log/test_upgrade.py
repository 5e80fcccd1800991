"""Files of earlier and later versions: the one is brought up to date when a daemon starts on it, the other refused.

`fixtures/format-1.db.gz` was written by a daemon of the first format: a session with two runs that ended, a run whose
log was deleted, one that was let go in the middle of its answer, an agent, and two entries of scratch data.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from behest.v1.run_service_pb2 import ListRunsRequest
from behest.v1.run_state_pb2 import RunState
from behest.v1.session_data_service_pb2 import GetSessionDataRequest
from behestd.core.times import SECOND
from behestd.log import fsck
from behestd.log.sqlite_schema import FILE_NAME, MIGRATIONS, migrate
from behestd.runtime.clock import SystemClock
from tests import daemons
from tests.daemon_process import DaemonProcess
from tests.runs.scenes import PURE, events_of, kinds, tools

OLD = Path(__file__).parent / "fixtures" / "format-1.db.gz"
MADE_NS = 1_795_275_108_000_000_000
NEWER = (*MIGRATIONS, "ALTER TABLE runs ADD COLUMN mood TEXT; CREATE TABLE moods (id INTEGER PRIMARY KEY)")


class ThenClock(SystemClock):
    """A clock that begins a minute after the old file was written: the run that goes on there has a deadline."""

    def __init__(self) -> None:
        self._offset_ns = MADE_NS + 60 * SECOND - time.monotonic_ns()


def look_up(key: str) -> str:
    """Look a thing up."""
    return f"{key} is 42"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory as a daemon of the first format left it."""
    home = tmp_path / "data"
    home.mkdir(mode=0o700)
    (home / FILE_NAME).write_bytes(gzip.decompress(OLD.read_bytes()))
    return home


def version(data: Path) -> int:
    with closing(sqlite3.connect(data / FILE_NAME)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def tables(data: Path) -> set[str]:
    """The tables and indexes of a file, by what makes them."""
    with closing(sqlite3.connect(data / FILE_NAME)) as connection:
        return {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}


def chunks(data: Path) -> Sequence[tuple[bytes]]:
    with closing(sqlite3.connect(data / FILE_NAME)) as connection:
        return connection.execute("SELECT data FROM chunks WHERE last_sequence > 0 ORDER BY position").fetchall()


async def test_a_daemon_brings_an_old_file_up_to_date_and_goes_on_with_all_that_is_in_it(data: Path) -> None:  # C114
    assert version(data) == 1 < len(MIGRATIONS)
    before = chunks(data)
    async with daemons.serve("sqlite", data, clock=ThenClock(), tools=tools((look_up, PURE))) as served:
        client = served.client
        runs = {run.id: run async for run in client.runs.list(ListRunsRequest())}
        assert set(runs) == {"done", "second", "going"}
        assert runs["done"].labels == {"made": "by format 1"}
        told = await events_of(client.watch("done"))
        assert [event.sequence for event in told] == list(range(1, 13))
        assert told[-1].run_completed.output.text == "so it is 42"
        session_id = runs["done"].session_id
        stub = client.stubs.session_data
        kept = await stub.GetSessionData(GetSessionDataRequest(session_id=session_id, key="kept"))
        assert kept.entry.value_json == '{"n": 1}'
        assert (await client.agents.get("old")).tools == ["*"]
        events = await events_of(client.watch("going"))
        assert kinds(events).count("run_released") == 1
        assert kinds(events)[-1] == "run_completed", "the run that was let go goes on"
        third = await client.run("/dump", session_id=session_id)
        shown = json.loads((await third.result()).text)["messages"]
        assert len(shown) == 4 + 2 + 1, "the session goes on with what was said in it"

    assert version(data) == len(MIGRATIONS)
    assert chunks(data)[: len(before)] == before, "what was stored is not rewritten"
    assert fsck.check(data).problems == ()


async def test_an_upgraded_file_counts_what_is_used_from_then_on(data: Path) -> None:  # C114 C115
    async with daemons.serve("sqlite", data, clock=ThenClock(), tools=tools((look_up, PURE))) as served:
        await events_of(served.client.watch("going"))
        before = await served.client.usage.query()
        await (await served.client.run("/usage 30 3 /say new")).result()
        after = await served.client.usage.query()

    assert before.total.usage.attempts >= 1, "the run that was let go went on"
    assert after.total.usage.attempts == before.total.usage.attempts + 1
    assert after.total.usage.input_tokens == before.total.usage.input_tokens + 30


async def test_an_upgraded_file_knows_of_its_runs_what_a_new_one_does(data: Path) -> None:  # C114
    async with daemons.serve("sqlite", data, clock=ThenClock(), tools=tools((look_up, PURE))) as served:
        await events_of(served.client.watch("going"))
        store = served.daemon.log.store
        ended = await store.ended("default", 1 << 62, 10)
        assert [row.run_id for row in ended] == ["done", "second", "going"]
        assert all(MADE_NS - 3600 * SECOND < row.end_time_ns for row in ended)
    with closing(sqlite3.connect(data / FILE_NAME)) as connection:
        pinned = connection.execute("SELECT run_id, definition IS NOT NULL FROM runs ORDER BY run_id").fetchall()
        deleted = connection.execute("SELECT run_id FROM runs WHERE first_sequence > last_sequence").fetchall()
    assert dict(pinned) == {"done": 1, "second": 1, "going": 1} | {run_id: 0 for (run_id,) in deleted}
    assert fsck.check_all(data).problems == ()


async def test_an_upgraded_file_has_the_tables_of_a_new_one(data: Path, tmp_path: Path) -> None:  # C114
    for home in (data, tmp_path / "new"):
        async with daemons.serve("sqlite", home):
            pass

    assert tables(data) == tables(tmp_path / "new")


async def test_an_upgrade_that_is_cut_short_is_finished_by_the_next_start(data: Path) -> None:  # C114
    with closing(sqlite3.connect(data / FILE_NAME, isolation_level=None)) as connection:
        broken = (MIGRATIONS[0], MIGRATIONS[1] + "; CREATE TABLE runs (twice INTEGER)")
        with pytest.raises(sqlite3.OperationalError):
            migrate(connection, broken)
    assert version(data) == 1
    async with daemons.serve("sqlite", data, tools=tools((look_up, PURE))) as served:
        assert (await served.client.runs.get("done")).state == RunState.RUN_STATE_COMPLETED
    assert version(data) == len(MIGRATIONS)


async def test_a_daemon_refuses_a_file_of_a_later_version_clearly_and_leaves_it_alone(
    data: Path, tmp_path: Path
) -> None:  # C114
    with closing(sqlite3.connect(data / FILE_NAME, isolation_level=None)) as connection:
        migrate(connection, NEWER)
    before = (data / FILE_NAME).read_bytes()
    process = DaemonProcess(tmp_path)
    with pytest.raises(RuntimeError, match="behestd ended with 78"):
        await process.start()

    assert f"the store has format {len(NEWER)}, this version knows up to {len(MIGRATIONS)}" in process.log
    assert "use the version that wrote it" in process.log
    assert "Traceback" not in process.log
    assert (data / FILE_NAME).read_bytes() == before
    assert version(data) == len(NEWER)
