"""Bounds runs from outside: how many at once, how long each, and one switch that cancels them all.

Above: `Client.emit`. Below: `runs`. A place is taken before a run is ordered and given back when the run has ended, so
the bound holds over all that is emitted with one control, by however many tasks.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from behest.errors import BehestError, ControlCancelledError, RunEndedError

if TYPE_CHECKING:
    from behest.order import OrderFields
    from behest.runs import RunHandle

_log = logging.getLogger("behest.on")


class Control:
    """Bounds the runs that are emitted with it.

        control = Control(concurrency=2, timeout_seconds=60)
        runs = [await client.emit(text, control=control) for text in texts]
        await control.cancel("enough")

    `concurrency` is the most runs that have not ended (None: any number); one more waits in `emit`. `timeout_seconds`
    bounds each run, as that of the order does: the smaller counts. Belongs to one event loop.
    """

    def __init__(self, *, concurrency: int | None = None, timeout_seconds: float | None = None) -> None:
        if concurrency is not None and concurrency < 1:
            raise ValueError(f"concurrency {concurrency} lets no run begin")
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._places = asyncio.Condition()
        self._taken = 0
        self._runs: set[RunHandle] = set()
        self._reason: str | None = None
        self._is_forced = False

    @property
    def is_cancelled(self) -> bool:
        """Whether it was cancelled: it lets no more runs begin."""
        return self._reason is not None

    @property
    def runs(self) -> list[RunHandle]:
        """The runs that have not ended, as far as is known here."""
        return list(self._runs)

    async def cancel(self, reason: str = "", *, force: bool = False) -> None:
        """Cancel all its runs, and let no more begin: `emit` raises ControlCancelledError.

        Returns once every cancel is durable: a promise that the runs will end. Idempotent. Raises the first BehestError
        after all were tried.
        """
        async with self._places:
            self._reason, self._is_forced = reason, force
            self._places.notify_all()
        errors: list[BehestError] = []
        for run in self.runs:
            try:
                await run.cancel(force=force, reason=reason)
            except BehestError as exc:
                errors.append(exc)
        if errors:
            raise errors[0]

    def bounded(self, order: OrderFields) -> OrderFields:
        """Return the order with its timeout, if that is the smaller, else with this one's."""
        if self._timeout_seconds is None:
            return order
        seconds = min(order.get("timeout_seconds", self._timeout_seconds), self._timeout_seconds)
        return {**order, "timeout_seconds": seconds}

    async def enter(self) -> None:
        """Take a place, as soon as there is one. Raises ControlCancelledError."""
        async with self._places:
            await self._places.wait_for(lambda: self.is_cancelled or self._has_room())
            if self.is_cancelled:
                raise ControlCancelledError
            self._taken += 1

    async def leave(self) -> None:
        """Give a place back."""
        async with self._places:
            self._taken -= 1
            self._places.notify()

    async def keep(self, run: RunHandle) -> None:
        """Hold the place of a run until it has ended, and cancel it if that was asked for while it was ordered."""
        self._runs.add(run)
        try:
            if self._reason is not None:
                await run.cancel(force=self._is_forced, reason=self._reason)
        except BehestError as exc:
            _log.warning("a controlled run was not cancelled: %s", exc.reason, extra={"run_id": run.run_id})
        try:
            while not await has_ended(run):
                pass
        except BehestError as exc:
            _log.warning("a controlled run is followed no more: %s", exc.reason, extra={"run_id": run.run_id})
        finally:
            self._runs.discard(run)
            await self.leave()

    def _has_room(self) -> bool:
        return self._concurrency is None or self._taken < self._concurrency


async def has_ended(run: RunHandle) -> bool:
    """Wait for the end of a run; False when patience with the daemon was over first. Raises BehestError."""
    try:
        await run.result()
    except RunEndedError:
        return True
    except BehestError as exc:
        if not exc.is_resumable:
            raise
        return False
    return True
