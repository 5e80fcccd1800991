"""Child runs: calls of tools that are agents, which this daemon executes as runs of their own. Used by the core.

Such a call is started like any other; with it goes ChildRunStarted, which names the child by the call's key and says
what it may consume. So whoever owns the run can create the child or find it again, and no crash makes a second one.
While the child waits for somebody, so does the run, when nothing else of it is going on.
"""

from __future__ import annotations

from typing import Protocol

from behest.v1.definition_pb2 import Budgets
from behest.v1.run_event_pb2 import ChildRunStarted
from behest.v1.run_state_pb2 import RunState
from behestd.core.limits import Excess, bound
from behestd.core.state import Call, Phase, Run
from behestd.core.times import SECOND, duration

_ID_DIGITS = 32


class Kin(Protocol):
    """What the shell knows of other runs now."""

    most_asked: int
    """Most calls of a principal's runs that may wait for an approval; 0: any number."""

    def asked(self, namespace: str, principal: str, besides: str) -> int:
        """How many calls of a principal's runs wait for an approval, those of one run apart."""
        ...

    def rests_until_ns(self, namespace: str, run_id: str) -> int:
        """Until when a child run waits at the longest, 0 when it does not wait or nobody knows."""
        ...


class NoKin:
    """Knows of no other run."""

    most_asked = 0

    def asked(self, namespace: str, principal: str, besides: str) -> int:
        """None wait."""
        return 0

    def rests_until_ns(self, namespace: str, run_id: str) -> int:
        """None waits."""
        return 0


def is_child(call: Call) -> bool:
    """Whether a call is one of an agent."""
    return call.tool is not None and bool(call.tool.agent_id)


def is_open(call: Call) -> bool:
    """Whether a call has a child run that has not ended."""
    return call.phase is Phase.STARTED and is_child(call)


def only_waits(run: Run) -> bool:
    """Whether a run does nothing but wait for child runs."""
    open_calls = [call for call in run.calls if call.phase is not Phase.DONE]
    return not run.attempts and bool(open_calls) and all(is_open(call) for call in open_calls)


def id_of(key: str) -> str:
    """The id of the child run of the call with this key."""
    return f"run_{key[:_ID_DIGITS]}"


def grace_ns(run: Run, cancel_grace_ns: int) -> int:
    """How long a cancelled run waits for what is in flight: its child runs wait for theirs, level by level."""
    if any(is_open(call) for call in run.calls):
        return cancel_grace_ns * (1 + max(run.definition.limits.max_depth, 1))
    return cancel_grace_ns


# --- limits ---


def has_room(run: Run) -> bool:
    """Whether one more child run may go on beside those that do."""
    return sum(is_open(call) for call in run.step.calls + run.beside) < run.definition.limits.max_parallel_children


def excess(run: Run) -> Excess | None:
    """The limit that one more child run would pass."""
    limits = run.definition.limits
    if run.turns.children >= limits.max_children:
        return Excess("RUN_BUDGET", "max_children", limits.max_children, run.turns.children + 1)
    for name in ("max_total_tokens", "max_cost_micro_usd"):
        limit, left = bound(run, name), _left(run, name)
        if limit is not None and left is not None and left <= 0:
            return Excess("RUN_BUDGET", name, limit, limit - left)
    return None


def started(run: Run, call: Call, now_ns: int) -> ChildRunStarted:
    """Say how the child run of a call begins: with its share of what is left, no longer than the run itself lasts.

    Calls of the same turn that are still to begin have equal shares; what one does not use goes to those after it.
    """
    assert call.started is not None
    pending = [other for other in run.step.calls if is_child(other) and other.phase < Phase.STARTED]
    shares = len(pending) + 1
    budgets = Budgets()
    for name in ("max_total_tokens", "max_cost_micro_usd"):
        left = _left(run, name)
        if left is not None:
            setattr(budgets, name, max(left // shares, 0))
    seconds = max(run.life.deadline_ns - now_ns, 1) / SECOND
    return ChildRunStarted(
        child_run_id=id_of(call.started.key), call_id=call.call.id, budgets=budgets, timeout=duration(seconds)
    )


def _left(run: Run, name: str) -> int | None:
    """What is left of a budget beside what was given to child runs that go on; None: there is no such limit."""
    limit = bound(run, name)
    if limit is None:
        return None
    spend = run.spend
    used = spend.cost_micro_usd if name == "max_cost_micro_usd" else spend.input_tokens + spend.output_tokens
    given = sum(
        getattr(call.child.budgets, name) for call in run.calls + run.beside if call.child is not None and is_open(call)
    )
    return limit - used - int(given)


# --- waits ---


def rests_until_ns(kin: Kin, run: Run, call: Call) -> int:
    """Until when the child run of an open call waits, 0 when it does not."""
    return kin.rests_until_ns(run.created.namespace, call.child.child_run_id) if call.child is not None else 0


def moves(kin: Kin, run: Run) -> bool:
    """Whether some child run of a run that waits does not wait any more."""
    waits = run.state == RunState.RUN_STATE_WAITING
    return waits and any(is_open(call) and not rests_until_ns(kin, run, call) for call in run.calls)
