"""A client of bytes: HTTP/2 frames by hand, right and wrong, as no library would send them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
NO_FLAGS = 0
CANCEL = (8).to_bytes(4, "big")
MOST_BYTES = 16_384
"""Largest body of a frame before anything else is agreed."""


def frame(kind: int, flags: int, stream: int, body: bytes = b"", *, length: int | None = None) -> bytes:
    """Make a frame. `length` is what it says of its body, when that is not to be true."""
    said = len(body) if length is None else length
    return said.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body


def fields(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Encode header fields as literals without any table: correct, and as long as they are."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs)


def _text(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    rest, prefix = size - 127, bytearray(b"\x7f")
    while rest >= 128:
        prefix.append(rest % 128 + 128)
        rest //= 128
    prefix.append(rest)
    return bytes(prefix) + text


def request_fields(path: bytes, more: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """The header fields of a gRPC call."""
    usual = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"behest"))
    return fields((*usual, (b"te", b"trailers"), (b"content-type", b"application/grpc"), *more))


def opened(stream: int, path: bytes, *, ends: bool = False) -> bytes:
    """Begin a call."""
    return frame(HEADERS, END_HEADERS | (END_STREAM if ends else 0), stream, request_fields(path))


def message(body: bytes, *, size: int | None = None, compressed: int = 0) -> bytes:
    """Wrap a message as gRPC does. `size` is what it says of it, when that is not to be true."""
    return bytes((compressed,)) + (len(body) if size is None else size).to_bytes(4, "big") + body


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to a daemon."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def send(address: str, pieces: Sequence[bytes], *, look_seconds: float = 0.02) -> bytes:
    """Send bytes piece by piece on a connection of their own, look at what comes back for a moment, and hang up."""
    told = bytearray()
    with contextlib.suppress(ConnectionError):
        async with connected(address) as (reader, writer):
            for piece in pieces:
                writer.write(piece)
                async with asyncio.timeout(5):
                    await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(look_seconds):
                    while more := await reader.read(65_536):
                        told += more
    return bytes(told)
