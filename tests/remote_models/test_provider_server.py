"""The provider server of the Python SDK, dialled and attached, with a daemon in front of it and without."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from behest.client import Client
from behest.errors import BehestError, from_rpc
from behest.model_answer import ANSWER_LIMIT_BYTES
from behest.model_server import (
    Finish,
    ModelContext,
    ModelError,
    Piece,
    ProviderServer,
    Reasoning,
    ToolCall,
    Usage,
    last_text,
    text_of,
)
from behest.v1.chat_pb2 import FinishReason, ResponseFormat, ResponseFormatKind
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd, CompleteChatRequest, StreamChatRequest
from behest.v1.chat_service_pb2_grpc import ChatServiceStub
from behest.v1.embedding_service_pb2 import EmbedRequest
from behest.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from behest.v1.message_pb2 import Message, Part, Role, TextPart, ToolResult
from behest.v1.model_service_pb2 import GetModelRequest, ListModelsRequest, ListProvidersRequest
from behest.v1.model_service_pb2_grpc import ModelServiceStub
from behest.v1.server_pb2 import Server, ServerConnection, ServerOffer
from behest.v1.tool_pb2 import Tool
from behest.v1.usage_pb2 import UsageSource
from behestd.core.route import RoutePolicy
from tests.daemons import Served, refused, serve
from tests.providers.conformance import failure, user
from tests.runs.scenes import kinds, only

WAIT_SECONDS = 60.0
ONCE = RoutePolicy((), attempts_per_endpoint=1, attempts_per_step=1)
BOTH = pytest.mark.parametrize("mode", ["dialled", "attached"])
OFFERS = (ServerOffer.SERVER_OFFER_TOOLS, ServerOffer.SERVER_OFFER_CHAT, ServerOffer.SERVER_OFFER_EMBEDDINGS)


class Aviary:
    """A provider server with a model for each thing that a model may do."""

    def __init__(self, **options: Any) -> None:
        self.server = ProviderServer(**options)
        self.begun = asyncio.Event()
        self.stopped = asyncio.Event()
        self.released = asyncio.Event()
        self.contexts: list[ModelContext] = []
        self._speaking()
        self._failing()
        self._counting()

    def _speaking(self) -> None:
        server = self.server

        @server.chat_model(capabilities=["tools", "reasoning"], context_window_tokens=1000, display_name="A parrot")
        async def parrot(chat: Chat, context: ModelContext) -> AsyncIterator[Piece]:
            self.contexts.append(context)
            yield Reasoning("I think ")
            yield Reasoning("twice")
            yield last_text(chat)
            yield "!"
            if chat.tools:
                yield ToolCall("look_up", {"id": 9007199254740993}, id="theirs")
                yield ToolCall("now")
            yield Usage(input_tokens=11, output_tokens=5)

        @server.chat_model(capabilities=["tools"])
        async def once(chat: Chat) -> str:
            return "all " + last_text(chat)

        @server.chat_model(name="cut")
        async def cut_short(chat: Chat) -> AsyncIterator[Piece]:
            yield "half"
            yield Finish.LENGTH

        @server.chat_model(name="held")
        async def held_back(chat: Chat) -> str:
            self.begun.set()
            await self.released.wait()
            return "held"

        @server.chat_model(capabilities=["tools"])
        async def endless(chat: Chat) -> AsyncIterator[str]:
            yield "a "
            self.begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.stopped.set()

    def _failing(self) -> None:
        server = self.server

        @server.chat_model
        async def failing(chat: Chat) -> AsyncIterator[Any]:
            said = last_text(chat)
            if said == "limit":
                raise ModelError("PROVIDER_RATE_LIMITED", "one at a time", retry_after_seconds=2.5)
            if said == "huge":
                yield "a" * (ANSWER_LIMIT_BYTES + 1)
            if said == "object":
                yield object()
            if said == "call":
                yield ToolCall("look", "[]")
            raise RuntimeError("a secret of the house")

    def _counting(self) -> None:
        server = self.server

        @server.embedding_model(dimensions=2)
        async def letters(texts: list[str]) -> list[list[float]]:
            return [[float(len(text)), 1.0] for text in texts]

        @server.embedding_model
        def chosen(texts: list[str], context: ModelContext) -> list[list[float]]:
            assert isinstance(context.request, EmbedRequest)
            return [[1.0] * context.request.dimensions for _ in texts]

        @server.embedding_model
        async def short(texts: list[str]) -> list[list[float]]:
            return [[1.0]]

        @server.tool(side_effect="pure")
        def add(a: int, b: int) -> int:
            """Add."""
            return a + b


@asynccontextmanager
async def aviary(mode: str) -> AsyncIterator[tuple[Aviary, Served]]:
    """A provider server that a daemon knows as `birds`."""
    birds = Aviary()
    async with serve(retries=ONCE) as served, birds.server:
        if mode == "attached":
            await birds.server.attach(served.daemon.addresses[0], name="birds")
        else:
            port = await birds.server.serve("127.0.0.1:0")
            dialled = ServerConnection.SERVER_CONNECTION_DIALLED
            await served.client.servers.register(
                Server(name="birds", connection=dialled, address=f"127.0.0.1:{port}", offers=OFFERS)
            )
        yield birds, served


def chat(model: str, text: str = "hello", **fields: Any) -> Chat:
    return Chat(model=f"birds/{model}", messages=[user(text)], **fields)


async def pieces(client: Client, asked: Chat) -> list[ChatDelta | ChatEnd]:
    async with asyncio.timeout(WAIT_SECONDS):
        return [piece async for piece in client.chat.stream(asked)]


@BOTH
async def test_models_and_tools_of_one_process_are_offered_under_one_name(mode: str) -> None:
    async with aviary(mode) as (birds, served):
        ids = [model.id async for model in served.client.models.list() if model.provider_id == "birds"]
        names = ["chosen", "cut", "endless", "failing", "held", "letters", "once", "parrot", "short"]
        assert ids == [f"birds/{name}" for name in names]
        assert [model.id for model in birds.server.models] == names
        parrot = await served.client.models.get("birds/parrot")
        assert (parrot.display_name, parrot.limits.context_window_tokens) == ("A parrot", 1000)
        assert parrot.capabilities.tools
        assert parrot.capabilities.streaming
        assert [tool.name async for tool in served.client.tools.list() if tool.server_id] == ["add"]


@BOTH
async def test_what_a_function_yields_is_shown_and_is_the_answer(mode: str) -> None:
    async with aviary(mode) as (birds, served):
        *deltas, told = await pieces(served.client, chat("parrot", "Grüße 🦜", tools=[_tool()]))
        assert isinstance(told, ChatEnd)
        reasoning, text, look, now = told.message.parts
        assert (reasoning.reasoning.text, text.text.text) == ("I think twice", "Grüße 🦜!")
        assert (look.tool_call.name, look.tool_call.arguments_json) == ("look_up", '{"id": 9007199254740993}')
        assert (look.tool_call.provider_call_id, now.tool_call.arguments_json) == ("theirs", "{}")
        assert told.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
        assert (told.usage.input_tokens, told.usage_source) == (11, UsageSource.USAGE_SOURCE_REPORTED)
        shown = "".join(delta.text for delta in deltas if isinstance(delta, ChatDelta) and delta.part == 1)
        assert shown == "Grüße 🦜!"
        assert birds.contexts[0].deadline is not None or mode == "dialled"


@BOTH
async def test_a_run_talks_to_a_function(mode: str) -> None:
    async with aviary(mode) as (_, served):
        events = [event async for event in (await served.client.run("hello", model="birds/once")).events()]
        assert kinds(events)[-1] == "run_completed"
        completed = only(events, "model_completed")[0]
        assert completed.message.parts[0].text.text == "all hello"
        assert completed.usage_source == UsageSource.USAGE_SOURCE_ESTIMATED


@BOTH
async def test_a_function_is_stopped_when_its_answer_is_not_wanted(mode: str) -> None:
    async with aviary(mode) as (birds, served):
        await served.client.run("hello", run_id="run-1", model="birds/endless")
        async with asyncio.timeout(WAIT_SECONDS):
            await birds.begun.wait()
            await served.client.runs.cancel("run-1")
            await birds.stopped.wait()


@BOTH
async def test_a_function_is_stopped_when_its_time_is_over(mode: str) -> None:
    async with aviary(mode) as (birds, served):
        asked = chat("endless")
        asked.timeout.FromMilliseconds(600)
        assert (await refused(served.client.chat.complete(asked))).reason == "PROVIDER_TIMEOUT"
        async with asyncio.timeout(WAIT_SECONDS):
            await birds.stopped.wait()


@BOTH
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("limit", "PROVIDER_RATE_LIMITED"),
        ("fault", "PROVIDER_UNAVAILABLE"),
        ("object", "PROVIDER_UNAVAILABLE"),
        ("call", "PROVIDER_UNAVAILABLE"),
        ("huge", "PROVIDER_UNAVAILABLE"),
    ],
)
async def test_what_a_function_raises_is_a_typed_failure_that_tells_no_secret(
    mode: str, said: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "behest.models")
    async with aviary(mode) as (_, served):
        error = await refused(served.client.chat.complete(chat("failing", said)))
        assert error.reason == reason
        assert "secret" not in str(error)
        assert error.metadata.get("retryAfterSeconds") == ("2.5" if said == "limit" else None)


@BOTH
async def test_an_answer_that_was_cut_says_so(mode: str) -> None:
    async with aviary(mode) as (_, served):
        told = await served.client.chat.complete(chat("cut"))
        assert told.finish_reason == FinishReason.FINISH_REASON_LENGTH


@BOTH
async def test_vectors_come_in_the_order_of_the_texts(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "behest.models")
    async with aviary(mode) as (_, served):
        embed: Callable[..., Any] = served.client.stubs.embeddings.Embed
        given = await embed(EmbedRequest(model="birds/letters", inputs=["a", "abc"]))
        assert [list(each.values) for each in given.embeddings] == [[1.0, 1.0], [3.0, 1.0]]
        assert given.usage.input_tokens > 0
        given = await embed(EmbedRequest(model="birds/chosen", inputs=["a"], dimensions=5))
        assert len(given.embeddings[0].values) == 5
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await embed(EmbedRequest(model="birds/short", inputs=["a", "b"]))
        assert from_rpc(caught.value).reason == "PROVIDER_UNAVAILABLE"


@BOTH
async def test_a_server_that_drains_finishes_what_it_has_and_takes_no_more(mode: str) -> None:
    async with aviary(mode) as (birds, served):
        server = birds.server
        held = served.daemon.house.models.of("default").provider("birds")
        answer = asyncio.ensure_future(served.client.chat.complete(chat("held")))
        async with asyncio.timeout(WAIT_SECONDS):
            await birds.begun.wait()
            draining = asyncio.ensure_future(server.drain(WAIT_SECONDS))
            # It is drained only once this is answered.
            await asyncio.wait({draining}, timeout=0.2)
            assert not draining.done()
            birds.released.set()
            assert (await answer).message.parts[0].text.text == "held"
            await draining
        # An attached one is waited for, since it may come back.
        gone = "PROVIDER_TIMEOUT" if mode == "attached" else "PROVIDER_UNAVAILABLE"
        assert (await failure(held, chat("once"))).reason == gone


def _tool() -> Tool:
    return Tool(name="look_up", input_schema_json='{"type": "object"}')


# --- by hand ---


@asynccontextmanager
async def bare(**options: Any) -> AsyncIterator[tuple[Aviary, grpc.aio.Channel]]:
    birds = Aviary(**options)
    async with birds.server:
        port = await birds.server.serve("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield birds, channel


async def told(call: Any) -> tuple[grpc.StatusCode, str]:
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await call
    except grpc.aio.AioRpcError as error:
        return error.code(), from_rpc(error).reason
    raise AssertionError("answered")


def asked(model: str = "once", **fields: Any) -> StreamChatRequest:
    return StreamChatRequest(chat=Chat(**({"model": model, "messages": [user("hello")]} | fields)))


JSON = ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT)


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (asked("nobody"), grpc.StatusCode.NOT_FOUND, "PROVIDER_MODEL_NOT_FOUND"),
        (asked("letters"), grpc.StatusCode.FAILED_PRECONDITION, "PROVIDER_CAPABILITY_MISSING"),
        (asked(messages=[]), grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID"),
        (asked(messages=[Message(role=Role.ROLE_USER)]), grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID"),
        (asked("cut", tools=[_tool()]), grpc.StatusCode.FAILED_PRECONDITION, "PROVIDER_CAPABILITY_MISSING"),
        (asked(response_format=JSON), grpc.StatusCode.FAILED_PRECONDITION, "PROVIDER_CAPABILITY_MISSING"),
    ],
)
async def test_what_makes_no_sense_is_refused(request_: StreamChatRequest, code: Any, reason: str) -> None:
    async with bare() as (_, channel):
        stub = ChatServiceStub(channel)
        assert await told(stub.StreamChat(request_).read()) == (code, reason)
        assert await told(stub.CompleteChat(CompleteChatRequest(chat=request_.chat))) == (code, reason)


async def test_embeddings_that_make_no_sense_are_refused() -> None:
    async with bare() as (_, channel):
        stub = EmbeddingServiceStub(channel)
        for request in (
            EmbedRequest(model="letters"),
            EmbedRequest(model="letters", inputs=["a", ""]),
            EmbedRequest(model="letters", inputs=["a"], dimensions=-1),
            EmbedRequest(model="letters", inputs=["a"], dimensions=7),
        ):
            assert (await told(stub.Embed(request)))[1] == "REQUEST_INVALID"


async def test_models_are_listed_in_pages_and_by_what_they_can_do() -> None:
    async with bare() as (birds, channel):
        stub = ModelServiceStub(channel)
        names, token = [], ""
        while True:
            page = await stub.ListModels(ListModelsRequest(page_size=3, page_token=token))
            names += [model.id for model in page.models]
            token = page.next_page_token
            if not token:
                break
        assert names == [model.id for model in birds.server.models]
        request = ListModelsRequest()
        request.capabilities.embeddings = True
        assert [model.id for model in (await stub.ListModels(request)).models] == ["chosen", "letters", "short"]
        assert (await stub.GetModel(GetModelRequest(model="once"))).model.capabilities.chat
        assert (await told(stub.GetModel(GetModelRequest(model="no"))))[1] == "PROVIDER_MODEL_NOT_FOUND"
        assert (await told(stub.ListModels(ListModelsRequest(page_size=-1))))[1] == "REQUEST_INVALID"
        assert (await told(stub.ListProviders(ListProvidersRequest())))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_a_call_without_the_token_is_refused() -> None:
    async with bare(token="s3cret") as (_, channel):
        stub = ChatServiceStub(channel)
        assert (await told(stub.StreamChat(asked()).read()))[1] == "AUTH_REQUIRED"
        call = stub.CompleteChat(CompleteChatRequest(chat=asked().chat), metadata=(("authorization", "Bearer s3cret"),))
        assert (await call).end.message.parts[0].text.text == "all hello"


async def test_the_deadline_of_the_rpc_stops_the_function() -> None:
    async with bare() as (birds, channel):
        call = ChatServiceStub(channel).StreamChat(asked("endless"), timeout=0.5)
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in call:
                pass
        async with asyncio.timeout(WAIT_SECONDS):
            await birds.stopped.wait()


def test_names_and_signatures_are_checked_when_they_are_registered() -> None:
    server = ProviderServer()

    async def taken(chat: Chat) -> str:
        return ""

    server.chat_model(taken)
    with pytest.raises(ValueError, match="already"):
        server.chat_model(taken)
    with pytest.raises(ValueError, match="no name"):
        server.chat_model(name="a b")(taken)
    with pytest.raises(ValueError, match="nonsense"):
        server.chat_model(name="other", capabilities=["nonsense"])(taken)

    async def nothing() -> str:
        return ""

    with pytest.raises(TypeError):
        server.chat_model(nothing)
    with pytest.raises(ValueError, match="PROVIDER_"):
        ModelError("TOOL_FAILED", "no")


def test_text_is_found_in_messages() -> None:
    result = ToolResult(call_id="c", parts=[Part(text=TextPart(text="five"))])
    message = Message(role=Role.ROLE_TOOL, parts=[Part(tool_result=result)])
    assert text_of(message) == "five"
    assert last_text(Chat(messages=[user("one"), message])) == "one"
    assert last_text(Chat()) == ""


async def test_a_daemon_that_does_not_take_the_name_says_so() -> None:
    birds = Aviary()
    async with serve() as served, birds.server:
        with pytest.raises(BehestError) as caught:
            await birds.server.attach(served.daemon.addresses[0], name="scripted")
        assert caught.value.reason == "TOOL_SERVER_NAME_TAKEN"
