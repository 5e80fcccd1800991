"""The sections of money: budgets of namespaces, and prices of models that change with time.

Above: `config` and `parts`. Below: `kinds`. Values go into `runtime.budgets` and `Price` (`planning`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from behestd.config.kinds import Count, Name, Section


def _text(value: Any) -> Any:
    return value.isoformat() if type(value) is date else value


def _day(text: str) -> str:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ValueError("it is no day, as 2025-01-31") from None
    if day.year < 1970:
        raise ValueError("it is before 1970")
    return day.isoformat()


class DatedPrice(Section):
    """The price of a model from a day on, until the next one counts."""

    since: Annotated[str, AfterValidator(_day), BeforeValidator(_text)]
    """The day, in UTC, from which it counts. A run keeps the price of the moment when it was created."""
    input_micro_usd: Count | None = None
    """Price of a million tokens of input, in millionths of a US dollar. Unset: unknown."""
    output_micro_usd: Count | None = None
    """Price of a million tokens of output."""
    cached_input_micro_usd: Count | None = None
    """Price of a million tokens of input that the provider had in its cache. Unset: as input."""
    cache_write_micro_usd: Count | None = None
    """Price of a million tokens of input written to the cache. Unset: as input."""


class Budget(Section):
    """The most that all calls of a namespace may use together. A call that might pass it is refused."""

    period: Literal["total", "day", "month"] = "total"
    """The time that it is for: all of it, each day or each month in UTC."""
    max_total_tokens: Count | None = None
    """Tokens in all, sent and received. Unset: no limit."""
    max_cost_micro_usd: Count | None = None
    """Money, in millionths of a US dollar; models without a price are refused then. Unset: no limit."""
    max_calls: Count | None = None
    """Calls of models, each attempt counted. Unset: no limit."""


class Budgets(Section):
    """Budgets of namespaces: one for each that has none of its own, and those of single ones."""

    default: Budget = Budget()
    namespaces: Mapping[Name, Budget] = Field(default_factory=dict)
