"""What the Anthropic-compatible adapter sends, as it arrives at a real HTTP server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from behest.v1.chat_pb2 import ResponseFormat, Sampling, ToolChoice
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import (
    AudioPart,
    FilePart,
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
from behest.v1.model_pb2 import Model, ModelCapabilities, ModelLimits
from behest.v1.tool_pb2 import Tool
from behestd.config.source import ConfigInvalid, Configuration, Origin
from behestd.planning.models import models
from behestd.providers.anthropic_models import MAX_CACHE_MARKERS, Thinking, known
from behestd.providers.anthropic_request import DEFAULT_MAX_TOKENS, call_id, request_body
from behestd.providers.failure import ProviderFailure
from tests.providers.conformance import read, user
from tests.providers.replay import stream
from tests.providers.test_anthropic import chat, serving

MARK = {"type": "ephemeral"}
NOW = Tool(name="now", description="The time.", input_schema_json='{"type": "object"}')
SENT_NOW = {"name": "now", "description": "The time.", "input_schema": {"type": "object"}}


def says(role: int, *parts: Part) -> Message:
    return Message(role=role, parts=parts)


def said(text: str) -> Part:
    return Part(text=TextPart(text=text))


def calls(call_id: str, arguments: str = "{}") -> Part:
    return Part(tool_call=ToolCall(id=call_id, name="now", arguments_json=arguments))


def result(call_id: str, *parts: Part, is_error: bool = False) -> Part:
    return Part(tool_result=ToolResult(call_id=call_id, name="now", parts=parts, is_error=is_error))


def thought(text: str, signature: bytes) -> Part:
    return Part(reasoning=ReasoningPart(text=text, signature=signature))


async def asked(call: Chat) -> dict[str, Any]:
    """Send a call and return the body that arrived."""
    async with serving(stream("anthropic/text.sse")) as (provider, replay):
        await read(provider, call)
        return replay.asked[0].body


def body(call: Chat, *, name: str = "claude-sonnet-5-5", markers: int = 0) -> dict[str, Any]:
    """Build a body for a model of a name, with so many markers of the cache."""
    model = Model(
        id=call.model,
        capabilities=ModelCapabilities(prompt_cache_markers=bool(markers)),
        limits=ModelLimits(max_prompt_cache_markers=markers),
    )
    return request_body(call, name, model, streams=True)


def marked(document: Any, at: str = "") -> list[str]:
    """Return where markers stand in a body."""
    if isinstance(document, list):
        return [found for index, each in enumerate(document) for found in marked(each, f"{at}/{index}")]
    if not isinstance(document, dict):
        return []
    here = [at] if "cache_control" in document else []
    return here + [found for name, each in document.items() for found in marked(each, f"{at}/{name}")]


# C004
async def test_parameters_arrive() -> None:
    sampling = Sampling(temperature=0, top_p=0.5, max_output_tokens=64, stop=["END"], seed=7)
    sampling.reasoning_effort = Sampling(reasoning_effort="REASONING_EFFORT_LOW").reasoning_effort
    schema = ResponseFormat(kind="RESPONSE_FORMAT_KIND_JSON_SCHEMA", schema_json='{"type": "object"}', strict=True)
    sent = await asked(
        chat(
            sampling=sampling,
            tools=[NOW],
            tool_choice=ToolChoice(mode="TOOL_CHOICE_MODE_TOOL", tool_name="now"),
            response_format=schema,
            provider_options_json='{"service_tier": "auto", "stream": false}',
        )
    )
    assert sent == {
        "model": "claude-sonnet-5-5",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": MARK}]}],
        "stop_sequences": ["END"],
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "tools": [{**SENT_NOW, "cache_control": MARK}],
        "tool_choice": {"type": "tool", "name": "now"},
        "service_tier": "auto",
        "stream": True,
    }


# C004
@pytest.mark.parametrize(
    "name,effort,sent",
    [
        ("qwen3-8b", "UNSPECIFIED", {"temperature": 0, "top_p": 0.5}),
        ("claude-haiku-4-5", "UNSPECIFIED", {"temperature": 0}),
        ("claude-haiku-4-5", "HIGH", {}),
        ("claude-opus-4-6", "UNSPECIFIED", {"temperature": 0}),
        ("claude-opus-4-7", "UNSPECIFIED", {}),
        ("claude-sonnet-5-5", "UNSPECIFIED", {}),
        ("claude-opus-9", "UNSPECIFIED", {}),
    ],
)
def test_each_model_is_sent_as_much_of_the_sampling_as_it_takes(name: str, effort: str, sent: Any) -> None:
    sampling = Sampling(temperature=0, top_p=0.5, max_output_tokens=4096, reasoning_effort=f"REASONING_EFFORT_{effort}")
    found = body(chat(sampling=sampling), name=name)
    assert {key: found[key] for key in ("temperature", "top_p") if key in found} == sent


async def test_what_is_unset_is_not_sent() -> None:
    sent = await asked(chat())
    assert set(sent) == {"model", "max_tokens", "messages", "stream"}
    assert sent["max_tokens"] == 128_000
    assert body(chat())["max_tokens"] == DEFAULT_MAX_TOKENS


@pytest.mark.parametrize("mode,sent", [("AUTO", "auto"), ("NONE", "none"), ("REQUIRED", "any")])
async def test_the_choice_of_tools_arrives(mode: str, sent: str) -> None:
    call = chat(tools=[NOW], tool_choice=ToolChoice(mode=f"TOOL_CHOICE_MODE_{mode}"))
    assert (await asked(call))["tool_choice"] == {"type": sent}


@pytest.mark.parametrize(
    "name,effort,thinking,config",
    [
        ("claude-opus-5-5", "NONE", None, {"effort": "low"}),
        ("claude-opus-5-5", "HIGH", {"type": "adaptive"}, {"effort": "high"}),
        ("claude-sonnet-5-5", "NONE", {"type": "between_tools"}, None),
        ("claude-haiku-5-5", "NONE", {"type": "disabled"}, None),
        ("claude-opus-4-6", "MEDIUM", {"type": "adaptive"}, {"effort": "medium"}),
        ("claude-haiku-4-5-20251001", "NONE", None, None),
        ("claude-haiku-4-5-20251001", "LOW", {"type": "enabled", "budget_tokens": 2048}, None),
        ("claude-haiku-4-5-20251001", "HIGH", {"type": "enabled", "budget_tokens": 4096}, None),
        ("qwen3-8b", "MEDIUM", {"type": "enabled", "budget_tokens": 4096}, None),
    ],
)
def test_each_model_is_told_in_its_way_how_hard_to_think(name: str, effort: str, thinking: Any, config: Any) -> None:
    sent = body(chat(sampling=Sampling(reasoning_effort=f"REASONING_EFFORT_{effort}")), name=name)
    assert (sent.get("thinking"), sent.get("output_config")) == (thinking, config)


def test_a_budget_of_thought_stays_under_the_limit_of_the_answer() -> None:
    effort = Sampling(reasoning_effort="REASONING_EFFORT_HIGH", max_output_tokens=2000)
    assert "thinking" not in body(chat(sampling=effort), name="claude-haiku-4-5")
    effort.max_output_tokens = 4000
    assert body(chat(sampling=effort), name="claude-haiku-4-5")["thinking"]["budget_tokens"] == 2000


# C005 C009
async def test_a_conversation_with_calls_and_pictures_arrives_in_order() -> None:
    long_id = "run/1:call " + "c" * 64
    picture = Part(image=ImagePart(data=b"\x89PNG", media_type="image/png"))
    link = Part(image=ImagePart(uri="https://example.org/a.png"))
    pdf = Part(file=FilePart(uri="https://example.org/a.pdf", media_type="application/pdf", name="A"))
    sent = await asked(
        chat(
            says(Role.ROLE_SYSTEM, said("Be brief.")),
            says(Role.ROLE_USER, said("Look:"), picture, link, pdf, Part(json=JsonPart(json="[1]"))),
            says(Role.ROLE_ASSISTANT, said("Well."), calls(long_id, '{"id": 9007199254740993}'), calls("c2")),
            says(Role.ROLE_TOOL, result(long_id, said("found"), picture)),
            says(Role.ROLE_TOOL, result("c2", is_error=True)),
            says(Role.ROLE_USER, said("Hurry.")),
            says(Role.ROLE_ASSISTANT, said("Done."), said(" ")),
            says(Role.ROLE_USER, said("Thanks.")),
        )
    )
    sent_picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}}
    sent_id = call_id(long_id)
    assert sent_id.isalnum()
    assert sent["system"] == [{"type": "text", "text": "Be brief.", "cache_control": MARK}]
    assert sent["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look:"},
                sent_picture,
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
                {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}, "title": "A"},
                {"type": "text", "text": "[1]"},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Well."},
                {"type": "tool_use", "id": sent_id, "name": "now", "input": {"id": 9007199254740993}},
                {"type": "tool_use", "id": "c2", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": sent_id,
                    "content": [{"type": "text", "text": "found"}, sent_picture],
                },
                {"type": "tool_result", "tool_use_id": "c2", "is_error": True},
                {"type": "text", "text": "Hurry.", "cache_control": MARK},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Done."}]},
        {"role": "user", "content": [{"type": "text", "text": "Thanks.", "cache_control": MARK}]},
    ]


# C009
async def test_an_answer_with_thinking_goes_back_as_it_came_while_its_turn_lasts() -> None:
    async with serving(stream("anthropic/thinking.sse"), stream("anthropic/text.sse")) as (provider, replay):
        question = chat(user("When?"))
        _, end = await read(provider, question)
        call = next(part.tool_call for part in end.message.parts if part.HasField("tool_call"))
        call.id = "ours"
        in_turn = [*question.messages, end.message, says(Role.ROLE_TOOL, result("ours", said("12:00")))]
        await read(provider, chat(*in_turn))
        await read(provider, chat(*in_turn, user("And there?")))
    kinds = [block["type"] for block in replay.asked[1].body["messages"][1]["content"]]
    assert kinds == ["thinking", "redacted_thinking", "text", "tool_use"]
    shown, redacted = replay.asked[1].body["messages"][1]["content"][:2]
    signature = "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds=="
    assert shown == {"type": "thinking", "thinking": "Let me think.", "signature": signature}
    assert redacted["data"] == "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIwxtE3"
    # A word in the middle of the turn, beside results, does not end it.
    assert [block["type"] for block in replay.asked[2].body["messages"][1]["content"]] == kinds
    done = body(chat(*in_turn, says(Role.ROLE_ASSISTANT, said("Noon.")), user("Thanks.")))
    assert [block["type"] for block in done["messages"][1]["content"]] == ["text", "tool_use"]


def test_thinking_that_the_vendor_did_not_sign_is_not_sent_to_it() -> None:
    foreign = says(Role.ROLE_ASSISTANT, thought("hm", b""), thought("hm", b"other:abc"), said("Well."), calls("c1"))
    sent = body(chat(user("hi"), foreign, says(Role.ROLE_TOOL, result("c1", said("1")))))
    assert [block["type"] for block in sent["messages"][1]["content"]] == ["text", "tool_use"]


@pytest.mark.parametrize("arguments", ["[1]", '{"id": ', '{"id": NaN}', '{"id": 1e999}', '{"id": "\\ud800"}'])
def test_arguments_that_are_no_object_go_back_as_the_text_they_were(arguments: str) -> None:
    sent = body(chat(user("hi"), says(Role.ROLE_ASSISTANT, calls("c1", arguments))))
    assert sent["messages"][1]["content"][0]["input"] == {"malformed": arguments}


def test_an_answer_of_nothing_is_left_out_and_its_neighbours_are_one() -> None:
    sent = body(chat(user("a"), says(Role.ROLE_ASSISTANT), user("b")))
    assert sent["messages"] == [{"role": "user", "content": [{"type": "text", "text": each} for each in "ab"]}]


FULL = chat(
    says(Role.ROLE_SYSTEM, said("Be"), said("brief.")),
    user("a"),
    says(Role.ROLE_ASSISTANT, calls("c1")),
    says(Role.ROLE_TOOL, result("c1", said("1"))),
    says(Role.ROLE_ASSISTANT, calls("c2")),
    says(Role.ROLE_TOOL, result("c2", said("2"))),
    tools=[NOW, NOW],
)
PLACES = ["/system/1", "/messages/4/content/0", "/messages/2/content/0", "/tools/1"]


# C119
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 9])
def test_markers_stand_at_the_stable_prefix_first_and_are_never_more_than_the_vendor_takes(limit: int) -> None:
    assert sorted(marked(body(FULL, markers=limit))) == sorted(PLACES[: min(limit, MAX_CACHE_MARKERS)])


# C119
def test_a_marker_of_the_caller_takes_one_of_four() -> None:
    own = Chat()
    own.CopyFrom(FULL)
    own.provider_options_json = json.dumps({"cache_control": MARK})
    assert sorted(marked(body(own, markers=4))) == sorted(["", *PLACES[:3]])


# C119
def test_a_longer_conversation_begins_with_the_bytes_of_the_shorter() -> None:
    longer = Chat()
    longer.CopyFrom(FULL)
    del longer.messages[-2:]
    short, long = body(longer), body(FULL)
    assert json.dumps([long["tools"], long["system"]]) == json.dumps([short["tools"], short["system"]])
    assert json.dumps(long["messages"]).startswith(json.dumps(short["messages"])[:-1])


@pytest.mark.parametrize(
    "call",
    [
        chat(says(Role.ROLE_USER, Part(image=ImagePart(artifact_id="a")))),
        chat(says(Role.ROLE_USER, Part(file=FilePart(artifact_id="a")))),
        chat(says(Role.ROLE_USER, Part(file=FilePart(uri="https://example.org/a.txt", media_type="text/plain")))),
        chat(says(Role.ROLE_USER, Part(audio=AudioPart(uri="https://example.org/a.wav")))),
        chat(provider_options_json="[1]"),
        chat(provider_options_json="{"),
        chat(tools=[Tool(name="now", input_schema_json="[" * 100_000)]),
        chat(tools=[Tool(name="now", input_schema_json='{"title": "\\ud800"}')]),
        chat(tools=[Tool(name="now", input_schema_json='{"maximum": 1e999}')]),
        chat(response_format=ResponseFormat(kind="RESPONSE_FORMAT_KIND_JSON_OBJECT")),
    ],
    ids=["picture", "file", "text file", "sound", "options", "broken options", "schema", "half", "infinite", "object"],
)
async def test_what_cannot_be_written_is_refused_before_anything_is_sent(call: Chat) -> None:
    async with serving(stream("anthropic/text.sse")) as (provider, replay):
        with pytest.raises(ProviderFailure) as caught:
            await read(provider, call)
        assert caught.value.reason == "PROVIDER_REQUEST_INVALID"
        assert replay.asked == []


@pytest.mark.parametrize(
    "name,thinking,context,output",
    [
        ("claude-opus-5-5", Thinking.ALWAYS, 1_000_000, 128_000),
        ("claude-opus-5", Thinking.ADAPTIVE, 1_000_000, 128_000),
        ("claude-opus-5-20260724", Thinking.ADAPTIVE, 1_000_000, 128_000),
        ("eu.anthropic.claude-haiku-4-5-20251001-v1:0", Thinking.BUDGET, 200_000, 64_000),
        ("claude-opus-9", Thinking.ADAPTIVE, 0, 0),
        ("qwen3-8b", Thinking.BUDGET, 0, 0),
    ],
)
def test_a_model_is_known_by_its_family(name: str, thinking: Thinking, context: int, output: int) -> None:
    found = known(name)
    assert (found.thinking, found.context_window_tokens, found.max_output_tokens) == (thinking, context, output)


CONFIGURED = """
[providers.claude]
kind = "anthropic"
api_key = "env:KEY"

[[providers.claude.models]]
name = "claude-sonnet-5-5"

[[providers.claude.models]]
name = "claude-haiku-4-5"
capabilities = ["chat", "prompt_cache_markers"]
max_output_tokens = 1000
max_prompt_cache_markers = 2

[models]
default = "claude/claude-sonnet-5-5"
"""


def configured(directory: Path, text: str) -> Configuration:
    file = directory / "behestd.toml"
    file.write_text(text)
    return Origin(file, {"HOME": str(directory), "KEY": "not-a-real-key"}, ()).load()


def test_the_table_fills_in_what_the_configuration_does_not_say(tmp_path: Path) -> None:
    found = models(configured(tmp_path, CONFIGURED))
    table, own = (found.resolve(f"claude/{name}").model for name in ("claude-sonnet-5-5", "claude-haiku-4-5"))
    assert found.provider("claude").describe().address == "https://api.anthropic.com/v1"
    assert (table.limits.context_window_tokens, table.limits.max_output_tokens) == (1_000_000, 128_000)
    assert table.limits.max_prompt_cache_markers == 4
    assert table.capabilities.tools
    assert table.capabilities.json_schema
    assert not table.capabilities.json_object
    assert (own.limits.context_window_tokens, own.limits.max_output_tokens) == (200_000, 1000)
    assert own.limits.max_prompt_cache_markers == 2
    assert not own.capabilities.tools


def test_a_setting_of_the_other_interface_is_refused(tmp_path: Path) -> None:
    text = '[providers.claude]\nkind = "anthropic"\nmax_tokens_field = "max_tokens"\n'
    with pytest.raises(ConfigInvalid):
        configured(tmp_path, text)
