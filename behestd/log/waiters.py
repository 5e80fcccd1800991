"""Coroutines that wait for a change and are woken all at once. One future a waiter: cancelling one touches no other.

Cheaper than asyncio.Condition, which takes a lock for each wake-up. Who waits looks first: nothing is remembered of a
wake-up that came before the wait.
"""

from __future__ import annotations

import asyncio


class Waiters:
    """Those who wait now."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[bool]] = set()

    def __len__(self) -> int:
        return len(self._futures)

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for the next wake-up. False when `seconds` passed without one (None: no bound)."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, _settle, future, False)
        self._futures.add(future)
        try:
            return await future
        finally:
            self._futures.discard(future)
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Wake everybody."""
        if self._futures:
            futures, self._futures = self._futures, set()
            for future in futures:
                _settle(future, True)


def _settle(future: asyncio.Future[bool], woken: bool) -> None:
    if not future.done():
        future.set_result(woken)
