"""A process that is killed in the middle of deleting or importing: the next one finds nothing half done."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import pytest

from behest.client import Client
from behest.v1.session_service_pb2 import ImportSessionRequest, ListSessionsRequest
from behestd.errors import RunActive, SessionBusy
from behestd.log import fsck
from behestd.log import purge as purging
from behestd.log.directory import StoreInUse
from tests import daemons
from tests.daemon_process import DaemonProcess, running
from tests.data.scenes import Canaries, execute, fill, found, put_agents, with_tools
from tests.runs.scenes import events_of

LONG = partial(pytest.param, marks=pytest.mark.proof)
KEEPS_NOTHING = "[limits]\nclean_seconds = 0.2\n[retention]\nrun_seconds = 0.0\n"
EVERY = ListSessionsRequest(include_hidden=True, include_archived=True)


async def died(daemon: DaemonProcess, point: str) -> None:
    """Wait until it was killed where it should be."""
    async with asyncio.timeout(60):
        assert await daemon.ended() == -signal.SIGKILL
    assert f"failpoint {point}" in daemon.log


async def test_retention_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with daemons.serve("sqlite", home / "data") as served:
        for number in range(6):
            await (await served.client.run(f"/say word-{number}", run_id=f"run-{number}")).result()
    point = "retention.before_delete"
    daemon = DaemonProcess(home, config=KEEPS_NOTHING, env={"BEHEST_FP": f"{point}=kill,after:3"})
    with suppress(RuntimeError):
        await daemon.start()
    await died(daemon, point)
    assert execute(home / "data", "SELECT count(*) FROM runs WHERE first_sequence = 1") == [(3,)]
    assert fsck.check_all(home / "data").problems == ()
    async with running(home, config=KEEPS_NOTHING) as again, Client(again.address) as client:
        async with asyncio.timeout(30):
            while [run.id async for run in client.runs.list()]:
                await asyncio.sleep(0.05)
        sessions = [session.id async for session in client.sessions.list()]
        said = [[message async for message in client.sessions.messages(each)] for each in sessions]
        assert [len(messages) for messages in said] == [2] * 6
    assert fsck.check_all(home / "data").problems == ()


@pytest.mark.parametrize("point", ["import.before_finish", LONG("import.after_session"), LONG("import.after_run")])
async def test_nothing_is_left_of_an_import_that_was_killed(point: str, tmp_path: Path) -> None:  # C110
    canaries = Canaries("import")
    catalog, operator = with_tools(canaries)
    async with daemons.serve(tools=catalog, operator=operator) as served:
        await put_agents(served)
        await fill(served, canaries)
        file = b"".join([chunk async for chunk in served.client.sessions.export("ses-full")])
    home = tmp_path / "home"
    daemon = DaemonProcess(home, env={"BEHEST_FP": f"{point}=kill"})
    await daemon.start()
    async with Client(daemon.address) as client:
        pieces = [ImportSessionRequest(request_id="once")]
        pieces += [ImportSessionRequest(chunk=file[at : at + 65536]) for at in range(0, len(file), 65536)]
        with pytest.raises(grpc.aio.AioRpcError):
            await client.stubs.sessions.ImportSession(iter(pieces))
    await died(daemon, point)
    assert execute(home / "data", "SELECT count(*) FROM records WHERE kind = 'import'") != [(0,)]
    async with running(home) as again, Client(again.address) as client:
        assert [session.id async for session in client.sessions.list(EVERY)] == []
        assert [run.id async for run in client.runs.list()] == []
        await client.sessions.load(file, request_id="once")
        assert b"".join([chunk async for chunk in client.sessions.export("ses-full")]) == file
        await client.sessions.delete("ses-full")
    assert fsck.check_all(home / "data").problems == ()
    assert found(home / "data", canaries.planted) == {}


async def purge(data: Path, *arguments: str, **env: str) -> tuple[int, str]:
    """Run `behestd purge` as an operator does; gives its exit code and what it said."""
    command = [sys.executable, "-m", "behestd", "purge", "--data-dir", str(data), *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, env=env or None, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, said.decode()


@pytest.mark.parametrize("point", ["purge.before_rename", LONG("purge.after_deletion")])
async def test_a_purge_that_was_killed_is_finished_by_the_next(point: str, tmp_path: Path) -> None:  # S22
    data = tmp_path / "data"
    gone, kept = Canaries("gone"), Canaries("kept")
    catalog, operator = with_tools(kept)
    async with daemons.serve("sqlite", data, tools=catalog, operator=operator) as served:
        await put_agents(served)
        await fill(served, kept, session_id="ses-kept", prefix="kept")
        await fill(served, gone)
        with pytest.raises(StoreInUse):
            await purging.purge(data, "default", ("ses-full",), ())
    code, said = await purge(data, "--session", "ses-full", BEHEST_FP=f"{point}=kill")
    assert (code, f"failpoint {point}" in said) == (-signal.SIGKILL, True), said
    assert fsck.check_all(data).problems == ()
    assert (await purging.purge(data, "default", ("ses-full",), ())).sessions == 0
    assert found(data, gone.planted) == {}
    assert {canary for hits in found(data, kept.planted).values() for canary in hits} == set(kept.planted)
    assert fsck.check_all(data).problems == ()
    async with daemons.serve("sqlite", data) as served:
        assert [session.id async for session in served.client.sessions.list()] == ["ses-kept"]
        assert await events_of(served.client.watch("kept-done"))
        await served.client.run("/stall", session_id="ses-kept", run_id="working")
    with pytest.raises(RunActive):
        await purging.purge(data, "default", (), ("working",))
    with pytest.raises(SessionBusy):
        await purging.purge(data, "default", ("ses-kept",), ())
    assert {path.stat().st_mode & 0o077 for path in data.rglob("*")} == {0}  # S20
