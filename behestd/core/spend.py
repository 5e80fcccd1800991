"""What runs consume: adding usage up and pricing it. A price that is not configured is unknown, never 0."""

from __future__ import annotations

from behest.v1.model_pb2 import Price
from behest.v1.usage_pb2 import Usage
from behestd.core.state import Spend


def settle(spend: Spend, usage: Usage) -> Spend:
    """Add the usage of one attempt (or of a child run, with its own number of attempts)."""
    attempts = usage.attempts
    if not attempts:
        return spend
    return Spend(
        spend.input_tokens + usage.input_tokens,
        spend.output_tokens + usage.output_tokens,
        spend.cached_input_tokens + usage.cached_input_tokens,
        spend.cache_write_tokens + usage.cache_write_tokens,
        spend.reasoning_tokens + usage.reasoning_tokens,
        spend.cost_micro_usd + usage.cost_micro_usd,
        spend.unpriced_attempts + (0 if usage.HasField("cost_micro_usd") else attempts),
        spend.attempts + attempts,
        spend.tool_calls,
    )


def total(spend: Spend) -> Usage:
    """The sum as the contract has it: the cost is set only when every attempt's is known."""
    usage = Usage()
    add_up(spend, usage)
    return usage


def add_up(spend: Spend, usage: Usage) -> None:
    """Fill an empty usage, which stands in its message already, with that sum."""
    usage.SetInParent()
    if not spend.attempts:
        return
    usage.input_tokens = spend.input_tokens
    usage.output_tokens = spend.output_tokens
    usage.cached_input_tokens = spend.cached_input_tokens
    usage.cache_write_tokens = spend.cache_write_tokens
    usage.reasoning_tokens = spend.reasoning_tokens
    usage.attempts = spend.attempts
    if not spend.unpriced_attempts:
        usage.cost_micro_usd = spend.cost_micro_usd


def priced(usage: Usage, price: Price | None) -> Usage:
    """One attempt's usage with its cost, rounded half up to a micro-dollar; without one when a price is missing."""
    counted = Usage()
    counted.CopyFrom(usage)
    counted.attempts = 1
    counted.ClearField("cost_micro_usd")
    if price is None or not price.HasField("input_micro_usd") or not price.HasField("output_micro_usd"):
        return counted
    cached = price.cached_input_micro_usd if price.HasField("cached_input_micro_usd") else price.input_micro_usd
    written = price.cache_write_micro_usd if price.HasField("cache_write_micro_usd") else price.input_micro_usd
    from_cache, into_cache = usage.cached_input_tokens, usage.cache_write_tokens
    millionths = (
        max(usage.input_tokens - from_cache - into_cache, 0) * price.input_micro_usd
        + from_cache * cached
        + into_cache * written
        + usage.output_tokens * price.output_micro_usd
    )
    counted.cost_micro_usd = (millionths + 500_000) // 1_000_000
    return counted
