"""ApprovalService: the calls that wait for somebody's word, the words, and the record of them.

Above: the edge. Below: `runtime.approvals`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing

from behest.v1 import approval_service_pb2 as pb
from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.approval_pb2 import Approval, ApprovalState
from behestd.core.signals import Decision
from behestd.errors import InvalidRequest
from behestd.runtime.approvals import Approvals, Query, place_of
from behestd.service.call import Call
from behestd.service.methods import Handler
from behestd.service.pages import page_of
from behestd.service.settings import MIB
from behestd.service.validate import identifier, known, max_bytes, required

_NAME = "/behest.v1.ApprovalService/"
_PAGE_BYTES = 3 * MIB
_MAX_SCANNED = 5_000
"""Most approvals looked at for one page; a page whose filters few pass is shorter, and has a token."""
_MAX_REASON_BYTES = 1024
_MAX_PRINCIPAL_BYTES = 256
_HASH_BYTES = 32
_WORDS = (ApprovalDecision.APPROVAL_DECISION_APPROVED, ApprovalDecision.APPROVAL_DECISION_DENIED)


class ApprovalRequests:
    """Handlers of ApprovalService."""

    def __init__(self, approvals: Approvals) -> None:
        self._approvals = approvals

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "ListApprovals": self.list_approvals,
            _NAME + "GetApproval": self.get_approval,
            _NAME + "DecideApproval": self.decide_approval,
        }

    async def list_approvals(self, request: pb.ListApprovalsRequest, call: Call) -> pb.ListApprovalsResponse:
        """List approvals, oldest first."""
        page = page_of(request, call.namespace, (int, str))
        _check_filters(request)
        last = (int(page.after[0]), str(page.after[1])) if page.after is not None else None
        query = Query(call.namespace, request.session_id, request.run_id, frozenset(request.states))
        response = pb.ListApprovalsResponse()
        size_bytes = scanned = 0
        async with aclosing(self._approvals.walk(query, last)) as found:
            async for approval in found:
                scanned += 1
                is_due = _passes(approval, request)
                size_bytes += approval.ByteSize() if is_due else 0
                is_full = len(response.approvals) == page.size or (response.approvals and size_bytes > _PAGE_BYTES)
                if last is not None and ((is_due and is_full) or scanned > _MAX_SCANNED):
                    response.next_page_token = page.token(*last)
                    break
                if is_due:
                    response.approvals.append(approval)
                last = place_of(approval)
        return response

    async def get_approval(self, request: pb.GetApprovalRequest, call: Call) -> pb.GetApprovalResponse:
        """Get an approval by its call."""
        identifier("call_id", request.call_id)
        return pb.GetApprovalResponse(approval=await self._approvals.get(call.namespace, request.call_id))

    async def decide_approval(self, request: pb.DecideApprovalRequest, call: Call) -> pb.DecideApprovalResponse:
        """Approve or refuse a call."""
        _check_word(request)
        word = Decision(
            call_id=request.call_id,
            decision=request.decision,
            by=call.caller.principal,
            reason=request.reason,
            arguments_json=request.arguments_json,
            args_hash=request.args_hash,
        )
        return pb.DecideApprovalResponse(approval=await self._approvals.decide(call.namespace, word))


def _check_filters(request: pb.ListApprovalsRequest) -> None:
    for field in ("run_id", "session_id", "agent_id", "tool_name"):
        if getattr(request, field):
            identifier(field, getattr(request, field))
    max_bytes("decided_by", request.decided_by, _MAX_PRINCIPAL_BYTES)
    for index, state in enumerate(request.states):
        known(f"states[{index}]", state, ApprovalState.DESCRIPTOR)


def _passes(approval: Approval, request: pb.ListApprovalsRequest) -> bool:
    return (
        request.agent_id in ("", approval.agent_id)
        and request.tool_name in ("", approval.tool_name)
        and request.decided_by in ("", approval.decided_by)
    )


def _check_word(request: pb.DecideApprovalRequest) -> None:
    identifier("call_id", request.call_id)
    known("decision", request.decision, ApprovalDecision.DESCRIPTOR)
    if request.decision not in _WORDS:
        raise InvalidRequest("decision", "must be APPROVED or DENIED")
    max_bytes("reason", request.reason, _MAX_REASON_BYTES)
    is_approved = request.decision == ApprovalDecision.APPROVAL_DECISION_APPROVED
    if is_approved:
        required("args_hash", request.args_hash)
    if request.args_hash and len(request.args_hash) != _HASH_BYTES:
        raise InvalidRequest("args_hash", f"has {len(request.args_hash)} bytes, a SHA-256 has {_HASH_BYTES}")
    if request.arguments_json and not is_approved:
        raise InvalidRequest("arguments_json", "goes only with APPROVED")
