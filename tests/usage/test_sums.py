"""Whatever is booked and whatever is asked, memory and SQLite give the same sums, and pages add up to their total."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from behestd.log.memory import MemoryStore
from behestd.log.sqlite import SqliteStore
from behestd.log.store import Change, DeleteSession, Item, Put, Record, Store
from behestd.log.usage import DAY_NS, DIMENSIONS, Spent, Sums, UsagePage, UsageQuery
from tests.log.items import Script

SPACES = st.sampled_from(("a", "b"))
NAMES = st.sampled_from(("", "x", "y"))
FIGURES = st.integers(0, 1 << 40)

SESSIONS = ("x", "y")

used = st.builds(
    dict,
    time_ns=st.integers(0, 3 * DAY_NS),
    agent_id=NAMES,
    model=st.sampled_from(("p/one", "p/two", "p/zweí")),
    purpose=st.integers(1, 4),
    input_tokens=FIGURES,
    output_tokens=FIGURES,
    cached_input_tokens=FIGURES,
    cache_write_tokens=FIGURES,
    reasoning_tokens=FIGURES,
    cost_micro_usd=st.none() | FIGURES,
    is_estimated=st.booleans(),
)
many = st.lists(used, max_size=3)
steps = st.lists(
    st.tuples(st.sampled_from(("run", "run", "child", "call", "delete")), SPACES, st.sampled_from(SESSIONS), many),
    max_size=12,
)
queries = st.builds(
    UsageQuery,
    namespace=st.sampled_from(("", "a", "b")),
    group_by=st.lists(st.sampled_from(DIMENSIONS), unique=True).map(tuple),
    start_ns=st.sampled_from((0, DAY_NS, 2 * DAY_NS + 1)),
    end_ns=st.sampled_from((0, DAY_NS, 3 * DAY_NS)),
    model=st.sampled_from(("", "", "p/one")),
    agent_id=NAMES,
    session_id=NAMES,
    run_id=st.sampled_from(("", "", "r0", "r1", "r2")),
    purpose=st.sampled_from((0, 0, 2)),
    limit=st.integers(1, 3),
)


async def pages(store: Store, query: UsageQuery) -> list[UsagePage]:
    """All pages of a query; more is booked between any two of them, which none of them shows."""
    found = [await store.usage(query)]
    while found[-1].groups:
        await store.write([Change(usage=(Spent("a", DAY_NS, "x", "", "x", "p/one", 2, 1, 1, 1, 1, 1, 1, False),))])
        page = replace(query, after=found[-1].groups[-1].key, upto=found[0].upto)
        if not query.group_by:
            break
        found.append(await store.usage(page))
    return found


def plus(groups: Sequence[Sums]) -> Sums:
    """The sum of groups."""
    costs = [group.cost_micro_usd for group in groups if group.cost_micro_usd is not None]
    names = [name for name in Sums._fields if name not in ("key", "cost_micro_usd")]
    sums = {name: sum(getattr(group, name) for group in groups) for name in names}
    return Sums(cost_micro_usd=sum(costs) if costs else None, **sums)


def items_of(plan: list[tuple[str, str, str, list[dict[str, Any]]]]) -> list[Item]:
    """What a plan writes: runs that end at once, child runs in sessions of their own, calls without a run."""
    items: list[Item] = []
    for number, (kind, namespace, session_id, many) in enumerate(plan):
        run_id = f"r{number}" if kind in ("run", "child") else ""
        rows = tuple(Spent(namespace=namespace, session_id=session_id, run_id=run_id, **used) for used in many)
        if kind == "delete":
            items.append(DeleteSession(namespace, session_id))
        elif kind == "call":
            items.append(Change(usage=rows))
        else:
            own = f"{session_id}-{number}" if kind == "child" else session_id
            put = Put(Record(namespace, "session", own, b"", parent=session_id if kind == "child" else ""))
            run = Script(run_id, own, namespace)
            items.append(run.append(is_ended=True, usage=rows, puts=(put,)))
    return items


async def compare(plan: list[tuple[str, str, str, list[dict[str, Any]]]], asked: list[UsageQuery]) -> None:
    """Book in both stores and ask both."""
    memory = MemoryStore()
    with tempfile.TemporaryDirectory() as place:
        sqlite = await SqliteStore.open(Path(place), ballast_bytes=0)
        try:
            for item in items_of(plan):
                assert await sqlite.write([item]) == await memory.write([item])
            for query in asked:
                found = await pages(sqlite, query)
                assert found == await pages(memory, query)
                groups = [group for page in found for group in page.groups]
                assert plus(groups) == found[0].total, "the rows add up to the total"
                assert {page.total for page in found} == {found[0].total}, "which every page tells"
                keys = [group.key for group in groups]
                assert keys == sorted(set(keys))
        finally:
            await sqlite.close()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.lists(queries, min_size=1, max_size=4))
def test_memory_and_sqlite_add_up_alike_and_rows_add_up_to_totals(  # C115 C117
    plan: list[tuple[str, str, str, list[dict[str, Any]]]], asked: list[UsageQuery]
) -> None:
    asyncio.run(compare(plan, asked))
