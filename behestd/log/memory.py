"""The store in memory: everything is gone when the process ends. For tests, demos and daemons that need no history.

Same outcomes and reads as every other store; durability NONE.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from behest.v1 import run_state_pb2
from behestd.log import chain
from behestd.log.counts import Statistics, Times
from behestd.log.judge import Facts, judge, namespace_of
from behestd.log.store import (
    KEPT_KINDS,
    SESSION_KIND,
    Append,
    Change,
    Chunk,
    Claim,
    Committed,
    DeleteRun,
    DeleteSession,
    Entry,
    Import,
    Item,
    Lost,
    Outcome,
    Purge,
    Record,
    RunQuery,
    RunRow,
    TailChunk,
)
from behestd.log.usage import Spent, Sums, UsagePage, UsageQuery, added, key_of, matches

Key = tuple[str, str]


class MemoryStore:
    """A store of dicts. `write` does not wait, so a batch is applied between two turns of the loop."""

    name = "memory"
    durability: int = run_state_pb2.DURABILITY_CLASS_NONE
    is_degraded = False

    def __init__(self) -> None:
        self._facts = Facts()
        self._rows: dict[Key, RunRow] = {}
        self._logs: dict[Key, list[Chunk]] = {}
        self._order: list[tuple[Key, Chunk]] = []
        self._entries: dict[tuple[str, str, str], Entry] = {}
        self._records: dict[tuple[str, str, str], Record] = {}
        self._definitions: dict[bytes, bytes] = {}
        self._pinned: dict[Key, bytes] = {}
        self._usage: list[Spent] = []
        self._counts = Statistics()
        self._times = Times()

    async def write(self, batch: Sequence[Item]) -> list[Outcome]:
        """See Store."""
        began = time.perf_counter()
        before = self._facts.position
        events = sum(
            item.chunk.last_sequence - item.chunk.first_sequence + 1 for item in batch if isinstance(item, Append)
        )
        outcomes = [self._apply(item) for item in batch]
        self._times.append(time.perf_counter() - began)
        self._counts = replace(
            self._counts,
            commits=self._counts.commits + 1,
            items=self._counts.items + len(batch),
            events=self._counts.events + (events if self._facts.position > before else 0),
        )
        return outcomes

    def _apply(self, item: Item) -> Outcome:
        if isinstance(item, DeleteRun):
            return self._delete_run(item)
        if isinstance(item, DeleteSession):
            return self._delete_session(item.namespace, item.session_id)
        if isinstance(item, Purge):
            return self._purge(item)
        verdict = judge(item, self._facts)
        outcome = verdict.outcome
        if not isinstance(outcome, Committed):
            return outcome
        self._usage += item.usage
        for record in verdict.records:
            self._records[record.namespace, record.kind, record.id] = record
        if isinstance(item, Change):
            for delete in item.deletes:
                self._records.pop((delete.namespace, delete.kind, delete.id), None)
            self._write_entries(namespace_of(item), item.entries)
            return outcome
        row = item.row
        key = (row.namespace, row.run_id)
        self._rows[key] = row
        chunks = item.chunks if isinstance(item, Import) else (item.chunk,)
        for position, given in enumerate(chunks, start=outcome.position - len(chunks) + 1):
            chunk = replace(given, position=position)
            self._logs.setdefault(key, []).append(chunk)
            self._order.append((key, chunk))
        self._write_entries(row.namespace, item.entries)
        if item.definition is not None:
            self._definitions.setdefault(*item.definition)
            self._pinned[key] = item.definition[0]
        return outcome

    def _write_entries(self, namespace: str, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._entries[namespace, entry.kind, entry.id] = entry

    def _delete_run(self, item: DeleteRun) -> Outcome:
        key = (item.namespace, item.run_id)
        row = self._rows.get(key)
        if row is None:
            return Lost()
        if not row.is_ended:
            return Lost(row.epoch, row.last_sequence)
        self._drop_log(key)
        self._rows[key] = replace(row, body=b"", log_bytes=0, first_sequence=row.last_sequence + 1)
        self._drop_entries(
            name
            for name, entry in self._entries.items()
            if name[0] == key[0] and entry.run_id == key[1] and entry.kind not in KEPT_KINDS
        )
        if item.frees_request:
            self._free_requests(item.namespace, {item.run_id})
        self._forget({self._pinned.pop(key, b"")})
        return Committed()

    def _delete_session(self, namespace: str, session_id: str) -> Outcome:
        rows = sorted(self._of_session(namespace, session_id), key=lambda row: row.run_id)
        for row in rows:
            if not row.is_ended:
                return Lost(row.epoch, row.last_sequence)
        gone = {session_id}
        runs = self._runs_below(namespace, session_id)
        for row in rows:
            self._drop_log((namespace, row.run_id))
            del self._rows[namespace, row.run_id]
            del self._facts.heads[namespace, row.run_id]
            gone.add(row.run_id)
        self._drop_entries(
            name for name, entry in self._entries.items() if name[0] == namespace and entry.session_id == session_id
        )
        for name in [
            name
            for name, record in self._records.items()
            if name[0] == namespace and (record.parent == session_id or name[1:] == (SESSION_KIND, session_id))
        ]:
            gone.add(name[2])
            del self._records[name]
            del self._facts.stamps[name]
        for index, used in enumerate(self._usage):
            is_direct = not used.run_id and used.session_id == session_id
            if used.namespace == namespace and (is_direct or used.run_id in runs):
                self._usage[index] = used._replace(session_id="", run_id="")
        self._free_requests(namespace, gone)
        self._forget({self._pinned.pop((namespace, row.run_id), b"") for row in rows})
        return Committed()

    def _free_requests(self, namespace: str, targets: set[str]) -> None:
        for taken in [
            name for name, claim in self._facts.requests.items() if name[0] == namespace and claim.target in targets
        ]:
            del self._facts.requests[taken]

    def _forget(self, definitions: set[bytes]) -> None:
        """Let go of those among some definitions that no run is pinned to any more."""
        for definition in definitions - set(self._pinned.values()):
            self._definitions.pop(definition, None)

    def _runs_below(self, namespace: str, session_id: str) -> set[str]:
        """The runs of a session, and those below them in sessions of their own."""
        sessions = [session_id]
        for above in sessions:  # which grows meanwhile
            found = (record for name, record in self._records.items() if name[:2] == (namespace, SESSION_KIND))
            sessions += [record.id for record in found if record.parent == above and record.id not in sessions]
        return {row.run_id for key, row in self._rows.items() if key[0] == namespace and row.session_id in sessions}

    def _purge(self, item: Purge) -> Outcome:
        expired = [name for name, record in self._records.items() if 0 < record.expire_time_ns <= item.now_ns]
        expired.sort(key=lambda name: self._records[name].expire_time_ns)
        for name in expired[: item.limit]:
            del self._records[name]
            del self._facts.stamps[name]
        return Committed(deleted=len(expired[: item.limit]))

    def _drop_log(self, key: Key) -> None:
        if self._logs.pop(key, None):
            self._order = [pair for pair in self._order if pair[0] != key]

    def _drop_entries(self, names: Iterable[tuple[str, str, str]]) -> None:
        for name in list(names):
            del self._entries[name]

    def _of_session(self, namespace: str, session_id: str) -> Iterator[RunRow]:
        return (row for key, row in self._rows.items() if key[0] == namespace and row.session_id == session_id)

    async def chunks(self, namespace: str, run_id: str, after_sequence: int, limit_bytes: int) -> list[Chunk]:
        """See Store."""
        log = self._logs.get((namespace, run_id), [])
        start = bisect_right(log, after_sequence, key=lambda chunk: chunk.last_sequence)
        page: list[Chunk] = []
        size = 0
        for chunk in log[start:]:
            if page and size >= limit_bytes:
                break
            page.append(chunk)
            size += len(chunk.data)
        return page

    async def tail(self, namespace: str, after_position: int, limit_bytes: int) -> list[TailChunk]:
        """See Store."""
        page: list[TailChunk] = []
        size = 0
        start = bisect_right(self._order, after_position, key=lambda pair: pair[1].position)
        for key, chunk in islice(self._order, start, None):
            if key[0] != namespace:
                continue
            if page and size >= limit_bytes:
                break
            row = self._rows[key]
            page.append(TailChunk(namespace, row.run_id, row.session_id, row.agent_id, chunk))
            size += len(chunk.data)
        return page

    async def run(self, namespace: str, run_id: str) -> RunRow | None:
        """See Store."""
        return self._rows.get((namespace, run_id))

    async def runs(self, query: RunQuery) -> list[RunRow]:
        """See Store."""
        found = [row for row in self._rows.values() if _matches(row, query)]
        found.sort(key=lambda row: (row.create_time_ns, row.run_id), reverse=True)
        return found[: query.limit]

    async def unended(self, limit: int, after: tuple[str, str] = ("", "")) -> list[RunRow]:
        """See Store."""
        return [self._rows[key] for key in sorted(self._rows) if key > after and not self._rows[key].is_ended][:limit]

    async def ended(self, namespace: str, before_ns: int, limit: int, after: tuple[int, str] = (0, "")) -> list[RunRow]:
        """See Store."""
        found = [row for key, row in self._rows.items() if key[0] == namespace and row.is_ended and key in self._logs]
        found.sort(key=lambda row: (row.end_time_ns, row.run_id))
        return [row for row in found if after < (row.end_time_ns, row.run_id) < (before_ns, "")][:limit]

    async def session_runs(self, namespace: str, session_id: str) -> list[RunRow]:
        """See Store."""
        rows = [row for row in self._of_session(namespace, session_id) if not row.is_ended]
        return sorted(rows, key=lambda row: (row.create_time_ns, row.run_id))

    async def runs_of(
        self, namespace: str, session_id: str, limit: int, after: tuple[int, str] = (0, "")
    ) -> list[RunRow]:
        """See Store."""
        rows = sorted(self._of_session(namespace, session_id), key=lambda row: (row.create_time_ns, row.run_id))
        return [row for row in rows if (row.create_time_ns, row.run_id) > after][:limit]

    async def last_session_index(self, namespace: str, session_id: str) -> int:
        """See Store."""
        return max((row.session_index for row in self._of_session(namespace, session_id)), default=0)

    async def definition(self, hash: bytes) -> bytes | None:
        """See Store."""
        return self._definitions.get(hash)

    async def entries(
        self, namespace: str, kind: str, *, session_id: str = "", run_id: str = "", after: int = 0, limit: int = 1000
    ) -> list[Entry]:
        """See Store."""
        found = self._sorted_entries(namespace, kind, session_id=session_id, run_id=run_id)
        return [entry for entry in found if entry.position > after][:limit]

    async def last_entries(self, namespace: str, kind: str, session_id: str, before: int, limit: int) -> list[Entry]:
        """See Store."""
        found = self._sorted_entries(namespace, kind, session_id=session_id, run_id="")
        below = [entry for entry in found if entry.position < before]
        return below[max(0, len(below) - limit) :]

    def _sorted_entries(self, namespace: str, kind: str, *, session_id: str, run_id: str) -> list[Entry]:
        found = [
            entry
            for name, entry in self._entries.items()
            if name[:2] == (namespace, kind) and session_id in ("", entry.session_id) and run_id in ("", entry.run_id)
        ]
        return sorted(found, key=lambda entry: (entry.position, entry.id))

    async def entry(self, namespace: str, kind: str, id: str) -> Entry | None:
        """See Store."""
        return self._entries.get((namespace, kind, id))

    async def request(self, namespace: str, request_id: str) -> Claim | None:
        """See Store."""
        return self._facts.requests.get((namespace, request_id))

    async def record(self, namespace: str, kind: str, id: str, now_ns: int) -> Record | None:
        """See Store."""
        record = self._records.get((namespace, kind, id))
        return None if record is None or 0 < record.expire_time_ns <= now_ns else record

    async def records(
        self,
        namespace: str,
        kind: str,
        *,
        parent: str | None = None,
        after: str = "",
        limit: int = 1000,
        now_ns: int = 0,
    ) -> list[Record]:
        """See Store."""
        found = [
            record
            for name, record in self._records.items()
            if namespace in ("", name[0])
            and name[1] == kind
            and parent in (None, record.parent)
            and not 0 < record.expire_time_ns <= now_ns
            and name[2] > after
        ]
        found.sort(key=lambda record: (record.namespace, record.id))
        return found[:limit]

    async def newest_records(
        self, namespace: str, kind: str, *, parent: str | None, before: tuple[int, str] | None, limit: int
    ) -> list[Record]:
        """See Store."""
        found = [
            record
            for name, record in self._records.items()
            if name[:2] == (namespace, kind)
            and parent in (None, record.parent)
            and (before is None or (record.create_time_ns, record.id) < before)
        ]
        found.sort(key=lambda record: (record.create_time_ns, record.id), reverse=True)
        return found[:limit]

    async def count_records(self, namespace: str, kind: str, parent: str, now_ns: int) -> int:
        """See Store."""
        return len(await self.records(namespace, kind, parent=parent, limit=len(self._records), now_ns=now_ns))

    async def namespaces(self) -> list[str]:
        """See Store."""
        return sorted({name[0] for name in self._records})

    async def usage(self, query: UsageQuery) -> UsagePage:
        """See Store."""
        upto = query.upto or len(self._usage)
        groups: dict[tuple[int | str, ...], Sums] = {}
        total = Sums()
        for row in self._usage[:upto]:
            if matches(row, query):
                key = key_of(row, query.group_by)
                groups[key] = added(groups.get(key) or Sums(key), row)
                total = added(total, row)
        found = sorted(key for key in groups if query.after is None or key > query.after)
        return UsagePage(tuple(groups[key] for key in found[: query.limit]), total, upto)

    async def positions(self) -> tuple[int, int]:
        """See Store."""
        return (self._order[0][1].position if self._order else 0), self._facts.position

    async def check(self) -> list[str]:
        """See Store."""
        return [
            f"run {row.run_id} of {row.namespace}, sequence {sequence}: {problem}"
            for key, row in sorted(self._rows.items())
            for sequence, problem in chain.problems(row, self._logs.get(key, []))
        ]

    def statistics(self) -> Statistics:
        """See Store."""
        return self._times.add_to(self._counts)

    async def close(self) -> None:
        """See Store."""


def _matches(row: RunRow, query: RunQuery) -> bool:
    """Whether a list shows a run. Runs whose log is deleted are in none."""
    return (
        row.namespace == query.namespace
        and row.first_sequence <= row.last_sequence
        and (not query.states or row.state in query.states)
        and query.session_id in ("", row.session_id)
        and query.agent_id in ("", row.agent_id)
        and row.create_time_ns >= query.created_after_ns
        and (query.created_before_ns == 0 or row.create_time_ns < query.created_before_ns)
        and (query.before is None or (row.create_time_ns, row.run_id) < query.before)
    )
