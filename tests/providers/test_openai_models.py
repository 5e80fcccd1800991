"""What is known of the vendor's models, what the configuration makes of it, and what it changes in a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from behest.v1.chat_pb2 import Sampling
from behest.v1.chat_service_pb2 import Chat
from behest.v1.model_pb2 import Model
from behestd.config.source import Origin
from behestd.errors import BehestError
from behestd.planning.models import models
from behestd.providers.catalog import CapabilityMissing, check
from behestd.providers.openai_models import known
from behestd.providers.openai_request import request_body
from tests.providers.conformance import user

LOOK_UP = {"name": "look_up", "input_schema_json": "{}"}
CONFIGURED = """
[providers.openai]
kind = "openai"
api_key = "env:OPENAI_API_KEY"
models = [
    "gpt-6-luna",
    "gpt-6-astra",
    "gpt-5.4-mini-2026-03-17",
    "text-embedding-3-small",
    "somebodys-model",
    { name = "gpt-5.5", capabilities = ["chat"], max_output_tokens = 100 },
]
"""


def configured(tmp_path: Path, text: str = CONFIGURED) -> dict[str, Model]:
    """Read a configuration and give its models by name."""
    file = tmp_path / "behestd.toml"
    file.write_text(text)
    found = models(Origin(file, {"HOME": str(tmp_path), "OPENAI_API_KEY": "not-a-real-key"}, ()).load())
    return {model.id.removeprefix("openai/"): model for model in found.provider("openai").models()}


def body(name: str, *, options: str = "", effort: str = "", tools: bool = True) -> dict[str, Any]:
    """Build the request of a call."""
    call = Chat(messages=[user("hi")], tools=[LOOK_UP] if tools else [], provider_options_json=options)
    call.sampling.CopyFrom(Sampling(temperature=0, top_p=0.5, seed=7, reasoning_effort=effort or None))
    return request_body(call, name, streams=True, max_tokens_field="max_completion_tokens")


# C003
def test_what_is_known_fills_in_what_is_not_said_and_nothing_else(tmp_path: Path) -> None:
    found = configured(tmp_path)
    luna, mini, said = found["gpt-6-luna"], found["gpt-5.4-mini-2026-03-17"], found["gpt-5.5"]
    assert (luna.limits.context_window_tokens, luna.limits.max_output_tokens) == (1_050_000, 128_000)
    assert luna.capabilities.tools and luna.capabilities.image_input and luna.capabilities.json_schema
    assert mini.limits.context_window_tokens == 400_000
    assert (said.limits.context_window_tokens, said.limits.max_output_tokens) == (1_050_000, 100)
    assert not said.capabilities.tools
    vectors = found["text-embedding-3-small"]
    assert vectors.capabilities.embeddings and not vectors.capabilities.chat
    assert vectors.limits.embedding_dimensions == 1536
    unknown = found["somebodys-model"]
    assert unknown.limits.context_window_tokens == 0
    assert unknown.capabilities.tools and not unknown.capabilities.image_input


# C003
def test_tools_for_a_model_that_takes_none_here_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(CapabilityMissing) as caught:
        check(Chat(messages=[user("hi")], tools=[LOOK_UP]), configured(tmp_path)["gpt-6-astra"])
    assert caught.value.metadata == {"model": "openai/gpt-6-astra", "capability": "tools"}


def test_by_the_other_interface_all_of_the_vendor_s_models_call_tools() -> None:
    for name in ("gpt-6-astra", "gpt-6-luna", "gpt-4o"):
        found = known(name, "responses")
        assert found is not None and "tools" in found.capabilities
    assert known("text-embedding-3-small", "responses") == known("text-embedding-3-small")
    assert known("somebodys-model", "responses") is None


def test_a_name_is_known_whole_or_with_the_date_of_a_snapshot() -> None:
    assert known("gpt-5.5-2026-04-23") == known("gpt-5.5")
    for name in ("gpt-5.5-pro", "gpt-5", "openai/gpt-5.5", "gpt-5.5-2026"):
        assert known(name) != known("gpt-5.5")
    assert known("qwen3-8b") is None


@pytest.mark.parametrize("name", ["gpt-6-luna", "gpt-6.1-terra", "gpt-5.6-terra"])
def test_a_model_that_reasons_or_calls_is_told_to_call_when_there_are_tools(name: str) -> None:
    assert body(name)["reasoning_effort"] == "none"
    assert "reasoning_effort" not in body(name, tools=False)
    assert body("gpt-6-astra", effort="REASONING_EFFORT_NONE", tools=False)["reasoning_effort"] == "low"
    # Who asks for both gets what the server says to it.
    assert body(name, effort="REASONING_EFFORT_HIGH")["reasoning_effort"] == "high"
    assert body(name, options=json.dumps({"reasoning_effort": "low"}))["reasoning_effort"] == "low"


# C004
@pytest.mark.parametrize(
    "name,effort,tools,takes",
    [
        ("gpt-4o", "", False, True),
        ("gpt-4o", "REASONING_EFFORT_LOW", False, True),
        ("qwen3-8b", "REASONING_EFFORT_LOW", True, True),
        ("gpt-5.4", "", True, True),
        ("gpt-5.4", "REASONING_EFFORT_LOW", False, False),
        ("gpt-5.5", "", False, False),
        ("gpt-5.5", "REASONING_EFFORT_NONE", False, True),
        ("gpt-6-luna", "", False, False),
        ("gpt-6-luna", "", True, True),
        ("gpt-6-luna", "REASONING_EFFORT_NONE", False, True),
        ("gpt-6-astra", "REASONING_EFFORT_NONE", False, False),
        ("gpt-5-mini", "", False, False),
    ],
)
def test_samplers_are_sent_to_a_model_that_takes_them_while_it_does(
    name: str, effort: str, tools: bool, takes: bool
) -> None:
    sent = body(name, effort=effort, tools=tools)
    assert ("temperature" in sent, "top_p" in sent, "seed" in sent) == (takes, takes, True)


@pytest.mark.parametrize("name", ["gpt-5.5", "gpt-4o", "qwen3-8b"])
def test_other_models_are_told_nothing_of_effort(name: str) -> None:
    assert "reasoning_effort" not in body(name)


# C119
@pytest.mark.parametrize("name", ["gpt-6-luna", "qwen3-8b"])
def test_no_cache_marker_is_sent_and_a_longer_conversation_begins_with_the_bytes_of_the_shorter(name: str) -> None:
    messages = [user("one"), user("two"), user("three")]
    calls = [Chat(messages=messages[:count], tools=[LOOK_UP]) for count in (1, 2, 3)]
    sent = [request_body(call, name, streams=True, max_tokens_field="max_tokens") for call in calls]
    assert not [each for each in sent if "cache" in json.dumps(each)]
    written = [json.dumps(each["messages"])[:-1] for each in sent]
    assert written[1].startswith(written[0]) and written[2].startswith(written[1])
    assert sent[0]["tools"] == sent[2]["tools"]


@pytest.mark.parametrize(
    "text",
    [
        '[providers.e]\nkind = "embedded"\nbase_url = "https://example.org"',
        '[providers.e]\nkind = "embedded"\nmodels = ["another"]',
        '[providers.e]\nkind = "embedded"\nmodels = [{ name = "all-minilm-l6-v2", capabilities = ["chat"] }]',
        '[providers.e]\nkind = "embedded"\nmodels = [{ name = "all-minilm-l6-v2", context_window_tokens = 513 }]',
    ],
    ids=["address", "name", "capabilities", "window"],
)
def test_what_makes_no_sense_of_an_embedded_provider_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(BehestError) as caught:
        configured(tmp_path, text)
    assert caught.value.reason == "RUNTIME_CONFIG_INVALID"
