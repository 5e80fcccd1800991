"""Approvals: the tool calls of runs that wait for somebody's word, and who decided what, when and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.v1 import approval_event_pb2, approval_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from behest.calls import Calls
    from behest.v1 import approval_pb2
    from behest.v1.approval_service_pb2_grpc import ApprovalServiceAsyncStub


class Approvals:
    """Calls of ApprovalService. All raise BehestError."""

    def __init__(self, stub: ApprovalServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def get(self, call_id: str) -> approval_pb2.Approval:
        """Return the approval that was asked for a call."""
        request = approval_service_pb2.GetApprovalRequest(call_id=call_id)
        return (await self._calls.unary(self._stub.GetApproval, request)).approval

    def list(
        self, request: approval_service_pb2.ListApprovalsRequest | None = None
    ) -> AsyncGenerator[approval_pb2.Approval, None]:
        """Yield the approvals that a request asks for, oldest first, page after page. Without one: those that wait."""
        return self._calls.pages(
            self._stub.ListApprovals,
            request or approval_service_pb2.ListApprovalsRequest(),
            lambda page: page.approvals,
        )

    async def approve(
        self, approval: approval_pb2.Approval, *, reason: str = "", arguments_json: str = ""
    ) -> approval_pb2.Approval:
        """Let a call go ahead as it was looked at, or with other arguments, which are checked again.

        The same word again is no error.
        """
        return await self._decide(
            approval_service_pb2.DecideApprovalRequest(
                call_id=approval.call_id,
                decision=approval_event_pb2.APPROVAL_DECISION_APPROVED,
                args_hash=approval.args_hash,
                reason=reason,
                arguments_json=arguments_json,
            )
        )

    async def deny(self, call_id: str, *, reason: str = "") -> approval_pb2.Approval:
        """Refuse a call; the model is told the reason. The same word again is no error."""
        return await self._decide(
            approval_service_pb2.DecideApprovalRequest(
                call_id=call_id, decision=approval_event_pb2.APPROVAL_DECISION_DENIED, reason=reason
            )
        )

    async def _decide(self, request: approval_service_pb2.DecideApprovalRequest) -> approval_pb2.Approval:
        return (await self._calls.unary(self._stub.DecideApproval, request)).approval
