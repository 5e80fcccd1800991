"""What an MCP tool answers, as a result of the contract.

Above: `bridge`. Below: the context of the call, which keeps artifacts. Text is text, structured content is the JSON
part, pictures of up to 256 KiB are images; what is larger or of another kind is kept as an artifact, and a text tells
its id, since a part of a result may not name one. Guarantee: nothing is left out without a text that says it.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from mcp import types

from behest.errors import BehestError
from behest.tool_calls import Refused
from behest.tool_context import Context, ToolError
from behest.v1.message_pb2 import ImagePart, JsonPart, Part, TextPart, ToolResult

INLINE_IMAGE_BYTES = 256 * 1024
JOINED_BYTES = 1024 * 1024
"""Texts of more than this together become one, since only the last part of a result is cut into frames."""


async def result_of(answer: types.CallToolResult, tool_name: str, context: Context) -> ToolResult:
    """Make the result of a call. Raises Refused for content that cannot be read: the tool ran, but said nothing."""
    structured = answer.structured_content
    parts: list[Part] = []
    if structured is not None:
        parts.append(Part(json=JsonPart(json=json.dumps(structured, ensure_ascii=False))))
    for block in answer.content:
        if isinstance(block, types.TextContent):
            if structured is None or not _repeats(block.text, structured):
                parts.append(_text(block.text))
        else:
            parts.append(await _part(block, context))
    if sum(part.ByteSize() for part in parts) > JOINED_BYTES:
        parts = _joined(parts)
    return ToolResult(call_id=context.call_id, name=tool_name, parts=parts, is_error=answer.is_error)


def _repeats(text: str, structured: Any) -> bool:
    """Whether a text says only what the structured content says, as servers do for clients that cannot read that."""
    values = [structured]
    if isinstance(structured, dict) and list(structured) == ["result"]:
        # How a server of the official SDK wraps what is no object.
        inner = structured["result"]
        values += [inner, *(inner if isinstance(inner, list) else ())]
    if text in values:
        return True
    try:
        return json.loads(text) in values
    except (ValueError, RecursionError):
        return False


async def _part(block: types.ContentBlock, context: Context) -> Part:
    match block:
        case types.TextContent():
            return _text(block.text)
        case types.ImageContent() | types.AudioContent():
            return await _kept(_bytes(block.data), block.mime_type, "", context)
        case types.EmbeddedResource():
            resource = block.resource
            if isinstance(resource, types.TextResourceContents):
                return _text(f"resource {resource.uri}:\n{resource.text}")
            name = str(resource.uri).rstrip("/").rpartition("/")[2][:256]
            return await _kept(_bytes(resource.blob), resource.mime_type or "", name, context)
        case types.ResourceLink():
            link = {"uri": str(block.uri), "name": block.name, "media_type": block.mime_type, "size_bytes": block.size}
            told = {name: value for name, value in link.items() if value is not None}
            return _text(f"resource link {json.dumps(told, ensure_ascii=False)}")


async def _kept(content: bytes, media_type: str, name: str, context: Context) -> Part:
    """A picture that fits is an image; everything else is an artifact, and a text that tells of it."""
    if media_type.startswith("image/") and len(content) <= INLINE_IMAGE_BYTES:
        return Part(image=ImagePart(data=content, media_type=media_type))
    told = {"media_type": media_type or "application/octet-stream", "size_bytes": len(content)}
    try:
        artifact = await context.artifact(content, name=name, media_type=media_type)
    except (ToolError, BehestError) as exc:
        return _text(f"not kept, {exc}: {json.dumps(told)}")
    return _text(f"artifact {json.dumps({'artifact_id': artifact.id, 'name': name, **told}, ensure_ascii=False)}")


def _joined(parts: list[Part]) -> list[Part]:
    """The same parts with one text, which is the last."""
    texts = [part.text.text for part in parts if part.WhichOneof("kind") == "text"]
    others = [part for part in parts if part.WhichOneof("kind") != "text"]
    return [*others, _text("\n".join(texts))] if texts else others


def _bytes(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as exc:
        text = "the MCP server sent content that is no base64"
        raise Refused("INTERNAL", "TOOL_RESULT_INVALID", text, is_proof=False) from exc


def _text(text: str) -> Part:
    return Part(text=TextPart(text=text.encode(errors="replace").decode()))
