"""Checks of a call that goes well: its frames, its result, its arguments, many at once.

Above: `tools`, the table. Below: `survey`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from behest.conformance import schemas
from behest.conformance.survey import Sample, cancelled, changed, content, listed
from behest.conformance.verdict import Failed, expect, shown, skip
from behest.v1.tool_service_pb2 import GetToolRequest, GetToolResponse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from behest.conformance.survey import Subject
    from behest.v1.message_pb2 import Part, ToolResult

CHUNK_BYTES = 1024 * 1024
FRAME_BYTES = 4 * 1024 * 1024
PROGRESS_BYTES = 64 * 1024
AT_ONCE = 16
UNICODE = "Ünïcödé – ☃ 𝄞 日本語 \u202eABC e\u0301"


def ended(subject: Subject) -> list[Sample]:
    """Return the samples whose call ended. Raises Skipped when there is none."""
    found = [sample for sample in subject.samples if not sample.is_endless]
    if not found:
        skip("no call ended: name one with --call")
    return found


async def results(subject: Subject) -> str:
    """Exactly one result ends each call, and nothing follows it."""
    for sample in ended(subject):
        reply = sample.reply
        if not reply.ending.is_ok:
            raise Failed(f"{sample} ended with {reply.ending}")
        kinds = reply.kinds
        expect(kinds.count("result") == 1, f"{sample} gave {kinds.count('result')} results")
        expect(kinds[-1] == "result", f"{sample} sent a {kinds[-1] or 'frame of no kind'} after its result")
    return f"{len(ended(subject))} calls"


async def identity(subject: Subject) -> str:
    """A result names the call that it answers, and the tool."""
    for sample, result in _results(subject):
        wanted = sample.reply.request.call_id
        expect(result.call_id == wanted, f"{sample} answered call {shown(repr(result.call_id), 40)}, not {wanted}")
        expect(result.name == sample.tool.name, f"{sample} answered as {shown(repr(result.name), 40)}")
    return "call and tool named"


async def parts(subject: Subject) -> str:
    """Parts are of kinds that a tool has, JSON is JSON, and nothing names an artifact."""
    count = 0
    for sample, result in _results(subject):
        expect(not result.artifact_id, f"{sample} names an artifact")
        for number, part in enumerate(result.parts):
            is_filled = bool(sample.reply.chunks) and number == len(result.parts) - 1
            _check_part(sample, part, is_filled=is_filled)
            count += 1
    return f"{count} parts"


async def output_schema(subject: Subject) -> str:
    """A structured result keeps the schema that the tool promises."""
    tried = 0
    for sample, result in _results(subject):
        if not sample.tool.output_schema_json or result.is_error:
            continue
        schema = schemas.load(sample.tool.output_schema_json)
        for part in result.parts:
            if part.WhichOneof("kind") == "json" and part.json.json:
                tried += 1
                problem = schema.problem(json.loads(part.json.json))
                expect(not problem, f"{sample}: {shown(problem)}")
    if not tried:
        skip("no tool promises a form and gave a structured result")
    return f"{tried} results"


async def failures(subject: Subject) -> str:
    """A tool that failed says how, in a result that is an error."""
    found = [(sample, result) for sample, result in _results(subject) if result.is_error]
    if not found:
        skip("no call failed: name one with --call")
    for sample, _ in found:
        expect(bool(content(sample.reply).removeprefix("error").strip()), f"{sample} failed without a word")
    return f"{len(found)} failed with a word"


async def empty_arguments(subject: Subject) -> str:
    """No arguments mean `{}`."""
    sample = subject.good
    takers = [each for each in subject.samples if each.reply.is_good and each.arguments_json == "{}"]
    sample = takers[0] if takers else sample
    empty, plain = await subject.probe.calls(
        [subject.probe.request(sample.tool.name, text) for text in ("", "{}")],
    )
    expect(str(empty) == str(plain), f"{sample} with nothing gave {empty}, with {{}} {plain}")
    return f"{sample}: {plain} both times"


async def unicode(subject: Subject) -> str:
    """Text of any script comes back as it went."""
    sample = subject.sample("repeated a text argument in its result", lambda each: bool(each.echoed))
    reply = await subject.probe.call(
        subject.probe.request(sample.tool.name, changed(sample, **{sample.echoed: UNICODE}))
    )
    expect(reply.is_good, f"{sample} gave {reply}")
    said = content(reply)
    is_whole = UNICODE in said or json.dumps(UNICODE, ensure_ascii=False)[1:-1] in said
    expect(is_whole, f"{sample} changed the text: {shown(said, 60)}")
    return f"{sample} repeats it unchanged"


async def progress(subject: Subject) -> str:
    """Progress comes before the result, in order, and within its limit."""
    found = [sample for sample in subject.samples if sample.reply.progress]
    if not found:
        skip("no call showed progress: name one with --call")
    for sample in found:
        kinds = sample.reply.kinds
        if "chunk" in kinds:
            is_first = "progress" not in kinds[kinds.index("chunk") :]
            expect(is_first, f"{sample} shows progress after its result began")
        told = [each.current for each in sample.reply.progress if each.HasField("current")]
        expect(told == sorted(told), f"progress of {sample} goes back: {told[:6]}")
        for each in sample.reply.progress:
            size = len(each.text.encode())
            expect(size <= PROGRESS_BYTES, f"progress of {sample} has {size} bytes, over {PROGRESS_BYTES}")
            is_within = not each.HasField("total") or each.current <= each.total
            expect(is_within, f"progress of {sample} is at {each.current:g} of {each.total:g}")
    return f"{sum(len(sample.reply.progress) for sample in found)} times"


async def chunks(subject: Subject) -> str:
    """A large result comes in chunks of at most 1 MiB, which are the content of the last part."""
    for sample in subject.samples:
        size = max(sample.reply.sizes, default=0)
        expect(size <= FRAME_BYTES, f"a frame of {sample} has {size} bytes, over {FRAME_BYTES}")
    found = [sample for sample in ended(subject) if sample.reply.chunks]
    if not found:
        skip("no result came in chunks: name a call of more than 1 MiB with --call")
    for sample in found:
        size = max(len(chunk) for chunk in sample.reply.chunks)
        expect(size <= CHUNK_BYTES, f"a chunk of {sample} has {size} bytes, over {CHUNK_BYTES}")
        result = sample.reply.result
        expect(result is not None and bool(result.parts), f"{sample} sent chunks that belong to no part")
        assert result is not None
        _check_joined(sample, result.parts[-1], b"".join(sample.reply.chunks))
    return f"{max(len(sample.reply.chunks) for sample in found)} chunks"


async def at_once(subject: Subject) -> str:
    """Calls made at once get a result each, their own."""
    echo = next((each for each in subject.samples if each.echoed), None)
    sample = echo or subject.good
    marks = [f"{subject.probe.key()}-end" for _ in range(AT_ONCE)]
    requests = [
        subject.probe.request(
            sample.tool.name, changed(sample, **{sample.echoed: mark}) if sample.echoed else sample.arguments_json
        )
        for mark in marks
    ]
    replies = await subject.probe.calls(requests)
    for request, mark, reply in zip(requests, marks, replies, strict=True):
        expect(reply.is_good, f"one of {AT_ONCE} calls of {sample} gave {reply}")
        assert reply.result is not None
        expect(reply.result.call_id == request.call_id, f"{sample} answered one call with another's result")
        expect(not sample.echoed or mark in content(reply), f"{sample} answered one call with another's result")
    return f"{AT_ONCE} calls of {sample}"


async def beside(subject: Subject) -> str:
    """A call that takes its time keeps no other from being answered."""
    lasting = subject.lasting
    quick = subject.good
    request = subject.probe.request(lasting.tool.name, lasting.arguments_json)
    ongoing = subject.probe.start(request)
    try:
        await ongoing.begun(0.2)
        reply = await subject.probe.call(subject.probe.request(quick.tool.name, quick.arguments_json))
        asked = GetToolRequest(tool_name=quick.tool.name)
        got = await subject.probe.unary("ToolService/GetTool", asked, GetToolResponse)
        still = await ongoing.begun(0.0)
    finally:
        await cancelled(subject.probe, request.idempotency_key)
        await ongoing.finish(0.0)
    expect(reply.is_good, f"{quick} gave {reply} while {lasting} ran")
    expect(got.ending.is_ok, f"GetTool ended with {got.ending} while {lasting} ran")
    if not still and quick.tool.name != lasting.tool.name:
        skip(f"{lasting} ended before {quick} did: name a longer call with --call")
    return f"{quick} answered while {lasting} ran"


async def keyless(subject: Subject) -> str:
    """Calls without a key are calls of their own."""
    sample = subject.telling
    said = []
    for number in (1, 2):
        request = subject.probe.request(sample.tool.name, sample.arguments_json, call_id=f"call-keyless-{number}")
        request.ClearField("idempotency_key")
        reply = await subject.probe.call(request)
        expect(reply.is_good, f"{sample} without a key gave {reply}")
        said.append(content(reply))
    expect(said[0] != said[1], f"{sample} without a key gave the result of the call before")
    return f"{sample} executed twice"


async def alive(subject: Subject) -> str:
    """After everything, the server still lists and calls."""
    _, problem = await listed(subject.probe)
    expect(not problem, problem)
    sample = subject.good
    reply = await subject.probe.call(subject.probe.request(sample.tool.name, sample.arguments_json))
    expect(reply.is_good, f"{sample} gave {reply}")
    return f"{sample} answered again"


def _results(subject: Subject) -> Iterable[tuple[Sample, ToolResult]]:
    return [(sample, sample.reply.result) for sample in ended(subject) if sample.reply.result is not None]


def _check_part(sample: Sample, part: Part, *, is_filled: bool) -> None:
    """Refuse a part that the daemon would refuse. `is_filled` says that chunks are its content. Raises Failed."""
    kind = part.WhichOneof("kind")
    expect(kind in ("text", "json", "image", "audio", "file"), f"{sample} gave a part of kind {kind or 'none'}")
    if kind in ("image", "audio", "file"):
        expect(not getattr(part, str(kind)).artifact_id, f"a part of {sample} names an artifact")
    if kind == "json" and not is_filled:
        try:
            json.loads(part.json.json)
        except (ValueError, RecursionError) as exc:
            raise Failed(f"a JSON part of {sample} is no JSON") from exc


def _check_joined(sample: Sample, last: Part, data: bytes) -> None:
    kind = last.WhichOneof("kind")
    inline = {"text": last.text.text, "json": last.json.json, "image": last.image.data}.get(kind or "")
    expect(inline is not None, f"{sample} sent chunks for a part of kind {kind or 'none'}")
    expect(not inline, f"the last part of {sample} has content beside its chunks")
    if kind != "image":
        try:
            data.decode()
        except UnicodeDecodeError as exc:
            raise Failed(f"the chunks of {sample} are no UTF-8") from exc
