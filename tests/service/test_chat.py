"""Single model calls over a real channel: streams, retries, fallbacks, refusals, and what cancelling them does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from behest.errors import BehestError
from behest.v1.chat_pb2 import FinishReason, ResponseFormat, ResponseFormatKind, Sampling, ToolChoice, ToolChoiceMode
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd, StreamChatRequest
from behest.v1.embedding_service_pb2 import EmbedRequest
from behest.v1.message_pb2 import ImagePart, Message, Part, Role, TextPart, ToolCall, ToolResult
from behest.v1.tool_pb2 import Tool
from behestd.core.route import RoutePolicy
from behestd.core.times import duration
from behestd.providers.catalog import snapshot
from behestd.providers.failure import ProviderFailure
from behestd.providers.provider import Frame
from behestd.providers.scripted import Scripted
from tests.daemons import Served, refused, serve
from tests.service.edges import failure, metadata, reason

FAST = RoutePolicy((), base_seconds=0.001, cap_seconds=0.002)


def chat(text: str, model: str = "scripted/echo", **fields: object) -> Chat:
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    return Chat(model=model, messages=[message], **fields)  # type: ignore[arg-type]


class Watched(Scripted):
    """The scripted provider, which also counts its attempts and tells when a stream is closed."""

    def __init__(self, provider_id: str = "scripted") -> None:
        super().__init__(provider_id)
        self.attempts = 0
        self.begun = asyncio.Event()
        self.closed = asyncio.Event()

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        self.attempts += 1
        try:
            async for frame in super().stream(chat):
                self.begun.set()
                yield frame
        finally:
            self.closed.set()


async def pieces(served: Served, asked: Chat) -> list[ChatDelta | ChatEnd]:
    async with asyncio.timeout(30):
        return [piece async for piece in served.client.chat.stream(asked)]


async def test_a_chat_is_completed_with_its_usage_and_its_cost(served: Served) -> None:
    end = await served.client.chat.complete(chat("/say hello there /usage 1000000 500000", "scripted/priced"))
    assert [part.text.text for part in end.message.parts] == ["hello there"]
    assert end.finish_reason == FinishReason.FINISH_REASON_STOP
    assert (end.model, end.usage.attempts) == ("scripted/priced", 1)
    assert end.usage.cost_micro_usd == 2_000_000


async def test_the_first_piece_comes_while_the_model_still_speaks() -> None:
    provider = Watched()
    async with serve(models=snapshot([provider], default_model="scripted/echo")) as served:
        stream = served.client.chat.stream(chat("/say one\n/stall"))
        async with asyncio.timeout(30):
            first = await anext(stream)
            assert isinstance(first, ChatDelta)
            assert first.text
            assert not provider.closed.is_set()
            await stream.aclose()
            # Cancelling the call cancels the model call.
            await provider.closed.wait()


async def test_a_streamed_answer_ends_with_the_whole(served: Served) -> None:
    *deltas, end = await pieces(served, chat("/say hello brave new world"))
    assert isinstance(end, ChatEnd)
    assert "".join(delta.text for delta in deltas if isinstance(delta, ChatDelta)) == end.message.parts[0].text.text


async def test_a_call_of_a_tool_has_an_id_that_its_result_can_name(served: Served) -> None:
    tool = Tool(name="add", input_schema_json='{"type": "object"}')
    asked = chat('/tool add {"a": 1}', tools=[tool])
    end = await served.client.chat.complete(asked)
    call = end.message.parts[0].tool_call
    assert (call.name, call.arguments_json) == ("add", '{"a": 1}')
    result = ToolResult(call_id=call.id, name="add", parts=[Part(text=TextPart(text="2"))])
    told = Message(role=Role.ROLE_TOOL, parts=[Part(tool_result=result)])
    again = Chat(model="scripted/echo", messages=[*asked.messages, end.message, told], tools=[tool])
    assert (await served.client.chat.complete(again)).message.parts[0].text.text == "add: 2"


async def test_what_is_sampled_arrives_at_the_provider(served: Served) -> None:  # C004
    asked = chat(
        "/dump",
        sampling=Sampling(temperature=0.5, top_p=0.25, max_output_tokens=77, stop=["END"]),
        tool_choice=ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NONE),
        response_format=ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT),
    )
    text = (await served.client.chat.complete(asked)).message.parts[0].text.text
    assert '"temperature": 0.5' in text
    assert '"stop": ["END"]' in text


async def test_two_failures_and_a_success_are_three_attempts() -> None:  # C017
    provider = Watched()
    async with serve(models=snapshot([provider]), retries=FAST) as served:
        end = await served.client.chat.complete(chat("/fail UNAVAILABLE 2\n/say done"))
    assert end.message.parts[0].text.text == "done"
    assert provider.attempts == 3


async def test_a_permanent_failure_is_one_attempt_and_keeps_its_reason() -> None:  # C018
    provider = Watched()
    async with serve(models=snapshot([provider]), retries=FAST) as served:
        error = await refused(served.client.chat.complete(chat("/fail CREDENTIALS_REJECTED")))
    assert (error.reason, provider.attempts) == ("PROVIDER_CREDENTIALS_REJECTED", 1)


async def test_a_stream_that_broke_after_a_piece_is_not_tried_again() -> None:  # C021 N11
    provider = Watched()
    async with serve(models=snapshot([provider]), retries=FAST) as served:
        got: list[str] = []
        with pytest.raises(BehestError) as caught:
            async for piece in served.client.chat.stream(chat("/say a b c d\n/cut 2 1")):
                assert isinstance(piece, ChatDelta)
                got.append(piece.text)
    assert caught.value.reason == "PROVIDER_STREAM_BROKEN"
    assert ("".join(got), provider.attempts) == ("a b", 1)


async def test_a_stream_that_broke_before_its_first_piece_is_tried_again() -> None:
    provider = Watched()
    async with serve(models=snapshot([provider]), retries=FAST) as served:
        *_, end = await pieces(served, chat("/fail STREAM_BROKEN 1\n/say done"))
    assert isinstance(end, ChatEnd)
    assert (end.message.parts[0].text.text, provider.attempts) == ("done", 2)


class Down(Watched):
    """A provider that is down."""

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        self.attempts += 1
        raise ProviderFailure("PROVIDER_UNAVAILABLE", "down")
        yield Frame()


async def test_a_fallback_answers_for_an_alias_and_says_so() -> None:  # C019
    first, second = Down("first"), Watched("second")
    models = snapshot([first, second], aliases={"best": "first/echo"})
    async with serve(models=models, retries=FAST, fallbacks={"best": ["second/text-only", "second/echo"]}) as served:
        asked = chat("/say done", "best", tools=[Tool(name="t", input_schema_json="{}")])
        end = await served.client.chat.complete(asked)
        assert (await refused(served.client.chat.complete(chat("x", "first/echo")))).reason == "PROVIDER_UNAVAILABLE"
    # The fallback that cannot call tools is left out.
    assert (end.model, end.message.parts[0].text.text) == ("second/echo", "done")
    assert (first.attempts, second.attempts) == (6, 1)


async def test_what_a_model_cannot_do_is_refused_before_anything_leaves() -> None:  # C003
    provider = Watched()
    async with serve(models=snapshot([provider])) as served:
        tool = Tool(name="add", input_schema_json='{"type": "object"}')
        error = await refused(served.client.chat.complete(chat("hi", "scripted/text-only", tools=[tool])))
        assert (error.reason, error.metadata["capability"]) == ("PROVIDER_CAPABILITY_MISSING", "tools")
        seen = chat("hi", "scripted/text-only")
        seen.messages[0].parts.add(image=ImagePart(uri="https://example.org/a.png"))
        error = await refused(served.client.chat.complete(seen))
        assert error.metadata["capability"] == "image_input"
        error = await refused(served.client.chat.complete(chat("hi", "scripted/embed")))
        assert error.metadata["capability"] == "chat"
    assert provider.attempts == 0


async def test_the_time_limit_of_a_call_ends_it(served: Served) -> None:
    error = await refused(served.client.chat.complete(chat("/stall", timeout=duration(0.05))))
    assert error.reason == "PROVIDER_TIMEOUT"


async def test_the_deadline_of_the_client_closes_the_providers_stream() -> None:  # C143
    provider = Watched()
    async with serve(models=snapshot([provider])) as served:
        call = served.client.stubs.chat.StreamChat(StreamChatRequest(chat=chat("/say a\n/stall")), timeout=0.2)
        error = await failure(_all(call))
        assert error.code().name == "DEADLINE_EXCEEDED"
        async with asyncio.timeout(30):
            await provider.closed.wait()


async def _all(call: object) -> None:
    async for _ in call:  # type: ignore[attr-defined]
        pass


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (Chat(), "chat.model"),
        (Chat(model="scripted/echo"), "chat.messages"),
        (Chat(model="scripted/echo", messages=[Message(role=Role.ROLE_USER)]), "chat.messages[0].parts"),
        (Chat(model="scripted/echo", messages=[Message(parts=[Part()])]), "chat.messages[0].role"),
        (
            Chat(model="scripted/echo", messages=[Message(role=Role.ROLE_USER, parts=[Part()])]),
            "chat.messages[0].parts[0]",
        ),
        (chat("x", timeout=duration(-1)), "chat.timeout"),
        (chat("x", sampling=Sampling(temperature=3)), "chat.sampling.temperature"),
        (chat("x", sampling=Sampling(top_p=0)), "chat.sampling.top_p"),
        (chat("x", sampling=Sampling(max_output_tokens=0)), "chat.sampling.max_output_tokens"),
        (chat("x", tool_choice=ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_TOOL)), "chat.tool_choice.tool_name"),
        (chat("x", response_format=ResponseFormat(kind=3)), "chat.response_format.schema_json"),
        (chat("x", provider_options_json="[]"), "chat.provider_options_json"),
        (chat("x", tools=[Tool(name="a b")]), "chat.tools[0].name"),
        (
            Chat(
                model="scripted/echo",
                messages=[Message(role=Role.ROLE_ASSISTANT, parts=[Part(tool_call=ToolCall(id="c", name="t"))])],
            ),
            "chat.messages",
        ),
        (
            Chat(
                model="scripted/echo",
                messages=[Message(role=Role.ROLE_TOOL, parts=[Part(tool_result=ToolResult(call_id="c"))])],
            ),
            "chat.messages[0].parts[0].tool_result.call_id",
        ),
    ],
)
async def test_a_chat_that_breaks_a_rule_is_refused_by_its_field(served: Served, asked: Chat, field: str) -> None:
    error = await failure(served.client.stubs.chat.StreamChat(StreamChatRequest(chat=asked)).read())
    assert (reason(error), metadata(error)["field"]) == ("REQUEST_INVALID", field)


async def test_a_request_without_a_chat_is_refused(served: Served) -> None:
    error = await failure(served.client.stubs.chat.StreamChat(StreamChatRequest()).read())
    assert metadata(error)["field"] == "chat"


async def test_an_unknown_model_is_told_apart_from_an_unknown_provider(served: Served) -> None:  # C002
    assert (await refused(served.client.chat.complete(chat("x", "scripted/none")))).reason == "PROVIDER_MODEL_NOT_FOUND"
    assert (await refused(served.client.chat.complete(chat("x", "nobody/none")))).reason == "PROVIDER_NOT_FOUND"


# --- embeddings ---


async def test_texts_become_vectors_in_their_order(served: Served) -> None:  # C014 C108
    embed = served.client.stubs.embeddings.Embed
    together = await embed(EmbedRequest(model="scripted/embed", inputs=["one", "two", "three"]))
    alone = [await embed(EmbedRequest(model="scripted/embed", inputs=[text])) for text in ("one", "two", "three")]
    assert [list(vector.values) for vector in together.embeddings] == [list(a.embeddings[0].values) for a in alone]
    assert len(together.embeddings[0].values) == 64
    assert (together.model, together.usage.attempts) == ("scripted/embed", 1)
    assert together.usage.input_tokens > 0
    chosen = await embed(EmbedRequest(model="scripted/embed", inputs=["one"], dimensions=8))
    assert len(chosen.embeddings[0].values) == 8


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (EmbedRequest(model="scripted/embed"), "inputs"),
        (EmbedRequest(model="scripted/embed", inputs=["a", ""]), "inputs[1]"),
        (EmbedRequest(model="scripted/embed", inputs=["a"] * 2049), "inputs"),
        (EmbedRequest(model="scripted/embed", inputs=["a"], dimensions=-1), "dimensions"),
        (EmbedRequest(model="scripted/embed", inputs=["a"], purpose=9), "purpose"),  # type: ignore[arg-type]
        (EmbedRequest(model="scripted/embed", inputs=["a"], session_id="a b"), "session_id"),
    ],
)
async def test_bad_texts_are_refused_by_their_field(served: Served, request_: EmbedRequest, field: str) -> None:
    error = await failure(served.client.stubs.embeddings.Embed(request_))
    assert (reason(error), metadata(error)["field"]) == ("REQUEST_INVALID", field)


async def test_a_model_without_embeddings_is_refused(served: Served) -> None:  # C003
    error = await failure(served.client.stubs.embeddings.Embed(EmbedRequest(model="scripted/echo", inputs=["a"])))
    assert reason(error) == "PROVIDER_CAPABILITY_MISSING"


async def test_vectors_that_do_not_fit_into_one_response_are_refused_with_the_limit(served: Served) -> None:
    asked = EmbedRequest(model="scripted/embed", inputs=["a"] * 300, dimensions=4096)
    error = await failure(served.client.stubs.embeddings.Embed(asked))
    assert (reason(error), metadata(error)["limitBytes"]) == ("REQUEST_TOO_LARGE", str(4 * 1024 * 1024))
