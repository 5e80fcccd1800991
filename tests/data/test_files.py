"""Sessions as files: out of one daemon, into another, byte by byte; and files that nobody should believe."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from behest.errors import BehestError
from behest.v1.event_pb2 import Event
from behest.v1.run_service_pb2 import DeleteRunRequest
from behest.v1.session_service_pb2 import ListSessionsRequest
from behestd.log import frames, fsck
from behestd.log.store import Committed
from behestd.runtime.exporting import export
from behestd.runtime.importing import Importing
from behestd.runtime.session_file import Reader
from behestd.service.session_files import CHECKS
from tests import daemons
from tests.daemons import Served, refused
from tests.data.scenes import Canaries, fill, put_agents, with_tools
from tests.runs.scenes import events_of

Row = dict[str, Any]
EVERY = ListSessionsRequest(include_hidden=True, include_archived=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def file() -> bytes:
    """The file of a session with some of everything, a tombstone and a child run."""
    canaries = Canaries("file")
    catalog, operator = with_tools(canaries)
    async with daemons.serve(tools=catalog, operator=operator) as served:
        await put_agents(served)
        await fill(served, canaries)
        await served.client.stubs.runs.DeleteRun(DeleteRunRequest(run_id="run-bad"))
        return await exported(served, "ses-full")


@pytest.fixture(params=["memory", "sqlite"])
async def empty(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    """A daemon that knows nothing yet, on each store in turn."""
    async with daemons.serve(request.param, tmp_path / "data") as served:
        yield served


async def exported(served: Served, session_id: str) -> bytes:
    return b"".join([chunk async for chunk in served.client.sessions.export(session_id)])


def rows_of(file: bytes) -> list[Row]:
    return [json.loads(line) for line in file.splitlines()]


def written(rows: Sequence[Row]) -> bytes:
    """A file of rows, with an end that fits them."""
    body = b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows if row["kind"] != "end")
    end = {"kind": "end", "lines": body.count(b"\n"), "sha256": hashlib.sha256(body).hexdigest()}
    return body + json.dumps(end, separators=(",", ":")).encode() + b"\n"


async def nothing_is_left(served: Served) -> None:
    """Nothing was recorded: no session, run, message or content."""
    await nothing_is_there(served)
    assert await served.daemon.log.store.namespaces() == []


async def nothing_is_there(served: Served) -> None:
    """Nothing is in the caller's namespace."""
    assert [session.id async for session in served.client.sessions.list(EVERY)] == []
    assert [run.id async for run in served.client.runs.list()] == []
    assert [artifact.id async for artifact in served.client.artifacts.list()] == []
    store = served.daemon.log.store
    assert await store.runs_of("default", "ses-full", 10) == []
    assert await store.entries("default", "message", session_id="ses-full") == []


async def test_a_session_comes_out_as_it_went_in_byte_by_byte(file: bytes, empty: Served) -> None:  # C110
    assert written(rows_of(file)) == file
    made = await empty.client.sessions.load(file)
    assert (made.id, made.is_hidden, made.is_archived) == ("ses-full", False, False)
    assert await exported(empty, "ses-full") == file
    assert await empty.daemon.log.store.check() == []
    # It goes on: the next run has the place behind those that came, and sees what was said.
    run = await empty.client.run("/dump", session_id="ses-full")
    said = json.loads((await run.result()).text)["messages"]
    assert len(said) > 10
    assert (await run.get()).session_index == 5
    assert (await empty.client.runs.get("run-done")).usage.input_tokens >= 30
    (data,) = [entry async for entry in empty.client.session_data.list("ses-full")]
    assert data.value_json
    usage = await empty.client.usage.query()
    assert usage.total.usage.input_tokens >= 30


async def test_an_imported_directory_is_sound_and_its_runs_can_be_watched(file: bytes, tmp_path: Path) -> None:  # C110
    data = tmp_path / "data"
    async with daemons.serve("sqlite", data) as served:
        await served.client.sessions.load(file)
        events = await events_of(served.client.watch("run-done"))
        assert events[-1].run_completed.output.text
        await served.client.sessions.delete("ses-full")
        await nothing_is_left(served)
        await served.client.sessions.load(file)
    assert fsck.check_all(data).problems == ()
    assert fsck.check_all(data).dangling_blobs == 0


async def test_an_import_is_repeatable_by_its_request_id(file: bytes, empty: Served) -> None:  # C110
    first = await empty.client.sessions.load(file, request_id="once")
    again = await empty.client.sessions.load(file, request_id="once")
    assert again == first
    other = await refused(empty.client.sessions.load(file[:-1] + b" \n", request_id="once"))
    assert other.reason == "REQUEST_ID_REUSED"
    taken = await refused(empty.client.sessions.load(file))
    assert taken.reason == "SESSION_ID_TAKEN"
    assert await exported(empty, "ses-full") == file


async def test_a_taken_run_id_undoes_the_import_and_leaves_the_run_alone(file: bytes, empty: Served) -> None:  # C110
    mine = await empty.client.run("/say mine", run_id="run-boss")
    await mine.result()
    error = await refused(empty.client.sessions.load(file))
    assert (error.reason, dict(error.metadata)) == ("RUN_ID_TAKEN", {"runId": "run-boss"})
    assert [session.id async for session in empty.client.sessions.list(EVERY)] == [(await mine.get()).session_id]
    assert (await mine.get()).output.text == "mine"
    assert (await refused(empty.client.sessions.get("ses-full"))).reason == "SESSION_NOT_FOUND"


async def test_a_session_that_works_and_that_of_a_child_are_not_exported(tmp_path: Path) -> None:
    canaries = Canaries("busy")
    catalog, operator = with_tools(canaries)
    async with daemons.serve(tools=catalog, operator=operator) as served:
        await put_agents(served)
        await fill(served, canaries)
        hidden = [session async for session in served.client.sessions.list(EVERY) if session.is_hidden]
        with pytest.raises(BehestError) as child:
            await exported(served, hidden[0].id)
        assert child.value.reason == "REQUEST_INVALID"
        with pytest.raises(BehestError) as missing:
            await exported(served, "nothing")
        assert missing.value.reason == "SESSION_NOT_FOUND"
        await served.client.run("/stall", session_id="ses-full", run_id="working")
        with pytest.raises(BehestError) as busy:
            await exported(served, "ses-full")
        assert (busy.value.reason, busy.value.metadata["activeRunId"]) == ("SESSION_BUSY", "working")


async def test_in_another_namespace_the_log_says_so_and_its_chain_holds(file: bytes, empty: Served) -> None:  # C110 S5
    house, artifacts = empty.daemon.house, empty.daemon.rooms.artifacts

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(file), 1000):
            yield file[at : at + 1000]

    incoming = Importing(house, artifacts, ("other", "local"), Reader(pieces()), CHECKS)
    assert await incoming.read() == "ses-full"
    assert isinstance(await incoming.finish(None), Committed)
    await nothing_is_there(empty)
    store = house.log.store
    (chunk, *_) = await store.chunks("other", "run-done", 0, 1)
    assert Event.FromString(frames.split(chunk.data)[0]).run_created.namespace == "other"
    assert await store.check() == []
    again = b"".join([line async for line in export(store, house.blobs, "other", "ses-full", 0)])
    before, after = rows_of(file), rows_of(again)
    assert [row["kind"] for row in before] == [row["kind"] for row in after]
    kept = {"definition", "run", "tombstone", "message", "data", "artifact", "content", "session"}
    assert [row for row in before if row["kind"] in kept] == [row for row in after if row["kind"] in kept]


async def test_many_small_lines_cost_no_more_than_their_bytes(file: bytes, empty: Served) -> None:  # S12
    rows = rows_of(file)
    at = next(index for index, row in enumerate(rows) if row["kind"] == "definition")
    many = written([*rows[:at], *[rows[at]] * 3000, *rows[at:]])
    began = time.process_time()
    await empty.client.sessions.load(many)
    assert time.process_time() - began < 20
    assert await exported(empty, "ses-full") == file


# --- files that nobody should believe ---


def decoded(row: Row) -> bytes:
    return base64.b64decode(row["data"])


def changed(file: bytes, kind: str, change: Callable[[Row], object]) -> bytes:
    """The file with a change of its first line of a kind, and an end that fits."""
    rows = rows_of(file)
    change(next(row for row in rows if row["kind"] == kind))
    return written(rows)


def without(file: bytes, kind: str) -> bytes:
    return written([row for row in rows_of(file) if row["kind"] != kind])


def other_event(change: Callable[[Event], object], at: int = 0) -> Callable[[Row], None]:
    """Change an event of a commit."""

    def apply(row: Row) -> None:
        events = [Event.FromString(raw) for raw in frames.split(decoded(row))]
        change(events[at])
        row["data"] = base64.b64encode(frames.frame(event.SerializeToString() for event in events)).decode()

    return apply


def set_number(name: str, value: object) -> Callable[[Row], None]:
    return lambda row: row.__setitem__(name, value)


BAD: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda file: b"",
    "no json": lambda file: b"hello\n" + file,
    "cut": lambda file: file[: len(file) // 2],
    "no end": lambda file: without(file, "end")[: -len(file.splitlines()[-1]) - 1],
    "more": lambda file: file + b"{}\n",
    "flipped": lambda file: file.replace(b"canary", b"canarz") if b"canary" in file else flip_text(file),
    "lines left out": lambda file: b"\n".join(file.splitlines()[:3] + file.splitlines()[4:]) + b"\n",
    "other format": lambda file: changed(file, "head", set_number("format", 2)),
    "other name": lambda file: changed(file, "head", set_number("behest", "agent")),
    "deep": lambda file: b"[" * 100_000 + b"\n" + file,
    "nested": lambda file: changed(file, "head", set_number("format", {"a": 1})),
    "huge number": lambda file: changed(file, "tombstone", set_number("head_sequence", 1 << 70)),
    "negative": lambda file: changed(file, "tombstone", set_number("epoch", -1)),
    "no state of an end": lambda file: changed(file, "tombstone", set_number("state", 2)),
    "time": lambda file: changed(file, "session", set_number("create_time_ns", "yesterday")),
    "session id": lambda file: changed(file, "session", set_number("id", "../../etc")),
    "no session": lambda file: without(file, "session"),
    "no definition": lambda file: without(file, "definition"),
    "no commits": lambda file: without(file, "commit"),
    "no content": lambda file: without(file, "content"),
    "other content": lambda file: changed(file, "content", set_number("data", "YWJj")),
    "strange kind": lambda file: changed(file, "data", set_number("kind", "agent")),
    "sequence": lambda file: changed(file, "commit", other_event(lambda event: setattr(event, "sequence", 7))),
    "session of event": lambda file: changed(
        file, "commit", other_event(lambda event: setattr(event, "session_id", "other"))
    ),
    "hash": lambda file: changed(file, "commit", other_event(lambda event: setattr(event, "event_id", "evt_x"))),
    "run that goes on": lambda file: changed(file, "run", set_number("head_sequence", 3)),
    "place of a message": lambda file: changed(file, "message", set_number("session_id", "other")),
    "run of a message": lambda file: changed(file, "message", set_number("run_id", "run-done")),
    "message of somebody": lambda file: changed(file, "message", set_number("id", "msg_other")),
    "base64": lambda file: changed(file, "definition", set_number("data", "***")),
    "artifact of nobody": lambda file: changed(file, "artifact", set_number("data", "")),
}
"""Files that are refused, by what is wrong with them."""


def flip_text(file: bytes) -> bytes:
    at = file.index(b'"data":"') + 20
    return file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :]


async def test_a_file_that_was_tampered_with_is_refused_and_leaves_nothing(file: bytes, empty: Served) -> None:  # C110
    for name, make in BAD.items():
        try:
            error = await refused(empty.client.sessions.load(make(file)))
        except AssertionError:
            raise AssertionError(f"{name} was taken") from None
        assert error.reason in {"SESSION_FILE_INVALID", "REQUEST_INVALID", "ARTIFACT_CHECKSUM_MISMATCH"}, (name, error)
        try:
            await nothing_is_left(empty)
        except AssertionError as left:
            raise AssertionError(name) from left
    # The daemon is none the worse for it.
    await empty.client.sessions.load(file)
    assert await exported(empty, "ses-full") == file


async def test_a_line_without_an_end_is_refused_before_it_is_all_there(empty: Served) -> None:  # S13
    error = await refused(empty.client.sessions.load(b"x" * 40 * 1024 * 1024))
    assert (error.reason, error.metadata["limitBytes"]) == ("REQUEST_TOO_LARGE", str(32 * 1024 * 1024))
    await nothing_is_left(empty)
