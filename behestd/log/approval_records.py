"""The records of approvals: what a commit makes of a run's requests, one `Approval` a call. Pure. Used by `views`.

A request lives no longer than its step, so everything about a pending one is in the state of its run; the record is
written in the append's own transaction, and is what lists and audits read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from behest.v1.approval_event_pb2 import ApprovalDecided, ApprovalDecision, ApprovalRequested
from behest.v1.approval_pb2 import Approval, ApprovalState
from behest.v1.message_pb2 import Message, ToolCall
from behest.v1.model_event_pb2 import ModelCompleted
from behest.v1.node_event_pb2 import NodeStarted
from behestd.core.lanes import lane_of_call
from behestd.core.run import Payload
from behestd.core.state import Phase, Run
from behestd.core.times import timestamp


def fold(before: Run | None, after: Run, payloads: Sequence[Payload], now_ns: int) -> list[Approval]:
    """Make the records that a commit changes, in the order of their change."""
    changed: dict[str, Approval] = {}
    for payload in payloads:
        if isinstance(payload, ApprovalRequested):
            call = _call(before, payloads, payload.call_id)
            changed[payload.call_id] = _requested(after, call, payload, now_ns)
        elif isinstance(payload, ApprovalDecided):
            record = changed.get(payload.call_id) or _pending(before)[payload.call_id]
            changed[payload.call_id] = _decided(record, payload, now_ns)
    if after.is_ended or after.nodes is not None:
        for call_id, record in {**_pending(before), **changed}.items():
            is_left = after.is_ended or after.call(call_id) is None
            if is_left and record.state == ApprovalState.APPROVAL_STATE_PENDING:
                changed[call_id] = _end(record, ApprovalState.APPROVAL_STATE_CANCELLED, now_ns)
    return list(changed.values())


def _pending(before: Run | None) -> dict[str, Approval]:
    """The records of the requests that were open before a commit."""
    if before is None:
        return {}
    return {
        call.call.id: _requested(before, _call(before, (), call.call.id), call.asked, call.asked_ns)
        for call in before.calls
        if call.phase is Phase.ASKED and call.asked is not None
    }


def _requested(run: Run, call: ToolCall, asked: ApprovalRequested, asked_ns: int) -> Approval:
    tool = next(tool for tool in run.definition.tools if tool.name == call.name)
    return Approval(
        call_id=asked.call_id,
        run_id=run.id,
        session_id=run.created.session_id,
        agent_id=run.definition.agent_id,
        tool_name=call.name,
        side_effect=tool.policy.side_effect,
        arguments_json=call.arguments_json,
        args_hash=asked.args_hash,
        rule=asked.rule,
        state=ApprovalState.APPROVAL_STATE_PENDING,
        create_time=timestamp(asked_ns),
        until=asked.until,
    )


def _call(run: Run | None, payloads: Sequence[Payload], call_id: str) -> ToolCall:
    """An open call as it was asked for, by the model or by a node, in what is committed or before that."""
    asked = chain(_asked_now(payloads), _asked_before(run, call_id) if run is not None else ())
    return next(call for call in asked if call.id == call_id)


def _asked_now(payloads: Sequence[Payload]) -> Iterator[ToolCall]:
    for payload in payloads:
        if isinstance(payload, ModelCompleted):
            yield from _calls(payload.message)
        elif isinstance(payload, NodeStarted):
            yield payload.call


def _asked_before(run: Run, call_id: str) -> Iterator[ToolCall]:
    lane = lane_of_call(run, call_id)
    if lane is not None and run.nodes is not None:
        yield run.nodes.visit(lane.visit).started.call
    for message in reversed(run.transcript if lane is None else lane.transcript):
        yield from _calls(message)


def _calls(message: Message) -> Iterator[ToolCall]:
    return (part.tool_call for part in message.parts if part.HasField("tool_call"))


def _decided(record: Approval, payload: ApprovalDecided, now_ns: int) -> Approval:
    expired = payload.decision == ApprovalDecision.APPROVAL_DECISION_EXPIRED
    record.decision = payload.decision
    record.decided_by = payload.by
    record.reason = payload.reason
    record.decided_arguments_json = payload.arguments_json
    state = ApprovalState.APPROVAL_STATE_EXPIRED if expired else ApprovalState.APPROVAL_STATE_DECIDED
    return _end(record, state, now_ns)


def _end(record: Approval, state: ApprovalState.ValueType, now_ns: int) -> Approval:
    record.state = state
    record.end_time.CopyFrom(timestamp(now_ns))
    return record
