"""What goes wrong at an OpenAI-compatible server: each thing is one request, one class, one reason, and no key."""

from __future__ import annotations

import asyncio
import socket

import pytest

from behest.v1.embedding_service_pb2 import EmbedRequest
from behest.v1.model_event_pb2 import FailureClass
from behestd.errors import InvalidRequest
from behestd.providers.failure import (
    MALFORMED,
    NOT_SENT,
    PERMANENT,
    QUOTA,
    THROTTLED,
    TRANSIENT,
    ProviderFailure,
    to_error,
)
from behestd.providers.http_failure import cleaned, retry_after_seconds
from behestd.providers.openai import OpenAi, OpenAiSettings
from behestd.providers.provider import ProviderTimeouts, complete
from behestd.providers.secret import Secret
from tests.providers.conformance import TIMEOUTS, failure
from tests.providers.replay import JSON, Reply, error, events, fixture, stream
from tests.providers.test_openai import KEY, MODELS, chat, serving

LATER = {"date": "Wed, 21 Oct 2026 07:28:00 GMT", "retry_after": "Wed, 21 Oct 2026 07:28:30 GMT"}
REFUSALS = [
    (error(400), PERMANENT, "REQUEST_INVALID"),
    (error(400, "context_length_exceeded"), PERMANENT, "CONTEXT_TOO_LONG"),
    (error(400, message="This model's maximum context length is 8192 tokens"), PERMANENT, "CONTEXT_TOO_LONG"),
    (error(400, "content_policy_violation"), PERMANENT, "CONTENT_REFUSED"),
    (error(400, "invalid_prompt"), PERMANENT, "CONTENT_REFUSED"),
    (error(401), PERMANENT, "CREDENTIALS_REJECTED"),
    (error(402), QUOTA, "QUOTA"),
    (error(403), PERMANENT, "CREDENTIALS_REJECTED"),
    (error(404, "model_not_found"), PERMANENT, "MODEL_REJECTED"),
    (error(404), PERMANENT, "MODEL_REJECTED"),
    (error(408), TRANSIENT, "TIMEOUT"),
    (error(409), TRANSIENT, "UNAVAILABLE"),
    (error(413), PERMANENT, "CONTEXT_TOO_LONG"),
    (error(422), PERMANENT, "REQUEST_INVALID"),
    (error(429, retry_after="7"), THROTTLED, "RATE_LIMITED"),
    (error(429, retry_after_ms="1500"), THROTTLED, "RATE_LIMITED"),
    (error(429, **LATER), THROTTLED, "RATE_LIMITED"),
    (error(429), QUOTA, "QUOTA"),
    (error(429, "insufficient_quota", retry_after="7"), QUOTA, "QUOTA"),
    (error(500), TRANSIENT, "UNAVAILABLE"),
    (error(502), TRANSIENT, "UNAVAILABLE"),
    (error(503, retry_after="2"), TRANSIENT, "UNAVAILABLE"),
    (error(504), TRANSIENT, "TIMEOUT"),
    (error(529), TRANSIENT, "UNAVAILABLE"),
    (error(529, retry_after="2"), THROTTLED, "RATE_LIMITED"),
    (error(307, location="http://127.0.0.1:1/"), PERMANENT, "REQUEST_INVALID"),
    (Reply((b"<html>Bad gateway</html>",), status=502), TRANSIENT, "UNAVAILABLE"),
    (Reply((b'{"error": "nope"}',), status=400, content_type=JSON), PERMANENT, "REQUEST_INVALID"),
    (Reply((b"[" * 9000,), status=400, content_type=JSON), PERMANENT, "REQUEST_INVALID"),
    (Reply((b"x" * 100_000,), status=400), PERMANENT, "REQUEST_INVALID"),
]


def named(value: object) -> str:
    return f"{value.status}-{len(value.headers)}" if isinstance(value, Reply) else str(value)


# C015, C018: one request, whatever comes of it.
@pytest.mark.parametrize("reply,failure_class,reason", REFUSALS, ids=named)
async def test_a_refusal_has_its_class_and_reason(reply: Reply, failure_class: int, reason: str) -> None:
    async with serving(reply) as (provider, replay):
        failed = await failure(provider, chat())
        assert (failed.failure_class, failed.reason) == (failure_class, f"PROVIDER_{reason}")
        assert failed.metadata["status"] == str(reply.status)
        assert len(replay.asked) == 1


async def test_how_long_to_wait_is_told() -> None:
    replies = [error(429, retry_after="7"), error(429, retry_after_ms="1500"), error(429, **LATER), error(503)]
    async with serving(*replies) as (provider, _):
        waits = [(await failure(provider, chat())).retry_after_seconds for _ in replies]
    assert waits == [7.0, 1.5, 30.0, None]


@pytest.mark.parametrize("said,seconds", [("-5", 0.0), ("1e9", 86_400.0), ("nan", None), ("inf", None), ("soon", None)])
def test_a_strange_wait_is_bounded_or_ignored(said: str, seconds: float | None) -> None:
    assert retry_after_seconds({"retry-after": said}) == seconds


HI = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}]}
STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
BROKEN = [
    (Reply((fixture("text.sse")[:500],), ending="cut"), TRANSIENT, "STREAM_BROKEN"),
    (Reply((fixture("text.sse").replace(b"data: [DONE]\n\n", b""),)), TRANSIENT, "STREAM_BROKEN"),
    (Reply((fixture("text.sse").replace(b"data: [DONE]\n\n", b""),), ending="eof"), TRANSIENT, "STREAM_BROKEN"),
    (events(HI, "[DONE]"), TRANSIENT, "STREAM_BROKEN"),
    (Reply((b"",)), TRANSIENT, "STREAM_BROKEN"),
    (Reply(ending="reset"), TRANSIENT, "UNAVAILABLE"),
    (stream("error.sse"), TRANSIENT, "UNAVAILABLE"),
    (events(HI, {"error": {"type": "overloaded_error", "message": "later"}}), THROTTLED, "RATE_LIMITED"),
    (events(HI, {"error": {"code": 429, "message": "later"}}), THROTTLED, "RATE_LIMITED"),
    (events(HI, {"error": {"code": "insufficient_quota"}}), QUOTA, "QUOTA"),
    (events(HI, {"error": {"code": "content_filter"}}), PERMANENT, "CONTENT_REFUSED"),
    (events(HI, {"error": "boom"}), TRANSIENT, "UNAVAILABLE"),
    (events(HI, "{not json", STOP, "[DONE]"), MALFORMED, "MALFORMED_OUTPUT"),
    (events(HI, "[" * 100_000, STOP, "[DONE]"), MALFORMED, "MALFORMED_OUTPUT"),
    (Reply((b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n',)), MALFORMED, "MALFORMED_OUTPUT"),
    (events([1], "[DONE]"), MALFORMED, "MALFORMED_OUTPUT"),
    (events({"choices": {}}, {"choices": 7}, "[DONE]"), MALFORMED, "MALFORMED_OUTPUT"),
    (events({"choices": [{"delta": {"content": 7}}]}), MALFORMED, "MALFORMED_OUTPUT"),
    (events({"choices": [{"delta": {"tool_calls": [{"index": "x"}]}}]}), MALFORMED, "MALFORMED_OUTPUT"),
    (events({"choices": [], "usage": {"prompt_tokens": -1}}), MALFORMED, "MALFORMED_OUTPUT"),
    (Reply((b"{",), content_type=JSON), MALFORMED, "MALFORMED_OUTPUT"),
    (Reply((b"{}",), content_type=JSON), TRANSIENT, "STREAM_BROKEN"),
    (Reply((b"no gzip",), headers=(("content-encoding", "gzip"),)), MALFORMED, "MALFORMED_OUTPUT"),
]


@pytest.mark.parametrize("reply,failure_class,reason", BROKEN)
async def test_an_answer_that_is_not_whole_is_never_complete(reply: Reply, failure_class: int, reason: str) -> None:
    async with serving(reply) as (provider, replay):
        failed = await failure(provider, chat())
        assert (failed.failure_class, failed.reason) == (failure_class, f"PROVIDER_{reason}")
        assert len(replay.asked) == 1


async def test_a_close_right_after_the_end_marker_does_no_harm() -> None:
    for ending in ("cut", "eof", "hang"):
        async with serving(stream("text.sse", ending=ending), keepalive_seconds=5) as (provider, _):
            assert (await complete(provider, chat(), TIMEOUTS)).usage.input_tokens == 21


async def test_a_refused_connection_proves_that_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    provider = OpenAi(OpenAiSettings(id="vendor", base_url=f"http://127.0.0.1:{port}/v1"), MODELS)
    failed = await failure(provider, chat())
    assert (failed.failure_class, failed.reason) == (NOT_SENT, "PROVIDER_UNAVAILABLE")
    await provider.close()


async def test_a_broken_handshake_proves_that_nothing_was_sent() -> None:
    async def speak_plainly(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(speak_plainly, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        provider = OpenAi(OpenAiSettings(id="vendor", base_url=url), MODELS)
        failed = await failure(provider, chat())
        assert (failed.failure_class, failed.reason) == (NOT_SENT, "PROVIDER_UNAVAILABLE")
        await provider.close()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/v1", "127.0.0.1/v1"])
async def test_an_address_of_another_kind_is_refused(url: str) -> None:
    provider = OpenAi(OpenAiSettings(id="vendor", base_url=url), MODELS)
    failed = await failure(provider, chat())
    assert (failed.failure_class, failed.reason) == (PERMANENT, "PROVIDER_REQUEST_INVALID")
    await provider.close()


def test_a_key_that_fits_no_header_is_refused_at_once_and_not_shown() -> None:
    with pytest.raises(InvalidRequest) as caught:
        OpenAi(OpenAiSettings(id="vendor", base_url="http://127.0.0.1/v1", api_key=Secret("kä🦜")), MODELS)
    assert "kä" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_key_with_a_line_end_is_not_sent() -> None:
    async with serving(stream("text.sse")) as (_, replay):
        settings = OpenAiSettings(id="vendor", base_url=replay.base_url, api_key=Secret("k\nx: y"))
        provider = OpenAi(settings, MODELS)
        assert (await failure(provider, chat())).reason == "PROVIDER_REQUEST_INVALID"
        assert replay.asked == []
        await provider.close()


# C022
async def test_a_server_that_falls_silent_is_left() -> None:
    limits = ProviderTimeouts(stall_seconds=0.05)
    async with serving(Reply((fixture("text.sse")[:500],), ending="hang")) as (provider, replay):
        with pytest.raises(ProviderFailure) as caught:
            await complete(provider, chat(), limits)
        assert caught.value.reason == "PROVIDER_TIMEOUT"
        assert caught.value.metadata["limitSeconds"] == "0.05"
        async with asyncio.timeout(30):
            await replay.gone.wait()
        assert len(replay.asked) == 1


# C016, and no key in any text.
async def test_a_rejected_key_is_neither_the_caller_s_fault_nor_shown() -> None:
    vendor = f"Incorrect API key provided: {KEY[:8]}***{KEY[-4:]}. Find yours at …"
    async with serving(error(401, "invalid_api_key", vendor)) as (provider, _):
        failed = await failure(provider, chat())
    told = to_error(failed, "vendor/m-1")
    assert (told.reason, type(told).__name__) == ("PROVIDER_CREDENTIALS_REJECTED", "WrongState")
    assert "canary" not in str(told) + str(told.metadata) + failed.message


@pytest.mark.parametrize(
    "leak",
    [
        KEY,
        f"Bearer {KEY}",
        "sk-proj-Abc123Def456",
        "AIzaSyA1234567890",
        "0123456789abcdef0123456789abcdef",
        "bearer x.y.z",
    ],
)
async def test_what_a_vendor_says_comes_without_keys(leak: str) -> None:
    async with serving(error(400, "bad", f"you sent\r\n\x1b[31m{leak} here")) as (provider, _):
        failed = await failure(provider, chat())
    assert leak.removeprefix("Bearer ") not in failed.message
    assert "***" in failed.message
    assert failed.message.isprintable()


def test_what_a_vendor_says_is_cut() -> None:
    assert len(cleaned("many words " * 1000, Secret(""))) < 220


async def test_embedding_failures_are_told_the_same_way() -> None:
    async with serving(error(429, retry_after="3")) as (provider, replay):
        with pytest.raises(ProviderFailure) as caught:
            await provider.embed(EmbedRequest(model="vendor/e-1", inputs=["a"]))
        assert caught.value.failure_class == FailureClass.FAILURE_CLASS_THROTTLED
        assert len(replay.asked) == 1
