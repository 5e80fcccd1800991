"""The core in a world of crashes, takeovers, zombies, lost answers and people, played by hypothesis.

Every append passes `Laws`, the fold of the bytes and the ledger of the outside; at the end faults stop, time passes and
the run must end. When a run has ended, the next one begins, so that no step is played for nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.chat_pb2 import FinishReason
from behest.v1.run_state_pb2 import CancelMode
from behestd.core.route import Health
from behestd.core.run import KIND
from behestd.core.signals import (
    AskStatus,
    CallModel,
    CallTool,
    Cancel,
    Decision,
    Input,
    ModelBroke,
    ModelEnded,
    Resolution,
    Start,
    ToolBroke,
    ToolEnded,
    Wake,
)
from behestd.core.state import Phase
from behestd.core.times import SECOND
from behestd.core.wanted import alarm_ns
from behestd.runtime.kinds import wanted
from tests.core.stage import GRACE_NS, NO, QUOTA, UNKNOWN, YES, answer, result, said
from tests.core.world import TOOLS, UNFIT, Flight, Replica, World, executed_values

INDEX = st.integers(0, 7)
STALE = st.sampled_from([False, False, False, True])
"""Whether a replica that does not own the run, and may not know it, acts."""
ARGUMENTS = st.sampled_from(["{}", '{"n":1}', '{"n":2}', "garbage"])
CALLS = st.lists(st.tuples(st.sampled_from([*TOOLS, "nonsense"]), ARGUMENTS), min_size=1, max_size=4)
CLASSES = st.sampled_from(range(1, 9))


PLAYED: Counter[str] = Counter()
"""Kinds of events, ends and reasons of the runs that were played."""

PLAYABLE = frozenset(KIND.values()) - {
    "child_run_started",
    "child_run_ended",
    "doom_loop_detected",
    "model_bound",
    "context_compacted",
    "compaction_circuit_opened",
    "context_compaction_requested",
    "context_compaction_failed",
    "node_started",
    "node_completed",
    "node_failed",
    "node_skipped",
} | {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT", "TOOL_OUTCOME_UNKNOWN", "RUN_DEADLINE_EXCEEDED"}
"""What a simulation must have played ten times to count."""


class Runs(RuleBasedStateMachine):
    """One run in a hostile world."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.inputs = 0

    # --- owners ---

    @initialize(calls=CALLS, starts=st.sampled_from([True, True, True, False]))
    def first_run(self, calls: list[tuple[str, str]], starts: bool) -> None:
        """A run that has begun, most often with calls to make."""
        self.world.take(self.world.replicas[0])
        if starts:
            self.tell_owner(Start(1))
            self.tell_owner(ModelEnded(1, 1, answer("", *calls)))

    @precondition(lambda self: self.world.run.is_ended)
    @rule(calls=CALLS, starts=st.sampled_from([True, True, True, False]))
    def next_run(self, calls: list[tuple[str, str]], starts: bool) -> None:
        self.finish()
        self.world = World()
        self.first_run(calls, starts)

    @rule(stale=STALE)
    def takeover(self, stale: bool) -> None:
        """The run is taken by who has lost it, or from an owner who does not know of it."""
        if not self.world.run.is_ended and (stale or self.owner is None):
            self.world.take(self.replica(stale))

    @precondition(lambda self: self.owner is not None)
    @rule(stale=st.booleans())
    def crash(self, stale: bool) -> None:
        self.world.drop(self.replica(stale))

    @precondition(lambda self: self.is_live)
    @rule()
    def release(self) -> None:
        self.world.let_go()

    @precondition(lambda self: self.is_live and self.world.state == "QUEUED")
    @rule()
    def begin(self) -> None:
        self.tell_owner(Start(1))

    # --- effects ---

    @precondition(lambda self: self.has(CallTool))
    @rule(stale=STALE, index=INDEX)
    def send(self, stale: bool, index: int) -> None:
        replica = self.replica(stale)
        unsent = self.world.unsent(replica)
        if unsent:
            self.world.send(replica, unsent[index % len(unsent)])

    @precondition(lambda self: self.has(CallTool))
    @rule(stale=STALE, index=INDEX)
    def arrive(self, stale: bool, index: int) -> None:
        """A request arrives at its tool, and its answer is on its way or lost."""
        found = self.flight(stale, index, CallTool)
        if found is not None:
            self.world.arrive(found[1])

    @precondition(lambda self: self.has(CallModel))
    @rule(stale=STALE, calls=CALLS, finish=st.integers(1, 6))
    def model_calls(self, stale: bool, calls: list[tuple[str, str]], finish: int) -> None:
        found = self.flight(stale, 0, CallModel)
        if found is not None:
            effect: Any = found[1].effect
            end = answer("", *calls, finish=finish)
            self.world.tell(found[0], ModelEnded(effect.step, effect.attempt, end))

    @precondition(lambda self: self.has(CallModel))
    @rule(stale=STALE, said=st.sampled_from(["cut", "cut", "whole", UNFIT, UNFIT, UNFIT]))
    def model_speaks(self, stale: bool, said: str) -> None:
        found = self.flight(stale, 0, CallModel)
        if found is not None:
            effect: Any = found[1].effect
            is_cut = said == "cut"
            end = answer(said, finish=FinishReason.FINISH_REASON_LENGTH if is_cut else FinishReason.FINISH_REASON_STOP)
            self.world.tell(found[0], ModelEnded(effect.step, effect.attempt, end))

    @precondition(lambda self: self.has(CallModel))
    @rule(stale=STALE, failure_class=CLASSES, after=st.sampled_from([0, 10, 100]))
    def model_breaks(self, stale: bool, failure_class: int, after: int) -> None:
        found = self.flight(stale, 0, CallModel)
        if found is not None:
            effect: Any = found[1].effect
            reason = "PROVIDER_QUOTA" if failure_class == QUOTA else "PROVIDER_UNAVAILABLE"
            signal = ModelBroke(effect.step, effect.attempt, failure_class, reason, "it broke", after * SECOND)
            self.world.tell(found[0], signal)

    @precondition(lambda self: self.has(CallTool))
    @rule(stale=STALE, index=INDEX, is_error=st.sampled_from([False, False, True]), twice=st.booleans())
    def tool_answers(self, stale: bool, index: int, is_error: bool, twice: bool) -> None:
        found = self.flight(stale, index, CallTool)
        if found is None:
            return
        replica, flight = found
        effect: Any = flight.effect
        call = replica.run.call(effect.call_id) if replica.run is not None else None
        if call is not None and self.world.arrive(flight):
            signal = ToolEnded(effect.call_id, effect.attempt, result(call, is_error=is_error))
            for _ in range(1 + twice):
                if replica.run is not None:
                    self.world.tell(replica, signal)

    @precondition(lambda self: self.has(CallTool))
    @rule(
        stale=STALE,
        index=INDEX,
        failure_class=CLASSES,
        executed=st.sampled_from(executed_values()),
        arrives=st.booleans(),
        after=st.sampled_from([0, 10, 100]),
    )
    def tool_breaks(
        self, stale: bool, index: int, failure_class: int, executed: int, arrives: bool, after: int
    ) -> None:
        found = self.flight(stale, index, CallTool)
        if found is None:
            return
        replica, flight = found
        effect: Any = flight.effect
        has_arrived = flight.arrived
        if executed == NO and has_arrived:
            executed = UNKNOWN
        if (executed == YES or (executed != NO and arrives)) and not self.world.arrive(flight):
            executed = UNKNOWN
        signal = ToolBroke(
            effect.call_id, effect.attempt, failure_class, executed, "TOOL_UNAVAILABLE", "it broke", after * SECOND
        )
        replica.flights.remove(flight)
        self.world.tell(replica, signal)

    @precondition(lambda self: self.has_phase(Phase.UNKNOWN))
    @rule(index=INDEX)
    def late_answer(self, index: int) -> None:
        """A call in doubt is answered after all."""
        calls = [call for call in self.world.run.calls if call.phase is Phase.UNKNOWN]
        call = calls[index % len(calls)]
        if self.world.executions[call.call.id]:
            self.tell_owner(ToolEnded(call.call.id, call.attempt, result(call)))

    @precondition(lambda self: self.has(AskStatus))
    @rule(stale=STALE, index=INDEX, found=st.sampled_from([True, True, False]))
    def server_tells(self, stale: bool, index: int, found: bool) -> None:
        asked = self.flight(stale, index, AskStatus)
        if asked is not None:
            self.world.tell(asked[0], self.world.status(asked[1], found=found))

    # --- people ---

    @precondition(lambda self: self.is_live)
    @rule(force=st.sampled_from([False, False, False, True]), cause=st.integers(0, 5))
    def cancel(self, force: bool, cause: int) -> None:
        mode = CancelMode.CANCEL_MODE_FORCE if force else CancelMode.CANCEL_MODE_GRACEFUL
        self.tell_owner(Cancel(mode, cause, "ann"))

    @precondition(lambda self: self.is_live)
    @rule(new=st.booleans())
    def say(self, new: bool) -> None:
        self.inputs += new
        self.tell_owner(Input(f"in_{self.inputs}", said(f"input {self.inputs}")))

    @precondition(lambda self: self.has_phase(Phase.ASKED))
    @rule(index=INDEX, decision=st.sampled_from([1, 1, 2]), edits=st.booleans())
    def decide_approval(self, index: int, decision: int, edits: bool) -> None:
        calls = self.world.run.calls
        if calls:
            approved = decision == ApprovalDecision.APPROVAL_DECISION_APPROVED
            arguments = '{"edited":true}' if edits and approved else ""
            call_id = calls[index % len(calls)].call.id
            self.tell_owner(Decision(call_id, decision, "ann", "because", arguments))

    @precondition(lambda self: self.has_phase(Phase.UNKNOWN))
    @rule(index=INDEX, gives=st.booleans(), knows=st.booleans())
    def resolve(self, index: int, gives: bool, knows: bool) -> None:
        """Somebody who looked says what the ledger says; nobody says NO while a request may still arrive."""
        calls = [call for call in self.world.run.calls if call.phase is Phase.UNKNOWN]
        call = calls[index % len(calls)]
        took_effect = self.world.executions[call.call.id] > 0
        executed = YES if took_effect else NO
        if not knows or (not took_effect and self.world.may_still_arrive(call.call.id)):
            executed = UNKNOWN
        given = result(call) if gives and executed != NO else None
        self.tell_owner(Resolution(call.call.id, "ann", executed, given))

    # --- time and weather ---

    @rule(seconds=st.sampled_from([1, 5, 12, 40]))
    def pass_time(self, seconds: int) -> None:
        self.world.now_ns += seconds * SECOND

    @rule(beyond=st.sampled_from([0, 0, 1, 100_000]))
    def pass_time_to_the_alarm(self, beyond: int) -> None:
        """Often to the next one, if it is near; rarely far beyond it."""
        due_ns = alarm_ns(self.world.run, GRACE_NS)
        is_near = due_ns < self.world.now_ns + 200 * SECOND
        if is_near or beyond == 1:
            self.world.now_ns = max(self.world.now_ns, due_ns) + (beyond * SECOND if is_near else 0)

    @precondition(lambda self: self.is_live)
    @rule()
    def wake_for_nothing(self) -> None:
        self.tell_owner(Wake())

    @rule(open_a=st.booleans(), open_b=st.booleans(), seconds=st.sampled_from([5, 100]), random=st.floats(0, 0.999))
    def weather(self, open_a: bool, open_b: bool, seconds: int, random: float) -> None:
        until_ns = self.world.now_ns + seconds * SECOND
        opened = [model for model, is_open in (("m/a", open_a), ("m/b", open_b)) if is_open]
        self.world.givens["health"] = Health(dict.fromkeys(opened, until_ns))
        self.world.random = random

    # --- what always holds ---

    @invariant()
    def nothing_took_effect_twice(self) -> None:
        self.world.check_ledger()

    @invariant()
    def no_loop_is_busy(self) -> None:
        self.world.check_alarm()

    def teardown(self) -> None:
        self.finish()

    # --- helpers of the rules ---

    def finish(self) -> None:
        """End the run without faults, and look at it once more."""
        self.world.heal()
        self.world.check_ledger()
        self.world.forget()
        PLAYED.update(self.world.kinds)
        PLAYED[self.world.state] += 1
        PLAYED[self.world.reason] += 1

    @property
    def owner(self) -> Replica | None:
        owner = self.world.owner
        return owner if owner is not None and owner.run is not None else None

    @property
    def is_live(self) -> bool:
        return self.owner is not None and not self.world.run.is_ended

    def has(self, kind: type) -> bool:
        return any(isinstance(effect, kind) for effect in wanted(self.world.run))

    def has_phase(self, phase: Phase) -> bool:
        return self.is_live and any(call.phase is phase for call in self.world.run.calls)

    def replica(self, stale: bool) -> Replica:
        """The owner, or the other one."""
        first, second = self.world.replicas
        return second if (self.world.owner is second) != stale else first

    def tell_owner(self, signal: Any) -> None:
        assert self.owner is not None
        self.world.tell(self.owner, signal)

    def flight(self, stale: bool, index: int, kind: type) -> tuple[Replica, Flight] | None:
        """One of the effects of a kind that a replica has in flight; it sends one if it has none."""
        replica = self.replica(stale)
        for effect in self.world.unsent(replica):
            if isinstance(effect, kind) and not any(isinstance(flight.effect, kind) for flight in replica.flights):
                self.world.send(replica, effect)
        flights = [flight for flight in replica.flights if isinstance(flight.effect, kind)]
        return (replica, flights[index % len(flights)]) if flights and replica.run is not None else None


def play(examples: int, steps: int, *, derandomize: bool) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Runs,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=derandomize,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(300)  # it takes ten seconds, and shrinking what it finds some minutes
def test_the_core_keeps_its_laws_in_a_hostile_world() -> None:  # C049 C050 C080 N02
    PLAYED.clear()
    play(400, 50, derandomize=True)
    unseen = PLAYABLE - {name for name, count in PLAYED.items() if count >= 3}
    assert not unseen, "the simulation has become too tame to prove anything"


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_the_core_keeps_its_laws_for_long() -> None:  # C049 C050 C080 N02
    play(int(os.environ.get("BEHEST_SIMULATIONS", "5000")), 80, derandomize=False)
