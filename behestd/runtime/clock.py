"""Time, identity and chance for everything above the core: one object each, replaced in tests.

The clock takes the wall's time once, at start, and goes on by the monotonic clock, so that a step of the wall clock can
neither fire nor hold back a timer of a live run.
"""

from __future__ import annotations

import os
import random
import time
from typing import Protocol

_CHANCE_BYTES = 10


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


class Ids:
    """Makes ids: a prefix and the 32 hex digits of a UUIDv7 (RFC 9562). Their order means nothing to clients."""

    def __init__(self) -> None:
        self._chance = b""
        self._at = 0

    def make(self, prefix: str) -> str:
        """Make an id such as run_0192… The system's randomness is fetched for many ids at once."""
        if self._at >= len(self._chance):
            self._chance, self._at = os.urandom(_CHANCE_BYTES * 256), 0
        chance = int.from_bytes(self._chance[self._at : self._at + _CHANCE_BYTES])
        self._at += _CHANCE_BYTES
        number = (time.time_ns() // 1_000_000) << 80 | chance
        number = number & ~(0xF << 76) | 0x7 << 76
        number = number & ~(0x3 << 62) | 0x2 << 62
        return f"{prefix}_{number:032x}"


class Rng:
    """Gives chance. A seed makes it repeat itself."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def random(self) -> float:
        """A number in [0, 1)."""
        return self._random.random()
