"""What the reply of a visit adds to its task, by the operator's target. Pure. Above: `reply`. Below: the task's limits.

One function a target, each from what a visit did to the fields of a TaskDelta; nothing else knows what a target means.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from behest.v1.node_event_pb2 import NodeOutcome
from behest.v1.operator_pb2 import Operator, ReplyTarget, ToolUse
from behest.v1.task_pb2 import (
    Action,
    ArtifactScore,
    Constraint,
    ConstraintStrength,
    Fact,
    Observation,
    ObservationSource,
    Plan,
    PlanStep,
    PlanStepChange,
    Provenance,
    Reflection,
    StepStatus,
    TaskArtifact,
    TaskArtifactKind,
)
from behestd.core.task import TaskState
from behestd.core.task_limits import ARTIFACT_BYTES, NAME_BYTES, PLAN_BYTES, TEXT_BYTES, cut
from behestd.values import dataclass

_CODE = TaskArtifactKind.TASK_ARTIFACT_KIND_CODE
_TEXT = TaskArtifactKind.TASK_ARTIFACT_KIND_TEXT
_DATA = TaskArtifactKind.TASK_ARTIFACT_KIND_DATA
_ANSWER = TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER
_TOOL = ObservationSource.OBSERVATION_SOURCE_TOOL
_ENVIRONMENT = ObservationSource.OBSERVATION_SOURCE_ENVIRONMENT
_SELF_INSPECTION = ObservationSource.OBSERVATION_SOURCE_SELF_INSPECTION
_STATUSES = {True: StepStatus.STEP_STATUS_COMPLETED, False: StepStatus.STEP_STATUS_PENDING}
_STRENGTHS = {
    "hard": ConstraintStrength.CONSTRAINT_STRENGTH_HARD,
    "soft": ConstraintStrength.CONSTRAINT_STRENGTH_SOFT,
    "preference": ConstraintStrength.CONSTRAINT_STRENGTH_PREFERENCE,
}
_FENCE = re.compile(
    r"(?P<fence>`{3,})(?P<language>[A-Za-z0-9_+#.-]*)[^\n`]*\n(?P<content>(?:(?!(?P=fence)).*\n)*)(?P=fence)",
    re.MULTILINE,
)
"""One fence of code and what stands in it."""
_PROSE = ("markdown", "md", "text", "txt")


@dataclass(frozen=True, slots=True)
class Work:
    """What a visit did."""

    operator: Operator
    task: TaskState
    """What it started from."""
    value: Any
    """The JSON of its reply, or the text."""
    words: str
    """The reply as it was written."""
    uses: Sequence[Action] = ()
    """The uses of tools, oldest first."""

    @property
    def is_json(self) -> bool:
        """Whether the reply is JSON."""
        return not isinstance(self.value, str)

    @property
    def seen(self) -> list[Observation]:
        """An observation for each use of a tool."""
        return [Observation(source=_TOOL, content=cut(told(use), TEXT_BYTES)) for use in self.uses]


def changes(work: Work) -> dict[str, Any]:
    """The fields of a TaskDelta that a visit's work fills, its step apart.

    Each use of a tool is an action where the reply goes among the actions, and an observation everywhere else.
    """
    write = _WRITERS.get(work.operator.target)
    found = write(work) if write is not None else {}
    is_seen = work.operator.target == ReplyTarget.REPLY_TARGET_ACTIONS
    return found if is_seen else {"observations": work.seen, **found}


def outcome(work: Work) -> NodeOutcome.ValueType:
    """FAILURE for a verdict that something is wrong, and where all that tools came to are errors; else SUCCESS."""
    has_failed = False
    if work.operator.target == ReplyTarget.REPLY_TARGET_VERDICT:
        has_failed = not work.value["passed"]
    elif work.operator.target in (ReplyTarget.REPLY_TARGET_ACTIONS, ReplyTarget.REPLY_TARGET_OBSERVATIONS):
        has_failed = bool(work.uses) and all(use.is_error for use in work.uses)
    return NodeOutcome.NODE_OUTCOME_FAILURE if has_failed else NodeOutcome.NODE_OUTCOME_SUCCESS


# --- what tools did ---


def told(use: Action) -> str:
    """A use of a tool in words: what was called, and what came of it."""
    return f"{use.tool}({use.input_json}){' failed' if use.is_error else ''}: {use.output}"


def _actions(work: Work) -> dict[str, Any]:
    """What tools did; of an operator that a tool does itself, that it did it."""
    tool = work.operator.tool
    uses = work.uses or ([Action(tool=tool, output=cut(work.words, TEXT_BYTES))] if tool else ())
    return {"actions": uses}


def _observations(work: Work) -> dict[str, Any]:
    """What each use of a tool showed; and what a tool that is the operator says, what is reported, or what is seen."""
    operator, words = work.operator, work.words
    is_report = operator.tool_use == ToolUse.TOOL_USE_REPORT
    if not words or (work.uses and not is_report):
        return {"observations": work.seen}
    source = _TOOL if operator.tool else _ENVIRONMENT if is_report else _SELF_INSPECTION
    return {"observations": [*work.seen, Observation(source=source, content=cut(words, TEXT_BYTES))]}


# --- what is known and planned ---


def _facts(work: Work) -> dict[str, Any]:
    value = work.value
    if isinstance(value, str):
        return {"facts": _as_facts([value])}
    return {
        "facts": _as_facts(value["facts"] or ()),
        "domain": value.get("domain") or "",
        "constraints": [_constraint(item) for item in value.get("constraints") or ()],
        "success_criteria": value.get("success_criteria") or (),
    }


def _as_facts(texts: Sequence[str]) -> list[Fact]:
    return [Fact(text=cut(text, TEXT_BYTES)) for text in texts]


def _constraint(item: Any) -> Constraint:
    if isinstance(item, str):
        return Constraint(text=item, strength=ConstraintStrength.CONSTRAINT_STRENGTH_HARD)
    return Constraint(text=item["text"], strength=_STRENGTHS[item.get("strength") or "hard"])


def _plan(work: Work) -> dict[str, Any]:
    return {"plan": _plan_of(work.value, frozenset())}


def _revised_plan(work: Work) -> dict[str, Any]:
    steps = work.task.plan.steps if work.task.plan is not None else ()
    completed = StepStatus.STEP_STATUS_COMPLETED
    plan = _plan_of(work.value, frozenset(step.description for step in steps if step.status == completed))
    content = plan.rationale or "The plan was revised."
    return {"plan": plan, "reflections": [Reflection(content=content, revised_plan=True)]}


def _plan_of(value: Mapping[str, Any], done: frozenset[str]) -> Plan:
    """The plan of a reply. The steps whose words are among those that are done are done."""
    texts = [cut(text.strip(), PLAN_BYTES) for text in value["steps"]]
    steps = [PlanStep(description=text, status=_STATUSES[text in done]) for text in texts]
    return Plan(rationale=cut(value.get("rationale") or "", PLAN_BYTES), steps=steps)


def _plan_order(work: Work) -> dict[str, Any]:
    return {"plan_order": [number - 1 for number in work.value["order"]]}


def _reflection(work: Work) -> dict[str, Any]:
    value = work.value
    content, facts = (value, ()) if isinstance(value, str) else (value["content"], value.get("facts") or ())
    return {"reflections": [Reflection(content=cut(content, TEXT_BYTES))], "facts": _as_facts(facts)}


# --- what is made and judged ---


def _artifact(work: Work) -> dict[str, Any]:
    return {"artifacts": [_made(work, "")]}


def _made(work: Work, title: str) -> TaskArtifact:
    """What was made: JSON as data, one fence of code and nothing else as code, else text."""
    if work.is_json:
        return TaskArtifact(kind=_DATA, title=title, content=cut(work.words, ARTIFACT_BYTES))
    fenced = _FENCE.fullmatch(work.words)
    if fenced is None:
        return TaskArtifact(kind=_TEXT, title=title, content=cut(work.words, ARTIFACT_BYTES))
    kind = _TEXT if fenced["language"].lower() in _PROSE else _CODE
    return TaskArtifact(kind=kind, title=title, content=cut(fenced["content"], ARTIFACT_BYTES))


def _solution(work: Work) -> dict[str, Any]:
    plan, place = work.task.plan, work.task.next_step
    if plan is None or place is None:
        return _artifact(work)
    change = PlanStepChange(index=place, status=StepStatus.STEP_STATUS_COMPLETED)
    return {"artifacts": [_made(work, cut(plan.steps[place].description, NAME_BYTES))], "plan_changes": [change]}


def _answer(work: Work) -> dict[str, Any]:
    return {"artifacts": [TaskArtifact(kind=_ANSWER, content=work.words)]}


def _selection(work: Work) -> dict[str, Any]:
    """The chosen artifact anew, with its score. An answer that is chosen is none: choosing does not answer."""
    chosen = work.task.artifacts[work.value["choice"] - 1]
    score = Provenance(score=chosen.provenance.score) if chosen.provenance.HasField("score") else None
    anew = TaskArtifact(
        kind=_TEXT if chosen.kind == _ANSWER else chosen.kind,
        title=chosen.title,
        content=chosen.content,
        artifact_id=chosen.artifact_id,
        provenance=score,
    )
    return {"artifacts": [anew]}


def _score(work: Work) -> dict[str, Any]:
    """The score of the latest artifact, and the reason as a reflection."""
    score, count = float(work.value["score"]), len(work.task.artifacts)
    reason = (work.value.get("reason") or "").strip()
    told = Reflection(content=cut(f"Score {score:.2f}: {reason}", TEXT_BYTES))
    scores = [ArtifactScore(index=count - 1, score=score)] if count else []
    return {"artifact_scores": scores, "reflections": [told] if reason else []}


def _verdict(work: Work) -> dict[str, Any]:
    """What a verdict teaches: its problems. Nothing when all is well."""
    passed, problems = work.value["passed"], work.value.get("problems") or []
    if passed and not problems:
        return {}
    head = "It passed" if passed else "It did not pass"
    told = "\n".join([f"{head}:", *(f"- {problem}" for problem in problems)]) if problems else f"{head}."
    return {"reflections": [Reflection(content=cut(told, TEXT_BYTES))]}


_WRITERS: dict[int, Callable[[Work], dict[str, Any]]] = {
    ReplyTarget.REPLY_TARGET_FACTS: _facts,
    ReplyTarget.REPLY_TARGET_PLAN: _plan,
    ReplyTarget.REPLY_TARGET_REVISED_PLAN: _revised_plan,
    ReplyTarget.REPLY_TARGET_PLAN_ORDER: _plan_order,
    ReplyTarget.REPLY_TARGET_ACTIONS: _actions,
    ReplyTarget.REPLY_TARGET_OBSERVATIONS: _observations,
    ReplyTarget.REPLY_TARGET_REFLECTION: _reflection,
    ReplyTarget.REPLY_TARGET_ARTIFACT: _artifact,
    ReplyTarget.REPLY_TARGET_SELECTION: _selection,
    ReplyTarget.REPLY_TARGET_SCORE: _score,
    ReplyTarget.REPLY_TARGET_VERDICT: _verdict,
    ReplyTarget.REPLY_TARGET_ANSWER: _answer,
    ReplyTarget.REPLY_TARGET_SOLUTION: _solution,
}
"""What each target does with a reply; STEP does nothing beside the step."""
