"""Commits of a run while the disk may be full: what effects brought is kept, who asks is told at once.

Above: the driver. Below: the log. A store that finds the disk full gives its reserve back, so a second try at once has
room for the ends of runs; when that is used up too, outcomes of effects wait for space, and nobody else does.
"""

from __future__ import annotations

import asyncio

import structlog

from behestd.errors import StorageFull
from behestd.log.store import Append, Full, Outcome
from behestd.runtime.house import House
from behestd.runtime.inbox import Inbox

logger = structlog.get_logger(__name__)


async def commit(house: House, append: Append, inbox: Inbox, *, is_asked: bool) -> Outcome:
    """Commit, waiting for space if need be; gives Full only where somebody asked and waits for the answer.

    Commands that come while it waits are refused with StorageFull.
    """
    outcome = await house.log.commit(append)
    if isinstance(outcome, Full):
        outcome = await house.log.commit(append)
    while isinstance(outcome, Full) and not is_asked:
        logger.warning("disk full", run_id=append.row.run_id)
        await _refuse(inbox, house.limits.full_retry_seconds)
        outcome = await house.log.commit(append)
    return outcome


async def _refuse(inbox: Inbox, seconds: float) -> None:
    """Refuse the commands that are there, and those that come within a time."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                for command in inbox.take_commands():
                    command.refuse(StorageFull())
                await inbox.arrival()
    except TimeoutError:
        pass
