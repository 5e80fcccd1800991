"""Expressions over a task: the conditions of branches and loops, such as `score >= 0.7 and iteration < 3`. Pure.

Above: `graph`, which reads each once to find what is wrong with it, and `schedule`, which asks whether it holds. Below:
the task. The language is small and total: whatever can be read has a truth value, on any task, in time linear in its
text; there are no calls, no loops and nothing that fails. Values of different kinds are never equal, less or greater,
and neither is a score that nobody gave, so that every comparison with them is false.

    expression = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation = "not" negation | comparison
    comparison = value [ ("==" | "!=" | "<" | "<=" | ">" | ">=") value ]
    value = number | string | "true" | "false" | name | "(" expression ")"
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from behest.v1.task_pb2 import StepStatus
from behestd.core.task import TaskState
from behestd.values import dataclass

MAX_BYTES = 1024
MAX_DEPTH = 32

Value = bool | float | str | None


@dataclass(frozen=True)
class Seen:
    """What an expression sees: a task as a visit left it, and how the visit ended."""

    task: TaskState
    outcome: str
    """"success", "failure" (it completed and found that something is amiss) or "failed"."""
    score: float | None = None
    attempts: int = 1
    """How often the node was visited, its loops and retries included."""


@dataclass(frozen=True)
class Name:
    """A name that expressions may use."""

    kind: type
    meaning: str
    read: Callable[[Seen], Value]


class Unreadable(ValueError):
    """Raised when a text is no expression. The text of the error names the place, in characters from 1."""


def _count(field: str) -> Callable[[Seen], Value]:
    return lambda seen: float(len(getattr(seen.task, field)))


def _plan_steps(seen: Seen) -> Value:
    return float(len(seen.task.plan.steps)) if seen.task.plan is not None else 0.0


def _plan_done(seen: Seen) -> Value:
    steps = seen.task.plan.steps if seen.task.plan is not None else ()
    return float(sum(step.status == StepStatus.STEP_STATUS_COMPLETED for step in steps))


def _score(seen: Seen) -> Value:
    return seen.score if seen.score is not None else seen.task.score


NAMES: Mapping[str, Name] = {
    "score": Name(float, "how good the node judged, else what was judged last, from 0 to 1", _score),
    "outcome": Name(str, 'how the node ended: "success", "failure" or "failed"', lambda seen: seen.outcome),
    "attempts": Name(float, "how often the node was visited for its loops and retries", lambda seen: seen.attempts),
    "goal_achieved": Name(bool, "whether the task has an answer", lambda seen: seen.task.is_achieved),
    "iteration": Name(float, "the round that the node is in, from 1", lambda seen: seen.task.iteration),
    "domain": Name(str, "the field that the task belongs to", lambda seen: seen.task.domain),
    "facts": Name(float, "how many facts the task has", _count("facts")),
    "constraints": Name(float, "how many constraints it has", _count("constraints")),
    "steps": Name(float, "how many steps were done", _count("steps")),
    "observations": Name(float, "how many observations were made", _count("observations")),
    "actions": Name(float, "how many tools were used", _count("actions")),
    "reflections": Name(float, "how many reflections were made", _count("reflections")),
    "artifacts": Name(float, "how many artifacts were made", _count("artifacts")),
    "plan_steps": Name(float, "how many steps the plan has", _plan_steps),
    "plan_done": Name(float, "how many of them are completed", _plan_done),
}
"""The names, in the order in which they are documented."""

_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>-?\d+(?:\.\d+)?)(?![\w.])|(?P<string>"[^"]*"|'[^']*')|(?P<word>[A-Za-z_]\w*)"""
    r"""|(?P<sign>==|!=|<=|>=|<|>|\(|\))|(?P<end>\Z))""",
    re.ASCII,
)
_SPACE = " \t\n\r\f\v"
_KEYWORDS = frozenset({"and", "or", "not"})


@dataclass(frozen=True)
class Term:
    """A part of an expression, read."""

    kind: type
    place: int
    value: Callable[[Seen], Value]


@dataclass(frozen=True)
class Expression:
    """A condition, read."""

    text: str
    term: Term

    def holds(self, seen: Seen) -> bool:
        """Whether it is true of what is seen."""
        return self.term.value(seen) is True


@lru_cache(maxsize=1024)
def read(text: str) -> Expression:
    """Read an expression. Raises Unreadable."""
    size = len(text.encode())
    if size > MAX_BYTES:
        raise Unreadable(f"an expression of {size} bytes exceeds the limit of {MAX_BYTES} bytes")
    reader = _Reader(text)
    term = reader.condition(0)
    if reader.kind != "end":
        raise Unreadable(f"{reader.shown} at {reader.place} does not belong there")
    return Expression(text, _truth(term))


class _Reader:
    """Reads a text from left to right, one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self.kind = self.token = ""
        self.place = 1
        self._step()

    @property
    def shown(self) -> str:
        """The token that is next, as an error shows it."""
        return repr(self.token) if self.kind != "end" else "the end"

    def _step(self) -> None:
        match = _TOKEN.match(self._text, self._end)
        if match is None:
            place = len(self._text) - len(self._text[self._end :].lstrip(_SPACE))
            raise Unreadable(f"{self._text[place]!r} at {place + 1} cannot be read")
        kind = match.lastgroup or ""
        self.kind, self.token = kind, match.group(kind)
        self.place, self._end = match.start(kind) + 1, match.end()

    def _take(self, *tokens: str) -> str:
        """Take the token that is next if it is one of these; empty when it is not."""
        token = self.token
        if self.kind not in ("word", "sign") or token not in tokens:
            return ""
        self._step()
        return token

    def condition(self, depth: int) -> Term:
        """Read what may be an alternative."""
        return self._joined("or", lambda: self._joined("and", lambda: self._negation(depth)))

    def _joined(self, word: str, part: Callable[[], Term]) -> Term:
        terms = [part()]
        while self._take(word):
            terms.append(part())
        if len(terms) == 1:
            return terms[0]
        values = [_truth(term).value for term in terms]
        meets = all if word == "and" else any
        return Term(bool, terms[0].place, lambda seen: meets(value(seen) is True for value in values))

    def _negation(self, depth: int) -> Term:
        place = self.place
        if not self._take("not"):
            return self._comparison(depth)
        value = _truth(self._negation(self._deeper(depth))).value
        return Term(bool, place, lambda seen: value(seen) is not True)

    def _comparison(self, depth: int) -> Term:
        left = self._value(depth)
        sign = self._take(*_COMPARISONS)
        if not sign:
            return left
        right = self._value(depth)
        compare, of_left, of_right = _COMPARISONS[sign], left.value, right.value
        if left.kind is not right.kind or (left.kind is bool and sign not in ("==", "!=")):
            return Term(bool, left.place, lambda seen: False)
        return Term(bool, left.place, lambda seen: _compared(compare, of_left(seen), of_right(seen)))

    def _value(self, depth: int) -> Term:
        kind, token, place = self.kind, self.token, self.place
        if self._take("("):
            term = self.condition(self._deeper(depth))
            if not self._take(")"):
                raise Unreadable(
                    f"{self.shown} at {self.place} stands where a parenthesis should close that of {place}"
                )
            return term
        if kind in ("sign", "end") or token in _KEYWORDS:
            raise Unreadable(f"{self.shown} at {place} stands where a value should be")
        self._step()
        if kind == "number":
            return _constant(float(token), place)
        if kind == "string":
            return _constant(token[1:-1], place)
        if token in ("true", "false"):
            return _constant(token == "true", place)
        if token not in NAMES:
            raise Unreadable(f"{token!r} at {place} is not one of the names: {', '.join(NAMES)}")
        return Term(NAMES[token].kind, place, NAMES[token].read)

    def _deeper(self, depth: int) -> int:
        if depth + 1 >= MAX_DEPTH:
            raise Unreadable(f"what stands at {self.place} is more than {MAX_DEPTH} deep")
        return depth + 1


def _truth(term: Term) -> Term:
    """A part that must be true or false."""
    if term.kind is not bool:
        raise Unreadable(f"what stands at {term.place} is neither true nor false; compare it with something")
    return term


def _constant(value: bool | float | str, place: int) -> Term:
    return Term(type(value), place, lambda seen: value)


def _compared(compare: Callable[[Any, Any], bool], left: Value, right: Value) -> bool:
    return left is not None and right is not None and compare(left, right)
