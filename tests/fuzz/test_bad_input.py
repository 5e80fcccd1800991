"""Whatever is sent to whatever method, the daemon answers it properly, records nothing that it refused, and goes on.

The requests are made from the descriptors of the contract (`wire`), so a new method or field is thrown at without a
word here. One daemon on SQLite takes them all; at its end its store is sound and nobody had a fault to log.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from behestd.log import fsck, sqlite_schema
from behestd.service import reflection
from behestd.service.methods import describe
from tests import daemons
from tests.daemons import Served
from tests.fuzz import oracle, scene, wire
from tests.fuzz.scene import METHODS, World
from tests.runs.scenes import OPEN, PURE, tools
from tests.service.edges import until

STOPPING = [f"/behest.v1.DaemonService/{name}" for name in ("Drain", "SetPaused")]
"""What takes a daemon out of work."""
FAULTS = ("error", "critical")
"""Levels at which nothing may be logged, whoever sends what."""
COMMON = settings(
    deadline=None,
    database=None,
    # A request is small as it is made, and one that hangs would be tried again for minutes.
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
SHORT = settings(COMMON, max_examples=100, derandomize=True)
LONG = settings(COMMON, max_examples=1000, print_blob=True)

pytestmark = pytest.mark.asyncio(loop_scope="module")


class _Faults(logging.Handler):
    """Keeps what is logged as an error, by us, by grpc or by asyncio."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, with its exception."""
        self.found.append(logging.Formatter("%(name)s %(message)s").format(record))


@contextmanager
def faults() -> Iterator[list[Any]]:
    """Gather what is logged as an error, and check at the end that it was nothing."""
    handler = _Faults()
    logging.getLogger().addHandler(handler)
    try:
        with capture_logs() as entries:
            yield handler.found
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.found == []
    assert [entry for entry in entries if entry["log_level"] in FAULTS] == []


class Target:
    """The daemon that takes it all, the services that it has, and a look at its store."""

    def __init__(self, served: Served, services: frozenset[str], picture: oracle.Picture) -> None:
        self.served = served
        self.services = services
        self.picture = picture


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """One daemon for all methods; at its end nobody had a fault to log and the store is sound."""
    async with thrown_at(tmp_path_factory.mktemp("fuzz") / "data") as made:
        yield made


@asynccontextmanager
async def thrown_at(home: Path) -> AsyncIterator[Target]:
    """A daemon that whatever happens to must leave sound."""
    plan: dict[str, Any] = {"tools": tools((scene.look_up, PURE)), "operator": OPEN}
    with faults():
        async with daemons.serve("sqlite", home, **plan) as served:
            picture = oracle.Picture(str(home / sqlite_schema.FILE_NAME))
            try:
                yield Target(served, await scene.services_of(served.channel), picture)
            finally:
                picture.close()
    assert fsck.check(home).problems == ()


@pytest_asyncio.fixture(loop_scope="module")
async def world(target: Target) -> AsyncIterator[World]:
    """Fresh things on the daemon. At the end it still serves, and has let go of every call."""
    made = await scene.populate(target.served)
    yield made
    await made.leave()
    await let_go(target)


async def let_go(target: Target) -> None:
    """Wait until the daemon has let go of every call, in whichever way its client left. It still serves."""
    assert await scene.serves(target.served)
    admission = target.served.daemon.edge.admission
    await until(lambda: not any(admission.statistics().in_flight.values()))


def requests(world: World, method: MethodDescriptor) -> st.SearchStrategy[bytes]:
    """Requests for a method, good ones among them."""
    good = world.good.get(method.input_type.full_name)
    return wire.requests(good.SerializeToString() if good else b"", method.input_type, world.pools)


async def throw(target: Target, name: str, sent: Sequence[bytes], *, leaves: bool = False) -> oracle.Answer:
    """Send requests to a method, and check everything that holds of any answer."""
    method = METHODS[name]
    before = target.picture.take()
    answer = await oracle.ask(target.served.channel, name, sent, is_stream=method.server_streaming, leaves=leaves)
    is_served = method.containing_service.full_name in target.services
    oracle.check(answer, method.input_type, size_bytes=max(map(len, sent), default=0), is_served=is_served)
    response = message_factory.GetMessageClass(method.output_type)
    for frame in answer.frames:
        response.FromString(frame)
    if answer.is_refusal and not answer.frames:
        # A stream that was answered was taken, whatever it was refused for later on.
        assert target.picture.take() == before, f"something was recorded of a request that was refused: {answer}"
    if answer.code is None:
        # What the call began may be on its way to the store yet.
        await let_go(target)
    return answer


async def throw_one(target: Target, world: World, name: str, data: st.DataObject) -> None:
    """Throw one request at a method with one."""
    await throw(target, name, [data.draw(requests(world, METHODS[name]), "request")])


async def throw_some(target: Target, world: World, name: str, data: st.DataObject) -> None:
    """Throw a stream of requests at a method with many, which may be cut anywhere."""
    method = METHODS[name]
    first = requests(world, method)
    later = wire.requests(scene.LATER[name], method.input_type, world.pools)
    sent = data.draw(st.one_of(st.just([]), st.tuples(first, st.lists(later, max_size=4)).map(_flat)), "requests")
    await throw(target, name, sent, leaves=data.draw(st.booleans(), "leaves"))


def _flat(parts: tuple[bytes, list[bytes]]) -> list[bytes]:
    return [parts[0], *parts[1]]


UNARY = [name for name, method in METHODS.items() if not method.client_streaming and name not in STOPPING]
STREAMS = [name for name, method in METHODS.items() if method.client_streaming]
FOREIGN = ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", *reflection.METHODS]


@pytest.mark.parametrize("name", UNARY)
@given(data=st.data())
@SHORT
async def test_any_request_is_answered_properly(  # C142
    target: Target, world: World, name: str, data: st.DataObject
) -> None:
    await throw_one(target, world, name, data)


@pytest.mark.parametrize("name", STREAMS)
@given(data=st.data())
@SHORT
async def test_any_stream_of_requests_is_answered_properly(
    target: Target, world: World, name: str, data: st.DataObject
) -> None:
    await throw_some(target, world, name, data)


@pytest_asyncio.fixture(loop_scope="module")
async def doomed(tmp_path: Path) -> AsyncIterator[Target]:
    """A daemon of its own for what ends one."""
    async with thrown_at(tmp_path / "data") as made:
        yield made


@pytest.mark.parametrize("name", STOPPING)
@given(data=st.data())
@SHORT
async def test_any_request_to_stop_work_is_answered_properly(doomed: Target, name: str, data: st.DataObject) -> None:
    pools: wire.Pools = {"": ["x"]}
    await throw(doomed, name, [data.draw(wire.requests(b"", METHODS[name].input_type, pools), "request")])


@pytest.mark.parametrize("name", FOREIGN)
@given(data=st.data())
@SHORT
async def test_any_request_of_a_foreign_protocol_is_answered_properly(
    target: Target, name: str, data: st.DataObject
) -> None:
    pools: wire.Pools = {"": ["behest.v1.RunService", "grpc.health.v1.Health", "run_service.proto"]}
    method = reflection.method() if name in reflection.METHODS else describe(name)
    sent = [data.draw(wire.requests(b"", method.input_type, pools), "request")]
    answer = await oracle.ask(target.served.channel, name, sent, is_stream=method.server_streaming)
    oracle.check_code(answer)


@pytest.mark.proof
@pytest.mark.parametrize("name", UNARY)
@given(data=st.data())
@LONG
async def test_many_requests_are_answered_properly(
    target: Target, world: World, name: str, data: st.DataObject
) -> None:
    await throw_one(target, world, name, data)


@pytest.mark.proof
@pytest.mark.parametrize("name", STREAMS)
@given(data=st.data())
@LONG
async def test_many_streams_of_requests_are_answered_properly(
    target: Target, world: World, name: str, data: st.DataObject
) -> None:
    await throw_some(target, world, name, data)
