"""The components of a process: started in the order of what they need, stopped in reverse, each within its time.

Above: `composition`, which says what components there are, and `daemon`, which starts and stops them. Below: nothing of
the house. A `Handle` names a component and carries the type of its value, so that nobody looks anything up by a text. A
component that does not start skips those that need it; what had started is stopped again, and the error is the one that
it raised, with a note of what was skipped. A stop that fails or takes too long holds up no other one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

import structlog

logger = structlog.get_logger(__name__)

T = TypeVar("T")
Probe = Callable[[], Awaitable[None]]
"""Looks at something. Raises BehestError, OSError or TimeoutError, which says what is wrong."""
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
"""Makes a task."""


class WrongComposition(Exception):
    """Raised when components cannot be ordered; the text names those that are in the way."""


class State(StrEnum):
    """Where a component is in its life."""

    WAITING = "waiting"
    """Not started yet."""
    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"
    """It did not start, or did not stop as it should."""
    SKIPPED = "skipped"
    """It was not started, as something that it needs did not start."""
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Status:
    """How a component does. `problem` is empty when all is well."""

    name: str
    state: State
    since_ns: int
    problem: str = ""


class Handle(Generic[T]):
    """Names a component whose value has a type. Two handles are never equal."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name


class Scope:
    """What a component that starts can reach: the values of what it needs, and tasks of its own."""

    def __init__(self, lifecycle: Lifecycle, component: Component[Any]) -> None:
        self._lifecycle = lifecycle
        self._component = component

    def __getitem__(self, handle: Handle[T]) -> T:
        """Return the value of a component that was declared as needed. Raises WrongComposition for others."""
        if handle not in self._component.needs:
            raise WrongComposition(f"{self._component.handle} uses {handle}, which is not among its needs")
        return self._lifecycle[handle]

    def spawn(self, work: Coroutine[Any, Any, None], of: Handle[Any] | None = None) -> None:
        """Run a task, which is waited for when this component stops, or the one that it is said to be of."""
        self._lifecycle.adopt(work, of or self._component.handle)


@dataclass(frozen=True, slots=True)
class Component(Generic[T]):
    """A part of the process, as it is declared."""

    handle: Handle[T]
    start: Callable[[Scope], Awaitable[T]]
    """Makes the value, ready for those that need it."""
    needs: Sequence[Handle[Any]] = ()
    """What is started before it and stopped after it."""
    quiet: Callable[[T], None] | None = None
    """Begins nothing new. Called on all components, in reverse order, before the first one is stopped."""
    stop: Callable[[T, float], Awaitable[None]] | None = None
    """Ends what is going on, which may take so many seconds, and lets go."""
    stop_seconds: float = 10.0
    """How long the stop may take beyond those; then it is given up, and tasks that are left are cancelled."""
    probe: Callable[[T], Awaitable[None]] | None = None
    """Says how it does, as `Probe`."""


@dataclass(slots=True)
class _Part:
    """A component, and where it is in its life."""

    component: Component[Any]
    status: Status
    value: Any = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


def ordered(needs: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Order names so that each comes after those that it needs, and otherwise as they were given.

    Raises WrongComposition, which names everything that is missing, or else one cycle.
    """
    missing = [
        f"{name} needs {other}, which is not there" for name in needs for other in needs[name] if other not in needs
    ]
    if missing:
        raise WrongComposition("; ".join(missing))
    order: dict[str, None] = {}
    while len(order) < len(needs):
        free = next(
            (name for name in needs if name not in order and all(other in order for other in needs[name])), None
        )
        if free is None:
            raise WrongComposition(" needs ".join(_cycle({name: needs[name] for name in needs if name not in order})))
        order[free] = None
    return tuple(order)


def _cycle(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a cycle among names that each need another one of them, its first name again at the end."""
    path: list[str] = []
    name = next(iter(needs))
    while name not in path:
        path.append(name)
        name = next(other for other in needs[name] if other in needs)
    return [*path[path.index(name) :], name]


def dependents(needs: Mapping[str, Sequence[str]], name: str) -> tuple[str, ...]:
    """Return the names that need a name, be it through others, in the order of `ordered`."""
    found = {name}
    for each in ordered(needs):
        if not found.isdisjoint(needs[each]):
            found.add(each)
    return tuple(each for each in ordered(needs) if each in found and each != name)


class Lifecycle:
    """The components of a process. `start` and `stop` once each, in this order and in the same task."""

    def __init__(self, components: Sequence[Component[Any]], now_ns: Callable[[], int]) -> None:
        """Put them in order. Raises WrongComposition."""
        self._now_ns = now_ns
        self._parts: dict[Handle[Any], _Part] = {}
        self._exit = AsyncExitStack()
        self._spawn: Spawn | None = None
        self._end = 0.0
        self._is_hurried = False
        by_name = {component.handle.name: component for component in components}
        if len(by_name) < len(components):
            raise WrongComposition("two components have the same name")
        self._needs = {name: [str(handle) for handle in each.needs] for name, each in by_name.items()}
        for name in ordered(self._needs):
            component = by_name[name]
            self._parts[component.handle] = _Part(component, Status(name, State.WAITING, now_ns()))

    def __getitem__(self, handle: Handle[T]) -> T:
        """Return the value of a component that has started. Raises WrongComposition for others."""
        part = self._parts.get(handle)
        if part is None or part.status.state not in (State.RUNNING, State.STOPPING):
            raise WrongComposition(f"{handle} is not running")
        value: T = part.value
        return value

    def statuses(self) -> tuple[Status, ...]:
        """How each component does, in the order of the start."""
        return tuple(part.status for part in self._parts.values())

    def probes(self) -> Mapping[str, Probe]:
        """Ways to see how the components that are running do, by name."""
        return {
            str(handle): _bound(part.component.probe, part.value)
            for handle, part in self._parts.items()
            if part.component.probe is not None and part.status.state is State.RUNNING
        }

    def problems(self) -> Mapping[str, str]:
        """What is wrong, by name of the component."""
        return {part.status.name: part.status.problem for part in self._parts.values() if part.status.problem}

    def note(self, name: str, problem: str) -> None:
        """Note what is wrong with a component that is running; empty when all is well again."""
        for part in self._parts.values():
            if part.status.name == name and part.status.problem != problem:
                self._become(part, part.status.state, problem)

    # --- start ---

    async def start(self, spawn: Spawn) -> None:
        """Start all components. Raises what the first raised that did not start, when the others are stopped again."""
        self._spawn = spawn
        async with AsyncExitStack() as stack:
            for part in self._parts.values():
                await self._start(part, stack)
            self._exit = stack.pop_all()

    async def _start(self, part: _Part, stack: AsyncExitStack) -> None:
        name = part.status.name
        self._become(part, State.STARTING)
        # Also when it does not start: it may have tasks by then.
        stack.push_async_callback(self._join, part)
        try:
            part.value = await part.component.start(Scope(self, part.component))
        except BaseException as error:
            self._become(part, State.FAILED, type(error).__name__)
            skipped = dependents(self._needs, name)
            for other in self._parts.values():
                if other.status.name in skipped:
                    self._become(other, State.SKIPPED, f"it needs {name}")
            error.add_note(f"{name} did not start; skipped: {', '.join(skipped) or 'nothing'}")
            raise
        self._become(part, State.RUNNING)
        stack.push_async_callback(self._stop, part)

    def adopt(self, work: Coroutine[Any, Any, None], handle: Handle[Any]) -> None:
        """Run a task of a component; what it raises ends the process."""
        assert self._spawn is not None
        tasks = self._parts[handle].tasks
        task = self._spawn(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    # --- stop ---

    async def stop(self, seconds: float) -> None:
        """Begin nothing new anywhere, then stop all components, in reverse order; what goes on has so many seconds.

        Raises what a stop raised, when all the others are stopped too. Cancelled, it goes on without waiting.
        """
        self._end = time.monotonic() + seconds
        for part in reversed(self._parts.values()):
            if part.component.quiet is not None and part.status.state is State.RUNNING:
                part.component.quiet(part.value)
        await self._exit.aclose()

    async def _stop(self, part: _Part) -> None:
        """Stop one component."""
        self._become(part, State.STOPPING)
        if part.component.stop is None:
            return
        left_seconds = 0.0 if self._is_hurried else max(self._end - time.monotonic(), 0.0)
        try:
            async with asyncio.timeout(left_seconds + part.component.stop_seconds):
                await part.component.stop(part.value, left_seconds)
        except TimeoutError:
            logger.error("component does not stop", component=part.status.name)
            self._become(part, State.FAILED, "it did not stop in time")
        except asyncio.CancelledError:
            self._is_hurried = True
            raise

    async def _join(self, part: _Part) -> None:
        """Wait for the tasks of a component to end; those that do not are cancelled."""
        is_over = self._is_hurried or part.status.state is State.FAILED
        try:
            if part.tasks and not is_over:
                await asyncio.wait(set(part.tasks), timeout=part.component.stop_seconds)
        except asyncio.CancelledError:
            self._is_hurried = True
            raise
        finally:
            await _cancel(set(part.tasks))
        if part.status.state is not State.FAILED:
            self._become(part, State.STOPPED)

    def _become(self, part: _Part, state: State, problem: str = "") -> None:
        part.status = Status(part.status.name, state, self._now_ns(), problem)


async def _cancel(tasks: Set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _bound(probe: Callable[[Any], Awaitable[None]], value: object) -> Probe:
    return lambda: probe(value)
