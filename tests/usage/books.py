"""What tests of usage share: budgets of the operator, questions to QueryUsage, and rows as they are stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from behest.errors import BehestError
from behest.v1 import usage_service_pb2 as pb
from behest.v1.usage_pb2 import Budget, BudgetUse
from behestd.log.usage import UsageQuery
from behestd.runtime.budget_account import Period, Rule
from behestd.runtime.budgets import Rules
from tests.daemons import Served

MODEL, DAY = pb.USAGE_DIMENSION_MODEL, pb.USAGE_DIMENSION_DAY
AGENT, SESSION, RUN = pb.USAGE_DIMENSION_AGENT, pb.USAGE_DIMENSION_SESSION, pb.USAGE_DIMENSION_RUN
PURPOSE, NAMESPACE = pb.USAGE_DIMENSION_PURPOSE, pb.USAGE_DIMENSION_NAMESPACE


def rules(period: Period = "total", **limits: int) -> Rules:
    """One budget for every namespace."""
    return Rules(Rule(Budget(**limits), period))  # type: ignore[arg-type]


async def query(served: Served, *group_by: pb.UsageDimension.ValueType, **fields: Any) -> pb.QueryUsageResponse:
    """One page of sums, all that there is."""
    return await served.client.usage.query(pb.QueryUsageRequest(group_by=group_by, page_size=1000, **fields))


async def used(served: Served) -> BudgetUse:
    """How much of the namespace's budget is used."""
    return (await query(served)).budget


async def calls(served: Served, **fields: Any) -> int:
    """How many rows are stored of all namespaces."""
    return (await served.daemon.log.store.usage(UsageQuery("", **fields))).total.calls


async def reasons(*started: Awaitable[Any]) -> list[str]:
    """What became of calls and runs, all at once: the reason of an error, empty for those that ended well."""

    async def reason(awaited: Awaitable[Any]) -> str:
        try:
            await awaited
        except BehestError as error:
            return error.reason
        return ""

    async with asyncio.timeout(120):
        return await asyncio.gather(*map(reason, started))


async def until(seen: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again until something is so."""
    async with asyncio.timeout(60):
        while not await seen():
            await asyncio.sleep(0.02)
