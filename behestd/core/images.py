"""The size of a picture in pixels, read from the head of its file: PNG, GIF, JPEG. Above: `estimate`. Pure."""

from __future__ import annotations

_PNG = b"\x89PNG\r\n\x1a\n"
_GIF = (b"GIF87a", b"GIF89a")
_JPEG = b"\xff\xd8"
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of JPEG that begin a frame, and with it tell the size."""
_MOST_SEGMENTS = 100


def size_of(data: bytes) -> tuple[int, int] | None:
    """Width and height; None for what is no such picture, or broken."""
    if data.startswith(_PNG) and len(data) >= 24:
        return _sized(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    if data.startswith(_GIF) and len(data) >= 10:
        return _sized(int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little"))
    return _jpeg(data) if data.startswith(_JPEG) else None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    place = 2
    for _ in range(_MOST_SEGMENTS):
        if place + 9 > len(data) or data[place] != 0xFF:
            break
        if data[place + 1] in _FRAMES:
            height, width = data[place + 5 : place + 7], data[place + 7 : place + 9]
            return _sized(int.from_bytes(width, "big"), int.from_bytes(height, "big"))
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def _sized(width: int, height: int) -> tuple[int, int] | None:
    return (width, height) if width and height else None
