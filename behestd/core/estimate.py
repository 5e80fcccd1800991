"""Tokens estimated before anybody has counted them, by what kind of characters a text is made of.

Above: `window`, which fits a conversation into a model, budgets, and adapters whose provider tells no usage. The
weights were fitted to a tokenizer of today (docs/context.md states the error). What a model really counts is learned
per model: `ratio_of` makes a correction of pairs of estimate and report, and `corrected` applies it. Pure, and quick: a
few passes over the bytes of a text, none of them in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import ImagePart, Message, Part
from behest.v1.tool_pb2 import Tool
from behestd.core.images import size_of

EXACT = 1000
"""The ratio of a model whose estimates are right, in thousandths."""
LEAST_RATIO, MOST_RATIO = 260, 4000
RATIO_STEP = 20
"""Ratios are rounded to it, so that a conversation is not cut elsewhere at each turn."""
PAIRS = 15
"""How many of the latest pairs count."""
PAIRS_NEEDED = 3
SMALLEST_PAIR = 32
"""Estimates below it say little: what a provider adds to each request weighs too much."""

MESSAGE_TOKENS = 4
"""What each message costs beside its parts."""
CALL_TOKENS = 8
TOOL_TOKENS = 8
TILE_PIXELS, TILE_TOKENS, IMAGE_TOKENS, MOST_TILES = 512, 170, 85, 8
UNKNOWN_IMAGE_TOKENS = IMAGE_TOKENS + 6 * TILE_TOKENS
FILE_TOKENS = 2_000
"""Of a file or a sound that is named and not seen."""

_UNIT = 1000
_WORD, _SIGN_RUN, _DIGIT = 210, 740, 700
_DENSE = 7
"""One sign in so many characters is dense."""
_TOOL_BYTES_PER_TOKEN = 4

_WORDS = bytes(code for code in range(128) if chr(code).isalpha() or chr(code).isspace())
_DIGITS = b"0123456789"
_SIGNS = bytes(
    ord("a") if chr(code).isalnum() or chr(code).isspace() or code > 127 else ord("p") for code in range(256)
)

# Weights of characters beyond ASCII by the high byte of their UTF-16 code: first high byte, thousandths of a token.
_BLOCKS = (
    (0x00, 600),  # Latin with marks, Greek
    (0x04, 280),  # Cyrillic
    (0x05, 360),  # Armenian, Hebrew, Arabic, scripts of India and South-East Asia
    (0x11, 860),  # Hangul, Ethiopic and others
    (0x1E, 1000),  # signs
    (0x30, 860),  # kana, Han, Hangul
    (0xD8, 1000),  # halves of what is beyond: emoji, rare Han
    (0xFF, 860),  # full width
)


def _weight(high: int) -> int:
    return next(weight for first, weight in reversed(_BLOCKS) if first <= high)


_WEIGHTS = tuple(
    (weight, bytes(high for high in range(256) if _weight(high) != weight))
    for weight in sorted({weight for _, weight in _BLOCKS})
)
"""For each weight, the high bytes that do not have it: what deleting them leaves is counted."""


def estimate_text(text: str) -> int:
    """Tokens of a text, estimated."""
    if not text:
        return 0
    if text.isascii():
        return _tokens(_ascii(text.encode()))
    plain = text.encode("ascii", "ignore")
    high = text.encode("utf-16-be", "surrogatepass")[::2]
    # Characters of ASCII are among the high bytes as zeros, and are counted for themselves.
    beyond = sum(weight * len(high.translate(None, others)) for weight, others in _WEIGHTS)
    return _tokens(_ascii(plain) + beyond - _BLOCKS[0][1] * len(plain))


def _ascii(data: bytes) -> int:
    """Thousandths of tokens of a text of ASCII: letters and blanks, digits, runs of signs."""
    rest = data.translate(None, _WORDS)
    signs = len(rest.translate(None, _DIGITS)) if rest else 0
    runs = signs * 4 // 5
    if signs * _DENSE > len(data):
        # JSON and the like: many signs stand together and are one token, so they are looked at in their places.
        runs = (b" " + data).translate(_SIGNS).count(b"ap")
    return _WORD * (len(data) - len(rest)) + _SIGN_RUN * runs + _DIGIT * (len(rest) - signs)


def _tokens(thousandths: int) -> int:
    return -(-thousandths // _UNIT)


def estimate(message: Message) -> int:
    """Tokens of a message, estimated."""
    tokens = MESSAGE_TOKENS
    for part in message.parts:
        tokens += estimate_text(part.text.text) if part.HasField("text") else _part(part)
    return tokens


def _part(part: Part) -> int:
    """Tokens of a part that is no text, or a text within a result."""
    kind = part.WhichOneof("kind")
    if kind == "text":
        return estimate_text(part.text.text)
    if kind == "tool_call":
        call = part.tool_call
        return CALL_TOKENS + estimate_text(call.name) + estimate_text(call.arguments_json)
    if kind == "tool_result":
        return CALL_TOKENS + sum(map(_part, part.tool_result.parts))
    if kind == "json":
        return estimate_text(part.json.json)
    if kind == "reasoning":
        return estimate_text(part.reasoning.text)
    if kind == "image":
        return estimate_image(part.image)
    return FILE_TOKENS if kind else 0


def estimate_image(image: ImagePart) -> int:
    """Tokens of a picture: a base and its tiles of 512 × 512 pixels, 8 at most; 6 tiles where its size is not known."""
    size = size_of(image.data) if image.data else None
    if size is None:
        return UNKNOWN_IMAGE_TOKENS
    tiles = -(-size[0] // TILE_PIXELS) * -(-size[1] // TILE_PIXELS)
    return IMAGE_TOKENS + TILE_TOKENS * min(tiles, MOST_TILES)


def estimate_tool(tool: Tool) -> int:
    """Tokens of a tool's definition, estimated: schemas are so much alike that their size tells enough."""
    size = len(tool.name) + len(tool.description) + len(tool.input_schema_json)
    return TOOL_TOKENS + -(-size // _TOOL_BYTES_PER_TOKEN)


def estimate_chat(chat: Chat) -> int:
    """Tokens that a call sends, estimated."""
    return sum(map(estimate, chat.messages)) + sum(map(estimate_tool, chat.tools))


# --- what a model really counts ---


def corrected(tokens: int, ratio: int) -> int:
    """An estimate as a model counts; `ratio` in thousandths."""
    return tokens if ratio == EXACT else -(-tokens * ratio // EXACT)


def ratio_of(pairs: Sequence[tuple[int, int]]) -> int:
    """The ratio of a model, in thousandths: the median of its latest pairs of estimate and report, within bounds.

    EXACT until there are three pairs that say something.
    """
    ratios = sorted(reported * EXACT // estimated for estimated, reported in _telling(pairs)[-PAIRS:])
    if len(ratios) < PAIRS_NEEDED:
        return EXACT
    ratio = ratios[len(ratios) // 2]
    bounded = min(max(ratio, LEAST_RATIO), MOST_RATIO)
    return (bounded + RATIO_STEP // 2) // RATIO_STEP * RATIO_STEP


def _telling(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    return [pair for pair in pairs if pair[0] >= SMALLEST_PAIR and pair[1] > 0]
