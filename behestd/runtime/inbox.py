"""What reaches a driver: outcomes of its effects, time, and commands of those who wait for an answer.

One reader, any number of writers on the loop. Not bounded here: a run has a handful of effects, and commands are
bounded by the edge's admission.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from behestd.core.signals import Signal
from behestd.core.state import Run
from behestd.errors import BehestError


@dataclass(slots=True)
class Command:
    """A signal whose sender waits until it is decided and committed."""

    signal: Signal
    done: asyncio.Future[Run]

    def answer(self, run: Run) -> None:
        """Tell the sender the run after it, unless it waits no more."""
        if not self.done.done():
            self.done.set_result(run)

    def refuse(self, error: BehestError) -> None:
        """Tell the sender why not, unless it waits no more."""
        if not self.done.done():
            self.done.set_exception(error)


class Inbox:
    """Signals and commands, first in, first out."""

    __slots__ = ("_items", "_wake")

    def __init__(self) -> None:
        self._items: deque[Signal | Command] = deque()
        self._wake: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Signal | Command) -> None:
        """Add something, and wake the reader."""
        self._items.append(item)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def pop(self) -> Signal | Command:
        """Take the oldest item. Raises IndexError when there is none."""
        return self._items.popleft()

    def put_back(self, items: Sequence[Signal | Command]) -> None:
        """Put back what was taken, before all others."""
        self._items.extendleft(reversed(items))

    def take_commands(self) -> list[Command]:
        """Take the commands out, and leave the signals."""
        commands = [item for item in self._items if isinstance(item, Command)]
        if commands:
            self._items = deque(item for item in self._items if not isinstance(item, Command))
        return commands

    def holds(self, kind: type) -> bool:
        """Whether a signal of a kind, not sent as a command, is there."""
        return any(isinstance(item, kind) for item in self._items)

    async def wait(self) -> None:
        """Wait until something is there."""
        if not self._items:
            await self.arrival()

    async def arrival(self) -> None:
        """Wait until something is put in, whatever is there already."""
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None
