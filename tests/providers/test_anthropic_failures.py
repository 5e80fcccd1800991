"""What goes wrong at an Anthropic-compatible server: each thing is one request, one class, one reason, and no key."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from behestd.providers.anthropic import Anthropic, AnthropicSettings
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
from behestd.providers.provider import ProviderTimeouts, complete
from tests.providers.conformance import TIMEOUTS, failure
from tests.providers.replay import JSON, Reply, events, fixture, stream
from tests.providers.test_anthropic import CLOSED, HI, KEY, MODELS, START, STOP, TEXT_BLOCK, chat, done, serving

SPENT = "Your credit balance is too low to access the API. Please go to Plans & Billing."
LIMITED = "You have reached your specified API usage limits. You will regain access on 2026-12-01."
LONG = "prompt is too long: 208310 tokens > 200000 maximum"
OVER = "input length and `max_tokens` exceed context limit: 190000 + 21333 > 200000"


def refusal(status: int, kind: str, message: str = "no", detail: str = "", **headers: str) -> Reply:
    """Build a refusal in the vendor's shape; `_` in a header's name stands for `-`."""
    error = {"type": kind, "message": message, **({"details": {"error_code": detail}} if detail else {})}
    body = json.dumps({"type": "error", "error": error, "request_id": "req_1"})
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Reply((body.encode(),), status=status, content_type=JSON, headers=named)


REFUSALS = [
    (refusal(400, "invalid_request_error"), PERMANENT, "REQUEST_INVALID"),
    (refusal(400, "invalid_request_error", LONG), PERMANENT, "CONTEXT_TOO_LONG"),
    (refusal(400, "invalid_request_error", OVER), PERMANENT, "CONTEXT_TOO_LONG"),
    (refusal(400, "invalid_request_error", SPENT), QUOTA, "QUOTA"),
    (refusal(400, "invalid_request_error", LIMITED), QUOTA, "QUOTA"),
    (refusal(401, "authentication_error"), PERMANENT, "CREDENTIALS_REJECTED"),
    (refusal(402, "billing_error"), QUOTA, "QUOTA"),
    (refusal(403, "permission_error"), PERMANENT, "CREDENTIALS_REJECTED"),
    (refusal(404, "not_found_error"), PERMANENT, "MODEL_REJECTED"),
    (refusal(408, "timeout_error"), TRANSIENT, "TIMEOUT"),
    (refusal(409, "conflict_error"), TRANSIENT, "UNAVAILABLE"),
    (refusal(413, "request_too_large"), PERMANENT, "CONTEXT_TOO_LONG"),
    (refusal(429, "rate_limit_error", retry_after="7"), THROTTLED, "RATE_LIMITED"),
    (refusal(429, "rate_limit_error"), QUOTA, "QUOTA"),
    (refusal(429, "rate_limit_error", detail="enforced_spend_limit_reached", retry_after="7"), QUOTA, "QUOTA"),
    (refusal(500, "api_error"), TRANSIENT, "UNAVAILABLE"),
    (refusal(504, "timeout_error"), TRANSIENT, "TIMEOUT"),
    (refusal(529, "overloaded_error"), TRANSIENT, "UNAVAILABLE"),
    (refusal(529, "overloaded_error", retry_after="2"), THROTTLED, "RATE_LIMITED"),
    (Reply((b"<html>Bad gateway</html>",), status=502), TRANSIENT, "UNAVAILABLE"),
]


def named(value: object) -> str:
    return str(value.status) if isinstance(value, Reply) else str(value)


# C015, C018: one request, whatever comes of it.
@pytest.mark.parametrize("reply,failure_class,reason", REFUSALS, ids=named)
async def test_a_refusal_has_its_class_and_reason(reply: Reply, failure_class: int, reason: str) -> None:
    async with serving(reply) as (provider, replay):
        failed = await failure(provider, chat())
        assert (failed.failure_class, failed.reason) == (failure_class, f"PROVIDER_{reason}")
        assert failed.metadata["status"] == str(reply.status)
        waits = dict(reply.headers).get("retry-after")
        assert failed.retry_after_seconds == (None if waits is None else float(waits))
        assert len(replay.asked) == 1


def broke(kind: str, message: str = "later") -> Reply:
    return events(START, TEXT_BLOCK, HI, {"type": "error", "error": {"type": kind, "message": message}})


NO_END = fixture("anthropic/text.sse").replace(b'event: message_stop\ndata: {"type":"message_stop"}\n\n', b"")
BROKEN = [
    (Reply((fixture("anthropic/text.sse")[:900],), ending="cut"), TRANSIENT, "STREAM_BROKEN"),
    (Reply((NO_END,)), TRANSIENT, "STREAM_BROKEN"),
    (Reply((NO_END,), ending="eof"), TRANSIENT, "STREAM_BROKEN"),
    (events(START, TEXT_BLOCK, HI, CLOSED, STOP), TRANSIENT, "STREAM_BROKEN"),
    (Reply((b"",)), TRANSIENT, "STREAM_BROKEN"),
    (Reply(ending="reset"), TRANSIENT, "UNAVAILABLE"),
    (stream("anthropic/error.sse"), THROTTLED, "RATE_LIMITED"),
    (broke("rate_limit_error"), THROTTLED, "RATE_LIMITED"),
    (broke("api_error"), TRANSIENT, "UNAVAILABLE"),
    (broke("timeout_error"), TRANSIENT, "TIMEOUT"),
    (broke("billing_error"), QUOTA, "QUOTA"),
    (broke("authentication_error"), PERMANENT, "CREDENTIALS_REJECTED"),
    (broke("permission_error"), PERMANENT, "CREDENTIALS_REJECTED"),
    (broke("not_found_error"), PERMANENT, "MODEL_REJECTED"),
    (broke("invalid_request_error", LONG), PERMANENT, "CONTEXT_TOO_LONG"),
    (events({"type": "error", "error": "boom"}), TRANSIENT, "UNAVAILABLE"),
    (events(START, START), MALFORMED, "MALFORMED_OUTPUT"),
    (events(START, TEXT_BLOCK, TEXT_BLOCK), MALFORMED, "MALFORMED_OUTPUT"),
    (events(START, HI), MALFORMED, "MALFORMED_OUTPUT"),
    (events(START, TEXT_BLOCK, CLOSED, HI), MALFORMED, "MALFORMED_OUTPUT"),
    (events(START, TEXT_BLOCK, CLOSED, CLOSED), MALFORMED, "MALFORMED_OUTPUT"),
    (events(START, TEXT_BLOCK, HI, done("end_turn"), STOP), MALFORMED, "MALFORMED_OUTPUT"),
    (events(START, "{not json", STOP), MALFORMED, "MALFORMED_OUTPUT"),
    (events(START, "[" * 100_000, STOP), MALFORMED, "MALFORMED_OUTPUT"),
    (Reply((b'event: ping\ndata: {"type": "\xff\xfe"}\n\n',)), MALFORMED, "MALFORMED_OUTPUT"),
    (events([1], STOP), MALFORMED, "MALFORMED_OUTPUT"),
    (events({"type": "content_block_start", "index": "x", "content_block": {}}), MALFORMED, "MALFORMED_OUTPUT"),
    (events({"type": "message_delta", "usage": {"output_tokens": -1}}), MALFORMED, "MALFORMED_OUTPUT"),
    (events({"type": "message_start", "message": {"usage": [1]}}), MALFORMED, "MALFORMED_OUTPUT"),
    (Reply((b"{",), content_type=JSON), MALFORMED, "MALFORMED_OUTPUT"),
    (Reply((b"{}",), content_type=JSON), TRANSIENT, "STREAM_BROKEN"),
    (Reply((b'{"type": "error", "error": {"type": "api_error"}}',), content_type=JSON), TRANSIENT, "UNAVAILABLE"),
    (Reply((b"no gzip",), headers=(("content-encoding", "gzip"),)), MALFORMED, "MALFORMED_OUTPUT"),
]


@pytest.mark.parametrize("reply,failure_class,reason", BROKEN)
async def test_an_answer_that_is_not_whole_is_never_complete(reply: Reply, failure_class: int, reason: str) -> None:
    async with serving(reply) as (provider, replay):
        failed = await failure(provider, chat())
        assert (failed.failure_class, failed.reason) == (failure_class, f"PROVIDER_{reason}")
        assert len(replay.asked) == 1


async def test_a_close_right_after_the_last_event_does_no_harm() -> None:
    for ending in ("cut", "eof", "hang"):
        async with serving(stream("anthropic/text.sse", ending=ending), keepalive_seconds=5) as (provider, _):
            assert (await complete(provider, chat(), TIMEOUTS)).usage.output_tokens == 9


async def test_a_refused_connection_proves_that_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    provider = Anthropic(AnthropicSettings(id="claude", base_url=f"http://127.0.0.1:{port}/v1"), MODELS)
    failed = await failure(provider, chat())
    assert (failed.failure_class, failed.reason) == (NOT_SENT, "PROVIDER_UNAVAILABLE")
    await provider.close()


# C022
async def test_a_server_that_falls_silent_is_left() -> None:
    limits = ProviderTimeouts(stall_seconds=0.05)
    async with serving(Reply((fixture("anthropic/text.sse")[:900],), ending="hang")) as (provider, replay):
        with pytest.raises(ProviderFailure) as caught:
            await complete(provider, chat(), limits)
        assert caught.value.reason == "PROVIDER_TIMEOUT"
        async with asyncio.timeout(30):
            await replay.gone.wait()
        assert len(replay.asked) == 1


# C016, and no key in any text.
async def test_a_rejected_key_is_neither_the_caller_s_fault_nor_shown() -> None:
    async with serving(refusal(401, "authentication_error", f"invalid x-api-key {KEY}")) as (provider, _):
        failed = await failure(provider, chat())
    told = to_error(failed, "claude/claude-sonnet-5-5")
    assert (told.reason, type(told).__name__) == ("PROVIDER_CREDENTIALS_REJECTED", "WrongState")
    assert "canary" not in str(told) + str(told.metadata) + failed.message


async def test_what_a_vendor_says_comes_without_keys() -> None:
    said = f"you sent\r\n\x1b[31m{KEY} here"
    async with serving(refusal(400, "invalid_request_error", said)) as (provider, _):
        failed = await failure(provider, chat())
    assert KEY not in failed.message
    assert "***" in failed.message
    assert failed.message.isprintable()
