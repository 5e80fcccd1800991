"""A real HTTP server on a free loopback port that replays bytes as told, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parent / "fixtures"
SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True)
class Reply:
    """One response. Each piece travels as an HTTP chunk of its own, so that the client reads it by itself."""

    pieces: tuple[bytes, ...] = ()
    status: int = 200
    content_type: str = SSE
    headers: tuple[tuple[str, str], ...] = ()
    ending: str = "whole"
    """whole: a well-formed end. cut: the connection closes inside the body. eof: a body without length ends by close.
    hang: nothing more comes. reset: the connection closes before a status line."""


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Replay:
    """The server's memory: replies still to give (the last one again and again), requests so far."""

    base_url: str
    replies: list[Reply]
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client has left a hanging response."""

    def next_reply(self) -> Reply:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def fixture(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def stream(name: str, **fields: Any) -> Reply:
    return Reply((fixture(name),), **fields)


def whole(name: str) -> Reply:
    return Reply((fixture(name),), content_type=JSON)


def events(*documents: object, **fields: Any) -> Reply:
    """Build a stream of these documents; a string goes out as it is."""
    texts = [each if isinstance(each, str) else json.dumps(each) for each in documents]
    return Reply(("".join(f"data: {text}\n\n" for text in texts).encode(),), **fields)


def error(status: int, code: str = "", message: str = "no", **headers: str) -> Reply:
    """Build a refusal; `_` in a header's name stands for `-`."""
    body = json.dumps({"error": {"message": message, "type": "some_error", "code": code or None}})
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Reply((body.encode(),), status=status, content_type=JSON, headers=named)


def split(data: bytes, *positions: int) -> tuple[bytes, ...]:
    edges = [0, *positions, len(data)]
    return tuple(data[start:end] for start, end in pairwise(edges) if end > start)


@asynccontextmanager
async def replaying(*replies: Reply) -> AsyncIterator[Replay]:
    """Serve the replies, in order, then the last one for ever."""
    replay = Replay("", list(replies))
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        replay.connections += 1
        try:
            while await _serve_one(replay, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    replay.base_url = f"http://{host}:{port}/v1"
    try:
        yield replay
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        async with asyncio.timeout(30):
            await server.wait_closed()
            # One more turn of the loop lets the transports say goodbye.
            await asyncio.sleep(0)


async def _serve_one(replay: Replay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request; whether the connection may serve another one."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    raw = {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in head[1:] if line}
    replay.asked.append(Asked(head[0].split(" ")[1], raw, json.loads(body)))
    reply = replay.next_reply()
    if reply.ending == "reset":
        return False
    by_close = reply.ending == "eof"
    lines = [f"HTTP/1.1 {reply.status} X", f"content-type: {reply.content_type}"]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    lines.append("connection: close" if by_close else "transfer-encoding: chunked")
    writer.write("\r\n".join([*lines, "", ""]).encode())
    for piece in reply.pieces:
        writer.write(piece if by_close else _chunk(piece))
    if reply.ending == "whole":
        writer.write(_chunk(b""))
    await writer.drain()
    if reply.ending == "hang":
        await reader.read()
        replay.gone.set()
    return reply.ending == "whole"


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)
