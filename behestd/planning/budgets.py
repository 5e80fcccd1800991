"""Makes budgets and prices. Above: `models` and `plan`. Below: the ledger's values."""

from __future__ import annotations

from datetime import UTC, datetime

from behest.v1.model_pb2 import Price
from behest.v1.usage_pb2 import Budget
from behestd.config import budgets, parts
from behestd.core.times import SECOND, timestamp
from behestd.runtime.budget_account import LIMITS, Rule
from behestd.runtime.budgets import Rules

PRICES = ("input_micro_usd", "output_micro_usd", "cached_input_micro_usd", "cache_write_micro_usd")


def rules(section: budgets.Budgets) -> Rules:
    """Make the budgets of namespaces."""
    named = {name: _rule(budget) for name, budget in section.namespaces.items()}
    default = _rule(section.default)
    has_limit = any(default.budget.HasField(name) for name in LIMITS)  # type: ignore[arg-type]
    return Rules(default if has_limit else None, named)


def _rule(source: budgets.Budget) -> Rule:
    limits = source.model_dump(exclude={"period"}, exclude_none=True)
    return Rule(Budget(**limits), source.period)


def prices(source: parts.Model) -> list[Price]:
    """Make the prices of a model, the earliest first: the one for all time, then those that count from a day on."""
    always = _price(source)
    found = [always] if always.ByteSize() else []
    for dated in sorted(source.prices, key=lambda price: price.since):
        begin = datetime.fromisoformat(dated.since).replace(tzinfo=UTC)
        price = _price(dated)
        price.effective_time.CopyFrom(timestamp(int(begin.timestamp()) * SECOND))
        found.append(price)
    return found


def _price(source: parts.Model | budgets.DatedPrice) -> Price:
    price = Price()
    for name in PRICES:
        if (value := getattr(source, name)) is not None:
            setattr(price, name, value)
    return price
