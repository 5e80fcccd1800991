"""Runs in a hostile world where operators pause and lift: no intent while what it needs is paused, and an end in time.

The rules of the core's own simulation go on beside pauses of everything, an agent, models and tools; effects of which
nothing has left are taken back where they would leave, as the runtime does it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from behest.v1.model_event_pb2 import ModelRequested
from behest.v1.tool_event_pb2 import ToolStarted
from behestd.core.pauses import AGENT, EVERYTHING, MODEL, NAMESPACE, NONE, TOOL, Key, Pause, Pauses
from behestd.core.run import KIND
from behestd.core.signals import CallModel, CallTool, Held, Start, Wake
from behestd.core.state import Run
from tests.core.test_simulation import CALLS, INDEX, STALE, Runs
from tests.core.world import TOOLS, World

TARGETS: tuple[Key, ...] = (
    EVERYTHING,
    ("default", NAMESPACE, "default"),
    ("default", AGENT, ""),
    ("default", MODEL, "m/a"),
    ("default", MODEL, "m/b"),
    *(("default", TOOL, name) for name in TOOLS),
    ("other", TOOL, "pure"),
    ("other", NAMESPACE, "other"),
)
PLAYED: Counter[str] = Counter()


class PausedWorld(World):
    """The world of the simulation, where every intent is held against the pauses in force."""

    @property
    def pauses(self) -> Pauses:
        """The pauses in force."""
        found: Pauses = self.givens.get("pauses", NONE)
        return found

    def commit(self, payloads: Sequence[Any], after: Run, *, is_first: bool = False) -> None:
        """Commit as the world does, and complain of what a pause forbids."""
        whole = self.pauses.of_run(after)
        for payload in payloads:
            if isinstance(payload, ModelRequested):
                assert self.pauses.of_run_model(after, payload.endpoint) is None, "a paused model is not called"
            elif isinstance(payload, ToolStarted):
                assert whole is None, "a run that is paused calls nothing"
                assert self.pauses.of_tool("default", payload.name) is None, "a paused tool is not called"
            if self.pauses:
                PLAYED[KIND[type(payload)]] += 1
        super().commit(payloads, after, is_first=is_first)


class PausedRuns(Runs):
    """One run in a hostile world with operators."""

    def __init__(self) -> None:
        super().__init__()
        self.world = PausedWorld()

    @precondition(lambda self: self.world.run.is_ended)
    @rule(calls=CALLS, starts=st.sampled_from([True, True, True, False]))
    def next_run(self, calls: list[tuple[str, str]], starts: bool) -> None:
        self.finish()
        self.world = PausedWorld()
        self.world.take(self.world.replicas[0])
        if starts:
            self.tell_owner(Start(1))

    @rule(what=st.sampled_from(TARGETS))
    def pause(self, what: Key) -> None:
        before = self.world.givens.get("pauses", NONE)
        kind, name = what[1], what[2]
        self.world.givens["pauses"] = Pauses({**before.in_force, what: Pause(kind, name, "an incident")})

    @precondition(lambda self: self.world.givens.get("pauses", NONE))
    @rule(index=INDEX, everything=st.booleans())
    def lift(self, index: int, everything: bool) -> None:
        in_force = dict(self.world.givens["pauses"].in_force)
        gone = list(in_force) if everything else [list(in_force)[index % len(in_force)]]
        left = {key: pause for key, pause in in_force.items() if key not in gone}
        self.world.givens["pauses"] = Pauses(left) if left else NONE
        if self.is_live:
            self.tell_owner(Wake())

    @precondition(lambda self: self.world.givens.get("pauses", NONE))
    @rule(stale=STALE, index=INDEX)
    def stop_what_would_leave(self, stale: bool, index: int) -> None:
        replica = self.replica(stale)
        effects = [each for each in self.world.unsent(replica) if isinstance(each, CallModel | CallTool)]
        if effects and replica.run is not None and self.is_held(replica.run, effects[index % len(effects)]):
            PLAYED["held"] += 1
            self.world.tell(replica, Held(effects[index % len(effects)]))  # type: ignore[arg-type]

    @precondition(lambda self: self.has(CallTool) or self.has(CallModel))
    @rule(stale=STALE, index=INDEX)
    def pause_just_before_it_leaves(self, stale: bool, index: int) -> None:
        self.pause(EVERYTHING)
        self.stop_what_would_leave(stale, index)

    def is_held(self, run: Run, effect: CallModel | CallTool) -> bool:
        pauses = self.world.givens["pauses"]
        if isinstance(effect, CallModel):
            return pauses.of_run_model(run, effect.endpoint) is not None
        call = run.call(effect.call_id)
        return call is not None and pauses.of_call(run, call) is not None

    def finish(self) -> None:
        """Lift everything, and end the run."""
        self.world.givens["pauses"] = NONE
        if self.is_live:
            self.tell_owner(Wake())
        PLAYED.update(self.world.kinds)
        super().finish()


def play(examples: int, steps: int, *, derandomize: bool) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        PausedRuns,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=derandomize,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(300)  # it takes seconds, and shrinking what it finds some minutes
def test_nothing_that_is_paused_begins_whatever_happens() -> None:  # N17
    PLAYED.clear()
    play(100, 50, derandomize=True)
    # Far below what is usual: hypothesis draws from the constants of all modules that happen to be loaded too.
    for kind, least in {
        "run_waiting": 20,
        "run_resumed": 7,
        "held": 1,
        "model_requested": 30,
        "tool_started": 30,
    }.items():
        assert PLAYED[kind] >= least, f"{kind} was played {PLAYED[kind]} times"


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_nothing_that_is_paused_begins_for_long() -> None:  # N17
    play(int(os.environ.get("BEHEST_SIMULATIONS", "3000")), 80, derandomize=False)
