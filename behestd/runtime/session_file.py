"""The file of a session: JSON lines, each a flat object of texts, numbers and base64, the last with the hash of all.

Above: `exporting`, which writes it, and `importing`, which believes nothing of it. A file holds a head, the sessions
(that of the conversation first), for each its runs with their logs commit by commit, the messages that are in no log,
scratch data, artifacts with their contents, and an end. Events stand in it as the bytes that were stored, so that their
chain of hashes holds. The same session gives the same file, byte by byte.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from behestd.errors import InvalidRequest, TooLarge

NAME = "session"
FORMAT = 1
LINE_BYTES = 32 * 1024 * 1024
"""Longest line: a commit of the largest log goes into one."""
PIECE_BYTES = 192 * 1024
"""Bytes of a content in one line."""
MAX_NUMBER = (1 << 62) - 1
_REASON = "SESSION_FILE_INVALID"

Line = Mapping[str, str | int]
Body = TypeVar("Body", bound=Message)


class FileInvalid(InvalidRequest):
    """Raised when a file is none of a session, or damaged, or holds what no daemon would write."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__("chunk", f"line {line}: {problem}", reason=_REASON)
        self.metadata["line"] = str(line)


class Lines:
    """Writes lines and counts them for the end."""

    def __init__(self) -> None:
        self._count = 0
        self._digest = hashlib.sha256()

    def line(self, **fields: str | int | bytes) -> bytes:
        """Encode a line."""
        shown = {
            name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for name, value in fields.items()
        }
        data = json.dumps(shown, separators=(",", ":")).encode() + b"\n"
        self._count += 1
        self._digest.update(data)
        return data

    def end(self) -> bytes:
        """Encode the last line."""
        return self.line(kind="end", lines=self._count, sha256=self._digest.hexdigest())


class Reader:
    """Reads the lines of a file that comes in pieces, one ahead. Raises FileInvalid and TooLarge."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self._at = 0
        self._digest = hashlib.sha256()
        self._next: Line | None = None
        self.number = 0
        """Of the line that was taken last."""
        self.content = hashlib.sha256()
        """Of all bytes that came."""

    async def kind(self) -> str:
        """The kind of the next line. Nothing may follow the end, and a file without one is cut."""
        if self._next is None:
            self._next = await self._read()
        return text(self, self._next, "kind")

    async def take(self, kind: str) -> Line:
        """Take the next line, which must be of a kind."""
        found = await self.kind()
        if found != kind or self._next is None:
            raise FileInvalid(self.number, f"a line of kind {found[:32]!r}, not {kind}")
        line, self._next = self._next, None
        return line

    async def finish(self) -> None:
        """Check the last line against all before it, and that nothing follows."""
        line = await self.take("end")
        if (line.get("lines"), line.get("sha256")) != (self.number - 1, self._digest.hexdigest()):
            raise FileInvalid(self.number, "the file is not the one that was written")
        more = await anext(self._pieces, b"")
        if self._at < len(self._rest) or more:
            raise FileInvalid(self.number, "something follows the end")

    async def _read(self) -> Line:
        end = self._rest.find(b"\n", self._at)
        if end < 0:
            parts = [self._rest[self._at :]]
            size_bytes = len(parts[0])
            while end < 0:
                piece = await anext(self._pieces, b"")
                if not piece:
                    raise FileInvalid(self.number + 1, "the file is cut")
                self.content.update(piece)
                end = piece.find(b"\n")
                if size_bytes + (end if end >= 0 else len(piece)) > LINE_BYTES:
                    raise TooLarge("chunk", size_bytes + len(piece), LINE_BYTES)
                parts.append(piece)
                size_bytes += len(piece)
            self._rest, self._at = b"".join(parts), 0
            end += size_bytes - len(parts[-1])
        line, self._at = self._rest[self._at : end], end + 1
        self.number += 1
        found = self._parsed(line)
        if found.get("kind") != "end":
            self._digest.update(line + b"\n")
        return found

    def _parsed(self, line: bytes) -> Line:
        # Flat by its form, before anything parses it: no depth to fear.
        if line.count(b"{") != 1 or b"[" in line:
            raise FileInvalid(self.number, "no flat JSON object")
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise FileInvalid(self.number, "no JSON object") from None
        if not isinstance(found, dict) or not all(type(value) in (str, int) for value in found.values()):
            raise FileInvalid(self.number, "no object of texts and numbers")
        return found


# --- fields ---


def text(reader: Reader, line: Line, name: str) -> str:
    """A text of a line."""
    value = line.get(name)
    if not isinstance(value, str):
        raise FileInvalid(reader.number, f"{name} is no text")
    return value


def number(reader: Reader, line: Line, name: str, most: int = MAX_NUMBER) -> int:
    """A number of a line, from 0."""
    value = line.get(name)
    if not isinstance(value, int) or not 0 <= value <= most:
        raise FileInvalid(reader.number, f"{name} is no number from 0 to {most}")
    return value


def data(reader: Reader, line: Line, name: str = "data") -> bytes:
    """Bytes of a line."""
    try:
        return base64.b64decode(text(reader, line, name), validate=True)
    except (binascii.Error, ValueError):
        raise FileInvalid(reader.number, f"{name} is no base64") from None


def message(reader: Reader, line: Line, kind: type[Body]) -> Body:
    """A message of a line."""
    try:
        return kind.FromString(data(reader, line))
    except DecodeError:
        raise FileInvalid(reader.number, f"no {kind.DESCRIPTOR.name}") from None
