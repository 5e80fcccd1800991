"""Forks: what a run that starts from another takes over. Pure."""

from __future__ import annotations

from behest.v1.message_pb2 import Message
from behest.v1.run_event_pb2 import ForkedFrom
from behest.v1.run_spec_pb2 import RunSpec
from behestd.core.state import Run
from behestd.core.step import results
from behestd.core.window import call_ids, missing

_SYNTHETIC = "not executed in this fork"


def fork_of(source: Run, given: RunSpec, source_run_id: str) -> tuple[RunSpec, ForkedFrom]:
    """The spec of a fork, empty fields as in the source, and the transcript that it starts from.

    Results that were there are kept; a call without one gets the synthetic result. Messages lose their ids, since those
    belong to the source's session.
    """
    spec = RunSpec()
    spec.CopyFrom(given)
    spec.agent_id = given.agent_id or source.definition.agent_id
    spec.model = given.model or source.definition.models[0]
    if not given.labels:
        for key, value in source.created.labels.items():
            spec.labels[key] = value
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
