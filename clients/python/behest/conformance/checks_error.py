"""Checks of what a server refuses: unknown tools, wrong arguments, what is stale, what is too large.

Above: `tools`, the table. Below: `survey`. A refusal has a status of the contract, with its reason, and where nothing
was executed the trailer that proves it: without the proof, the daemon must take the outcome for unknown.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from behest.conformance import schemas
from behest.conformance.checks_list import definition_hash, is_misfit
from behest.conformance.survey import content
from behest.conformance.verdict import expect, shown, skip
from behest.v1.tool_service_pb2 import GetToolRequest, GetToolResponse, ListToolsRequest, ListToolsResponse

if TYPE_CHECKING:
    from behest.conformance.probe import Reply
    from behest.conformance.survey import Subject
    from behest.conformance.wire import Ending

NO_TOOL = "no-such-tool"
OVERSIZE_BYTES = 20 * 1024 * 1024
NESTING = 20_000
_NO_JSON = ("{", "[]", '"text"', '{"a": 1} {"b": 2}', "{'a': 1}", "nonsense", "{} trailing")


async def unknown_tool(subject: Subject) -> str:
    """A tool that is not there is NOT_FOUND, TOOL_NOT_FOUND."""
    got = await subject.probe.unary("ToolService/GetTool", GetToolRequest(tool_name=NO_TOOL), GetToolResponse)
    _expect_refusal("GetTool of no tool", got.ending, grpc.StatusCode.NOT_FOUND, "TOOL_NOT_FOUND")
    reply = await subject.probe.call(subject.probe.request(NO_TOOL, "{}"))
    _expect_refusal("a call of no tool", reply.ending, grpc.StatusCode.NOT_FOUND, "TOOL_NOT_FOUND")
    _expect_proof("a call of no tool", reply.ending)
    return "NOT_FOUND TOOL_NOT_FOUND, with proof"


async def arguments(subject: Subject) -> str:
    """Arguments that break the schema are refused by the server itself."""
    tried = 0
    for sample in subject.samples:
        schema = subject.input_schemas.get(sample.tool.name)
        if schema is None or not sample.reply.is_good:
            continue
        for words, document in schemas.wrong(schema, json.loads(sample.arguments_json or "{}")):
            tried += 1
            reply = await subject.probe.call(subject.probe.request(sample.tool.name, json.dumps(document)))
            _expect_misfit(f"{sample} {shown(words, 40)}", reply)
    if not tried:
        skip("no tool whose schema forbids anything gave a result: name a call with --call")
    return f"{tried} refused"


async def no_json(subject: Subject) -> str:
    """Arguments that are no JSON object are refused."""
    sample = subject.good
    for text in _NO_JSON:
        reply = await subject.probe.call(subject.probe.request(sample.tool.name, text))
        _expect_misfit(f"{sample} with {text}", reply)
    return f"{len(_NO_JSON)} refused by {sample}"


async def nesting(subject: Subject) -> str:
    """JSON of great depth is refused as wrong arguments, not by a fault."""
    sample = subject.good
    text = '{"a":' * NESTING + "1" + "}" * NESTING
    reply = await subject.probe.call(subject.probe.request(sample.tool.name, text))
    _expect_misfit(f"{sample} with {NESTING} levels", reply)
    return f"{NESTING} levels: {reply}"


async def oversize(subject: Subject) -> str:
    """Arguments beyond any limit are refused, and the server goes on."""
    sample = subject.good
    text = json.dumps({"no-such-key": "a" * OVERSIZE_BYTES})
    reply = await subject.probe.call(subject.probe.request(sample.tool.name, text))
    expect(not reply.is_open, f"{OVERSIZE_BYTES >> 20} MiB of arguments gave {reply}")
    codes = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)
    is_refused = reply.ending.code in codes or _is_error(reply)
    expect(is_refused, f"{OVERSIZE_BYTES >> 20} MiB of arguments gave {reply}")
    after = await subject.probe.unary("ToolService/ListTools", ListToolsRequest(), ListToolsResponse)
    expect(after.ending.is_ok, f"after that, ListTools ended with {after.ending}")
    return f"{OVERSIZE_BYTES >> 20} MiB: {reply}"


async def changed(subject: Subject) -> str:
    """A pinned hash that is not served is refused, TOOL_CHANGED; the right one is taken."""
    sample = subject.good
    probe = subject.probe
    pinned = probe.request(sample.tool.name, sample.arguments_json, tool_hash=definition_hash(sample.tool))
    reply = await probe.call(pinned)
    expect(reply.is_good, f"{sample} pinned by the hash of its definition gave {reply}")
    stale = await probe.call(probe.request(sample.tool.name, sample.arguments_json, tool_hash=b"\1" * 32))
    _expect_refused(f"{sample} pinned by another hash", stale, "TOOL_CHANGED")
    return f"{stale.ending}, with proof"


async def expired(subject: Subject) -> str:
    """A call that comes after its start_by is refused; one that comes in time is not."""
    sample = subject.good
    probe = subject.probe
    now = int(time.time())
    coming = probe.request(sample.tool.name, sample.arguments_json, start_by=Timestamp(seconds=now + 3600))
    reply = await probe.call(coming)
    expect(reply.is_good, f"{sample} with an hour to begin gave {reply}")
    gone = probe.request(sample.tool.name, sample.arguments_json, start_by=Timestamp(seconds=now - 3600))
    late = await probe.call(gone)
    _expect_refused(f"{sample} an hour late", late, "TOOL_START_EXPIRED")
    return f"{late.ending}, with proof"


async def proof(subject: Subject) -> str:
    """What was executed never carries the proof that it was not."""
    told = [sample for sample in subject.samples if sample.reply.result is not None]
    for sample in told:
        is_refusal = is_misfit(sample.reply)
        expect(is_refusal or not sample.reply.ending.is_proof, f"{sample} gave {sample.reply} and says it did not run")
    if not told:
        skip("no call ended with a result")
    return f"{len(told)} calls without it"


async def token(subject: Subject) -> str:
    """Without the token, or with another, nothing is answered."""
    if not subject.probe.token:
        skip("no token was given")
    bare = await subject.probe.unary("ToolService/ListTools", ListToolsRequest(), ListToolsResponse, has_token=False)
    _expect_refusal("ListTools without a token", bare.ending, grpc.StatusCode.UNAUTHENTICATED, "")
    return str(bare.ending)


def _expect_refusal(what: str, ending: Ending, code: grpc.StatusCode, reason: str) -> None:
    expect(not ending.garbage, f"{what}: {ending.garbage}")
    expect(ending.code is code, f"{what} ended with {ending}, not {code.name}")
    expect(not reason or ending.reason == reason, f"{what} ended with {ending}, whose reason is not {reason}")


def _expect_refused(what: str, reply: Reply, reason: str) -> None:
    expect(reply.result is None, f"{what} was executed")
    expect(not reply.is_open, f"{what} gave {reply}")
    _expect_refusal(what, reply.ending, grpc.StatusCode.FAILED_PRECONDITION, reason)
    _expect_proof(what, reply.ending)


def _expect_proof(what: str, ending: Ending) -> None:
    expect(ending.is_proof, f"{what} ended without the trailer behest-not-executed: 1")


def _expect_misfit(what: str, reply: Reply) -> None:
    if reply.result is not None:
        expect(_is_error(reply), f"{what} was executed")
        expect(bool(content(reply).removeprefix("error").strip()), f"{what} was refused without a word")
        return
    expect(not reply.is_open, f"{what} gave {reply}")
    _expect_refusal(what, reply.ending, grpc.StatusCode.INVALID_ARGUMENT, "TOOL_ARGUMENTS_INVALID")


def _is_error(reply: Reply) -> bool:
    return reply.result is not None and reply.result.is_error
