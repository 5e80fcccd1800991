"""The task that a run's graph starts from: what its order gives, and what it leaves empty. Pure.

Above: `birth`, which puts it into RunCreated, and `orders`, which refuses what no run is to start from. What was given
counts as given: it loses its provenance, since the visits that it names are another run's. An answer among it would end
the run before it begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from google.protobuf.descriptor import EnumDescriptor

from behest.v1.message_pb2 import Part
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.task_pb2 import ConstraintStrength, ObservationSource, StepStatus, Task, TaskArtifactKind
from behestd.errors import InvalidRequest, TooLarge

GOAL_BYTES = 64 * 1024
INPUT_BYTES = 256 * 1024
CONSTRAINT_BYTES = 4 * 1024
CRITERIA = 64
_ANSWER = TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER


def task_of(spec: RunSpec) -> Task:
    """The task of an order: what it gives; the text is the goal where that is empty, else what is to be worked on."""
    task = Task()
    task.CopyFrom(spec.task)
    task.ClearField("metadata")
    given = (task.context.facts, task.steps, task.observations, task.actions, task.reflections, task.artifacts)
    for entry in (entry for entries in given for entry in entries):
        entry.ClearField("provenance")
    if task.HasField("plan"):
        task.plan.ClearField("provenance")
    for number, observation in enumerate(task.observations, 1):
        observation.sequence = number
    text = text_of(spec.input)
    if not task.goal.description:
        task.goal.description = text
    elif text and not task.context.input:
        task.context.input = text
    return task


def text_of(parts: Sequence[Part]) -> str:
    """What an order says in words."""
    return "\n".join(part.json.json if part.HasField("json") else part.text.text for part in parts)


def forked(source: Task, text: str) -> Task:
    """The task of a source, such that another order's text takes the place of the source's own."""
    task = Task()
    task.CopyFrom(source)
    if text and task.context.input:
        task.context.ClearField("input")
    elif text:
        task.goal.ClearField("description")
    return task


def check(spec: RunSpec, limit_bytes: int) -> None:
    """Refuse a task that no run is to start from. Raises InvalidRequest and TooLarge."""
    for index, part in enumerate(spec.input):
        if part.WhichOneof("kind") not in ("text", "json"):
            raise InvalidRequest(f"spec.input[{index}]", "a graph works on texts; name an artifact in the task")
    task = task_of(spec)
    if not task.goal.description:
        raise InvalidRequest("spec.task.goal.description", "is required")
    _check_sizes(task)
    for field, value, enum in _values(task):
        if value not in enum.values_by_number:
            raise InvalidRequest(f"spec.task.{field}", f"{value} is not known to this version")
    for index, artifact in enumerate(task.artifacts):
        if artifact.kind == _ANSWER:
            raise InvalidRequest(f"spec.task.artifacts[{index}].kind", "is an answer: nothing is left to be done")
    if task.ByteSize() > limit_bytes:
        raise TooLarge("spec.task", task.ByteSize(), limit_bytes)


def _check_sizes(task: Task) -> None:
    criteria = len(task.goal.success_criteria)
    if criteria > CRITERIA:
        problem = f"has {criteria} entries, at most {CRITERIA} are allowed"
        raise InvalidRequest("spec.task.goal.success_criteria", problem)
    _check_size("spec.task.goal.description", task.goal.description, GOAL_BYTES)
    _check_size("spec.task.context.input", task.context.input, INPUT_BYTES)
    for index, constraint in enumerate(task.constraints):
        field = f"spec.task.constraints[{index}].text"
        if not constraint.text:
            raise InvalidRequest(field, "is required")
        _check_size(field, constraint.text, CONSTRAINT_BYTES)


def _values(task: Task) -> Iterator[tuple[str, int, EnumDescriptor]]:
    """The values of enums in a task, each with its field and its enum."""
    for index, constraint in enumerate(task.constraints):
        yield f"constraints[{index}].strength", constraint.strength, ConstraintStrength.DESCRIPTOR
    for index, planned in enumerate(task.plan.steps):
        yield f"plan.steps[{index}].status", planned.status, StepStatus.DESCRIPTOR
    for index, step in enumerate(task.steps):
        yield f"steps[{index}].status", step.status, StepStatus.DESCRIPTOR
    for index, observation in enumerate(task.observations):
        yield f"observations[{index}].source", observation.source, ObservationSource.DESCRIPTOR
    for index, artifact in enumerate(task.artifacts):
        yield f"artifacts[{index}].kind", artifact.kind, TaskArtifactKind.DESCRIPTOR


def _check_size(field: str, text: str, limit_bytes: int) -> None:
    size_bytes = len(text.encode())
    if size_bytes > limit_bytes:
        raise TooLarge(field, size_bytes, limit_bytes)
