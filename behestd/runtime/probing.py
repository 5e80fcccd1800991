"""Looks at the components that can say how they do, again and again, each within a time.

Above: the composition, which says whom to tell. A component that does not answer is not well either. The probes of one
round run side by side, so a slow one holds up none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from behestd.errors import BehestError

logger = structlog.get_logger(__name__)

EVERY_SECONDS = 0.5
TIMEOUT_SECONDS = 2.0

Probe = Callable[[], Awaitable[None]]
"""See `lifecycle.Probe`."""


class Probing:
    """Looks at components. `run` is its life."""

    def __init__(
        self,
        probes: Mapping[str, Probe],
        tell: Callable[[str, str], None],
        *,
        every_seconds: float = EVERY_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """`tell` hears of each change: the name, and what is wrong, empty when all is well again."""
        self._probes = probes
        self._tell = tell
        self._every_seconds = every_seconds
        self._timeout_seconds = timeout_seconds
        self._told: dict[str, str] = {}
        self._closing = asyncio.Event()

    async def run(self) -> None:
        """Look, until `close`."""
        while not self._closing.is_set():
            async with asyncio.TaskGroup() as tasks:
                for name, probe in self._probes.items():
                    tasks.create_task(self._look(name, probe))
            try:
                async with asyncio.timeout(self._every_seconds):
                    await self._closing.wait()
            except TimeoutError:
                pass

    def close(self) -> None:
        """Look no more."""
        self._closing.set()

    async def _look(self, name: str, probe: Probe) -> None:
        problem = await self._ask(probe)
        if problem == self._told.get(name, ""):
            return
        self._told[name] = problem
        if problem:
            logger.warning("component impaired", component=name, problem=problem)
        else:
            logger.info("component well again", component=name)
        self._tell(name, problem)

    async def _ask(self, probe: Probe) -> str:
        """Say what is wrong, empty when nothing is."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await probe()
        except BehestError as error:
            return f"{error.reason}: {error.message}"
        except TimeoutError:
            return f"no answer within {self._timeout_seconds:g} s"
        except OSError as error:
            return error.strerror or type(error).__name__
        return ""
