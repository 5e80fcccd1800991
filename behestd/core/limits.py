"""The limits of one run: their defaults, what a request lowers them to, and whether the next model call fits them."""

from __future__ import annotations

from behest.v1.definition_pb2 import Budgets, DoomLoop, DoomLoopAction, Limits
from behest.v1.usage_pb2 import Usage
from behestd.core.state import Run
from behestd.core.times import duration
from behestd.values import dataclass

MALFORMED_TURNS = 2
"""Malformed turns in a row that are forgiven."""

CANCEL_GRACE_SECONDS = 10.0
WAIT_SECONDS = 24 * 3600.0
"""How long a wait lasts at most."""
BACKOFF_WAIT_SECONDS = 30.0
"""A longer backoff parks the run."""
RECOVERIES = 3
"""The claim in a row, after owners that vanished without progress, that ends a run."""

DEFAULTS = Limits(
    max_steps=10,
    timeout=duration(3600),
    max_parallel_tool_calls=4,
    max_length_recoveries=3,
    tool_output_lines=2000,
    tool_output_bytes=51_200,
    doom_loop=DoomLoop(action=DoomLoopAction.DOOM_LOOP_ACTION_STOP, repeats=3, warnings=0),
    max_events=20_000,
    max_log_bytes=64 * 1024 * 1024,
    max_depth=3,
    max_children=32,
    max_parallel_children=4,
)


def in_force(limits: Limits, configured: Limits | None = None) -> Limits:
    """An agent's limits over the operator's over the defaults."""
    merged = Limits()
    merged.CopyFrom(DEFAULTS)
    for layer in (configured or Limits(), limits):
        merged.MergeFrom(layer)
        if layer.HasField("timeout"):
            # Merging would mix the seconds of one with the nanoseconds of the other.
            merged.timeout.CopyFrom(layer.timeout)
    return merged


def of_child(limits: Limits, above: Limits) -> Limits:
    """The limits of a child run: its own where its parent, with limits in force, does not have less."""
    bounded = Limits()
    bounded.CopyFrom(limits)
    bounded.max_depth = max(min(limits.max_depth, above.max_depth - 1), 0)
    bounded.max_children = min(limits.max_children, above.max_children)
    bounded.max_parallel_children = min(limits.max_parallel_children, above.max_parallel_children)
    return bounded


@dataclass(frozen=True, slots=True)
class Excess:
    """A limit that does not hold: the reason, its name, its value and what would be reached."""

    reason: str
    name: str
    limit: int
    reached: int
    whose: str = "run"
    reserved: int = 0
    """How much of what would be reached is set aside for calls of others that go on."""

    @property
    def told(self) -> str:
        """The excess, for people."""
        above = "" if self.whose == "run" else f" of the {self.whose}"
        return f"{self.name} of {self.limit}{above} would be passed: {self.reached}"


def _lower(limit: int | None, budget: int | None) -> int | None:
    given = [value for value in (limit, budget) if value is not None]
    return min(given) if given else None


def _optional(message: Limits | Budgets, name: str) -> int | None:
    return getattr(message, name) if message.HasField(name) else None  # type: ignore[arg-type]


def bound(run: Run, name: str) -> int | None:
    """A limit that budgets can lower, None when there is none."""
    limit = _optional(run.definition.limits, name)
    return _lower(limit, _optional(run.created.budgets, name)) if run.created.HasField("budgets") else limit


def most_of(run: Run, input_tokens: int) -> Usage:
    """The most that an attempt of a run is known to need.

    An answer counts where the definition bounds it. What a model may answer at most is no measure: it is often more
    than a whole budget, and hardly ever reached.
    """
    return Usage(input_tokens=input_tokens, output_tokens=run.definition.sampling.max_output_tokens)


def excess_of_step(run: Run, reserve: Usage) -> Excess | None:
    """The first limit that the next model call would pass, its input estimated."""
    steps = bound(run, "max_steps")
    if steps is not None and run.steps >= steps:
        return Excess("RUN_STEP_LIMIT", "max_steps", steps, run.steps + 1)
    return excess_of_attempt(run, reserve)


def excess_of_attempt(run: Run, reserve: Usage) -> Excess | None:
    """The first budget that one more attempt would pass; `reserve` is the most that it is known to need, priced."""
    tokens = bound(run, "max_total_tokens")
    if tokens is not None:
        spent, aside = run.spend, run.aside
        used = spent.input_tokens + spent.output_tokens + reserve.input_tokens + reserve.output_tokens
        used += aside.input_tokens + aside.output_tokens
        if used > tokens:
            return Excess("RUN_BUDGET", "max_total_tokens", tokens, used)
    money = bound(run, "max_cost_micro_usd")
    if money is not None:
        cost = run.spend.cost_micro_usd + run.aside.cost_micro_usd + reserve.cost_micro_usd
        if run.spend.unpriced_attempts or not reserve.HasField("cost_micro_usd"):
            return Excess("PROVIDER_PRICE_UNKNOWN", "max_cost_micro_usd", money, cost)
        if cost > money:
            return Excess("RUN_BUDGET", "max_cost_micro_usd", money, cost)
    return excess_of_history(run)


def excess_of_calls(run: Run, calls: int) -> Excess | None:
    """Whether so many more tool calls pass the limit."""
    limit = bound(run, "max_tool_calls")
    used = run.spend.tool_calls + run.aside.tool_calls + calls
    if limit is not None and used > limit:
        return Excess("RUN_BUDGET", "max_tool_calls", limit, used)
    return None


def excess_of_history(run: Run) -> Excess | None:
    """Whether the log has reached its limit of events or bytes."""
    limits = run.definition.limits
    if run.head.sequence >= limits.max_events:
        return Excess("RUN_HISTORY_LIMIT", "max_events", limits.max_events, run.head.sequence)
    if run.head.log_bytes >= limits.max_log_bytes:
        return Excess("RUN_HISTORY_LIMIT", "max_log_bytes", limits.max_log_bytes, run.head.log_bytes)
    return None
