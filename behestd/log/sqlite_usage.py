"""The sums over the usage table of the SQLite store, as one statement, so that all of an answer is of one moment.

Above: `sqlite_reader`. Groups are made over the rows that an index finds: by namespace and time, or by run. The rows of
a session are those of its runs and, since it is charged for them, of the runs below in sessions of their own; and those
of calls without a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from behestd.log.usage import DAY_NS, Sums, UsagePage, UsageQuery

_FIGURES = (
    "sum(input_tokens) AS a, sum(output_tokens) AS b, sum(cached_input_tokens) AS c, sum(cache_write_tokens) AS d,"
    " sum(reasoning_tokens) AS e, sum(cost_micro_usd) AS f, sum(is_estimated) AS g, sum(cost_micro_usd IS NULL) AS h"
)
_TOTAL = (
    "coalesce(sum(n), 0), coalesce(sum(a), 0), coalesce(sum(b), 0), coalesce(sum(c), 0), coalesce(sum(d), 0),"
    " coalesce(sum(e), 0), sum(f), coalesce(sum(g), 0), coalesce(sum(h), 0)"
)
_FILTERS = ("model", "agent_id", "session_id", "run_id", "purpose")
_OF_RUN = "run > 0 AND run = (SELECT key FROM runs WHERE namespace = :namespace AND run_id = :run_id)"
RUNS_BELOW = """
    WITH RECURSIVE below (id) AS (
        SELECT :session
        UNION SELECT records.id FROM below CROSS JOIN records
        ON records.namespace = :namespace AND records.parent = below.id AND records.kind = 'session')
    SELECT runs.key FROM below CROSS JOIN runs ON runs.namespace = :namespace AND runs.session_id = below.id"""
"""The keys of a session's runs, and of the runs below them."""
_OF_SESSION = f"""row IN (
    SELECT found.row FROM ({RUNS_BELOW}) own CROSS JOIN usage found ON found.run = own.key AND found.run > 0
    UNION ALL SELECT row FROM usage WHERE namespace = :namespace AND session_id = :session AND run = 0)"""


def statement(query: UsageQuery) -> tuple[str, dict[str, Any]]:
    """The statement of a query, and its values. The names in it are those of DIMENSIONS alone."""
    values: dict[str, Any] = {"start": query.start_ns, "limit": query.limit}
    where: list[str] = []
    is_narrow = bool(query.namespace and (query.run_id or query.session_id))
    if is_narrow:
        where.append(_OF_RUN if query.run_id else _OF_SESSION)
        values["session"] = query.session_id
    # The planner is not to choose the index by time where there is a better one.
    time, owner = ("+time_ns", "+namespace") if is_narrow else ("time_ns", "namespace")
    where.append(f"{time} >= :start")
    if query.namespace:
        where.append(f"{owner} = :namespace")
        values["namespace"] = query.namespace
    if query.end_ns:
        where.append(f"{time} < :end")
        values["end"] = query.end_ns
    if query.upto:
        where.append("+row <= :upto")
        values["upto"] = query.upto
    for name in _FILTERS:
        if wanted := getattr(query, name):
            where.append(f"{name} = :{name}")
            values[name] = wanted
    columns = [f"time_ns / {DAY_NS}" if name == "day" else name for name in query.group_by] or ["0"]
    keys = [f"k{index}" for index in range(len(columns))]
    named = ", ".join(f"{column} AS {key}" for column, key in zip(columns, keys, strict=True))
    listed, page = ", ".join(keys), ""
    if query.after is not None:
        marks = [f":after{index}" for index in range(len(keys))]
        page = f" WHERE ({listed}) > ({', '.join(marks)})"
        values |= {mark[1:]: value for mark, value in zip(marks, query.after, strict=True)}
    nothing = ", ".join(["NULL"] * len(keys))
    text = (
        f"WITH groups AS (SELECT {named}, count(*) AS n, {_FIGURES} FROM usage"
        f" WHERE {' AND '.join(where)} GROUP BY {listed})"
        f" SELECT * FROM (SELECT {nothing}, {_TOTAL}, (SELECT coalesce(max(row), 0) FROM usage) FROM groups)"
        f" UNION ALL SELECT * FROM (SELECT {listed}, n, a, b, c, d, e, f, g, h, 0 FROM groups{page}"
        f" ORDER BY {listed} LIMIT :limit)"
    )
    return text, values


def page_of(query: UsageQuery, rows: Sequence[Sequence[Any]]) -> UsagePage:
    """The answer that a statement's rows make, the first of which is the total."""
    width = max(len(query.group_by), 1)
    total, *groups = rows
    found = tuple(Sums(tuple(row[:width])[: len(query.group_by)], *row[width:-1]) for row in groups)
    return UsagePage(found, Sums((), *total[width:-1]), query.upto or total[-1])
