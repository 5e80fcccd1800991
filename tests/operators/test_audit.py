"""The audit log on the whole daemon: a row for each call that changes something, and nothing of what was said."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from behestd.cli.audit import audit as command
from behestd.cli.purge import purge
from behestd.errors import StorageFull
from behestd.log import audit
from behestd.log.audit import Broken, Row
from behestd.log.audit_writer import AuditLog
from behestd.service import methods
from behestd.service.audit import Trail
from behestd.service.call import Call
from behestd.service.scopes import ADMIN, RULES, Audit, Caller
from tests import daemons
from tests.operators.scenes import ECHO
from tests.runs.scenes import OPEN, PURE, finished, tools
from tests.service import edges

AUDITED = sorted(name for name, rule in RULES.items() if rule.audit is not Audit.NONE)
READ_AND_RECORDED = {"/behest.v1.SessionService/ExportSession"}
"""It changes nothing, and takes everything out."""
CANARY = "canary-8f1d"


def rows(data_dir: Path, method: str = "") -> list[dict[str, Any]]:
    """The rows of a data directory that name a method, oldest first."""
    found = [body for body, problem in audit.rows(data_dir / audit.DIRECTORY) if not problem]
    return [body for body in found if method in body["method"]]


def test_every_method_that_changes_something_is_recorded() -> None:  # C146
    for name, rule in RULES.items():
        if not name.startswith("/behest."):
            continue
        changes = methods.describe(name).GetOptions().idempotency_level != 1
        assert (rule.audit is not Audit.NONE) == (changes or name in READ_AND_RECORDED), name


def test_what_operators_and_approvers_do_is_on_the_disk_before_it_is_answered() -> None:  # C146, S15
    for name, rule in RULES.items():
        if rule.scope in (ADMIN, "runs:approve") and rule.audit is not Audit.NONE:
            assert rule.audit is Audit.DURABLE, name


async def call_with_nothing(channel: grpc.aio.Channel, name: str) -> str:
    """Call a method with an empty request, and give the code of what came of it."""
    descriptor = methods.describe(name)
    kind = f"{'stream' if descriptor.client_streaming else 'unary'}_"
    kind += "stream" if descriptor.server_streaming else "unary"
    request: Any = iter([b""]) if descriptor.client_streaming else b""
    call = getattr(channel, kind)(name)(request, timeout=20)
    try:
        await (edges.drain(call) if descriptor.server_streaming else call)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_each_call_that_changes_something_has_its_row(tmp_path: Path) -> None:  # C146
    data_dir, drain = tmp_path / "data", "/behest.v1.DaemonService/Drain"
    outcomes: dict[str, str] = {}
    async with daemons.serve("sqlite", data_dir) as served:
        for name in [*(name for name in AUDITED if name != drain), drain]:
            outcomes[name] = await call_with_nothing(served.channel, name)
    for name, code in outcomes.items():
        found = [row for row in rows(data_dir) if row["method"] == name.rpartition(".")[2] and row["code"] != "BEGUN"]
        assert [(row["principal"], row["namespace"]) for row in found] == [("local", "default")], name
        assert found[0]["code"] == code, name
        assert (found[0]["reason"] == "") == (code == "OK"), name
        assert found[0]["peer"].startswith("ipv4:127.0.0.1:")
    assert {"OK", "INVALID_ARGUMENT"} <= set(outcomes.values())
    assert audit.verify(data_dir / audit.DIRECTORY) == len(rows(data_dir))


async def test_a_row_names_things_and_holds_nothing_of_what_was_said(tmp_path: Path) -> None:  # C146
    def look(what: str) -> str:
        return what

    data_dir = tmp_path / "data"
    async with daemons.serve("sqlite", data_dir, tools=tools((look, PURE)), operator=OPEN) as served:
        said = f'/tool look {{"what": "{CANARY}"}} /next /say {CANARY}'
        run = await served.client.run(said)
        await finished(served.client, run.run_id)
        await served.client.tools.call("look", json.dumps({"what": CANARY}))
        await served.client.daemon.pause(ECHO, "because")
        await served.client.runs.delete(run.run_id)
    assert all(CANARY not in path.read_text() for path in audit.files(data_dir / audit.DIRECTORY))
    (started,) = rows(data_dir, "StreamRun") + rows(data_dir, "RunService/CreateRun")
    assert run.run_id in started["targets"].values()
    (deleted,) = rows(data_dir, "DeleteRun")
    assert deleted["targets"]["run_id"] == run.run_id
    (called,) = rows(data_dir, "CallTool")
    assert called["targets"]["tool_name"] == "look"
    (paused,) = rows(data_dir, "SetPaused")
    assert paused["targets"] == {"model": "scripted/echo", "paused": "true", "why": "because"}
    assert (paused["principal"], paused["code"]) == ("local", "OK")


async def test_who_lacks_the_scope_is_refused_and_recorded(tmp_path: Path) -> None:  # C146, S15
    async def answer(request: Any, call: Call) -> bytes:
        raise AssertionError("nobody gets here")

    def runner(context: Any) -> Caller:
        return Caller("ann", "team", frozenset({"runs:create", "runs:read", "runs:cancel"}), "token:abc")

    admin = [name for name in AUDITED if RULES[name].scope == ADMIN]
    log = AuditLog(None, lambda: 0)
    async with edges.serving(dict.fromkeys(admin, answer), authenticate=runner, trail=Trail(log)) as edge:
        async with edges.connect(edge) as channel:
            for name in admin:
                assert await call_with_nothing(channel, name) == "PERMISSION_DENIED"
    assert admin
    assert [f"/behest.v1.{row.method}" for row in log.remembered] == admin
    for row in log.remembered:
        assert (row.principal, row.credential, row.namespace) == ("ann", "token:abc", "team")
        assert (row.code, row.reason) == ("PERMISSION_DENIED", "AUTH_SCOPE_MISSING")


async def written(directory: Path, count: int = 5, **settings: Any) -> None:
    """Write rows, as a daemon does between its start and its end."""
    log = AuditLog(directory, lambda: 1_700_000_000_000_000_000, **settings)
    await log.open()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(log.run())
        for number in range(count):
            await log.keep(Row(0, f"Service/Method{number}", principal="ann"))
        log.close()


async def test_the_log_is_private_and_goes_on_over_starts_and_files(tmp_path: Path) -> None:  # C146, S20
    await written(tmp_path, rotate_bytes=700)
    await written(tmp_path, rotate_bytes=700)
    directory = tmp_path / audit.DIRECTORY
    assert len(audit.files(directory)) > 2
    assert audit.verify(directory) == 12  # each start has a row of its own
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    audit.files(directory)[0].unlink()  # put away
    assert 0 < audit.verify(directory) < 12


@pytest.mark.parametrize("harm", ["changed", "swapped", "taken out", "cut", "emptied", "last changed", "inserted"])
async def test_a_log_that_is_not_what_was_written_is_found(tmp_path: Path, harm: str) -> None:  # C146
    await written(tmp_path)
    directory = tmp_path / audit.DIRECTORY
    (path,) = audit.files(directory)
    lines = path.read_bytes().splitlines(keepends=True)
    match harm:
        case "changed":
            lines[2] = lines[2].replace(b'"ann"', b'"bob"')
        case "last changed":
            lines[-1] = lines[-1].replace(b'"ann"', b'"bob"')
        case "swapped":
            lines[1], lines[2] = lines[2], lines[1]
        case "taken out":
            del lines[3]
        case "cut":
            del lines[-1]
        case "emptied":
            lines = []
        case "inserted":
            lines.insert(2, lines[2])
    path.write_bytes(b"".join(lines))
    with pytest.raises(Broken):
        audit.verify(directory)
    told = CliRunner().invoke(command, ["--verify", "--data-dir", str(tmp_path)])
    assert told.exit_code == 65
    await written(tmp_path)  # the log goes on, and what is wrong with it stays to be seen
    with pytest.raises(Broken):
        audit.verify(directory)


async def test_a_line_that_was_not_written_whole_is_taken_off(tmp_path: Path) -> None:  # C146
    await written(tmp_path)
    (path,) = audit.files(tmp_path / audit.DIRECTORY)
    with path.open("ab") as file:
        file.write(b'{"sequence": 7, "pre')
    await written(tmp_path, 1)
    assert audit.verify(tmp_path / audit.DIRECTORY) == 8


async def test_rows_that_cannot_be_written_are_held_and_operators_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # C146
    is_full, write = True, os.write

    def full(descriptor: int, data: Any) -> int:
        if is_full and audit.DIRECTORY in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "no space")
        return write(descriptor, data)

    log = AuditLog(tmp_path, lambda: 0)
    await log.open()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(log.run())
        await log.keep(Row(0, "Service/Before"))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StorageFull):
            await log.keep(Row(0, "Service/Held"))
        with pytest.raises(StorageFull):
            log.check()
        with pytest.raises(StorageFull):
            await log.probe()
        is_full = False
        log.note(Row(0, "Service/After"))
        await log.keep(Row(0, "Service/Last"))
        log.check()
        log.close()
    assert [row["method"] for row in rows(tmp_path, "Service")] == [
        "Service/Before",
        "Service/Held",
        "Service/After",
        "Service/Last",
    ]
    assert audit.verify(tmp_path / audit.DIRECTORY) == 5


async def test_operators_are_refused_while_nothing_can_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with daemons.serve("sqlite", tmp_path / "data") as served:
        write = os.write

        def full(descriptor: int, data: Any) -> int:
            if audit.DIRECTORY in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.ENOSPC, "no space")
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", full)
        assert (await daemons.refused(served.client.daemon.pause(ECHO, "one"))).reason == "STORAGE_FULL"
        before = list((await served.client.daemon.status()).pauses)
        assert (await daemons.refused(served.client.daemon.unpause(ECHO))).reason == "STORAGE_FULL"
        assert list((await served.client.daemon.status()).pauses) == before  # refused before anything was done
        run = await served.client.run("hello")  # runs go on: their own logs say who ordered them
        monkeypatch.setattr(os, "write", write)
        await served.client.runs.cancel(run.run_id)


async def test_the_command_filters_and_prints_both_forms(tmp_path: Path) -> None:  # C146
    await written(tmp_path)
    base = ["--data-dir", str(tmp_path)]
    told = CliRunner().invoke(command, [*base, "--method", "Method3", "--principal", "ann"])
    assert (told.exit_code, len(told.stdout.splitlines())) == (0, 1)
    assert "Service/Method3 OK ann@" in told.stdout
    told = CliRunner().invoke(command, [*base, "--output", "json"])
    assert [json.loads(line)["sequence"] for line in told.stdout.splitlines()] == list(range(1, 7))
    assert CliRunner().invoke(command, [*base, "--since", "2100-01-01T00:00:00Z"]).stdout == ""
    assert CliRunner().invoke(command, [*base, "--since", "yesterday"]).exit_code == 2
    told = CliRunner().invoke(command, [*base, "--verify"])
    assert (told.exit_code, told.stdout) == (0, "sound: 6 rows\n")
    assert CliRunner().invoke(command, ["--data-dir", str(tmp_path / "none")]).exit_code == 78


async def test_a_purge_beside_a_stopped_daemon_is_recorded(tmp_path: Path) -> None:  # C146, S15
    data_dir = tmp_path / "data"
    async with daemons.serve("sqlite", data_dir) as served:
        run = await served.client.run("hello")
        await finished(served.client, run.run_id)
        session_id = (await served.client.runs.get(run.run_id)).session_id
    told = await asyncio.to_thread(CliRunner().invoke, purge, ["--data-dir", str(data_dir), "--session", session_id])
    assert told.exit_code == 0, told.output
    (row,) = rows(data_dir, "behestd:purge")
    assert row["principal"].startswith("os:")
    assert row["targets"]["sessions"] == session_id
    assert audit.verify(data_dir / audit.DIRECTORY) == len(rows(data_dir))
