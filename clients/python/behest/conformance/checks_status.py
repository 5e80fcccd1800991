"""Checks that GetCallStatus tells the truth, keeps its promises, and that CancelCall stops what it says it stops.

Above: `tools`, the table. Below: `survey`. A server may answer both with UNIMPLEMENTED: then there is nothing to check,
and its tools cannot be NON_IDEMPOTENT_QUERYABLE.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import grpc
from google.protobuf.duration_pb2 import Duration

from behest.conformance.checks_call import FRAME_BYTES
from behest.conformance.checks_key import BEGIN_SECONDS
from behest.conformance.survey import cancelled, content, said
from behest.conformance.verdict import expect, skip
from behest.v1.tool_pb2 import SideEffect
from behest.v1.tool_service_pb2 import (
    CallState,
    CancelCallRequest,
    CancelCallResponse,
    GetCallStatusRequest,
    GetCallStatusResponse,
)

if TYPE_CHECKING:
    from behest.conformance.probe import Call
    from behest.conformance.survey import Sample, Subject
    from behest.conformance.wire import Answer

PAUSE_SECONDS = 0.05


async def done(subject: Subject) -> str:
    """The status of a call that ended is DONE, with its result."""
    sample = subject.good
    first = await subject.probe.call(subject.probe.request(sample.tool.name, sample.arguments_json))
    expect(first.is_good, f"{sample} gave {first}")
    told = await _status(subject, first.request.idempotency_key)
    _expect_state(told, CallState.CALL_STATE_DONE, f"{sample}, which ended")
    expect(told.value.HasField("result"), f"the status of {sample} is DONE without a result")
    told_size = told.value.ByteSize()
    expect(told_size <= FRAME_BYTES, f"the status of {sample} has {told_size} bytes, over {FRAME_BYTES}")
    result = told.value.result
    is_same = result.truncated or said(result) == content(first)
    expect(is_same, f"the status of {sample} has another result than the call")
    # What was remembered by an older version may not name the call.
    expect(result.call_id in ("", first.request.call_id), f"the status of {sample} is that of another call")
    return f"{sample}: DONE with the result"


async def large(subject: Subject) -> str:
    """The status of a call with a large result fits a message, and says so when the result was cut."""
    sample = subject.sample("gave a result in chunks", lambda each: each.reply.is_good and bool(each.reply.chunks))
    request = subject.probe.request(sample.tool.name, sample.arguments_json)
    await subject.probe.call(request)
    told = await _status(subject, request.idempotency_key)
    _expect_state(told, CallState.CALL_STATE_DONE, f"{sample}, which ended")
    size, whole = told.value.ByteSize(), sum(map(len, sample.reply.chunks))
    expect(size <= FRAME_BYTES, f"the status of {sample} has {size} bytes, over {FRAME_BYTES}")
    expect(size >= whole or told.value.result.truncated, f"the status of {sample} is cut and does not say so")
    return f"{size} bytes of {whole}" + (", truncated" if told.value.result.truncated else "")


async def running(subject: Subject) -> str:
    """The status of a call that runs is RUNNING, at once."""
    sample = subject.lasting
    request = subject.probe.request(sample.tool.name, sample.arguments_json)
    ongoing = subject.probe.start(request)
    try:
        is_there = await ongoing.begun(BEGIN_SECONDS)
        told = await _status(subject, request.idempotency_key)
        has_ended = not await ongoing.begun(0.0)
    finally:
        await cancelled(subject.probe, request.idempotency_key)
        await ongoing.finish(0.0)
    if not is_there or has_ended:
        skip(f"{sample} ended too soon: name a longer call with --call")
    _expect_state(told, CallState.CALL_STATE_RUNNING, f"{sample}, which runs")
    return f"{sample}: RUNNING"


async def waited(subject: Subject) -> str:
    """A status that may wait tells the end of a call that ends in time."""
    sample = subject.slow
    request = subject.probe.request(sample.tool.name, sample.arguments_json)
    ongoing = subject.probe.start(request)
    await ongoing.begun(BEGIN_SECONDS)
    told = await _status(subject, request.idempotency_key, wait=Duration(seconds=25))
    reply = await ongoing.finish(subject.probe.seconds)
    _expect_state(told, CallState.CALL_STATE_DONE, f"{sample}, which ended while the status was waited for,")
    expect(reply.is_good, f"{sample} gave {reply}")
    return f"{sample}: DONE when it ended"


async def tombstone(subject: Subject) -> str:
    """NEVER_SEEN is a promise: a call that comes after it is refused, with proof."""
    sample = subject.good
    for asked, sent in (((3, 0), (3, 7)), ((3, 2), (3, 2)), ((3, 2), (3, 1)), ((3, 2), (2, 9))):
        key = await _buried(subject, *asked)
        reply = await subject.probe.call(
            subject.probe.request(
                sample.tool.name, sample.arguments_json, idempotency_key=key, epoch=sent[0], attempt=sent[1]
            )
        )
        expect(reply.result is None, f"{sample} was executed after NEVER_SEEN was said for its key")
        ending = reply.ending
        is_refused = ending.code is grpc.StatusCode.FAILED_PRECONDITION and ending.reason == "TOOL_START_EXPIRED"
        expect(is_refused, f"{sample} with a buried key gave {reply}, not FAILED_PRECONDITION TOOL_START_EXPIRED")
        expect(ending.is_proof, f"{sample} with a buried key was refused without behest-not-executed: 1")
        again = await _status(subject, key, epoch=3, attempt=asked[1])
        _expect_state(again, CallState.CALL_STATE_NEVER_SEEN, "a buried key")
    return "then FAILED_PRECONDITION TOOL_START_EXPIRED, with proof"


async def tombstone_later(subject: Subject) -> str:
    """A higher epoch than a key was buried for is executed, and a later attempt of the same one."""
    sample = subject.good
    for epoch, attempt in ((3, 3), (4, 1)):
        key = await _buried(subject, 3, 2)
        request = subject.probe.request(
            sample.tool.name, sample.arguments_json, idempotency_key=key, epoch=epoch, attempt=attempt
        )
        reply = await subject.probe.call(request)
        what = f"{sample} in epoch {epoch}, attempt {attempt}, whose key was buried for epoch 3, attempt 2,"
        expect(reply.is_good, f"{what} gave {reply}")
        done = await _status(subject, key, epoch=epoch, attempt=attempt)
        _expect_state(done, CallState.CALL_STATE_DONE, f"{sample}, which ended")
    return "a later attempt and a higher epoch are executed"


async def cancel_stops(subject: Subject) -> str:
    """A call that is cancelled ends, and its status is not RUNNING any more."""
    sample, ongoing, key = _begun(subject)
    try:
        await _cancel_until_told(subject, sample, ongoing, key)
        began = time.monotonic()
        reply = await ongoing.finish(subject.probe.seconds)
    finally:
        await ongoing.finish(0.0)
    expect(not reply.is_open, f"{sample} went on for {subject.probe.seconds:g} s after it was told to stop")
    is_early = sample.is_endless or reply.seconds < sample.reply.seconds * 0.9
    expect(is_early or not reply.is_good, f"{sample} was told to stop, and ran to its end")
    told = await _ask_status(subject, key, 1, 1)
    is_over = told.value.state != CallState.CALL_STATE_RUNNING
    expect(is_over, f"the status of {sample} is RUNNING after its stream ended")
    return f"{sample}: {reply} after {time.monotonic() - began:.1f} s"


async def cancel_repeats(subject: Subject) -> str:
    """What does not run is not acknowledged: a call that was never sent, and one that has ended."""
    never = await _cancel(subject, subject.probe.key(), 1)
    expect(not never, "a call that was never sent was acknowledged as told to stop")
    sample = subject.good
    reply = await subject.probe.call(subject.probe.request(sample.tool.name, sample.arguments_json))
    expect(reply.is_good, f"{sample} gave {reply}")
    ended = await _cancel(subject, reply.request.idempotency_key, 1)
    expect(not ended, f"{sample}, which had ended, was acknowledged as told to stop")
    again = await subject.probe.call(reply.request)
    expect(subject.is_stateless or again.is_good, f"{sample}, cancelled after its end, then gave {again}")
    return "neither acknowledged"


async def cancel_epoch(subject: Subject) -> str:
    """A lower epoch than the call's stops nothing."""
    sample, ongoing, key = _begun(subject, epoch=5)
    try:
        await ongoing.begun(BEGIN_SECONDS)
        is_told = await _cancel(subject, key, 4)
        await asyncio.sleep(BEGIN_SECONDS)
        goes_on = not ongoing.has_ended
    finally:
        await cancelled(subject.probe, key, epoch=5)
        reply = await ongoing.finish(subject.probe.seconds)
    expect(not is_told, f"{sample} of epoch 5 was told to stop by epoch 4")
    expect(goes_on or reply.is_good, f"{sample} of epoch 5 was stopped by epoch 4")
    return f"{sample}: epoch 4 does not stop 5"


async def cancel_again(subject: Subject) -> str:
    """A cancelled call that may be repeated is executed again: its key keeps no error of what was cut short."""
    sample = subject.repeatable
    word = sample.tool.hints.side_effect or SideEffect.SIDE_EFFECT_IDEMPOTENT
    fields = {"idempotency_key": subject.probe.key(), "side_effect": word}
    request = subject.probe.request(sample.tool.name, sample.arguments_json, **fields)
    ongoing = subject.probe.start(request)
    await _cancel_until_told(subject, sample, ongoing, request.idempotency_key)
    first = await ongoing.finish(subject.probe.seconds)
    if first.is_open or first.is_good:
        skip(f"{sample}, told to stop, gave {first}: nothing was cut short")
    request.attempt = 2
    again = subject.probe.start(request)
    try:
        # One that is told to stop runs, so it was begun anew.
        is_told = await _told(subject, sample, again, request.idempotency_key)
    finally:
        reply = await again.finish(subject.probe.seconds)
    what = f"{sample}, which was cancelled and may be repeated,"
    expect(is_told or reply.is_good, f"{what} was not executed again under its key: {reply}")
    return f"{sample}: the second attempt is executed"


async def cancel_one(subject: Subject) -> str:
    """Cancelling a call leaves others alone."""
    sample, ongoing, key = _begun(subject)
    _, other, other_key = _begun(subject)
    try:
        await other.begun(BEGIN_SECONDS)
        await _cancel_until_told(subject, sample, ongoing, key)
        await asyncio.sleep(BEGIN_SECONDS)
        goes_on = not other.has_ended
    finally:
        await cancelled(subject.probe, other_key)
        await ongoing.finish(0.0)
        reply = await other.finish(0.0)
    expect(goes_on or reply.is_good, f"cancelling one call of {sample} ended another")
    return f"{sample}: one of two stopped"


def _begun(subject: Subject, *, epoch: int = 1) -> tuple[Sample, Call, str]:
    """Begin the longest call."""
    sample = subject.lasting
    request = subject.probe.request(sample.tool.name, sample.arguments_json, epoch=epoch)
    return sample, subject.probe.start(request), request.idempotency_key


async def _cancel_until_told(subject: Subject, sample: Sample, ongoing: Call, key: str) -> None:
    """Cancel until the call, which may be on its way still, is told. Raises Failed, or Skipped when it ended before."""
    if not await _told(subject, sample, ongoing, key):
        skip(f"{sample} ended before it could be cancelled: name a longer call with --call")


async def _told(subject: Subject, sample: Sample, ongoing: Call, key: str) -> bool:
    """Cancel until the call is told, or has ended; whether it was told."""
    await ongoing.begun(BEGIN_SECONDS)
    end = time.monotonic() + subject.probe.seconds
    while not await _cancel(subject, key, 1):
        if ongoing.has_ended:
            return False
        expect(time.monotonic() < end, f"{sample} runs, and CancelCall does not acknowledge it")
        await asyncio.sleep(PAUSE_SECONDS)
    return True


async def _cancel(subject: Subject, key: str, epoch: int) -> bool:
    """Cancel a call; whether it was acknowledged. Raises Skipped when the server cannot."""
    request = CancelCallRequest(idempotency_key=key, epoch=epoch)
    told = await subject.probe.unary("ToolService/CancelCall", request, CancelCallResponse)
    if told.ending.code is grpc.StatusCode.UNIMPLEMENTED:
        skip("CancelCall is UNIMPLEMENTED: the server cannot stop a call")
    expect(told.ending.is_ok, f"CancelCall ended with {told.ending}")
    return told.value.acknowledged


async def _buried(subject: Subject, epoch: int, attempt: int) -> str:
    """Make a key that the server says it has never seen."""
    key = subject.probe.key()
    told = await _status(subject, key, epoch=epoch, attempt=attempt)
    _expect_state(told, CallState.CALL_STATE_NEVER_SEEN, "a key that was never used")
    return key


async def _status(
    subject: Subject, key: str, *, epoch: int = 1, attempt: int = 1, wait: Duration | None = None
) -> Answer[GetCallStatusResponse]:
    """Ask for a status. Raises Skipped when the server cannot tell."""
    told = await _ask_status(subject, key, epoch, attempt, wait)
    if told.ending.code is grpc.StatusCode.UNIMPLEMENTED:
        skip("GetCallStatus is UNIMPLEMENTED: the server cannot tell")
    return told


async def _ask_status(
    subject: Subject, key: str, epoch: int, attempt: int, wait: Duration | None = None
) -> Answer[GetCallStatusResponse]:
    request = GetCallStatusRequest(idempotency_key=key, epoch=epoch, attempt=attempt, wait=wait)
    return await subject.probe.unary("ToolService/GetCallStatus", request, GetCallStatusResponse)


def _expect_state(told: Answer[GetCallStatusResponse], state: CallState.ValueType, whose: str) -> None:
    expect(told.ending.is_ok, f"the status of {whose} ended with {told.ending}")
    got = CallState.Name(told.value.state) if told.value.state in CallState.values() else str(told.value.state)
    wanted = CallState.Name(state)
    expect(told.value.state == state, f"the status of {whose} is {got}, not {wanted}".replace("CALL_STATE_", ""))
