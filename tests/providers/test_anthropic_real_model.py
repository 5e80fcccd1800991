"""The adapter against a server and a model that were not written here. Installs about 220 MB the first time.

The engine behind `tests.llm_server`, llama.cpp, answers on `/v1/messages` in the vendor's format as well.
"""

from __future__ import annotations

from contextlib import aclosing

import pytest

from behest.v1.chat_pb2 import FinishReason
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.model_pb2 import Model, ModelCapabilities, ModelLimits
from behest.v1.usage_pb2 import UsageSource
from behestd.providers.anthropic import Anthropic, AnthropicSettings
from behestd.providers.provider import ProviderTimeouts, complete, guarded
from tests.llm_server import CONTEXT_TOKENS, serving
from tests.providers.conformance import failure, user
from tests.providers.test_anthropic import chat

LIMITS = ModelLimits(max_output_tokens=48, max_prompt_cache_markers=4)
STREAMING = Model(
    id="local/smollm2",
    provider_id="local",
    capabilities=ModelCapabilities(chat=True, streaming=True, prompt_cache_markers=True),
    limits=LIMITS,
)
WHOLE = Model(id="local/whole", provider_id="local", capabilities=ModelCapabilities(chat=True), limits=LIMITS)


@pytest.mark.proof
@pytest.mark.timeout(300)
async def test_a_real_server_of_the_format_streams_answers_whole_and_refuses_what_is_too_long() -> None:
    rules = Message(role=Role.ROLE_SYSTEM, parts=[Part(text=TextPart(text="Answer in English."))])
    question = user("What is the capital of France?")
    async with serving() as url:
        provider = Anthropic(AnthropicSettings(id="local", base_url=url), [STREAMING, WHOLE])
        streamed = guarded(provider.stream(chat(rules, question, model=STREAMING.id)), ProviderTimeouts())
        async with aclosing(streamed) as stream:
            frames = [frame async for frame in stream]
        ends = [frames[-1].end, await complete(provider, chat(rules, question, model=WHOLE.id), ProviderTimeouts())]
        too_long = await failure(provider, chat(user("word " * 2 * CONTEXT_TOKENS), model=STREAMING.id))
        await provider.close()
    assert len(frames) > 4
    assert "".join(delta.text for frame in frames for delta in frame.deltas) == ends[0].message.parts[0].text.text
    for end in ends:
        assert end.message.parts[0].text.text.strip()
        assert end.finish_reason in (FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH)
        assert end.usage.output_tokens > 4
        assert end.usage.input_tokens > 10
        assert end.usage_source == UsageSource.USAGE_SOURCE_REPORTED
    assert too_long.reason == "PROVIDER_CONTEXT_TOO_LONG"
