"""Retention: deletes the logs of runs that ended long enough ago, where the operator wants that. Part of the cleaning.

Above: `cleaning`, which has it done round after round. Below: the log. A log goes in one transaction and leaves a
tombstone; its messages stay in the session. A round does a bounded amount of small commits, one after the other: runs
do not wait for it, and what is left is for the next. The log of a child run stays while the run that started it works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from behest.v1.run_pb2 import Run
from behestd.core.times import SECOND
from behestd.errors import StorageFull
from behestd.failpoint import failpoint
from behestd.log.log import Log
from behestd.log.store import Committed, DeleteRun, Full, RunRow
from behestd.runtime.clock import Clock

RUNS_A_ROUND = 1_000
"""Runs looked at in a round."""
BYTES_A_ROUND = 64 * 1024 * 1024
"""Bytes of logs deleted in a round; one log more when it is larger."""
REQUEST_SECONDS = 24 * 3600.0
"""How long after its end a run's request id is taken at least."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How long the log of a run is kept after its end, in seconds; None: for ever."""

    run_seconds: float | None = None
    namespaces: Mapping[str, float | None] = field(default_factory=dict)
    """Those of single namespaces, in the place of the general one."""

    @property
    def is_active(self) -> bool:
        """Whether anything is ever deleted."""
        return any(seconds is not None for seconds in (self.run_seconds, *self.namespaces.values()))

    def seconds(self, namespace: str) -> float | None:
        """How long a namespace keeps its logs."""
        return self.namespaces.get(namespace, self.run_seconds)


FOR_EVER = Rules()


class Retention:
    """Deletes what is older than its rules, which may be replaced at any time."""

    def __init__(self, log: Log, clock: Clock, rules: Rules = FOR_EVER) -> None:
        self._log = log
        self._clock = clock
        self.rules = rules
        self._namespace = ""
        self._after = (0, "")

    async def round(self) -> int:
        """Delete logs that are due, a bounded amount of them; gives how many. Raises StorageFull, StorageFailed."""
        if not self.rules.is_active:
            return 0
        deleted = size_bytes = looked = 0
        namespaces = await self._log.store.namespaces()
        while looked < RUNS_A_ROUND and size_bytes < BYTES_A_ROUND:
            page = await self._due(RUNS_A_ROUND - looked)
            for row in page:
                looked += 1
                self._after = (row.end_time_ns, row.run_id)
                if await self._delete(row):
                    deleted += 1
                    size_bytes += row.log_bytes
                if size_bytes >= BYTES_A_ROUND:
                    break
            if not page:
                following = [name for name in namespaces if name > self._namespace]
                self._namespace, self._after = (following[0] if following else ""), (0, "")
                if not following:
                    break
        return deleted

    async def _due(self, limit: int) -> list[RunRow]:
        """The next runs of the namespace at hand whose time is over."""
        seconds = self.rules.seconds(self._namespace)
        if not self._namespace or seconds is None:
            return []
        before_ns = self._clock.now_ns() - int(seconds * SECOND)
        return await self._log.store.ended(self._namespace, before_ns, limit, self._after)

    async def _delete(self, row: RunRow) -> bool:
        parent = Run.FromString(row.body).parent.run_id
        above = await self._log.store.run(row.namespace, parent) if parent else None
        if above is not None and not above.is_ended:
            return False
        age_ns = self._clock.now_ns() - row.end_time_ns
        failpoint("retention.before_delete", row.run_id)
        outcome = await self._log.commit(
            DeleteRun(
                row.namespace,
                row.run_id,
                frees_request=age_ns >= int(REQUEST_SECONDS * SECOND),
                is_leisurely=True,
            )
        )
        if isinstance(outcome, Full):
            raise StorageFull
        return isinstance(outcome, Committed)
