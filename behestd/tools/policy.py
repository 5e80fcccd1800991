"""What the operator decides about tools: side-effect classes, limits, what a failure means. Pure.

Above it the catalog, which writes the policy in force into every pinned tool. What a tool's author says (`ToolHints`)
is never obeyed: it is compared by `hint_differs` so that people can be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from behest.v1.tool_pb2 import (
    SideEffect,
    Tool,
    ToolErrorPolicy,
    ToolPolicy,
    ToolTimeouts,
    ToolUnknownPolicy,
)
from behestd.core.times import duration, duration_ns
from behestd.errors import InvalidRequest
from behestd.tools.tool import (
    DEFAULT_CONNECT_SECONDS,
    DEFAULT_SCHEDULE_TO_CLOSE_SECONDS,
    DEFAULT_START_TO_CLOSE_SECONDS,
    Timeouts,
)

MIN_RETENTION_SECONDS = 48 * 3600.0
"""How long a server must know its keys for its idempotence to count."""
MAX_POLICIES = 256

DEFAULTS = ToolPolicy(
    side_effect=SideEffect.SIDE_EFFECT_NON_IDEMPOTENT,
    on_error=ToolErrorPolicy.TOOL_ERROR_POLICY_REPORT_TO_MODEL,
    on_unknown=ToolUnknownPolicy.TOOL_UNKNOWN_POLICY_ASK,
    timeouts=ToolTimeouts(
        connect=duration(DEFAULT_CONNECT_SECONDS),
        start_to_close=duration(DEFAULT_START_TO_CLOSE_SECONDS),
        schedule_to_close=duration(DEFAULT_SCHEDULE_TO_CLOSE_SECONDS),
    ),
    max_attempts=3,
)

_CLASSES = (
    SideEffect.SIDE_EFFECT_PURE,
    SideEffect.SIDE_EFFECT_IDEMPOTENT,
    SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE,
    SideEffect.SIDE_EFFECT_NON_IDEMPOTENT,
)
"""From the weakest effect to the strongest."""
_NEEDS_MEMORY = {SideEffect.SIDE_EFFECT_IDEMPOTENT, SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE}


@dataclass(frozen=True, slots=True)
class Policies:
    """Policies by name of a tool or by glob. An exact name wins over a glob, a longer glob over a shorter one."""

    table: Mapping[str, ToolPolicy]

    def match(self, name: str) -> ToolPolicy | None:
        """The policy that was set for this name, None when none was."""
        if name in self.table:
            return self.table[name]
        globs = (pattern for pattern in self.table if fnmatchcase(name, pattern))
        best = max(globs, key=lambda pattern: (len(pattern), pattern), default=None)
        return None if best is None else self.table[best]


NONE = Policies({})


def in_force(policy: ToolPolicy | None, retention_seconds: float | None) -> ToolPolicy:
    """Fill a policy with the defaults. `retention_seconds` is how long the tool's server knows its keys.

    A server that forgets sooner than 48 h cannot keep IDEMPOTENT or NON_IDEMPOTENT_QUERYABLE, so its tools become
    NON_IDEMPOTENT; None: it never said. A class that this version does not know counts as NON_IDEMPOTENT.
    """
    merged = ToolPolicy()
    merged.CopyFrom(DEFAULTS)
    if policy is not None:
        merged.MergeFrom(policy)
        for limit, value in policy.timeouts.ListFields():
            # Merging mixes the seconds of one duration with the nanoseconds of the other.
            getattr(merged.timeouts, limit.name).CopyFrom(value)
    forgets = retention_seconds is None or retention_seconds < MIN_RETENTION_SECONDS
    if merged.side_effect not in _CLASSES or (forgets and merged.side_effect in _NEEDS_MEMORY):
        merged.side_effect = SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
    return merged


def stricter(one: ToolPolicy, other: ToolPolicy) -> ToolPolicy:
    """The policy of a tool that two servers offer: the first one's, with the stronger of both effects."""
    if _CLASSES.index(one.side_effect) >= _CLASSES.index(other.side_effect):
        return one
    merged = ToolPolicy()
    merged.CopyFrom(one)
    merged.side_effect = other.side_effect
    return merged


def check(policies: Mapping[str, ToolPolicy]) -> None:
    """Refuse a table of policies that makes no sense. Raises InvalidRequest."""
    if len(policies) > MAX_POLICIES:
        raise InvalidRequest("tool_policies", f"{len(policies)} policies exceed the limit of {MAX_POLICIES}")
    for pattern, policy in policies.items():
        field = f"tool_policies[{pattern[:64]}]"
        if not pattern or len(pattern) > 64:
            raise InvalidRequest(field, "a name or glob has 1 to 64 characters")
        if policy.HasField("max_attempts") and policy.max_attempts < 1:
            raise InvalidRequest(field, f"max_attempts of {policy.max_attempts} is below 1")
        for limit, value in policy.timeouts.ListFields():
            if duration_ns(value) <= 0:
                raise InvalidRequest(field, f"timeouts.{limit.name} is not above 0")


def timeouts(policy: ToolPolicy) -> Timeouts:
    """The limits of a policy in force, in seconds."""
    limits = policy.timeouts
    return Timeouts(
        connect_seconds=duration_ns(limits.connect) / 1e9,
        start_to_close_seconds=duration_ns(limits.start_to_close) / 1e9,
        heartbeat_seconds=duration_ns(limits.heartbeat) / 1e9 if limits.HasField("heartbeat") else None,
        schedule_to_close_seconds=duration_ns(limits.schedule_to_close) / 1e9,
    )


def hint_differs(tool: Tool) -> bool:
    """Whether the author claims another class of effect than the one in force: shown to people, never obeyed."""
    claimed = tool.hints.side_effect
    return claimed != SideEffect.SIDE_EFFECT_UNSPECIFIED and claimed != tool.policy.side_effect
