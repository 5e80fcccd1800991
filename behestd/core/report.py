"""The `Run` message of the contract: a run's state as clients see it. Used by views (in the append) and by GetRun."""

from __future__ import annotations

from behest.v1.run_event_pb2 import ForkedFrom
from behest.v1.run_pb2 import PendingApproval, RunWait
from behest.v1.run_pb2 import Run as RunMessage
from behestd.core.spend import total
from behestd.core.state import Phase, Run
from behestd.core.times import timestamp


def report(run: Run) -> RunMessage:
    """What lists show of a run: everything but its messages and pending approvals."""
    created, life, definition = run.created, run.life, run.definition
    message = RunMessage(
        id=run.id,
        session_id=created.session_id,
        agent_id=definition.agent_id,
        agent_version=definition.agent_version,
        state=run.state,  # type: ignore[arg-type]  # one of RunState's numbers
        models=definition.models,
        labels=created.labels or None,
        create_time=timestamp(life.create_ns),
        start_time=timestamp(life.start_ns) if life.start_ns else None,
        end_time=timestamp(life.end_ns) if life.end_ns else None,
        deadline=timestamp(life.deadline_ns) if life.deadline_ns else None,
        steps=run.step.number,
        tool_calls=run.spend.tool_calls,
        usage=total(run.spend),
        output=life.output,
        error=life.error,
        head_sequence=run.head.sequence,
        epoch=run.head.epoch,
        session_index=life.session_index,
        request_id=created.request_id,
        principal=created.principal,
        definition_hash=created.definition_hash,
    )
    if life.wait is not None:
        message.wait.CopyFrom(RunWait(reason=life.wait.reason, until=timestamp(life.wait.until_ns)))  # type: ignore[arg-type]
    if created.HasField("parent"):
        message.parent.CopyFrom(created.parent)
    if created.HasField("forked_from"):
        source = created.forked_from
        message.forked_from.CopyFrom(ForkedFrom(run_id=source.run_id, sequence=source.sequence))
    return message


def report_whole(run: Run) -> RunMessage:
    """What GetRun shows of a run: its messages and pending approvals too."""
    message = RunMessage()
    message.CopyFrom(report(run))
    message.messages.extend(run.transcript)
    message.pending_approvals.extend(
        PendingApproval(call=call.call, request=call.asked) for call in run.step.calls if call.phase is Phase.ASKED
    )
    return message
