"""Whatever is written in whatever order, memory and SQLite answer alike."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from behestd.log import frames
from behestd.log.memory import MemoryStore
from behestd.log.sqlite import SqliteStore
from behestd.log.store import (
    Append,
    Change,
    Claim,
    Delete,
    DeleteRun,
    DeleteSession,
    Entry,
    Item,
    Put,
    Record,
    RecordIs,
    RunQuery,
    RunRow,
    SessionIsFree,
    Store,
)

SPACES = ("a", "b")
RUNS = ("r1", "r2", "r3")
SESSIONS = {"r1": "s1", "r2": "s1", "r3": "s2"}
KINDS = ("message", "tool_call")
NAMES = ("x", "y")

spaces = st.sampled_from(SPACES)
claims = st.none() | st.builds(
    Claim, spaces, st.sampled_from(("q1", "q2")), st.sampled_from((b"1", b"\xff")), st.sampled_from((*RUNS, "s1", "x"))
)
guards = st.lists(
    st.builds(SessionIsFree, st.sampled_from(("s1", "s2")))
    | st.builds(RecordIs, spaces, st.just("agent"), st.sampled_from(NAMES), st.none() | st.integers(1, 2)),
    max_size=2,
).map(tuple)
records = st.builds(
    Record,
    namespace=spaces,
    kind=st.sampled_from(("agent", "session")),
    id=st.sampled_from((*NAMES, "s1")),
    body=st.binary(max_size=4),
    parent=st.sampled_from(("", "s1", "s2")),
    create_time_ns=st.integers(1, 4),
    expire_time_ns=st.integers(0, 4),
)
versions = st.none() | st.integers(0, 2)
puts = st.lists(st.builds(Put, records, versions), max_size=2).map(tuple)
deletes = st.lists(
    st.builds(Delete, spaces, st.just("agent"), st.sampled_from(NAMES), st.none() | st.integers(1, 2)), max_size=2
).map(tuple)
entries = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from(("1", "2", "3")), st.integers(1, 4), st.binary(max_size=4)),
    max_size=2,
)


@st.composite
def appends(draw: st.DrawFn) -> Append:
    """An append that fits where it says it does, whether or not the run is there."""
    namespace, run_id = draw(spaces), draw(st.sampled_from(RUNS))
    epoch, last = draw(st.sampled_from(((0, 0), (0, 0), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3))))
    events = draw(st.integers(1, 2))
    is_ended = draw(st.booleans())
    row = RunRow(
        namespace=namespace,
        run_id=run_id,
        session_id=SESSIONS[run_id],
        agent_id="agent",
        state=draw(st.integers(1, 3)),
        epoch=max(1, epoch) + draw(st.sampled_from((0, 0, 0, 1))),
        last_sequence=last + events,
        last_hash=b"hash",
        session_index=draw(st.integers(0, 3)),
        create_time_ns=RUNS.index(run_id) // 2,
        body=draw(st.binary(max_size=4)),
        is_active=not is_ended and draw(st.booleans()),
        is_ended=is_ended,
        log_bytes=5,
    )
    views = tuple(
        Entry(kind, name, SESSIONS[run_id], run_id, position, body) for kind, name, position, body in draw(entries)
    )
    return Append(
        row,
        frames.chunk(last + 1, [draw(st.binary(max_size=4))] * events),
        epoch,
        last,
        entries=views,
        definition=draw(st.none() | st.tuples(st.just(b"h"), st.binary(max_size=2))),
        claim=draw(claims),
        guards=draw(guards),
        puts=draw(puts),
    )


items: st.SearchStrategy[Item] = st.one_of(
    appends(),
    appends(),
    st.builds(Change, puts=puts, deletes=deletes, claim=claims, guards=guards),
    st.builds(DeleteRun, spaces, st.sampled_from(RUNS)),
    st.builds(DeleteSession, spaces, st.sampled_from(("s1", "s2"))),
)


async def everything(store: Store) -> list[Any]:
    """Read the store by every door."""
    seen: list[Any] = [await store.positions(), await store.unended(9), await store.unended(9, ("a", "r2"))]
    seen.append(await store.definition(b"h"))
    for space in SPACES:
        seen += [await store.tail(space, after, limit) for after in (0, 2) for limit in (1, 1000)]
        seen.append(await store.runs(RunQuery(space, 9)))
        seen.append(await store.runs(RunQuery(space, 1, states=(1, 2), session_id="s1", before=(1, "r0"))))
        seen += [await store.run(space, run) for run in RUNS]
        seen += [
            await store.chunks(space, run, after, limit) for run in RUNS for after in (0, 1, 2) for limit in (1, 99)
        ]
        seen += [await store.request(space, request) for request in ("q1", "q2")]
        for session in ("s1", "s2"):
            seen.append(await store.session_runs(space, session))
            seen.append(await store.last_session_index(space, session))
            seen += [await store.entries(space, kind, session_id=session) for kind in KINDS]
            seen += [await store.last_entries(space, kind, session, 4, 2) for kind in KINDS]
        seen += [await store.entries(space, kind, run_id="r1", after=1, limit=1) for kind in KINDS]
        for kind in ("agent", "session"):
            seen += [await store.record(space, kind, name, 2) for name in (*NAMES, "s1")]
            seen.append(await store.records(space, kind, now_ns=3))
            seen.append(await store.records(space, kind, parent="s1", after="a"))
            seen.append(await store.records("", kind))
            for parent in (None, "s1", ""):
                seen.append(await store.newest_records(space, kind, parent=parent, before=(3, "b"), limit=2))
                seen.append(await store.newest_records(space, kind, parent=parent, before=None, limit=9))
            seen.append(await store.count_records(space, kind, "s1", 3))
    return seen


async def compare(batches: list[list[Item]]) -> None:
    """Write the batches to both stores and read both."""
    memory = MemoryStore()
    with tempfile.TemporaryDirectory() as place:
        sqlite = await SqliteStore.open(Path(place), ballast_bytes=0)
        try:
            for batch in batches:
                assert await sqlite.write(batch) == await memory.write(batch)
            assert await everything(sqlite) == await everything(memory)
        finally:
            await sqlite.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(items, min_size=1, max_size=6), min_size=1, max_size=5))
def test_memory_and_sqlite_have_equal_outcomes_and_equal_reads(batches: list[list[Item]]) -> None:
    asyncio.run(compare(batches))
