"""Tells definitions of different catalogs or prices apart: a price may begin to count while nothing else changes.

Above: `orders`, which remembers definitions. Below: the catalog of models.
"""

from __future__ import annotations

from bisect import bisect_right

from behestd.core.times import nanoseconds
from behestd.providers.catalog import Snapshot


class Epochs:
    """Counts the catalogs of namespaces, and in each the prices that have begun to count."""

    __slots__ = ("_catalogs", "_known")

    def __init__(self) -> None:
        self._catalogs = 0
        self._known: dict[str, tuple[Snapshot, int, list[int]]] = {}
        """Of each namespace its catalog, the number of that, and when the prices in it begin to count."""

    def of(self, namespace: str, models: Snapshot, now_ns: int) -> tuple[int, int]:
        """The number of a catalog, and how many dated prices count at a time: a pair that changes with either."""
        known = self._known.get(namespace)
        if known is None or known[0] is not models:
            prices = (price for model in models.models.values() for price in model.model.prices)
            times_ns = sorted(nanoseconds(price.effective_time) for price in prices)
            self._catalogs += 1
            known = self._known[namespace] = models, self._catalogs, times_ns
        return known[1], bisect_right(known[2], now_ns)
