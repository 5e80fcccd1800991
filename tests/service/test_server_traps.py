"""Each trap of grpc.aio that was ever stepped into, sprung on purpose over a real channel: one test a trap."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from behest.v1 import run_service_pb2 as rs
from behest.v1 import session_service_pb2
from behestd.errors import Draining, LogCorrupt, Overloaded, RunNotFound
from behestd.service.admission import Admission
from behestd.service.call import Call
from behestd.service.methods import House, describe, wrap
from behestd.service.scopes import LOCAL, Load
from behestd.service.server import Edge
from behestd.service.settings import Keepalive, Settings
from tests.service import edges
from tests.service.edges import Gate, connect, drain, failure, metadata, reason, serving, until, watching_process

MIB = 1024 * 1024
CODE = grpc.StatusCode


async def answer(request: Any, call: Call) -> rs.GetRunResponse:
    """Do as asked."""
    return rs.GetRunResponse()


async def refuse(request: rs.GetRunRequest, call: Call) -> None:
    """Refuse as a handler does: by raising."""
    raise RunNotFound(request.run_id)


def in_flight(edge: Edge, load: Load) -> int:
    """How many calls of a class are being answered."""
    return edge.admission.statistics().in_flight[load]


async def test_an_error_of_ours_arrives_with_code_reason_and_metadata(caplog: pytest.LogCaptureFixture) -> None:
    # C142
    async with serving({edges.GET: refuse}) as edge, connect(edge) as channel:
        error = await failure(channel.unary_unary(edges.GET)(rs.GetRunRequest(run_id="run_1").SerializeToString()))
    assert (error.code(), reason(error), metadata(error)) == (CODE.NOT_FOUND, "RUN_NOT_FOUND", {"runId": "run_1"})
    assert caplog.records == []


async def test_a_stray_cancellation_in_a_handler_does_not_leave_the_client_hanging() -> None:
    async def cancelled(request: Any, call: Call) -> None:
        raise asyncio.CancelledError

    async with serving({edges.GET: cancelled, edges.WATCH: cancelled}) as edge, connect(edge) as channel:
        for error in (
            await failure(channel.unary_unary(edges.GET)(b"")),
            await failure(drain(channel.unary_stream(edges.WATCH)(b""))),
        ):
            assert (error.code(), reason(error)) == (CODE.INTERNAL, "RUNTIME_INTERNAL")


@pytest.mark.parametrize("ending", ["returns", "raises"])
async def test_a_handler_that_swallows_its_cancellation_still_ends_as_cancelled(ending: str) -> None:
    gate, tasks = Gate(), []

    async def stubborn(request: Any, call: Call) -> rs.GetRunResponse:
        tasks.append(asyncio.current_task())
        try:
            await gate.pass_through()
        except asyncio.CancelledError:
            if ending == "raises":
                raise RunNotFound("run_1") from None
        return rs.GetRunResponse()

    async with serving({edges.GET: stubborn}) as edge, connect(edge) as channel:
        call = channel.unary_unary(edges.GET)(b"")
        await gate.reached.wait()
        call.cancel()
        await until(lambda: tasks[0].done() and in_flight(edge, Load.LIST) == 0)
        assert tasks[0].cancelling() == 1


async def test_an_abort_is_never_caught_on_its_way_out(caplog: pytest.LogCaptureFixture) -> None:
    # grpc.aio logs "Abort error unexpectedly suppressed", and asserts that the very same exception comes out.
    async with serving({edges.GET: refuse}) as edge, connect(edge) as channel:
        for _ in range(3):
            await failure(channel.unary_unary(edges.GET)(b""))
    assert caplog.records == []


async def test_an_unexpected_exception_is_logged_and_none_of_its_text_is_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(request: Any, call: Call) -> None:
        raise ValueError("sk-canary")

    async with serving({edges.GET: broken, edges.WATCH: broken}) as edge, connect(edge) as channel:
        for error in (
            await failure(channel.unary_unary(edges.GET)(b"")),
            await failure(drain(channel.unary_stream(edges.WATCH)(b""))),
        ):
            assert (error.code(), reason(error)) == (CODE.INTERNAL, "RUNTIME_INTERNAL")
            assert "canary" not in repr(error) + repr(error.trailing_metadata())
    ours = [record for record in caplog.records if record.name.startswith("behestd")]
    assert [record.exc_info is not None for record in ours] == [True, True]


async def test_a_response_of_the_wrong_type_is_a_fault_of_ours_and_its_text_is_not_sent() -> None:
    async def wrong(request: Any, call: Call) -> Any:
        return {"canary": 1}

    async with serving({edges.GET: wrong}) as edge, connect(edge) as channel:
        error = await failure(channel.unary_unary(edges.GET)(b""))
    assert reason(error) == "RUNTIME_INTERNAL"
    assert "dict" not in repr(error)


async def test_damaged_data_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def damaged(request: Any, call: Call) -> None:
        raise LogCorrupt("run_1", 7, "hash differs")

    async with serving({edges.GET: damaged}) as edge, connect(edge) as channel:
        error = await failure(channel.unary_unary(edges.GET)(b""))
    assert (error.code(), reason(error)) == (CODE.DATA_LOSS, "RUN_LOG_CORRUPT")
    ours = [record for record in caplog.records if record.name.startswith("behestd")]
    assert [record.levelno for record in ours] == [logging.ERROR]


async def test_a_request_that_cannot_be_decoded_is_malformed_in_unary_calls_and_in_streams() -> None:
    async def read_all(requests: AsyncIterator[Any], call: Call) -> Any:
        async for _ in requests:
            pass

    handlers = {edges.GET: answer, edges.WATCH: answer, edges.WRITE: read_all, edges.ATTACH: read_all}
    async with serving(handlers) as edge, connect(edge) as channel:
        for error in (
            await failure(channel.unary_unary(edges.GET)(b"\xff\xff")),
            await failure(drain(channel.unary_stream(edges.WATCH)(b"\xff\xff"))),
            await failure(channel.stream_unary(edges.WRITE)(iter([b"", b"\xff\xff"]))),
            await failure(drain(channel.stream_stream(edges.ATTACH)(iter([b"", b"\xff\xff"])))),
        ):
            assert (error.code(), reason(error)) == (CODE.INVALID_ARGUMENT, "REQUEST_MALFORMED")


async def test_limits_of_four_mib_are_kept_by_grpc_itself_on_both_sides() -> None:  # S13
    # C142: without details; docs/errors.md lists it.
    async def large(request: rs.GetRunRequest, call: Call) -> rs.GetRunResponse:
        response = rs.GetRunResponse()
        response.run.id = "x" * int(request.run_id[:8])
        return response

    def asking(response_bytes: int, request_bytes: int = 0) -> bytes:
        return rs.GetRunRequest(run_id=f"{response_bytes:08}" + "x" * request_bytes).SerializeToString()

    async with serving({edges.GET: large}) as edge, connect(edge) as channel:
        get = channel.unary_unary(edges.GET)
        assert len(await get(asking(4 * MIB - 64, 4 * MIB - 64))) > 4 * MIB - 64
        too_much_asked = await failure(get(asking(0, 4 * MIB)))
        async with connect(edge, (("grpc.max_receive_message_length", -1),)) as patient:
            too_much_sent = await failure(patient.unary_unary(edges.GET)(asking(4 * MIB)))
        for error in (too_much_asked, too_much_sent):
            assert (error.code(), reason(error)) == (CODE.RESOURCE_EXHAUSTED, "")


async def test_metadata_over_the_limit_is_refused_by_grpc_itself() -> None:  # S13
    async with serving({edges.GET: answer}) as edge, connect(edge) as channel:
        error = await failure(channel.unary_unary(edges.GET)(b"", metadata=(("x-large", "x" * 17_000),)))
    assert (error.code(), reason(error)) == (CODE.RESOURCE_EXHAUSTED, "")


async def test_an_unknown_method_is_answered_by_grpc_itself_and_one_not_offered_by_us() -> None:
    async with serving({edges.GET: answer}) as edge, connect(edge) as channel:
        unknown = await failure(channel.unary_unary("/behest.v1.RunService/Nothing")(b""))
        elsewhere = await failure(channel.unary_unary("/behest.v1.SessionService/GetSession")(b""))
        not_offered = await failure(channel.unary_unary(edges.LIST)(b""))
    assert session_service_pb2.DESCRIPTOR.services_by_name["SessionService"] is not None
    assert [error.code() for error in (unknown, elsewhere, not_offered)] == [CODE.UNIMPLEMENTED] * 3
    assert [reason(error) for error in (unknown, elsewhere, not_offered)] == ["", "", "REQUEST_UNSUPPORTED"]
    assert metadata(not_offered) == {"feature": edges.LIST}


async def test_a_deadline_of_the_client_is_kept_by_grpc_itself_and_cancels_the_handler() -> None:
    # C143
    gate, seen = Gate(), []

    async def slow(request: Any, call: Call) -> None:
        seen.append(call.remaining_seconds)
        await gate.pass_through()

    async with serving({edges.GET: slow}) as edge, connect(edge) as channel:
        error = await failure(channel.unary_unary(edges.GET)(b"", timeout=0.2))
        assert (error.code(), reason(error)) == (CODE.DEADLINE_EXCEEDED, "")
        await until(lambda: in_flight(edge, Load.LIST) == 0)
    assert len(seen) == 1
    assert 0 < seen[0] < 0.3


async def test_a_cancelled_call_cancels_its_handler_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()

    async def slow(request: Any, call: Call) -> None:
        await gate.pass_through()

    async with serving({edges.GET: slow}) as edge, connect(edge) as channel:
        call = channel.unary_unary(edges.GET)(b"")
        await gate.reached.wait()
        call.cancel()
        assert await call.code() is CODE.CANCELLED
        await until(lambda: in_flight(edge, Load.LIST) == 0)
    assert caplog.records == []


async def test_a_unary_call_without_a_deadline_gets_one_and_a_stream_does_not() -> None:  # S13
    # C143
    gate = Gate()

    async def slow(request: Any, call: Call) -> None:
        await gate.pass_through()

    async with serving({edges.GET: slow, edges.WATCH: slow}, Settings(unary_seconds=0.1)) as edge:
        async with connect(edge) as channel:
            stream = channel.unary_stream(edges.WATCH)(b"")
            error = await failure(channel.unary_unary(edges.GET)(b""))
            assert (error.code(), reason(error)) == (CODE.DEADLINE_EXCEEDED, "TRANSPORT_DEADLINE")
            assert metadata(error) == {"limitSeconds": "0.1"}
            gate.opened.set()
            assert await drain(stream) == []


async def test_a_timeout_of_the_handlers_own_is_a_fault_and_no_deadline() -> None:
    async def impatient(request: Any, call: Call) -> None:
        raise TimeoutError

    async with serving({edges.GET: impatient}) as edge, connect(edge) as channel:
        error = await failure(channel.unary_unary(edges.GET)(b""))
    assert (error.code(), reason(error)) == (CODE.INTERNAL, "RUNTIME_INTERNAL")


async def flood(request: Any, call: Call) -> None:
    """Write much more than the transport takes from a client that does not read."""
    for sequence in range(64):
        await call.write(b"x" * MIB, sequence)


async def test_a_client_that_does_not_read_ends_as_stalled_and_neither_write_nor_abort_waits_for_it() -> None:
    # C087
    async with serving({edges.WATCH: flood}, Settings(write_seconds=0.3, abort_seconds=0.1)) as edge:
        async with connect(edge) as channel:
            stream = channel.unary_stream(edges.WATCH)(b"")
            await stream.read()
            assert in_flight(edge, Load.WATCH) == 1
            await until(lambda: in_flight(edge, Load.WATCH) == 0)
            error = await failure(drain(stream))
    assert (error.code(), reason(error)) == (CODE.ABORTED, "WATCH_STALLED")
    assert int(metadata(error)["headSequence"]) > 0


async def test_lateness_alone_ends_no_stream_while_the_client_still_reads() -> None:
    async def trickle(request: Any, call: Call) -> None:
        for _ in range(32):
            await call.write(b"x" * MIB)

    # The stream lasts longer than one write may, and no write does, also where the machine is slow.
    async with serving({edges.WATCH: trickle}, Settings(write_seconds=2.5)) as edge, connect(edge) as channel:
        stream, frames = channel.unary_stream(edges.WATCH)(b""), 0
        while await stream.read() is not grpc.aio.EOF:
            frames += 1
            await asyncio.sleep(0.1)
    assert frames == 32


async def test_a_handler_blocked_in_a_write_is_cancelled_when_its_client_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ends: list[type[BaseException]] = []

    async def blocked(request: Any, call: Call) -> None:
        try:
            await flood(request, call)
        except BaseException as exc:
            ends.append(type(exc))
            raise

    async with serving({edges.WATCH: blocked}) as edge, connect(edge) as channel:
        stream = channel.unary_stream(edges.WATCH)(b"")
        await stream.read()
        stream.cancel()
        await until(lambda: in_flight(edge, Load.WATCH) == 0)
        async with watching_process(edge) as client:
            client.kill()
            await until(lambda: len(ends) == 2)
    assert ends == [asyncio.CancelledError] * 2
    assert caplog.records == []


async def test_an_error_that_nobody_reads_does_not_keep_its_call() -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def stalled(request: Any, call: Call) -> None:
        tasks.append(asyncio.current_task())
        await flood(request, call)

    async with serving({edges.WATCH: stalled}, Settings(write_seconds=0.2, abort_seconds=0.1)) as edge:
        async with watching_process(edge):
            await until(lambda: tasks[0] is not None and tasks[0].done())


async def test_an_upload_that_breaks_off_never_looks_like_one_that_ended() -> None:
    # gRPC reports a client that left as the end of its requests, and the cancellation a moment later.
    gate, ends = Gate(), []

    async def upload(requests: AsyncIterator[Any], call: Call) -> bytes:
        try:
            async for _ in requests:
                gate.reached.set()
            ends.append("ended")
        except asyncio.CancelledError:
            ends.append("broken off")
            raise
        return b"kept"

    async with serving({edges.WRITE: upload}) as edge, connect(edge) as channel:
        for count in range(1, 21):
            call = channel.stream_unary(edges.WRITE)()
            await call.write(b"")
            await gate.reached.wait()
            gate.reached.clear()
            call.cancel()
            await until(lambda count=count: len(ends) == count)
        assert ends == ["broken off"] * 20
        assert await channel.stream_unary(edges.WRITE)(iter([b""])) == b"kept"


async def test_a_mistake_of_a_handler_with_grpc_is_a_fault_like_any_other() -> None:
    async def twice(request: Any, call: Call) -> None:
        await call.send_initial_metadata(once="true")
        await call.send_initial_metadata(twice="true")

    async with serving({edges.WATCH: twice}) as edge, connect(edge) as channel:
        error = await failure(drain(channel.unary_stream(edges.WATCH)(b"")))
    assert (error.code(), reason(error)) == (CODE.INTERNAL, "RUNTIME_INTERNAL")


async def test_a_watch_may_be_silent_for_longer_than_a_write_may_take() -> None:
    gate = Gate()

    async def silent(request: Any, call: Call) -> None:
        await call.write(b"before")
        await gate.pass_through()
        await call.write(b"after")

    async with serving({edges.WATCH: silent}, Settings(write_seconds=0.02)) as edge, connect(edge) as channel:
        stream = channel.unary_stream(edges.WATCH)(b"")
        await gate.reached.wait()
        asyncio.get_running_loop().call_later(0.2, gate.opened.set)
        assert await drain(stream) == [b"before", b"after"]


async def test_a_client_that_leaves_while_it_is_found_stalled_has_left() -> None:
    class Context:
        """A transport in which the client leaves at the very moment at which patience ends."""

        async def write(self, frame: bytes) -> None:
            task = asyncio.current_task()
            assert task is not None
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                task.cancel()
                raise

    async def handler() -> None:
        call = Call(Context(), 0.01)  # type: ignore[arg-type]
        await call.write(b"")

    with pytest.raises(asyncio.CancelledError):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(handler())
            await task
    assert task.cancelling() == 1


class Transport:
    """A transport without a wire, for what cannot be seen from the other end of one."""

    async def send_initial_metadata(self, pairs: tuple[tuple[str, str], ...]) -> None:
        """Fail as grpc.aio does when the client is gone."""
        raise grpc.aio.InternalError

    def time_remaining(self) -> None:
        """Say that the client set no deadline."""


@pytest.mark.parametrize("ending", ["returns", "raises"])
async def test_a_swallowed_cancellation_is_raised_again(ending: str) -> None:
    # A call that ends in any other way after its cancellation is never freed (grpc#43360).
    gate = Gate()

    async def stubborn(request: Any, call: Call) -> bytes:
        try:
            await gate.pass_through()
        except asyncio.CancelledError:
            if ending == "raises":
                raise RunNotFound("run_1") from None
        return b""

    house = House(Settings(), Admission({}), lambda context: LOCAL)
    answering = wrap(edges.GET, describe(edges.GET), stubborn, house).unary_unary
    async with asyncio.TaskGroup() as group:
        task = group.create_task(answering(b"", Transport()))
        await gate.reached.wait()
        task.cancel()
    assert task.cancelled()


async def test_a_client_that_is_gone_when_metadata_is_sent_is_a_cancellation() -> None:
    call = Call(Transport(), 1.0)  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await call.send_initial_metadata(key="value")
    assert call.is_over


async def test_a_call_is_answered_in_a_task_or_not_at_all() -> None:
    found = asyncio.get_running_loop().create_future()

    def outside() -> None:
        try:
            Call(None, 1.0)  # type: ignore[arg-type]
        except RuntimeError as exc:
            found.set_result(type(exc))

    asyncio.get_running_loop().call_soon(outside)
    assert await found is RuntimeError


async def test_a_stream_that_is_read_gets_every_frame_and_what_was_said_first() -> None:
    async def stream_run(request: Any, call: Call) -> None:
        await call.send_initial_metadata(behest_replayed="true")
        for _ in range(3):
            await call.send(rs.StreamRunResponse(head_sequence=7))

    async with serving({edges.STREAM: stream_run}) as edge, connect(edge) as channel:
        stream = channel.unary_stream(edges.STREAM, response_deserializer=rs.StreamRunResponse.FromString)(b"")
        frames = await drain(stream)
        said = dict(await stream.initial_metadata())
    assert [frame.head_sequence for frame in frames] == [7, 7, 7]
    assert said["behest-replayed"] == "true"


async def test_a_bug_in_one_handler_costs_one_call_only() -> None:
    gate = Gate()

    async def watch(request: Any, call: Call) -> None:
        await call.write(b"before")
        await gate.pass_through()
        await call.write(b"after")

    async def broken(request: Any, call: Call) -> None:
        raise RuntimeError

    async with serving({edges.WATCH: watch, edges.GET: broken, edges.LIST: answer}) as edge, connect(edge) as channel:
        stream = channel.unary_stream(edges.WATCH)(b"")
        await gate.reached.wait()
        for _ in range(20):
            assert reason(await failure(channel.unary_unary(edges.GET)(b""))) == "RUNTIME_INTERNAL"
        assert await channel.unary_unary(edges.LIST)(b"") == b""
        gate.opened.set()
        assert await drain(stream) == [b"before", b"after"]


async def quiet_watch(request: Any, call: Call) -> None:
    """Say one thing, then nothing."""
    await call.write(b"here")
    await asyncio.Event().wait()


async def test_pings_of_a_quiet_client_are_borne_as_often_as_the_settings_say() -> None:
    pings = (
        ("grpc.keepalive_time_ms", 150),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    tolerant = Settings(keepalive=Keepalive(min_interval_seconds=0.05))
    strict = Settings(keepalive=Keepalive(min_interval_seconds=60))
    async with (
        serving({edges.WATCH: quiet_watch}, tolerant) as borne,
        serving({edges.WATCH: quiet_watch}, strict) as punished,
        connect(borne, pings) as channel,
        connect(punished, pings) as other,
    ):
        living = channel.unary_stream(edges.WATCH)(b"")
        dying = other.unary_stream(edges.WATCH)(b"")
        assert (await living.read(), await dying.read()) == (b"here", b"here")
        error = await failure(dying.read())
        assert error.code() is CODE.UNAVAILABLE
        assert "pings" in (error.details() or "")
        assert not living.done()
        living.cancel()


async def test_stopping_says_not_serving_closes_the_listener_and_cuts_what_does_not_end() -> None:
    gate = Gate()

    async def brief(request: Any, call: Call) -> rs.GetRunResponse:
        await gate.pass_through()
        return rs.GetRunResponse()

    async with serving({edges.WATCH: quiet_watch, edges.GET: brief}) as edge, connect(edge) as channel:
        edge.health.set_serving()
        stream = channel.unary_stream(edges.WATCH)(b"")
        assert await stream.read() == b"here"
        ending = channel.unary_unary(edges.GET)(b"")
        await gate.reached.wait()
        async with asyncio.TaskGroup() as group:
            stopping = group.create_task(edge.stop(0.5))
            await until(lambda: not edge.health.is_serving)
            gate.opened.set()
            assert await ending == b""
            assert not stopping.done()
            error = await failure(stream.read())
        assert error.code() in (CODE.UNAVAILABLE, CODE.CANCELLED)
        async with connect(edge) as late:
            assert (await failure(late.unary_unary(edges.GET)(b""))).code() is CODE.UNAVAILABLE


async def test_a_watch_that_ends_itself_on_drain_tells_its_resume_point() -> None:
    gate = Gate()

    async def draining(request: Any, call: Call) -> None:
        await gate.pass_through()
        raise Draining(head_sequence=42)

    async with serving({edges.WATCH: draining}) as edge, connect(edge) as channel:
        stream = channel.unary_stream(edges.WATCH)(b"")
        await gate.reached.wait()
        gate.opened.set()
        error = await failure(drain(stream))
    assert (error.code(), reason(error)) == (CODE.UNAVAILABLE, "RUNTIME_DRAINING")
    assert metadata(error) == {"headSequence": "42"}
    assert ("grpc-retry-pushback-ms", "1000") in tuple(error.trailing_metadata() or ())


async def test_too_many_watches_are_refused_while_control_still_answers() -> None:
    async with serving({edges.WATCH: quiet_watch, edges.CANCEL: answer}, Settings(watches=2)) as edge:
        async with connect(edge) as channel:
            streams = [channel.unary_stream(edges.WATCH)(b"") for _ in range(2)]
            assert [await stream.read() for stream in streams] == [b"here", b"here"]
            error = await failure(drain(channel.unary_stream(edges.WATCH)(b"")))
            assert (error.code(), reason(error)) == (CODE.RESOURCE_EXHAUSTED, "RUNTIME_OVERLOADED")
            assert await channel.unary_unary(edges.CANCEL)(b"") == b""
            streams[0].cancel()
            await until(lambda: in_flight(edge, Load.WATCH) == 1)
            assert await channel.unary_stream(edges.WATCH)(b"").read() == b"here"
        assert edge.admission.statistics().refused[Load.WATCH] == 1


async def test_a_closed_gate_refuses_new_runs_in_both_ways_to_make_one() -> None:
    def closed(caller: Any) -> None:
        raise Overloaded("runs", 512)

    handlers = {edges.CREATE: answer, edges.STREAM: quiet_watch, edges.CANCEL: answer}
    async with serving(handlers, may_create=closed) as edge, connect(edge) as channel:
        created = await failure(channel.unary_unary(edges.CREATE)(b""))
        streamed = await failure(drain(channel.unary_stream(edges.STREAM)(b"")))
        assert await channel.unary_unary(edges.CANCEL)(b"") == b""
        assert in_flight(edge, Load.CREATE) == in_flight(edge, Load.WATCH) == 0
    assert [reason(error) for error in (created, streamed)] == ["RUNTIME_OVERLOADED"] * 2
    assert metadata(created) == {"limit": "512"}


async def test_requests_of_a_stream_are_read_one_by_one_and_answered() -> None:
    async def echo(requests: AsyncIterator[Any], call: Call) -> None:
        async for _ in requests:
            await call.write(b"seen")

    async def count(requests: AsyncIterator[Any], call: Call) -> bytes:
        return str(len([request async for request in requests])).encode()

    async with serving({edges.ATTACH: echo, edges.WRITE: count}) as edge, connect(edge) as channel:
        assert await drain(channel.stream_stream(edges.ATTACH)(iter([b"", b""]))) == [b"seen", b"seen"]
        assert await channel.stream_unary(edges.WRITE)(iter([b"", b"", b""])) == b"3"


async def test_a_handler_sees_who_calls_and_what_was_sent_beside_the_request() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen: list[Any] = []

    async def look(request: Any, call: Call) -> rs.GetRunResponse:
        seen.append((call.caller.principal, call.namespace, call.traceparent, call.metadata["x-key"]))
        return rs.GetRunResponse()

    async with serving({edges.GET: look}) as edge, connect(edge) as channel:
        await channel.unary_unary(edges.GET)(b"", metadata=(("traceparent", trace), ("x-key", "value")))
    assert seen == [("local", "default", trace, "value")]
