"""The tools of `broken_server`: one that counts, echoes, fails, is large, or takes its time, and their faults."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from behest.conformance.schemas import Schema
from behest.v1.message_pb2 import Part, ToolResult
from behest.v1.tool_pb2 import Progress, Tool
from behest.v1.tool_service_pb2 import CallToolRequest, CallToolResponse

CHUNK_BYTES = 1024 * 1024
NESTING = 100
Add = Callable[..., None]


class Misfit(Exception):
    """Raised when arguments are not taken."""


def definitions(faults: frozenset[str]) -> list[Tool]:
    """Return the tools as they are listed."""
    counted = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tools = [
        _tool("count", "Count on.", {}, output=counted),
        _tool("echo", "Repeat.", {"text": {"type": "string"}}, optional={"times": {"type": "integer", "minimum": 1}}),
        _tool("fail", "Fail.", {"why": {"type": "string", "minLength": 1}}),
        _tool("large", "Be large.", {"bytes": {"type": "integer", "minimum": 0}}),
        _tool("work", "Take time.", {"seconds": {"type": "number", "minimum": 0}}),
    ]
    count, echo = tools[0], tools[1]
    changes: dict[str, tuple[Tool, str, Any]] = {
        "name-illegal": (tools[2], "name", "fail hard"),
        "name-twice": (tools[2], "name", "echo"),
        "description-missing": (echo, "description", ""),
        "description-huge": (echo, "description", "a" * 5_000),
        "schema-no-json": (echo, "input_schema_json", "{"),
        "schema-no-object": (echo, "input_schema_json", '{"type": "string"}'),
        "schema-nonsense": (echo, "input_schema_json", '{"type": "objekt"}'),
        "schema-elsewhere": (echo, "input_schema_json", '{"type": "object", "$ref": "https://example.com/a"}'),
        "output-schema-nonsense": (count, "output_schema_json", '{"type": 7}'),
        "hash-wrong": (echo, "hash", b"\2" * 32),
    }
    for fault in faults & set(changes):
        tool, field, value = changes[fault]
        setattr(tool, field, value)
    return tools


def _tool(
    name: str,
    text: str,
    properties: dict[str, Any],
    *,
    optional: dict[str, Any] | None = None,
    output: dict[str, Any] | None = None,
) -> Tool:
    every = {**properties, **(optional or {})}
    schema = {"type": "object", "properties": every, "required": list(properties), "additionalProperties": False}
    tool = Tool(name=name, description=text, input_schema_json=json.dumps(schema))
    tool.output_schema_json = json.dumps(output) if output else ""
    tool.hash = definition_hash(tool)
    return tool


def definition_hash(tool: Tool) -> bytes:
    """The hash of the contract."""
    digest = hashlib.sha256()
    for text in (tool.name, tool.description, tool.input_schema_json, tool.output_schema_json):
        digest.update(len(text.encode()).to_bytes(8, "big") + text.encode())
    return digest.digest()


def arguments(request: CallToolRequest, schema: Schema, faults: frozenset[str]) -> dict[str, Any]:
    """Read the arguments of a call. Raises Misfit."""
    text = request.arguments_json
    if "empty-arguments-refused" in faults and not text:
        raise Misfit
    if text.count("{") + text.count("[") > NESTING and "nesting-breaks" not in faults:
        raise Misfit
    try:
        document = json.loads(text or "{}")
    except ValueError as exc:
        if "json-unchecked" not in faults:
            raise Misfit from exc
        document = {}
    is_unchecked = faults & {"arguments-unchecked", "json-unchecked"}
    if not isinstance(document, dict) or not (is_unchecked or schema.takes(document)):
        raise Misfit
    if "stricter-than-told" in faults and "times" in document:
        raise Misfit
    return document


def failed(request: CallToolRequest, why: str) -> ToolResult:
    """Make an error result."""
    return ToolResult(call_id=request.call_id, name=request.tool_name, parts=[_text(why)], is_error=True)


class Work:
    """What the tools do."""

    def __init__(self, faults: frozenset[str]) -> None:
        self._faults = faults
        self._count = 0
        self._last: CallToolRequest | None = None

    async def make(self, request: CallToolRequest, schema: Schema, add: Add) -> None:
        """Execute a call and add its frames."""
        given = arguments(request, schema, self._faults)
        self._count += 1
        number = self._count
        result = ToolResult(call_id=request.call_id, name=request.tool_name)
        match request.tool_name:
            case "count":
                count: Any = {"n": "many"} if "output-breaks-schema" in self._faults else {"n": number}
                result.parts.add().json.json = "{nonsense" if "json-part-broken" in self._faults else json.dumps(count)
            case "echo":
                result.parts.append(_text(self._echo(str(given.get("text", "")))))
                await self._swap(request, result)
            case "fail":
                result.is_error = True
                result.parts.append(_text("" if "failure-without-word" in self._faults else f"no: {given.get('why')}"))
            case "large":
                result.parts.append(_text("ä" * (int(given.get("bytes", 0)) // 2)))
            case "work":
                await self._work(float(given.get("seconds", 0)), add)
                result.parts.append(_text(f"worked {number}"))
        self._spoil(request, result)
        add(*self._frames(result))

    def _echo(self, text: str) -> str:
        return text.encode("ascii", errors="replace").decode() if "unicode-mangled" in self._faults else text

    async def _work(self, seconds: float, add: Add) -> None:
        for step in range(5):
            progress = Progress(text=f"step {step}", current=step, total=4)
            if "progress-backwards" in self._faults:
                progress.current = 4 - step
            if "progress-huge" in self._faults:
                progress.text = "a" * 70_000
            if "progress-beyond-total" in self._faults:
                progress.total = 1
            add(CallToolResponse(progress=progress))
            await asyncio.sleep(seconds / 5)

    def _spoil(self, request: CallToolRequest, result: ToolResult) -> None:
        """Change the result as the faults say."""
        if "call-id-wrong" in self._faults:
            result.call_id = "call-7"
        if "tool-name-wrong" in self._faults:
            result.name = "tool"
        if "part-empty" in self._faults:
            result.parts.append(Part())
        if "artifact-named" in self._faults:
            result.artifact_id = "artifact-1"

    async def _swap(self, request: CallToolRequest, result: ToolResult) -> None:
        """Answer with what came last, if the fault is on: alone, a call has its own result still."""
        if "results-swapped" in self._faults:
            self._last = request
            await asyncio.sleep(0.1)
            result.parts[0].text.text = str(json.loads(self._last.arguments_json).get("text", ""))

    def _frames(self, result: ToolResult) -> Iterator[CallToolResponse | bytes]:
        if "bad-utf8" in self._faults:
            yield b"\x1a\x04\x0a\x02\xff\xfe"
            return
        text = result.parts[-1].text.text.encode() if result.parts else b""
        if len(text) > CHUNK_BYTES and "frame-huge" not in self._faults:
            yield from self._chunks(text)
            if "chunks-beside-content" not in self._faults:
                result.parts[-1].text.text = ""
        if "no-result" not in self._faults:
            yield CallToolResponse(result=result)
        if "two-results" in self._faults:
            yield CallToolResponse(result=result)
        if "frame-after-result" in self._faults:
            yield CallToolResponse(progress=Progress(text="one more"))

    def _chunks(self, data: bytes) -> Iterator[CallToolResponse]:
        size = 3 * CHUNK_BYTES if "chunk-huge" in self._faults else CHUNK_BYTES
        for start in range(0, len(data), size):
            yield CallToolResponse(chunk=data[start : start + size])
        if "chunks-no-text" in self._faults:
            yield CallToolResponse(chunk=b"\xff")


def _text(text: str) -> Part:
    part = Part()
    part.text.text = text
    return part
