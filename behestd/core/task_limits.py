"""How large a task may grow, and what is cut or left out to keep it so. Pure. Above: `task`, and the room `reasoning`.

What a task holds is shown to the models of its nodes and starts each of them, so a graph that goes round for hours must
not make it larger and larger. Texts are cut at a length of bytes and say so; of each list the newest entries stay, and
the others are counted. What a task cannot do without is never left out: the goal, constraints, the plan, answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TypeVar

TEXT_BYTES = 32 * 1024
"""A fact, an observation, what a tool answered, a reflection."""
ARTIFACT_BYTES = 128 * 1024
"""An artifact. Answers are not cut."""
STEP_BYTES = 2 * 1024
"""What a step worked on, and what it came to."""
PLAN_BYTES = 4 * 1024
"""The rationale of a plan, a step of it, a constraint, a criterion."""
NAME_BYTES = 256
"""A domain, a title."""

ENTRIES = 256
"""Of each list."""
LIST_BYTES = 256 * 1024
"""The texts of one list together."""
PLAN_STEPS = 200
CONSTRAINTS = 64
CRITERIA = 64

_Entry = TypeVar("_Entry")


def cut(text: str, most_bytes: int) -> str:
    """A text of at most so many bytes: its beginning, and how much is left out. What is cut once is not cut again."""
    if len(text) * 4 <= most_bytes:
        return text
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= most_bytes:
        return text
    mark = f"\n[{len(encoded)} bytes, cut here]"
    return encoded[: most_bytes - len(mark)].decode("utf-8", "ignore") + mark


def newest(entries: tuple[_Entry, ...], texts: Sequence[str], is_kept: Callable[[_Entry], bool]) -> tuple[_Entry, ...]:
    """The newest entries that keep the limits of a list, the newest one in any case, and those that must be kept.

    `texts` are the fields that are measured, in characters: counting bytes would cost more than it bounds.
    """
    start = max(len(entries) - ENTRIES, 0)
    over = sum(sum(map(len, map(attrgetter(text), entries[start:]))) for text in texts) - LIST_BYTES
    while over > 0 and start < len(entries) - 1:
        over -= sum(len(getattr(entries[start], text)) for text in texts)
        start += 1
    return (*filter(is_kept, entries[:start]), *entries[start:]) if start else entries
