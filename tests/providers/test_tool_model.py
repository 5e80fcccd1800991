"""The adapter against a real model that calls tools. Opt-in, since it compiles its engine."""

from __future__ import annotations

import json
import os

import pytest

from behest.v1.chat_pb2 import FinishReason, Sampling, ToolChoice
from behest.v1.chat_service_pb2 import Chat
from behest.v1.model_pb2 import Model, ModelCapabilities
from behest.v1.tool_pb2 import Tool
from behestd.providers.openai import OpenAi, OpenAiSettings
from behestd.providers.provider import ProviderTimeouts, complete
from tests.providers.conformance import read, user
from tests.tool_llm_server import serving

WANTED = "BEHEST_TOOL_MODEL"
SCHEMA = '{"type": "object", "properties": {"city": {"type": "string", "maxLength": 30}}, "required": ["city"]}'
ABLE = {"chat": True, "tools": True}
MODELS = (
    Model(id="local/m", provider_id="local", capabilities=ModelCapabilities(**ABLE, streaming=True)),
    Model(id="local/whole", provider_id="local", capabilities=ModelCapabilities(**ABLE)),
)

pytestmark = [
    pytest.mark.proof,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        os.environ.get(WANTED) != "1", reason=f"compiles its engine for some ten minutes: {WANTED}=1 asks for it"
    ),
]


def chat(model: str) -> Chat:
    return Chat(
        model=model,
        messages=[user("What is the weather in Paris? Use the tool.")],
        tools=[Tool(name="get_weather", description="Get the weather of a city.", input_schema_json=SCHEMA)],
        tool_choice=ToolChoice(mode="TOOL_CHOICE_MODE_TOOL", tool_name="get_weather"),
        sampling=Sampling(temperature=0, max_output_tokens=64),
    )


async def test_a_real_model_s_call_is_read_streamed_and_whole() -> None:
    async with serving() as url:
        provider = OpenAi(OpenAiSettings(id="local", base_url=url, max_tokens_field="max_tokens"), MODELS)
        _, streamed = await read(provider, chat("local/m"))
        whole = await complete(provider, chat("local/whole"), ProviderTimeouts())
        await provider.close()
    for end in (streamed, whole):
        assert end.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
        (call,) = [part.tool_call for part in end.message.parts if part.HasField("tool_call")]
        assert call.name == "get_weather"
        assert set(json.loads(call.arguments_json)) == {"city"}
        assert call.provider_call_id
