"""What calls used, as stores keep it: one row an attempt, and the sums that are asked of them.

Above: the port of a store and whoever books a row (`spending` for runs, `runtime.bookkeeping` for everything else).
Rows are added with the append or change that they belong to, in its transaction: those of an append name its run,
those of a change none. They are never changed, but that deleting a session takes its name and those of its runs off
them. They are numbered in the order in which they came, so that sums over several pages are over the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

DAY_NS = 86_400_000_000_000
DIMENSIONS = ("day", "model", "agent_id", "session_id", "run_id", "purpose", "namespace")
"""What can be grouped by. A day is a number, counted from 1970-01-01 in UTC."""
MOST = 1 << 40
"""A larger figure of one attempt is kept as this, so that sums stay within 64 bits."""


class Spent(NamedTuple):
    """One attempt of a call, in the order of the table's columns. `time_ns` is when it ended."""

    namespace: str
    time_ns: int
    session_id: str
    """That of the topmost run above, empty outside sessions."""
    run_id: str
    agent_id: str
    model: str
    purpose: int
    """A `UsagePurpose` of the contract."""
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_micro_usd: int | None
    """None: a price is not known."""
    is_estimated: bool


class Sums(NamedTuple):
    """The sums of one group. `key` are its values in the order of the query's `group_by`."""

    key: tuple[int | str, ...] = ()
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_micro_usd: int | None = None
    """Of the calls whose cost is known; None when there are none."""
    estimated: int = 0
    unpriced: int = 0


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which rows to add up, and how. Empty fields match everything, an empty namespace all of them."""

    namespace: str
    group_by: tuple[str, ...] = ()
    """Of DIMENSIONS, each at most once. None: one group, if there are rows."""
    start_ns: int = 0
    end_ns: int = 0
    """Exclusive; 0: none."""
    model: str = ""
    agent_id: str = ""
    session_id: str = ""
    run_id: str = ""
    purpose: int = 0
    after: tuple[int | str, ...] | None = None
    """The key of the last group of the page before."""
    limit: int = 0
    """Most groups; 0 for the total alone."""
    upto: int = 0
    """`UsagePage.upto` of the first page; 0: all rows."""


@dataclass(frozen=True, slots=True)
class UsagePage:
    """Groups by ascending key, the sum of all groups of all pages, and the number of the last row that was there."""

    groups: tuple[Sums, ...]
    total: Sums
    upto: int


class UsageStore(Protocol):
    """The part of a store's port that is about usage."""

    async def usage(self, query: UsageQuery) -> UsagePage:
        """Sum usage up. All of a page is of one moment."""


def figure(value: int) -> int:
    """A figure as it is kept."""
    return value if 0 <= value <= MOST else min(max(value, 0), MOST)


def key_of(row: Spent, group_by: tuple[str, ...]) -> tuple[int | str, ...]:
    """The group of a row."""
    return tuple(row.time_ns // DAY_NS if name == "day" else getattr(row, name) for name in group_by)


def matches(row: Spent, query: UsageQuery) -> bool:
    """Whether a query counts a row."""
    return (
        query.namespace in ("", row.namespace)
        and row.time_ns >= query.start_ns
        and (query.end_ns == 0 or row.time_ns < query.end_ns)
        and query.model in ("", row.model)
        and query.agent_id in ("", row.agent_id)
        and query.session_id in ("", row.session_id)
        and query.run_id in ("", row.run_id)
        and query.purpose in (0, row.purpose)
    )


def added(sums: Sums, row: Spent) -> Sums:
    """The sums with one row more."""
    cost = sums.cost_micro_usd
    if row.cost_micro_usd is not None:
        cost = (cost or 0) + row.cost_micro_usd
    return Sums(
        sums.key,
        sums.calls + 1,
        sums.input_tokens + row.input_tokens,
        sums.output_tokens + row.output_tokens,
        sums.cached_input_tokens + row.cached_input_tokens,
        sums.cache_write_tokens + row.cache_write_tokens,
        sums.reasoning_tokens + row.reasoning_tokens,
        cost,
        sums.estimated + row.is_estimated,
        sums.unpriced + (row.cost_micro_usd is None),
    )
