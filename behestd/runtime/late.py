"""Late answers: to calls that ran out of their time, and of servers that come back after their window with a call.

Above: the daemon; `registry` tells who came back with what. Below: the supervisor's drivers and the tool performer. A
call is joined under its key, never executed again, and what its server says settles it if it is of unknown outcome and
nobody did before. What a server says otherwise is dropped and counted; so is an error that it makes of a call that it
was told to stop, as that does not tell how far the call had come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Set
from dataclasses import dataclass

import structlog

from behestd.core.state import Phase
from behestd.errors import BehestError
from behestd.runtime.supervisor import Supervisor
from behestd.runtime.tool_performer import Leftover, ToolPerformer

logger = structlog.get_logger(__name__)

MOST = 1_000
"""Most late answers that are waited for at once."""
_OPEN = (Phase.STARTED, Phase.ASKING, Phase.UNKNOWN)
"""What a call is in while a late answer settles it; STARTED until the end of its time is recorded."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Late answers that settled a call, and those that were dropped."""

    settled: int
    dropped: int


class LateAnswers:
    """Gets late answers. `run` is its life; everything else while that goes on."""

    def __init__(self, supervisor: Supervisor, tools: ToolPerformer) -> None:
        self._supervisor = supervisor
        self._tools = tools
        self._tasks: asyncio.TaskGroup | None = None
        self._joining: set[asyncio.Task[None]] = set()
        self._reading: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._settled = self._dropped = 0

    async def run(self) -> None:
        """Join calls and wait for answers until `close`."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._start(self._take(), self._joining)
            await self._closing.wait()
            self._tasks = None
            for task in (*self._joining, *self._reading):
                task.cancel()

    def close(self) -> None:
        """Let go of what is waited for. Idempotent."""
        self._closing.set()

    def statistics(self) -> Statistics:
        """Counts."""
        return Statistics(self._settled, self._dropped)

    async def _take(self) -> None:
        """Wait for the answers to all attempts that ran out of their time."""
        while True:
            leftover = await self._tools.leftovers.get()
            if len(self._joining) > MOST:
                leftover.late.drop()
            else:
                self._start(self._wait_for(leftover), self._joining)

    async def _wait_for(self, leftover: Leftover) -> None:
        """Wait for one late answer, and settle its call if that is still open for it."""
        try:
            answer = await leftover.late.answer()
        except BehestError as error:
            logger.info("no late answer", run_id=leftover.run_id, call_id=leftover.call_id, reason=error.reason)
            return
        finally:
            leftover.late.drop()
        driver = self._supervisor.driver(leftover.namespace, leftover.run_id)
        call = driver.run.call(leftover.call_id) if driver is not None else None
        is_open = (
            call is not None
            and call.phase in _OPEN
            and call.started is not None
            and (call.started.key, call.attempt) == (leftover.key, leftover.attempt)
        )
        if driver is None or not is_open or answer.is_error:
            self._dropped += 1
            logger.info("late answer dropped", run_id=leftover.run_id, call_id=leftover.call_id)
            return
        driver.tell(await self._tools.settle(driver.run, leftover, answer))
        self._settled += 1

    def came_back(self, namespace: str, server_id: str, held: Set[str]) -> None:
        """Join the calls of unknown outcome that a server which attaches says it holds."""
        for run in self._supervisor.runs() if held and self._tasks is not None else ():
            for call in run.calls if run.created.namespace == namespace else ():
                started = call.started
                is_open = call.phase is Phase.UNKNOWN and started is not None
                if is_open and started is not None and started.endpoint == server_id and started.key in held:
                    self._start(self._settle(namespace, run.id, call.call.id), self._joining)

    def keep(self, work: Coroutine[None, None, None]) -> bool:
        """Keep a read going whoever waits for it, until `close`: whether that is so."""
        if self._tasks is None:
            work.close()
            return False
        self._start(work, self._reading)
        return True

    def _start(self, work: Coroutine[None, None, None], among: set[asyncio.Task[None]]) -> None:
        assert self._tasks is not None
        task = self._tasks.create_task(_guarded(work))
        among.add(task)
        task.add_done_callback(among.discard)

    async def _settle(self, namespace: str, run_id: str, call_id: str) -> None:
        driver = self._supervisor.driver(namespace, run_id)
        signal = await self._tools.join(driver.run, call_id) if driver is not None else None
        if driver is not None and signal is not None:
            driver.tell(signal)


async def _guarded(work: Coroutine[None, None, None]) -> None:
    try:
        await work
    except Exception:
        # The other calls share a task group with this one.
        logger.exception("late answer failed by a fault")
