"""One budget and what it is charged with: what has been used in its period, and what is set aside for calls that go on.

Plain numbers on one loop. Above: `budgets`, which says who is charged. Below: the contract's messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from behest.v1.usage_pb2 import Budget, BudgetUse, Usage
from behestd.core.limits import Excess
from behestd.core.times import SECOND, timestamp

Period = Literal["total", "day", "month"]

LIMITS = ("max_total_tokens", "max_cost_micro_usd", "max_calls")
PRICE_UNKNOWN = "PROVIDER_PRICE_UNKNOWN"


class Amount(NamedTuple):
    """Tokens, money and calls, in the order of LIMITS."""

    tokens: int = 0
    cost_micro_usd: int = 0
    calls: int = 0

    def plus(self, other: Amount) -> Amount:
        """The sum."""
        return Amount(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, other: Amount) -> Amount:
        """The difference."""
        return Amount(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


NOTHING = Amount()


def amount_of(usage: Usage) -> Amount:
    """What usage comes to; an unknown cost counts as none."""
    return Amount(usage.input_tokens + usage.output_tokens, usage.cost_micro_usd, usage.attempts)


@dataclass(frozen=True, slots=True)
class Rule:
    """A budget and the time that it is for. Days and months are those of UTC."""

    budget: Budget
    period: Period = "total"

    def bounds_ns(self, now_ns: int) -> tuple[int, int]:
        """When the period of a time began and when it ends; (0, 0): it is all time."""
        if self.period == "total":
            return 0, 0
        day = datetime.fromtimestamp(now_ns // SECOND, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self.period == "day":
            return _ns(day), _ns(day + timedelta(days=1))
        first = day.replace(day=1)
        return _ns(first), _ns((first + timedelta(days=32)).replace(day=1))


def _ns(time: datetime) -> int:
    return int(time.timestamp()) * SECOND


@dataclass(slots=True)
class Account:
    """What is charged to one budget. `whose` and `reason` are told when it would be passed."""

    rule: Rule
    whose: str
    reason: str
    now_ns: int
    used: Amount = NOTHING
    reserved: Amount = NOTHING
    users: set[str] = field(default_factory=set)
    """The runs and calls that may be charged to it at present."""
    start_ns: int = field(init=False)
    end_ns: int = field(init=False)

    def __post_init__(self) -> None:
        self.start_ns, self.end_ns = self.rule.bounds_ns(self.now_ns)

    def turn(self, now_ns: int) -> None:
        """Begin the next period when the present one is over: nothing is used of it yet."""
        if 0 < self.end_ns <= now_ns:
            self.start_ns, self.end_ns = self.rule.bounds_ns(now_ns)
            self.used = NOTHING

    def excess(self, used: Amount, reserved: Amount, wanted: Usage) -> Excess | None:
        """The first limit that a call would pass; `used` and `reserved` come on top of what the account has."""
        spent, aside, call = self.used.plus(used), self.reserved.plus(reserved), amount_of(wanted)
        for index, name in enumerate(LIMITS):
            if not self.rule.budget.HasField(name):  # type: ignore[arg-type]
                continue
            limit: int = getattr(self.rule.budget, name)
            reached = spent[index] + aside[index] + call[index]
            if name == "max_cost_micro_usd" and not wanted.HasField("cost_micro_usd"):
                return Excess(PRICE_UNKNOWN, name, limit, reached, self.whose, aside[index])
            if reached > limit:
                return Excess(self.reason, name, limit, reached, self.whose, aside[index])
        return None

    def shown(self) -> BudgetUse:
        """The account as clients see it."""
        use = BudgetUse(
            budget=self.rule.budget,
            tokens=max(self.used.tokens, 0),
            cost_micro_usd=max(self.used.cost_micro_usd, 0),
            calls=max(self.used.calls, 0),
            reserved_tokens=self.reserved.tokens,
            reserved_cost_micro_usd=self.reserved.cost_micro_usd,
            reserved_calls=self.reserved.calls,
        )
        if self.end_ns:
            use.start_time.CopyFrom(timestamp(self.start_ns))
            use.end_time.CopyFrom(timestamp(self.end_ns))
        return use
