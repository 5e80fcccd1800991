"""Read the result of a tool server: untrusted bytes become an answer, or the failure of a call that was executed.

Above it `remote`. A result that makes no sense says nothing against its effect, so every refusal here is EXECUTED_YES.
"""

from __future__ import annotations

from behest.v1.message_pb2 import Part, ToolResult
from behest.v1.tool_pb2 import Tool
from behestd.tools import remote_errors
from behestd.tools.json_text import JsonRefused, read
from behestd.tools.schema import Validators
from behestd.tools.tool import Answer, ToolFailure, answer

_MAX_DEPTH = 128


def checked(validators: Validators, tool: Tool, result: ToolResult, chunks: bytes = b"") -> Answer:
    """Turn a result and its chunks into an answer. Raises ToolFailure, executed, for one that makes no sense."""
    parts = list(result.parts)
    if chunks:
        parts = _joined(parts, chunks)
    for part in parts:
        _check_part(part)
    given = answer(parts, is_error=result.is_error, is_truncated=result.truncated)
    problem = "" if given.is_error else validators.structured(tool, given.structured_json)
    if problem:
        raise remote_errors.unusable("TOOL_RESULT_INVALID", problem)
    return given


def too_large(limit_bytes: int) -> ToolFailure:
    """Make the failure of a result that is not read to its end."""
    return remote_errors.unusable("TOOL_RESULT_TOO_LARGE", f"the result exceeds the limit of {limit_bytes} bytes")


def _joined(parts: list[Part], chunks: bytes) -> list[Part]:
    """Put the chunks into the last part, which names their kind and is empty."""
    last = Part()
    if parts:
        last.CopyFrom(parts[-1])
    kind = last.WhichOneof("kind")
    try:
        if kind == "text" and not last.text.text:
            last.text.text = chunks.decode()
        elif kind == "json" and not last.json.json:
            last.json.json = chunks.decode()
        elif kind == "image" and not last.image.data:
            last.image.data = chunks
        else:
            raise remote_errors.unusable("TOOL_RESULT_INVALID", "the chunks belong to no part of the result")
    except UnicodeDecodeError as exc:
        raise remote_errors.unusable("TOOL_RESULT_INVALID", "the chunks of a text are no UTF-8") from exc
    return [*parts[:-1], last]


def _check_part(part: Part) -> None:
    """Refuse what a tool cannot say: other kinds, JSON that is none, artifacts, which are not a server's to name."""
    kind = part.WhichOneof("kind")
    if kind == "json":
        try:
            read(part.json.json, max_bytes=len(part.json.json) * 4, max_depth=_MAX_DEPTH)
        except JsonRefused as exc:
            raise remote_errors.unusable("TOOL_RESULT_INVALID", f"a JSON part of the result: {exc}") from exc
    elif kind in ("image", "audio", "file"):
        if getattr(part, kind).artifact_id:
            raise remote_errors.unusable("TOOL_RESULT_INVALID", "a part of the result names an artifact")
    elif kind != "text":
        raise remote_errors.unusable("TOOL_RESULT_INVALID", "a part of the result is of a kind that no tool has")
