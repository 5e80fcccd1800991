"""Adds up, at the start, what namespaces with a budget have used and what is set aside for calls that went on.

What runs used is in rows; an open attempt is in the log of a run that has not ended, and stays set aside until the run
is taken up, which settles it. All of it is done before the first run goes on. Sessions are added up when something of
them goes on. Above: `daemon`. Below: the store and the ledger.
"""

from __future__ import annotations

from collections.abc import Set

from behestd.errors import Corrupt, NewerFormat
from behestd.log.store import RunRow, Store
from behestd.log.usage import UsageQuery
from behestd.runtime.budgets import Ledger, used_of
from behestd.runtime.reading import read_run

_PAGE = 500
_NAMESPACES = 1 << 20


async def load(ledger: Ledger, store: Store, now_ns: int) -> None:
    """Make the accounts of all namespaces right. Does nothing without budgets of namespaces."""
    rules = ledger.rules
    if not rules.has_any:
        return
    used = [rule for rule in (rules.default, *rules.namespaces.values()) if rule is not None]
    for start_ns in sorted({rule.bounds_ns(now_ns)[0] for rule in used}):
        query = UsageQuery("", ("namespace",), start_ns=start_ns, limit=_NAMESPACES)
        for group in (await store.usage(query)).groups:
            account = ledger.account(str(group.key[0]))
            if account is not None and account.start_ns == start_ns:
                account.used = used_of(group)
    after = ("", "")
    while page := await store.unended(_PAGE, after):
        for row in page:
            await _set_aside(ledger, store, row)
        after = (page[-1].namespace, page[-1].run_id)


async def add_earlier(ledger: Ledger, store: Store, right: Set[str], upto: int, now_ns: int) -> None:
    """Add what was used before other budgets came into force, to all accounts but those that are right.

    `upto` is the last commit before that.
    """
    rules = ledger.rules
    used = [rule for rule in (rules.default, *rules.namespaces.values()) if rule is not None]
    for start_ns in sorted({rule.bounds_ns(now_ns)[0] for rule in used}):
        query = UsageQuery("", ("namespace",), start_ns=start_ns, limit=_NAMESPACES, upto=upto)
        for group in (await store.usage(query)).groups:
            account = ledger.account(str(group.key[0])) if group.key[0] not in right else None
            if account is not None and account.start_ns == start_ns:
                account.used = account.used.plus(used_of(group))


async def _set_aside(ledger: Ledger, store: Store, row: RunRow) -> None:
    """Count the open call of a run. One whose log cannot be read is reported when it is taken up."""
    try:
        run = (await read_run(store, row)).run
    except (Corrupt, NewerFormat):
        return
    if run is not None:
        ledger.enter(run)
