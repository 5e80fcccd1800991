"""What the operator decides about tools."""

from __future__ import annotations

import pytest

from behest.v1.tool_pb2 import SideEffect, Tool, ToolErrorPolicy, ToolHints, ToolPolicy, ToolTimeouts, ToolUnknownPolicy
from behestd.core.times import duration
from behestd.errors import InvalidRequest
from behestd.tools import policy
from behestd.tools.policy import Policies
from behestd.tools.tool import Timeouts

LONG = 48 * 3600.0
PURE = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE)


def test_a_tool_that_nothing_matches_gets_the_careful_defaults() -> None:
    made = policy.in_force(Policies({"other": PURE}).match("tool"), None)
    assert made.side_effect == SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
    assert made.on_error == ToolErrorPolicy.TOOL_ERROR_POLICY_REPORT_TO_MODEL
    assert made.on_unknown == ToolUnknownPolicy.TOOL_UNKNOWN_POLICY_ASK
    assert made.max_attempts == 3
    assert policy.timeouts(made) == Timeouts(5.0, 30.0, None, 300.0)


def test_a_name_wins_over_a_glob_and_a_longer_glob_over_a_shorter() -> None:
    names = {name: ToolPolicy(max_attempts=n) for n, name in enumerate(("*", "read_*", "read_file*", "read_file"), 1)}
    table = Policies(names)
    assert [table.match(name).max_attempts for name in ("write", "read_x", "read_files", "read_file")] == [1, 2, 3, 4]  # type: ignore[union-attr]


def test_what_a_policy_leaves_unset_has_its_default() -> None:
    made = policy.in_force(ToolPolicy(timeouts=ToolTimeouts(heartbeat=duration(15)), max_attempts=1), None)
    assert policy.timeouts(made) == Timeouts(5.0, 30.0, 15.0, 300.0)
    assert made.max_attempts == 1


@pytest.mark.parametrize(
    ("claimed", "retention", "in_force"),
    [
        (SideEffect.SIDE_EFFECT_PURE, None, SideEffect.SIDE_EFFECT_PURE),
        (SideEffect.SIDE_EFFECT_IDEMPOTENT, LONG, SideEffect.SIDE_EFFECT_IDEMPOTENT),
        (SideEffect.SIDE_EFFECT_IDEMPOTENT, LONG - 1, SideEffect.SIDE_EFFECT_NON_IDEMPOTENT),
        (SideEffect.SIDE_EFFECT_IDEMPOTENT, None, SideEffect.SIDE_EFFECT_NON_IDEMPOTENT),
        (SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE, LONG, SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE),
        (SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE, 60.0, SideEffect.SIDE_EFFECT_NON_IDEMPOTENT),
        (99, LONG, SideEffect.SIDE_EFFECT_NON_IDEMPOTENT),
        (SideEffect.SIDE_EFFECT_UNSPECIFIED, LONG, SideEffect.SIDE_EFFECT_NON_IDEMPOTENT),
    ],
)
def test_a_server_that_forgets_its_keys_too_soon_loses_the_class_that_needs_them(
    claimed: SideEffect.ValueType, retention: float | None, in_force: SideEffect.ValueType
) -> None:
    assert policy.in_force(ToolPolicy(side_effect=claimed), retention).side_effect == in_force


def test_hints_are_compared_and_never_obeyed() -> None:
    tool = Tool(hints=ToolHints(side_effect=SideEffect.SIDE_EFFECT_PURE), policy=policy.in_force(None, None))
    assert policy.hint_differs(tool)
    assert not policy.hint_differs(Tool(policy=PURE))


@pytest.mark.parametrize(
    "table",
    [
        {"": PURE},
        {"x" * 65: PURE},
        {"t": ToolPolicy(max_attempts=0)},
        {"t": ToolPolicy(timeouts=ToolTimeouts(connect=duration(0)))},
        {f"t{n}": PURE for n in range(257)},
    ],
)
def test_policies_that_make_no_sense_are_refused(table: dict[str, ToolPolicy]) -> None:
    with pytest.raises(InvalidRequest):
        policy.check(table)
