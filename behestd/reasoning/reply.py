"""From a model's reply to what it adds to the task. Pure.

Above: `conduct`, which has a model asked again when there is a problem. Below: `lenient` and `fitting`, which read
replies, and `effects`, which says what each target does with one. A reply is read strictly first, then leniently where
one thing alone can be meant; what could mean two things is a problem, never a guess. Where it goes the operator's
target says, so operators of a graph are treated as those that every graph has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from behest.v1.node_event_pb2 import NodeOutcome
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behest.v1.task_pb2 import Action, StepStatus, TaskDelta, TaskStep
from behest.v1.tool_pb2 import Tool
from behestd.core.signals import Validate
from behestd.core.structured import mended
from behestd.core.task import TaskState
from behestd.core.task_limits import STEP_BYTES, TEXT_BYTES, cut
from behestd.reasoning import lenient
from behestd.reasoning.effects import Work, changes, outcome, told
from behestd.reasoning.fitting import unfit
from behestd.values import dataclass

_ANY_OBJECT = '{"type": "object"}'
INPUT_BYTES = 512
"""Of what a step worked on."""

_OF_USES = (
    ReplyTarget.REPLY_TARGET_STEP,
    ReplyTarget.REPLY_TARGET_ACTIONS,
    ReplyTarget.REPLY_TARGET_OBSERVATIONS,
)
"""Targets into which the uses of tools go without being read."""
_NEEDS: dict[int, str] = {
    ReplyTarget.REPLY_TARGET_PLAN: "say the steps of the plan, as a numbered list",
    ReplyTarget.REPLY_TARGET_REVISED_PLAN: "say the steps of the plan, as a numbered list",
    ReplyTarget.REPLY_TARGET_PLAN_ORDER: "say the numbers of the steps in their order, such as 2, 1, 3",
    ReplyTarget.REPLY_TARGET_SELECTION: "say the number of one artifact, and of no other",
    ReplyTarget.REPLY_TARGET_SCORE: "say one score from 0 to 1",
    ReplyTarget.REPLY_TARGET_VERDICT: "say PASS or FAIL on a line of its own",
}
"""What a reply that is text must say, by the targets for which some text is not enough."""


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a tool that has its result."""

    tool: str
    input_json: str
    output: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """A reply that was read."""

    value: Any
    """The JSON value, or the text of a reply that is text. None: it could not be read."""
    problem: str = ""
    """What is wrong with it, for the model. Empty: nothing."""
    text: str = ""
    """The JSON as it was written, for a reply that is JSON."""

    @property
    def words(self) -> str:
        """The reply as it was written."""
        return self.text or (self.value if isinstance(self.value, str) else "")


@dataclass(frozen=True, slots=True)
class Result:
    """What a visit came to."""

    delta: TaskDelta
    outcome: NodeOutcome.ValueType
    score: float | None = None


# --- reading ---


def read(operator: Operator, schema_json: str, text: str, validate: Validate, task: TaskState) -> Read:
    """Read the reply of an operator. `schema_json` is the schema that it was asked to keep; empty: it is text.

    Numbers are those of the task that was shown: the artifact that is chosen must be there, and so must the steps that
    are put in order.
    """
    if not text.strip():
        return Read(None, "the reply is empty")
    target = operator.target
    if not schema_json and target not in _NEEDS:
        return Read(text.strip())
    tool = Tool(name=operator.name, input_schema_json=schema_json or _ANY_OBJECT)
    found = mended(text)
    problem = validate(tool, found) if schema_json else _NEEDS[target]
    if schema_json and not problem:
        value = json.loads(found)
        problem = unfit(target, value, task)
        if not problem:
            return Read(value, "", found)
    meant = lenient.read(target, text, schema_json)
    if meant is None:
        return Read(None, problem)
    written = json.dumps(meant, ensure_ascii=False)
    told = validate(tool, written) or unfit(target, meant, task)
    return Read(None, told) if told else Read(meant, "", written)


def read_uses(operator: Operator, schema_json: str, uses: Sequence[Use], validate: Validate, task: TaskState) -> Read:
    """Read the results of tools as the reply of an operator. Where they go as they are, there is nothing to read."""
    if operator.target in _OF_USES:
        return Read("")
    return read(operator, schema_json, "\n".join(use.output for use in uses), validate, task)


# --- what it adds ---


def failure(operator: Operator, task: TaskState, text: str, why: str) -> TaskDelta:
    """What a visit that came to nothing leaves: the failed step, with the reason and what was said. No more."""
    output = "\n".join(part for part in (why, text.strip()) if part)
    return TaskDelta(steps=[_step(operator, task, output, StepStatus.STEP_STATUS_FAILED)])


def result(operator: Operator, task: TaskState, read: Read, uses: Sequence[Use]) -> Result:
    """What a visit adds to the task that it started from, by its reply and the tools that it used, oldest first."""
    work = Work(operator, task, read.value, read.words, [_action(use) for use in uses])
    output = read.words or "\n".join(told(use) for use in work.uses)
    step = _step(operator, task, output, StepStatus.STEP_STATUS_COMPLETED)
    is_judged = operator.target == ReplyTarget.REPLY_TARGET_SCORE
    score = float(read.value["score"]) if is_judged else None
    return Result(TaskDelta(steps=[step], **changes(work)), outcome(work), score)


def _action(use: Use) -> Action:
    return Action(
        tool=use.tool,
        input_json=cut(use.input_json, TEXT_BYTES),
        output=cut(use.output, TEXT_BYTES),
        is_error=use.is_error,
    )


def _step(operator: Operator, task: TaskState, output: str, status: StepStatus.ValueType) -> TaskStep:
    about = _about(operator.target, task)
    return TaskStep(
        operator=operator.name, input=cut(about, INPUT_BYTES), output=cut(output, STEP_BYTES), status=status
    )


def _about(target: ReplyTarget.ValueType, task: TaskState) -> str:
    """What of the task a visit works on, in short."""
    count = len(task.artifacts)
    match target:
        case ReplyTarget.REPLY_TARGET_SOLUTION if task.plan is not None and task.next_step is not None:
            return task.plan.steps[task.next_step].description
        case ReplyTarget.REPLY_TARGET_SELECTION if count:
            return f"artifacts 1 to {count}"
        case ReplyTarget.REPLY_TARGET_SCORE | ReplyTarget.REPLY_TARGET_VERDICT if count:
            return f"artifact {count}"
        case ReplyTarget.REPLY_TARGET_PLAN_ORDER | ReplyTarget.REPLY_TARGET_REVISED_PLAN if task.plan is not None:
            return f"the plan of {len(task.plan.steps)} steps"
        case _:
            return task.goal.description
