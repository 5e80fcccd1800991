"""Forks: what a run that starts from another takes over. Above: RunService. Below: the store, whose logs are read."""

from __future__ import annotations

from collections.abc import AsyncIterator

from behest.v1.event_pb2 import Event
from behest.v1.message_pb2 import Message
from behest.v1.node_event_pb2 import NodeEvent
from behest.v1.run_event_pb2 import ForkedFrom
from behest.v1.run_spec_pb2 import RunSpec
from behestd.core.state import Run
from behestd.core.step import results
from behestd.core.window import call_ids, missing
from behestd.errors import NodeNotFound
from behestd.log import frames
from behestd.log.store import RunRow, Store
from behestd.runtime import graph_order, task_order

_SYNTHETIC = "not executed in this fork"
_KINDS = {field.name for field in NodeEvent.DESCRIPTOR.oneofs_by_name["payload"].fields}
_PAGE_BYTES = 1024 * 1024


async def sequence_before(store: Store, row: RunRow, visit: int) -> int:
    """The sequence right before a visit of a node begins. Raises NodeNotFound."""
    async for event in _events(store, row):
        if event.node_started.visit == visit:
            return event.sequence - 1
    raise NodeNotFound("", visit)


async def nodes_of(store: Store, row: RunRow, source: Run) -> list[NodeEvent]:
    """What became of the nodes of a run's graph in this state, its own source's first."""
    if not source.definition.HasField("graph"):
        return []
    nodes = list(source.created.forked_from.nodes)
    async for event in _events(store, row):
        if event.sequence > source.head.sequence:
            break
        prefix, _, kind = (event.WhichOneof("payload") or "").partition("_")
        if prefix == "node" and kind in _KINDS:
            nodes.append(NodeEvent(time=event.record_time, **{kind: getattr(event, f"node_{kind}")}))
    return nodes


async def _events(store: Store, row: RunRow) -> AsyncIterator[Event]:
    after = 0
    while after < row.last_sequence:
        page = await store.chunks(row.namespace, row.run_id, after, _PAGE_BYTES)
        if not page:
            return
        for chunk in page:
            for raw in frames.split(chunk.data):
                yield Event.FromString(raw)
        after = page[-1].last_sequence


def follows_source(given: RunSpec) -> bool:
    """Whether a fork follows what its source does: it names no graph of its own."""
    return not given.graph_id and not given.HasField("graph") and not given.HasField("strategy")


def fork_of(source: Run, given: RunSpec, source_run_id: str) -> tuple[RunSpec, ForkedFrom]:
    """The spec of a fork, empty fields as in the source, and the transcript that it starts from.

    Results that were there are kept; a call without one gets the synthetic result. Messages lose their ids, since those
    belong to the source's session. A graph is taken over as it was pinned, and its task with what the order says anew.
    """
    spec = RunSpec()
    spec.CopyFrom(given)
    spec.agent_id = given.agent_id or source.definition.agent_id
    spec.model = given.model or source.definition.models[0]
    if not given.labels:
        for key, value in source.created.labels.items():
            spec.labels[key] = value
    if source.definition.HasField("graph"):
        if follows_source(given):
            spec.graph.CopyFrom(graph_order.bare(source.definition.graph))
        if not given.HasField("task"):
            spec.task.CopyFrom(task_order.forked(source.created.task, task_order.text_of(given.input)))
    forked_from = ForkedFrom(
        run_id=source_run_id, sequence=source.head.sequence, messages=[_bare(said) for said in transcript(source)]
    )
    return spec, forked_from


def transcript(run: Run) -> list[Message]:
    """A run's transcript with a result for each call of its open step."""
    messages = [*run.transcript]
    if messages and call_ids(messages[-1]):
        done = {call.call.id: call.result for call in run.step.calls if call.result is not None}
        answer = results(run)
        for part in missing(call_ids(messages[-1]), _SYNTHETIC).parts:
            if part.tool_result.call_id not in done:
                _replace(answer, part.tool_result.call_id, part)
        messages.append(answer)
    return [*messages, *run.step.inputs]


def _replace(message: Message, call_id: str, part: object) -> None:
    for index, old in enumerate(message.parts):
        if old.tool_result.call_id == call_id:
            message.parts[index].CopyFrom(part)  # type: ignore[arg-type]


def _bare(message: Message) -> Message:
    return Message(role=message.role, parts=message.parts)
