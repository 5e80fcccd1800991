"""The OpenAI-compatible adapter against a real HTTP server: what it sends, what it reads, and in how many pieces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from behest.v1.chat_pb2 import FinishReason, ResponseFormat, Sampling, ToolChoice
from behest.v1.chat_service_pb2 import Chat, ChatEnd
from behest.v1.embedding_service_pb2 import EmbedRequest
from behest.v1.message_pb2 import (
    ImagePart,
    JsonPart,
    Message,
    Part,
    ReasoningPart,
    Role,
    TextPart,
    ToolCall,
    ToolResult,
)
from behest.v1.model_pb2 import Model, ModelCapabilities
from behest.v1.tool_pb2 import Tool
from behest.v1.usage_pb2 import UsageSource
from behestd.errors import Unsupported
from behestd.providers import http_client
from behestd.providers.failure import ProviderFailure
from behestd.providers.openai import OpenAi, OpenAiSettings
from behestd.providers.openai_request import call_id
from behestd.providers.provider import embed
from behestd.providers.secret import Secret
from tests.providers.conformance import SUITE, TIMEOUTS, Subject, read, user
from tests.providers.replay import Replay, Reply, error, events, fixture, replaying, split, stream, whole

KEY = "sk-canary-0123456789"
TEXT = "Grüße, 世界 🦜!"
MODELS = (
    Model(id="vendor/m-1", provider_id="vendor", capabilities=ModelCapabilities(chat=True, streaming=True)),
    Model(id="vendor/slow", provider_id="vendor", capabilities=ModelCapabilities(chat=True)),
    Model(id="vendor/e-1", provider_id="vendor", capabilities=ModelCapabilities(embeddings=True)),
)


@asynccontextmanager
async def serving(*replies: Reply, **settings: Any) -> AsyncIterator[tuple[OpenAi, Replay]]:
    """Replay to an adapter with a key."""
    async with replaying(*replies) as replay:
        provider = OpenAi(
            OpenAiSettings(id="vendor", base_url=replay.base_url, api_key=Secret(KEY), **settings), MODELS
        )
        try:
            yield provider, replay
        finally:
            await provider.close()


def chat(*messages: Message, model: str = "vendor/m-1", **fields: Any) -> Chat:
    return Chat(model=model, messages=messages or [user("hi")], **fields)


def text(end: ChatEnd) -> str:
    return "".join(part.text.text for part in end.message.parts)


async def asked(call: Chat, **settings: Any) -> dict[str, Any]:
    """Send a call and return the body that arrived."""
    async with serving(stream("text.sse"), **settings) as (provider, replay):
        await read(provider, call)
        return replay.asked[0].body


# C001
@pytest.mark.parametrize("check", SUITE, ids=lambda check: check.__name__)
async def test_it_is_a_provider(check: Callable[[Subject], Awaitable[None]]) -> None:
    by_text = {
        "text": stream("text.sse"),
        "tools": stream("tools.sse"),
        "failing": error(401),
        "cut": Reply((fixture("text.sse")[:500],), ending="cut"),
        "endless": Reply((fixture("text.sse")[:500],), ending="hang"),
    }
    async with serving(Reply()) as (provider, replay):
        replay.next_reply = lambda: by_text[replay.asked[-1].body["messages"][0]["content"]]  # type: ignore[method-assign]

        def saying(name: str) -> Callable[[], Chat]:
            return lambda: chat(user(name))

        await check(
            Subject(
                provider,
                text=saying("text"),
                tools=saying("tools"),
                failing=saying("failing"),
                failing_reason="PROVIDER_CREDENTIALS_REJECTED",
                cut=saying("cut"),
                endless=saying("endless"),
            )
        )


# C008
async def test_usage_in_a_last_chunk_without_choices_counts() -> None:
    async with serving(stream("text.sse", headers=(("x-request-id", "req_1"),))) as (provider, replay):
        _, end = await read(provider, chat())
    assert text(end) == TEXT
    assert (end.usage.input_tokens, end.usage.output_tokens) == (21, 9)
    assert (end.usage.cached_input_tokens, end.usage.reasoning_tokens) == (16, 4)
    assert end.usage_source == UsageSource.USAGE_SOURCE_REPORTED
    assert end.provider_request_id == "req_1"
    assert replay.asked[0].path == "/v1/chat/completions"
    assert replay.asked[0].body["stream_options"] == {"include_usage": True}
    assert replay.asked[0].headers["authorization"] == f"Bearer {KEY}"


# C008
async def test_tokens_written_to_the_cache_are_told_apart_from_those_read() -> None:
    details = {"cached_tokens": 10, "cache_write_tokens": 30}
    usage = {"prompt_tokens": 50, "completion_tokens": 3, "prompt_tokens_details": details}
    said = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
    async with serving(events(said, {"choices": [], "usage": usage}, "[DONE]")) as (provider, _):
        found = (await read(provider, chat()))[1].usage
    assert (found.input_tokens, found.cached_input_tokens, found.cache_write_tokens) == (50, 10, 30)


async def test_missing_usage_is_estimated_and_marked() -> None:
    reply = events({"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}, "[DONE]")
    async with serving(reply) as (provider, _):
        _, end = await read(provider, chat())
    assert end.usage_source == UsageSource.USAGE_SOURCE_ESTIMATED
    assert end.usage.input_tokens > 0


# C007
@pytest.mark.parametrize(
    "model,reply", [("vendor/slow", whole("complete.json")), ("vendor/m-1", whole("complete.json"))]
)
async def test_a_whole_answer_is_read_like_a_stream(model: str, reply: Reply) -> None:
    async with serving(reply, stream("tools.sse")) as (provider, replay):
        _, end = await read(provider, chat(model=model))
        _, streamed = await read(provider, chat())
    assert end.message == streamed.message
    assert end.usage == streamed.usage
    assert end.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
    assert replay.asked[0].body["stream"] is (model == "vendor/m-1")


# C011
async def test_calls_keep_their_bytes_and_empty_arguments_are_an_object() -> None:
    async with serving(stream("tools.sse")) as (provider, _):
        _, end = await read(provider, chat())
    said, look_up, now = end.message.parts
    assert said.text.text == "Let me look."
    assert look_up.tool_call == ToolCall(
        name="look_up", arguments_json='{"id": 9007199254740993}', provider_call_id="call_a"
    )
    assert now.tool_call == ToolCall(name="now", arguments_json="{}", provider_call_id="call_b")


@pytest.mark.parametrize("arguments", ["", '{"id": 9007'])
async def test_a_call_that_length_cut_is_no_call(arguments: str) -> None:
    call = {"index": 0, "id": "call_a", "function": {"name": "look_up", "arguments": arguments}}
    said = {"choices": [{"index": 0, "delta": {"content": "Now.", "tool_calls": [call]}, "finish_reason": "length"}]}
    async with serving(events(said, "[DONE]")) as (provider, _):
        _, end = await read(provider, chat())
    assert [part.WhichOneof("kind") for part in end.message.parts] == ["text"]
    assert end.finish_reason == FinishReason.FINISH_REASON_LENGTH


async def test_reasoning_is_a_part_of_its_own() -> None:
    async with serving(stream("reasoning.sse")) as (provider, _):
        deltas, end = await read(provider, chat())
    assert [part.WhichOneof("kind") for part in end.message.parts] == ["reasoning", "text"]
    assert end.message.parts[0].reasoning.text == "Let me think."
    assert [delta.part for delta in deltas] == [0, 0, 1]


# C012: through the adapter, over a socket, in two pieces at each byte and in pieces of one byte.
async def test_a_stream_cut_at_any_byte_gives_the_same_answer() -> None:
    data = fixture("text.sse")
    cuts = [Reply(split(data, position)) for position in range(1, len(data))]
    bytewise = Reply(tuple(data[at : at + 1] for at in range(len(data))))
    async with serving(stream("text.sse"), *cuts, bytewise, keepalive_seconds=30) as (provider, replay):
        expected = (await read(provider, chat()))[1]
        for _ in range(len(cuts) + 1):
            deltas, end = await read(provider, chat())
            assert end == expected
            assert "".join(delta.text for delta in deltas) == TEXT
        # The end of each response is read, so one connection serves them all.
        assert replay.connections == 1
        # The pieces do arrive one by one.
        assert len([frame async for frame in provider.stream(chat())]) > len(data) - 20


# C013
async def test_mixed_line_ends_and_comments_give_the_same_answer() -> None:
    data = fixture("mixed.sse")
    pieces = tuple(data[at : at + 3] for at in range(0, len(data), 3))
    async with serving(stream("text.sse"), stream("mixed.sse"), Reply(pieces)) as (provider, _):
        ends = [(await read(provider, chat()))[1] for _ in range(3)]
    assert ends[0] == ends[1] == ends[2]


async def test_a_connection_in_the_clear_serves_once() -> None:
    async with serving(stream("text.sse")) as (provider, replay):
        for _ in range(2):
            await read(provider, chat())
        assert replay.connections == 2


async def test_comments_keep_a_stream_alive() -> None:
    reply = Reply((b": thinking\n\n", b": still\n\n", fixture("text.sse")))
    async with serving(reply) as (provider, _):
        frames = [frame async for frame in provider.stream(chat())]
    assert [bool(frame.deltas) for frame in frames[:2]] == [False, False]
    assert text(frames[-1].end) == TEXT


# C006
@pytest.mark.parametrize(
    "said,reason",
    [
        ("stop", FinishReason.FINISH_REASON_STOP),
        ("length", FinishReason.FINISH_REASON_LENGTH),
        ("tool_calls", FinishReason.FINISH_REASON_TOOL_CALLS),
        ("function_call", FinishReason.FINISH_REASON_TOOL_CALLS),
        ("content_filter", FinishReason.FINISH_REASON_CONTENT_FILTER),
        ("eos_token_of_somebody", FinishReason.FINISH_REASON_OTHER),
    ],
)
async def test_finish_reasons_are_told_in_our_words(said: str, reason: int) -> None:
    async with serving(events({"choices": [{"index": 0, "delta": {}, "finish_reason": said}]}, "[DONE]")) as (
        provider,
        _,
    ):
        assert (await read(provider, chat()))[1].finish_reason == reason


async def test_a_refusal_is_a_finish_reason_and_its_words_are_the_text() -> None:
    async with serving(stream("refusal.sse")) as (provider, _):
        _, end = await read(provider, chat())
    assert end.finish_reason == FinishReason.FINISH_REASON_REFUSAL
    assert text(end) == "I cannot do that."


# C004
async def test_parameters_arrive() -> None:
    body = await asked(
        chat(
            sampling=Sampling(
                temperature=0,
                top_p=0.5,
                max_output_tokens=64,
                stop=["END"],
                seed=7,
                reasoning_effort="REASONING_EFFORT_LOW",
            ),
            tools=[Tool(name="now", description="The time.", input_schema_json='{"type": "object"}')],
            tool_choice=ToolChoice(mode="TOOL_CHOICE_MODE_TOOL", tool_name="now"),
            response_format=ResponseFormat(
                kind="RESPONSE_FORMAT_KIND_JSON_SCHEMA", schema_json='{"type": "object"}', strict=True
            ),
            provider_options_json='{"logit_bias": {"7": -100}, "stream": false}',
        )
    )
    assert body == {
        "model": "m-1",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "top_p": 0.5,
        "max_completion_tokens": 64,
        "stop": ["END"],
        "seed": 7,
        "reasoning_effort": "low",
        "tools": [
            {
                "type": "function",
                "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "now"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
        "logit_bias": {"7": -100},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_what_is_unset_is_not_sent() -> None:
    assert set(await asked(chat())) == {"model", "messages", "stream", "stream_options"}
    assert (await asked(chat(sampling=Sampling(max_output_tokens=5)), max_tokens_field="max_tokens"))["max_tokens"] == 5


@pytest.mark.parametrize("mode,sent", [("AUTO", "auto"), ("NONE", "none"), ("REQUIRED", "required")])
async def test_the_choice_of_tools_arrives(mode: str, sent: str) -> None:
    call = chat(
        tools=[Tool(name="now", input_schema_json="{}")], tool_choice=ToolChoice(mode=f"TOOL_CHOICE_MODE_{mode}")
    )
    assert (await asked(call))["tool_choice"] == sent


async def test_a_json_object_is_asked_for() -> None:
    call = chat(response_format=ResponseFormat(kind="RESPONSE_FORMAT_KIND_JSON_OBJECT"))
    assert (await asked(call))["response_format"] == {"type": "json_object"}


def says(role: int, *parts: Part) -> Message:
    return Message(role=role, parts=parts)


def said(text: str) -> Part:
    return Part(text=TextPart(text=text))


# C005 C007
async def test_a_conversation_with_calls_and_pictures_arrives_in_order() -> None:
    long_id = "c" * 64
    picture = Part(image=ImagePart(data=b"\x89PNG", media_type="image/png"))
    link = Part(image=ImagePart(uri="https://example.org/a.png"))
    results = [
        Part(tool_result=ToolResult(call_id=long_id, name="look_up", parts=[said("found"), picture])),
        Part(tool_result=ToolResult(call_id="c2", name="now", parts=[Part(json=JsonPart(json='{"t":1}'))])),
    ]
    calls = [
        Part(tool_call=ToolCall(id=long_id, name="look_up", arguments_json='{"id": 9007199254740993}')),
        Part(tool_call=ToolCall(id="c2", name="now", arguments_json="{}")),
    ]
    body = await asked(
        chat(
            says(Role.ROLE_SYSTEM, said("Be brief.")),
            says(Role.ROLE_USER, said("Look:"), picture, link, Part(json=JsonPart(json="[1]"))),
            says(Role.ROLE_ASSISTANT, Part(reasoning=ReasoningPart(text="hm")), said("Well."), *calls),
            says(Role.ROLE_TOOL, *results),
            says(Role.ROLE_ASSISTANT, said("Done.")),
        )
    )
    sent_picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
    sent_id = call_id(long_id)
    assert len(sent_id) == 40
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look:"},
                sent_picture,
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
                {"type": "text", "text": "[1]"},
            ],
        },
        {
            "role": "assistant",
            "content": "Well.",
            "tool_calls": [
                {
                    "id": sent_id,
                    "type": "function",
                    "function": {"name": "look_up", "arguments": '{"id": 9007199254740993}'},
                },
                {"id": "c2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": sent_id, "content": "found"},
        {"role": "tool", "tool_call_id": "c2", "content": '{"t":1}'},
        {"role": "user", "content": [sent_picture]},
        {"role": "assistant", "content": "Done."},
    ]


@pytest.mark.parametrize(
    "call",
    [
        chat(says(Role.ROLE_USER, Part(image=ImagePart(artifact_id="a")))),
        chat(provider_options_json="[1]"),
        chat(provider_options_json="{"),
        chat(tools=[Tool(name="now", input_schema_json="[" * 100_000)]),
    ],
    ids=["artifact", "options", "broken options", "schema"],
)
async def test_what_cannot_be_written_is_refused_before_anything_is_sent(call: Chat) -> None:
    async with serving(stream("text.sse")) as (provider, replay):
        with pytest.raises(ProviderFailure) as caught:
            await read(provider, call)
        assert caught.value.reason == "PROVIDER_REQUEST_INVALID"
        assert replay.asked == []


async def test_a_model_of_somebody_else_is_not_found() -> None:
    async with serving(stream("text.sse")) as (provider, replay):
        with pytest.raises(ProviderFailure) as caught:
            await read(provider, chat(model="vendor/other"))
        assert caught.value.reason == "PROVIDER_MODEL_NOT_FOUND"
        assert replay.asked == []


# C014
async def test_embeddings_come_in_the_order_of_the_texts() -> None:
    async with serving(whole("embeddings.json")) as (provider, replay):
        answer = await embed(provider, EmbedRequest(model="vendor/e-1", inputs=["a", "b"], dimensions=2), TIMEOUTS)
    assert [list(each.values) for each in answer.embeddings] == [[1.0, -0.5], [0.0, 1.0]]
    assert answer.usage.input_tokens == 5
    assert answer.model == "vendor/e-1"
    assert replay.asked[0].body == {
        "model": "e-1",
        "input": ["a", "b"],
        "encoding_format": "float",
        "dimensions": 2,
    }


@pytest.mark.parametrize("inputs", [["a"], ["a", "b", "c"]])
async def test_another_number_of_vectors_than_of_texts_makes_no_sense(inputs: Sequence[str]) -> None:
    async with serving(whole("embeddings.json")) as (provider, _):
        with pytest.raises(ProviderFailure) as caught:
            await embed(provider, EmbedRequest(model="vendor/e-1", inputs=inputs), TIMEOUTS)
    assert caught.value.reason == "PROVIDER_MALFORMED_OUTPUT"


async def test_leaving_a_stream_closes_the_request() -> None:
    async with serving(Reply((fixture("text.sse")[:500],), ending="hang")) as (provider, replay):
        frames = provider.stream(chat())
        await anext(frames)
        await frames.aclose()
        await replay.gone.wait()


def test_the_provider_describes_itself_without_secrets() -> None:
    settings = OpenAiSettings(
        id="vendor", base_url="https://user:pw@example.org/v1?key=x", api_key=Secret(KEY), headers={"x-key": "canary"}
    )
    provider = OpenAi(settings, MODELS)
    assert provider.describe().address == "https://example.org/v1"
    assert "canary" not in repr(settings)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(http_client.importlib, "import_module", missing)
    with pytest.raises(Unsupported) as caught:
        OpenAi(OpenAiSettings(id="vendor"), MODELS)
    assert caught.value.metadata == {"feature": "behestd[openai]"}
    assert json.dumps(caught.value.metadata)
