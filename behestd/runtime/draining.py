"""The end of all drivers when the daemon stops: what is in flight may end, then every run is let go, durably.

Above: the supervisor, whose event is set whenever a driver has turned or ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from behestd.core.signals import Release
from behestd.runtime.driver import Driver
from behestd.runtime.gate import Key

logger = structlog.get_logger(__name__)

_RELEASE_SECONDS = 5.0
"""How long the last commits may take."""


async def wind_down(drivers: Mapping[Key, Driver], changed: asyncio.Event, seconds: float) -> int:
    """Begin nothing new, wait for what is in flight, then let go of every run. Gives how many were let go."""
    for driver in drivers.values():
        driver.drain()
    try:
        async with asyncio.timeout(seconds):
            while not all(driver.is_idle for driver in drivers.values()):
                changed.clear()
                await changed.wait()
    except TimeoutError:
        logger.warning("drain is over", in_flight=sum(not driver.is_idle for driver in drivers.values()))
    return await _release(drivers, changed)


async def _release(drivers: Mapping[Key, Driver], changed: asyncio.Event) -> int:
    released: set[Driver] = set()
    try:
        async with asyncio.timeout(_RELEASE_SECONDS):
            while drivers:
                for driver in [driver for driver in drivers.values() if driver not in released]:
                    driver.drain()
                    driver.tell(Release())
                    released.add(driver)
                changed.clear()
                await changed.wait()
    except TimeoutError:
        logger.warning("runs were not let go", runs=len(drivers))
    return len(released)
