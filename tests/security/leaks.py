"""Secrets that can be told from everything else, whoever may spill them, and the search for them.

A canary is a word that occurs nowhere else. It is looked for in raw bytes, as it is and as programs write such a word:
in base64 wherever it begins, in hex, in UTF-16. What spills here on purpose are a vendor that answers with the key that
it got, and a tool server that fails with its token.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from behest.v1.tool_pb2 import Tool
from behest.v1.tool_service_pb2 import CallToolRequest, ListToolsResponse

_NUMBERS = json.dumps(
    {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"enum": [1, 2]}, "z": {"pattern": "^[0-9]$"}},
        "additionalProperties": False,
    }
)
MODES = ("good", "denied", "broken", "silent", "cut", "throttled")
"""What the vendor does, by the name of the model."""


def canary(name: str) -> str:
    """Make a word that occurs nowhere else."""
    return f"canary{name}{secrets.token_hex(12)}"


def spellings(word: str) -> Iterator[tuple[str, bytes]]:
    """Every way in which a word could stand in bytes, with its name."""
    raw = word.encode()
    yield "as it is", raw
    yield "in hex", raw.hex().encode()
    yield "in UTF-16", word.encode("utf-16-le")
    for shift, first in enumerate((0, 2, 3)):
        # The characters at both ends also depend on what stands beside the word.
        coded = base64.b64encode(b"\0" * shift + raw).rstrip(b"=")
        yield f"in base64 at {shift}", coded[first:-2]


def found_in(data: bytes, words: Mapping[str, str], place: str) -> list[str]:
    """Where which words stand in some bytes."""
    lowered = data.lower()
    return [
        f"{name} {spelling} in {place}"
        for name, word in words.items()
        for spelling, needle in spellings(word)
        if needle in data or (spelling == "in hex" and needle in lowered)
    ]


def found_under(folder: Path, words: Mapping[str, str], *, without: Iterable[str] = ()) -> list[str]:
    """Where which words stand in the files of a folder, read as bytes, and in the rows of its databases."""
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in without:
            found += found_in(path.read_bytes(), words, str(path.relative_to(folder)))
            if path.suffix in (".db", ".sqlite", ".sqlite3"):
                found += found_in(_rows(path), words, f"the rows of {path.name}")
    return found


def _rows(path: Path) -> bytes:
    """All values of a database: a row that spans pages is in no file in one piece."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        values = (value for table in tables for row in database.execute(f'SELECT * FROM "{table}"') for value in row)
        return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in values)
    finally:
        database.close()


@dataclass
class Vendor:
    """A vendor of models that tells everybody what it was sent."""

    heads: list[str] = field(default_factory=list)
    """The headers of the requests that came."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request by the name of its model, and close."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
            asked = json.loads(await reader.readexactly(int(length[1]) if length else 0))
            self.heads.append(head)
            await self._answer(str(asked["model"]), head, writer)
            if asked["model"] == "silent":
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, mode: str, head: str, writer: asyncio.StreamWriter) -> None:
        echo = json.dumps({"error": {"message": f"bad key: {head}", "type": head, "code": head, "param": head}})
        match mode:
            case "good" | "cut":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
                piece = {"index": 0, "delta": {"role": "assistant", "content": "hello"}, "finish_reason": None}
                writer.write(_event({"id": "1", "choices": [piece]}))
                if mode == "good":
                    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
                    writer.write(_event({"id": "1", "choices": [last]}) + b"data: [DONE]\n\n")
            case "silent":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            case _:
                status = {"denied": 401, "throttled": 429}.get(mode, 500)
                more = f"x-request-id: {head.split(chr(13))[0][:20]}\r\nretry-after: 0\r\n"
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(echo)}\r\n{more}\r\n{echo}".encode())
        await writer.drain()


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "model": "m", **body}).encode() + b"\n\n"


@asynccontextmanager
async def vendor() -> AsyncIterator[tuple[Vendor, int]]:
    """Serve a vendor; gives its port."""
    made = Vendor()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    async with server:
        yield made, server.sockets[0].getsockname()[1]


class Gossip(grpc.GenericRpcHandler):
    """A tool server that fails with the token that it was sent, in every place where a server can say something."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Serve ToolService as far as a daemon needs it."""
        match handler_call_details.method.rpartition("/")[2]:
            case "ListTools":
                return grpc.unary_unary_rpc_method_handler(self._list)
            case "CallTool":
                return grpc.unary_stream_rpc_method_handler(self._call)
        return None

    async def _list(self, request: bytes, context: Any) -> bytes:
        self._hear(context)
        loose = Tool(name="gossip", description="Tells.", input_schema_json='{"type": "object"}')
        strict = Tool(name="strict", description="Takes numbers.", input_schema_json=_NUMBERS)
        return ListToolsResponse(tools=[loose, strict]).SerializeToString()

    async def _call(self, request: bytes, context: Any) -> None:
        token = self._hear(context)
        call = CallToolRequest.FromString(request)
        context.set_trailing_metadata((("x-token", token), ("x-token-bin", token.encode())))
        await context.abort(grpc.StatusCode.INTERNAL, f"cannot with {token} and {call.idempotency_key}: Bearer {token}")

    def _hear(self, context: Any) -> str:
        token = str(dict(context.invocation_metadata()).get("authorization", "")).removeprefix("Bearer ")
        self.tokens.append(token)
        return token


@asynccontextmanager
async def gossip() -> AsyncIterator[tuple[Gossip, int]]:
    """Serve such a server; gives its port."""
    made = Gossip()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((made,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield made, port
    finally:
        await server.stop(0)
