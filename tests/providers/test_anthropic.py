"""The Anthropic-compatible adapter against a real HTTP server: what it reads, and in how many pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat, ChatEnd
from behest.v1.embedding_service_pb2 import EmbedRequest
from behest.v1.message_pb2 import Message, ToolCall
from behest.v1.model_pb2 import Model, ModelCapabilities, ModelLimits
from behest.v1.usage_pb2 import UsageSource
from behestd.errors import Unsupported
from behestd.providers import http_client
from behestd.providers.anthropic import Anthropic, AnthropicSettings
from behestd.providers.failure import ProviderFailure
from behestd.providers.provider import embed
from behestd.providers.secret import Secret
from tests.providers.conformance import SUITE, TIMEOUTS, Subject, failure, read, user
from tests.providers.replay import Replay, Reply, error, events, fixture, replaying, split, stream, whole

KEY = "sk-ant-canary-0123456789"
TEXT = "Grüße, 世界 🦜!"
MODELS = (
    Model(
        id="claude/claude-sonnet-5-5",
        provider_id="claude",
        capabilities=ModelCapabilities(chat=True, streaming=True, prompt_cache_markers=True),
        limits=ModelLimits(max_output_tokens=128_000, max_prompt_cache_markers=4),
    ),
    Model(id="claude/whole", provider_id="claude", capabilities=ModelCapabilities(chat=True)),
)


@asynccontextmanager
async def serving(*replies: Reply, **settings: Any) -> AsyncIterator[tuple[Anthropic, Replay]]:
    """Replay to an adapter with a key."""
    async with replaying(*replies) as replay:
        provider = Anthropic(
            AnthropicSettings(id="claude", base_url=replay.base_url, api_key=Secret(KEY), **settings), MODELS
        )
        try:
            yield provider, replay
        finally:
            await provider.close()


def chat(*messages: Message, model: str = "claude/claude-sonnet-5-5", **fields: Any) -> Chat:
    return Chat(model=model, messages=messages or [user("hi")], **fields)


def text(end: ChatEnd) -> str:
    return "".join(part.text.text for part in end.message.parts)


START = {"type": "message_start", "message": {"id": "msg_1", "usage": {"input_tokens": 3, "output_tokens": 1}}}
TEXT_BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
HI = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}
CLOSED = {"type": "content_block_stop", "index": 0}
STOP = {"type": "message_stop"}


def done(reason: str) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 2}}


# C001
@pytest.mark.parametrize("check", SUITE, ids=lambda check: check.__name__)
async def test_it_is_a_provider(check: Callable[[Subject], Awaitable[None]]) -> None:
    by_text = {
        "text": stream("anthropic/text.sse"),
        "tools": stream("anthropic/tools.sse"),
        "failing": error(401),
        "cut": Reply((fixture("anthropic/text.sse")[:900],), ending="cut"),
        "endless": Reply((fixture("anthropic/text.sse")[:900],), ending="hang"),
    }
    async with serving(Reply()) as (provider, replay):
        replay.next_reply = lambda: by_text[replay.asked[-1].body["messages"][0]["content"][0]["text"]]  # type: ignore[method-assign]

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


# C009
async def test_counters_of_the_cache_are_part_of_the_input() -> None:
    async with serving(stream("anthropic/text.sse", headers=(("request-id", "req_1"),))) as (provider, replay):
        _, end = await read(provider, chat())
    assert text(end) == TEXT
    assert (end.usage.input_tokens, end.usage.output_tokens) == (21 + 64 + 2048, 9)
    assert (end.usage.cached_input_tokens, end.usage.cache_write_tokens) == (2048, 64)
    assert end.usage_source == UsageSource.USAGE_SOURCE_REPORTED
    assert end.provider_request_id == "req_1"
    asked = replay.asked[0]
    assert asked.path == "/v1/messages"
    assert (asked.headers["x-api-key"], asked.headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in asked.headers


async def test_counters_that_shrink_or_come_twice_count_once_at_their_most() -> None:
    less = {**done("end_turn"), "usage": {"input_tokens": 1, "output_tokens": 1}}
    async with serving(events(START, TEXT_BLOCK, HI, CLOSED, done("end_turn"), less, STOP)) as (provider, _):
        _, end = await read(provider, chat())
    assert (end.usage.input_tokens, end.usage.output_tokens) == (3, 2)


async def test_missing_usage_is_estimated_and_marked() -> None:
    silent = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    async with serving(events(TEXT_BLOCK, HI, CLOSED, silent, STOP)) as (provider, _):
        _, end = await read(provider, chat())
    assert end.usage_source == UsageSource.USAGE_SOURCE_ESTIMATED
    assert end.usage.input_tokens > 0


# C009
@pytest.mark.parametrize("model", ["claude/whole", "claude/claude-sonnet-5-5"])
async def test_a_whole_answer_is_read_like_a_stream(model: str) -> None:
    async with serving(whole("anthropic/complete.json"), stream("anthropic/tools.sse")) as (provider, replay):
        _, end = await read(provider, chat(model=model))
        _, streamed = await read(provider, chat())
    assert end.message == streamed.message
    assert end.usage == streamed.usage
    assert end.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
    assert replay.asked[0].body["stream"] is (model != "claude/whole")


# C010 C011
async def test_text_before_calls_leaves_their_bytes_alone_and_no_bytes_are_an_object() -> None:
    async with serving(stream("anthropic/tools.sse")) as (provider, _):
        deltas, end = await read(provider, chat())
    said, look_up, now = end.message.parts
    assert said.text.text == "Let me look."
    assert look_up.tool_call == ToolCall(
        name="look_up", arguments_json='{"id": 9007199254740993, "of": "世界 🦜"}', provider_call_id="toolu_01A"
    )
    assert now.tool_call == ToolCall(name="now", arguments_json="{}", provider_call_id="toolu_01B")
    assert [delta.part for delta in deltas] == [0, 0, 1, 1, 1, 1, 1, 2]
    assert (end.usage.input_tokens, end.usage.cached_input_tokens) == (472 + 1024, 1024)


async def test_thinking_keeps_its_signature_and_its_place() -> None:
    async with serving(stream("anthropic/thinking.sse"), stream("anthropic/hidden.sse")) as (provider, _):
        _, end = await read(provider, chat())
        _, hidden = await read(provider, chat())
    kinds = [part.WhichOneof("kind") for part in end.message.parts]
    assert kinds == ["reasoning", "reasoning", "text", "tool_call"]
    shown, redacted = (part.reasoning for part in end.message.parts[:2])
    assert shown.text == "Let me think."
    assert shown.signature.endswith(b"EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds==")
    assert redacted.text == ""
    assert redacted.signature.endswith(b"EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIwxtE3")
    assert end.usage.reasoning_tokens == 25
    assert hidden.message.parts[0].reasoning.signature.endswith(b"EosnCkYICxIMMb3LzNrMu")


# C012: through the adapter, over a socket, in two pieces at each byte and in pieces of one byte.
@pytest.mark.parametrize("name", ["text", "tools", "thinking"])
async def test_a_stream_cut_at_any_byte_gives_the_same_answer(name: str) -> None:
    data = fixture(f"anthropic/{name}.sse")
    cuts = [Reply(split(data, position)) for position in range(1, len(data))]
    bytewise = Reply(tuple(data[at : at + 1] for at in range(len(data))))
    whole_stream = stream(f"anthropic/{name}.sse")
    async with serving(whole_stream, *cuts, bytewise, keepalive_seconds=30) as (provider, replay):
        expected = await read(provider, chat())
        for _ in range(len(cuts) + 1):
            assert await read(provider, chat()) == expected
        # The end of each response is read, so one connection serves them all.
        assert replay.connections == 1


# C013
async def test_mixed_line_ends_and_comments_give_the_same_answer() -> None:
    data = fixture("anthropic/mixed.sse")
    pieces = tuple(data[at : at + 3] for at in range(0, len(data), 3))
    replies = (stream("anthropic/text.sse"), stream("anthropic/mixed.sse"), Reply(pieces))
    async with serving(*replies) as (provider, _):
        ends = [(await read(provider, chat()))[1] for _ in range(3)]
    assert ends[0] == ends[1] == ends[2]


async def test_a_ping_says_that_the_vendor_is_alive() -> None:
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    async with serving(Reply((ping, ping, fixture("anthropic/text.sse")))) as (provider, _):
        frames = [frame async for frame in provider.stream(chat())]
    assert [bool(frame.deltas) for frame in frames[:2]] == [False, False]
    assert text(frames[-1].end) == TEXT


async def test_what_is_not_known_is_passed_over() -> None:
    strange = {"type": "content_block_start", "index": 0, "content_block": {"type": "hologram", "text": "no"}}
    block = {**TEXT_BLOCK, "index": 1}
    growth = [{**HI, "index": 1}, {**HI, "index": 1, "delta": {"type": "citations_delta", "citation": {}}}]
    told = [START, {"type": "weather"}, strange, HI, CLOSED, block, *growth, {**CLOSED, "index": 1}]
    async with serving(events(*told, done("end_turn"), STOP)) as (provider, _):
        deltas, end = await read(provider, chat())
    assert text(end) == "hi"
    assert [delta.part for delta in deltas] == [0]


# C006
@pytest.mark.parametrize(
    "said,reason",
    [
        ("end_turn", FinishReason.FINISH_REASON_STOP),
        ("stop_sequence", FinishReason.FINISH_REASON_STOP),
        ("max_tokens", FinishReason.FINISH_REASON_LENGTH),
        ("model_context_window_exceeded", FinishReason.FINISH_REASON_LENGTH),
        ("tool_use", FinishReason.FINISH_REASON_TOOL_CALLS),
        ("refusal", FinishReason.FINISH_REASON_REFUSAL),
        ("content_filter", FinishReason.FINISH_REASON_CONTENT_FILTER),
        ("pause_turn", FinishReason.FINISH_REASON_OTHER),
        ("reason_of_tomorrow", FinishReason.FINISH_REASON_OTHER),
    ],
)
async def test_stop_reasons_are_told_in_our_words(said: str, reason: int) -> None:
    async with serving(events(START, done(said), STOP)) as (provider, _):
        assert (await read(provider, chat()))[1].finish_reason == reason


async def test_a_refusal_is_a_finish_reason_and_its_words_are_the_text() -> None:
    async with serving(stream("anthropic/refusal.sse")) as (provider, _):
        _, end = await read(provider, chat())
    assert end.finish_reason == FinishReason.FINISH_REASON_REFUSAL
    assert text(end) == "I will not do that."


@pytest.mark.parametrize("arguments", [[], ['{"id": 9007'], ['"id"']])
async def test_a_call_that_length_cut_is_no_call(arguments: list[str]) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {}}
    growth = [
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": each}}
        for each in arguments
    ]
    opened = {"type": "content_block_start", "index": 1, "content_block": call}
    told = [START, TEXT_BLOCK, HI, CLOSED, opened, *growth, {**CLOSED, "index": 1}, done("max_tokens"), STOP]
    async with serving(events(*told), stream("anthropic/cut_call.sse")) as (provider, _):
        for _ in range(2):
            _, end = await read(provider, chat())
            assert [part.WhichOneof("kind") for part in end.message.parts] == ["text"]
            assert end.finish_reason == FinishReason.FINISH_REASON_LENGTH


async def test_a_call_that_was_whole_before_the_cut_stays() -> None:
    whole_call = fixture("anthropic/tools.sse").replace(b'"tool_use","stop_sequence"', b'"max_tokens","stop_sequence"')
    async with serving(Reply((whole_call,))) as (provider, _):
        _, end = await read(provider, chat())
    # The last one has no bytes, so nobody knows whether it was whole.
    assert [part.tool_call.name for part in end.message.parts] == ["", "look_up"]


async def test_leaving_a_stream_closes_the_request() -> None:
    async with serving(Reply((fixture("anthropic/text.sse")[:900],), ending="hang")) as (provider, replay):
        frames = provider.stream(chat())
        await anext(frames)
        await frames.aclose()
        await replay.gone.wait()


async def test_there_are_no_embeddings() -> None:
    async with serving(stream("anthropic/text.sse")) as (provider, replay):
        with pytest.raises(ProviderFailure) as caught:
            await embed(provider, EmbedRequest(model="claude/whole", inputs=["a"]), TIMEOUTS)
        assert caught.value.reason == "PROVIDER_CAPABILITY_MISSING"
        assert (await failure(provider, chat(model="claude/other"))).reason == "PROVIDER_MODEL_NOT_FOUND"
        assert replay.asked == []


def test_the_provider_describes_itself_without_secrets() -> None:
    settings = AnthropicSettings(
        id="claude", base_url="https://user:pw@example.org/v1?key=x", api_key=Secret(KEY), headers={"x-key": "canary"}
    )
    provider = Anthropic(settings, MODELS)
    assert provider.describe().address == "https://example.org/v1"
    assert provider.describe().adapter == "anthropic"
    assert "canary" not in repr(settings)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(http_client.importlib, "import_module", missing)
    with pytest.raises(Unsupported) as caught:
        Anthropic(AnthropicSettings(id="claude"), MODELS)
    assert caught.value.metadata == {"feature": "behestd[anthropic]"}
