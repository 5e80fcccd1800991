"""What the benchmarks found: figures and ratios, printed as they come."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass(slots=True)
class Figures:
    """What was measured: name → figure, and the ratios apart."""

    values: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        """Keep a figure and print its row."""
        self.values[name] = round(value, 4)
        print(f"{name:<44} {value:>14,.3f}", flush=True)

    def ratio(self, name: str, values: list[float]) -> None:
        """Keep the median of a ratio and print its row."""
        self.ratios[name] = round(statistics.median(values), 3)
        print(f"{name:<44} {self.ratios[name]:>14.3f}   of {[round(value, 2) for value in values]}", flush=True)
