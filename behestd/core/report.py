"""The `Run` message of the contract: a run's state as clients see it. Used by views (in the append) and by GetRun."""

from __future__ import annotations

from behest.v1.run_event_pb2 import ForkedFrom
from behest.v1.run_pb2 import PendingApproval, RunWait
from behest.v1.run_pb2 import Run as RunMessage
from behestd.core.spend import total
from behestd.core.state import Phase, Run
from behestd.core.times import SECOND, timestamp


def report(run: Run) -> RunMessage:
    """What lists show of a run: not its messages and pending approvals, and of its reasoning only that it has one."""
    created, life, definition, spend, head = run.created, run.life, run.definition, run.spend, run.head
    # Each commit makes one: fields that are set cost two thirds of those that are named to the constructor.
    message = RunMessage(output=life.output, error=life.error, labels=created.labels or None)
    message.id = run.id
    message.session_id = created.session_id
    message.agent_id = definition.agent_id
    message.agent_version = definition.agent_version
    message.state = run.state  # type: ignore[assignment]  # one of RunState's numbers
    message.models.extend(definition.models)
    message.create_time.seconds, message.create_time.nanos = divmod(life.create_ns, SECOND)
    if life.start_ns:
        message.start_time.seconds, message.start_time.nanos = divmod(life.start_ns, SECOND)
    if life.end_ns:
        message.end_time.seconds, message.end_time.nanos = divmod(life.end_ns, SECOND)
    if life.deadline_ns:
        message.deadline.seconds, message.deadline.nanos = divmod(life.deadline_ns, SECOND)
    message.steps = run.steps
    message.tool_calls = spend.tool_calls
    message.usage.CopyFrom(total(spend))
    message.head_sequence, message.epoch = head.sequence, head.epoch
    message.session_index = life.session_index
    message.request_id = created.request_id
    message.principal = created.principal
    message.definition_hash = created.definition_hash
    if life.wait is not None:
        message.wait.CopyFrom(RunWait(reason=life.wait.reason, until=timestamp(life.wait.until_ns)))  # type: ignore[arg-type]
    if created.HasField("parent"):
        message.parent.CopyFrom(created.parent)
    if created.HasField("forked_from"):
        source = created.forked_from
        message.forked_from.CopyFrom(ForkedFrom(run_id=source.run_id, sequence=source.sequence))
    if run.nodes is not None:
        message.reasoning.SetInParent()
    return message


def report_whole(run: Run) -> RunMessage:
    """What GetRun shows of a run: its messages and pending approvals too."""
    message = RunMessage()
    message.CopyFrom(report(run))
    message.messages.extend(run.transcript)
    message.pending_approvals.extend(
        PendingApproval(call=call.call, request=call.asked) for call in run.calls if call.phase is Phase.ASKED
    )
    return message
