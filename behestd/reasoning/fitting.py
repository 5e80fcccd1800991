"""Whether a reply that is JSON says what its target needs, whatever schema it kept. Pure. Above: `reply`.

A schema says how a reply is written. That a chosen artifact is there and that an order names each step once it cannot
say; and the schema of a node or of a graph's own operator may ask for less than the target needs.
"""

from __future__ import annotations

from typing import Any

from behest.v1.operator_pb2 import ReplyTarget
from behestd.core.task import TaskState
from behestd.core.task_limits import PLAN_STEPS

STRENGTHS = ("hard", "soft", "preference")
"""How a reply says how strictly a constraint holds."""
_FACTS = (
    "`facts` must be a list of texts; `domain` may be a text, `success_criteria` a list of texts, and `constraints` a"
    " list of texts, or of objects with `text` and `strength`, which is hard, soft or preference"
)


def unfit(target: ReplyTarget.ValueType, value: Any, task: TaskState) -> str:
    """What is wrong with a JSON reply, for the model; empty when nothing is."""
    match target:
        case ReplyTarget.REPLY_TARGET_PLAN | ReplyTarget.REPLY_TARGET_REVISED_PLAN:
            return _plan(_field(value, "steps"))
        case ReplyTarget.REPLY_TARGET_PLAN_ORDER:
            return _order(_field(value, "order"), len(task.plan.steps) if task.plan is not None else 0)
        case ReplyTarget.REPLY_TARGET_SELECTION:
            return _choice(_field(value, "choice"), len(task.artifacts))
        case ReplyTarget.REPLY_TARGET_SCORE:
            score = _field(value, "score")
            is_score = isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1
            return "" if is_score else "`score` must be a number from 0 to 1"
        case ReplyTarget.REPLY_TARGET_VERDICT:
            problems = _field(value, "problems")
            is_verdict = isinstance(_field(value, "passed"), bool) and _is_texts(problems or [])
            return "" if is_verdict else "`passed` must be true or false, and `problems` a list of texts"
        case ReplyTarget.REPLY_TARGET_FACTS:
            return _facts(value)
        case ReplyTarget.REPLY_TARGET_REFLECTION:
            content = _field(value, "content")
            is_reflection = (
                isinstance(content, str) and bool(content.strip()) and _is_texts(_field(value, "facts") or [])
            )
            return "" if is_reflection else "`content` must be a text that is not empty, and `facts` a list of texts"
        case _:
            return ""


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plan(steps: Any) -> str:
    if not _is_texts(steps) or not steps:
        return "`steps` must be a list of texts that are not empty, one at least"
    return f"{len(steps)} steps are more than {PLAN_STEPS}" if len(steps) > PLAN_STEPS else ""


def _order(order: Any, count: int) -> str:
    if not isinstance(order, list) or not all(_is_number(number) for number in order):
        return "`order` must be a list of the numbers of steps"
    if not count:
        return "there is no plan whose steps could be put in order"
    is_whole = sorted(order) == list(range(1, count + 1))
    return "" if is_whole else f"`order` must name each of the steps 1 to {count} once"


def _choice(choice: Any, count: int) -> str:
    if not count:
        return "there is no artifact that could be chosen"
    is_there = _is_number(choice) and 1 <= choice <= count
    return "" if is_there else f"`choice` must be the number of an artifact, from 1 to {count}"


def _facts(value: Any) -> str:
    lists = [_field(value, name) or [] for name in ("facts", "success_criteria")]
    constraints = _field(value, "constraints") or []
    is_fit = (
        isinstance(value, dict)
        and "facts" in value
        and all(_is_texts(texts) for texts in lists)
        and isinstance(value.get("domain") or "", str)
        and isinstance(constraints, list)
        and all(_is_constraint(item) for item in constraints)
    )
    return "" if is_fit else _FACTS


def _is_constraint(item: Any) -> bool:
    if isinstance(item, dict):
        return _is_texts([item.get("text")]) and item.get("strength") in (None, *STRENGTHS)
    return _is_texts([item])
