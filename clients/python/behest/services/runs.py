"""Runs as records: found, listed, cancelled, forked, deleted. To order and follow one, see `behest.runs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.order import parts, run_spec
from behest.services.ids import new_request_id
from behest.v1 import run_service_pb2, run_state_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import Unpack

    from behest.calls import Calls
    from behest.order import Input, OrderFields
    from behest.v1 import run_pb2
    from behest.v1.run_service_pb2_grpc import RunServiceAsyncStub


class Runs:
    """Calls of RunService. All raise BehestError."""

    def __init__(self, stub: RunServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def get(self, run_id: str, *, at_sequence: int = 0) -> run_pb2.Run:
        """Return a run with its messages, as it is now or as it was at a sequence."""
        request = run_service_pb2.GetRunRequest(run_id=run_id, at_sequence=at_sequence)
        return (await self._calls.unary(self._stub.GetRun, request)).run

    def list(self, request: run_service_pb2.ListRunsRequest | None = None) -> AsyncGenerator[run_pb2.Run, None]:
        """Yield the runs that a request asks for, newest first, page after page."""
        return self._calls.pages(
            self._stub.ListRuns, request or run_service_pb2.ListRunsRequest(), lambda page: page.runs
        )

    async def cancel(self, run_id: str, *, force: bool = False, reason: str = "") -> run_pb2.Run:
        """Cancel a run, and return it once that is durable. Idempotent, and no error when it has ended."""
        mode = run_state_pb2.CANCEL_MODE_FORCE if force else run_state_pb2.CANCEL_MODE_GRACEFUL
        request = run_service_pb2.CancelRunRequest(run_id=run_id, mode=mode, reason=reason)
        return (await self._calls.unary(self._stub.CancelRun, request)).run

    async def send_input(self, run_id: str, said: Input, *, request_id: str = "") -> int:
        """Say something to a run, and return the sequence of its event."""
        request = run_service_pb2.SendInputRequest(
            run_id=run_id, input=parts(said), request_id=request_id or new_request_id()
        )
        return (await self._calls.unary(self._stub.SendInput, request)).sequence

    async def fork(
        self,
        source_run_id: str,
        said: Input = (),
        *,
        sequence: int = 0,
        visit: int = 0,
        request_id: str = "",
        **order: Unpack[OrderFields],
    ) -> run_pb2.Run:
        """Create a run that starts from the transcript of another, up to a sequence (0: its head).

        Without input it goes on where the other stood: forking a failed run so is how it is retried. A run of a graph
        can be forked right before a visit of a node instead, which then begins anew with what follows it.
        """
        request = run_service_pb2.ForkRunRequest(
            source_run_id=source_run_id,
            sequence=sequence,
            visit=visit,
            spec=run_spec(said, order),
            request_id=request_id or new_request_id(),
        )
        return (await self._calls.unary(self._stub.ForkRun, request)).run

    async def delete(self, run_id: str) -> None:
        """Delete the log and the record of a run that has ended. Idempotent."""
        await self._calls.unary(self._stub.DeleteRun, run_service_pb2.DeleteRunRequest(run_id=run_id))

    async def explain(self, run_id: str) -> run_service_pb2.ExplainRunResponse:
        """Return why a run is not moving: its state, and one obstacle per cause, the nearest first."""
        request = run_service_pb2.ExplainRunRequest(run_id=run_id)
        return await self._calls.unary(self._stub.ExplainRun, request)
