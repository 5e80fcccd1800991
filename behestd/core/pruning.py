"""Which old outputs of tools the model sees no more. Pure. Above: `window`, which composes calls.

What is left out changes in blocks of turns, not with every turn, so that calls go on beginning alike and a provider's
prompt cache holds. A turn is one answer of the model. The originals stay in the log and the session's messages.
"""

from __future__ import annotations

from collections.abc import Sequence

from behest.v1.definition_pb2 import Pruning
from behest.v1.message_pb2 import Message, Part, Role, TextPart, ToolResult

KEEP_TURNS = 20
OUTPUT_BYTES = 4096
BLOCK_TURNS = 10

DEFAULTS = Pruning(enabled=True, keep_turns=KEEP_TURNS, output_bytes=OUTPUT_BYTES, block_turns=BLOCK_TURNS)


def in_force(agent: Pruning, configured: Pruning | None = None) -> Pruning:
    """An agent's policy over the operator's over the defaults: each field is set."""
    merged = Pruning()
    for layer in (DEFAULTS, configured or Pruning(), agent):
        merged.MergeFrom(layer)
    return merged


def prune(messages: Sequence[Message], policy: Pruning) -> Sequence[Message]:
    """The messages with a line in the place of each large output of a tool that is old enough.

    As many messages as were given, in their order; those that nothing is left out of are the same objects.
    """
    if not policy.enabled or len(messages) <= policy.keep_turns:
        return messages
    turns = [index for index, message in enumerate(messages) if message.role == Role.ROLE_ASSISTANT]
    old = max(len(turns) - policy.keep_turns, 0) // max(policy.block_turns, 1) * policy.block_turns
    if not old:
        return messages
    # Results of the last old turn stand behind it, before the next one.
    end = turns[old] if old < len(turns) else len(messages)
    return [
        _pruned(message, policy.output_bytes) if message.role == Role.ROLE_TOOL else message
        for message in messages[:end]
    ] + list(messages[end:])


def _pruned(message: Message, output_bytes: int) -> Message:
    sizes = [_size_bytes(part.tool_result) for part in message.parts]
    if all(size < output_bytes for size in sizes):
        return message
    parts = [
        _line(part.tool_result, size, message.id) if size >= output_bytes else part
        for part, size in zip(message.parts, sizes, strict=True)
    ]
    return Message(id=message.id, role=message.role, parts=parts, run_id=message.run_id)


def _line(result: ToolResult, size_bytes: int, message_id: str) -> Part:
    text = f"[output of {result.name or 'a tool'}, {size_bytes} bytes, left out{_place(result, message_id)}]"
    line = ToolResult(
        call_id=result.call_id,
        name=result.name,
        parts=[Part(text=TextPart(text=text))],
        is_error=result.is_error,
        truncated=result.truncated,
        artifact_id=result.artifact_id,
    )
    return Part(tool_result=line)


def _place(result: ToolResult, message_id: str) -> str:
    if result.artifact_id:
        return f"; kept as artifact {result.artifact_id}"
    return f"; kept in message {message_id}" if message_id else ""


def _size_bytes(result: ToolResult) -> int:
    return sum(len(part.text.text.encode()) if part.HasField("text") else part.ByteSize() for part in result.parts)
