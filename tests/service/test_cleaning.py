"""What clients and crashes leave behind is cleaned up in the background, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from behest.client import Client
from behest.v1 import session_data_service_pb2 as pb
from behest.v1.artifact_pb2 import Artifact
from behest.v1.session_pb2 import Session
from behestd.blobs.blob import BlobNotFound
from behestd.core.times import duration
from behestd.daemon import Daemon, Plan
from behestd.log.store import Change, Put, Record
from behestd.providers.catalog import snapshot
from behestd.providers.scripted import Scripted
from behestd.runtime.cleaning import Statistics
from behestd.runtime.house import Limits
from tests.service.test_session_data import HandClock

DAY = 86_400


@asynccontextmanager
async def cleaned(store: str, **limits: float) -> AsyncIterator[tuple[Daemon, Client, HandClock]]:
    """Serve with a session `s`, by a clock that can be moved. It cleans up when it is told, unless the limits say."""
    clock = HandClock()
    with TemporaryDirectory() as directory:
        plan = Plan(
            models=snapshot([Scripted()], default_model="scripted/echo"),
            data_dir=Path(directory) / "data" if store == "sqlite" else None,
            addresses=["127.0.0.1:0"],
            limits=Limits(**limits),  # type: ignore[arg-type]
            drain_seconds=0.5,
        )
        async with Daemon(plan, clock) as daemon, Client(daemon.addresses[0]) as client:
            await client.sessions.create(Session(id="s"))
            yield daemon, client, clock


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what the daemon does by itself."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


async def set_data(client: Client, key: str, seconds: float = 0) -> None:
    request = pb.SetSessionDataRequest(session_id="s", key=key, value_json="1")
    if seconds:
        request.time_to_live.CopyFrom(duration(seconds))
    await client.stubs.session_data.SetSessionData(request)


async def stored(daemon: Daemon, kind: str = "session_data") -> list[str]:
    """The records of a kind that are in the store, expired or not."""
    return [record.id.removeprefix("s/") for record in await daemon.log.store.records("default", kind)]


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_scratch_data_that_has_expired_is_deleted_in_the_background(store: str) -> None:  # C096
    async with cleaned(store, clean_seconds=0.02) as (daemon, client, clock):
        await set_data(client, "kept")
        await set_data(client, "later", 2 * DAY)
        for number in range(5):
            await set_data(client, f"soon{number}", 60)
        rounds = daemon.rooms.cleaning.statistics().rounds
        await until(lambda: _is(daemon.rooms.cleaning.statistics().rounds > rounds + 1))
        assert len(await stored(daemon)) == 7, "nothing has expired"
        clock.move(61)

        async def is_clean() -> bool:
            return await stored(daemon) == ["kept", "later"]

        await until(is_clean)
        await until(lambda: _is(daemon.rooms.cleaning.statistics().records == 5))  # told at the end of the round


async def _is(what: bool) -> bool:
    return what


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_round_deletes_in_small_commits_and_a_bounded_number_of_them(store: str) -> None:
    async with cleaned(store) as (daemon, _, clock):
        now_ns = clock.now_ns()
        for start in range(0, 10_500, 500):
            puts = [Put(Record("default", "x", str(n), b"", expire_time_ns=now_ns)) for n in range(start, start + 500)]
            await daemon.log.commit(Change(puts=tuple(puts)))
        before = daemon.log.store.statistics().items
        await daemon.rooms.cleaning.clean()
        assert daemon.rooms.cleaning.statistics().records == 10_000
        assert daemon.log.store.statistics().items - before == 50
        await daemon.rooms.cleaning.clean()
        assert daemon.rooms.cleaning.statistics() == Statistics(2, 10_500, 0)


async def orphan(daemon: Daemon, content: bytes) -> bytes:
    """Leave behind what a crash does between a blob and the record that was to name it."""

    async def pieces() -> AsyncIterator[bytes]:
        yield content

    return (await daemon.house.blobs.write("default", pieces())).sha256


async def is_there(daemon: Daemon, sha256: bytes) -> bool:
    try:
        await daemon.house.blobs.size("default", sha256)
    except BlobNotFound:
        return False
    return True


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_blob_that_nothing_names_is_collected_when_it_is_old_enough(store: str) -> None:  # C036
    async with cleaned(store) as (daemon, client, clock):
        named = await client.artifacts.upload(b"named", name="a.txt")
        lost = await orphan(daemon, b"lost")
        await daemon.rooms.cleaning.clean()
        assert await is_there(daemon, lost), "it may be about to be named"
        clock.move(DAY - 60)
        await daemon.rooms.cleaning.clean()
        assert await is_there(daemon, lost)
        clock.move(120)
        await daemon.rooms.cleaning.clean()
        assert not await is_there(daemon, lost)
        assert await client.artifacts.read(named.id) == b"named"
        assert daemon.rooms.cleaning.statistics().blobs == 1


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_content_that_is_named_again_before_it_is_collected_stays(store: str) -> None:
    async with cleaned(store) as (daemon, client, clock):
        lost = await orphan(daemon, b"same content")
        clock.move(2 * DAY)
        artifact = await client.artifacts.upload(b"same content", name="b.txt")
        await daemon.rooms.cleaning.clean()
        assert await is_there(daemon, lost)
        assert await client.artifacts.read(artifact.id) == b"same content"


async def test_collecting_goes_on_round_after_round_and_finds_the_few_among_the_many() -> None:
    async with cleaned("sqlite") as (daemon, client, clock):
        names = [await daemon_keep(daemon, number) for number in range(40)]
        lost = [await orphan(daemon, f"lost {number}".encode()) for number in range(40)]
        clock.move(2 * DAY)
        for _ in range(3):
            await daemon.rooms.cleaning.clean()
        assert daemon.rooms.cleaning.statistics().blobs == 40
        assert not any([await is_there(daemon, sha256) for sha256 in lost])
        for name in names:
            assert await client.artifacts.read(name)


async def daemon_keep(daemon: Daemon, number: int) -> str:
    """Keep an artifact as the runtime does."""
    artifacts = daemon.rooms.cleaning._artifacts
    return (await artifacts.keep("default", Artifact(name=f"{number}.txt"), f"kept {number}".encode())).id


async def test_a_round_that_fails_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    async with cleaned("sqlite", clean_seconds=0.02) as (daemon, client, clock):
        lost = await orphan(daemon, b"lost")
        (folder,) = [path for path in (Path(daemon.plan.data_dir or "") / "blobs").iterdir() if path.name != "tmp"]
        (shard,) = folder.iterdir()
        odd = folder / f"{lost.hex()[:2]}x"
        odd.write_bytes(b"not a directory")
        clock.move(2 * DAY)
        await set_data(client, "soon", 1)
        clock.move(2)

        async def has_purged() -> bool:
            return await stored(daemon) == []

        await until(has_purged)
        assert await is_there(daemon, lost), "no round comes past what is odd"
        odd.unlink()

        async def is_clean() -> bool:
            return not await is_there(daemon, lost)

        await until(is_clean)
        assert shard.exists()
