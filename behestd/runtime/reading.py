"""Reads runs and sessions back from the store: folds logs, gathers history. Nothing is changed here."""

from __future__ import annotations

from behest.v1.definition_pb2 import RunDefinition
from behest.v1.event_pb2 import Event
from behest.v1.message_pb2 import Message
from behest.v1.run_pb2 import Run as RunMessage
from behest.v1.tool_call_pb2 import ToolCallRecord
from behestd.core.compaction import is_summary, seen
from behestd.core.report import report_whole
from behestd.core.run import evolve, rooted
from behestd.core.state import Run
from behestd.core.step import message_id
from behestd.errors import LogCorrupt, OutOfRange, RunNotFound, WatchCompacted
from behestd.log import call_records, frames, views
from behestd.log.store import RunRow, Store
from behestd.reasoning.report import reasoning
from behestd.runtime.commit import Before

_PAGE_BYTES = 1024 * 1024
_READS = (128, 1024)
"""How many of a session's latest messages are read first, in the hope that no more are seen."""


async def definition_of(store: Store, run_id: str, digest: bytes) -> RunDefinition:
    """The definition that a run is pinned to. Raises LogCorrupt when it is gone."""
    data = await store.definition(digest)
    if data is None:
        raise LogCorrupt(run_id, 1, "its definition is gone")
    return RunDefinition.FromString(data)


async def read_run(store: Store, row: RunRow, upto: int = 0) -> Before:
    """Fold a run's log, up to a sequence (0: its head), with the records of its open calls.

    Raises LogCorrupt, NewerFormat, WatchCompacted when the log is deleted.
    """
    if row.first_sequence > 1:
        raise WatchCompacted(row.first_sequence)
    run: Run | None = None
    calls: dict[str, ToolCallRecord] = {}
    trace_id = ""
    after, end = 0, upto or row.last_sequence
    while after < end:
        page = await store.chunks(row.namespace, row.run_id, after, _PAGE_BYTES)
        if not page:
            raise LogCorrupt(row.run_id, after + 1, "the log ends here")
        for data in (event for chunk in page for event in frames.split(chunk.data)):
            event = Event.FromString(data)
            if event.sequence > end:
                break
            before = run
            if before is None:
                trace_id = event.trace_id
                run = rooted(row.run_id, event, data, await _definition(store, row.run_id, event))
            else:
                run = evolve(before, event, data)
                kind = event.WhichOneof("payload") or ""
                now_ns = event.record_time.seconds * 1_000_000_000 + event.record_time.nanos
                call_records.fold(calls, before, run, [getattr(event, kind)], now_ns)
        after = page[-1].last_sequence
    if run is None:
        raise RunNotFound(row.run_id)
    open_calls = {call.call.id for call in run.calls}
    return Before(run, {call_id: record for call_id, record in calls.items() if call_id in open_calls}, trace_id)


async def _definition(store: Store, run_id: str, event: Event) -> RunDefinition:
    if event.WhichOneof("payload") != "run_created":
        raise LogCorrupt(run_id, event.sequence, "the log does not begin with run_created")
    return await definition_of(store, run_id, event.run_created.definition_hash)


async def run_at(store: Store, row: RunRow, sequence: int) -> Run:
    """The state of a run at a sequence. Raises OutOfRange beyond the head."""
    if sequence > row.last_sequence:
        text = f"run {row.run_id} has {row.last_sequence} events, not {sequence}"
        raise OutOfRange(
            "RUN_SEQUENCE_INVALID", text, runId=row.run_id, sequence=sequence, headSequence=row.last_sequence
        )
    before = await read_run(store, row, sequence)
    assert before.run is not None
    return before.run


async def shown(store: Store, run: Run) -> RunMessage:
    """Make what clients see of a run in this state: its messages are those stored, as many as it had then.

    A message that is not stored yet, as of a run that queues, was committed with the run.
    """
    report = report_whole(run)
    if (told := reasoning(run)) is not None:
        report.reasoning.CopyFrom(told)
    count = len(report.messages)
    stored = await store.entries(run.created.namespace, views.MESSAGE, run_id=run.id, limit=count) if count else []
    for index, message in enumerate(report.messages):
        if index < len(stored):
            message.ParseFromString(stored[index].body)
        else:
            message.id = message.id or message_id(run, index)
            message.run_id = run.id
            message.create_time.CopyFrom(report.create_time)
    return report


async def history_of(store: Store, namespace: str, session_id: str, session_index: int, limit: int) -> list[Message]:
    """What the model sees of the session before a run (0: all there is), oldest first, `limit` messages at most.

    Where a summary stands for the oldest part, that part is not read: what is read does not grow with the session. Most
    sessions take one read.
    """
    before = views.position(session_index, 0) if session_index else 1 << 62
    messages: list[Message] = []
    for size in (*(size for size in _READS if size < limit), limit):
        rows = await store.last_entries(namespace, views.MESSAGE, session_id, before, size)
        messages = [Message.FromString(row.body) for row in rows]
        if len(rows) < size or _holds_what_is_seen(messages):
            break
    return list(seen(messages))


def _holds_what_is_seen(messages: list[Message]) -> bool:
    """Whether a summary is among messages, and the last one that it stands for."""
    summary = next((message for message in reversed(messages) if is_summary(message)), None)
    return summary is not None and any(message.id == summary.summary_upto_message_id for message in messages)
