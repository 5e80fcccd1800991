"""Checks of what a server lists: names, order, pages, schemas.

Above: `tools`, the table. Below: `survey`. Each check returns what it saw, or raises Failed or Skipped.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

import grpc

from behest.conformance import schemas
from behest.conformance.survey import content, listed
from behest.conformance.verdict import Failed, expect, shown, skip
from behest.v1.tool_service_pb2 import GetToolRequest, GetToolResponse, ListToolsRequest, ListToolsResponse

if TYPE_CHECKING:
    from behest.conformance.probe import Reply
    from behest.conformance.survey import Subject
    from behest.v1.tool_pb2 import Tool

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
DESCRIPTION_BYTES = 4 * 1024
_REFERENCE = re.compile(r'"\$ref"\s*:\s*"([^"#][^"]*)"')
_TRIED = 20


async def answers(subject: Subject) -> str:
    """The list comes, and holds something."""
    expect(not subject.listing, subject.listing)
    expect(bool(subject.tools), "no tool is listed")
    return f"{len(subject.tools)} tools"


async def names(subject: Subject) -> str:
    """Names are legal and unique."""
    found = [tool.name for tool in subject.tools]
    bad = [name for name in found if not NAME.fullmatch(name)]
    expect(not bad, f"{shown(repr(bad[:1]))} is not [A-Za-z0-9_-]{{1,64}}")
    twice = sorted({name for name in found if found.count(name) > 1})
    expect(not twice, f"{twice[:1]} is listed twice")
    return ", ".join(found[:4]) + (" …" if len(found) > 4 else "")


async def order(subject: Subject) -> str:
    """Tools are ordered by name."""
    found = [tool.name for tool in subject.tools]
    expect(found == sorted(found), "not ordered by name: " + ", ".join(found[:4]))
    return "by name"


async def stable(subject: Subject) -> str:
    """The same list comes again, after all the calls that were made."""
    again, problem = await listed(subject.probe)
    expect(not problem, problem)
    before = [tool.SerializeToString(deterministic=True) for tool in subject.tools]
    changed = [tool.name for tool in again if tool.SerializeToString(deterministic=True) not in before]
    expect(not changed, f"{changed[:1]} is another tool when it is listed again")
    expect(len(again) == len(before), f"{len(before)} tools, then {len(again)}")
    return "the same twice"


async def pages(subject: Subject) -> str:
    """Pages of one tool give the same list, and a negative size is refused."""
    singly, problem = await listed(subject.probe, page_size=1)
    expect(not problem, problem)
    found, wanted = [tool.name for tool in singly], [tool.name for tool in subject.tools]
    expect(found == wanted, f"{len(wanted)} tools at once, {len(found)} in pages of one")
    negative = await subject.probe.unary("ToolService/ListTools", ListToolsRequest(page_size=-1), ListToolsResponse)
    is_refused = negative.ending.code is grpc.StatusCode.INVALID_ARGUMENT
    expect(is_refused, f"page_size -1 ended with {negative.ending}, not INVALID_ARGUMENT")
    return f"{len(found)} pages of one"


async def glob(subject: Subject) -> str:
    """A glob lists what matches it."""
    name = subject.tools[0].name
    found, problem = await listed(subject.probe, name_glob=name)
    expect(not problem, problem)
    expect([tool.name for tool in found] == [name], f"name_glob {name} lists {len(found)} tools")
    nothing, problem = await listed(subject.probe, name_glob="no-such-tool-*")
    expect(not problem, problem)
    expect(not nothing, f"a glob that nothing matches lists {len(nothing)} tools")
    return f"{name} alone"


async def get(subject: Subject) -> str:
    """GetTool returns what is listed."""
    for tool in subject.tools[:_TRIED]:
        got = await subject.probe.unary("ToolService/GetTool", GetToolRequest(tool_name=tool.name), GetToolResponse)
        expect(got.ending.is_ok, f"GetTool {tool.name} ended with {got.ending}")
        is_same = got.value.tool.SerializeToString(deterministic=True) == tool.SerializeToString(deterministic=True)
        expect(is_same, f"GetTool {tool.name} is not what is listed")
    return "as listed"


async def texts(subject: Subject) -> str:
    """Descriptions are there for the model, and within their limit."""
    for tool in subject.tools:
        size = len(tool.description.encode())
        expect(bool(tool.description.strip()), f"{tool.name} has no description")
        expect(size <= DESCRIPTION_BYTES, f"description of {tool.name} has {size} bytes, over {DESCRIPTION_BYTES}")
    return f"longest {max(len(tool.description.encode()) for tool in subject.tools)} bytes"


async def valid(subject: Subject) -> str:
    """Schemas are JSON Schemas, those of arguments of objects, and refer to nothing elsewhere."""
    for tool in subject.tools:
        loaded = _loaded(tool, "input_schema_json", tool.input_schema_json)
        expect(loaded.document.get("type") == "object", f'{tool.name}: the type of arguments is not "object"')
        if tool.output_schema_json:
            _loaded(tool, "output_schema_json", tool.output_schema_json)
        remote = _REFERENCE.search(tool.input_schema_json + tool.output_schema_json)
        expect(remote is None, f"{tool.name}: a reference leads elsewhere")
    return f"{len(subject.tools)} schemas of objects"


async def hashes(subject: Subject) -> str:
    """A hash, where one is set, is that of the definition."""
    told = [tool for tool in subject.tools if tool.hash]
    for tool in told:
        expect(tool.hash == definition_hash(tool), f"hash of {tool.name} is not that of its definition")
    return f"{len(told)} of {len(subject.tools)} set"


async def honest(subject: Subject) -> str:
    """What a schema allows is taken."""
    tried = 0
    for sample in subject.samples:
        expect(not is_misfit(sample.reply), f"{sample} refuses arguments that its schema allows")
    for name, schema in subject.input_schemas.items():
        full = schemas.right(schema, is_full=True)
        # Only tools that were called anyway; a call that goes on is not begun again.
        is_quick = any(each.tool.name == name and each.reply.is_good for each in subject.samples)
        if full is None or not is_quick:
            continue
        tried += 1
        reply = await subject.probe.call(subject.probe.request(name, json.dumps(full)))
        expect(not is_misfit(reply), f"{name} refuses {shown(json.dumps(full), 60)}, which its schema allows")
    if not tried:
        skip("no arguments could be made from a schema")
    return f"{tried} tools took all that theirs allow"


def is_misfit(reply: Reply) -> bool:
    """Whether a call was refused because of its arguments, by status or by result."""
    is_told = reply.result is not None and reply.result.is_error and "TOOL_ARGUMENTS_INVALID" in content(reply)
    return reply.ending.reason == "TOOL_ARGUMENTS_INVALID" or is_told


def definition_hash(tool: Tool) -> bytes:
    """SHA-256 over name, description, input schema and output schema, each as its length in 8 bytes and its UTF-8."""
    digest = hashlib.sha256()
    for text in (tool.name, tool.description, tool.input_schema_json, tool.output_schema_json):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def _loaded(tool: Tool, field: str, text: str) -> schemas.Schema:
    try:
        return schemas.load(text)
    except schemas.SchemaInvalid as exc:
        raise Failed(f"{field} of {tool.name}: {shown(str(exc))}") from exc
