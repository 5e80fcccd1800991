"""The adapter against a server and a model that were not written here. Installs about 220 MB the first time."""

from __future__ import annotations

import json
from contextlib import aclosing

import pytest

from behest.v1.chat_pb2 import ResponseFormat, Sampling
from behest.v1.chat_service_pb2 import Chat
from behest.v1.model_pb2 import Model, ModelCapabilities
from behest.v1.usage_pb2 import UsageSource
from behestd.providers.openai import OpenAi, OpenAiSettings
from behestd.providers.provider import ProviderTimeouts, guarded
from tests.llm_server import serving
from tests.providers.conformance import user

NAME = "local/smollm2"
SCHEMA = '{"type": "object", "properties": {"capital": {"type": "string", "maxLength": 40}}, "required": ["capital"]}'


@pytest.mark.proof
@pytest.mark.timeout(300)
async def test_a_real_model_streams_and_keeps_a_schema() -> None:
    model = Model(id=NAME, provider_id="local", capabilities=ModelCapabilities(chat=True, streaming=True))
    async with serving() as url:
        provider = OpenAi(OpenAiSettings(id="local", base_url=url), [model])
        chat = Chat(model=NAME, messages=[user("What is the capital of France?")], sampling=Sampling(seed=1))
        chat.sampling.max_output_tokens = 128
        with_schema = ResponseFormat(kind="RESPONSE_FORMAT_KIND_JSON_SCHEMA", schema_json=SCHEMA, strict=True)
        answers = []
        for wanted in (ResponseFormat(), with_schema):
            chat.response_format.CopyFrom(wanted)
            async with aclosing(guarded(provider.stream(chat), ProviderTimeouts())) as stream:
                frames = [frame async for frame in stream]
            end = frames[-1].end
            assert len(frames) > 4
            assert end.usage.output_tokens > 4
            assert end.usage_source == UsageSource.USAGE_SOURCE_REPORTED
            answers.append(end.message.parts[0].text.text)
        await provider.close()
    assert answers[0].strip()
    assert "capital" in json.loads(answers[1])
