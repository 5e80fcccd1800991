"""Tokens estimated: how far from real counts, for texts of many kinds, pictures, tools, and how models correct it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import FilePart, ImagePart, JsonPart, Message, Part, ReasoningPart, ToolCall, ToolResult
from behest.v1.tool_pb2 import Tool
from behestd.core.estimate import (
    EXACT,
    LEAST_RATIO,
    MESSAGE_TOKENS,
    MOST_RATIO,
    PAIRS,
    UNKNOWN_IMAGE_TOKENS,
    corrected,
    estimate,
    estimate_chat,
    estimate_image,
    estimate_text,
    estimate_tool,
    ratio_of,
)
from tests.core.stage import said

FIXTURES = Path(__file__).parent.parent / "context" / "fixtures"
COUNTS: dict[str, dict[str, int]] = json.loads((FIXTURES / "counts.json").read_text())
WORST, WORST_OF_ALL = 0.15, 0.05
"""The error that docs/context.md states: of one text, and of all of them together."""
WORST_CORRECTED = 0.20
OTHER_SCRIPTS = ("arabic.txt", "chinese.txt", "hindi.txt", "japanese.txt", "korean.txt", "russian.txt")


def text_of(name: str) -> str:
    return (FIXTURES / name).read_text()


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_an_estimate_is_within_the_stated_error_of_the_real_count(name: str) -> None:  # C078
    real = COUNTS[name]["o200k_base"]
    assert abs(estimate_text(text_of(name)) / real - 1) <= WORST


def test_errors_of_many_texts_cancel_out() -> None:  # C078
    estimated = sum(estimate_text(text_of(name)) for name in COUNTS)
    real = sum(count["o200k_base"] for count in COUNTS.values())
    assert abs(estimated / real - 1) <= WORST_OF_ALL


@pytest.mark.parametrize("name", OTHER_SCRIPTS)
def test_a_model_that_counts_otherwise_is_learned_from_its_reports(name: str) -> None:  # C078
    """The older tokenizer takes up to three times as many tokens for these scripts; halves of a text tell of it."""
    text = text_of(name)
    real = COUNTS[name]["cl100k_base"]
    before = abs(estimate_text(text) / real - 1)
    half = estimate_text(text[: len(text) // 2])
    ratio = ratio_of([(half, real // 2)] * 3)
    after = abs(corrected(estimate_text(text), ratio) / real - 1)
    assert before > WORST_CORRECTED
    assert after <= WORST_CORRECTED


def test_all_fixtures_together_calibrate_a_model() -> None:  # C078
    pairs = [(estimate_text(text_of(name)), COUNTS[name]["cl100k_base"]) for name in sorted(COUNTS)]
    ratio = ratio_of(pairs)
    total = corrected(sum(estimated for estimated, _ in pairs), ratio)
    assert abs(total / sum(real for _, real in pairs) - 1) <= WORST_CORRECTED


# --- parts ---


def png(width: int, height: int, size: int = 100) -> bytes:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", width, height)
    return head + b"\0" * size


def jpeg(width: int, height: int) -> bytes:
    comment = b"\xff\xfe" + struct.pack(">H", 40) + b"c" * 38
    frame = b"\xff\xc0" + struct.pack(">HBHH", 17, 8, height, width)
    return b"\xff\xd8" + comment + frame + b"\0" * 20


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0" * 20


@pytest.mark.parametrize("make", [png, jpeg, gif])
def test_a_picture_counts_by_its_tiles(make: object) -> None:  # C078
    assert callable(make)
    assert estimate_image(ImagePart(data=make(512, 512))) == 85 + 170
    assert estimate_image(ImagePart(data=make(513, 512))) == 85 + 2 * 170
    assert estimate_image(ImagePart(data=make(1024, 1024))) == 85 + 4 * 170
    assert estimate_image(ImagePart(data=make(9000, 9000))) == 85 + 8 * 170


def test_the_bytes_of_a_picture_say_nothing_of_its_tokens() -> None:  # C078
    small, large = (estimate_image(ImagePart(data=png(600, 600, size))) for size in (10, 200_000))
    assert small == large


@pytest.mark.parametrize(
    "image",
    [
        ImagePart(uri="https://pictures.example.org/1.png"),
        ImagePart(artifact_id="art_1"),
        ImagePart(data=b"no picture"),
        ImagePart(data=b"\xff\xd8\xff"),
        ImagePart(data=b"\xff\xd8" + b"\xff\xfe\x00\x00" * 500),
        ImagePart(data=png(0, 5)),
        ImagePart(data=png(5, 5)[:20]),
        ImagePart(data=b"GIF89a"),
    ],
)
def test_a_picture_of_unknown_size_counts_as_a_usual_one(image: ImagePart) -> None:  # C078
    assert estimate_image(image) == UNKNOWN_IMAGE_TOKENS


def test_every_kind_of_part_counts() -> None:
    text = '{"a": "some words of text"}'
    tokens = estimate_text(text)
    call = Part(tool_call=ToolCall(name="look", arguments_json=text))
    result = Part(tool_result=ToolResult(parts=[Part(json=JsonPart(json=text))]))
    thought = Part(reasoning=ReasoningPart(text=text, signature=b"s" * 10_000))
    file = Part(file=FilePart(uri="https://files.example.org/1.pdf"))
    assert estimate(Message(parts=[call])) > MESSAGE_TOKENS + tokens
    assert estimate(Message(parts=[result])) > MESSAGE_TOKENS + tokens
    assert estimate(Message(parts=[thought])) == MESSAGE_TOKENS + tokens
    assert estimate(Message(parts=[file])) > 1000
    assert estimate(Message(parts=[Part()])) == estimate(Message()) == MESSAGE_TOKENS


def test_a_call_is_its_messages_and_its_tools() -> None:
    tool = Tool(name="look", description="d" * 100, input_schema_json=text_of("json_schema.txt"))
    real = COUNTS["json_schema.txt"]["o200k_base"]
    assert abs(estimate_tool(tool) - real - 100 / 4) <= 0.25 * real
    message = said("hello")
    assert estimate_chat(Chat(messages=[message], tools=[tool])) == estimate(message) + estimate_tool(tool)


@given(st.text())
def test_any_text_has_an_estimate_that_is_not_absurd(text: str) -> None:
    tokens = estimate_text(text)
    assert (tokens > 0) == bool(text)
    assert tokens <= len(text.encode("utf-8", "surrogatepass")) + 1


def test_estimates_add_up_over_pieces_of_a_text() -> None:
    for name in COUNTS:
        text = text_of(name)
        pieces = [text[start : start + 100] for start in range(0, len(text), 100)]
        assert estimate_text(text) == pytest.approx(sum(map(estimate_text, pieces)), rel=0.1)


# --- correction ---


def test_a_ratio_needs_three_pairs_that_say_something() -> None:  # C078
    assert ratio_of([]) == EXACT
    assert ratio_of([(100, 150), (100, 150)]) == EXACT
    assert ratio_of([(100, 150), (100, 150), (10, 900), (100, 0)]) == EXACT
    assert ratio_of([(100, 150)] * 3) == 1500


def test_a_ratio_is_the_median_of_the_latest_pairs() -> None:  # C078
    assert ratio_of([(100, 120)] * 5 + [(100, 5_000)] * 2) == 1200
    assert ratio_of([(100, 300)] * PAIRS + [(100, 90)] * PAIRS) == 900


def test_a_ratio_is_bounded_and_round() -> None:  # C078
    assert ratio_of([(100, 1_000_000)] * 3) == MOST_RATIO
    assert ratio_of([(100_000, 1)] * 3) == LEAST_RATIO
    assert ratio_of([(1000, 1009)] * 3) == EXACT
    assert ratio_of([(1000, 1011)] * 3) == 1020


def test_a_correction_rounds_up() -> None:
    assert corrected(10, EXACT) == 10
    assert corrected(10, 1020) == 11
    assert corrected(0, 1500) == 0
