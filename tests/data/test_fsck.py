"""fsck finds each kind of damage, and makes anew what the logs can give."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio

from behest.v1.run_service_pb2 import DeleteRunRequest
from behestd.log import fsck
from behestd.log.directory import StoreInUse
from behestd.log.sqlite_schema import FILE_NAME
from tests import daemons
from tests.data.scenes import Canaries, execute, fill, flip, put_agents, with_tools

Damage = Callable[[Path], object]
LAST = "SELECT max(row) FROM usage WHERE run_id = 'run-boss'"
OF_DONE = "kind = 'message' AND run_id = 'run-done'"
SKETCH = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name"
VIEWS: dict[str, tuple[Damage, str]] = {
    "state": (lambda data: execute(data, "UPDATE runs SET state = 6 WHERE run_id = 'run-done'"), "row says state 6"),
    "body": (lambda data: flip(data, "runs", "body"), "report is not what its log"),
    "index": (
        lambda data: execute(data, "UPDATE runs SET session_index = 9 WHERE first_sequence = 1"),
        "row says session_index 9",
    ),
    "end": (
        lambda data: execute(data, "UPDATE runs SET end_time_ns = 1 WHERE first_sequence = 1"),
        "row says end_time_ns 1",
    ),
    "gate": (
        lambda data: execute(data, "UPDATE runs SET is_active = 1 WHERE first_sequence = 1"),
        "row says is_active True",
    ),
    "pinned": (lambda data: execute(data, "UPDATE runs SET definition = x'00'"), "names another definition"),
    "message": (lambda data: flip(data, "entries", "body", OF_DONE), "body is damaged"),
    "call": (lambda data: execute(data, "UPDATE entries SET position = 1 WHERE kind = 'call'"), "is not what its log"),
    "lost": (lambda data: execute(data, "DELETE FROM entries WHERE kind = 'approval'"), "is missing"),
    "extra": (
        lambda data: execute(
            data, f"UPDATE entries SET id = 'msg_other' WHERE row = (SELECT min(row) FROM entries WHERE {OF_DONE})"
        ),
        "message msg_other is not in its log",
    ),
    "figure": (lambda data: execute(data, "UPDATE usage SET input_tokens = 1 WHERE input_tokens = 30"), "of usage"),
    "uncounted": (lambda data: execute(data, f"DELETE FROM usage WHERE row = ({LAST})"), "of usage"),
    "request": (lambda data: flip(data, "requests_shown", "digest"), "another digest"),
    "session": (
        lambda data: execute(data, "DELETE FROM records WHERE kind = 'session' AND id = 'ses-full'"),
        "session ses-full of default is gone",
    ),
}
"""Damage that the logs make good."""
LOST: dict[str, tuple[Damage, str]] = {
    "log": (lambda data: flip(data, "chunks", "data"), "sequence "),
    "cut log": (lambda data: execute(data, "DELETE FROM chunks WHERE position = 3"), "sequence "),
    "row's hash": (lambda data: execute(data, "UPDATE runs SET last_hash = x'00'"), "log ends otherwise"),
    "definition": (lambda data: flip(data, "definitions", "body"), "body is damaged"),
    "no definition": (lambda data: execute(data, "DELETE FROM definitions"), "is gone"),
    "record": (lambda data: flip(data, "records", "body", "kind = 'session_data'"), "body is damaged"),
    "kept message": (lambda data: flip(data, "entries", "body", "run_id = 'run-bad'"), "body is damaged"),
    "content": (lambda data: damage_blob(data), "its content is damaged"),
    "no content": (lambda data: a_blob(data).unlink(), "its content is missing"),
    "strange usage": (lambda data: execute(data, "UPDATE usage SET run = 99 WHERE row = 1"), "belong to no run"),
}
"""Damage that is only told."""


def a_blob(data: Path) -> Path:
    return min(path for path in (data / "blobs").glob("*/??/*") if path.is_file())


def damage_blob(data: Path) -> None:
    path = a_blob(data)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with some of everything, one run of which is a tombstone."""
    data = tmp_path_factory.mktemp("sound") / "data"
    canaries = Canaries("fsck")
    catalog, operator = with_tools(canaries)
    async with daemons.serve("sqlite", data, tools=catalog, operator=operator) as served:
        await put_agents(served)
        await fill(served, canaries)
        await served.client.stubs.runs.DeleteRun(DeleteRunRequest(run_id="run-bad"))
    execute(data, "CREATE VIEW requests_shown AS SELECT 1 AS rowid, * FROM requests WHERE target = 'run-done'")
    execute(
        data,
        "CREATE TRIGGER shown INSTEAD OF UPDATE ON requests_shown BEGIN"
        " UPDATE requests SET digest = new.digest WHERE target = 'run-done'; END",
    )
    return data


@pytest.fixture
def data(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "data")


def tables(data: Path) -> dict[str, list[tuple[object, ...]]]:
    """Everything that is stored, in an order that does not depend on how it got there."""
    with closing(sqlite3.connect(data / FILE_NAME)) as connection:
        names = [name for (name,) in connection.execute(SKETCH)]
        shown: dict[str, list[tuple[object, ...]]] = {}
        for name in names:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({name})") if row[1] != "row"]
            shown[name] = sorted(connection.execute(f"SELECT {', '.join(columns)} FROM {name}").fetchall(), key=repr)
        return shown


def test_a_sound_directory_is_sound_and_a_rebuild_changes_nothing(data: Path) -> None:  # matrix row 21
    before = tables(data)
    report = fsck.check_all(data)
    assert (report.problems, report.runs, report.dangling_blobs) == ((), 5, 0)
    assert fsck.rebuild(data) == 0
    assert tables(data) == before


def test_each_damaged_view_is_found_and_rebuilt_as_it_was(data: Path) -> None:  # matrix row 21
    before = tables(data)
    for kind, (damage, told) in VIEWS.items():
        damage(data)
        problems = fsck.check_all(data).problems
        assert any(told in problem for problem in problems), (kind, problems)
        assert fsck.rebuild(data) >= 1, kind
        # A session's title is nowhere but in its record: what is made anew says no more than the logs.
        same = [name for name in before if kind != "session" or name != "records"]
        after = tables(data)
        assert {name: len(after[name]) for name in before} == {name: len(before[name]) for name in before}, kind
        # The report of a run is a message with maps, which are written in any order.
        assert all(after[name] == before[name] for name in same if name != "runs"), kind
    assert fsck.check_all(data).problems == ()


@pytest.mark.parametrize("kind", sorted(LOST))
def test_damage_that_nothing_makes_good_is_told(kind: str, data: Path) -> None:  # matrix row 21
    damage, told = LOST[kind]
    damage(data)
    fsck.rebuild(data)
    problems = fsck.check_all(data).problems
    assert any(told in problem for problem in problems), problems


def test_content_that_nothing_names_is_counted_and_no_problem(data: Path) -> None:
    stray = a_blob(data).parent / ("ab" * 32)
    stray.write_bytes(b"stray")
    report = fsck.check_all(data)
    assert (report.problems, report.dangling_blobs) == ((), 1)


async def test_views_are_not_rebuilt_under_a_daemon_but_checked(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with daemons.serve("sqlite", data) as served:
        await (await served.client.run("/say hi")).result()
        assert fsck.check_all(data).problems == ()
        with pytest.raises(StoreInUse):
            fsck.rebuild(data)
