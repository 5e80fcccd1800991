"""What MCP tools answer as results of the contract, and what results of the contract are for MCP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from mcp import types

from behest.errors import BehestError
from behest.mcp.answers import MAX_FETCHED_BYTES, answer_of, tool_of
from behest.mcp.results import result_of
from behest.tool_calls import Refused, Running
from behest.tool_context import Context, Origin
from behest.v1.message_pb2 import AudioPart, FilePart, ImagePart, JsonPart, Part, TextPart, ToolResult
from behest.v1.tool_pb2 import SideEffect, Tool, ToolPolicy
from behest.v1.tool_service_pb2 import CallToolRequest


async def result(*content: types.ContentBlock, structured: Any = None, is_error: bool = False) -> ToolResult:
    """The result of an answer, to a call of a server that is not attached."""
    request = CallToolRequest(tool_name="t", call_id="call_1")
    context = Context(request, Running(request), asyncio.get_running_loop(), Origin())
    answer = types.CallToolResult(content=list(content), structured_content=structured, is_error=is_error)
    return await result_of(answer, "t", context)


def text(said: str) -> types.TextContent:
    return types.TextContent(text=said)


@pytest.mark.parametrize(
    ("structured", "said"),
    [
        ({"a": 1}, ['{"a": 1}']),
        ({"a": [1.5, None]}, ['{\n  "a": [1.5, null]\n}']),
        ({"result": 5}, ["5"]),
        ({"result": "plain"}, ["plain"]),
        ({"result": ["x", {"y": 1}]}, ["x", '{"y": 1}']),
    ],
)
async def test_a_text_that_repeats_the_structured_content_is_left_out(structured: Any, said: list[str]) -> None:  # N18
    made = await result(*map(text, said), structured=structured)
    [part] = made.parts
    assert json.loads(part.json.json) == structured
    assert (made.call_id, made.name, made.is_error) == ("call_1", "t", False)


async def test_a_text_that_says_more_is_kept() -> None:
    made = await result(text("see below"), text('{"a": 2}'), structured={"a": 1})
    assert [part.text.text for part in made.parts] == ["", "see below", '{"a": 2}']


async def test_an_error_stays_one() -> None:
    made = await result(text("no such account"), is_error=True)
    assert made.is_error
    assert made.parts[0].text.text == "no such account"


async def test_content_that_is_no_base64_is_an_invalid_result() -> None:
    with pytest.raises(Refused) as caught:
        await result(types.ImageContent(data="?", mime_type="image/png"))
    assert caught.value.reason == "TOOL_RESULT_INVALID"
    assert not caught.value.is_proof


async def test_what_cannot_be_kept_is_told() -> None:
    made = await result(types.AudioContent(data="aGVsbG8=", mime_type="audio/wav"))
    assert '"size_bytes": 5' in made.parts[0].text.text
    assert "not kept" in made.parts[0].text.text


async def test_large_texts_become_one_which_is_last() -> None:
    picture = types.ImageContent(data="aGVsbG8=", mime_type="image/png")
    made = await result(text("a" * 800_000), picture, text("b" * 800_000))
    assert [part.WhichOneof("kind") for part in made.parts] == ["image", "text"]
    assert len(made.parts[1].text.text) == 1_600_001


class Shelf:
    """Artifacts by id."""

    def __init__(self, **contents: bytes) -> None:
        self._contents = contents

    async def read(self, artifact_id: str, *, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        """Return a range of one."""
        if artifact_id not in self._contents:
            raise BehestError(grpc.StatusCode.NOT_FOUND, "ARTIFACT_NOT_FOUND", "there is none")
        return self._contents[artifact_id][offset_bytes:][:length_bytes]


async def test_parts_become_content_of_their_kind() -> None:  # N18
    parts = [
        Part(text=TextPart(text="hello")),
        Part(json=JsonPart(json='{"a": 1}')),
        Part(json=JsonPart(json="[2]")),
        Part(image=ImagePart(data=b"hello", media_type="image/png")),
        Part(audio=AudioPart(artifact_id="small", media_type="audio/wav")),
        Part(image=ImagePart(artifact_id="large", media_type="image/png")),
        Part(image=ImagePart(artifact_id="gone", media_type="image/png")),
        Part(file=FilePart(uri="https://example.com/x", media_type="text/html")),
    ]
    shelf = Shelf(small=b"hello", large=b"x" * (MAX_FETCHED_BYTES + 1))
    answer = await answer_of(ToolResult(parts=parts, truncated=True, artifact_id="whole"), shelf)
    kinds = [block.type for block in answer.content]
    assert kinds == ["text", "text", "text", "image", "audio", "text", "text", "text", "text"]
    assert answer.structured_content == {"a": 1}
    assert [getattr(block, "data", None) for block in answer.content[3:5]] == ["aGVsbG8="] * 2
    told = [block.text for block in answer.content[5:] if isinstance(block, types.TextContent)]
    assert [word in line for word, line in zip(["large", "gone", "example.com", "whole"], told, strict=True)] == [
        True
    ] * 4


@pytest.mark.parametrize(
    ("effect", "reads_only", "idempotent"),
    [
        (SideEffect.SIDE_EFFECT_PURE, True, True),
        (SideEffect.SIDE_EFFECT_IDEMPOTENT, False, True),
        (SideEffect.SIDE_EFFECT_NON_IDEMPOTENT, False, False),
    ],
)
def test_hints_are_the_class_that_the_operator_set(
    effect: SideEffect.ValueType, reads_only: bool, idempotent: bool
) -> None:  # N18
    schema = '{"type": "object", "properties": {"a": {"type": "string"}}}'
    made = tool_of(
        Tool(
            name="t",
            input_schema_json=schema,
            output_schema_json='{"type": "array"}',
            policy=ToolPolicy(side_effect=effect),
        )
    )
    assert made.input_schema == json.loads(schema)
    assert made.output_schema is None
    assert made.annotations is not None
    assert (made.annotations.read_only_hint, made.annotations.idempotent_hint) == (reads_only, idempotent)
