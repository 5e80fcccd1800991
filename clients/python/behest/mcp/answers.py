"""Tools and results of the contract as those of MCP.

Above: `serving`. Below: the messages of the contract, and artifacts. Names, schemas and texts are passed on as they
are; the hints are the operator's class of the effect, which is in force, not what an author claims. A JSON part is the
structured content and, for clients that know none, a text; pictures and sounds of an artifact are fetched up to a
limit; what cannot be carried is told as a text.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Protocol

from mcp import types

from behest.errors import BehestError
from behest.v1.message_pb2 import Part, ToolResult
from behest.v1.tool_pb2 import SideEffect, Tool

MAX_FETCHED_BYTES = 4 * 1024 * 1024
_REPEATABLE = (SideEffect.SIDE_EFFECT_PURE, SideEffect.SIDE_EFFECT_IDEMPOTENT)


class Fetch(Protocol):
    """Contract: returns the content of an artifact, at most so many bytes. Raises BehestError."""

    async def read(self, artifact_id: str, *, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes: ...


def tool_of(tool: Tool) -> types.Tool:
    """Make an MCP tool."""
    effect = tool.policy.side_effect
    schema = _object(tool.output_schema_json)
    return types.Tool(
        name=tool.name,
        title=tool.hints.title or None,
        description=tool.description or None,
        input_schema=_object(tool.input_schema_json) or {"type": "object"},
        # Earlier versions of MCP know results that are objects only.
        output_schema=schema if schema.get("type") == "object" else None,
        annotations=types.ToolAnnotations(
            read_only_hint=effect == SideEffect.SIDE_EFFECT_PURE, idempotent_hint=effect in _REPEATABLE
        ),
    )


async def answer_of(result: ToolResult, artifacts: Fetch) -> types.CallToolResult:
    """Make the answer to a call."""
    content: list[types.ContentBlock] = []
    structured: dict[str, Any] | None = None
    for part in result.parts:
        content.append(await _block(part, artifacts))
        if part.WhichOneof("kind") == "json" and structured is None:
            structured = _object(part.json.json) or None
    if result.truncated:
        whole = f"; the whole is artifact {result.artifact_id}" if result.artifact_id else ""
        content.append(_text(f"[cut{whole}]"))
    return types.CallToolResult(content=content, structured_content=structured, is_error=result.is_error)


def error_of(error: BehestError) -> types.CallToolResult:
    """Make the answer of a call that was refused or brought no result: the reason comes first in its text."""
    return types.CallToolResult(content=[_text(str(error)[:2_000])], is_error=True)


async def _block(part: Part, artifacts: Fetch) -> types.ContentBlock:
    match part.WhichOneof("kind"):
        case "text":
            return _text(part.text.text)
        case "json":
            return _text(part.json.json)
        case "image" if part.image.WhichOneof("source") == "data":
            return _media("image", part.image.data, part.image.media_type)
        case "image" | "audio" as kind:
            source = part.image if kind == "image" else part.audio
            return await _fetched(kind, source.artifact_id, source.uri, source.media_type, artifacts)
        case "file":
            return _told("file", part.file.artifact_id, part.file.uri, part.file.media_type)
        case kind:
            return _text(f"[{kind or 'nothing'}]")


async def _fetched(kind: str, artifact_id: str, uri: str, media_type: str, artifacts: Fetch) -> types.ContentBlock:
    if artifact_id:
        try:
            # One byte more than is carried tells that it is too large.
            content = await artifacts.read(artifact_id, offset_bytes=0, length_bytes=MAX_FETCHED_BYTES + 1)
        except BehestError:
            content = b""
        if 0 < len(content) <= MAX_FETCHED_BYTES:
            return _media(kind, content, media_type)
    return _told(kind, artifact_id, uri, media_type)


def _media(kind: str, content: bytes, media_type: str) -> types.ContentBlock:
    data = base64.b64encode(content).decode()
    media_type = media_type or "application/octet-stream"
    if kind == "image":
        return types.ImageContent(data=data, mime_type=media_type)
    return types.AudioContent(data=data, mime_type=media_type)


def _told(kind: str, artifact_id: str, uri: str, media_type: str) -> types.ContentBlock:
    place = {"artifact_id": artifact_id} if artifact_id else {"uri": uri}
    return _text(f"{kind} {json.dumps({**place, 'media_type': media_type}, ensure_ascii=False)}")


def _text(text: str) -> types.TextContent:
    return types.TextContent(text=text)


def _object(text: str) -> dict[str, Any]:
    """A JSON object; empty when it is none."""
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
