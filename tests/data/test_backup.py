"""Backups of a daemon that works, and data directories made from them."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from behest.errors import BehestError
from behest.v1.run_state_pb2 import RunState
from behestd.log import backup as copies
from behestd.log import fsck
from behestd.log.sqlite_schema import FILE_NAME
from tests import daemons
from tests.daemons import refused
from tests.data.scenes import Canaries, execute, fill, put_agents, with_tools
from tests.runs.scenes import events_of


async def backed_up(data: Path, place: Path, **env: str) -> tuple[int, str]:
    """Run `behestd backup` as an operator does; gives its exit code and what it said."""
    command = [sys.executable, "-m", "behestd", "backup", str(place), "--data-dir", str(data)]
    process = await asyncio.create_subprocess_exec(
        *command, env=env or None, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, said.decode()


async def test_a_backup_under_load_restored_has_every_run_that_was_acknowledged_before_it(tmp_path: Path) -> None:
    data, place, again = tmp_path / "data", tmp_path / "backup", tmp_path / "again"
    canaries = Canaries("backup")
    catalog, operator = with_tools(canaries)
    stop = asyncio.Event()
    made: list[str] = []
    async with daemons.serve("sqlite", data, tools=catalog, operator=operator) as served:
        await put_agents(served)
        await fill(served, canaries)

        async def load(name: str) -> None:
            while not stop.is_set():
                run = await served.client.run("/say hi", run_id=f"{name}-{len(made)}")
                made.append(run.run_id)
                artifact = await served.client.artifacts.upload(run.run_id.encode() * 100, name="x")
                if len(made) % 3 == 0:
                    await served.client.artifacts.delete(artifact.id)

        async with asyncio.TaskGroup() as tasks:
            for name in ("a", "b", "c", "d"):
                tasks.create_task(load(name))
            while len(made) < 20:
                await asyncio.sleep(0.01)
            before = list(made)
            code, said = await backed_up(data, place)
            stop.set()
        assert code == 0, said
        shown = {run_id: (await events_of(served.client.watch(run_id)))[:3] for run_id in before}
        last = (await events_of(served.client.watch(made[-1])))[-1].sequence

    manifest = copies.verify(place)
    assert manifest.runs >= len(before)
    copies.restore(place, again)
    assert fsck.check_all(again).problems == ()
    assert fsck.check_all(again).generation > manifest.generation + 1
    async with daemons.serve("sqlite", again, tools=catalog, operator=operator) as served:
        for run_id, events in shown.items():
            assert (await events_of(served.client.watch(run_id)))[:3] == events
            assert (await served.client.runs.get(run_id)).state == RunState.RUN_STATE_COMPLETED
        stored = [artifact async for artifact in served.client.artifacts.list()]
        assert stored
        for artifact in stored:
            assert await served.client.artifacts.read(artifact.id)
        # What came after the backup is gone, which whoever saw it is told.
        with suppress(BehestError):
            await served.client.runs.get(made[-1])
            pytest.fail("the last run was in the backup")
        error = await refused(anext(served.client.watch(before[0], after=last + 50).events()))
        assert error.reason == "WATCH_AHEAD"


async def test_a_backup_goes_to_a_new_place_only_and_a_restore_too(tmp_path: Path) -> None:
    data, place = tmp_path / "data", tmp_path / "backup"
    async with daemons.serve("sqlite", data) as served:
        await (await served.client.run("/say hi")).result()
        copies.backup(data, place)
        with pytest.raises(copies.PlaceTaken):
            copies.backup(data, place)
    with pytest.raises(copies.PlaceTaken):
        copies.restore(place, data)
    with pytest.raises(FileNotFoundError):
        copies.backup(tmp_path / "nothing", tmp_path / "other")
    assert {path.stat().st_mode & 0o077 for path in place.rglob("*")} == {0}, "nobody else reads it"  # S20


async def test_a_backup_that_is_damaged_or_not_whole_is_refused(tmp_path: Path) -> None:
    data, place = tmp_path / "data", tmp_path / "backup"
    async with daemons.serve("sqlite", data) as served:
        await served.client.artifacts.upload(b"content" * 1000, name="x")
        await (await served.client.run("/say hi")).result()
    copies.backup(data, place)

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    manifest = place / copies.MANIFEST_NAME
    blob = next(path for path in (place / "blobs").glob("*/??/*"))
    for path in (place / FILE_NAME, blob, manifest):
        bad = tmp_path / "bad"
        shutil.copytree(place, bad)
        damage(bad / path.relative_to(place))
        with pytest.raises(copies.BackupInvalid):
            copies.restore(bad, tmp_path / "new")
        shutil.rmtree(bad)
    for path in (place / FILE_NAME, blob, manifest):
        bad = tmp_path / "bad"
        shutil.copytree(place, bad)
        (bad / path.relative_to(place)).unlink()
        with pytest.raises(copies.BackupInvalid):
            copies.restore(bad, tmp_path / "new")
        shutil.rmtree(bad)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(copies.BackupInvalid, match="format 2"):
        copies.restore(place, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "point", ["backup.before_manifest", pytest.param("backup.after_store", marks=pytest.mark.proof)]
)
async def test_a_backup_that_was_killed_is_none_and_the_next_one_is(point: str, tmp_path: Path) -> None:
    data, place = tmp_path / "data", tmp_path / "backup"
    async with daemons.serve("sqlite", data) as served:
        await (await served.client.run("/say hi", run_id="kept")).result()
        code, said = await backed_up(data, place, BEHEST_FP=f"{point}=kill")
        assert (code, f"failpoint {point}" in said) == (-signal.SIGKILL, True)
        assert not place.exists()
        (left,) = tmp_path.glob(".backup.partial")
        with pytest.raises(copies.BackupInvalid):
            copies.restore(left, tmp_path / "new")
        code, said = await backed_up(data, place)
        assert code == 0, said
    copies.restore(place, tmp_path / "new")
    assert execute(tmp_path / "new", "SELECT run_id FROM runs") == [("kept",)]


async def test_a_damaged_store_is_not_backed_up(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with daemons.serve("sqlite", data) as served:
        await (await served.client.run("/say hi", run_id="kept")).result()
    execute(data, "UPDATE runs SET state = 6")
    code, said = await backed_up(data, tmp_path / "backup")
    assert (code, "row says state 6" in said) == (65, True), said
    assert not (tmp_path / "backup").exists()
