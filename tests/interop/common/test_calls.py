"""What every tool server does with its calls, in every language: asked by the methods that a daemon asks it by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from behest.conformance.probe import Probe, Reply
from behest.conformance.survey import content, listed
from behest.v1.tool_pb2 import SideEffect
from behest.v1.tool_service_pb2 import (
    CallState,
    CallToolRequest,
    CancelCallRequest,
    CancelCallResponse,
    GetCallStatusRequest,
    GetCallStatusResponse,
)
from tests.interop.common.languages import BUILD_SECONDS, TOOLS, Language, serving

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 120)

UNICODE = 'Ünïcödé 漢字 🙂 "quoted" \\ \t\n \u2028 end'
VALUES = {"text": UNICODE, "whole": 2**53 - 1, "ratio": -0.25, "yes": True, "words": ["", "漢字", "🙂"]}
HOUR = '{"seconds": 3600}'
MIB = 1024 * 1024


def text(reply: Reply) -> str:
    """The text of a result, its chunks put back."""
    assert reply.result is not None, reply
    return "".join(part.text.text for part in reply.result.parts) + b"".join(reply.chunks).decode()


def document(reply: Reply) -> Any:
    """The JSON of a result."""
    assert reply.result is not None, reply
    return json.loads(reply.result.parts[-1].json.json)


def refusal(reply: Reply) -> tuple[str, bool]:
    """Why a call was refused, and whether it is proved that nothing was executed."""
    assert reply.result is None, reply
    return reply.ending.reason, reply.ending.is_proof


async def status(probe: Probe, key: str, **fields: Any) -> GetCallStatusResponse:
    """Ask what became of a key."""
    request = GetCallStatusRequest(idempotency_key=key, **{"epoch": 1, "attempt": 1} | fields)
    answer = await probe.unary("ToolService/GetCallStatus", request, GetCallStatusResponse)
    assert answer.ending.is_ok, answer
    return answer.value


async def cancel(probe: Probe, key: str, epoch: int = 1) -> bool:
    """Ask that a call be stopped: whether it was told."""
    request = CancelCallRequest(idempotency_key=key, epoch=epoch)
    return (await probe.unary("ToolService/CancelCall", request, CancelCallResponse)).value.acknowledged


def work(probe: Probe, arguments: str, **fields: Any) -> CallToolRequest:
    """Make a call of the tool that takes its time."""
    return probe.request("work", arguments, **fields)


async def test_arguments_and_results_of_every_kind_arrive_as_they_are(language: Language) -> None:  # C024
    async with serving(language) as (_, probe):
        tools, _ = await listed(probe)
        said = await probe.call(probe.request("echo", json.dumps({"text": UNICODE}, ensure_ascii=False)))
        escaped = await probe.call(probe.request("echo", json.dumps({"text": UNICODE})))
        mirrored = await probe.call(probe.request("mirror", json.dumps(VALUES)))
        counted = await probe.call(probe.request("count", ""))
        long = "é" * (MIB // 2)
        repeated = await probe.call(probe.request("echo", json.dumps({"text": long}, ensure_ascii=False)))
        large = await probe.call(probe.request("large", f'{{"bytes": {3 * MIB}}}'))
    assert [tool.name for tool in tools] == [name for name in TOOLS if name not in language.lacks]
    assert text(said) == text(escaped) == UNICODE
    assert document(mirrored) == VALUES
    assert document(counted) == {"n": 1}
    assert text(repeated) == long
    assert text(large) == "ä" * (3 * MIB // 2)
    assert len(large.chunks) >= 3 and max(map(len, large.chunks)) <= MIB
    assert mirrored.result is not None
    assert (mirrored.result.name, mirrored.result.call_id) == ("mirror", mirrored.request.call_id)


async def test_failures_are_results_and_refusals_are_proved(language: Language) -> None:  # C031
    async with serving(language, token="not-a-secret") as (_, probe):
        failed = await probe.call(probe.request("fail", json.dumps({"why": UNICODE})))
        misfit = await probe.call(probe.request("echo", '{"text": 7}'))
        unknown = await probe.call(probe.request("nothing", "{}"))
        changed = await probe.call(probe.request("count", "{}", tool_hash=b"another"))
        async with Probe(probe.address, token="wrong") as stranger:
            strange = await stranger.call(stranger.request("count", "{}"))
    assert failed.result is not None and failed.result.is_error
    assert text(failed) == UNICODE
    is_told = misfit.result.is_error if misfit.result is not None else misfit.ending.is_proof
    assert is_told, misfit
    assert refusal(unknown) == ("TOOL_NOT_FOUND", True)
    assert refusal(changed) == ("TOOL_CHANGED", True)
    assert refusal(strange) == ("AUTH_REQUIRED", True)


async def test_progress_is_shown_in_order_before_the_result(language: Language) -> None:
    async with serving(language) as (_, probe):
        reply = await probe.call(work(probe, '{"seconds": 0.1}'))
    shown = [frame.progress for frame in reply.frames if frame.HasField("progress")]
    assert [(each.text, each.current, each.total) for each in shown] == [(f"step {n}", n, 4) for n in range(5)]
    assert reply.frames[-1].HasField("result")
    assert text(reply) == "worked 1"


async def test_a_key_is_executed_once_whatever_comes_again(language: Language) -> None:  # N02
    async with serving(language) as (_, probe):
        first = await probe.call(probe.request("count", "{}", idempotency_key="key", epoch=2))
        again = [
            await probe.call(probe.request("count", "{}", idempotency_key="key", attempt=attempt, epoch=epoch))
            for attempt, epoch in ((1, 2), (2, 2), (3, 3))
        ]
        known = await status(probe, "key", epoch=3)
        other = await probe.call(probe.request("count", "{}", idempotency_key="other"))
        reused = await probe.call(probe.request("echo", '{"text": "a"}', idempotency_key="key", epoch=3))
        stale = await probe.call(probe.request("count", "{}", idempotency_key="key", epoch=1))
    assert {content(reply) for reply in again} == {content(first)} != {content(other)}
    assert (known.state, known.result) == (CallState.CALL_STATE_DONE, first.result)
    assert refusal(reused) == ("REQUEST_ID_REUSED", False)
    assert refusal(stale) == ("TOOL_OUTCOME_UNKNOWN", False)


async def test_a_call_outlives_its_stream_and_the_deadline_of_its_caller(language: Language) -> None:
    async with serving(language) as (server, probe):
        request = work(probe, HOUR)
        broken = probe.start(request)
        key = await server.work()
        await broken.finish(0.0)
        left = await status(probe, key)
        late = await probe.start(request, deadline_seconds=0.2).finish(probe.seconds)
        still = await status(probe, key)
        stopped = probe.start(request)
        assert await cancel(probe, key)
        await stopped.finish(probe.seconds)
        short = work(probe, '{"seconds": 0.5}')
        await probe.start(short).finish(0.0)
        joined = await probe.call(short)
        settled = await status(probe, short.idempotency_key, wait=Duration(seconds=20))
    assert (left.state, still.state) == (CallState.CALL_STATE_RUNNING, CallState.CALL_STATE_RUNNING)
    # The server's clock may be the first: some then reset the stream, which the caller sees as a cancellation.
    assert late.ending.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
    assert text(joined) == "worked 1"
    assert (settled.state, settled.result) == (CallState.CALL_STATE_DONE, joined.result)
    assert server.begun == [key]


async def test_a_call_that_is_cancelled_ends_and_is_executed_again_only_if_it_may_be(  # C045
    language: Language,
) -> None:
    async with serving(language) as (server, probe):
        cut: list[Reply] = []
        for effect in (SideEffect.SIDE_EFFECT_NON_IDEMPOTENT, SideEffect.SIDE_EFFECT_IDEMPOTENT):
            ongoing = probe.start(work(probe, HOUR, side_effect=effect, epoch=2))
            key = await server.work()
            told = [await cancel(probe, key, epoch) for epoch in (1, 2)]
            assert told == [False, True]
            cut.append(await ongoing.finish(probe.seconds))
            assert not await cancel(probe, key, 2)
        kept, repeated = [reply.request for reply in cut]
        kept.attempt = repeated.attempt = 2
        known = await probe.call(kept)
        anew = probe.start(repeated)
        assert await server.work() == repeated.idempotency_key
        assert await cancel(probe, repeated.idempotency_key, 2)
        await anew.finish(probe.seconds)
    for reply in cut:
        assert reply.result is not None and reply.result.is_error
    assert content(known) == content(cut[0])


async def test_after_a_crash_what_is_done_is_known_and_what_was_cut_is_not_guessed(  # N02
    language: Language, tmp_path: Path
) -> None:
    store = tmp_path / "calls"
    async with serving(language, store) as (server, probe):
        done = await probe.call(probe.request("count", "{}", idempotency_key="done"))
        buried = await status(probe, "buried", epoch=3)
        lost = work(probe, HOUR, idempotency_key="lost", side_effect=SideEffect.SIDE_EFFECT_NON_IDEMPOTENT)
        redone = work(probe, HOUR, idempotency_key="redone", side_effect=SideEffect.SIDE_EFFECT_PURE)
        for request in (lost, redone):
            probe.start(request)
            await server.work()
        await server.kill()
    async with serving(language, store) as (server, probe):
        again = await probe.call(probe.request("count", "{}", idempotency_key="done", attempt=2, epoch=2))
        known = await status(probe, "done", epoch=2)
        unknown = await probe.call(lost)
        refused = await probe.call(probe.request("count", "{}", idempotency_key="buried", epoch=3))
        still = await status(probe, "buried", epoch=3)
        ongoing = probe.start(redone)
        assert await server.work() == "redone"
        await ongoing.finish(0.0)
    assert content(again) == content(done)
    assert (known.state, known.result.parts) == (CallState.CALL_STATE_DONE, again.result and again.result.parts)
    assert refusal(unknown) == ("TOOL_OUTCOME_UNKNOWN", False)
    assert (buried.state, still.state) == (CallState.CALL_STATE_NEVER_SEEN, CallState.CALL_STATE_NEVER_SEEN)
    assert refusal(refused) == ("TOOL_START_EXPIRED", True)
