"""A server of the OpenAI interface that answers at once, with as many words as the last message says. For the bench.

python -m bench.model_server --ready-fd N
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

WORD = "word "
MODEL = "words"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


def _event(document: dict[str, Any]) -> bytes:
    return _chunk(b"data: " + json.dumps(document).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _piece(delta: dict[str, str], finish: str | None = None) -> bytes:
    return _event({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


_FIRST, _NEXT = _piece({"role": "assistant", "content": ""}), _piece({"content": WORD})


def _last(words: int) -> bytes:
    usage = {"prompt_tokens": 1, "completion_tokens": words, "total_tokens": words + 1}
    return _piece({}, "stop") + _event({"choices": [], "usage": usage}) + _chunk(b"data: [DONE]\n\n") + _chunk(b"")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request and close: each word is an event and a chunk of its own."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    size = int(head.partition("content-length:")[2].split("\r\n")[0])
    said = json.loads(await reader.readexactly(size))["messages"][-1]["content"]
    words = int(said if isinstance(said, str) else said[0]["text"])
    writer.write(_HEAD + _FIRST)
    for _ in range(words):
        writer.write(_NEXT)
        await writer.drain()
    writer.write(_last(words))
    await writer.drain()
    writer.close()


async def main(ready_fd: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    with os.fdopen(ready_fd, "w") as pipe:
        pipe.write(f"127.0.0.1:{port}\n")
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[sys.argv.index("--ready-fd") + 1])))
