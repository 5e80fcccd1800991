"""Context sources of a whole daemon: static, function, remote, asked before each step, skipped or failing the run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from behest.context_server import ContextServer
from behest.v1.agent_pb2 import Agent
from behest.v1.context_pb2 import ContextFailurePolicy, ContextSource, ContextSourceKind
from behest.v1.context_service_pb2 import ProvideContextRequest
from behest.v1.definition_pb2 import Limits
from behest.v1.message_pb2 import Message, Part, Role, TextPart, ToolCall
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behestd.context.catalog import Sources
from behestd.core.times import duration
from behestd.wire.endpoint import allow_list
from tests.daemons import Served, refused, serve

STATIC = ContextSourceKind.CONTEXT_SOURCE_KIND_STATIC
FUNCTION = ContextSourceKind.CONTEXT_SOURCE_KIND_FUNCTION
REMOTE = ContextSourceKind.CONTEXT_SOURCE_KIND_REMOTE
FAIL = ContextFailurePolicy.CONTEXT_FAILURE_POLICY_FAIL
RULES = ContextSource(name="rules", kind=STATIC, text="fact tone = kind")


class Weather:
    """A source that counts how often it is asked, and may be told to misbehave."""

    def __init__(self) -> None:
        self.asked: list[ProvideContextRequest] = []
        self.answer: Any = "fact weather = rain"
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, request: ProvideContextRequest) -> Any:
        self.asked.append(request)
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def agent_with(served: Served, *sources: str, **fields: Any) -> str:
    """Make an agent that names sources."""
    made = await served.client.agents.create(Agent(context_sources=sources, **fields))
    return made.id


async def text_of(served: Served, text: str, **fields: Any) -> str:
    """Run to the end, and give the answer."""
    async with asyncio.timeout(20):
        return (await served.client.stream(text, **fields).result()).text


async def built(served: Served, run_id: str) -> list[Any]:
    """The context of each step of a run."""
    async with asyncio.timeout(20):
        events = [event async for event in served.client.watch(run_id).events()]
    return [event.context_built for event in events if event.WhichOneof("payload") == "context_built"]


@asynccontextmanager
async def remote(server: ContextServer, **fields: Any) -> AsyncIterator[Served]:
    """A daemon that may dial a context server on loopback, and has it registered as `home`."""
    async with server, serve(endpoints=allow_list(["127.0.0.1/32"]), **fields) as served:
        port = await server.serve("127.0.0.1:0")
        await served.client.servers.register(
            Server(
                name="home",
                connection=ServerConnection.SERVER_CONNECTION_DIALLED,
                address=f"127.0.0.1:{port}",
                offers=[ServerOffer.SERVER_OFFER_CONTEXT],
            )
        )
        yield served


def source(name: str, **fields: Any) -> ContextSource:
    return ContextSource(name=name, kind=FUNCTION, timeout=duration(5), **fields)


async def test_static_and_function_sources_stand_before_the_model() -> None:  # C102
    weather, sources = Weather(), Sources([RULES])
    sources.add("weather", weather)
    async with serve(sources=sources) as served:
        agent = await agent_with(served, "weather", "rules")
        assert await text_of(served, "/recall", agent_id=agent) == "fact tone = kind\nfact weather = rain"
        [request] = weather.asked
        assert (request.source, request.step, request.agent_id) == ("weather", 1, agent)
        assert [message.parts[0].text.text for message in request.messages] == ["/recall"]


async def test_each_step_asks_anew_and_says_so_in_the_log() -> None:  # C102
    weather, sources = Weather(), Sources([RULES])
    sources.add("weather", weather)
    async with serve(sources=sources) as served:
        agent = await agent_with(served, "rules", "weather", tools=[])
        text = await text_of(served, "/tool look {} /next /recall weather", agent_id=agent, run_id="run-1")
        assert text == "fact weather = rain"
        first, second = await built(served, "run-1")
        assert [first.step, second.step] == [1, 2]
        assert [request.step for request in weather.asked] == [1, 2]
        assert [message.parts[0].text.text for message in first.provided] == ["fact weather = rain"]
        assert first.outcomes[0].tokens == first.tokens_by_source["weather"] > 0
        assert first.outcomes[0].elapsed.nanos > 0


async def test_a_run_without_sources_asks_nobody() -> None:
    weather, sources = Weather(), Sources()
    sources.add("weather", weather)
    async with serve(sources=sources) as served:
        await text_of(served, "hello")
        assert weather.asked == []


async def test_sources_are_asked_at_the_same_time() -> None:  # C102
    """Each waits for the other to be asked."""
    sources, both = Sources(), asyncio.Barrier(2)

    async def meet(request: ProvideContextRequest) -> str:
        await both.wait()
        return f"fact {request.source} = met"

    sources.add("one", meet)
    sources.add("two", meet)
    async with serve(sources=sources) as served:
        agent = await agent_with(served, "one", "two")
        assert await text_of(served, "/recall", agent_id=agent) == "fact one = met\nfact two = met"


async def test_a_source_that_takes_too_long_is_skipped() -> None:  # C102
    weather = Weather()
    weather.gate.clear()
    sources = Sources([ContextSource(name="weather", kind=FUNCTION, timeout=duration(0.05)), RULES])
    sources.add("weather", weather)
    async with serve(sources=sources) as served:
        agent = await agent_with(served, "weather", "rules")
        assert await text_of(served, "/recall", agent_id=agent, run_id="run-1") == "fact tone = kind"
        [context] = await built(served, "run-1")
        assert context.outcomes[0].skipped_reason == "CONTEXT_SOURCE_FAILED"
        assert "0.05 s" in context.outcomes[0].skipped_message


async def test_a_source_that_must_not_fail_fails_the_run() -> None:  # C102
    weather = Weather()
    weather.answer = RuntimeError("secret text")
    sources = Sources([source("weather", on_failure=FAIL)])
    sources.add("weather", weather)
    async with serve(sources=sources) as served:
        agent = await agent_with(served, "weather")
        error = await refused(text_of(served, "hello", agent_id=agent))
        assert error.reason == "CONTEXT_SOURCE_FAILED"
        assert "secret text" not in str(error)


async def test_what_a_source_gives_is_checked() -> None:
    weather = Weather()
    sources = Sources()
    sources.add("weather", weather)
    call = Message(role=Role.ROLE_ASSISTANT, parts=[Part(tool_call=ToolCall(id="x", name="look"))])
    answers = [call, Message(role=Role.ROLE_USER), 7, ["x" * 3_000_000], ["x"] * 300]
    async with serve(sources=sources) as served:
        agent = await agent_with(served, "weather")
        for number, weather.answer in enumerate(answers):
            await text_of(served, "hello", agent_id=agent, run_id=f"run-{number}")
            [context] = await built(served, f"run-{number}")
            assert context.outcomes[0].skipped_reason
            assert not context.provided


async def test_a_source_may_have_nothing_to_say_and_may_say_several_things() -> None:
    weather, sources = Weather(), Sources()
    sources.add("weather", weather)
    system = Message(role=Role.ROLE_SYSTEM, parts=[Part(text=TextPart(text="fact wind = west"))])
    async with serve(sources=sources) as served:
        agent = await agent_with(served, "weather")
        weather.answer = None
        assert await text_of(served, "/recall", agent_id=agent) == "nothing"
        weather.answer = ["fact weather = sun", "", system]
        assert await text_of(served, "/recall", agent_id=agent) == "fact weather = sun\nfact wind = west"


async def test_a_run_is_pinned_to_its_sources_and_history_has_its_place() -> None:  # C102
    weather, sources = Weather(), Sources([RULES])
    sources.add("weather", weather)
    async with serve(sources=sources) as served:
        agent = await agent_with(served, "weather", "history", "rules", instructions="system")
        session = (await served.client.sessions.create()).id
        await text_of(served, "first", session_id=session, agent_id=agent)
        preview = await served.client.context.preview("second", session_id=session, agent_id=agent)
        texts = [message.parts[0].text.text for message in preview.messages]
        assert texts == ["system", "fact weather = rain", "first", "first", "fact tone = kind", "second"]


async def test_names_that_are_not_there_are_refused() -> None:  # C102
    async with serve() as served:
        error = await refused(served.client.agents.create(Agent(context_sources=["history", "nothing"])))
        assert (error.reason, error.violations[0][0]) == ("REQUEST_INVALID", "agent.context_sources[1]")
        twice = await refused(served.client.agents.create(Agent(context_sources=["a/b", "a/b"])))
        assert twice.violations[0][0] == "agent.context_sources[1]"
        many = await refused(served.client.agents.create(Agent(context_sources=[f"a/b{n}" for n in range(33)])))
        assert many.violations[0][0] == "agent.context_sources"


async def test_a_remote_source_is_asked_over_its_registration() -> None:  # C102 N05
    server, asked = ContextServer(), list[ProvideContextRequest]()

    @server.source
    async def weather(request: ProvideContextRequest) -> str:
        """What it is like outside."""
        asked.append(request)
        return "fact weather = hail"

    async with remote(server) as served:
        agent = await agent_with(served, "home/weather")
        assert await text_of(served, "/recall weather", agent_id=agent, run_id="run-1") == "fact weather = hail"
        assert (asked[0].source, asked[0].run_id, asked[0].step) == ("weather", "run-1", 1)
        assert asked[0].HasField("deadline")
        missing = await agent_with(served, "home/nothing")
        assert await text_of(served, "/recall", agent_id=missing, run_id="run-2") == "nothing"
        [context] = await built(served, "run-2")
        assert context.outcomes[0].skipped_reason == "CONTEXT_SOURCE_NOT_FOUND"


async def test_a_configured_remote_source_has_a_policy() -> None:  # C102
    server = ContextServer()

    @server.source(name="sky")
    async def broken(request: ProvideContextRequest) -> str:
        raise RuntimeError("no")

    configured = ContextSource(
        name="weather", kind=REMOTE, server="home", remote_name="sky", timeout=duration(5), on_failure=FAIL
    )
    async with remote(server, sources=Sources([configured])) as served:
        agent = await agent_with(served, "weather")
        error = await refused(text_of(served, "hello", agent_id=agent))
        assert error.reason == "CONTEXT_SOURCE_FAILED"


async def test_a_server_that_is_not_there_is_a_failure_like_any() -> None:  # C102
    async with serve() as served:
        agent = await agent_with(served, "nobody/weather")
        assert await text_of(served, "hello", agent_id=agent, run_id="run-1") == "hello"
        [context] = await built(served, "run-1")
        assert "nobody" in context.outcomes[0].skipped_message


async def test_a_server_that_attaches_itself_offers_no_context() -> None:
    attached = Server(
        name="home",
        connection=ServerConnection.SERVER_CONNECTION_ATTACHED,
        offers=[ServerOffer.SERVER_OFFER_TOOLS, ServerOffer.SERVER_OFFER_CONTEXT],
    )
    async with serve() as served:
        error = await refused(served.client.servers.register(attached))
        assert (error.reason, error.violations[0][0]) == ("REQUEST_INVALID", "server.offers")


async def test_one_daemon_is_the_context_source_of_another() -> None:  # C102 N05
    weather, sources = Weather(), Sources([RULES])
    sources.add("weather", weather)
    async with serve(sources=sources) as above, serve(endpoints=allow_list(["127.0.0.1/32"])) as below:
        await below.client.servers.register(
            Server(
                name="above",
                connection=ServerConnection.SERVER_CONNECTION_DIALLED,
                address=above.daemon.addresses[0],
                offers=[ServerOffer.SERVER_OFFER_CONTEXT],
            )
        )
        agent = await agent_with(below, "above/rules", "above/weather")
        assert await text_of(below, "/recall", agent_id=agent) == "fact tone = kind\nfact weather = rain"


async def test_what_was_given_is_not_asked_for_again_after_a_restart(tmp_path: Path) -> None:  # C102
    weather = Weather()

    def made() -> Sources:
        sources = Sources()
        sources.add("weather", weather)
        return sources

    async with serve("sqlite", tmp_path / "data", sources=made(), drain_seconds=0.0) as served:
        agent = await agent_with(served, "weather")
        await served.client.run("/delay 600000 [1] /say slow", agent_id=agent, run_id="run-1")
        async with asyncio.timeout(20):
            async for event in served.client.watch("run-1").events():
                if event.WhichOneof("payload") == "model_requested":
                    first = event.model_requested.request_hash
                    break
    async with serve("sqlite", tmp_path / "data", sources=made(), drain_seconds=0.0) as served:
        async with asyncio.timeout(20):
            async for event in served.client.watch("run-1").events():
                if event.WhichOneof("payload") == "model_requested" and event.model_requested.attempt == 2:
                    assert event.model_requested.request_hash == first
                    break
        assert len(weather.asked) == 1
        await served.client.watch("run-1").cancel(force=True)


async def test_the_history_of_a_run_has_both_limits() -> None:  # C104
    async with serve() as served:
        limits = Limits(max_history_messages=4, max_history_tokens=60)
        agent = await agent_with(served, limits=limits)
        session = (await served.client.sessions.create()).id
        for number in range(5):
            await text_of(served, f"fact f{number} = {number} " + "padding " * 8, session_id=session, agent_id=agent)
        await text_of(served, "/recall", session_id=session, agent_id=agent, run_id="run-last")
        [context] = await built(served, "run-last")
        assert [(trim.reason, trim.messages) for trim in context.trims] == [(1, 6), (2, 2)]
        assert context.trimmed_messages == 8
        assert context.tokens_by_source["history"] <= 60


async def test_reported_usage_corrects_the_next_estimates() -> None:  # C078
    async with serve() as served:
        for _ in range(3):
            await text_of(served, "/usage 5000 5 /say " + "word " * 100)
        calibration = served.daemon.house.calibration
        assert calibration.ratios("default")["scripted/echo"] == 4000
        await text_of(served, "hello", run_id="run-1")
        [context] = await built(served, "run-1")
        assert list(context.calibration_permille) == [4000]


async def test_a_part_keeps_its_place_among_parts() -> None:  # C005
    parts = [
        Part(text=TextPart(text="look at this")),
        Part(image={"data": b"\x89PNG", "media_type": "image/png"}),
        Part(json={"json": '{"b": 1, "a": 2}'}),
        Part(text=TextPart(text="and at that")),
    ]
    async with serve() as served:
        session = (await served.client.sessions.create()).id
        await text_of(served, "hello", session_id=session)
        preview = await served.client.context.preview(parts, session_id=session)
        assert list(preview.messages[-1].parts) == parts
        async with asyncio.timeout(20):
            await served.client.stream(parts, session_id=session).result()
        preview = await served.client.context.preview("next", session_id=session)
        assert list(preview.messages[2].parts) == parts
