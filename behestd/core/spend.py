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
        input_tokens=spend.input_tokens + usage.input_tokens,
        output_tokens=spend.output_tokens + usage.output_tokens,
        cached_input_tokens=spend.cached_input_tokens + usage.cached_input_tokens,
        cache_write_tokens=spend.cache_write_tokens + usage.cache_write_tokens,
        reasoning_tokens=spend.reasoning_tokens + usage.reasoning_tokens,
        cost_micro_usd=spend.cost_micro_usd + usage.cost_micro_usd,
        unpriced_attempts=spend.unpriced_attempts + (0 if usage.HasField("cost_micro_usd") else attempts),
        attempts=spend.attempts + attempts,
        tool_calls=spend.tool_calls,
    )


def total(spend: Spend) -> Usage:
    """The sum as the contract has it: the cost is set only when every attempt's is known."""
    usage = Usage()
    if not spend.attempts:
        return usage
    usage.input_tokens = spend.input_tokens
    usage.output_tokens = spend.output_tokens
    usage.cached_input_tokens = spend.cached_input_tokens
    usage.cache_write_tokens = spend.cache_write_tokens
    usage.reasoning_tokens = spend.reasoning_tokens
    usage.attempts = spend.attempts
    if not spend.unpriced_attempts:
        usage.cost_micro_usd = spend.cost_micro_usd
    return usage


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
