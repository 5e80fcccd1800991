"""What calls of models used and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.v1 import usage_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from behest.calls import Calls
    from behest.v1.usage_service_pb2_grpc import UsageServiceAsyncStub


class UsageSums:
    """Calls of UsageService. All raise BehestError."""

    def __init__(self, stub: UsageServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def query(
        self, request: usage_service_pb2.QueryUsageRequest | None = None
    ) -> usage_service_pb2.QueryUsageResponse:
        """Return one page of sums with their total, and how much of the namespace's budget is used."""
        return await self._calls.unary(self._stub.QueryUsage, request or usage_service_pb2.QueryUsageRequest())

    def rows(
        self, request: usage_service_pb2.QueryUsageRequest | None = None
    ) -> AsyncGenerator[usage_service_pb2.UsageRow, None]:
        """Yield the rows that a request asks for, page after page."""
        asked = request or usage_service_pb2.QueryUsageRequest()
        return self._calls.pages(self._stub.QueryUsage, asked, lambda page: page.rows)
