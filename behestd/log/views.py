"""The projection of a run's events into views: the row that lists use, its messages, the records of its tool calls.

Pure. Written in the append's own transaction, so that a crash cannot split log and view; `fsck` makes them again from
logs. Above: `runtime.commit`. Below: the values of `store`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from behest.v1.approval_pb2 import Approval, ApprovalState
from behest.v1.context_event_pb2 import ContextCompacted
from behest.v1.message_pb2 import Message
from behest.v1.run_pb2 import Run as RunMessage
from behest.v1.tool_call_pb2 import ToolCallRecord
from behestd.core.report import report
from behestd.core.run import Payload
from behestd.core.state import Run
from behestd.core.step import message_id
from behestd.core.times import SECOND, nanoseconds, timestamp
from behestd.log import approval_records, call_records
from behestd.log.store import Entry, RunRow

MESSAGE = "message"
CALL = "call"
APPROVAL = "approval"

ENDED = 1 << 62
"""Where the positions of approvals that have ended begin, behind all that are pending: there are ever more of them."""
_INDEX_BITS = 32
_CALL_BITS = 12


def row(run: Run) -> RunRow:
    """The row of a run."""
    created, life, head, is_ended = run.created, run.life, run.head, run.is_ended
    return RunRow(
        namespace=created.namespace,
        run_id=run.id,
        session_id=created.session_id,
        agent_id=run.definition.agent_id,
        state=run.state,
        epoch=head.epoch,
        last_sequence=head.sequence,
        last_hash=head.hash,
        session_index=life.session_index,
        create_time_ns=life.create_ns,
        body=report(run).SerializeToString(),
        is_active=life.session_index > 0 and not is_ended,
        is_ended=is_ended,
        log_bytes=head.log_bytes,
        end_time_ns=life.end_ns,
    )


def reported(row: RunRow) -> RunMessage:
    """What lists show of a stored run; of a tombstone, what is left."""
    if row.body:
        return RunMessage.FromString(row.body)
    return RunMessage(
        id=row.run_id,
        session_id=row.session_id,
        agent_id=row.agent_id,
        state=row.state,  # type: ignore[arg-type]  # one of RunState's numbers
        create_time=timestamp(row.create_time_ns),
        end_time=timestamp(row.end_time_ns) if row.end_time_ns else None,
        head_sequence=row.last_sequence,
        epoch=row.epoch,
        session_index=row.session_index,
    )


def entries(
    before: Run | None, calls: Mapping[str, ToolCallRecord], after: Run, payloads: Sequence[Payload], now_ns: int
) -> tuple[tuple[Entry, ...], dict[str, ToolCallRecord]]:
    """The entries that a commit writes, and the records of the calls that are open after it."""
    rows = [_message(after, index, now_ns) for index in _new_messages(before, after)]
    records: dict[str, ToolCallRecord] = {}
    has_calls = calls or after.step.calls or after.nodes is not None
    if has_calls or not call_records.OF_CALLS.isdisjoint(map(type, payloads)):
        records.update(calls)
        rows += [_call(after, record) for record in call_records.fold(records, before, after, payloads, now_ns)]
        rows += [approval_entry(record) for record in approval_records.fold(before, after, payloads, now_ns)]
        kept = {call.call.id for call in after.calls}
        records = {call_id: record for call_id, record in records.items() if call_id in kept}
    if before is not None and after.compaction.summary is not before.compaction.summary:
        rows += _summaries(after, payloads, now_ns)
    return tuple(rows), records


def _new_messages(before: Run | None, after: Run) -> range:
    if not after.life.session_index:
        return range(0)
    was_started = before is not None and before.life.session_index > 0
    return range(len(before.transcript) if before is not None and was_started else 0, len(after.transcript))


def position(session_index: int, index: int) -> int:
    """Where a message stands in its session: by run, then within the run. Positions are above 0."""
    return session_index << _INDEX_BITS | index + 1


def _message(run: Run, index: int, now_ns: int) -> Entry:
    message = Message()
    message.CopyFrom(run.transcript[index])
    said_id = message.id
    if not said_id:
        said_id = message.id = message_id(run, index)
    message.run_id = run.id
    message.create_time.seconds, message.create_time.nanos = divmod(now_ns, SECOND)
    place = position(run.life.session_index, index)
    return Entry(MESSAGE, said_id, run.created.session_id, run.id, place, message.SerializeToString())


def summary_position(session_index: int, number: int) -> int:
    """Where a summary stands in its session: behind all messages of a run, by a number that the run uses once.

    What it stands for it says itself, since messages that it leaves alone stand before it too.
    """
    return session_index << _INDEX_BITS | 1 << _INDEX_BITS - 1 | number


def next_summary_position(latest: int) -> int:
    """Where a summary stands that no run made, behind the session's latest message or summary."""
    own = latest >> _INDEX_BITS
    return max(latest + 1, summary_position(own, 0))


def is_summary(entry: Entry) -> bool:
    """Whether an entry of a message is that of a summary."""
    return bool(entry.position >> _INDEX_BITS - 1 & 1)


def summary_entry(session_id: str, summary: Message, run_id: str, place: int, now_ns: int) -> Entry:
    """The entry of a summary. It is no message of its run, whose own are counted."""
    message = Message()
    message.CopyFrom(summary)
    message.run_id = run_id
    message.create_time.CopyFrom(timestamp(now_ns))
    return Entry(MESSAGE, message.id, session_id, "", place, message.SerializeToString())


def _summaries(run: Run, payloads: Sequence[Payload], now_ns: int) -> Iterator[Entry]:
    first = run.head.sequence - len(payloads) + 1
    for index, payload in enumerate(payloads):
        if isinstance(payload, ContextCompacted):
            place = summary_position(run.life.session_index, first + index)
            yield summary_entry(run.created.session_id, payload.summary, run.id, place, now_ns)


def call_position(session_index: int, step: int, index: int) -> int:
    """Where a tool call stands in its session: by run, then by step, then in the order of its message."""
    return session_index << _INDEX_BITS | step << _CALL_BITS | index + 1


def _call(run: Run, record: ToolCallRecord) -> Entry:
    place = call_position(run.life.session_index, record.step, record.index)
    return Entry(CALL, record.id, record.session_id, record.run_id, place, record.SerializeToString())


def approval_position(create_ns: int, *, is_pending: bool) -> int:
    """Where an approval stands among those of its namespace: by age, the pending ones apart. Not unique."""
    return create_ns if is_pending else ENDED | create_ns


def approval_entry(record: Approval) -> Entry:
    """The entry of an approval."""
    is_pending = record.state == ApprovalState.APPROVAL_STATE_PENDING
    place = approval_position(nanoseconds(record.create_time), is_pending=is_pending)
    return Entry(APPROVAL, record.call_id, record.session_id, record.run_id, place, record.SerializeToString())
