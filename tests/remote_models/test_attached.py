"""Model servers that attach themselves: calls over the stream that they opened, and what a lost stream does to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from behest.v1.chat_service_pb2 import Chat, StreamChatResponse
from behest.v1.embedding_service_pb2 import Embedding, EmbedRequest, EmbedResponse
from behest.v1.registry_service_pb2 import AttachCall, AttachEnd, AttachHello, AttachServerRequest
from behest.v1.server_pb2 import ServerOffer
from behestd.core.route import RoutePolicy
from behestd.providers.failure import NOT_SENT
from behestd.runtime.house import Limits
from tests.attach.peer import Peer, attached, tool
from tests.attach.scenes import AWAY, GONE, READY, address, registration, until_state
from tests.daemons import Served, refused, serve
from tests.providers.conformance import failure, read, user
from tests.remote_models.model_peer import WAIT_SECONDS, Attending, Play, Refusal, end, endless, model, piece, saying
from tests.runs.scenes import kinds, only

FAST = RoutePolicy((), base_seconds=0.001, cap_seconds=0.002)
ONCE = RoutePolicy((), attempts_per_endpoint=1, attempts_per_step=1)
HELLO = {"models": [model()], "tools": []}


def chat(text: str = "hello") -> Chat:
    return Chat(model="far/m", messages=[user(text)])


def provider(served: Served) -> Any:
    return served.daemon.house.models.of("default").provider("far")


async def model_ids(served: Served) -> list[str]:
    return [each.id async for each in served.client.models.list() if each.provider_id != "scripted"]


async def events_of(served: Served, run_id: str) -> list[Any]:
    async with asyncio.timeout(WAIT_SECONDS):
        return [event async for event in served.client.watch(run_id).events()]


@asynccontextmanager
async def attending(served: Served, play: Play, **hello: Any) -> AsyncIterator[Attending]:
    """Attach, and answer as the play has it."""
    async with attached(address(served), "far", **(HELLO | hello)) as peer, asyncio.TaskGroup() as group:
        made = Attending(peer, play)
        task = group.create_task(made.run())
        yield made
        task.cancel()


async def asked(peer: Peer) -> AttachCall:
    call = await peer.call()
    assert call.WhichOneof("request") == "stream_chat"
    return call


async def say(peer: Peer, call: AttachCall, *frames: StreamChatResponse) -> None:
    for frame in frames:
        await peer.reply(call.call_number, stream_chat=frame)


async def test_a_server_attaches_offers_a_model_and_answers_a_run(served: Served) -> None:
    async with attached(address(served), "far", **HELLO) as peer:
        assert list(peer.welcome.server.model_ids) == ["far/m"]
        assert list(peer.welcome.server.offers) == [ServerOffer.SERVER_OFFER_CHAT]
        assert await model_ids(served) == ["far/m"]
        await served.client.run("hello", run_id="run-1", model="far/m")
        call = await asked(peer)
        assert (call.stream_chat.chat.model, call.stream_chat.chat.run_id) == ("m", "run-1")
        assert call.HasField("deadline")
        await say(peer, call, piece("hi "), piece("you"), end("hi you"))
        await peer.reply(call.call_number, end=AttachEnd())
        events = await events_of(served, "run-1")
        assert only(events, "model_completed")[0].message.parts[0].text.text == "hi you"


async def test_a_server_may_offer_tools_and_models_under_one_name(served: Served) -> None:
    async with attached(address(served), "far", tools=[tool()], models=[model(), model("v", embeds=True)]) as peer:
        assert list(peer.welcome.server.tool_names) == ["pay"]
        assert list(peer.welcome.server.model_ids) == ["far/m", "far/v"]
        assert len(peer.welcome.server.offers) == 3


async def test_vectors_come_over_the_stream(served: Served) -> None:
    async with attached(address(served), "far", tools=[], models=[model("v", embeds=True)]) as peer:
        request = EmbedRequest(model="far/v", inputs=["a"])
        answer = asyncio.ensure_future(_awaited(served.client.stubs.embeddings.Embed(request)))
        call = await peer.call()
        assert (call.embed.model, list(call.embed.inputs)) == ("v", ["a"])
        await peer.reply(call.call_number, embed=EmbedResponse(embeddings=[Embedding(values=[1.0, 2.0])]))
        await peer.reply(call.call_number, end=AttachEnd())
        assert list((await answer).embeddings[0].values) == [1.0, 2.0]


async def _awaited(call: Any) -> Any:
    return await call


async def test_a_cancelled_run_tells_the_server_which_stops(served: Served) -> None:
    async with attending(served, endless) as far:
        await served.client.run("hello", run_id="run-1", model="far/m")
        seen = await far.until()
        await served.client.runs.cancel("run-1")
        async with asyncio.timeout(WAIT_SECONDS):
            await seen.cancelled.wait()
        assert kinds(await events_of(served, "run-1"))[-1] == "run_cancelled"


async def test_a_client_that_leaves_or_runs_out_of_time_ends_the_call_at_the_server() -> None:
    async with serve(retries=ONCE) as served, attending(served, endless) as far:
        call = asyncio.ensure_future(served.client.chat.complete(chat()))
        seen = await far.until()
        call.cancel()
        asked = chat()
        asked.timeout.FromMilliseconds(500)
        assert (await refused(served.client.chat.complete(asked))).reason == "PROVIDER_TIMEOUT"
        async with asyncio.timeout(WAIT_SECONDS):
            await seen.cancelled.wait()
            await (await far.until(2)).cancelled.wait()


async def test_a_stream_that_breaks_is_a_broken_attempt_and_nothing_is_spliced() -> None:
    async with serve(retries=FAST) as served:
        async with attached(address(served), "far", **HELLO) as first:
            await served.client.run("hello", run_id="run-1", model="far/m")
            await say(first, await asked(first), piece("first half "))
            async with asyncio.timeout(WAIT_SECONDS), aclosing(served.client.watch("run-1").text()) as texts:
                assert await anext(texts) == "first half "
            first.drop()
            async with attached(address(served), "far", lease_id=first.welcome.lease_id, **HELLO) as second:
                call = await asked(second)
                await say(second, call, piece("whole"), end("whole"))
                await second.reply(call.call_number, end=AttachEnd())
                events = await events_of(served, "run-1")
        assert only(events, "model_failed")[0].reason == "PROVIDER_STREAM_BROKEN"
        assert only(events, "model_completed")[0].message.parts[0].text.text == "whole"


async def test_a_call_waits_for_a_server_that_is_away_for_a_moment(served: Served) -> None:
    async with attached(address(served), "far", **HELLO) as first:
        first.drop()
    await until_state(served, "far", AWAY)
    assert await model_ids(served) == ["far/m"]
    answer = asyncio.ensure_future(read(provider(served), chat()))
    async with attending(served, saying(piece("hi"), end("hi"))):
        async with asyncio.timeout(WAIT_SECONDS):
            assert (await answer)[1].message.parts[0].text.text == "hi"


async def test_a_server_that_does_not_come_back_is_gone_with_its_models() -> None:
    async with serve(limits=Limits(reconnect_seconds=0.2), retries=ONCE) as served:
        async with attached(address(served), "far", **HELLO):
            held = provider(served)
        await until_state(served, "far", GONE)
        assert await model_ids(served) == []
        assert (await refused(served.client.chat.complete(chat()))).reason == "PROVIDER_NOT_FOUND"
        # Who resolved the model before finds nobody there.
        assert (await failure(held, chat())).failure_class == NOT_SENT
        async with attending(served, saying(piece("hi"), end("hi"))):
            assert await model_ids(served) == ["far/m"]
            assert (await served.client.chat.complete(chat())).model == "far/m"


async def test_never_more_calls_are_on_the_stream_than_the_server_takes(served: Served) -> None:
    async with attached(address(served), "far", max_concurrent_calls=1, **HELLO) as peer:
        answers = [asyncio.ensure_future(read(provider(served), chat(text))) for text in ("one", "two")]
        call = await asked(peer)
        following = asyncio.ensure_future(asked(peer))
        text = call.stream_chat.chat.messages[0].parts[0].text.text
        await say(peer, call, piece(text), end(text))
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_SECONDS)
        # Its answer is whole, and it still counts until its end.
        assert [answer.done() for answer in answers].count(True) == 1
        assert not following.done()
        await peer.reply(call.call_number, end=AttachEnd())
        call = await following
        text = call.stream_chat.chat.messages[0].parts[0].text.text
        await say(peer, call, piece(text), end(text))
        await peer.reply(call.call_number, end=AttachEnd())
        told = [(await answer)[1].message.parts[0].text.text for answer in answers]
        assert told == ["one", "two"]


async def test_a_cancelled_call_counts_until_its_end_has_come(served: Served) -> None:
    async with attached(address(served), "far", max_concurrent_calls=1, **HELLO) as peer:
        first = asyncio.ensure_future(read(provider(served), chat("one")))
        call = await asked(peer)
        first.cancel()
        frame = await peer.next()
        assert frame.cancel.call_number == call.call_number
        second = asyncio.ensure_future(read(provider(served), chat("two")))
        # What still comes of the first is dropped.
        await say(peer, call, piece("late"))
        await peer.reply(call.call_number, end=AttachEnd())
        call = await asked(peer)
        await say(peer, call, piece("two"), end("two"))
        await peer.reply(call.call_number, end=AttachEnd())
        assert (await second)[1].message.parts[0].text.text == "two"


async def test_a_server_that_drains_gets_no_more_calls_and_finishes_what_it_has(served: Served) -> None:
    async with attached(address(served), "far", **HELLO) as peer:
        first = asyncio.ensure_future(read(provider(served), chat("one")))
        call = await asked(peer)
        await peer.drain()
        async with asyncio.timeout(WAIT_SECONDS):
            while served.daemon.rooms.registry.named("default", "far").standing().is_there:  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        second = asyncio.ensure_future(read(provider(served), chat("two")))
        await say(peer, call, piece("one"), end("one"))
        await peer.reply(call.call_number, end=AttachEnd())
        assert (await first)[1].message.parts[0].text.text == "one"
        await peer.write(AttachServerRequest(hello=AttachHello(server_name="far", **HELLO)))  # type: ignore[arg-type]
        assert (await peer.next()).WhichOneof("frame") == "welcome"
        call = await asked(peer)
        await say(peer, call, piece("two"), end("two"))
        await peer.reply(call.call_number, end=AttachEnd())
        assert (await second)[1].message.parts[0].text.text == "two"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"end": AttachEnd()}, "PROVIDER_STREAM_BROKEN"),
        ({"embed": EmbedResponse()}, "PROVIDER_MALFORMED_OUTPUT"),
        ({"stream_chat": end("never shown")}, "PROVIDER_MALFORMED_OUTPUT"),
        (
            {"end": AttachEnd(error=Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, retry=3).status)},
            "PROVIDER_RATE_LIMITED",
        ),
        ({"end": AttachEnd(error=Refusal(grpc.StatusCode.UNAUTHENTICATED).status)}, "PROVIDER_CREDENTIALS_REJECTED"),
    ],
)
async def test_what_makes_no_sense_is_a_typed_failure(served: Served, reply: dict[str, Any], reason: str) -> None:
    async with attached(address(served), "far", **HELLO) as peer:
        answer = asyncio.ensure_future(failure(provider(served), chat()))
        call = await asked(peer)
        await peer.reply(call.call_number, **reply)
        told = await answer
        assert told.reason == reason
        assert told.retry_after_seconds == (3.0 if reason == "PROVIDER_RATE_LIMITED" else None)


async def test_a_call_that_does_not_fit_a_frame_is_not_sent(served: Served) -> None:
    async with attached(address(served), "far", **HELLO) as peer:
        told = await failure(provider(served), chat("a" * peer.welcome.max_frame_bytes))
        assert told.reason == "PROVIDER_REQUEST_INVALID"


async def test_the_name_of_a_provider_is_taken(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with attached(address(served), "scripted", **HELLO):
            pass
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert served.daemon.rooms.registry.named("default", "scripted") is None


async def test_another_hello_puts_other_models_in_place(served: Served) -> None:
    async with attached(address(served), "far", **HELLO) as peer:
        for wanted in (["a", "b"], []):
            hello = AttachHello(server_name="far", models=[model(name) for name in wanted])
            await peer.write(AttachServerRequest(hello=hello))
            frame = await peer.next()
            assert list(frame.welcome.server.model_ids) == [f"far/{name}" for name in wanted]
            assert await model_ids(served) == [f"far/{name}" for name in wanted]


async def test_models_of_a_server_come_back_with_the_daemon_and_wait_for_it(tmp_path: Path) -> None:
    where: dict[str, Any] = {"store": "sqlite", "data_dir": tmp_path / "data"}
    async with serve(**where) as served, attached(address(served), "far", **HELLO):
        pass
    async with serve(**where) as served:
        assert await model_ids(served) == ["far/m"]
        answer = asyncio.ensure_future(read(provider(served), chat()))
        async with attending(served, saying(piece("hi"), end("hi"))):
            async with asyncio.timeout(WAIT_SECONDS):
                assert (await answer)[1].message.parts[0].text.text == "hi"


async def test_a_registered_server_may_bring_models_that_it_was_not_registered_with(served: Served) -> None:
    await served.client.servers.register(registration("far"))
    async with attached(address(served), "far", tools=[tool()], models=[model()]) as peer:
        assert ServerOffer.SERVER_OFFER_CHAT in peer.welcome.server.offers
        assert (await until_state(served, "far", READY)).model_ids == ["far/m"]
