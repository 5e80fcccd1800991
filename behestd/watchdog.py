"""Signs of life for the service manager, each behind real progress, and the stack of what stands in the way.

Above: `daemon`, which runs it for as long as the process lives. Below: `notify` and the log. A sign of life says that
the event loop has turned and that a commit of this very moment was flushed and read back. So a loop that is blocked or
a store that hangs gets none, and the service manager ends the process (SIGABRT) and starts another. Before that the
stack of every thread is on stderr: faulthandler writes it from a thread of its own, which needs no interpreter.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import structlog

from behestd.errors import StorageFailed
from behestd.failpoint import failpoint
from behestd.log.log import Log
from behestd.log.store import Change, Full, Put, Record
from behestd.notify import ServiceManager

logger = structlog.get_logger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
"""Makes a task."""

STALL_SECONDS = 5.0
"""How long the loop may be blocked before its stack is written."""
TURN_SECONDS = 1.0
"""How often the loop is looked at."""
LATE_SECONDS = 1.0
"""How late a turn is that is worth a line."""
EXTEND_SECONDS = 15.0
"""How much time a start or a stop that takes long asks for, again and again."""
LONGEST_SECONDS = 900.0
"""How long it asks; then the timeouts of the service manager hold."""
KIND = "watchdog"
"""Kind of the one record that is written, in no namespace."""


class Watchdog:
    """Watches the loop it runs on, and the log once it serves. Entered, it watches; left, it has stopped."""

    def __init__(self, manager: ServiceManager, spawn: Spawn, *, stall_seconds: float = STALL_SECONDS) -> None:
        self._manager = manager
        self._spawn = spawn
        self._stall_seconds = stall_seconds
        if manager.watchdog_seconds is not None:
            # The stack must be there before the service manager ends the process.
            self._stall_seconds = min(stall_seconds, manager.watchdog_seconds / 2)
        self._turn_seconds = min(TURN_SECONDS, self._stall_seconds / 4)

    async def __aenter__(self) -> Self:
        """Have the stacks of all threads written at a stall and at a fatal signal, and ask for time to start."""
        faulthandler.enable()
        self._turning = self._spawn(self._turn())
        self._manager.status("starting")
        self._phase = self._spawn(self._extend())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._turning.cancel()
        self._phase.cancel()
        faulthandler.cancel_dump_traceback_later()

    def serving(self, log: Log, describe: Callable[[], str]) -> None:
        """Give signs of life from now on. `describe` says to people what the daemon does."""
        self._phase.cancel()
        if self._manager.watchdog_seconds is not None:
            self._phase = self._spawn(self._keep(log, describe, self._manager.watchdog_seconds / 2))

    def ending(self, status: str) -> None:
        """Tell that the daemon stops, and ask for time to drain."""
        self._phase.cancel()
        self._manager.stopping(status)
        self._phase = self._spawn(self._extend())

    async def _turn(self) -> None:
        """Have the stacks written when the loop is blocked, and tell when it goes on."""
        while True:
            faulthandler.dump_traceback_later(self._stall_seconds)
            before = time.monotonic()
            failpoint("loop.block")
            await asyncio.sleep(self._turn_seconds)
            late = time.monotonic() - before - self._turn_seconds
            if late > LATE_SECONDS:
                logger.warning("event loop was blocked", seconds=round(late, 3))

    async def _keep(self, log: Log, describe: Callable[[], str], pause: float) -> None:
        """Give signs of life, two a period, each after a commit that was read back."""
        while True:
            try:
                async with asyncio.timeout(pause):
                    await prove(log)
            except TimeoutError:
                logger.error("store does not answer", seconds=pause)
                faulthandler.dump_traceback(all_threads=True)
                continue
            except StorageFailed:
                # Either the daemon is about to end with a code of its own, or the service manager ends it.
                logger.error("store does not give back what was committed")
                return
            self._manager.alive(describe())
            await asyncio.sleep(pause)

    async def _extend(self) -> None:
        """Ask for more time, for as long as the loop turns and that is not for ever."""
        end = time.monotonic() + LONGEST_SECONDS
        while time.monotonic() < end:
            self._manager.extend(EXTEND_SECONDS)
            await asyncio.sleep(EXTEND_SECONDS / 3)


async def prove(log: Log) -> None:
    """Commit a record and read it back; a full disk is an answer. Raises StorageFailed when it reads something else."""
    body = os.urandom(16)
    put = Put(Record("", KIND, KIND, body))
    if isinstance(await log.commit(Change(puts=(put,))), Full):
        return
    found = await log.store.record("", KIND, KIND, time.time_ns())
    if found is None or found.body != body:
        raise StorageFailed
