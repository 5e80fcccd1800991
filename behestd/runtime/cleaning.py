"""Cleans up behind clients and crashes: scratch data that has expired, blobs that nothing names, logs past their time.

Above: the daemon, which runs it as a task. Below: the log and the artifacts. Each round does a bounded amount of small
commits and looks, so that runs never wait for it; what is left is for the next round. A blob is let go only when no
record names it and it is older than the grace, which leaves alone what is just being written.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from behestd.core.times import SECOND
from behestd.errors import BehestError
from behestd.log.store import Committed, Purge
from behestd.runtime.artifacts import Artifacts
from behestd.runtime.house import House
from behestd.runtime.retention import FOR_EVER, Retention, Rules

logger = structlog.get_logger(__name__)

_RECORDS_A_COMMIT = 200
_COMMITS_A_ROUND = 50
_PAGES_A_ROUND = 32


@dataclass(frozen=True, slots=True)
class Statistics:
    """What was done since the start."""

    rounds: int = 0
    records: int = 0
    blobs: int = 0
    logs: int = 0


class Cleaning:
    """Cleans, round after round. `run` is its life."""

    def __init__(self, house: House, artifacts: Artifacts, rules: Rules = FOR_EVER) -> None:
        self._house = house
        self._artifacts = artifacts
        self.retention = Retention(house.log, house.clock, rules)
        self._closing = asyncio.Event()
        self._namespace = ""
        self._after = b""
        self._statistics = Statistics()

    async def run(self) -> None:
        """Clean at every interval, until `close`. A round that fails is made up for by the next."""
        while True:
            try:
                async with asyncio.timeout(self._house.limits.clean_seconds):
                    await self._closing.wait()
                return
            except TimeoutError:
                pass
            try:
                await self.clean()
            except (BehestError, OSError) as error:
                logger.warning("cleaning failed", error=type(error).__name__)

    def close(self) -> None:
        """Begin no other round."""
        self._closing.set()

    def statistics(self) -> Statistics:
        """Counters."""
        return self._statistics

    async def clean(self) -> None:
        """Do one round. Raises StorageFailed, StorageFull and what blobs raise."""
        records = await self._purge()
        logs = await self.retention.round()
        blobs = await self._collect()
        done = self._statistics
        self._statistics = Statistics(done.rounds + 1, done.records + records, done.blobs + blobs, done.logs + logs)
        if records or blobs or logs:
            logger.info("cleaned", records=records, blobs=blobs, logs=logs)

    async def _purge(self) -> int:
        """Delete what has expired, in small commits."""
        purged = 0
        for _ in range(_COMMITS_A_ROUND):
            outcome = await self._house.log.commit(Purge(self._house.clock.now_ns(), _RECORDS_A_COMMIT))
            deleted = outcome.deleted if isinstance(outcome, Committed) else 0
            purged += deleted
            if deleted < _RECORDS_A_COMMIT or self._closing.is_set():
                break
        return purged

    async def _collect(self) -> int:
        """Let go of blobs that nothing names, from where the last round stopped, round and round the namespaces."""
        before_ns = self._house.clock.now_ns() - int(self._house.limits.blob_grace_seconds * SECOND)
        namespaces = await self._house.log.store.namespaces()
        collected = 0
        for _ in range(_PAGES_A_ROUND):
            if self._after == b"":
                following = [name for name in namespaces if name > self._namespace]
                if not following:
                    self._namespace = ""
                    break
                self._namespace = following[0]
            if self._closing.is_set():
                break
            deleted, self._after = await self._artifacts.collect(self._namespace, before_ns, self._after)
            collected += deleted
        return collected
