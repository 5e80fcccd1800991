"""Checks that a call is executed once a key, whatever comes again.

Above: `tools`, the table. Below: `survey`. What proves an execution is a result that differs each time: without a tool
of that kind, whether a repeat was executed cannot be seen from outside, and the check says so.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from behest.conformance.survey import changed, content
from behest.conformance.verdict import expect, skip

if TYPE_CHECKING:
    from behest.conformance.probe import Reply
    from behest.conformance.survey import Sample, Subject

AT_ONCE = 4
# How long after a call was sent it is surely being executed, when it shows no sign of life.
BEGIN_SECONDS = 0.3
LIMIT_SECONDS = 0.2


async def repeat(subject: Subject) -> str:
    """A key that is done is answered with the first result."""
    sample, first = await _first(subject)
    again = await subject.probe.call(first.request)
    _expect_first(f"{sample} sent twice with one key", first, again)
    return f"{sample}: the first result twice"


async def attempt(subject: Subject) -> str:
    """Another attempt of a call is the same call."""
    sample, first = await _first(subject)
    fields = {"call_id": first.request.call_id, "idempotency_key": first.request.idempotency_key}
    for number in (2, 3):
        other = subject.probe.request(sample.tool.name, sample.arguments_json, attempt=number, **fields)
        _expect_first(f"attempt {number} of {sample}", first, await subject.probe.call(other))
    return f"{sample}: attempts 1, 2, 3 are one call"


async def at_once(subject: Subject) -> str:
    """A key that is running is joined."""
    _need_keys(subject)
    sample = next((each for each in subject.samples if each.is_slow and each.is_telling), None) or subject.telling
    request = subject.probe.request(sample.tool.name, sample.arguments_json)
    replies = await subject.probe.calls([request] * AT_ONCE)
    for reply in replies:
        _expect_first(f"{sample} sent {AT_ONCE} times at once with one key", replies[0], reply)
    return f"{sample}: {AT_ONCE} streams, one result"


async def other_arguments(subject: Subject) -> str:
    """A key that was used is not executed with other arguments."""
    sample = subject.sample("repeated a text argument in its result", lambda each: bool(each.echoed))
    _need_keys(subject)
    marks = [f"mark-{subject.probe.key()}-end" for _ in range(2)]
    key = subject.probe.key()
    first, second = [
        await subject.probe.call(
            subject.probe.request(
                sample.tool.name, changed(sample, **{sample.echoed: mark}), idempotency_key=key, call_id=f"call-{key}"
            )
        )
        for mark in marks
    ]
    expect(first.is_good, f"{sample} gave {first}")
    expect(marks[1] not in content(second), f"{sample} was executed again under a key that was used")
    return f"{sample}: {second}"


async def epoch(subject: Subject) -> str:
    """A lower epoch than was seen is refused; a higher one gets the first result."""
    _need_keys(subject)
    sample = subject.telling
    probe = subject.probe
    key = probe.key()
    fields = {"idempotency_key": key, "call_id": f"call-{key}"}
    first = await probe.call(probe.request(sample.tool.name, sample.arguments_json, epoch=5, **fields))
    expect(first.is_good, f"{sample} gave {first}")
    stale = await probe.call(probe.request(sample.tool.name, sample.arguments_json, epoch=4, attempt=2, **fields))
    expect(not stale.is_good, f"{sample} answered epoch 4 after it had seen 5")
    later = await probe.call(probe.request(sample.tool.name, sample.arguments_json, epoch=6, attempt=3, **fields))
    _expect_first(f"{sample} with a higher epoch", first, later)
    return f"4 after 5: {stale}"


async def disconnect(subject: Subject) -> str:
    """A broken stream cancels nothing: who comes back with the key gets the result of the call that ran on."""
    _need_keys(subject)
    sample = subject.slow
    request = subject.probe.request(sample.tool.name, sample.arguments_json)
    ongoing = subject.probe.start(request)
    await ongoing.begun(BEGIN_SECONDS)
    broken = await ongoing.finish(0.0)
    again = await subject.probe.call(request)
    expect(again.is_good, f"{sample}, whose stream broke, gave {again} when it was joined")
    third = await subject.probe.call(request)
    _expect_first(f"{sample} after its stream broke", again, third)
    return f"{sample}: {'left while it ran' if broken.is_open else 'left'}, then {again}"


async def deadline(subject: Subject) -> str:
    """A deadline ends the waiting, not the call: who comes back with the key gets its result."""
    _need_keys(subject)
    sample = subject.slow
    probe = subject.probe
    request = probe.request(sample.tool.name, sample.arguments_json)
    cut = await probe.start(request, deadline_seconds=LIMIT_SECONDS).finish(probe.seconds)
    again = await probe.call(request)
    expect(again.is_good, f"{sample}, left at the deadline of its RPC, gave {again} when it was joined")
    _expect_first(f"{sample} after the deadline of its RPC", again, await probe.call(request))
    timed = probe.request(sample.tool.name, sample.arguments_json)
    timed.deadline.FromNanoseconds(time.time_ns() + int(LIMIT_SECONDS * 1e9))
    late = await probe.call(timed)
    expect(not late.ending.is_proof, f"{sample} began, passed its deadline and says that it did not run")
    roomy = probe.request(sample.tool.name, sample.arguments_json)
    roomy.deadline.FromNanoseconds(time.time_ns() + int(3600 * 1e9))
    reply = await probe.call(roomy)
    expect(reply.is_good, f"{sample} with an hour until its deadline gave {reply}")
    return f"{sample}: {cut.ending}, then {again}"


async def _first(subject: Subject) -> tuple[Sample, Reply]:
    _need_keys(subject)
    sample = subject.telling
    reply = await subject.probe.call(subject.probe.request(sample.tool.name, sample.arguments_json))
    expect(reply.is_good, f"{sample} gave {reply}")
    return sample, reply


def _expect_first(what: str, first: Reply, again: Reply) -> None:
    expect(first.is_good, f"{what} gave {first}")
    expect(again.is_good, f"{what} gave {again}, not the first result")
    expect(content(again) == content(first), f"{what} was executed again: another result")


def _need_keys(subject: Subject) -> None:
    if subject.is_stateless:
        skip("the server promises no memory of keys")
