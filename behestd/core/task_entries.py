"""The entries of tasks as they are added, changed and told apart. Pure. Above: `task`. Below: `task_limits`.

An entry that is added is cut to its limits and says where it comes from: the mark of the visit that adds it, unless it
says so itself, as what a subgraph came to does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from behest.v1.task_pb2 import (
    Action,
    ArtifactScore,
    Fact,
    Observation,
    Plan,
    PlanStep,
    Provenance,
    Reflection,
    StepStatus,
    TaskArtifact,
    TaskArtifactKind,
    TaskDelta,
    TaskStep,
)
from behestd.core.task_limits import ARTIFACT_BYTES, NAME_BYTES, PLAN_BYTES, PLAN_STEPS, STEP_BYTES, TEXT_BYTES, cut

Entry = Fact | TaskStep | Observation | Action | Reflection | TaskArtifact
"""What the lists of a task hold."""

_NEAREST_FIRST = (
    StepStatus.STEP_STATUS_UNSPECIFIED,
    StepStatus.STEP_STATUS_PENDING,
    StepStatus.STEP_STATUS_IN_PROGRESS,
    StepStatus.STEP_STATUS_SKIPPED,
    StepStatus.STEP_STATUS_FAILED,
    StepStatus.STEP_STATUS_COMPLETED,
)


Marked = TypeVar("Marked", bound=Entry | Plan)
"""What says where it comes from."""


def is_answer(artifact: TaskArtifact) -> bool:
    """Whether an artifact achieves the goal."""
    return artifact.kind == TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER


# --- as they are added ---


def mark_of(source: Provenance, score: float | None = None) -> Provenance:
    """Where an entry comes from, in short: without what its visit consumed, and with this score."""
    time = source.time if source.HasField("time") else None
    return Provenance(node=source.node, visit=source.visit, time=time, score=score)


def _stamp(entry: Fact | Plan | TaskStep | Observation | Action | Reflection, mark: Provenance) -> Provenance:
    """Where an entry comes from: what it says itself, or the mark of the visit that adds it."""
    return entry.provenance if entry.provenance.visit else mark


def fact(entry: Fact, mark: Provenance) -> Fact:
    return Fact(text=cut(entry.text, TEXT_BYTES), provenance=_stamp(entry, mark))


def step(entry: TaskStep, mark: Provenance) -> TaskStep:
    return TaskStep(
        operator=entry.operator,
        input=cut(entry.input, STEP_BYTES),
        output=cut(entry.output, STEP_BYTES),
        status=entry.status,
        provenance=_stamp(entry, mark),
    )


def observation(entry: Observation, number: int, mark: Provenance) -> Observation:
    return Observation(
        source=entry.source,
        content=cut(entry.content, TEXT_BYTES),
        sequence=number,
        provenance=_stamp(entry, mark),
    )


def action(entry: Action, mark: Provenance) -> Action:
    return Action(
        tool=entry.tool,
        input_json=cut(entry.input_json, TEXT_BYTES),
        output=cut(entry.output, TEXT_BYTES),
        is_error=entry.is_error,
        provenance=_stamp(entry, mark),
    )


def reflection(entry: Reflection, mark: Provenance) -> Reflection:
    return Reflection(
        content=cut(entry.content, TEXT_BYTES), revised_plan=entry.revised_plan, provenance=_stamp(entry, mark)
    )


def artifact(entry: TaskArtifact, mark: Provenance) -> TaskArtifact:
    """An artifact as it is added. One that comes with a score keeps it."""
    if entry.provenance.visit:
        source = entry.provenance
    else:
        score = entry.provenance.score if entry.provenance.HasField("score") else None
        source = mark_of(mark, score)
    return TaskArtifact(
        kind=entry.kind,
        title=cut(entry.title, NAME_BYTES),
        content=entry.content if is_answer(entry) else cut(entry.content, ARTIFACT_BYTES),
        artifact_id=entry.artifact_id,
        provenance=source,
    )


def with_scores(artifacts: tuple[TaskArtifact, ...], scores: Sequence[ArtifactScore]) -> tuple[TaskArtifact, ...]:
    if not scores:
        return artifacts
    by_place = {score.index: score.score for score in scores}
    return tuple(
        with_score(artifact, by_place[place]) if place in by_place else artifact
        for place, artifact in enumerate(artifacts)
    )


def with_score(artifact: TaskArtifact, score: float | None) -> TaskArtifact:
    """The artifact with a score, or with none."""
    return TaskArtifact(
        kind=artifact.kind,
        title=artifact.title,
        content=artifact.content,
        artifact_id=artifact.artifact_id,
        provenance=mark_of(artifact.provenance, score),
    )


def numbered(observation: Observation, number: int) -> Observation:
    """The observation with this number; the same object when it has it already."""
    if observation.sequence == number:
        return observation
    return Observation(
        source=observation.source,
        content=observation.content,
        sequence=number,
        provenance=observation.provenance if observation.HasField("provenance") else None,
    )


def unmarked(entry: Marked) -> Marked:
    """The entry without where it comes from; an artifact keeps its score."""
    if not entry.HasField("provenance"):
        return entry
    source = entry.provenance
    score = source.score if isinstance(entry, TaskArtifact) and source.HasField("score") else None
    kept = Provenance(score=score) if score is not None else None
    fields = {field.name: value for field, value in entry.ListFields() if field.name != "provenance"}
    return type(entry)(**fields, provenance=kept)


# --- the plan ---


def changed_plan(plan: Plan | None, delta: TaskDelta, mark: Provenance) -> Plan | None:
    """The plan after what a visit does to it: it is replaced, then its steps are changed, then they are ordered.

    A new order is a new plan; steps that it does not name stay behind those that it names.
    """
    if delta.HasField("plan"):
        steps = [_cut_step(step) for step in delta.plan.steps[:PLAN_STEPS]]
        rationale = cut(delta.plan.rationale, PLAN_BYTES)
        plan = Plan(rationale=rationale, steps=steps, provenance=_stamp(delta.plan, mark))
    if plan is not None and delta.plan_changes:
        plan = with_statuses(plan, {change.index: change.status for change in delta.plan_changes})
    if plan is not None and delta.plan_order:
        places = range(len(plan.steps))
        named = [place for place in dict.fromkeys(delta.plan_order) if place in places]
        order = [*named, *(place for place in places if place not in named)]
        plan = Plan(rationale=plan.rationale, steps=[plan.steps[place] for place in order], provenance=mark)
    return plan


def with_statuses(plan: Plan, statuses: Mapping[int, StepStatus.ValueType]) -> Plan:
    """The plan with other statuses of some steps, by their places."""
    return Plan(
        rationale=plan.rationale,
        steps=[
            PlanStep(description=step.description, status=statuses.get(place, step.status))
            for place, step in enumerate(plan.steps)
        ],
        provenance=plan.provenance if plan.HasField("provenance") else None,
    )


def _cut_step(step: PlanStep) -> PlanStep:
    return PlanStep(description=cut(step.description, PLAN_BYTES), status=step.status)


def caught_up(plan: Plan, others: Sequence[Plan]) -> Plan:
    """The plan in which no step is behind what others say of it.

    Steps are told by their words, and of the same words by their order. Of a plan of another visit it counts alone that
    a step is completed: the newer plan may have taken a failed one up again.
    """
    statuses: dict[int, StepStatus.ValueType] = {}
    steps = _by_words(plan)
    for other in others:
        is_same = other.provenance.visit == plan.provenance.visit
        for words, place in _by_words(other).items():
            status = other.steps[place].status
            mine = steps.get(words)
            if mine is None or not (is_same or status == StepStatus.STEP_STATUS_COMPLETED):
                continue
            if _distance(status) > _distance(statuses.get(mine, plan.steps[mine].status)):
                statuses[mine] = status
    return with_statuses(plan, statuses) if statuses else plan


def _distance(status: int) -> int:
    return _NEAREST_FIRST.index(status) if status in _NEAREST_FIRST else 0


def _by_words(plan: Plan) -> dict[tuple[str, int], int]:
    """The places of a plan's steps by their words and how often those stood before."""
    counts: Counter[str] = Counter()
    places = {}
    for place, step in enumerate(plan.steps):
        places[step.description, counts[step.description]] = place
        counts[step.description] += 1
    return places


# --- told apart ---


def key(entry: Entry) -> bytes:
    """What an entry is told by: all of it, save the number of an observation and the score of an artifact."""
    if isinstance(entry, Observation):
        entry = numbered(entry, 0)
    elif isinstance(entry, TaskArtifact):
        entry = with_score(entry, None)
    return entry.SerializeToString(deterministic=True)


def better(entry: Entry, same: Entry) -> Entry:
    """Of two that are told alike, the artifact with the higher score; else the first."""
    if isinstance(entry, TaskArtifact) and isinstance(same, TaskArtifact):
        return max(entry, same, key=_score)
    return entry


def _score(artifact: TaskArtifact) -> float:
    return artifact.provenance.score if artifact.provenance.HasField("score") else -1.0


# --- measured ---

TEXTS: dict[str, tuple[str, ...]] = {
    "facts": ("text",),
    "steps": ("input", "output"),
    "observations": ("content",),
    "actions": ("input_json", "output"),
    "reflections": ("content",),
    "artifacts": ("content",),
}
"""The lists of a task, and the texts of their entries that count towards its limits."""


def is_kept(entry: object) -> bool:
    """Whether an entry is never left out."""
    return isinstance(entry, TaskArtifact) and is_answer(entry)
