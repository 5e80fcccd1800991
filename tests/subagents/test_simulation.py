"""Chance decides what happens to a run with child runs; the laws of its log hold, and the sums are right in the end."""

from __future__ import annotations

import random
from typing import Any

import pytest

from behest.v1.definition_pb2 import Limits
from behest.v1.run_state_pb2 import RunState
from behest.v1.usage_pb2 import Usage
from behestd.core.children import is_open
from behestd.core.signals import ChildEnded, Wake
from behestd.core.state import Call
from behestd.core.times import SECOND
from tests.core.stage import NON_IDEMPOTENT, Stage, definition, result, tool
from tests.subagents.test_decisions import ORDER, Knows, agent

STATES = (
    RunState.RUN_STATE_COMPLETED,
    RunState.RUN_STATE_FAILED,
    RunState.RUN_STATE_CANCELLED,
    RunState.RUN_STATE_UNSPECIFIED,
)
SEEDS = 300
TURNS = 60


class Play:
    """One run, and what became of its child runs."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.knows = Knows()
        limits = Limits(max_children=5, max_parallel_children=2, max_steps=6, max_total_tokens=50_000)
        self.stage = Stage(definition(agent(), tool("pay", NON_IDEMPOTENT), limits=limits), given={"kin": self.knows})
        self.consumed = 0

    def turn(self) -> None:
        """Let something happen."""
        stage, chance = self.stage, self.chance
        possible: list[Any] = [stage.crash, stage.release, lambda: stage.wait(chance.choice([1, 20, 400]))]
        if stage.run.step.open is not None:
            possible += [self.answer] * 6
        for index, call in enumerate(stage.run.step.calls):
            if is_open(call):
                possible += [lambda call=call: self.end(call), lambda call=call: self.rest(call)] * 3
            elif call.started is not None and call.result is None and not call.child:
                possible += [lambda index=index: stage.tool(index)] * 2
        if chance.random() < 0.02:
            possible = [lambda: stage.cancel(force=chance.random() < 0.3)]
        chance.choice(possible)()

    def answer(self) -> None:
        """The model calls agents and tools, or is done."""
        calls = [self.chance.choice([ORDER, ORDER, ("pay", "{}")]) for _ in range(self.chance.randrange(4))]
        distinct = [(name, arguments.replace("}", f',"n":{n}}}')) if name != "pay" else (name, arguments)
                    for n, (name, arguments) in enumerate(calls, start=self.chance.randrange(1000))]  # fmt: skip
        self.stage.model("so", *distinct)

    def end(self, call: Call) -> None:
        """A child run ends, and perhaps is heard twice."""
        state = self.chance.choice(STATES)
        tokens = self.chance.randrange(100)
        usage = Usage(input_tokens=tokens, output_tokens=1, cost_micro_usd=1, attempts=2) if state else None
        told = result(call) if state == RunState.RUN_STATE_COMPLETED else None
        self.consumed += 0 if usage is None else tokens
        for _ in range(self.chance.choice([1, 2])):
            self.stage.do(ChildEnded(call.call.id, call.attempt, state, usage, told, "TOOL_FAILED", "it broke"))

    def rest(self, call: Call) -> None:
        """A child run begins or ceases to wait."""
        assert call.child is not None
        rests = self.chance.random() < 0.6
        self.knows.until_ns[call.child.child_run_id] = self.stage.now_ns + 100 * SECOND if rests else 0
        self.stage.do(Wake())


@pytest.mark.parametrize("block", range(6))
def test_whatever_happens_child_runs_are_started_once_and_counted_once(block: int) -> None:  # C101
    for seed in range(block * SEEDS // 6, (block + 1) * SEEDS // 6):
        play = Play(seed)
        for _ in range(TURNS):
            if play.stage.run.is_ended:
                break
            play.turn()
            check(play)


def check(play: Play) -> None:
    """Hold the log against what was played."""
    log = [event for event, _ in play.stage.log]
    started = [event.child_run_started for event in log if event.HasField("child_run_started")]
    over = [event.child_run_ended for event in log if event.HasField("child_run_ended")]
    own = sum(event.model_completed.usage.input_tokens for event in log if event.HasField("model_completed"))
    lost = sum(event.model_superseded.usage.input_tokens for event in log if event.HasField("model_superseded"))
    assert len({child.child_run_id for child in started}) == len({child.call_id for child in started}) == len(started)
    assert len({child.child_run_id for child in over}) == len(over)
    assert {child.child_run_id for child in over} <= {child.child_run_id for child in started}
    assert len(started) == play.stage.run.turns.children <= 5
    assert sum(is_open(call) for call in play.stage.run.step.calls) <= 2
    assert play.stage.run.spend.input_tokens == own + lost + play.consumed
    waits = play.stage.run.life.wait
    if waits is not None:
        assert all(
            not is_open(call) or play.knows.until_ns.get(call.child.child_run_id if call.child else "", 0)
            for call in play.stage.run.step.calls
        )
