"""Scratch data of sessions as clients see it, with a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from behest.client import Client
from behest.errors import BehestError
from behest.v1 import session_data_service_pb2 as pb
from behest.v1.session_pb2 import Session
from behestd.daemon import Daemon, Plan
from behestd.providers.catalog import snapshot
from behestd.providers.scripted import Scripted
from behestd.runtime.clock import SystemClock
from behestd.service.session_data import MAX_ENTRIES
from tests.daemons import Served, refused, rejection, writes

INVALID = grpc.StatusCode.INVALID_ARGUMENT
KIB = 1024


class HandClock(SystemClock):
    """A clock that goes on by itself and is moved on by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead_ns = 0

    def now_ns(self) -> int:
        """Unix nanoseconds, ahead of those of the system."""
        return super().now_ns() + self.ahead_ns

    def move(self, seconds: float) -> None:
        """Move on."""
        self.ahead_ns += int(seconds * 1_000_000_000)


@asynccontextmanager
async def moving(store: str) -> AsyncIterator[tuple[Client, HandClock]]:
    """Serve by a clock that can be moved, with a session `s`."""
    clock = HandClock()
    with TemporaryDirectory() as directory:
        plan = Plan(
            models=snapshot([Scripted()], default_model="scripted/echo"),
            data_dir=Path(directory) / "data" if store == "sqlite" else None,
            addresses=["127.0.0.1:0"],
            drain_seconds=0.5,
        )
        async with Daemon(plan, clock) as daemon, Client(daemon.addresses[0]) as client:
            await client.sessions.create(Session(id="s"))
            yield client, clock


async def test_an_entry_is_set_got_replaced_and_deleted(stored: Served) -> None:  # C096
    data = stored.client.session_data
    await stored.client.sessions.create(Session(id="s"))
    made = await data.set("s", "key", '{"a": 1.0}')
    assert (made.session_id, made.key, made.value_json) == ("s", "key", '{"a": 1.0}')
    assert made.version >= 1
    assert not made.HasField("expire_time")
    assert await data.get("s", "key") == made
    after = await data.set("s", "key", b"\0\xff")
    assert (after.value_bytes, after.WhichOneof("value")) == (b"\0\xff", "value_bytes")
    assert after.version > made.version
    assert (after.create_time, await data.get("s", "key")) == (made.create_time, after)
    await data.delete("s", "key")
    await data.delete("s", "key")
    error = await refused(data.get("s", "key"))
    assert (error.reason, error.metadata) == ("SESSION_DATA_NOT_FOUND", {"key": "key"})


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_an_entry_expires_and_counts_as_none_from_then_on(store: str) -> None:  # C096
    async with moving(store) as (client, clock):
        made = await client.session_data.set("s", "key", "1", time_to_live_seconds=10)
        assert made.expire_time.ToNanoseconds() - made.update_time.ToNanoseconds() == 10_000_000_000
        clock.move(9)
        assert (await client.session_data.get("s", "key")).value_json == "1"
        clock.move(2)
        assert (await refused(client.session_data.get("s", "key"))).reason == "SESSION_DATA_NOT_FOUND"
        assert [one async for one in client.session_data.list("s")] == []
        await client.session_data.delete("s", "key")
        again = await client.session_data.set("s", "key", "2", expected_version=0)
        assert again.version > made.version
        assert again.create_time.ToNanoseconds() > made.create_time.ToNanoseconds()


async def test_setting_without_a_time_to_live_takes_the_end_away() -> None:  # C096
    async with moving("memory") as (client, clock):
        await client.session_data.set("s", "key", "1", time_to_live_seconds=10)
        await client.session_data.set("s", "key", "2")
        clock.move(100)
        assert (await client.session_data.get("s", "key")).value_json == "2"


async def test_a_version_is_never_the_same_twice_also_after_a_deletion(stored: Served) -> None:  # C096
    data = stored.client.session_data
    await stored.client.sessions.create(Session(id="s"))
    seen = []
    for _ in range(4):
        seen.append((await data.set("s", "key", "1")).version)
        seen.append((await data.set("s", "key", "2")).version)
        await data.delete("s", "key")
    assert len(set(seen)) == 8
    assert seen == sorted(seen)


async def test_a_write_at_another_version_is_refused(stored: Served) -> None:  # C096
    data = stored.client.session_data
    await stored.client.sessions.create(Session(id="s"))
    made = await data.set("s", "key", "1", expected_version=0)
    for expected in (0, made.version + 1):
        error = await refused(data.set("s", "key", "2", expected_version=expected))
        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "SESSION_VERSION_MISMATCH")
        assert error.metadata == {"version": str(made.version)}
    error = await refused(data.set("s", "new", "2", expected_version=5))
    assert (error.reason, error.metadata) == ("SESSION_VERSION_MISMATCH", {"version": "0"})
    assert (await refused(data.delete("s", "key", expected_version=made.version + 1))).reason == error.reason
    after = await data.set("s", "key", "3", expected_version=made.version)
    await data.delete("s", "key", expected_version=after.version)


async def test_of_writers_of_one_version_exactly_one_wins(stored: Served) -> None:  # C096
    data = stored.client.session_data
    await stored.client.sessions.create(Session(id="s"))
    made = await data.set("s", "key", "0")

    async def write(number: int) -> int | None:
        try:
            await data.set("s", "key", str(number), expected_version=made.version)
        except BehestError as error:
            assert error.reason == "SESSION_VERSION_MISMATCH"
            return None
        return number

    won = [number for number in await asyncio.gather(*map(write, range(20))) if number is not None]
    assert len(won) == 1
    assert (await data.get("s", "key")).value_json == str(won[0])


async def test_a_counter_that_many_raise_at_once_loses_nothing(stored: Served) -> None:  # C096
    data = stored.client.session_data
    await stored.client.sessions.create(Session(id="s"))
    await data.set("s", "count", "0")

    async def raise_it() -> None:
        while True:
            entry = await data.get("s", "count")
            try:
                await data.set("s", "count", str(int(entry.value_json) + 1), expected_version=entry.version)
            except BehestError as error:
                assert error.reason == "SESSION_VERSION_MISMATCH"
                continue
            return

    async with asyncio.timeout(20):
        await asyncio.gather(*(raise_it() for _ in range(12)))
    assert (await data.get("s", "count")).value_json == "12"


async def test_writers_without_a_version_all_succeed_and_each_gets_a_version_of_its_own(stored: Served) -> None:
    data = stored.client.session_data
    await stored.client.sessions.create(Session(id="s"))
    made = await asyncio.gather(*(data.set("s", "key", str(number)) for number in range(20)))
    assert len({entry.version for entry in made}) == 20
    assert (await data.get("s", "key")) == max(made, key=lambda entry: entry.version)


async def test_entries_are_listed_by_key_in_pages_and_by_prefix(stored: Served) -> None:  # C096
    data = stored.client.session_data
    for session in ("s", "s2"):
        await stored.client.sessions.create(Session(id=session))
    for key in ("b", "a/1", "a/2", "a", "ä", "😀", "%_"):
        await data.set("s", key, "1")
    await data.set("s2", "a/3", "1")
    assert [one.key async for one in data.list("s")] == ["%_", "a", "a/1", "a/2", "b", "ä", "😀"]
    assert [one.key async for one in data.list("s", key_prefix="a")] == ["a", "a/1", "a/2"]
    assert [one.key async for one in data.list("s", key_prefix="a/")] == ["a/1", "a/2"]
    assert [one.key async for one in data.list("s", key_prefix="c")] == []
    found, token = [], ""
    while True:
        request = pb.ListSessionDataRequest(session_id="s", page_size=2, page_token=token, key_prefix="a")
        page = await stored.client.stubs.session_data.ListSessionData(request)
        found += [entry.key for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert found == ["a", "a/1", "a/2"]


async def test_a_long_list_stays_within_the_message_limit(served: Served) -> None:
    await served.client.sessions.create(Session(id="s"))
    for number in range(20):
        await served.client.session_data.set("s", f"k{number:02}", b"x" * 256 * KIB)
    page = await served.client.stubs.session_data.ListSessionData(
        pb.ListSessionDataRequest(session_id="s", page_size=1000)
    )
    assert 0 < len(page.entries) < 20
    assert len([one async for one in served.client.session_data.list("s")]) == 20


async def test_a_session_holds_a_thousand_entries_and_no_more_however_they_come(served: Served) -> None:
    stub = served.client.stubs.session_data
    await served.client.sessions.create(Session(id="s"))
    requests = [
        pb.SetSessionDataRequest(session_id="s", key=f"k{number}", value_json="1") for number in range(MAX_ENTRIES + 5)
    ]

    async def write(request: pb.SetSessionDataRequest) -> str:
        try:
            await stub.SetSessionData(request)
        except grpc.aio.AioRpcError:
            return request.key
        return ""

    lost = [key for key in await asyncio.gather(*map(write, requests)) if key]
    assert len(lost) == 5
    found = await rejection(stub.SetSessionData(pb.SetSessionDataRequest(session_id="s", key=lost[0], value_json="1")))
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
    kept = next(request.key for request in requests if request.key not in lost)
    await served.client.session_data.set("s", kept, "2")
    await served.client.session_data.delete("s", kept)
    await served.client.session_data.set("s", lost[0], "1")


async def test_data_of_an_unknown_session_is_refused(stored: Served) -> None:
    data = stored.client.session_data
    assert (await refused(data.set("none", "key", "1"))).reason == "SESSION_NOT_FOUND"
    assert (await refused(data.set("none", "key", "1", expected_version=3))).reason == "SESSION_NOT_FOUND"
    assert (await refused(data.get("none", "key"))).reason == "SESSION_NOT_FOUND"
    assert (await refused(anext(data.list("none")))).reason == "SESSION_NOT_FOUND"
    await data.delete("none", "key")


def setting(**changes: Any) -> pb.SetSessionDataRequest:
    """A request to set, right but for the changes."""
    return pb.SetSessionDataRequest(**({"session_id": "s", "key": "k", "value_json": "1"} | changes))


BAD: list[tuple[str, Any, str]] = [
    ("GetSessionData", pb.GetSessionDataRequest(key="k"), "session_id"),
    ("GetSessionData", pb.GetSessionDataRequest(session_id="s"), "key"),
    ("SetSessionData", setting(session_id="a/b"), "session_id"),
    ("SetSessionData", setting(key=""), "key"),
    ("SetSessionData", setting(key="a\nb"), "key"),
    ("SetSessionData", setting(key="\x7f"), "key"),
    ("SetSessionData", pb.SetSessionDataRequest(session_id="s", key="k"), "value"),
    ("SetSessionData", setting(value_json=""), "value_json"),
    ("SetSessionData", setting(value_json="{"), "value_json"),
    ("SetSessionData", setting(value_json="[" * 100 + "]" * 100), "value_json"),
    ("SetSessionData", setting(time_to_live=Duration()), "time_to_live"),
    ("SetSessionData", setting(time_to_live=Duration(seconds=-1)), "time_to_live"),
    ("SetSessionData", setting(expected_version=-1), "expected_version"),
    ("DeleteSessionData", pb.DeleteSessionDataRequest(session_id="s"), "key"),
    ("DeleteSessionData", pb.DeleteSessionDataRequest(session_id="s", key="k", expected_version=0), "expected_version"),
    ("ListSessionData", pb.ListSessionDataRequest(), "session_id"),
    ("ListSessionData", pb.ListSessionDataRequest(session_id="s", page_size=-1), "page_size"),
    ("ListSessionData", pb.ListSessionDataRequest(session_id="s", page_token="?"), "page_token"),
    ("ListSessionData", pb.ListSessionDataRequest(session_id="s", key_prefix="\t"), "key_prefix"),
]
TOO_LARGE = [
    (setting(key="ä" * 129), "key"),
    (setting(value_json='"' + "x" * 256 * KIB + '"'), "value_json"),
    (setting(value_bytes=b"x" * (256 * KIB + 1)), "value_bytes"),
]


async def test_bad_requests_are_refused_by_field_and_leave_nothing(served: Served) -> None:
    stub = served.client.stubs.session_data
    await served.client.sessions.create(Session(id="s"))
    before = writes(served)
    for method, request, field in BAD:
        found = await rejection(getattr(stub, method)(request))
        assert (found.code, found.field) == (INVALID, field), (method, request)
        assert found.reason in ("REQUEST_INVALID", "REQUEST_PAGE_TOKEN_INVALID")
    for request, field in TOO_LARGE:
        found = await rejection(stub.SetSessionData(request))
        assert (found.reason, found.field) == ("REQUEST_TOO_LARGE", field)
    assert writes(served) == before
    await served.client.session_data.set("s", "ä" * 128, b"x" * 256 * KIB)
