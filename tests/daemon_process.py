"""A real `behestd` in a process of its own, that can be ended in any way and started again where it was.

Above: the demos and the tests whose subject is the process. Every start takes the
same loopback port, which nobody else gets, and the same data, as a restarted service does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests import ports

START_SECONDS = 20.0
STOP_SECONDS = 10.0


class DaemonProcess:
    """A daemon that keeps its data, its configuration and its log in a directory. Made by `running`."""

    def __init__(
        self, home: Path, *, config: str = "", env: Mapping[str, str] | None = None, address: str = ""
    ) -> None:
        self.home = home
        self.address = address or ports.address()
        self._config = config
        self._env = {**os.environ, **(env or {})}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def env(self) -> Mapping[str, str]:
        """The environment that it is started with."""
        return self._env

    @property
    def log(self) -> str:
        """What it has written so far."""
        path = self.home / "behestd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def is_running(self) -> bool:
        """Whether a process was started that has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it and wait until it serves. Raises RuntimeError, with the end of its log, when it does not."""
        self.home.mkdir(parents=True, exist_ok=True)
        config = self.home / "behestd.toml"
        config.write_text(self._config)
        read_end, write_end = os.pipe()
        command = [sys.executable, "-m", "behestd", "serve", "--config", str(config), "--listen", self.address]
        command += ["--data-dir", str(self.home / "data"), "--ready-fd", str(write_end)]
        with (self.home / "behestd.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, pass_fds=(write_end,), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=self._env
            )
        os.close(write_end)
        with os.fdopen(read_end) as ready:
            async with asyncio.timeout(START_SECONDS):
                address = (await asyncio.to_thread(ready.readline)).strip()
        if not address:
            raise RuntimeError(f"behestd ended with {await self._process.wait()}:\n{self.log[-4000:]}")
        self.address = address

    async def ended(self) -> int:
        """Wait until it has ended by itself. Gives the exit code."""
        assert self._process is not None
        return await self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> int:
        """End it at once, as a crash does. Gives the exit code."""
        return await self._end(signal.SIGKILL)

    async def terminate(self) -> int:
        """Ask it to stop, and wait until it has drained. Gives the exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        process = self._process
        assert process is not None
        if process.returncode is None:
            process.send_signal(number)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                return await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise


@asynccontextmanager
async def running(
    home: Path, *, config: str = "", env: Mapping[str, str] | None = None, address: str = ""
) -> AsyncIterator[DaemonProcess]:
    """Start a daemon, and stop it in the end."""
    daemon = DaemonProcess(home, config=config, env=env, address=address)
    try:
        await daemon.start()
        yield daemon
    finally:
        if daemon.is_running:
            await daemon.terminate()
