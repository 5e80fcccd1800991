"""Admission of inputs: what is refused before a run exists, and counted. Nothing of a refused input is kept or logged.

Rules: an input is not empty, not longer than the limit, does not match a pattern that the operator rejects; with a
window set, the same input on the same session is refused within it.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from behest.v1.message_pb2 import Part
from behestd.core.times import SECOND
from behestd.errors import AlreadyExists, InvalidRequest
from behestd.runtime.birth import Order
from behestd.runtime.clock import Clock

_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's rules. Patterns are searched in texts; their names are what a refusal tells."""

    input_bytes: int = 1024 * 1024
    rejected: tuple[tuple[str, re.Pattern[str]], ...] = ()
    duplicate_window_seconds: float = 0.0


Mark = tuple[str, str, bytes]
"""(namespace, session, hash) of an input."""


class Admission:
    """Decides on inputs; remembers only their hashes, and only while a window is set."""

    def __init__(self, rules: Rules, clock: Clock) -> None:
        self.refused: Counter[str] = Counter()
        """Refusals by rule."""
        self._rules = rules
        self._clock = clock
        self._recent: OrderedDict[Mark, tuple[int, str]] = OrderedDict()

    def set(self, rules: Rules) -> None:
        """Put other rules in force."""
        self._rules = rules

    def check_input(self, field: str, parts: Sequence[Part]) -> None:
        """Check what is said. Raises InvalidRequest with RUN_INPUT_REJECTED, naming the rule."""
        if not any(map(_is_something, parts)):
            self._refuse(field, "empty", "is empty")
        size_bytes = sum(map(Part.ByteSize, parts))
        if size_bytes > self._rules.input_bytes:
            self._refuse(field, "too_long", f"of {size_bytes} bytes exceeds {self._rules.input_bytes} bytes")
        for name, pattern in self._rules.rejected:
            if any(pattern.search(part.text.text) for part in parts if part.HasField("text")):
                self._refuse(field, name, "is not accepted here")

    def _refuse(self, field: str, rule: str, problem: str) -> None:
        self.refused[rule] += 1
        error = InvalidRequest(field, problem, reason="RUN_INPUT_REJECTED")
        error.metadata["rule"] = rule
        raise error

    def claim_input(self, order: Order) -> Mark | None:
        """Remember an input for the window. Raises AlreadyExists with RUN_INPUT_DUPLICATE and the first run's id."""
        window_ns = int(self._rules.duplicate_window_seconds * SECOND)
        if not window_ns or order.is_new_session or not order.spec.input:
            return None
        now_ns = self._clock.now_ns()
        while self._recent and (len(self._recent) > _REMEMBERED or self._oldest_ns() <= now_ns - window_ns):
            self._recent.popitem(last=False)
        content = b"".join(part.SerializeToString(deterministic=True) for part in order.spec.input)
        mark = (order.namespace, order.session_id, sha256(content).digest())
        earlier = self._recent.get(mark)
        if earlier is not None:
            self.refused["duplicate"] += 1
            text = "the same input came a moment ago"
            raise AlreadyExists("RUN_INPUT_DUPLICATE", text, runId=earlier[1])
        self._recent[mark] = (now_ns, order.run_id)
        return mark

    def _oldest_ns(self) -> int:
        return next(iter(self._recent.values()))[0]

    def forget_input(self, mark: Mark | None) -> None:
        """Forget an input whose run was not created."""
        if mark is not None:
            self._recent.pop(mark, None)


def _is_something(part: Part) -> bool:
    return part.WhichOneof("kind") != "text" or bool(part.text.text.strip())
