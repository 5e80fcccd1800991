"""What may be kept: sessions, and bytes of artifacts. Counted in the store, and only where there is a quota.

Above: the services, before they keep more. Below: `quotas` and the store. Sessions of a namespace are counted each
time. Those of a principal, and bytes, are summed up once a minute, and what is made in between is added, so that what
was deleted is free within a minute. Tools of a run may keep results beyond the quota: a run is not broken off for it.
"""

from __future__ import annotations

from behest.v1.artifact_pb2 import Artifact
from behest.v1.session_pb2 import Session
from behestd.core.times import SECOND
from behestd.errors import TooLarge
from behestd.log.store import SESSION_KIND
from behestd.runtime.artifacts import KIND
from behestd.runtime.house import House
from behestd.runtime.quotas import QuotaExceeded

SUM_SECONDS = 60.0
"""How long a sum of bytes is gone by."""
_PAGE = 1_000


async def check_sessions(house: House, namespace: str, principal: str) -> None:
    """Refuse one more session, which is counted in otherwise. Raises QuotaExceeded."""
    quotas, now_ns = house.intake.quotas, house.clock.now_ns()
    limit = quotas.rules.of_namespace(namespace).sessions
    if limit and await house.log.store.count_records(namespace, SESSION_KIND, "", now_ns) >= limit:
        raise QuotaExceeded("namespace.sessions", limit, None)
    limit = quotas.rules.of_principal(principal).sessions
    if not limit:
        return
    counted_ns, sessions = quotas.sessions.get((namespace, principal), (0, 0))
    if counted_ns <= now_ns - int(SUM_SECONDS * SECOND):
        counted_ns, sessions = now_ns, await _sessions_of(house, namespace, principal)
    if sessions >= limit:
        quotas.sessions[namespace, principal] = counted_ns, sessions
        raise QuotaExceeded("principal.sessions", limit, None)
    quotas.sessions[namespace, principal] = counted_ns, sessions + 1


async def _sessions_of(house: House, namespace: str, principal: str) -> int:
    sessions, after = 0, ""
    while True:
        page = await house.log.store.records(namespace, SESSION_KIND, parent="", after=after, limit=_PAGE)
        sessions += sum(Session.FromString(record.body).principal == principal for record in page)
        if len(page) < _PAGE:
            return sessions
        after = page[-1].id


class StoredBytes:
    """Knows how many bytes the artifacts of namespaces with a quota have."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._known: dict[str, tuple[int, int]] = {}
        """By namespace, when it was summed up, and the sum."""

    async def left(self, namespace: str, most_bytes: int) -> int:
        """How many of so many bytes may be kept. Raises QuotaExceeded when it is none."""
        limit = self._house.intake.quotas.rules.of_namespace(namespace).artifact_bytes
        if not limit:
            return most_bytes
        left_bytes = limit - await self._sum(namespace)
        if left_bytes <= 0:
            raise self._exceeded(namespace)
        return min(most_bytes, left_bytes)

    def refusal(self, namespace: str, error: TooLarge, limit_bytes: int) -> TooLarge | QuotaExceeded:
        """What stands for a content that is too large for what was left, which was so much."""
        return error if limit_bytes == self._house.limits.artifact_bytes else self._exceeded(namespace)

    def added(self, namespace: str, size_bytes: int) -> None:
        """Take note of what was written."""
        if namespace in self._known:
            summed_ns, size = self._known[namespace]
            self._known[namespace] = summed_ns, size + size_bytes

    def _exceeded(self, namespace: str) -> QuotaExceeded:
        limit = self._house.intake.quotas.rules.of_namespace(namespace).artifact_bytes
        return QuotaExceeded("namespace.artifact_bytes", limit, None)

    async def _sum(self, namespace: str) -> int:
        now_ns = self._house.clock.now_ns()
        summed_ns, size = self._known.get(namespace, (0, 0))
        if summed_ns <= now_ns - int(SUM_SECONDS * SECOND):
            size = await self._summed(namespace)
            self._known[namespace] = now_ns, size
        return size

    async def _summed(self, namespace: str) -> int:
        size, after = 0, ""
        while True:
            page = await self._house.log.store.records(namespace, KIND, after=after, limit=_PAGE)
            size += sum(Artifact.FromString(record.body).size_bytes for record in page)
            if len(page) < _PAGE:
                return size
            after = page[-1].id
