"""Hands the frames of an answer on as fast as they are taken: what comes while one is sent goes with the next.

Above: the services that stream answers. Below: any stream of frames. Order is kept, nothing is dropped or held back,
and a failure is raised after everything that came before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from behestd.errors import BehestError
from behestd.log.waiters import Waiters
from behestd.providers.provider import Frame

LIMIT_PIECES = 1024
"""Pieces that wait to be sent at most, but for those of one frame; then no more is read."""


class _Pending:
    """Frames between their reader and their sender."""

    __slots__ = ("_changed", "_frames", "_is_over", "_pieces")

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._pieces = 0
        self._is_over = False
        self._changed = Waiters()

    async def fill(self, frames: AsyncIterator[Frame]) -> BehestError | None:
        """Read to the end. Gives the error that the stream ended with."""
        try:
            async for frame in frames:
                self._frames.append(frame)
                self._pieces += len(frame.deltas)
                self._changed.wake()
                while self._pieces >= LIMIT_PIECES:
                    await self._changed.wait()
        except BehestError as error:
            return error
        finally:
            self._is_over = True
            self._changed.wake()
        return None

    async def take(self) -> Frame | None:
        """Take everything that is there, as one frame, once there is something; None after the end."""
        while not self._frames:
            if self._is_over:
                return None
            await self._changed.wait()
        (first, *others), self._frames, self._pieces = self._frames, [], 0
        self._changed.wake()
        if not others:
            return first
        merged = Frame()
        for frame in (first, *others):
            merged.MergeFrom(frame)
        return merged


async def forward(frames: AsyncIterator[Frame], send: Callable[[Frame], Awaitable[None]]) -> None:
    """Send all frames. Raises what reading and sending raise; the stream is left to the caller to be closed."""
    pending = _Pending()
    failure: BehestError | None = None
    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(pending.fill(frames))
        try:
            while (frame := await pending.take()) is not None:
                await send(frame)
        except BehestError as error:
            failure = error
            reader.cancel()
    failure = failure or reader.result()
    if failure is not None:
        raise failure
