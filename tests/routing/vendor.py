"""A model server for tests of routing: real HTTP on loopback, the OpenAI wire format, behaviour by a function.

It runs on the test's own loop. What it does with a request is what the test's `act` says of it; every request is kept.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from behest.v1.model_pb2 import Model, ModelCapabilities
from behestd.providers.openai import OpenAi, OpenAiSettings

ALL = ModelCapabilities(
    chat=True, streaming=True, tools=True, parallel_tool_calls=True, json_object=True, json_schema=True
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with: a status with headers, or words with a finish reason."""

    status: int = 200
    words: tuple[str, ...] = ("fine",)
    finish: str = "stop"
    headers: dict[str, str] = field(default_factory=dict)
    code: str = "server_error"
    hold: asyncio.Event | None = None
    """What is waited for before anything is said."""


FINE = Answer()
DOWN = Answer(503)


@dataclass
class Vendor:
    """A server, what it was asked, and what it says next."""

    url: str = ""
    act: Callable[[int], Answer] = lambda number: FINE
    """What to do with a request, by its number from 1."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    """The bearer token of each request."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by each request."""
    open: int = 0
    most_open: int = 0

    @property
    def requests(self) -> int:
        """How many requests there were."""
        return len(self.asked)

    def says(self, *answers: Answer) -> None:
        """Answer the next requests so, one each, and all later ones as the last."""
        before = len(self.asked)
        self.act = lambda number: answers[min(number - before, len(answers)) - 1]

    def provider(self, name: str = "v", *models: str, capabilities: ModelCapabilities = ALL) -> OpenAi:
        """Make a provider that asks this server."""
        catalogue = [
            Model(id=f"{name}/{model}", provider_id=name, capabilities=capabilities) for model in models or ("m",)
        ]
        return OpenAi(OpenAiSettings(id=name, base_url=self.url, connect_seconds=20.0), catalogue)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close."""
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            key = re.search(rb"authorization: Bearer (\S+)", head, re.IGNORECASE)
            self.keys.append(key[1].decode() if key else "")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            self.asked.append(json.loads(await reader.readexactly(int(length[1]) if length else 0)))
            answer = self.act(len(self.asked))
            self.arrived.set()
            if answer.hold is not None:
                await answer.hold.wait()
            writer.write(_response(answer))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


def _response(answer: Answer) -> bytes:
    if answer.status != 200:
        body = json.dumps({"error": {"code": answer.code, "message": "as the test said"}}).encode()
        kind = "application/json"
    else:
        body = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in _chunks(answer))
        body += b"data: [DONE]\n\n"
        kind = "text/event-stream"
    headers = {"content-type": kind, "content-length": str(len(body)), "connection": "close", **answer.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {answer.status} X\r\n{lines}\r\n".encode() + body


def _chunks(answer: Answer) -> list[dict[str, Any]]:
    said = [{"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in answer.words]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": answer.finish}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}
    return [{"id": "x", "object": "chat.completion.chunk", "model": "m", **each} for each in (*said, end, usage)]


@asynccontextmanager
async def vendor() -> AsyncIterator[Vendor]:
    """Serve on a free port."""
    made = Vendor()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, backlog=512)
    host, port = server.sockets[0].getsockname()
    made.url = f"http://{host}:{port}"
    try:
        yield made
    finally:
        server.close()
