"""The `Run` message of the contract: a run's state as clients see it. Used by views (in the append) and by GetRun."""

from __future__ import annotations

from behest.v1.run_event_pb2 import ForkedFrom
from behest.v1.run_pb2 import PendingApproval, RunWait
from behest.v1.run_pb2 import Run as RunMessage
from behestd.core.spend import add_up
from behestd.core.state import Life, Phase, Run
from behestd.core.times import set_timestamp, timestamp


def report(run: Run) -> RunMessage:
    """What lists show of a run: not its messages and pending approvals, and of its reasoning only that it has one."""
    created, definition, spend, head = run.created, run.definition, run.spend, run.head
    # Each commit makes one: fields that are set cost two thirds of those that are named to the constructor.
    message = RunMessage()
    message.id = run.id
    message.session_id = created.session_id
    message.agent_id = definition.agent_id
    message.agent_version = definition.agent_version
    message.state = run.state  # type: ignore[assignment]  # one of RunState's numbers
    message.models.extend(definition.models)
    _tell_life(message, run.life)
    message.steps = run.steps
    message.tool_calls = spend.tool_calls
    add_up(spend, message.usage)
    message.head_sequence, message.epoch = head.sequence, head.epoch
    message.request_id = created.request_id
    message.principal = created.principal
    message.definition_hash = created.definition_hash
    if created.labels:
        message.labels.update(created.labels)
    if created.HasField("parent"):
        message.parent.CopyFrom(created.parent)
    if created.HasField("forked_from"):
        source = created.forked_from
        message.forked_from.CopyFrom(ForkedFrom(run_id=source.run_id, sequence=source.sequence))
    if run.nodes is not None:
        message.reasoning.SetInParent()
    return message


def _tell_life(message: RunMessage, life: Life) -> None:
    """Tell a run's place in time, and how it ended."""
    set_timestamp(message.create_time, life.create_ns)
    if life.start_ns:
        set_timestamp(message.start_time, life.start_ns)
    if life.end_ns:
        set_timestamp(message.end_time, life.end_ns)
    if life.deadline_ns:
        set_timestamp(message.deadline, life.deadline_ns)
    message.session_index = life.session_index
    if life.output is not None:
        message.output.CopyFrom(life.output)
    if life.error is not None:
        message.error.CopyFrom(life.error)
    if life.wait is not None:
        message.wait.CopyFrom(RunWait(reason=life.wait.reason, until=timestamp(life.wait.until_ns)))  # type: ignore[arg-type]


def report_whole(run: Run) -> RunMessage:
    """What GetRun shows of a run: its messages and pending approvals too."""
    message = RunMessage()
    message.CopyFrom(report(run))
    message.messages.extend(run.transcript)
    message.pending_approvals.extend(
        PendingApproval(call=call.call, request=call.asked) for call in run.calls if call.phase is Phase.ASKED
    )
    return message
