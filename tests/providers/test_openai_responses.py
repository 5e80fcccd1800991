"""The vendor's newer interface against a real HTTP server: what the adapter sends, what it reads, what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from behest.v1.chat_pb2 import FinishReason, ResponseFormat, Sampling, ToolChoice
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import ImagePart, JsonPart, Message, Part, Role, TextPart, ToolCall, ToolResult
from behest.v1.model_pb2 import Model, ModelCapabilities
from behest.v1.tool_pb2 import Tool
from behest.v1.usage_pb2 import UsageSource
from behestd.config.source import Origin
from behestd.planning.models import models
from behestd.providers.failure import ProviderFailure
from behestd.providers.openai import OpenAi, OpenAiSettings
from behestd.providers.openai_responses_request import SEALED, request_body
from behestd.providers.secret import Secret
from tests.providers.conformance import SUITE, Subject, failure, read, texts, user
from tests.providers.replay import Replay, Reply, error, events, fixture, replaying, split, stream, whole

KEY = "sk-canary-0123456789"
TEXT = "Grüße, 世界 🦜!"
MODELS = (
    Model(id="vendor/m-1", provider_id="vendor", capabilities=ModelCapabilities(chat=True, streaming=True)),
    Model(id="vendor/slow", provider_id="vendor", capabilities=ModelCapabilities(chat=True)),
)
NOW = Tool(name="now", description="The time.", input_schema_json='{"type": "object"}')


@asynccontextmanager
async def serving(*replies: Reply, **settings: Any) -> AsyncIterator[tuple[OpenAi, Replay]]:
    """Replay to an adapter with a key."""
    async with replaying(*replies) as replay:
        made = OpenAiSettings(
            id="vendor", base_url=replay.base_url, api_key=Secret(KEY), interface="responses", **settings
        )
        provider = OpenAi(made, MODELS)
        try:
            yield provider, replay
        finally:
            await provider.close()


def chat(*messages: Message, model: str = "vendor/m-1", **fields: Any) -> Chat:
    return Chat(model=model, messages=messages or [user("hi")], **fields)


def said(text: str) -> Part:
    return Part(text=TextPart(text=text))


def body(call: Chat, name: str = "m-1") -> dict[str, Any]:
    return request_body(call, name, streams=True)


# C001
@pytest.mark.parametrize("check", SUITE, ids=lambda check: check.__name__)
async def test_it_is_a_provider(check: Callable[[Subject], Awaitable[None]]) -> None:
    by_text = {
        "text": stream("responses/text.sse"),
        "tools": stream("responses/tools.sse"),
        "failing": error(401),
        "cut": Reply((fixture("responses/text.sse")[:1600],), ending="cut"),
        "endless": Reply((fixture("responses/text.sse")[:1600],), ending="hang"),
    }
    async with serving(Reply()) as (provider, replay):

        def next_reply() -> Reply:
            return by_text[replay.asked[-1].body["input"][0]["content"][0]["text"]]

        replay.next_reply = next_reply  # type: ignore[method-assign]

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
async def test_text_and_usage_are_read() -> None:
    async with serving(stream("responses/text.sse", headers=(("x-request-id", "req_1"),))) as (provider, replay):
        deltas, end = await read(provider, chat())
    assert texts(deltas, 0) == end.message.parts[0].text.text == TEXT
    assert (end.usage.input_tokens, end.usage.output_tokens) == (21, 9)
    assert (end.usage.cached_input_tokens, end.usage.cache_write_tokens, end.usage.reasoning_tokens) == (16, 3, 4)
    assert end.usage_source == UsageSource.USAGE_SOURCE_REPORTED
    assert end.provider_request_id == "req_1"
    assert replay.asked[0].path == "/v1/responses"
    assert replay.asked[0].headers["authorization"] == f"Bearer {KEY}"


# C007 C010 C011
@pytest.mark.parametrize("model,reply", [("vendor/slow", "complete.json"), ("vendor/m-1", "complete.json")])
async def test_a_whole_answer_is_read_like_a_stream(model: str, reply: str) -> None:
    async with serving(whole(f"responses/{reply}"), stream("responses/tools.sse")) as (provider, replay):
        _, end = await read(provider, chat(model=model))
        _, streamed = await read(provider, chat())
    # The seal names its model.
    assert list(end.message.parts)[1:] == list(streamed.message.parts)[1:]
    assert end.usage == streamed.usage
    assert end.finish_reason == streamed.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
    assert replay.asked[0].body["stream"] is (model == "vendor/m-1")
    thought, spoken, look_up, now = end.message.parts
    assert thought.reasoning.text == "Let me think.\n\nDone."
    assert spoken.text.text == "Let me look."
    assert look_up.tool_call == ToolCall(
        name="look_up", arguments_json='{"id": 9007199254740993}', provider_call_id="call_a"
    )
    assert now.tool_call == ToolCall(name="now", arguments_json="{}", provider_call_id="call_b")


# C012
@pytest.mark.parametrize("name", ["text.sse", "tools.sse"])
async def test_a_stream_in_pieces_gives_the_same_answer(name: str) -> None:
    data = fixture(f"responses/{name}")
    bytewise = Reply(tuple(data[at : at + 1] for at in range(len(data))))
    cuts = [Reply(split(data, at)) for at in range(7, len(data), 41)]
    async with serving(stream(f"responses/{name}"), *cuts, bytewise, keepalive_seconds=30) as (provider, replay):
        expected = (await read(provider, chat()))[1]
        for _ in range(len(cuts) + 1):
            assert (await read(provider, chat()))[1] == expected
        assert replay.connections == 1


def feed_of(name: str) -> list[str]:
    """Give the data of each event of a stream."""
    lines = fixture(f"responses/{name}").decode().splitlines()
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


# C021
async def test_a_stream_that_stops_after_any_event_is_broken() -> None:
    data = feed_of("tools.sse")
    async with serving(*(events(*data[:count]) for count in range(1, len(data)))) as (provider, _):
        for _count in range(1, len(data)):
            assert (await failure(provider, chat())).reason == "PROVIDER_STREAM_BROKEN"


# C021
async def test_an_event_that_comes_twice_or_is_left_out_spoils_the_answer() -> None:
    data = feed_of("tools.sse")
    pieces = [at for at, event in enumerate(data) if '.delta"' in event or "output_item" in event]
    twice = [events(*data[: at + 1], *data[at:]) for at in range(len(data) - 1)]
    missing = [events(*data[:at], *data[at + 1 :]) for at in pieces if "web_search" not in data[at]]
    async with serving(*twice, *missing) as (provider, _):
        for _turn in range(len(twice) + len(missing)):
            assert (await failure(provider, chat())).reason == "PROVIDER_MALFORMED_OUTPUT"


def ended(status: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{status}", "response": {"object": "response", "status": status, **fields}}


# C006
@pytest.mark.parametrize(
    "last,reason",
    [
        (ended("completed"), FinishReason.FINISH_REASON_STOP),
        (ended("incomplete", incomplete_details={"reason": "max_output_tokens"}), FinishReason.FINISH_REASON_LENGTH),
        (
            ended("incomplete", incomplete_details={"reason": "content_filter"}),
            FinishReason.FINISH_REASON_CONTENT_FILTER,
        ),
        (ended("incomplete", incomplete_details={"reason": "news"}), FinishReason.FINISH_REASON_OTHER),
    ],
    ids=["completed", "length", "filter", "other"],
)
async def test_finish_reasons_are_told_in_our_words(last: dict[str, Any], reason: int) -> None:
    async with serving(events(last)) as (provider, _):
        _, end = await read(provider, chat())
    assert end.finish_reason == reason
    assert end.usage_source == UsageSource.USAGE_SOURCE_ESTIMATED


# C006
async def test_a_refusal_is_a_finish_reason_and_its_words_are_the_text() -> None:
    async with serving(stream("responses/refusal.sse")) as (provider, _):
        _, end = await read(provider, chat())
    assert end.finish_reason == FinishReason.FINISH_REASON_REFUSAL
    assert end.message.parts[0].text.text == "I cannot do that."


@pytest.mark.parametrize("arguments", ["", '{"id": 9007'])
async def test_a_call_that_length_cut_is_no_call(arguments: str) -> None:
    item = {"type": "function_call", "id": "fc_1", "call_id": "call_a", "name": "look_up", "arguments": ""}
    begun = [{"type": "response.output_item.added", "output_index": 0, "item": item}]
    if arguments:
        begun.append({"type": "response.function_call_arguments.delta", "output_index": 0, "delta": arguments})
    last = ended("incomplete", incomplete_details={"reason": "max_output_tokens"})
    async with serving(events(*begun, last)) as (provider, _):
        _, end = await read(provider, chat())
    assert not end.message.parts
    assert end.finish_reason == FinishReason.FINISH_REASON_LENGTH


# C015
@pytest.mark.parametrize(
    "last,reason",
    [
        (ended("failed", error={"code": "rate_limit_exceeded", "message": "no"}), "PROVIDER_RATE_LIMITED"),
        (ended("failed", error={"code": "invalid_prompt", "message": "no"}), "PROVIDER_CONTENT_REFUSED"),
        (ended("failed", error={"code": "server_error", "message": "no"}), "PROVIDER_UNAVAILABLE"),
        ({"type": "error", "code": "server_error", "message": "no"}, "PROVIDER_UNAVAILABLE"),
        ({"type": "error", "error": {"code": "context_length_exceeded"}}, "PROVIDER_CONTEXT_TOO_LONG"),
    ],
    ids=["limit", "prompt", "failed", "error", "nested"],
)
async def test_an_error_in_the_stream_is_told_by_its_code(last: dict[str, Any], reason: str) -> None:
    async with serving(events(last)) as (provider, _):
        assert (await failure(provider, chat())).reason == reason


# C004
async def test_parameters_arrive() -> None:
    sampling = Sampling(temperature=0, top_p=0.5, max_output_tokens=64, seed=7)
    schema = ResponseFormat(kind="RESPONSE_FORMAT_KIND_JSON_SCHEMA", schema_json='{"type": "object"}', strict=True)
    call = chat(
        sampling=sampling,
        tools=[NOW],
        tool_choice=ToolChoice(mode="TOOL_CHOICE_MODE_TOOL", tool_name="now"),
        response_format=schema,
        provider_options_json='{"service_tier": "flex", "stream": false}',
    )
    async with serving(stream("responses/text.sse")) as (provider, replay):
        await read(provider, call)
    assert replay.asked[0].body == {
        "model": "m-1",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "tools": [
            {
                "type": "function",
                "name": "now",
                "description": "The time.",
                "parameters": {"type": "object"},
                "strict": False,
            }
        ],
        "tool_choice": {"type": "function", "name": "now"},
        "temperature": 0,
        "top_p": 0.5,
        "max_output_tokens": 64,
        "text": {"format": {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}},
        "service_tier": "flex",
        "stream": True,
    }


@pytest.mark.parametrize(
    "name,effort,sent",
    [
        ("gpt-6-luna", "", None),
        ("gpt-6-luna", "REASONING_EFFORT_HIGH", {"effort": "high"}),
        ("gpt-6-luna", "REASONING_EFFORT_NONE", {"effort": "none"}),
        ("gpt-6-astra", "REASONING_EFFORT_NONE", {"effort": "low"}),
    ],
)
def test_reasoning_and_tools_go_together(name: str, effort: str, sent: Any) -> None:
    call = chat(tools=[NOW], sampling=Sampling(temperature=0, reasoning_effort=effort or None))
    found = body(call, name)
    assert found.get("reasoning") == sent
    assert ("temperature" in found) == (sent == {"effort": "none"})


def test_texts_that_end_an_answer_are_refused_since_there_are_none() -> None:
    with pytest.raises(ProviderFailure) as caught:
        body(chat(sampling=Sampling(stop=["END"])))
    assert caught.value.reason == "PROVIDER_REQUEST_INVALID"


# C005 C007
def test_a_conversation_with_calls_and_pictures_is_sent_in_order() -> None:
    picture = Part(image=ImagePart(data=b"\x89PNG", media_type="image/png"))
    call = Part(tool_call=ToolCall(id="c1", name="look_up", arguments_json='{"id": 9007199254740993}'))
    results = [
        Part(tool_result=ToolResult(call_id="c1", name="look_up", parts=[said("found"), picture])),
        Part(tool_result=ToolResult(call_id="c2", name="now", parts=[Part(json=JsonPart(json='{"t":1}'))])),
    ]
    sent = body(
        chat(
            Message(role=Role.ROLE_SYSTEM, parts=[said("Be brief.")]),
            Message(role=Role.ROLE_USER, parts=[said("Look:"), picture, Part(json=JsonPart(json="[1]"))]),
            Message(
                role=Role.ROLE_ASSISTANT, parts=[said("Well."), call, Part(tool_call=ToolCall(id="c2", name="now"))]
            ),
            Message(role=Role.ROLE_TOOL, parts=results),
        )
    )
    shown = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw=="}
    assert sent["input"] == [
        {"role": "system", "content": [{"type": "input_text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Look:"}, shown, {"type": "input_text", "text": "[1]"}],
        },
        {"role": "assistant", "content": "Well."},
        {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": '{"id": 9007199254740993}'},
        {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": [{"type": "input_text", "text": "found"}, shown],
        },
        {"type": "function_call_output", "call_id": "c2", "output": '{"t":1}'},
    ]


async def test_sealed_reasoning_goes_back_as_it_came_while_its_turn_lasts() -> None:
    async with serving(stream("responses/tools.sse")) as (provider, _):
        _, end = await read(provider, chat())
    assert end.message.parts[0].reasoning.signature.startswith(SEALED)
    in_turn = [user("hi"), end.message, Message(role=Role.ROLE_TOOL)]
    items = body(chat(*in_turn))["input"]
    summary = [{"type": "summary_text", "text": "Let me think.\n\nDone."}]
    assert items[1] == {
        "type": "reasoning",
        "id": "rs_1",
        "summary": summary,
        "encrypted_content": "gAAAAABoJ-sealed",
    }
    assert [item.get("type", item.get("role")) for item in items[2:]] == ["assistant", "function_call", "function_call"]
    spoilt = Message()
    spoilt.CopyFrom(end.message)
    spoilt.parts[0].reasoning.signature = SEALED + b"\xff"
    with pytest.raises(ProviderFailure):
        body(chat(user("hi"), spoilt))
    alone = Message(role=Role.ROLE_ASSISTANT, parts=end.message.parts[:1])
    for others in (
        chat(*in_turn, user("And then?")),
        chat(*in_turn, model="vendor/slow"),
        chat(user("hi"), alone),
    ):
        assert "reasoning" not in [item.get("type") for item in body(others)["input"]]


def test_the_configuration_chooses_the_interface_and_what_its_models_can_do(tmp_path: Path) -> None:
    file = tmp_path / "behestd.toml"
    file.write_text('[providers.openai]\nkind = "openai"\ninterface = "responses"\nmodels = ["gpt-6-astra", "own"]\n')
    found = models(Origin(file, {"HOME": str(tmp_path)}, ()).load())
    assert found.resolve("openai/gpt-6-astra").model.capabilities.tools
    assert found.resolve("openai/own").model.capabilities.tools
    assert found.provider("openai").describe().adapter == "openai"
