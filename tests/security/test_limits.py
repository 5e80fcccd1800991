"""Every limit, at it and one beyond it: what is taken, what is refused, with which reason, and that nothing is kept.

One table of limits that this daemon has for the test, all of them small. A second one says where those are proved that
need more than a number; a test fails when a setting of a limit is in neither.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from behest.v1.daemon_service_pb2 import ClientLimits
from behest.v1.message_pb2 import Part, TextPart
from behest.v1.registry_service_pb2 import AttachHello, AttachServerRequest
from behest.v1.run_service_pb2 import CreateRunRequest, GetRunRequest
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.session_pb2 import Session
from behest.v1.session_service_pb2 import CreateSessionRequest
from behest.v1.tool_pb2 import Tool
from behestd.config import settings as config
from behestd.runtime.admission import Rules
from behestd.runtime.house import Limits
from behestd.service.scopes import Load
from behestd.service.settings import Settings
from behestd.tools.schema import SchemaLimits
from tests.daemons import Served, serve, writes
from tests.service import edges
from tests.service.test_artifacts import frames

TESTS = Path(__file__).resolve().parents[1]
EDGE = Settings(request_bytes=60_000, metadata_bytes=8_192, watches=3)
LIMITS = Limits(
    active_runs=1, queued_runs=2, session_queue=1, pending_approvals=2, input_bytes=5_000, artifact_bytes=9_000
)
SCHEMAS = SchemaLimits(schema_bytes=700, depth=7, nodes=11)
_WATCH = "/behest.v1.EventService/WatchEvents"
_OWN = (("grpc.use_local_subchannel_pool", 1),)
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass(frozen=True, slots=True)
class Refused:
    """How something was refused; `reason` is empty when gRPC itself said so."""

    code: grpc.StatusCode
    reason: str


Attempt = Callable[[Served, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Row:
    """One limit: its number, its name in GetServerInfo, how so much of it is tried, and what is said beyond it."""

    limit: int
    published: str
    attempt: Attempt
    reason: str


async def refusal(attempt: Awaitable[None]) -> Refused | None:
    """How an attempt was refused, None when it was not."""
    async with asyncio.timeout(20):
        try:
            await attempt
        except grpc.aio.AioRpcError as error:
            return Refused(error.code(), edges.reason(error))
    return None


async def request(served: Served, count: int) -> None:
    """Send a request of so many bytes, which is wrong, but not for its size."""
    # A key, a length of three bytes, and the text.
    body = GetRunRequest(run_id="x" * (count - 4)).SerializeToString()
    assert len(body) == count
    await served.channel.unary_unary("/behest.v1.DaemonService/GetServerInfo")(body)


async def input_of(served: Served, count: int) -> None:
    # A part is two keys and two lengths of two bytes more than its text.
    part = Part(text=TextPart(text="/say x\n" + "x" * (count - 13)))
    assert part.ByteSize() == count
    spec = RunSpec(input=[part])
    made = await served.client.stubs.runs.CreateRun(CreateRunRequest(spec=spec))
    await served.client.watch(made.run.id).result()


async def artifact(served: Served, count: int) -> None:
    await served.client.stubs.artifacts.WriteArtifact(frames([b"x" * count]))


async def attach(served: Served, schema: str) -> None:
    """Offer a tool with a schema, and go away."""
    hello = AttachHello(server_name="server", tools=[Tool(name="t", input_schema_json=schema)])
    call = served.client.stubs.registry.AttachServer()
    await call.write(AttachServerRequest(hello=hello))
    welcome = await call.read()
    if welcome is grpc.aio.EOF:
        raise grpc.aio.AioRpcError(
            await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )
    call.cancel()


async def schema_bytes(served: Served, count: int) -> None:
    bare = json.dumps({"type": "object", "description": ""})
    await attach(served, json.dumps({"type": "object", "description": "x" * (count - len(bare))}))


async def schema_depth(served: Served, count: int) -> None:
    await attach(served, '{"type": "object", "default": ' + "[" * (count - 1) + "]" * (count - 1) + "}")


async def schema_nodes(served: Served, count: int) -> None:
    await attach(served, json.dumps({"type": "object", "anyOf": [{}] * (count - 1)}))


async def labels(served: Served, count: int) -> None:
    asked = Session(labels={str(number): "x" for number in range(count)})
    await served.client.stubs.sessions.CreateSession(CreateSessionRequest(session=asked))


async def metadata(served: Served, count: int) -> None:
    """Send so much metadata. Beyond half of the limit gRPC refuses some calls, so the limit itself is not tried."""
    size = count if count > EDGE.metadata_bytes else count // 2 - 1_000
    await served.channel.unary_unary("/behest.v1.DaemonService/GetServerInfo")(b"", metadata=(("x", "y" * size),))


TABLE: dict[str, Row] = {
    "server.request_bytes": Row(EDGE.request_bytes, "request_bytes", request, ""),
    "server.metadata_bytes": Row(EDGE.metadata_bytes, "metadata_bytes", metadata, ""),
    "limits.input_bytes": Row(LIMITS.input_bytes, "input_bytes", input_of, "RUN_INPUT_REJECTED"),
    "limits.artifact_bytes": Row(LIMITS.artifact_bytes, "artifact_bytes", artifact, "ARTIFACT_TOO_LARGE"),
    "limits.schema_bytes": Row(SCHEMAS.schema_bytes, "schema_bytes", schema_bytes, "TOOL_SCHEMA_INVALID"),
    "limits.schema_depth": Row(SCHEMAS.depth, "schema_depth", schema_depth, "TOOL_SCHEMA_INVALID"),
    "limits.schema_nodes": Row(SCHEMAS.nodes, "schema_nodes", schema_nodes, "TOOL_SCHEMA_INVALID"),
    "labels": Row(32, "labels", labels, "REQUEST_INVALID"),
}
ELSEWHERE = {
    "server.response_bytes": "service/test_server_traps.py::test_limits_of_four_mib_are_kept_by_grpc_itself",
    "server.watches": "service/test_server_traps.py::test_too_many_watches_are_refused_while_control_still_answers",
    "server.streams_per_connection": "security/test_limits.py::test_one_stream_more_than_a_connection_takes_waits",
    "server.lists": "security/test_limits.py::test_one_read_more_than_are_taken_at_once_is_refused",
    "limits.active_runs": "security/test_limits.py::test_one_run_more_than_the_queue_takes_is_refused",
    "limits.queued_runs": "security/test_limits.py::test_one_run_more_than_the_queue_takes_is_refused",
    "limits.session_queue": "runs/test_sessions.py::test_the_sixteenth_run_queues_and_the_seventeenth_is_refused",
    "limits.pending_approvals": "approvals/test_flow.py::test_a_principal_has_no_more_calls_waiting_than_the_limit",
    "limits.tool_calls": "runs/test_tool_slots.py::test_all_runs_together_have_no_more_calls_at_once_than_the_daemon",
    "limits.history_messages": "compaction/test_long_session.py::test_",
    "limits.run": "runs/test_limits.py::test_endless_calls_stop_at_the_limit_of_steps",
}
TIMES = re.compile(r".*_seconds$|server\.(listen|unix|tls|reflection|ready_fd)")


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    rules = Rules(input_bytes=LIMITS.input_bytes)
    async with serve("sqlite", edge=EDGE, limits=LIMITS, rules=rules, schemas=SCHEMAS) as made:
        yield made


@pytest.mark.parametrize("name", TABLE)
async def test_a_limit_is_taken_and_one_beyond_it_is_refused_and_leaves_nothing(served: Served, name: str) -> None:
    row = TABLE[name]  # S12 S13 S21
    assert await refusal(row.attempt(served, row.limit)) is None
    before = writes(served)
    found = await refusal(row.attempt(served, row.limit + 1))
    assert found is not None
    assert found.reason == row.reason
    assert row.reason or found.code is EXHAUSTED
    assert writes(served) == before


async def test_what_clients_should_know_of_the_limits_is_published(served: Served) -> None:
    told = (await served.client.daemon.info()).limits
    assert {name: getattr(told, row.published) for name, row in TABLE.items()} == {
        name: row.limit for name, row in TABLE.items()
    }
    assert (told.watchers, told.session_queue, told.pending_approvals) == (3, 1, 2)
    assert told.streams_per_connection == EDGE.streams_per_connection
    # None of them is left out: a field of the contract that says nothing is a limit that nobody can keep.
    assert {field.name for field, _ in told.ListFields()} == {field.name for field in ClientLimits.DESCRIPTOR.fields}


def test_every_setting_of_a_limit_is_proved() -> None:
    """By the table, or by a test that is named and is there."""
    known = {f"{section}.{field}" for section, model in (("server", config.Server), ("limits", config.Limits))
             for field in model.model_fields}  # fmt: skip
    proved = TABLE.keys() | ELSEWHERE.keys()
    assert {name for name in known - proved if not TIMES.fullmatch(name)} == set()
    for place in ELSEWHERE.values():
        path, _, name = place.partition("::")
        assert f"def {name}" in (TESTS / path).read_text(), place


async def test_one_stream_more_than_a_connection_takes_waits_for_another_to_end() -> None:  # S13
    """The transport holds it back by itself, in the client; other connections are served meanwhile."""
    most = 5
    async with serve(edge=Settings(streams_per_connection=most)) as served:
        open_watches = served.daemon.edge.admission.statistics

        def count() -> int:
            return open_watches().in_flight[Load.WATCH]

        async with grpc.aio.insecure_channel(served.daemon.addresses[0], _OWN) as channel:
            watches = [channel.unary_stream(_WATCH)(b"") for _ in range(most)]
            for watch in watches:
                await watch.read()
            extra = channel.unary_stream(_WATCH)(b"")
            reading = asyncio.ensure_future(extra.read())
            for _ in range(20):
                await served.client.daemon.info()
            assert (count(), reading.done()) == (most, False)
            watches[0].cancel()
            async with asyncio.timeout(20):
                assert await reading is not grpc.aio.EOF
            assert count() <= most


async def test_one_run_more_than_the_queue_takes_is_refused(served: Served) -> None:  # S13
    """One works, two queue; the next is refused without a trace, and the three end well."""
    runs = [await served.client.run("/delay 300 /words 3") for _ in range(LIMITS.active_runs + LIMITS.queued_runs)]
    before = served.daemon.log.store.statistics().items
    spec = RunSpec(input=[Part(text=TextPart(text="hello"))])
    found = await refusal(served.client.stubs.runs.CreateRun(CreateRunRequest(spec=spec)))
    assert found == Refused(EXHAUSTED, "RUNTIME_OVERLOADED")
    assert len([run async for run in served.client.runs.list()]) == len(runs)
    assert before <= served.daemon.log.store.statistics().items
    for run in runs:
        await run.result()
    await (await served.client.run("hello")).result()


async def test_one_read_more_than_are_taken_at_once_is_refused() -> None:  # S13
    gate = edges.Gate()

    async def slow(request: object, call: object) -> bytes:
        await gate.pass_through()
        return b""

    async with edges.serving({edges.GET: slow}, Settings(lists=2)) as edge, edges.connect(edge) as channel:
        held = [channel.unary_unary(edges.GET)(b"") for _ in range(2)]
        await edges.until(lambda: edge.admission.statistics().in_flight[Load.LIST] == 2)
        error = await edges.failure(channel.unary_unary(edges.GET)(b""))
        assert (error.code(), edges.reason(error)) == (EXHAUSTED, "RUNTIME_OVERLOADED")
        gate.opened.set()
        assert [await one for one in held] == [b"", b""]
