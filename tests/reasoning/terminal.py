"""A terminal for a command: its end of a pseudo terminal, and the screen that it draws."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import sysconfig
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

BEHEST = Path(sysconfig.get_path("scripts")) / "behest"
SECONDS = 40.0
# What the live view obeys: so many lines up, and everything from there on away.
_UP_AND_CLEAR = re.compile(r"\x1b\[(\d+)F\x1b\[0J")


class Terminal:
    """A command in a terminal. Made by `terminal`."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self._process = process
        self._changed = asyncio.Event()
        self._written = ""
        self._rest = b""
        self._is_over = False
        self._loop = asyncio.get_running_loop()
        self._master = master
        self._loop.add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:
            # Nobody has the other end any more.
            data = b""
        if not data:
            self._is_over = True
            self._loop.remove_reader(self._master)
        self._rest += data
        whole = self._rest.decode(errors="ignore")
        self._rest = self._rest[len(whole.encode()) :]
        self._written += whole
        self._changed.set()

    @property
    def screen(self) -> list[str]:
        """The lines that are to be seen."""
        lines: list[str] = []
        end = 0
        written = self._written.replace("\r\n", "\n")
        for match in _UP_AND_CLEAR.finditer(written):
            lines += written[end : match.start()].splitlines()
            del lines[len(lines) - int(match[1]) :]
            end = match.end()
        return [*lines, *written[end:].splitlines()]

    async def shows(self, *texts: str) -> list[str]:
        """Wait until the screen holds each text, in this order; give its lines."""
        pattern = re.compile(".*".join(map(re.escape, texts)), re.DOTALL)
        async with asyncio.timeout(SECONDS):
            while not pattern.search("\n".join(self.screen)):
                assert not self._is_over, self.screen
                self._changed.clear()
                await self._changed.wait()
        return self.screen

    def interrupt(self) -> None:
        """Do what Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    async def end(self) -> int:
        """Wait until the command has ended. Gives the exit code."""
        async with asyncio.timeout(SECONDS):
            return await self._process.wait()


@asynccontextmanager
async def terminal(address: str, *arguments: str, lines: int = 40, columns: int = 120) -> AsyncIterator[Terminal]:
    """Run `behest` against a daemon in a terminal of its own, until the block ends."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {**os.environ, "BEHEST_ADDRESS": address, "LINES": str(lines), "COLUMNS": str(columns)}
    process = await asyncio.create_subprocess_exec(
        BEHEST, *arguments, stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    made = Terminal(process, master)
    try:
        yield made
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)
