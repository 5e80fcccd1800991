"""A model server in a process of its own that speaks each interface, and spoils answers at a byte as it is told.

Above: tests of faults. It speaks HTTP on a free loopback port. What is to go wrong stands in the conversation, as
`[fault KIND POSITION KEY]`: the first request of a key, or the first that holds a tool's result when KIND ends in
`_late`, or every one when it ends in `_always`, is answered with the fault, all others well. There may be one fault of
the first sort and one that is late. Each request of a key has a number, from 1, which its answer says. A connection
stays as long as nothing goes wrong. `GET /` tells how many requests there were of each key, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

RECORDINGS = Path(__file__).parent / "fixtures" / "faults"
KINDS = ("split", "cut", "end", "stall", "garble", "repeat", "error", "throttle")
"""What can go wrong at a byte. split: nothing, but what stands before it arrives by itself. cut: the connection closes
there. end: the body ends there, in good form. stall: nothing more comes. garble: the byte is none of UTF-8. repeat: it
all begins again there. error: the vendor says that it is overloaded there. throttle: no stream, but status 429 with
Retry-After, its body cut there."""
VENDORS = ("anthropic", "openai", "responses")
"""The interfaces: of either vendor, and the newer one of the second."""
START_SECONDS = 20.0
_FAULT = re.compile(rb"\[fault ([a-z]+)(_late|_always)? (\d+) (\w+)\]")
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_THROTTLED = b"HTTP/1.1 429 X\r\ncontent-type: application/json\r\nretry-after: 0\r\ntransfer-encoding: chunked\r\n\r\n"
_REFUSAL = b'{"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}'
_PATHS = {"messages": "anthropic", "completions": "openai", "responses": "responses"}
_OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


def recorded(vendor: str, name: str, number: int) -> bytes:
    """Return what request `number` is answered with when nothing goes wrong; name is "call" or "text"."""
    return (RECORDINGS / f"{vendor}_{name}.sse").read_bytes().replace(b"~~", b"%02d" % number)


def asking(kind: str, position: int, key: str, late: int | None = None) -> str:
    """Return what to say to a model so that its answer is spoilt, and a later one at `late` as well."""
    more = f"[fault {kind}_late {late} {key}]" if late is not None else ""
    return f"[fault {kind} {position} {key}]{more}"


class FaultServer:
    """Answers requests and counts them by key."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._late: set[str] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests for as long as all is well, and close."""
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection is good for another."""
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode()
        if head.startswith(b"GET"):
            body = json.dumps(self._seen).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
            return True
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1]) if length else 0)
        faults = list(_FAULT.finditer(body))
        if not faults:
            writer.write(b"HTTP/1.1 400 X\r\ncontent-length: 0\r\n\r\n")
            return False
        key = faults[0][4].decode()
        self._seen[key] += 1
        is_late = any(mark in body for mark in (b'"tool_result"', b'"role":"tool"', b'"function_call_output"'))
        is_first = key not in self._late if is_late else self._seen[key] == 1
        if is_late:
            self._late.add(key)
        vendor = _PATHS[path.rpartition("/")[2]]
        data = recorded(vendor, "text" if is_late else "call", self._seen[key])
        hit = next((fault for fault in faults if _hits(fault[2] or b"", is_late, is_first)), None)
        kind, position = (hit[1].decode(), int(hit[3])) if hit is not None else ("", 0)
        await _write(writer, data, kind, position, vendor)
        if kind == "stall":
            await reader.read()
        return not kind


def _hits(when: bytes, is_late: bool, is_first: bool) -> bool:
    return when == b"_always" or (is_first and (when == b"_late") == is_late)


async def _write(writer: asyncio.StreamWriter, data: bytes, kind: str, position: int, vendor: str) -> None:
    """Write a response; a connection that closes without the last chunk was cut."""
    if kind == "throttle":
        writer.write(_THROTTLED + _chunk(_REFUSAL[:position]) + (_chunk(b"") if position >= len(_REFUSAL) else b""))
        await writer.drain()
        return
    before, after = data[:position], data[position:]
    if kind in ("cut", "end", "stall"):
        after = b""
    elif kind == "garble":
        after = b"\xff" + after[1:]
    elif kind == "repeat":
        after = data
    elif kind == "error":
        after = _error(vendor)
    writer.write(_HEAD)
    if before:
        writer.write(_chunk(before))
        await writer.drain()
        # The client reads what there is before there is more.
        await asyncio.sleep(0)
    if after:
        writer.write(_chunk(after))
    if kind not in ("cut", "stall"):
        writer.write(_chunk(b""))
    await writer.drain()


def _error(vendor: str) -> bytes:
    text = json.dumps(_OVERLOADED).encode()
    return (b"" if vendor == "openai" else b"event: error\n") + b"data: " + text + b"\n\n"


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """Start the server in a process of its own, yield its base address, and stop it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            line = (await process.stdout.readline()).decode().strip()
        word, _, url = line.partition(" ")
        if word != "ready":
            raise RuntimeError(f"the fault server said {line!r}")
        yield url
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def main() -> None:
    """Serve until told to stop."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    server = await asyncio.start_server(FaultServer().serve, "127.0.0.1", 0, backlog=512)
    host, port = server.sockets[0].getsockname()
    sys.stdout.write(f"ready http://{host}:{port}\n")
    sys.stdout.flush()
    await stopped.wait()


if __name__ == "__main__":
    asyncio.run(main())
