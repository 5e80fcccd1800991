"""What the core decides about calls of agents: begun with their share, found again after crashes, counted once."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from behest.v1.definition_pb2 import Limits, PermissionRule, PermissionScope
from behest.v1.run_state_pb2 import RunState, WaitReason
from behest.v1.tool_pb2 import SideEffect, Tool, ToolPolicy
from behest.v1.usage_pb2 import Usage
from behestd.core.children import NoKin, id_of
from behestd.core.limits import DEFAULTS, of_child
from behestd.core.permission import permit
from behestd.core.signals import CallTool, CancelTool, ChildEnded, Wake
from behestd.core.times import SECOND, duration_ns
from behestd.core.wanted import alarm_ns, wanted
from tests.core.stage import ALLOW, ASK, DENY, GRACE_NS, NON_IDEMPOTENT, T0, Stage, budgets, definition, result, tool

COMPLETED = RunState.RUN_STATE_COMPLETED
FAILED = RunState.RUN_STATE_FAILED
ORDER = ("agent_helper", '{"order":"help"}')
SPENT = Usage(input_tokens=100, output_tokens=50, cost_micro_usd=7, attempts=3)


class Knows(NoKin):
    """Knows until when child runs wait."""

    def __init__(self) -> None:
        self.until_ns: dict[str, int] = {}

    def rests_until_ns(self, namespace: str, run_id: str) -> int:
        """Until when one waits."""
        assert namespace == "default"
        return self.until_ns.get(run_id, 0)


def agent(name: str = "helper", **policy: Any) -> Tool:
    """An agent as a tool."""
    made = tool(f"agent_{name}", SideEffect.SIDE_EFFECT_IDEMPOTENT, **policy)
    made.agent_id = name
    return made


def calling(*calls: tuple[str, str], limits: Limits | None = None, **fields: Any) -> Stage:
    """A run whose model has called agents, and what they rest on."""
    pinned = definition(agent(), tool("pay", NON_IDEMPOTENT), limits=limits)
    stage = Stage(pinned, **fields)
    stage.model("", *calls)
    return stage


def over(stage: Stage, index: int = 0, state: int = COMPLETED, **fields: Any) -> list[Any]:
    """A child run ends."""
    call = stage.call(index)
    known = {"usage": SPENT, "result": result(call) if state == COMPLETED else None} | fields
    return stage.do(ChildEnded(call.call.id, call.attempt, state, **known))


def test_a_call_of_an_agent_begins_with_a_child_run_of_its_own_key() -> None:
    stage = calling(ORDER)
    assert stage.kinds[-2:] == ["tool_started", "child_run_started"]
    started, child = stage.last("tool_started"), stage.last("child_run_started")
    assert child.child_run_id == id_of(started.key)
    assert duration_ns(child.timeout) == stage.run.life.deadline_ns - T0
    assert wanted(stage.run) == (CallTool(stage.call().call.id, 1),)


@pytest.mark.parametrize("crashes", range(5))
def test_a_run_that_waits_for_a_child_run_is_taken_over_as_it_is(crashes: int) -> None:
    stage = calling(ORDER)
    for _ in range(crashes):
        stage.crash()
        assert stage.kinds[-1] == "run_claimed"
        assert wanted(stage.run) == (CallTool(stage.call().call.id, 1),)
    over(stage)
    assert stage.kinds.count("child_run_started") == 1
    assert stage.run.spend.attempts == 1 + SPENT.attempts


def test_what_a_child_run_consumed_is_counted_once() -> None:  # C101
    stage = calling(ORDER, ORDER)
    for _ in range(3):
        over(stage)
    assert stage.kinds.count("child_run_ended") == 1
    assert stage.run.spend.input_tokens == 10 + SPENT.input_tokens
    stage.crash()
    assert over(stage) == []
    over(stage, 1)
    assert stage.run.spend.input_tokens == 10 + 2 * SPENT.input_tokens


def test_a_child_run_that_fails_is_told_to_the_model() -> None:
    stage = calling(ORDER)
    over(stage, state=FAILED, reason="RUN_BUDGET", message="run x ended FAILED: too dear")
    assert stage.last("tool_failed").reason == "RUN_BUDGET"
    assert stage.result_text() == "run x ended FAILED: too dear"
    assert stage.state == "RUNNING"


def test_a_cancelled_run_waits_for_its_child_runs_and_for_each_level_below_them() -> None:
    stage = calling(ORDER)
    stage.cancel()
    call_id = stage.call().call.id
    assert set(wanted(stage.run)) == {CallTool(call_id, 1), CancelTool(call_id, 1)}
    levels = DEFAULTS.max_depth
    assert alarm_ns(stage.run, GRACE_NS) == T0 + GRACE_NS * (1 + levels)
    stage.wait(GRACE_NS / SECOND * levels)
    assert stage.state == "CANCELLING"
    over(stage, state=RunState.RUN_STATE_CANCELLED, reason="TOOL_CANCELLED", message="cancelled")
    assert stage.state == "CANCELLED"
    assert stage.run.spend.input_tokens == 10 + SPENT.input_tokens


def test_a_cancelled_run_does_not_wait_for_ever() -> None:
    stage = calling(ORDER)
    stage.cancel()
    stage.wait_for_alarm()
    assert stage.state == "CANCELLED"
    assert stage.run.life.end_ns > 0
    assert over(stage) == []


@pytest.mark.parametrize("crashed", [False, True])
def test_a_run_waits_with_its_child_run_and_goes_on_with_it(crashed: bool) -> None:
    knows = Knows()
    stage = calling(ORDER, given={"kin": knows})
    child_id = stage.last("child_run_started").child_run_id
    knows.until_ns[child_id] = T0 + 100 * SECOND
    stage.do(Wake())
    assert (stage.state, stage.last("run_waiting").reason) == ("WAITING", WaitReason.WAIT_REASON_CHILD)
    assert stage.do(Wake()) == []
    if crashed:
        stage.crash()
        assert stage.state == "WAITING"
    stage.now_ns += 50 * SECOND
    knows.until_ns[child_id] = 0
    stage.do(Wake())
    assert stage.state == "RUNNING"
    assert stage.run.life.deadline_ns == T0 + 3650 * SECOND
    over(stage)
    assert stage.run.step.number == 2


def test_a_child_run_that_ends_while_its_parent_waits_is_heard() -> None:
    knows = Knows()
    stage = calling(ORDER, ORDER, given={"kin": knows})
    for call in stage.run.step.calls:
        assert call.child is not None
        knows.until_ns[call.child.child_run_id] = T0 + 100 * SECOND
    stage.do(Wake())
    over(stage)
    assert stage.kinds[-4:] == ["run_resumed", "child_run_ended", "tool_completed", "run_waiting"]


def test_a_wait_of_a_child_run_that_is_over_does_not_make_its_parent_flutter() -> None:
    knows = Knows()
    stage = calling(ORDER, given={"kin": knows})
    knows.until_ns[stage.last("child_run_started").child_run_id] = T0 + SECOND
    stage.do(Wake())
    assert stage.state == "WAITING"
    stage.wait(2)
    assert stage.state == "RUNNING"
    assert stage.do(Wake()) == []
    assert alarm_ns(stage.run, GRACE_NS) == stage.run.life.deadline_ns


def test_a_run_with_a_working_child_run_does_not_wait_for_an_approval_of_its_own() -> None:
    knows = Knows()
    rules = [PermissionRule(tool="pay", action=ASK)]
    stage = Stage(definition(agent(), tool("pay", NON_IDEMPOTENT), agent_permissions=rules), given={"kin": knows})
    stage.model("", ORDER, ("pay", "{}"))
    assert stage.state == "RUNNING"
    over(stage)
    assert (stage.state, stage.last("run_waiting").reason) == ("WAITING", WaitReason.WAIT_REASON_APPROVAL)


@pytest.mark.parametrize(("limit", "count"), list(product([100, 101, 1000], [1, 2, 3, 4])))
def test_the_shares_of_child_runs_are_never_more_than_is_left(limit: int, count: int) -> None:  # C101
    stage = calling(*[ORDER] * count, budgets=budgets(max_total_tokens=limit))
    shares = [call.child.budgets.max_total_tokens for call in stage.run.step.calls if call.child is not None]
    assert len(shares) == count
    assert sum(shares) <= limit - 15
    assert max(shares) - min(shares) <= 1


def test_with_nothing_left_no_child_run_begins() -> None:  # C101
    stage = Stage(definition(agent()), budgets=budgets(max_total_tokens=100))
    stage.model("", ORDER, usage=Usage(input_tokens=50, output_tokens=50))
    assert stage.last("tool_failed").reason == "RUN_BUDGET"
    assert "child_run_started" not in stage.kinds


def test_a_child_run_has_fewer_levels_and_no_more_children_than_its_parent() -> None:
    above = Limits(max_depth=2, max_children=5, max_parallel_children=2)
    wide = Limits(max_depth=9, max_children=9, max_parallel_children=9)
    below = of_child(wide, above)
    assert (below.max_depth, below.max_children, below.max_parallel_children) == (1, 5, 2)
    assert of_child(Limits(), below).max_depth == 0
    narrow = of_child(Limits(max_depth=1, max_children=1, max_parallel_children=1), above)
    assert (narrow.max_depth, narrow.max_children, narrow.max_parallel_children) == (1, 1, 1)


@pytest.mark.parametrize(("own", "above", "default"), list(product([ALLOW, ASK, DENY, 0], repeat=3)))
def test_the_strictest_answer_of_all_runs_above_holds(own: int, above: int, default: int) -> None:  # C101
    strictness = {ALLOW: 0, ASK: 1, DENY: 2}

    def rules(action: int) -> list[PermissionRule]:
        return [PermissionRule(tool="pay", action=action)] if action else []  # type: ignore[arg-type]

    scope = PermissionScope(agent_permissions=rules(above), default_permission=default)  # type: ignore[arg-type]
    pinned = definition(tool("pay", NON_IDEMPOTENT), agent_permissions=rules(own), inherited_permissions=[scope])
    answer = permit(pinned, Tool(name="pay", policy=ToolPolicy(side_effect=NON_IDEMPOTENT)), {}).action
    expected = max(strictness[own or ALLOW], strictness[above or default or ASK])
    assert strictness[answer] == expected
