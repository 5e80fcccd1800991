"""The life of the daemon: it starts its components, is ready, and drains and stops them when it is told to.

Above: `cli`, which gives a plan and takes the exit code. Below: `composition`, which says what a daemon is made of, and
`lifecycle`, which keeps the order. `Daemon` is an async context manager, so that a test has the same daemon in its own
process.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import structlog

from behestd import enums
from behestd.components import EDGE, HOUSE, LOG, ROOMS, Life, Rooms
from behestd.composition import Composition
from behestd.errors import BehestError
from behestd.lifecycle import Lifecycle
from behestd.log.log import Log
from behestd.notify import ServiceManager
from behestd.plan import Plan
from behestd.reload import Outcome, Reloading
from behestd.runtime.clock import Clock, SystemClock
from behestd.runtime.house import House
from behestd.service.scopes import Load
from behestd.service.server import Edge
from behestd.watchdog import Watchdog

__all__ = ["Daemon", "Plan", "serve"]

logger = structlog.get_logger(__name__)

EXIT_OK = 0
EXIT_STORE_FAILED = 70
GC_THRESHOLDS = (20_000, 20, 50)
"""What a run allocates dies young and without cycles; the default of 700 looks at it dozens of times."""
ENDING = (signal.SIGTERM, signal.SIGINT)
SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter while another waits for it. With the default of 5 ms a busy loop holds up the
log's writer at each of its statements."""


class Daemon:
    """A running daemon: entered, it serves; left, it has drained and closed."""

    def __init__(self, plan: Plan, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._tasks = asyncio.TaskGroup()
        self._stopping = asyncio.Event()
        self._has_failed = False
        self._drain_seconds: float | None = None
        """None: as planned."""
        self._drain_end_ns = 0
        self.reloading = Reloading(plan, self._clock.now_ns)
        life = Life(
            fail=self._fail,
            drain=self.drain,
            statuses=lambda: self.lifecycle.statuses(),
            probes=lambda: self.lifecycle.probes(),
            problems=lambda: self.lifecycle.problems(),
            note=lambda name, problem: self.lifecycle.note(name, problem),
            reloading=self.reloading,
        )
        self.lifecycle = Lifecycle(Composition(plan, self._clock, life).components(), self._clock.now_ns)

    async def __aenter__(self) -> Self:
        """Open, recover and serve. Raises what opening raises, with everything undone."""
        await self._tasks.__aenter__()
        try:
            await self.lifecycle.start(self._tasks.create_task)
        except BaseException:
            await self._tasks.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drain and close. Raises what a task raised that ended the daemon."""
        try:
            await self.lifecycle.stop(0.0 if self._has_failed else self._patience_seconds)
        finally:
            await self._tasks.__aexit__(None, None, None)

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self.reloading.plan

    @property
    def log(self) -> Log:
        """The log of all runs."""
        return self.lifecycle[LOG]

    @property
    def house(self) -> House:
        """What the rooms share."""
        return self.lifecycle[HOUSE]

    @property
    def rooms(self) -> Rooms:
        """The rooms of the runtime."""
        return self.lifecycle[ROOMS]

    @property
    def edge(self) -> Edge:
        """The listeners."""
        return self.lifecycle[EDGE]

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, with the ports that were found."""
        return self.edge.addresses

    def describe(self) -> str:
        """Say to people what it does."""
        runs, watches = len(self.rooms.supervisor.runs()), self.edge.admission.statistics().in_flight[Load.WATCH]
        return f"{'stopping' if self._stopping.is_set() else 'serving'}: {runs} live runs, {watches} watches"

    def stop(self) -> None:
        """Begin to stop."""
        self._stopping.set()

    def _fail(self) -> None:
        """Begin to stop without a drain, as the store cannot be trusted."""
        self._has_failed = True
        self.stop()

    def drain(self, seconds: float | None = None) -> int:
        """Begin to stop, within so many seconds (None: as planned). Gives when that is over, in unix nanoseconds.

        What has begun goes on unchanged.
        """
        if not self._drain_end_ns:
            self._drain_seconds = seconds
            self._drain_end_ns = self._clock.now_ns() + int(self._patience_seconds * 1e9)
            self.stop()
        return self._drain_end_ns

    @property
    def _patience_seconds(self) -> float:
        return self.plan.drain_seconds if self._drain_seconds is None else self._drain_seconds

    async def stopped(self) -> int:
        """Wait until the daemon is to stop; gives the exit code."""
        await self._stopping.wait()
        return EXIT_STORE_FAILED if self._has_failed else EXIT_OK


async def serve(plan: Plan, ready: Callable[[Sequence[str]], None], manager: ServiceManager) -> int:
    """Serve until SIGTERM or SIGINT; a second one ends the drain at once, SIGHUP reloads. Gives the exit code."""
    sys.setswitchinterval(SWITCH_SECONDS)
    enums.quicken()
    with _signals() as signals:
        async with (
            asyncio.TaskGroup() as tasks,
            Watchdog(manager, tasks.create_task) as watchdog,
            Daemon(plan) as daemon,
        ):
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            ready(daemon.addresses)
            witness = _Manager(manager, daemon.describe)
            watchdog.serving(daemon.log, witness.describe)
            daemon.reloading.witnesses.append(witness)
            signals.serve(daemon)
            code = await daemon.stopped()
            watchdog.ending(daemon.describe())
        return code


class _Manager:
    """Tells the service manager of reloads."""

    def __init__(self, manager: ServiceManager, describe: Callable[[], str]) -> None:
        self._manager = manager
        self._describe = describe
        self._is_refused = False

    def describe(self) -> str:
        """Say what the daemon does, and whether the configuration on the disk is not the one in force."""
        refused = "; not reloaded: the configuration is invalid" if self._is_refused else ""
        return f"{self._describe()}{refused}"

    def begins(self, by: str) -> None:
        """Say that a reload has begun."""
        self._manager.reloading()

    def ended(self, by: str, outcome: Outcome | None, error: BehestError | None) -> None:
        """Say that it is over."""
        self._is_refused = error is not None
        self._manager.ready(self.describe())


@dataclass(slots=True)
class _Signals:
    """The signals that came, and what they lead to once the daemon serves."""

    ending: list[signal.Signals] = field(default_factory=list)
    is_reload_due: bool = False
    daemon: Daemon | None = None

    def serve(self, daemon: Daemon) -> None:
        """Do what was asked for, also before."""
        self.daemon = daemon
        if self.ending:
            daemon.stop()
        elif self.is_reload_due:
            daemon.reloading.ask(signal.SIGHUP.name)

    def reload(self) -> None:
        """Take SIGHUP."""
        logger.info("reloading", signal=signal.SIGHUP.name)
        self.is_reload_due = True
        if self.daemon is not None:
            self.daemon.reloading.ask(signal.SIGHUP.name)

    def end(self, number: signal.Signals, task: asyncio.Task[object]) -> None:
        """Take SIGTERM or SIGINT: the first one stops, the second one ends the drain."""
        self.ending.append(number)
        logger.info("stopping", signal=number.name)
        if self.daemon is not None and len(self.ending) == 1:
            self.daemon.stop()
        else:
            task.cancel()


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Listen for signals, from before the daemon is built."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    signals = _Signals()
    loop.add_signal_handler(signal.SIGHUP, signals.reload)
    for number in ENDING:
        loop.add_signal_handler(number, signals.end, number, task)
    try:
        yield signals
    finally:
        for number in (*ENDING, signal.SIGHUP):
            loop.remove_signal_handler(number)
