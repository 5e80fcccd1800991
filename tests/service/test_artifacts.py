"""Artifacts as clients see them: streams both ways, ranges, repeats, and content that goes with its last artifact."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.v1 import artifact_service_pb2 as pb
from behest.v1.artifact_pb2 import Artifact
from behest.v1.definition_pb2 import PermissionAction
from behest.v1.session_pb2 import Session
from behestd.blobs.blob import BlobNotFound
from behestd.core.definition import Operator
from behestd.log.store import Change, Put, Record
from behestd.runtime.artifacts import LOOSE
from behestd.runtime.house import Limits
from behestd.tools.catalog import Catalog
from behestd.tools.function import Functions
from behestd.tools.schema import Validators
from tests.daemons import Rejection, Served, refused, rejection, serve, writes

MIB = 1024 * 1024
INVALID = grpc.StatusCode.INVALID_ARGUMENT
ALLOW = Operator(default_permission=PermissionAction.PERMISSION_ACTION_ALLOW)
LONG = "\n".join(f"line {number}" for number in range(5_000))


def frames(chunks: Iterable[bytes], **header: Any) -> AsyncIterator[pb.WriteArtifactRequest]:
    """The frames of an upload."""
    first = pb.WriteArtifactRequest(header=pb.WriteArtifactHeader(**header))
    return given([first, *(pb.WriteArtifactRequest(chunk=chunk) for chunk in chunks)])


async def given(requests: Iterable[pb.WriteArtifactRequest]) -> AsyncIterator[pb.WriteArtifactRequest]:
    """Requests as a stream."""
    for request in requests:
        yield request


async def write(served: Served, *chunks: bytes, **header: Any) -> pb.WriteArtifactResponse:
    """Upload by the raw stub."""
    return await served.client.stubs.artifacts.WriteArtifact(frames(chunks, **header))


async def refusal(served: Served, requests: AsyncIterator[pb.WriteArtifactRequest]) -> Rejection:
    """What an upload is refused with."""
    return await rejection(served.client.stubs.artifacts.WriteArtifact(requests))


async def ids(served: Served, **filters: Any) -> list[str]:
    """The artifacts that a list shows."""
    return [one.id async for one in served.client.artifacts.list(pb.ListArtifactsRequest(**filters))]


async def has_content(served: Served, content: bytes) -> bool:
    """Whether the daemon keeps bytes."""
    try:
        await served.daemon.house.blobs.size("default", hashlib.sha256(content).digest())
    except BlobNotFound:
        return False
    return True


# --- writing and reading ---


async def test_an_artifact_is_written_and_read_byte_for_byte(stored: Served) -> None:  # C109
    content = bytes(range(256)) * 8_000
    made = await stored.client.artifacts.upload(
        content, name="ä/../b", media_type="image/png", labels={"a": "b"}, request_id="r1"
    )
    assert (made.size_bytes, made.sha256) == (len(content), hashlib.sha256(content).digest())
    assert (made.name, made.media_type, dict(made.labels), made.run_id) == ("ä/../b", "image/png", {"a": "b"}, "")
    assert made.create_time.seconds
    assert await stored.client.artifacts.get(made.id) == made
    assert await stored.client.artifacts.read(made.id) == content


async def test_an_empty_artifact_is_one(stored: Served) -> None:  # C109
    made = (await write(stored, size_bytes=0)).artifact
    assert await stored.client.artifacts.read(made.id) == b""
    assert (await write(stored, b"", b"a", b"")).artifact.size_bytes == 1


async def test_any_range_can_be_read(stored: Served) -> None:  # C109
    content = bytes(range(256)) * 4_000
    made = await stored.client.artifacts.upload(content)
    size = len(content)
    for offset, length in ((0, 0), (0, 1), (5, 300_000), (size - 1, 10), (size, None), (size, 5), (7, None)):
        found = await stored.client.artifacts.read(made.id, offset_bytes=offset, length_bytes=length)
        assert found == content[offset : size if length is None else offset + length]
    stream = stored.client.stubs.artifacts.ReadArtifact(pb.ReadArtifactRequest(artifact_id=made.id, length_bytes=5))
    answers = [answer async for answer in stream]
    assert answers[0].artifact == made
    assert [answer.chunk for answer in answers[1:]] == [content[:5]]


async def test_no_frame_of_a_read_is_over_a_quarter_of_a_mebibyte(served: Served) -> None:
    made = await served.client.artifacts.upload(b"x" * 3 * MIB)
    stream = served.client.stubs.artifacts.ReadArtifact(pb.ReadArtifactRequest(artifact_id=made.id))
    assert max([len(answer.chunk) async for answer in stream]) <= MIB // 4


async def test_a_repeated_write_gives_the_first_artifact_and_another_content_is_refused(stored: Served) -> None:  # C109
    first = await write(stored, b"a", b"b", request_id="r1", name="x")
    again = await write(stored, b"ab", request_id="r1", name="x")
    assert (first.replayed, again.replayed, again.artifact) == (False, True, first.artifact)
    for requests in (frames([b"abc"], request_id="r1", name="x"), frames([b"ab"], request_id="r1", name="y")):
        assert (await refusal(stored, requests)).reason == "REQUEST_ID_REUSED"
    assert not await has_content(stored, b"abc")
    assert await ids(stored) == [first.artifact.id]


async def test_repeats_at_the_same_time_make_one_artifact(stored: Served) -> None:
    answers = await asyncio.gather(*(write(stored, b"same", request_id="r1") for _ in range(6)))
    assert len({answer.artifact.id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert await stored.client.artifacts.read(answers[0].artifact.id) == b"same"


async def test_an_upload_that_is_not_what_was_promised_leaves_nothing(stored: Served) -> None:  # C109
    sha256 = hashlib.sha256(b"abc").digest()
    for requests in (
        frames([b"abd"], sha256=sha256),
        frames([b"ab"], size_bytes=3),
        frames([b"abcd"], size_bytes=3),
        frames([b"a"], size_bytes=0),
        frames([], size_bytes=1),
    ):
        found = await refusal(stored, requests)
        assert (found.code, found.reason) == (INVALID, "ARTIFACT_CHECKSUM_MISMATCH")
    assert await ids(stored) == []
    assert not await has_content(stored, b"abd")
    assert (await write(stored, b"abc", sha256=sha256, size_bytes=3)).artifact.sha256 == sha256


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_an_upload_over_the_limit_is_refused_and_leaves_nothing(store: str) -> None:  # C109
    async with serve(store, limits=Limits(artifact_bytes=MIB)) as served:
        for requests in (frames([], size_bytes=MIB + 1), frames([b"x" * (MIB // 2)] * 2 + [b"y"])):
            found = await refusal(served, requests)
            assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ARTIFACT_TOO_LARGE")
        assert await ids(served) == []
        assert (await write(served, b"x" * MIB)).artifact.size_bytes == MIB


async def test_an_upload_whose_client_goes_away_leaves_nothing(stored: Served) -> None:  # C109
    arrived = asyncio.Event()

    async def half() -> AsyncIterator[pb.WriteArtifactRequest]:
        yield pb.WriteArtifactRequest(header=pb.WriteArtifactHeader(request_id="r1"))
        yield pb.WriteArtifactRequest(chunk=b"half")
        arrived.set()
        await asyncio.Event().wait()

    call = stored.client.stubs.artifacts.WriteArtifact(half())
    await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await write(stored, b"half", b" and half", request_id="r1")).replayed is False
    assert not await has_content(stored, b"half")


async def test_an_upload_to_an_unknown_session_leaves_nothing(stored: Served) -> None:  # C109
    found = await refusal(stored, frames([b"abc"], session_id="none"))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")
    assert not await has_content(stored, b"abc")


async def test_an_upload_to_a_session_that_is_deleted_meanwhile_leaves_nothing(stored: Served) -> None:  # C111
    await stored.client.sessions.create(Session(id="s"))
    deleted = asyncio.Event()
    arrived = asyncio.Event()

    async def slow() -> AsyncIterator[pb.WriteArtifactRequest]:
        yield pb.WriteArtifactRequest(header=pb.WriteArtifactHeader(session_id="s"))
        yield pb.WriteArtifactRequest(chunk=b"abc")
        arrived.set()
        await deleted.wait()

    call = stored.client.stubs.artifacts.WriteArtifact(slow())
    await arrived.wait()
    await stored.client.sessions.delete("s")
    deleted.set()
    assert (await rejection(call)).reason == "SESSION_NOT_FOUND"
    assert not await has_content(stored, b"abc")


# --- records ---


async def test_artifacts_are_listed_newest_first_in_pages_with_filters(stored: Served) -> None:  # C109
    await stored.client.sessions.create(Session(id="s"))
    upload = stored.client.artifacts.upload
    made = [(await upload(str(number).encode(), labels={"n": str(number % 2)})).id for number in range(3)]
    owned = (await upload(b"0", session_id="s", labels={"n": "0"})).id
    assert await ids(stored) == [owned, *reversed(made)]
    assert await ids(stored, page_size=1) == [owned, *reversed(made)]
    assert await ids(stored, session_id="s") == [owned]
    assert await ids(stored, labels={"n": "0"}, page_size=2) == [owned, made[2], made[0]]
    assert await ids(stored, run_id="none") == []
    assert await ids(stored, session_id="none") == []


async def test_content_goes_with_the_last_artifact_that_names_it(stored: Served) -> None:  # C109
    artifacts = stored.client.artifacts
    one, other = await artifacts.upload(b"same"), await artifacts.upload(b"same")
    assert one.id != other.id
    await artifacts.delete(one.id)
    await artifacts.delete(one.id)
    assert await artifacts.read(other.id) == b"same"
    assert (await refused(artifacts.get(one.id))).reason == "ARTIFACT_NOT_FOUND"
    await artifacts.delete(other.id)
    assert not await has_content(stored, b"same")
    assert await artifacts.read((await artifacts.upload(b"same")).id) == b"same"


async def test_the_artifacts_of_a_session_are_deleted_at_once(stored: Served) -> None:  # C109
    await stored.client.sessions.create(Session(id="s"))
    for number in range(5):
        await stored.client.artifacts.upload(str(number).encode(), session_id="s")
    kept = await stored.client.artifacts.upload(b"0")
    assert await stored.client.artifacts.delete_of_session("s") == 5
    assert await stored.client.artifacts.delete_of_session("s") == 0
    assert await ids(stored) == [kept.id]
    assert await stored.client.artifacts.read(kept.id) == b"0"
    assert not await has_content(stored, b"1")


async def test_writing_and_deleting_the_same_content_at_once_never_loses_what_was_written(stored: Served) -> None:
    artifacts = stored.client.artifacts

    async def come_and_go() -> None:
        for _ in range(6):
            made = await artifacts.upload(b"contended")
            assert await artifacts.read(made.id) == b"contended"
            await artifacts.delete(made.id)

    async with asyncio.timeout(30):
        await asyncio.gather(*(come_and_go() for _ in range(6)))
    assert not await has_content(stored, b"contended")


async def test_content_that_a_crash_left_loose_is_swept_at_the_next_start(tmp_path: Path) -> None:  # C109
    async with serve("sqlite", tmp_path / "data") as served:
        kept = await served.client.artifacts.upload(b"kept")
        blobs = served.daemon.house.blobs

        async def loose() -> AsyncIterator[bytes]:
            yield b"loose"

        stored = await blobs.write("default", loose())
        marks = [Put(Record("default", LOOSE, sha256.hex(), b"")) for sha256 in (stored.sha256, kept.sha256)]
        await served.daemon.log.commit(Change(puts=tuple(marks)))
        assert await has_content(served, b"loose")
    async with serve("sqlite", tmp_path / "data") as served:
        assert not await has_content(served, b"loose")
        assert await served.client.artifacts.read(kept.id) == b"kept"
        assert await served.daemon.log.store.records("", LOOSE) == []


async def test_content_that_is_gone_from_the_disk_is_data_loss(stored: Served) -> None:
    made = await stored.client.artifacts.upload(b"abc")
    await stored.daemon.house.blobs.delete("default", made.sha256)
    error = await refused(stored.client.artifacts.read(made.id))
    assert (error.code, error.reason) == (grpc.StatusCode.DATA_LOSS, "ARTIFACT_CORRUPT")


async def test_artifacts_survive_a_restart(tmp_path: Path) -> None:  # C109
    async with serve("sqlite", tmp_path / "data") as served:
        made = await served.client.artifacts.upload(b"abc" * 100_000, request_id="r1")
    async with serve("sqlite", tmp_path / "data") as served:
        assert await served.client.artifacts.read(made.id) == b"abc" * 100_000
        assert await served.client.artifacts.upload(b"abc" * 100_000, request_id="r1") == made


# --- output of tools ---


def tools(validators: Validators) -> Catalog:
    """A function that says too much."""

    async def talk() -> str:
        """Say too much."""
        return LONG

    catalog = Catalog(validators)
    Functions(catalog).tool(talk)
    return catalog


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_the_whole_of_a_cut_tool_output_is_read_by_its_id(store: str) -> None:  # C036
    async with serve(store, tools=tools, operator=ALLOW) as served:
        run = await served.client.run("/tool talk {}")
        await run.result()
        shown = await run.get()
        (result,) = [part.tool_result for said in shown.messages for part in said.parts if part.HasField("tool_result")]
        assert result.truncated
        assert len(result.parts[0].text.text) < len(LONG)
        assert result.artifact_id in result.parts[0].text.text
        kept = await served.client.artifacts.get(result.artifact_id)
        assert (kept.run_id, kept.call_id, kept.session_id) == (run.run_id, result.call_id, shown.session_id)
        assert await served.client.artifacts.read(kept.id) == LONG.encode()
        assert await ids(served, run_id=run.run_id) == [kept.id]
        again = await served.client.run("/tool talk {}")
        await again.result()
        assert len(await ids(served)) == 2
        await served.client.sessions.delete(shown.session_id)
        assert (await refused(served.client.artifacts.get(kept.id))).reason == "ARTIFACT_NOT_FOUND"


# --- size ---


def peak_bytes() -> int:
    """The most memory that this process has had since the peak was set back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget_peak() -> int:
    """Set the peak back to what the process has now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


async def there_and_back(size_mib: int) -> int:
    """Write and read an artifact, and return by how many bytes the peak of memory grew."""
    block = bytes(range(256)) * 4096
    digest = hashlib.sha256()
    for _ in range(size_mib):
        digest.update(block)
    async with serve("sqlite") as served:
        await write(served, block)
        before = forget_peak()

        async def upload() -> AsyncIterator[pb.WriteArtifactRequest]:
            yield pb.WriteArtifactRequest(header=pb.WriteArtifactHeader(sha256=digest.digest()))
            for _ in range(size_mib):
                yield pb.WriteArtifactRequest(chunk=block)

        made = (await served.client.stubs.artifacts.WriteArtifact(upload())).artifact
        assert made.size_bytes == size_mib * MIB
        found = hashlib.sha256()
        async for piece in served.client.artifacts.download(made.id):
            found.update(piece)
        assert found.digest() == made.sha256 == digest.digest()
        return peak_bytes() - before


async def test_a_large_artifact_goes_through_without_being_held_in_memory() -> None:  # C109
    assert await there_and_back(96) < 48 * MIB


@pytest.mark.proof
@pytest.mark.timeout(600)
async def test_a_gibibyte_goes_through_without_being_held_in_memory() -> None:  # C109
    assert await there_and_back(1024) < 64 * MIB


# --- bad requests ---

HEADER = pb.WriteArtifactRequest(header=pb.WriteArtifactHeader())
BAD_WRITES: list[tuple[list[pb.WriteArtifactRequest], str]] = [
    ([], "header"),
    ([pb.WriteArtifactRequest(chunk=b"a")], "header"),
    ([pb.WriteArtifactRequest()], "header"),
    ([HEADER, HEADER], "frame"),
    ([HEADER, pb.WriteArtifactRequest()], "frame"),
]
BAD_HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"request_id": "\x01"}, "header.request_id"),
    ({"session_id": "../x"}, "header.session_id"),
    ({"name": "x" * 257}, "header.name"),
    ({"size_bytes": -1}, "header.size_bytes"),
    ({"sha256": b"short"}, "header.sha256"),
    ({"labels": {"": "x"}}, "header.labels"),
]
BAD: list[tuple[str, Any, str]] = [
    ("GetArtifact", pb.GetArtifactRequest(), "artifact_id"),
    ("GetArtifact", pb.GetArtifactRequest(artifact_id="../../etc"), "artifact_id"),
    ("ListArtifacts", pb.ListArtifactsRequest(page_size=-1), "page_size"),
    ("ListArtifacts", pb.ListArtifactsRequest(page_token="x"), "page_token"),
    ("ListArtifacts", pb.ListArtifactsRequest(session_id="a b"), "session_id"),
    ("ListArtifacts", pb.ListArtifactsRequest(run_id="a b"), "run_id"),
    ("ListArtifacts", pb.ListArtifactsRequest(labels={"": "x"}), "labels"),
    ("DeleteArtifact", pb.DeleteArtifactRequest(), "artifact_id"),
    ("DeleteArtifacts", pb.DeleteArtifactsRequest(), "session_id"),
]


async def test_bad_requests_are_refused_by_field_and_leave_nothing(served: Served) -> None:  # C109
    stub = served.client.stubs.artifacts
    made: Artifact = (await write(served, b"abc")).artifact
    before = writes(served)
    for requests, field in BAD_WRITES:
        found = await refusal(served, given(requests))
        assert (found.code, found.reason, found.field) == (INVALID, "REQUEST_INVALID", field), requests
    for header, field in BAD_HEADERS:
        found = await refusal(served, frames([b"x"], **header))
        assert (found.code, found.field) == (INVALID, field), header
    for method, request, field in BAD:
        found = await rejection(getattr(stub, method)(request))
        assert (found.code, found.field) == (INVALID, field), (method, request)
    found = await refusal(served, frames([b"x" * (MIB + 1)]))
    assert (found.reason, found.field) == ("REQUEST_TOO_LARGE", "chunk")
    for read, reason in (
        ({"artifact_id": "none"}, "ARTIFACT_NOT_FOUND"),
        ({"offset_bytes": 4}, "ARTIFACT_RANGE_INVALID"),
        ({"offset_bytes": -1}, "REQUEST_INVALID"),
        ({"length_bytes": -1}, "REQUEST_INVALID"),
    ):
        asked: dict[str, Any] = {"artifact_id": made.id} | read
        assert (await rejection(stub.ReadArtifact(pb.ReadArtifactRequest(**asked)).read())).reason == reason
    assert writes(served) == before
