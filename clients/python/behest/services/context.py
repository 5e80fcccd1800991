"""Context: what a model would see of a conversation, and where the rest of it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.order import run_spec
from behest.v1 import context_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import Unpack

    from behest.calls import Calls
    from behest.order import Input, OrderFields
    from behest.v1 import context_pb2
    from behest.v1.context_service_pb2_grpc import ContextServiceAsyncStub


class Context:
    """Calls of ContextService. All raise BehestError."""

    def __init__(self, stub: ContextServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def preview(
        self, said: Input = (), **fields: Unpack[OrderFields]
    ) -> context_service_pb2.BuildContextResponse:
        """Return the first model call of a run that would be created now; nothing is recorded, and no model is called.

        Fields are those of `run`, such as `session_id`, `agent_id` and `model`.
        """
        request = context_service_pb2.BuildContextRequest(spec=run_spec(said, fields))
        return await self._calls.unary(self._stub.BuildContext, request)

    def sources(self) -> AsyncGenerator[context_pb2.ContextSource, None]:
        """Yield the sources that agents can name."""
        request = context_service_pb2.ListContextSourcesRequest()
        return self._calls.pages(self._stub.ListContextSources, request, lambda page: page.sources)
