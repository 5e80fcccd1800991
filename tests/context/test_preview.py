"""ContextService of a daemon: previews that show what a run would send, lists of sources, answers to other daemons."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from behest.v1 import context_service_pb2 as pb
from behest.v1.agent_pb2 import Agent
from behest.v1.context_pb2 import ContextFailurePolicy, ContextSource, ContextSourceKind
from behest.v1.context_service_pb2_grpc import ContextServiceStub
from behest.v1.definition_pb2 import Limits
from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_spec_pb2 import RunSpec
from behestd.context.catalog import Sources
from behestd.core.times import duration
from tests.daemons import Served, refused, rejection, serve, writes

STATIC = ContextSourceKind.CONTEXT_SOURCE_KIND_STATIC
FUNCTION = ContextSourceKind.CONTEXT_SOURCE_KIND_FUNCTION
FAIL = ContextFailurePolicy.CONTEXT_FAILURE_POLICY_FAIL
HELLO = Part(text=TextPart(text="hello"))
INVALID = grpc.StatusCode.INVALID_ARGUMENT


async def news(request: pb.ProvideContextRequest) -> str:
    return "word " * 500


async def broken(request: pb.ProvideContextRequest) -> str:
    raise RuntimeError("no")


def sources() -> Sources:
    made = Sources(
        [
            ContextSource(name="rules", kind=STATIC, text="be kind", description="How to be"),
            ContextSource(name="news", kind=FUNCTION, timeout=duration(5), max_tokens=100),
            ContextSource(name="broken", kind=FUNCTION, timeout=duration(5), on_failure=FAIL),
            ContextSource(name="planned", kind=FUNCTION, timeout=duration(5)),
        ]
    )
    made.add("news", news)
    made.add("broken", broken)
    return made


async def agent_with(served: Served, *names: str, **fields: object) -> str:
    return (await served.client.agents.create(Agent(context_sources=names, **fields))).id  # type: ignore[arg-type]


async def said(served: Served, text: str, **fields: str) -> None:
    async with asyncio.timeout(20):
        await served.client.stream(text, **fields).result()  # type: ignore[arg-type]


async def test_a_preview_shows_messages_tokens_and_what_was_left_out() -> None:  # C103
    async with serve(sources=sources()) as served:
        limits = Limits(max_history_messages=4, max_history_tokens=60)
        agent = await agent_with(served, "rules", "news", limits=limits, instructions="system", tools=["*"])
        session = (await served.client.sessions.create()).id
        for number in range(4):
            await said(served, f"{number} " + "padding " * 10, session_id=session)
        count = writes(served)
        built = await served.client.context.preview("hello", session_id=session, agent_id=agent)
        assert writes(served) == count
        texts = [message.parts[0].text.text for message in built.messages]
        assert texts[:2] == ["system", "be kind"]
        assert texts[2].startswith("3 ")
        assert texts[-1] == "hello"
        assert set(built.tokens_by_source) == {"instructions", "rules", "history", "news", "run"}
        assert built.input_tokens == sum(built.tokens_by_source.values())
        assert len(built.message_tokens) == len(built.messages)
        assert [(trim.reason, trim.messages) for trim in built.trims] == [(1, 4), (2, 2)]
        assert all(trim.tokens and trim.limit for trim in built.trims)
        [outcome] = built.outcomes
        assert (outcome.source, outcome.tokens <= 100, outcome.cut_tokens > 400) == ("news", True, True)
        assert (built.model, built.calibration_permille, built.is_too_long) == ("scripted/echo", 1000, False)


async def test_a_preview_is_what_the_run_then_sends() -> None:  # C103
    async with serve(sources=sources()) as served:
        agent = await agent_with(served, "rules", "news")
        session = (await served.client.sessions.create()).id
        await said(served, "first", session_id=session, agent_id=agent)
        built = await served.client.context.preview("second", session_id=session, agent_id=agent)
        handle = served.client.stream("second", session_id=session, agent_id=agent)
        async with asyncio.timeout(20):
            [event] = [event async for event in handle.events() if event.WhichOneof("payload") == "context_built"]
        assert event.context_built.messages == len(built.messages)
        assert event.context_built.tokens_by_source == built.tokens_by_source


async def test_a_preview_needs_no_order() -> None:  # C103
    async with serve(sources=sources()) as served:
        agent = await agent_with(served, "rules", instructions="system")
        built = await served.client.context.preview(agent_id=agent)
        assert [message.parts[0].text.text for message in built.messages] == ["system", "be kind"]


async def test_a_preview_tells_what_does_not_fit() -> None:  # C103
    async with serve() as served:
        built = await served.client.context.preview("word " * 6_000, model="scripted/small")
        assert built.is_too_long
        assert built.input_tokens > built.limit_tokens > 0
        error = await refused(said(served, "word " * 6_000, model="scripted/small"))
        assert error.reason == "PROVIDER_CONTEXT_TOO_LONG"


async def test_a_preview_fails_as_the_run_would() -> None:  # C103
    async with serve(sources=sources()) as served:
        agent = await agent_with(served, "broken")
        error = await refused(served.client.context.preview("hello", agent_id=agent))
        assert (error.reason, error.metadata["source"]) == ("CONTEXT_SOURCE_FAILED", "broken")
        for fields, reason in (
            ({"agent_id": "never-made"}, "AGENT_NOT_FOUND"),
            ({"session_id": "never-made"}, "SESSION_NOT_FOUND"),
            ({"model": "scripted/none"}, "PROVIDER_MODEL_NOT_FOUND"),
        ):
            assert (await refused(served.client.context.preview("hello", **fields))).reason == reason  # type: ignore[arg-type]


async def test_sources_are_listed_by_name_page_by_page() -> None:  # C102
    async with serve(sources=sources()) as served:
        listed = [source async for source in served.client.context.sources()]
        assert [source.name for source in listed] == ["broken", "history", "news", "rules"]
        assert listed[3].description == "How to be"
        assert not any(source.text for source in listed)
        stub = ContextServiceStub(served.channel)
        first = await stub.ListContextSources(pb.ListContextSourcesRequest(page_size=3))
        rest = pb.ListContextSourcesRequest(page_size=3, page_token=first.next_page_token)
        assert [source.name for source in (await stub.ListContextSources(rest)).sources] == ["rules"]


async def test_the_daemon_gives_its_own_sources_to_others() -> None:  # C102 N05
    async with serve(sources=sources()) as served:
        stub = ContextServiceStub(served.channel)
        rules = await stub.ProvideContext(pb.ProvideContextRequest(source="rules"))
        assert rules.messages[0].parts[0].text.text == "be kind"
        cut = await stub.ProvideContext(pb.ProvideContextRequest(source="news", max_tokens=20))
        whole = await stub.ProvideContext(pb.ProvideContextRequest(source="news"))
        assert len(cut.messages[0].parts[0].text.text) < len(whole.messages[0].parts[0].text.text) < 2_500
        for name in ("planned", "never-made", "some/server", "history"):
            asked = stub.ProvideContext(pb.ProvideContextRequest(source=name))
            assert (await rejection(asked)).reason == "CONTEXT_SOURCE_NOT_FOUND"
        failed = await rejection(stub.ProvideContext(pb.ProvideContextRequest(source="broken")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "CONTEXT_SOURCE_FAILED")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.BuildContextRequest(), "spec"),
        (pb.BuildContextRequest(spec=RunSpec(input=[Part()])), "spec.input[0]"),
        (
            pb.BuildContextRequest(spec=RunSpec(session_id="a b", input=[Part(text=TextPart(text="x"))])),
            "spec.session_id",
        ),
        (pb.ProvideContextRequest(), "source"),
        (pb.ProvideContextRequest(source="rules", run_id="a b"), "run_id"),
        (pb.ProvideContextRequest(source="rules", step=-1), "step"),
        (pb.ProvideContextRequest(source="rules", max_tokens=-1), "max_tokens"),
        (pb.ProvideContextRequest(source="rules", messages=[{}]), "messages[0].role"),
        (pb.ProvideContextRequest(source="rules", deadline={"nanos": -1}), "deadline"),
        (pb.ListContextSourcesRequest(page_size=-1), "page_size"),
    ],
)
async def test_bad_requests_are_refused_with_the_field(request_: object, field: str) -> None:  # C103
    async with serve(sources=sources()) as served:
        method = type(request_).__name__.removesuffix("Request")
        told = await rejection(getattr(ContextServiceStub(served.channel), method)(request_))
        assert told.code == INVALID
        assert told.field == field


async def test_a_preview_over_the_limit_of_a_response_is_cut_at_its_end() -> None:  # C103
    async with serve() as served:
        session = (await served.client.sessions.create()).id
        picture = Part(image={"data": b"x" * 256 * 1024, "media_type": "image/png"})
        for _ in range(6):
            async with asyncio.timeout(20):
                await served.client.stream([picture] * 3, session_id=session).result()
        built = await served.client.context.preview("hello", session_id=session)
        assert 0 < len(built.messages) == len(built.message_tokens) < 13
        assert built.tokens_by_source["history"] > sum(built.message_tokens)
