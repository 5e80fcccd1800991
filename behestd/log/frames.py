"""The wire bytes of `WatchRunResponse.events`: built once at the append, stored, joined and cut, never parsed.

Each event stands there as tag, length and message, so that any concatenation of chunks is itself a valid frame. Above
are the log and the watch RPCs; below only bytes. A malformed length raises ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from behestd.log.store import Chunk

_BYTES = tuple(bytes((number,)) for number in range(0x100))
TAG = b"\x0a"
"""Field 1, length-delimited."""


def varint(number: int) -> bytes:
    """Encode a non-negative number as protobuf does."""
    if number < 0x80:
        return _BYTES[number]
    if number < 0x4000:
        return _BYTES[number & 0x7F | 0x80] + _BYTES[number >> 7]
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def tag(number: int) -> bytes:
    """Encode the tag of a length-delimited field."""
    return varint(number << 3 | 2)


def frame(events: Iterable[bytes]) -> bytes:
    """Put tag and length before each serialized event."""
    parts: list[bytes] = []
    for event in events:
        parts += (TAG, varint(len(event)), event)
    return b"".join(parts)


def chunk(first_sequence: int, events: Sequence[bytes]) -> Chunk:
    """Build the chunk of one commit from its serialized events, at least one."""
    return Chunk(first_sequence, first_sequence + len(events) - 1, frame(events))


def _spans(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (start of the tag, start, end) of each event."""
    at, size = 0, len(data)
    while at < size:
        start = at
        if data[at] != TAG[0]:
            raise ValueError(f"no event begins at byte {at}")
        at += 1
        length = shift = 0
        while True:
            if at >= size or shift > 28:
                raise ValueError(f"the length of the event at byte {start} is damaged")
            byte = data[at]
            at += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        if at + length > size:
            raise ValueError(f"the event at byte {start} is cut")
        yield start, at, at + length
        at += length


def split(data: bytes) -> list[bytes]:
    """Return the serialized events, without tag and length."""
    return [data[start:end] for _, start, end in _spans(data)]


def skip(data: bytes, count: int) -> bytes:
    """Return the frame without its first `count` events, empty when it has no more."""
    if count <= 0:
        return data
    for index, (tag, _, _) in enumerate(_spans(data)):
        if index == count:
            return data[tag:]
    return b""


def trim(stored: Chunk, after_sequence: int) -> bytes:
    """Return the events of a chunk above a sequence: all of it, unless a watcher resumed in its middle."""
    return skip(stored.data, after_sequence - stored.first_sequence + 1)


def join(stored: Sequence[Chunk], after_sequence: int) -> bytes:
    """Join neighbouring chunks to one frame of the events above a sequence. One whole chunk is not copied."""
    if not stored:
        return b""
    first = trim(stored[0], after_sequence)
    return first if len(stored) == 1 else b"".join((first, *(later.data for later in stored[1:])))
