"""Words of people about tool calls: approvals and their expiry, and what became of calls in doubt. Above: `decide`."""

from __future__ import annotations

from behest.v1 import tool_event_pb2 as tools
from behest.v1.approval_event_pb2 import ApprovalDecided, ApprovalDecision
from behest.v1.definition_pb2 import PermissionAction
from behest.v1.message_pb2 import ToolResult
from behest.v1.run_state_pb2 import RunState
from behest.v1.tool_pb2 import Executed, Tool
from behestd.core import calls
from behestd.core.draft import Draft
from behestd.core.permission import permit
from behestd.core.signals import Decision, Resolution
from behestd.core.state import Phase, state_name
from behestd.core.step import IN_DOUBT, error_result
from behestd.errors import InvalidRequest, NotFound, RunEnding, WrongState


def decided(draft: Draft, signal: Decision) -> None:
    """Record a decision about a call that waits for one.

    Raises NotFound for a call that never asked, WrongState for one that does not wait or has expired, RunEnding, and
    InvalidRequest for the hash of other arguments, and for new arguments that do not keep the tool's schema or that a
    rule denies.
    """
    call = draft.run.call(signal.call_id)
    if call is None or call.tool is None:
        raise NotFound("APPROVAL_NOT_FOUND", "there is no such request", runId=draft.run.id, callId=signal.call_id)
    if call.phase is not Phase.ASKED:
        raise WrongState("APPROVAL_DECIDED", "the request has its decision", callId=signal.call_id)
    if draft.run.state == RunState.RUN_STATE_CANCELLING:
        raise RunEnding(draft.run.id, state_name(draft.run.state))
    expires = signal.decision == ApprovalDecision.APPROVAL_DECISION_EXPIRED
    if call.due_ns <= draft.given.now_ns and not expires:
        raise WrongState("APPROVAL_EXPIRED", "the request has expired", callId=signal.call_id)
    if signal.args_hash and signal.args_hash != calls.args_hash(call.call.arguments_json):
        raise InvalidRequest("args_hash", "is not that of the arguments that are asked for")
    if signal.arguments_json:
        _check_edited(draft, call.tool, signal.arguments_json)
    draft.note(
        ApprovalDecided(
            call_id=signal.call_id,
            by=signal.by,
            decision=signal.decision,
            reason=signal.reason,
            arguments_json=signal.arguments_json,
        )
    )
    if signal.decision != ApprovalDecision.APPROVAL_DECISION_APPROVED:
        text = f"the call was refused: {signal.reason}" if signal.reason else "the call was refused"
        draft.note(tools.ToolDenied(call_id=signal.call_id, rule="approval", message=text))
        calls.fail_if_told(draft, call, "TOOL_DENIED", text)


def _check_edited(draft: Draft, tool: Tool, arguments_json: str) -> None:
    """Refuse arguments that break the schema or that a rule denies: rules see the very bytes that are sent."""
    problem = draft.given.validate(tool, arguments_json)
    arguments = calls.arguments_of(arguments_json)
    if problem or arguments is None:
        raise InvalidRequest("arguments_json", problem or "not a JSON object", reason="TOOL_ARGUMENTS_INVALID")
    answer = permit(draft.run.definition, tool, arguments)
    if answer.action == PermissionAction.PERMISSION_ACTION_DENY:
        raise InvalidRequest("arguments_json", f"rule {answer.rule} denies them", reason="TOOL_DENIED")


def expire_approvals(draft: Draft) -> None:
    """Refuse the calls whose approval nobody gave in time."""
    for call in draft.run.calls:
        if call.phase is Phase.ASKED and call.due_ns <= draft.given.now_ns and not draft.run.is_ended:
            expired = Decision(call.call.id, ApprovalDecision.APPROVAL_DECISION_EXPIRED, "", "nobody answered in time")
            decided(draft, expired)


def resolved(draft: Draft, signal: Resolution) -> None:
    """Record somebody's word on a call whose outcome is unknown; without a result, NO sends it again.

    Raises NotFound and WrongState.
    """
    call = draft.run.call(signal.call_id)
    if call is None:
        raise NotFound("TOOL_CALL_NOT_FOUND", "there is no such call", callId=signal.call_id)
    if call.phase is not Phase.UNKNOWN:
        raise WrongState("TOOL_CALL_RESOLVED", "the call has its outcome", callId=signal.call_id)
    executed = signal.executed or Executed.EXECUTED_UNKNOWN
    result = signal.result
    if result is not None:
        result = ToolResult(
            call_id=call.call.id,
            name=call.call.name,
            parts=result.parts,
            is_error=result.is_error,
            truncated=result.truncated,
            artifact_id=result.artifact_id,
        )
    elif executed != Executed.EXECUTED_NO:
        lost = executed == Executed.EXECUTED_YES
        result = error_result(call, "the call took effect; its result is lost" if lost else IN_DOUBT)
    calls.resolve(draft, call, signal.by, executed, result, reason=signal.reason)
