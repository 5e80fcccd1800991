"""UsageService: what calls used and cost, summed. Above: the edge. Below: the store's sums, the ledger of budgets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from behest.v1 import usage_service_pb2 as pb
from behest.v1.usage_pb2 import Usage
from behestd.core.times import nanoseconds
from behestd.errors import InvalidRequest
from behestd.log.usage import Sums, UsageQuery
from behestd.runtime.house import House
from behestd.service.call import Call
from behestd.service.methods import Handler
from behestd.service.pages import Page, Position, page_of
from behestd.service.scopes import ADMIN, authorise
from behestd.service.validate import identifier, known, max_bytes

_MAX_MODEL_BYTES = 512
_DIMENSIONS = {
    pb.USAGE_DIMENSION_DAY: "day",
    pb.USAGE_DIMENSION_MODEL: "model",
    pb.USAGE_DIMENSION_AGENT: "agent_id",
    pb.USAGE_DIMENSION_SESSION: "session_id",
    pb.USAGE_DIMENSION_RUN: "run_id",
    pb.USAGE_DIMENSION_PURPOSE: "purpose",
    pb.USAGE_DIMENSION_NAMESPACE: "namespace",
}
_NUMBERS = ("day", "purpose")
_LAST_NS = (1 << 63) - 1
_FIRST_DAY = date(1970, 1, 1)
_MOST_CALLS = (1 << 31) - 1


class UsageSums:
    """Handlers of UsageService."""

    def __init__(self, house: House) -> None:
        self._house = house

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {"/behest.v1.UsageService/QueryUsage": self.query_usage}

    async def query_usage(self, request: pb.QueryUsageRequest, call: Call) -> pb.QueryUsageResponse:
        """Sum usage over a range of time, in one row for each group."""
        group_by = _check(request)
        kinds: tuple[type[int | str], ...] = tuple(int if name in _NUMBERS else str for name in group_by)
        page = page_of(request, call.namespace, (int, *kinds))
        namespace = call.namespace
        if "namespace" in group_by:
            authorise(call.caller, ADMIN)
            namespace = ""
        found = await self._house.log.store.usage(_query(request, namespace, group_by, page))
        response = pb.QueryUsageResponse(
            rows=[_row(group, group_by) for group in found.groups[: page.size]], total=_row(found.total, ())
        )
        if len(found.groups) > page.size:
            last: Position = (found.upto, *found.groups[page.size - 1].key)
            response.next_page_token = page.token(*last)
        account = self._house.ledger.account(call.namespace)
        if account is not None:
            response.budget.CopyFrom(account.shown())
        return response


def _check(request: pb.QueryUsageRequest) -> tuple[str, ...]:
    """Check a request, and give what it groups by."""
    for index, dimension in enumerate(request.group_by):
        known(f"group_by[{index}]", dimension, pb.UsageDimension.DESCRIPTOR)
    group_by = tuple(_DIMENSIONS[dimension] for dimension in request.group_by)
    if len(set(group_by)) < len(group_by):
        raise InvalidRequest("group_by", "names a dimension twice")
    known("purpose", request.purpose, pb.UsagePurpose.DESCRIPTOR, may_be_unset=True)
    max_bytes("model", request.model, _MAX_MODEL_BYTES)
    for name in ("agent_id", "session_id", "run_id"):
        if value := getattr(request, name):
            identifier(name, value)
    start_ns, end_ns = (_time_ns(request, name) for name in ("start_time", "end_time"))
    if request.HasField("end_time") and end_ns < start_ns:
        raise InvalidRequest("end_time", "is before start_time")
    return group_by


def _time_ns(request: pb.QueryUsageRequest, name: str) -> int:
    time: Timestamp = getattr(request, name)
    if not 0 <= time.nanos < 1_000_000_000 or nanoseconds(time) > _LAST_NS:
        raise InvalidRequest(name, "is out of range")
    return max(nanoseconds(time), 0)


def _query(request: pb.QueryUsageRequest, namespace: str, group_by: tuple[str, ...], page: Page) -> UsageQuery:
    """The store's query for a page: one group more than it has, to know whether there is a next one."""
    end_ns = max(_time_ns(request, "end_time"), 1) if request.HasField("end_time") else 0
    return UsageQuery(
        namespace=namespace,
        group_by=group_by,
        start_ns=_time_ns(request, "start_time"),
        end_ns=end_ns,
        model=request.model,
        agent_id=request.agent_id,
        session_id=request.session_id,
        run_id=request.run_id,
        purpose=request.purpose,
        after=page.after[1:] if page.after is not None else None,
        limit=page.size + 1,
        upto=int(page.after[0]) if page.after is not None else 0,
    )


def _row(sums: Sums, group_by: tuple[str, ...]) -> pb.UsageRow:
    usage = Usage(
        input_tokens=sums.input_tokens,
        output_tokens=sums.output_tokens,
        cached_input_tokens=sums.cached_input_tokens,
        cache_write_tokens=sums.cache_write_tokens,
        reasoning_tokens=sums.reasoning_tokens,
        cost_micro_usd=sums.cost_micro_usd,
        attempts=min(sums.calls, _MOST_CALLS),
    )
    row = pb.UsageRow(usage=usage, estimated_calls=sums.estimated, unpriced_calls=sums.unpriced)
    for name, value in zip(group_by, sums.key, strict=True):
        if name == "day":
            row.day = (_FIRST_DAY + timedelta(days=int(value))).isoformat()
        else:
            setattr(row, name, value)
    if sums.input_tokens:
        # Whatever the vendor counts, input tokens hold those that came from its cache and went to it.
        row.cache_hit_ratio = sums.cached_input_tokens / sums.input_tokens
    return row
