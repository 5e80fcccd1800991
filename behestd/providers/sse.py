"""Server-sent events, decoded as they come. Pure. Above: adapters of HTTP providers.

Any chopping of the same bytes gives the same events: lines end in LF, CRLF or CR, also when the two bytes come apart,
and text is decoded a whole line at a time, so a character is never cut. Source: WHATWG HTML 9.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"
MAX_EVENT_BYTES = 16 * 1024 * 1024


class TooLong(ValueError):
    """Raised when an event is over its limit of bytes."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event: its name, "message" unless said, and its data."""

    name: str
    data: str


class Decoder:
    """Decodes one stream. An event counts when its blank line has come; what follows the last one is dropped."""

    __slots__ = ("_buffer", "_data", "_has_begun", "_name", "_skips_lf")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: list[str] = []
        self._name = ""
        self._skips_lf = False
        self._has_begun = False

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Take bytes and return the events that they complete. Raises: UnicodeDecodeError, TooLong."""
        if self._skips_lf and chunk:
            # The CR before was a line end by itself; this LF, if it is one, belongs to it.
            self._skips_lf = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        self._skips_lf = self._skips_lf or chunk.endswith(b"\r")
        if not _LINE_END.search(chunk):
            self._buffer += chunk
            self._check(len(self._buffer))
            return []
        *lines, rest = _LINE_END.split(bytes(self._buffer) + chunk)
        self._buffer = bytearray(rest)
        events = []
        for line in lines:
            event = self._line(line)
            if event is not None:
                events.append(event)
        self._check(len(self._buffer) + sum(map(len, self._data)))
        return events

    def _check(self, size_bytes: int) -> None:
        if size_bytes > MAX_EVENT_BYTES:
            raise TooLong(f"event of more than {MAX_EVENT_BYTES} bytes")

    def _line(self, line: bytes) -> ServerEvent | None:
        if not self._has_begun:
            self._has_begun = True
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        # All of it, names and comments too: a spoilt name would make a piece of the answer vanish without a word.
        name, _, value = line.decode().partition(":")
        text = value.removeprefix(" ")
        if name == "data":
            self._data.append(text)
        elif name == "event":
            self._name = text
        return None

    def _dispatch(self) -> ServerEvent | None:
        data, name = self._data, self._name
        self._data, self._name = [], ""
        return ServerEvent(name or "message", "\n".join(data)) if data else None
