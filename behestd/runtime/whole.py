"""Work that is done to its end when who waits for it is cancelled: memory follows each commit of what it mirrors.

Above: whatever keeps in memory what the store has. A client that leaves, or whose deadline passes, cancels the handler
of its call; a commit that is on its way takes effect all the same, and what follows from it must not be left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """Do some work to its end. Who is cancelled meanwhile is so when it is done; cancelled twice, the work is too.

    Raises what the work raises, rather than a cancellation. Not for work that waits for anybody but the store.
    """
    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_settle(work, outcome))
            try:
                await asyncio.wait([outcome])
            except asyncio.CancelledError:
                await asyncio.wait([outcome])
                raise
    except asyncio.CancelledError:
        if outcome.done() and (error := outcome.exception()) is not None:
            raise error from None
        raise
    return outcome.result()


async def _settle(work: Coroutine[Any, Any, T], outcome: asyncio.Future[T]) -> None:
    try:
        outcome.set_result(await work)
    except Exception as error:  # noqa: BLE001  kept for who waits
        outcome.set_exception(error)
