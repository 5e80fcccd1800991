"""A service manager as a daemon sees it: the socket of NOTIFY_SOCKET, and what has been told to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

SECONDS = 60.0


class Manager:
    """Takes what daemons tell. Made by `listening`."""

    def __init__(self, address: str, channel: socket.socket) -> None:
        self.address = address
        self.told: list[dict[str, str]] = []
        """Every message so far, by the words on the left of its lines."""
        self._channel = channel

    def count(self, word: str) -> int:
        """Return how many messages had a word."""
        return sum(word in message for message in self.told)

    async def heard(self, word: str, *, times: int = 1) -> dict[str, str]:
        """Wait until that many messages with a word have come in all, and return the newest of them."""
        async with asyncio.timeout(SECONDS):
            while self.count(word) < times:
                data = await asyncio.get_running_loop().sock_recv(self._channel, 4096)
                self.told.append(dict(line.partition("=")[::2] for line in data.decode().splitlines()))
        return [message for message in self.told if word in message][times - 1]


@asynccontextmanager
async def listening() -> AsyncIterator[Manager]:
    """Listen as a service manager does."""
    with TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        address = str(Path(directory) / "notify")
        channel.bind(address)
        channel.setblocking(False)
        yield Manager(address, channel)
