"""Both HTTP adapters, in all their interfaces, against a server of the vendors' formats that was not written here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from behest.tools import ToolServer
from behest.v1.chat_pb2 import FinishReason, Sampling
from behest.v1.chat_service_pb2 import Chat, ChatEnd
from behest.v1.embedding_service_pb2 import EmbedRequest
from behest.v1.message_pb2 import ImagePart, JsonPart, Message, Part, Role, TextPart, ToolResult
from behest.v1.model_pb2 import Model, ModelCapabilities, ModelLimits
from behest.v1.tool_pb2 import Tool
from behest.v1.usage_pb2 import UsageSource
from behestd.providers.anthropic import Anthropic, AnthropicSettings
from behestd.providers.catalog import snapshot
from behestd.providers.openai import OpenAi, OpenAiSettings
from behestd.providers.provider import Provider, complete, embed
from behestd.providers.secret import Secret
from tests.daemons import serve
from tests.interop.typescript.node import INSTALL_SECONDS
from tests.providers import aimock_server
from tests.providers.aimock_server import Aimock
from tests.providers.conformance import TIMEOUTS, failure, read, texts, user
from tests.runs.scenes import OPEN

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)

SECONDS = 30
TEXT = "Grüße, 世界 🦜! Pieces of an answer that is longer than one chunk."
ARGUMENTS = '{"city":"Zürich","days":[1,2]}'
ANSWERS: list[dict[str, Any]] = [
    {"match": {"toolCallId": "c-1"}, "response": {"content": "It rains."}},
    {
        "match": {"userMessage": "say it"},
        "response": {"content": TEXT, "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}},
    },
    {
        "match": {"userMessage": "look it up"},
        "response": {
            "content": "Let me look.",
            "toolCalls": [
                {"name": "weather", "arguments": ARGUMENTS, "id": "call_a"},
                {"name": "now", "arguments": "{}", "id": "call_b"},
            ],
        },
    },
    {
        "match": {"userMessage": "think"},
        "response": {
            "reasoning": "Let me think.",
            "reasoningSignature": "signed",
            "toolCalls": [{"name": "now", "arguments": "{}", "id": "call_c"}],
        },
    },
    {"match": {"userMessage": "too long"}, "response": {"content": "It", "finishReason": "length"}},
    {"match": {"userMessage": "filtered"}, "response": {"content": "It", "finishReason": "content_filter"}},
    {"match": {"userMessage": "cut"}, "response": {"content": TEXT}, "truncateAfterChunks": 2},
    *(
        {
            "match": {"userMessage": f"status {status}"},
            "response": {"error": {"message": "no", "type": kind}, "status": status, "retryAfter": 3},
        }
        for status, kind in (
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (404, "not_found_error"),
            (429, "rate_limit_error"),
            (500, "api_error"),
        )
    ),
]
REASONS = {
    400: "PROVIDER_REQUEST_INVALID",
    401: "PROVIDER_CREDENTIALS_REJECTED",
    404: "PROVIDER_MODEL_REJECTED",
    429: "PROVIDER_RATE_LIMITED",
    500: "PROVIDER_UNAVAILABLE",
}
ABILITIES = {"chat": True, "tools": True, "image_input": True, "embeddings": True}
MODELS = (
    Model(id="v/m", provider_id="v", capabilities=ModelCapabilities(**ABILITIES, streaming=True)),
    Model(id="v/whole", provider_id="v", capabilities=ModelCapabilities(**ABILITIES)),
    Model(
        id="v/claude-haiku-4-5",
        provider_id="v",
        capabilities=ModelCapabilities(**ABILITIES, streaming=True, prompt_cache_markers=True),
        limits=ModelLimits(max_output_tokens=8192, max_prompt_cache_markers=4),
    ),
)
KEY = Secret("not-a-real-key")
TOOLS = [Tool(name=name, description=name, input_schema_json='{"type": "object"}') for name in ("weather", "now")]
VENDORS: dict[str, Callable[[str], Provider]] = {
    "openai": lambda url: OpenAi(OpenAiSettings(id="v", base_url=url, api_key=KEY), MODELS),
    "responses": lambda url: OpenAi(OpenAiSettings(id="v", base_url=url, api_key=KEY, interface="responses"), MODELS),
    "anthropic": lambda url: Anthropic(AnthropicSettings(id="v", base_url=url, api_key=KEY), MODELS),
}
each = pytest.mark.parametrize("vendor", VENDORS)


@asynccontextmanager
async def talking(
    vendor: str, home: Path, answers: list[dict[str, Any]] = ANSWERS
) -> AsyncIterator[tuple[Provider, Aimock]]:
    """Serve, with an adapter that is pointed at it."""
    async with aimock_server.serving(home, answers) as server:
        provider = VENDORS[vendor](server.base_url)
        try:
            yield provider, server
        finally:
            await provider.close()


def chat(*messages: Message | str, model: str = "v/m", **fields: Any) -> Chat:
    """Make a call; a text is a message of the user's."""
    return Chat(model=model, messages=[user(each) if isinstance(each, str) else each for each in messages], **fields)


def plain(end: ChatEnd) -> list[Part]:
    """Give the parts of an answer, reasoning aside, which some interfaces seal and send along."""
    return [part for part in end.message.parts if not part.HasField("reasoning")]


def spoken(end: ChatEnd) -> str:
    """Join the texts of an answer."""
    return "".join(part.text.text for part in plain(end))


@each
async def test_text_is_streamed_whole_and_the_same_without_streaming(vendor: str, tmp_path: Path) -> None:  # C007 C009
    async with talking(vendor, tmp_path) as (provider, _):
        deltas, end = await read(provider, chat("say it"))
        whole = await complete(provider, chat("say it", model="v/whole"), TIMEOUTS)
    assert len(deltas) > 2
    assert spoken(end) == TEXT
    assert "".join(delta.text for delta in deltas) == spoken(whole) == TEXT
    for answer in (end, whole):
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (11, 7)
        assert answer.usage_source == UsageSource.USAGE_SOURCE_REPORTED
        assert answer.finish_reason == FinishReason.FINISH_REASON_STOP
        assert answer.provider_request_id


@each
async def test_calls_after_text_keep_their_arguments(vendor: str, tmp_path: Path) -> None:  # C010 C011
    async with talking(vendor, tmp_path) as (provider, _):
        answers = [await read(provider, chat("look it up", model=model, tools=TOOLS)) for model in ("v/m", "v/whole")]
    for deltas, end in answers:
        said, weather, now = plain(end)
        assert said.text.text == "Let me look."
        assert json.loads(weather.tool_call.arguments_json) == json.loads(ARGUMENTS)
        assert (weather.tool_call.name, weather.tool_call.provider_call_id) == ("weather", "call_a")
        assert (now.tool_call.name, now.tool_call.arguments_json) == ("now", "{}")
        assert end.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
        assert texts(deltas, len(end.message.parts) - 2) == weather.tool_call.arguments_json


@each
async def test_a_turn_with_calls_results_and_a_picture_is_answered(vendor: str, tmp_path: Path) -> None:
    parts = [
        Part(text=TextPart(text="look it up")),
        Part(image=ImagePart(data=b"\x89PNG", media_type="image/png")),
        Part(json=JsonPart(json='{"unit":"C"}')),
    ]
    question = Message(role=Role.ROLE_USER, parts=parts)
    async with talking(vendor, tmp_path) as (provider, server):
        _, asked = await read(provider, chat(question, tools=TOOLS))
        calls = [part.tool_call for part in asked.message.parts if part.HasField("tool_call")]
        for number, call in enumerate(calls, start=1):
            call.id = f"c-{len(calls) - number + 1}"
        results = [
            Part(tool_result=ToolResult(call_id=call.id, name=call.name, parts=[Part(text=TextPart(text="rain"))]))
            for call in calls
        ]
        answer = Message(role=Role.ROLE_TOOL, parts=results)
        _, end = await read(provider, chat(question, asked.message, answer, tools=TOOLS))
        bodies = await server.asked()
    assert spoken(end) == "It rains."
    assert len(bodies) == 2


async def test_thinking_goes_back_with_its_signature_while_the_turn_lasts(tmp_path: Path) -> None:  # C009
    sampling = Sampling(reasoning_effort="REASONING_EFFORT_MEDIUM")
    model = "v/claude-haiku-4-5"
    more = {"match": {"toolCallId": "c-1"}, "response": {"content": "Noon."}}
    async with talking("anthropic", tmp_path, [more, *ANSWERS]) as (provider, server):
        _, asked = await read(provider, chat("think", model=model, tools=TOOLS, sampling=sampling))
        thought, call = asked.message.parts
        assert thought.reasoning.text == "Let me think."
        call.tool_call.id = "c-1"
        result = Part(tool_result=ToolResult(call_id="c-1", name="now", parts=[Part(text=TextPart(text="12:00"))]))
        answer = Message(role=Role.ROLE_TOOL, parts=[result])
        follow_up = chat(user("think"), asked.message, answer, model=model, tools=TOOLS, sampling=sampling)
        # The server refuses a turn that goes on without the thinking that began it.
        _, end = await read(provider, follow_up)
        bodies = await server.asked()
    assert end.message.parts[0].text.text == "Noon."
    assert len(bodies) == 2


# How the server says this on the newest interface is not how the vendor does.
@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
async def test_why_an_answer_ended_is_told(vendor: str, tmp_path: Path) -> None:  # C006
    async with talking(vendor, tmp_path) as (provider, _):
        ends = [(await read(provider, chat(asked)))[1] for asked in ("too long", "filtered")]
    assert [end.finish_reason for end in ends] == [
        FinishReason.FINISH_REASON_LENGTH,
        FinishReason.FINISH_REASON_CONTENT_FILTER,
    ]


@each
async def test_refusals_are_told_apart(vendor: str, tmp_path: Path) -> None:  # C015 C016
    async with talking(vendor, tmp_path) as (provider, _):
        found = {status: await failure(provider, chat(f"status {status}")) for status in REASONS}
    assert {status: each.reason for status, each in found.items()} == REASONS
    assert found[429].retry_after_seconds == 3


@each
async def test_an_answer_that_is_cut_is_no_answer(vendor: str, tmp_path: Path) -> None:  # C021
    async with talking(vendor, tmp_path) as (provider, _):
        assert (await failure(provider, chat("cut"))).reason in ("PROVIDER_STREAM_BROKEN", "PROVIDER_UNAVAILABLE")


async def test_embeddings_come_back_one_a_text(tmp_path: Path) -> None:  # C014
    answers = [{"match": {"inputText": "one"}, "response": {"embedding": [0.5, -0.25, 1.0]}}]
    async with talking("openai", tmp_path, answers) as (provider, _):
        found = await embed(provider, EmbedRequest(model="v/m", inputs=["one", "two"]), TIMEOUTS)
    assert [list(each.values) for each in found.embeddings] == [[0.5, -0.25, 1.0]] * 2
    assert found.model == "v/m"


@each
async def test_a_run_calls_tools_and_answers(vendor: str, tmp_path: Path) -> None:  # C010
    server = ToolServer()

    @server.tool
    def weather(city: str, days: list[int]) -> str:
        """Tell the weather."""
        return f"{city}: rain on {days}"

    @server.tool
    def now() -> str:
        """Tell the time."""
        return "12:00"

    told = {"match": {"userMessage": "look it up", "hasToolResult": True}, "response": {"content": "It rains at noon."}}
    async with talking(vendor, tmp_path, [told, *ANSWERS]) as (provider, backend):
        models = snapshot([provider], default_model="v/m")
        async with serve(models=models, operator=OPEN) as served, server:
            await server.attach(served.daemon.addresses[0], name="calc")
            run = await served.client.run("look it up")
            async with asyncio.timeout(SECONDS):
                result = await run.result()
            events = [event async for event in served.client.watch(run.run_id).events()]
        bodies = await backend.asked()
    assert result.text == "It rains at noon."
    results = [event.tool_completed for event in events if event.HasField("tool_completed")]
    assert sorted(part.text.text for each in results for part in each.result.parts) == [
        "12:00",
        "Zürich: rain on [1, 2]",
    ]
    assert len(bodies) == 2
