"""Results of tools as messages: made of what functions return, split into frames, cut to what one message holds.

Pure. Above: `tool_calls`, which makes results, and `tool_service`, which sends them. Guarantee: no frame is larger than
what it is split for, and what cannot be split so becomes an error result that says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.schema import dump
from behest.v1.message_pb2 import JsonPart, Part, TextPart, ToolResult
from behest.v1.tool_service_pb2 import CallToolResponse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from behest.schema import Mismatch
    from behest.v1.tool_service_pb2 import CallToolRequest

CHUNK_BYTES = 1024 * 1024
FRAME_BYTES = 4 * 1024 * 1024
"""The largest frame where nothing else was said."""
RESULT_LIMIT_BYTES = 16 * 1024 * 1024
STATUS_LIMIT_BYTES = 3 * 1024 * 1024
# What a frame holds beside its content: ids, numbers, tags.
_OVERHEAD_BYTES = 1024


def result_of(request: CallToolRequest, written: str, value: object) -> ToolResult:
    """Make the result of what a function wrote and returned: strings are text, everything else JSON."""
    texts = [written] if written else []
    parts: list[Part] = []
    if isinstance(value, ToolResult):
        return value
    if isinstance(value, Part):
        parts.append(value)
    elif isinstance(value, str):
        texts.append(value)
    elif value is not None or not written:
        parts.append(Part(json=JsonPart(json=dump(value))))
    if texts:
        text = "".join(texts).encode(errors="replace").decode()
        parts.insert(0, Part(text=TextPart(text=text)))
    result = _of_parts(request, parts)
    if result.ByteSize() > RESULT_LIMIT_BYTES:
        limit = f"the result of {result.ByteSize()} bytes exceeds the limit of {RESULT_LIMIT_BYTES} bytes"
        return error_result(request, limit)
    return result


def error_result(request: CallToolRequest, text: str) -> ToolResult:
    """Make the result of a call that failed. More than 2,000 characters of text are cut."""
    text = text[:2_000].encode(errors="replace").decode()
    return _of_parts(request, [Part(text=TextPart(text=text))], is_error=True)


def misfit_result(request: CallToolRequest, problem: Mismatch) -> ToolResult:
    """Make the result of a call whose arguments do not fit: JSON that lists what is wrong, and where."""
    errors = [{"path": path, "message": text} for path, text in problem.errors[:20]]
    document = {"error": "TOOL_ARGUMENTS_INVALID", "tool": request.tool_name, "errors": errors}
    return _of_parts(request, [Part(json=JsonPart(json=dump(document)))], is_error=True)


def frames_of(result: ToolResult, frame_bytes: int = FRAME_BYTES) -> Iterator[CallToolResponse]:
    """Yield a result as frames of at most so many bytes: chunks of its last part, if that is text or JSON, then it."""
    chunk_bytes = min(CHUNK_BYTES, frame_bytes - _OVERHEAD_BYTES)
    if result.ByteSize() <= chunk_bytes:
        yield CallToolResponse(result=result)
        return
    rest = ToolResult()
    rest.CopyFrom(result)
    content = _taken_content(rest).encode()
    if rest.ByteSize() > frame_bytes - _OVERHEAD_BYTES:
        text = f"the result of {result.ByteSize()} bytes fits no frame of {frame_bytes} bytes: put what is large last"
        failed = ToolResult(call_id=result.call_id, name=result.name, is_error=True)
        failed.parts.add().text.text = text
        yield CallToolResponse(result=failed)
        return
    for start in range(0, len(content), chunk_bytes):
        yield CallToolResponse(chunk=content[start : start + chunk_bytes])
    yield CallToolResponse(result=rest)


def cut(result: ToolResult) -> ToolResult:
    """Cut a result to what one message holds: text is shortened, other parts are left out."""
    if result.ByteSize() <= STATUS_LIMIT_BYTES:
        return result
    shortened = ToolResult(call_id=result.call_id, name=result.name, is_error=result.is_error, truncated=True)
    room = STATUS_LIMIT_BYTES
    for part in result.parts:
        if part.WhichOneof("kind") == "text":
            text = part.text.text.encode()[:room].decode(errors="ignore")
            shortened.parts.add().text.text = text
            room -= len(text.encode())
    return shortened


def _taken_content(result: ToolResult) -> str:
    """Empty the last part of a result, when that is text or JSON, and return what it held."""
    last = result.parts[-1] if result.parts else Part()
    match last.WhichOneof("kind"):
        case "text":
            content, last.text.text = last.text.text, ""
        case "json":
            content, last.json.json = last.json.json, ""
        case _:
            content = ""
    return content


def _of_parts(request: CallToolRequest, parts: list[Part], *, is_error: bool = False) -> ToolResult:
    return ToolResult(call_id=request.call_id, name=request.tool_name, parts=parts, is_error=is_error)
