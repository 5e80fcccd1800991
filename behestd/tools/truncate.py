"""Cut a tool's text to what a model is told: head and tail within a number of lines and of bytes. Pure.

Above it the performer, which first keeps the whole as an artifact, then tells the model the cut text, whose marker
names the artifact. Sizes are bytes of UTF-8, never characters, and no character is split. A line ends with a line feed.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_LINES = 2_000
MAX_BYTES = 50 * 1024
_MIN_LINES = 3
_MIN_BYTES = 512
_NAME_BYTES = 128


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a text is kept. At least 3 lines and 512 bytes, so that the marker fits.

    Raises ValueError for less.
    """

    max_lines: int = MAX_LINES
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        if self.max_lines < _MIN_LINES or self.max_bytes < _MIN_BYTES:
            raise ValueError(f"a text cannot be cut below {_MIN_LINES} lines and {_MIN_BYTES} bytes")


DEFAULTS = Limits()


def is_over(text: str, limits: Limits = DEFAULTS) -> bool:
    """Whether the text must be cut."""
    if _line_count(text) > limits.max_lines:
        return True
    # Four bytes a character at most: most texts are decided without being encoded.
    return len(text) * 4 > limits.max_bytes and len(text.encode(errors="replace")) > limits.max_bytes


def cut(text: str, artifact_id: str, limits: Limits = DEFAULTS) -> str:
    """Keep head and tail of a text that is over its limits, with a marker between; others come back as they are.

    The result, marker included, is within the limits. The marker says how much is left out and where the whole is;
    an empty `artifact_id` says that it was not kept.
    """
    if not is_over(text, limits):
        return text
    data = text.encode(errors="replace")
    lines = _line_count(text)
    room = limits.max_bytes - len(_marker(lines, len(data), artifact_id))
    head_lines = limits.max_lines // 2
    head = data[: _head_end(data, head_lines, room // 2)]
    tail_lines = limits.max_lines - 1 - head_lines
    tail = data[_tail_start(data, tail_lines, room // 2) :]
    left_lines = max(lines - head.count(b"\n") - _line_count(tail.decode()), 0)
    marker = _marker(left_lines, len(data) - len(head) - len(tail), artifact_id)
    return (head.removesuffix(b"\n") + marker + tail).decode()


def _marker(lines: int, size_bytes: int, artifact_id: str) -> bytes:
    whole = f"the whole is artifact {artifact_id[:_NAME_BYTES]}" if artifact_id else "the whole was not kept"
    return f"\n[… {lines} lines, {size_bytes} bytes left out; {whole} …]\n".encode()


def _line_count(text: str) -> int:
    return text.count("\n") + (0 if text.endswith("\n") or not text else 1)


def _head_end(data: bytes, lines: int, size_bytes: int) -> int:
    """Where the head ends: after so many lines, or on the last whole character within the bytes."""
    end = -1
    for _ in range(lines):
        following = data.find(b"\n", end + 1, size_bytes)
        if following < 0:
            return _character_start(data, size_bytes)
        end = following
    return end + 1


def _tail_start(data: bytes, lines: int, size_bytes: int) -> int:
    """Where the tail starts: before so many lines, or on the first whole character within the bytes."""
    lowest = max(len(data) - size_bytes, 0)
    start = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        before = data.rfind(b"\n", lowest, start)
        if before < 0:
            return _character_end(data, lowest)
        start = before
    return start + 1


def _character_start(data: bytes, position: int) -> int:
    while data[position] & 0xC0 == 0x80:
        position -= 1
    return position


def _character_end(data: bytes, position: int) -> int:
    while data[position] & 0xC0 == 0x80:
        position += 1
    return position
