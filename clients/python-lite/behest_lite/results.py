"""Results of tools: made from what a function returns, split into frames, cut to what a message holds.

Above: `calls`. No I/O.
"""

from __future__ import annotations

import json

from behest_lite.contract.behest.v1 import CallToolRequest, CallToolResponse, JsonPart, Part, TextPart, ToolResult

CHUNK_BYTES = 1024 * 1024
STATUS_BYTES = 3 * 1024 * 1024
RESULT_BYTES = 16 * 1024 * 1024


def made(request: CallToolRequest, value: object) -> ToolResult:
    """Make the result of what a function returned: a string is text, a ToolResult itself, everything else JSON."""
    if isinstance(value, ToolResult):
        return value
    part = Part(text=TextPart(text=value)) if isinstance(value, str) else Part(json=JsonPart(json=_dump(value)))
    result = ToolResult(call_id=request.call_id, name=request.tool_name, parts=[part])
    size = len(bytes(result))
    if size > RESULT_BYTES:
        return failed(request, f"the result of {size} bytes exceeds the limit of {RESULT_BYTES} bytes")
    return result


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def failed(request: CallToolRequest, text: str) -> ToolResult:
    """Make the result of a call that failed."""
    shown = (text or "the tool failed")[:2_000].encode(errors="replace").decode()
    part = Part(text=TextPart(text=shown))
    return ToolResult(call_id=request.call_id, name=request.tool_name, parts=[part], is_error=True)


def frames_of(result: ToolResult, limit_bytes: int) -> list[CallToolResponse]:
    """Split a result over the limit into chunks of its last part, when that is text or JSON, and the rest."""
    last = result.parts[-1] if result.parts else Part()
    content = last.text.text if last.text is not None else last.json.json if last.json is not None else ""
    if len(bytes(result)) <= limit_bytes or not content:
        return [CallToolResponse(result=result)]
    rest = ToolResult.FromString(bytes(result))
    rest.parts[-1] = Part(text=TextPart()) if last.text is not None else Part(json=JsonPart())
    data = content.encode()
    chunks = [data[start : start + limit_bytes] for start in range(0, len(data), limit_bytes)]
    return [*(CallToolResponse(chunk=chunk) for chunk in chunks), CallToolResponse(result=rest)]


def cut(result: ToolResult) -> ToolResult:
    """Cut a result to what one message holds: text is shortened, other parts are left out."""
    if len(bytes(result)) <= STATUS_BYTES:
        return result
    cut = ToolResult(call_id=result.call_id, name=result.name, is_error=result.is_error, truncated=True)
    room = STATUS_BYTES
    for part in result.parts:
        if part.text is not None:
            text = part.text.text.encode()[:room].decode(errors="ignore")
            cut.parts.append(Part(text=TextPart(text=text)))
            room -= len(text.encode())
    return cut
