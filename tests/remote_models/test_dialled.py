"""Model servers that are dialled: routed to like built-in providers, over real channels, whatever they do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.errors import BehestError
from behest.v1.chat_service_pb2 import Chat, StreamChatRequest
from behest.v1.embedding_service_pb2 import Embedding, EmbedRequest, EmbedResponse
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.run_service_pb2 import CreateRunRequest
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.server_pb2 import ServerOffer, ServerState
from behest.v1.session_pb2 import Session
from behestd.core.route import RoutePolicy
from behestd.providers.failure import CLASSES, NOT_SENT
from behestd.runtime import dialled
from tests.daemons import Served, refused, serve
from tests.providers.conformance import failure, user
from tests.remote_models.model_peer import (
    WAIT_SECONDS,
    Raw,
    Refusal,
    Seen,
    end,
    endless,
    model,
    piece,
    raw,
    saying,
)
from tests.runs.scenes import kinds, only

ONCE = RoutePolicy((), attempts_per_endpoint=1, attempts_per_step=1)
FAST = RoutePolicy((), base_seconds=0.001, cap_seconds=0.002)
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def chat(text: str = "hello", **fields: Any) -> Chat:
    return Chat(**({"model": "far/m", "messages": [user(text)]} | fields))


def provider(served: Served) -> Any:
    return served.daemon.house.models.of("default").provider("far")


async def events_of(served: Served, run_id: str) -> list[Any]:
    async with asyncio.timeout(WAIT_SECONDS):
        return [event async for event in served.client.watch(run_id).events()]


async def model_ids(served: Served) -> list[str]:
    return [each.id async for each in served.client.models.list() if each.provider_id != "scripted"]


async def until_listed(served: Served, *wanted: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while await model_ids(served) != list(wanted):
            await asyncio.sleep(0.02)


async def test_a_server_is_registered_listed_and_answers_a_run() -> None:
    async with raw() as server, serve() as served:
        made = await served.client.servers.register(server.registration())
        assert made.state == ServerState.SERVER_STATE_READY
        assert list(made.model_ids) == ["far/m", "far/vectors"]
        assert await model_ids(served) == ["far/m", "far/vectors"]
        (told,) = [each async for each in served.client.models.providers() if each.id == "far"]
        assert (told.adapter, told.address, told.server_id) == ("remote", server.address, made.id)
        await served.client.run("hello", run_id="run-1", model="far/m")
        events = await events_of(served, "run-1")
        assert kinds(events)[-1] == "run_completed"
        (completed,) = only(events, "model_completed")
        assert completed.message.parts[0].text.text == "hi"
        assert server.seen[0].chat.model == "m"
        assert server.seen[0].chat.run_id == "run-1"


async def test_the_pieces_go_on_while_the_model_still_speaks() -> None:
    async with raw(endless) as server, serve() as served:
        await served.client.servers.register(server.registration())
        stream = served.client.stubs.chat.StreamChat(StreamChatRequest(chat=chat()))
        async with asyncio.timeout(WAIT_SECONDS):
            frame = await stream.read()
            assert frame.deltas[0].text == "a "
            seen = await server.until()
            assert not seen.cancelled.is_set()
            # A client that leaves ends the call at the provider.
            stream.cancel()
            await seen.cancelled.wait()


async def test_a_run_that_is_cancelled_cancels_the_call_of_the_provider() -> None:
    async with raw(endless) as server, serve() as served:
        await served.client.servers.register(server.registration())
        await served.client.run("hello", run_id="run-1", model="far/m")
        seen = await server.until()
        await served.client.runs.cancel("run-1")
        async with asyncio.timeout(WAIT_SECONDS):
            await seen.cancelled.wait()
        assert kinds(await events_of(served, "run-1"))[-1] == "run_cancelled"


async def test_an_attempt_that_runs_out_of_its_time_is_cancelled_at_the_provider() -> None:
    async with raw(endless) as server, serve(retries=ONCE) as served:
        await served.client.servers.register(server.registration())
        asked = chat()
        asked.timeout.FromMilliseconds(700)
        error = await refused(served.client.chat.complete(asked))
        assert error.reason == "PROVIDER_TIMEOUT"
        async with asyncio.timeout(WAIT_SECONDS):
            await server.seen[0].cancelled.wait()
        assert server.seen[0].chat.timeout.ToMilliseconds() <= 700
        assert server.seen[0].left_seconds is not None


async def test_a_unary_call_whose_client_leaves_is_cancelled_at_the_provider() -> None:
    async with raw(endless) as server, serve() as served:
        await served.client.servers.register(server.registration())
        call = asyncio.ensure_future(served.client.chat.complete(chat()))
        seen = await server.until()
        call.cancel()
        async with asyncio.timeout(WAIT_SECONDS):
            await seen.cancelled.wait()


async def test_trace_and_deadline_of_a_caller_reach_the_provider() -> None:
    async with raw() as server, serve() as served:
        await served.client.servers.register(server.registration())
        call = served.client.stubs.chat.StreamChat(
            StreamChatRequest(chat=chat()), timeout=30, metadata=(("traceparent", PARENT),)
        )
        assert [frame async for frame in call][-1].HasField("end")
        seen = server.seen[0]
        assert seen.metadata["traceparent"] == PARENT
        assert 0 < seen.chat.timeout.ToSeconds() <= 30


async def test_a_run_takes_the_provider_into_its_trace() -> None:
    async with raw() as server, serve() as served:
        await served.client.servers.register(server.registration())
        spec = RunSpec(run_id="run-1", input=user("hello").parts, model="far/m")
        request = CreateRunRequest(request_id="r", spec=spec)
        await served.client.stubs.runs.CreateRun(request, metadata=(("traceparent", PARENT),))
        assert kinds(await events_of(served, "run-1"))[-1] == "run_completed"
        version, trace_id, span_id, flags = server.seen[0].metadata["traceparent"].split("-")
        assert (version, trace_id, len(span_id), flags) == ("00", TRACE_ID, 16, "01")
        assert server.seen[0].left_seconds is not None


REFUSALS = {
    "unavailable": (Refusal(grpc.StatusCode.UNAVAILABLE), "PROVIDER_UNAVAILABLE"),
    "throttled": (Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, retry=7), "PROVIDER_RATE_LIMITED"),
    "invalid": (Refusal(grpc.StatusCode.INVALID_ARGUMENT), "PROVIDER_REQUEST_INVALID"),
    "deadline": (Refusal(grpc.StatusCode.DEADLINE_EXCEEDED), "PROVIDER_TIMEOUT"),
    "no such model": (Refusal(grpc.StatusCode.NOT_FOUND), "PROVIDER_MODEL_REJECTED"),
    "fault": (Refusal(grpc.StatusCode.UNKNOWN), "PROVIDER_UNAVAILABLE"),
    "unimplemented": (Refusal(grpc.StatusCode.UNIMPLEMENTED), "PROVIDER_REQUEST_INVALID"),
    "quota": (Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="PROVIDER_QUOTA"), "PROVIDER_QUOTA"),
    "too long": (
        Refusal(grpc.StatusCode.FAILED_PRECONDITION, reason="PROVIDER_CONTEXT_TOO_LONG"),
        "PROVIDER_CONTEXT_TOO_LONG",
    ),
    "another reason": (Refusal(grpc.StatusCode.UNAVAILABLE, reason="RUNTIME_DRAINING"), "PROVIDER_UNAVAILABLE"),
    "no token": (Refusal(grpc.StatusCode.UNAUTHENTICATED, reason="AUTH_REQUIRED"), "PROVIDER_CREDENTIALS_REJECTED"),
    "no right": (Refusal(grpc.StatusCode.PERMISSION_DENIED), "PROVIDER_CREDENTIALS_REJECTED"),
}


@pytest.mark.parametrize(("refusal", "reason"), REFUSALS.values(), ids=REFUSALS)
async def test_what_a_server_refuses_has_its_class_and_its_reason(refusal: Refusal, reason: str) -> None:
    async def play(chat: Chat, seen: Seen) -> Any:
        raise refusal
        yield

    async with raw(play) as server, serve(retries=ONCE) as served:
        await served.client.servers.register(server.registration())
        told = await failure(provider(served), chat())
        assert (told.reason, told.failure_class) == (reason, CLASSES[reason])
        assert told.retry_after_seconds == (7.0 if reason == "PROVIDER_RATE_LIMITED" else None)
        error = await refused(served.client.chat.complete(chat()))
        assert error.reason == reason
        # C016
        assert error.code is not grpc.StatusCode.UNAUTHENTICATED


GARBAGE = {
    "no protobuf": (b"\xff\xff\xff",),
    "no UTF-8": (piece("a").SerializeToString().replace(b"a", b"\xff"),),
    "an end twice": (piece("a"), end("a"), end("a")),
    "pieces after the end": (piece("a"), end("a"), piece("b")),
    "an end that is another text": (piece("a"), end("b")),
    "an oversize frame": (piece("a" * (5 * 1024 * 1024)),),
}


@pytest.mark.parametrize("frames", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_is_malformed(frames: tuple[Any, ...]) -> None:
    async with raw(saying(*frames)) as server, serve() as served:
        await served.client.servers.register(server.registration())
        told = await failure(provider(served), chat())
        assert (told.reason, told.failure_class) == (
            "PROVIDER_MALFORMED_OUTPUT",
            FailureClass.FAILURE_CLASS_MALFORMED,
        )


@pytest.mark.parametrize("frames", [(), (piece("a"),)], ids=["nothing", "half an answer"])
async def test_a_stream_that_ends_well_without_its_end_is_broken(frames: tuple[Any, ...]) -> None:
    async with raw(saying(*frames)) as server, serve() as served:
        await served.client.servers.register(server.registration())
        assert (await failure(provider(served), chat())).reason == "PROVIDER_STREAM_BROKEN"


async def test_a_request_that_the_server_finds_too_large_is_the_request_s_fault() -> None:
    async with raw() as server, serve() as served:
        server.models = [model()]
        await served.client.servers.register(server.registration())
        told = await failure(provider(served), chat("a" * (4 * 1024 * 1024 - 40_000)))
        assert told.reason == "PROVIDER_REQUEST_INVALID"


async def test_a_request_that_is_too_large_is_not_sent() -> None:
    async with raw() as server, serve() as served:
        await served.client.servers.register(server.registration())
        told = await failure(provider(served), chat("a" * (5 * 1024 * 1024)))
        assert told.reason == "PROVIDER_REQUEST_INVALID"
        assert not server.seen


async def test_an_answer_that_breaks_is_tried_again_and_never_spliced() -> None:
    async def play(chat: Chat, seen: Seen) -> Any:
        if len(server.seen) == 1:
            yield piece("first half ")
            raise Refusal(grpc.StatusCode.UNAVAILABLE)
        yield piece("whole")
        yield end("whole")

    async with raw(play) as server, serve(retries=FAST) as served:
        await served.client.servers.register(server.registration())
        await served.client.run("hello", run_id="run-1", model="far/m")
        events = await events_of(served, "run-1")
        assert only(events, "model_failed")[0].reason == "PROVIDER_STREAM_BROKEN"
        assert only(events, "model_completed")[0].message.parts[0].text.text == "whole"


async def test_a_lost_server_keeps_its_models_and_its_calls_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialled, "REFRESH_SECONDS", 0.2)
    async with serve() as served:
        async with raw() as server:
            await served.client.servers.register(server.registration())
            port = server.address
        async with asyncio.timeout(20):
            # One that leaves while the connection ends may have arrived, for all that anybody can say.
            while (told := await failure(provider(served), chat())).failure_class != NOT_SENT:
                assert told.reason in ("PROVIDER_UNAVAILABLE", "PROVIDER_STREAM_BROKEN")
        assert told.reason == "PROVIDER_UNAVAILABLE"
        assert await model_ids(served) == ["far/m", "far/vectors"]
        async with raw(address=port) as server:
            server.models = [model("other")]
            # What it lists after it was away takes the place of what it listed before.
            await until_listed(served, "far/other")
            assert (await served.client.chat.complete(chat(model="far/other"))).model == "far/other"


async def test_what_a_server_lists_anew_is_taken_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialled, "REFRESH_SECONDS", 0.05)
    async with raw() as server, serve() as served:
        await served.client.servers.register(server.registration())
        server.models = [model("a b")]
        await asyncio.wait_for(_listed_again(server), WAIT_SECONDS)
        # What makes no sense changes nothing.
        assert await model_ids(served) == ["far/m", "far/vectors"]
        server.models = []
        await until_listed(served)
        server.models = [model("new")]
        await until_listed(served, "far/new")


async def _listed_again(server: Raw) -> None:
    before = server.listed
    while server.listed < before + 2:
        await asyncio.sleep(0.01)


async def test_models_outlive_the_daemon_that_listed_them(tmp_path: Path) -> None:
    where = {"store": "sqlite", "data_dir": tmp_path / "data"}
    async with raw() as server:
        async with serve(**where) as served:  # type: ignore[arg-type]
            await served.client.servers.register(server.registration())
    async with serve(**where) as served:  # type: ignore[arg-type]
        assert await model_ids(served) == ["far/m", "far/vectors"]
        made = served.daemon.rooms.registry.named("default", "far")
        assert made is not None
        await served.client.servers.unregister(made.registration.id)
        assert await model_ids(served) == []
    async with serve(**where) as served:  # type: ignore[arg-type]
        assert await model_ids(served) == []


async def test_the_name_of_a_provider_is_taken() -> None:
    async with raw() as server, serve() as served:
        error = await refused(served.client.servers.register(server.registration("scripted")))
        assert error.reason == "TOOL_SERVER_NAME_TAKEN"
        assert [each.name async for each in served.client.servers.list()] == []
        # Of tools alone there is no such provider.
        tools = server.registration("scripted", offers=[ServerOffer.SERVER_OFFER_TOOLS])
        await served.client.servers.register(tools)


async def test_a_list_that_makes_no_sense_registers_nothing() -> None:
    async with raw() as server, serve() as served:
        server.models = [model("a b")]
        error = await refused(served.client.servers.register(server.registration()))
        assert error.reason == "REQUEST_INVALID"
        assert [each.name async for each in served.client.servers.list()] == []


async def test_a_new_registration_takes_the_place_of_the_old_one() -> None:
    async with raw() as server, serve() as served:
        await served.client.servers.register(server.registration())
        made = await served.client.servers.register(
            server.registration(offers=[ServerOffer.SERVER_OFFER_CHAT]), replace=True
        )
        assert list(made.model_ids) == ["far/m"]
        assert (await served.client.chat.complete(chat())).model == "far/m"


async def test_vectors_come_from_a_remote_model_in_order() -> None:
    async with raw() as server, serve() as served:
        server.embedded = lambda request: EmbedResponse(
            embeddings=[Embedding(values=[float(len(text)), 1.0]) for text in request.inputs]
        )
        await served.client.servers.register(server.registration())
        request = EmbedRequest(model="far/vectors", inputs=["a", "abc", "ab"])
        response = await served.client.stubs.embeddings.Embed(request)
        assert [list(each.values) for each in response.embeddings] == [[1.0, 1.0], [3.0, 1.0], [2.0, 1.0]]
        assert (response.model, response.usage.attempts) == ("far/vectors", 1)


async def test_a_session_is_not_told_to_a_remote_model() -> None:
    asked: list[EmbedRequest] = []

    def embedded(request: EmbedRequest) -> EmbedResponse:
        asked.append(request)
        return EmbedResponse(embeddings=[Embedding(values=[1.0])])

    async with raw() as server, serve() as served:
        server.embedded = embedded
        await served.client.servers.register(server.registration())
        session = await served.client.sessions.create(Session())
        request = EmbedRequest(model="far/vectors", inputs=["a"], session_id=session.id)
        await served.client.stubs.embeddings.Embed(request)
        assert (asked[0].session_id, asked[0].model) == ("", "vectors")


async def test_the_token_goes_to_the_server_and_never_comes_back() -> None:
    async def play(chat: Chat, seen: Seen) -> Any:
        raise Refusal(grpc.StatusCode.UNAUTHENTICATED, f"no: {seen.metadata['authorization']}")
        yield

    async with raw(play) as server, serve(secrets=lambda reference: "s3cret", retries=ONCE) as served:
        await served.client.servers.register(server.registration(token_ref="env:FAR"))
        error = await refused(served.client.chat.complete(chat()))
        assert server.seen[0].metadata["authorization"] == "Bearer s3cret"
        assert error.reason == "PROVIDER_CREDENTIALS_REJECTED"
        assert "s3cret" not in str(error)


async def test_an_address_that_may_not_be_called_is_refused_for_models_too() -> None:
    async with raw() as server, serve() as served:
        wanted = server.registration(offers=[ServerOffer.SERVER_OFFER_CHAT])
        wanted.address = "169.254.169.254:80"
        with pytest.raises(BehestError) as caught:
            await served.client.servers.register(wanted)
        assert caught.value.reason == "TOOL_ENDPOINT_REFUSED"
