"""What models really count, learned from the usage that they report: a ratio by model, in memory.

Above: the performer, which notes each answer, and decisions, which are given the ratios. A daemon that starts knows
nothing: estimates are used as they are until a few answers have come. Each step records the ratios that it used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from behestd.core.estimate import EXACT, PAIRS, SMALLEST_PAIR, ratio_of
from behestd.providers.catalog import parted

_MODELS = 4096


class Calibration:
    """Ratios of models, and the pairs of estimate and report that they come from."""

    __slots__ = ("_own", "_pairs", "_ratios")

    def __init__(self) -> None:
        self._pairs: dict[str, deque[tuple[int, int]]] = {}
        self._ratios: dict[str, int] = {}
        self._own: dict[str, dict[str, int]] = {}
        """By namespace, of models that are its own."""

    def ratios(self, namespace: str) -> Mapping[str, int]:
        """The ratio of each model of a namespace whose estimates are not right as they are, in thousandths."""
        own = self._own.get(namespace)
        return self._ratios if own is None else {**self._ratios, **own}

    def note(self, endpoint: str, estimated: int, reported: int) -> None:
        """Learn from one answer: the input tokens that were estimated, without correction, and those reported."""
        if estimated < SMALLEST_PAIR or reported <= 0:
            return
        pairs = self._pairs.get(endpoint)
        if pairs is None:
            if len(self._pairs) >= _MODELS:
                return
            pairs = self._pairs[endpoint] = deque(maxlen=PAIRS)
        pairs.append((estimated, reported))
        ratio = ratio_of(tuple(pairs))
        namespace, model = parted(endpoint)
        ratios = self._own.setdefault(namespace, {}) if namespace else self._ratios
        if ratio != EXACT:
            ratios[model] = ratio
        else:
            ratios.pop(model, None)
