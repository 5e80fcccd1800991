"""Tells definitions made under different prices apart, since a price may begin to count while nothing else changes.

Above: `orders`, which remembers definitions. Below: the catalog of models.
"""

from __future__ import annotations

from bisect import bisect_right

from behestd.core.times import nanoseconds
from behestd.providers.catalog import Snapshot


class Epochs:
    """Counts the prices of a catalog that have begun to count."""

    __slots__ = ("_models", "_times_ns")

    def __init__(self) -> None:
        self._models: Snapshot | None = None
        self._times_ns: list[int] = []

    def of(self, models: Snapshot, now_ns: int) -> int:
        """How many dated prices count at a time: a number that changes whenever a price does."""
        if models is not self._models:
            prices = (price for model in models.models.values() for price in model.model.prices)
            self._times_ns = sorted(nanoseconds(price.effective_time) for price in prices)
            self._models = models
        return bisect_right(self._times_ns, now_ns)
