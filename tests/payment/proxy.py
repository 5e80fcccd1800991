"""A TCP proxy that cuts or holds a link where a test says: at the first bytes that hold a mark, which it keeps back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK_BYTES = 64 * 1024
_OVERLAP_BYTES = 64
_TURNS = 5
"""Of the loop, which a connection that was accepted needs to get its handler."""


class Proxy:
    """Passes bytes on between those who connect and one address. Made by `proxy`."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._mark = b""
        self._hold = b""
        self._opened = asyncio.Event()
        self._opened.set()
        self._links: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self.address = ""
        self.cuts = 0
        self.was_cut = asyncio.Event()

    def cut_at(self, mark: bytes) -> None:
        """Cut all links when a mark comes by, in either direction, once."""
        self._mark = mark
        self.was_cut.clear()

    def hold_at(self, mark: bytes) -> None:
        """Hold back what comes in a direction from a mark on, once, until `release`."""
        self._hold = mark

    def release(self) -> None:
        """Pass on what was held back."""
        self._opened.set()

    def cut(self) -> None:
        """Cut all links now, with a reset."""
        self.cuts += 1
        for writer in self._links:
            writer.transport.abort()
        self._links.clear()
        self.was_cut.set()

    async def close(self) -> None:
        """Cut all links and wait until nothing of them is left."""
        self._is_closed = True
        self.release()
        self.cut()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        if self._is_closed:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            there, back = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._links |= {writer, back}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, back))
                tasks.create_task(self._pass(there, writer))
        finally:
            self._links -= {writer, back}
            for end in (writer, back):
                end.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        seen = b""
        with contextlib.suppress(ConnectionError):
            while data := await source.read(_CHUNK_BYTES):
                seen = seen[-_OVERLAP_BYTES:] + data
                if self._mark and self._mark in seen:
                    self._mark = b""
                    self.cut()
                    return
                if self._hold and self._hold in seen:
                    self._hold = b""
                    self._opened.clear()
                    await self._opened.wait()
                sink.write(data)
                await sink.drain()
        sink.transport.abort()


@asynccontextmanager
async def proxy(target: str) -> AsyncIterator[Proxy]:
    """Listen on a free port and pass on to a target."""
    made = Proxy(target)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    made.address = f"{host}:{port}"
    try:
        yield made
    finally:
        # A connection that is being accepted when its server closes is never closed by asyncio: none is, from here on.
        for listening in server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        await made.close()
        server.close()
