"""Time, identity and chance for everything above the core: one object each, replaced in tests.

The clock takes the wall's time once, at start, and goes on by the monotonic clock, so that a step of the wall clock can
neither fire nor hold back a timer of a live run.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Protocol

_CHANCE_DIGITS = 19
_CHANCES = 256
"""How many ids the system's randomness is fetched for at once."""


class Clock(Protocol):
    """Tells the time."""

    def now_ns(self) -> int:
        """Unix nanoseconds. Never goes back within a process."""
        ...


class SystemClock:
    """The clock of the daemon."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """Unix nanoseconds by the monotonic clock."""
        return self._offset_ns + time.monotonic_ns()


_VARIANTS = {f"{digit:x}": f"{0x8 | digit & 0x3:x}" for digit in range(16)}
"""The digit that holds the variant: its upper bits are 10, the lower two are random."""


class Ids:
    """Makes ids: a prefix and the 32 hex digits of a UUIDv7 (RFC 9562). Their order means nothing to clients."""

    def __init__(self) -> None:
        self._ends: list[str] = []
        """What of the next ids does not tell the time."""

    def make(self, prefix: str) -> str:
        """Make an id such as run_0192…"""
        if not self._ends:
            self._ends = list(_ends(os.urandom(_CHANCE_DIGITS * _CHANCES // 2).hex()))
        return f"{prefix}_{time.time_ns() // 1_000_000:012x}{self._ends.pop()}"


def _ends(chance: str) -> Iterator[str]:
    """The ends of ids: their version, their variant, and chance."""
    for at in range(0, len(chance), _CHANCE_DIGITS):
        part = chance[at : at + _CHANCE_DIGITS]
        yield f"7{part[:3]}{_VARIANTS[part[3]]}{part[4:]}"


class Rng:
    """Gives chance. A seed makes it repeat itself."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def random(self) -> float:
        """A number in [0, 1)."""
        return self._random.random()
