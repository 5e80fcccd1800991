"""The records of tool calls: a fold of a run's tool events into one `ToolCallRecord` a call. Used by `views`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.duration_pb2 import Duration

from behest.v1.approval_event_pb2 import ApprovalDecided, ApprovalDecision, ApprovalRequested
from behest.v1.message_pb2 import ToolCall, ToolResult
from behest.v1.model_event_pb2 import ModelCompleted
from behest.v1.node_event_pb2 import NodeStarted
from behest.v1.run_event_pb2 import RunClaimed
from behest.v1.tool_call_pb2 import ToolCallAttempt, ToolCallRecord, ToolCallState
from behest.v1.tool_event_pb2 import (
    ToolCompleted,
    ToolDenied,
    ToolFailed,
    ToolOutcomeUnknown,
    ToolResolved,
    ToolStarted,
)
from behest.v1.tool_pb2 import Executed
from behestd.core.calls import args_hash
from behestd.core.draft import failure_status
from behestd.core.run import Payload
from behestd.core.state import Call, Run
from behestd.core.step import error_result
from behestd.core.times import duration, nanoseconds, timestamp

OF_CALLS = frozenset(
    {
        ToolStarted,
        ToolCompleted,
        ToolFailed,
        ToolDenied,
        ToolOutcomeUnknown,
        ToolResolved,
        ApprovalRequested,
        ApprovalDecided,
    }
)
_ASKS = frozenset({ModelCompleted, NodeStarted})
_ENDS_BY_REASON = {
    "TOOL_TIMEOUT": ToolCallState.TOOL_CALL_STATE_TIMED_OUT,
    "TOOL_CANCELLED": ToolCallState.TOOL_CALL_STATE_CANCELLED,
}


def fold(
    records: dict[str, ToolCallRecord], before: Run | None, after: Run, payloads: Sequence[Payload], now_ns: int
) -> list[ToolCallRecord]:
    """Fold a commit's payloads into the records, in place; gives those that changed, in the order of their change."""
    epoch = before.head.epoch if before is not None else 0
    changed: dict[str, ToolCallRecord] = {}
    for payload in payloads:
        if isinstance(payload, RunClaimed):
            epoch += 1
        elif type(payload) in _ASKS:
            for record in _asked(after, payload, now_ns):
                changed[record.id] = record
        elif type(payload) in OF_CALLS:
            old = changed.get(payload.call_id) or records.get(payload.call_id)
            if old is not None:
                changed[old.id] = _fold_one(old, payload, epoch, now_ns)
    if after.is_ended or after.nodes is not None:
        for call_id in _left(after, {**records, **changed}):
            changed[call_id] = _closed(changed.get(call_id) or records[call_id], now_ns)
    records.update(changed)
    return list(changed.values())


def _left(run: Run, records: dict[str, ToolCallRecord]) -> list[str]:
    """The calls that have no end, and that their run or the node that asked for them has ended without."""
    at_work = {call.call.id for call in run.calls} if not run.is_ended else ()
    return [
        call_id for call_id, record in records.items() if call_id not in at_work and not record.HasField("end_time")
    ]


def _asked(run: Run, payload: ModelCompleted | NodeStarted, now_ns: int) -> Iterable[ToolCallRecord]:
    message_id = ""
    if isinstance(payload, ModelCompleted):
        calls = [part.tool_call for part in payload.message.parts if part.HasField("tool_call")]
        message_id = payload.message.id
    else:
        calls = [payload.call] if payload.HasField("call") else []
    tools = {tool.name: tool for tool in run.definition.tools} if calls else {}
    for index, call in enumerate(calls):
        record = ToolCallRecord(
            id=call.id,
            run_id=run.id,
            session_id=run.created.session_id,
            message_id=message_id,
            step=payload.step,
            index=index,
            tool_name=call.name,
            state=ToolCallState.TOOL_CALL_STATE_QUEUED,
            arguments_json=call.arguments_json,
            args_hash=args_hash(call.arguments_json),
            create_time=timestamp(now_ns),
        )
        tool = tools.get(call.name)
        if tool is not None:
            record.server_id, record.tool_hash = tool.server_id, tool.hash
            record.side_effect = tool.policy.side_effect
        yield record


def _fold_one(old: ToolCallRecord, payload: Payload, epoch: int, now_ns: int) -> ToolCallRecord:  # noqa: C901
    record = ToolCallRecord()
    record.CopyFrom(old)
    match payload:
        case ToolStarted():
            record.state = ToolCallState.TOOL_CALL_STATE_RUNNING
            record.idempotency_key, record.decided_by_rule = payload.key, payload.allowed_by
            record.side_effect = payload.side_effect
            start = timestamp(now_ns)
            record.attempts.append(
                ToolCallAttempt(attempt=payload.attempt, epoch=epoch, start_time=start, deadline=payload.deadline)
            )
        case ToolCompleted():
            _attempt_over(record, payload.elapsed, Executed.EXECUTED_YES)
            record.result.CopyFrom(payload.result)
            _end(record, _COMPLETED, Executed.EXECUTED_YES, now_ns)
        case ToolFailed():
            _fail(record, payload, now_ns)
        case ToolDenied():
            record.decided_by_rule = payload.rule
            record.result.CopyFrom(_error(record, payload.message))
            _end(record, ToolCallState.TOOL_CALL_STATE_DENIED, Executed.EXECUTED_NO, now_ns)
        case ToolOutcomeUnknown():
            record.state = ToolCallState.TOOL_CALL_STATE_OUTCOME_UNKNOWN
            record.executed = Executed.EXECUTED_UNKNOWN
            if payload.HasField("elapsed"):
                _attempt_over(record, payload.elapsed, Executed.EXECUTED_UNKNOWN)
            if payload.reason and record.attempts:
                record.attempts[-1].error.CopyFrom(failure_status(payload.reason, "the attempt brought no answer"))
            if not payload.HasField("until"):
                _end(record, record.state, Executed.EXECUTED_UNKNOWN, now_ns)
        case ToolResolved():
            record.resolved_by, record.resolved_reason = payload.by, payload.reason
            record.state = ToolCallState.TOOL_CALL_STATE_RUNNING
            if payload.HasField("result"):
                record.result.CopyFrom(payload.result)
                _end(record, _COMPLETED, payload.executed, now_ns)
        case ApprovalRequested():
            record.state = ToolCallState.TOOL_CALL_STATE_WAITING
            record.decided_by_rule = payload.rule
        case ApprovalDecided() if payload.decision == ApprovalDecision.APPROVAL_DECISION_APPROVED:
            record.state = ToolCallState.TOOL_CALL_STATE_QUEUED
            if payload.arguments_json:
                record.arguments_json = payload.arguments_json
                record.args_hash = args_hash(payload.arguments_json)
    return record


_COMPLETED = ToolCallState.TOOL_CALL_STATE_COMPLETED
_FAILED = ToolCallState.TOOL_CALL_STATE_FAILED


def _fail(record: ToolCallRecord, payload: ToolFailed, now_ns: int) -> None:
    _attempt_over(record, payload.elapsed, payload.executed)
    if record.attempts and payload.attempt:
        attempt = record.attempts[-1]
        attempt.error.CopyFrom(failure_status(payload.reason, payload.message))
        if payload.HasField("retry_time"):
            attempt.retry_time.CopyFrom(payload.retry_time)
    record.state = ToolCallState.TOOL_CALL_STATE_RUNNING
    if payload.is_final:
        record.result.CopyFrom(_error(record, payload.message))
        _end(record, _ENDS_BY_REASON.get(payload.reason, _FAILED), payload.executed, now_ns)


def _error(record: ToolCallRecord, text: str) -> ToolResult:
    return error_result(Call(ToolCall(id=record.id, name=record.tool_name), None), text)


def _attempt_over(record: ToolCallRecord, elapsed: Duration, executed: Executed.ValueType) -> None:
    if record.attempts:
        record.attempts[-1].elapsed.CopyFrom(elapsed)
        record.attempts[-1].executed = executed


def _end(record: ToolCallRecord, state: ToolCallState.ValueType, executed: Executed.ValueType, now_ns: int) -> None:
    record.state, record.executed = state, executed
    record.end_time.CopyFrom(timestamp(now_ns))
    if record.attempts:
        since_ns = nanoseconds(record.attempts[0].start_time)
        record.elapsed.CopyFrom(duration((now_ns - since_ns) / 1e9))


def _closed(old: ToolCallRecord, now_ns: int) -> ToolCallRecord:
    """A call that its run, or the node that asked for it, ended without."""
    record = ToolCallRecord()
    record.CopyFrom(old)
    if old.state in (ToolCallState.TOOL_CALL_STATE_RUNNING, ToolCallState.TOOL_CALL_STATE_OUTCOME_UNKNOWN):
        _end(record, ToolCallState.TOOL_CALL_STATE_OUTCOME_UNKNOWN, Executed.EXECUTED_UNKNOWN, now_ns)
    else:
        _end(record, ToolCallState.TOOL_CALL_STATE_CANCELLED, Executed.EXECUTED_NO, now_ns)
    return record
