"""Tasks and what visits add to them, drawn by hypothesis."""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st

from behest.v1.task_pb2 import (
    Action,
    ArtifactScore,
    Constraint,
    ConstraintStrength,
    Fact,
    Goal,
    Observation,
    ObservationSource,
    Plan,
    PlanStep,
    PlanStepChange,
    Provenance,
    Reflection,
    StepStatus,
    Task,
    TaskArtifact,
    TaskArtifactKind,
    TaskContext,
    TaskDelta,
    TaskMetadata,
    TaskStep,
)
from behest.v1.usage_pb2 import Usage
from behestd.core.task import TaskState, extended, given

WORDS = st.sampled_from(["", "a", "b", "two words", "more\nlines", "ö\u2028ü"])
SCORES = st.none() | st.sampled_from([0.0, 0.5, 1.0])


def listed(entries: st.SearchStrategy[object], most: int = 3) -> st.SearchStrategy[list[object]]:
    return st.lists(entries, max_size=most)


def of_enum(enum: object) -> st.SearchStrategy[int]:
    return st.sampled_from(enum.values())  # type: ignore[attr-defined]  # a generated enum


PROVENANCES = st.builds(
    Provenance,
    node=st.sampled_from(["", "solve", "inner/solve"]),
    visit=st.integers(0, 3),
    time=st.none() | st.builds(Timestamp, seconds=st.integers(0, 9)),
    usage=st.none() | st.builds(Usage, input_tokens=st.integers(0, 9)),
    score=SCORES,
)
SOURCE = st.none() | PROVENANCES
CONSTRAINTS = st.builds(Constraint, text=WORDS, strength=of_enum(ConstraintStrength))
FACTS = st.builds(Fact, text=WORDS, provenance=SOURCE)
PLAN_STEPS = st.builds(PlanStep, description=WORDS, status=of_enum(StepStatus))
PLANS = st.builds(Plan, rationale=WORDS, steps=listed(PLAN_STEPS), provenance=SOURCE)
STEPS = st.builds(TaskStep, operator=WORDS, input=WORDS, output=WORDS, status=of_enum(StepStatus), provenance=SOURCE)
OBSERVATIONS = st.builds(
    Observation, source=of_enum(ObservationSource), content=WORDS, sequence=st.integers(0, 5), provenance=SOURCE
)
ACTIONS = st.builds(Action, tool=WORDS, input_json=WORDS, output=WORDS, is_error=st.booleans(), provenance=SOURCE)
REFLECTIONS = st.builds(Reflection, content=WORDS, revised_plan=st.booleans(), provenance=SOURCE)
ARTIFACTS = st.builds(
    TaskArtifact, kind=of_enum(TaskArtifactKind), title=WORDS, content=WORDS, artifact_id=WORDS, provenance=SOURCE
)

TASKS = st.builds(
    Task,
    goal=st.builds(Goal, description=WORDS, success_criteria=listed(WORDS)),
    constraints=listed(CONSTRAINTS),
    context=st.builds(TaskContext, facts=listed(FACTS), domain=WORDS, input=WORDS, domain_provenance=SOURCE),
    plan=st.none() | PLANS,
    steps=listed(STEPS),
    observations=listed(OBSERVATIONS),
    actions=listed(ACTIONS),
    reflections=listed(REFLECTIONS),
    artifacts=listed(ARTIFACTS),
    metadata=st.builds(TaskMetadata, iteration=st.integers(0, 3), omitted=st.integers(0, 3)),
)

DELTAS = st.builds(
    TaskDelta,
    facts=listed(FACTS, 2),
    domain=st.sampled_from(["", "law", "music"]),
    constraints=listed(CONSTRAINTS, 2),
    success_criteria=listed(WORDS, 2),
    plan=st.none() | st.builds(Plan, rationale=WORDS, steps=listed(PLAN_STEPS)),
    plan_changes=listed(st.builds(PlanStepChange, index=st.integers(-1, 4), status=of_enum(StepStatus)), 2),
    plan_order=listed(st.integers(-1, 4)),
    # Each visit leaves a step.
    steps=st.lists(st.builds(TaskStep, operator=WORDS, status=of_enum(StepStatus)), min_size=1, max_size=1),
    observations=listed(st.builds(Observation, content=WORDS), 2),
    actions=listed(st.builds(Action, tool=WORDS), 2),
    reflections=listed(st.builds(Reflection, content=WORDS), 2),
    artifacts=listed(st.builds(TaskArtifact, kind=of_enum(TaskArtifactKind), content=WORDS), 2),
    artifact_scores=listed(
        st.builds(ArtifactScore, index=st.integers(-1, 4), score=st.sampled_from([0.0, 0.4, 1.0])), 2
    ),
)


def visited(state: TaskState, delta: TaskDelta, visit: int) -> TaskState:
    """The task after a visit."""
    return extended(state, delta, Provenance(node=f"node-{visit}", visit=visit, time=Timestamp(seconds=visit)))


@st.composite
def families(draw: st.DrawFn, most: int = 3) -> list[TaskState]:
    """Tasks that come from the same one, each on a way of its own."""
    visit = 0
    state = given(draw(TASKS))
    for delta in draw(listed(DELTAS, 2)):
        visit += 1
        state = visited(state, delta, visit)  # type: ignore[arg-type]  # drawn of deltas
    family = []
    for _ in range(draw(st.integers(1, most))):
        member = state
        for delta in draw(listed(DELTAS, 2)):
            visit += 1
            member = visited(member, delta, visit)  # type: ignore[arg-type]  # drawn of deltas
        family.append(member)
    return family


def unset(message: Message, path: str = "") -> list[str]:
    """The fields of a message, and of those in it, that are not set or have the value that unset ones have."""
    found = []
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        name = f"{path}{field.name}"
        if field.is_repeated:
            values = list(value)
            found += [] if values else [name]
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            values = [value] if message.HasField(field.name) else []
            found += [] if values else [name]
        else:
            values = []
            found += [] if value != field.default_value else [name]
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for held in values:
                found += unset(held, f"{name}.")
    return found
