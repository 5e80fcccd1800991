"""Graph runs in a world of crashes, takeovers, zombies, lost answers, people and pauses, played by chance.

What happens is what happens to plain runs, beside models that do what their nodes ask; every append passes the laws of
graphs, the fold of the bytes and the ledger of the outside. At the end faults stop, time passes and the run must end.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from behest.v1.node_event_pb2 import NodeSkipReason
from behestd.core.signals import AskStatus, CallModel, CallTool, ModelEnded, Start
from behestd.core.state import Phase
from behestd.core.times import SECOND
from tests.core.world import TOOLS, UNFIT, Flight, Replica, executed_values
from tests.operators.test_pauses_simulation import TARGETS, PausedRuns
from tests.reasoning.graph_world import GraphWorld

Doings = dict[str, tuple[int, Callable[[], object]]]
"""What may happen, each with how often beside the others."""
PLAYED: Counter[str] = Counter()
"""Kinds of events, ends and reasons of the runs that were played, and what happened to several nodes at once."""

PLAYABLE = {
    "node_started": 150,
    "node_completed": 100,
    "node_failed": 4,
    "node_skipped": 30,
    "run_claimed": 60,
    "run_waiting": 20,
    "run_resumed": 20,
    "run_cancel_requested": 1,
    "input_received": 8,
    "approval_decided": 15,
    "model_superseded": 25,
    "tool_outcome_unknown": 10,
    "tool_resolved": 5,
    "answer_rejected": 2,
    "COMPLETED": 20,
    "FAILED": 10,
    "CANCELLED": 1,
    "REASONING_NODE_FAILED": 1,
    "a node at work is stopped": 10,
    "a node is gone back to": 2,
    "a node in a subgraph": 5,
    "a tool does a node": 15,
    "two nodes at work": 150,
    "two nodes wait for approvals": 8,
    "two nodes have calls in flight": 20,
    "a takeover of two nodes at work": 10,
}
"""What a simulation must have played at least so often to count."""


class GraphRuns(PausedRuns):
    """One graph run in a hostile world, which goes by chance alone."""

    def __init__(self, chance: Random) -> None:
        super().__init__()
        self.chance = chance
        self.world: GraphWorld = GraphWorld(chance)
        self.world.take(self.world.replicas[0])
        self.world.tell(self.world.replicas[0], Start(1))

    def play(self, steps: int) -> None:
        """Let so many things happen, then end the run."""
        for _ in range(steps):
            if self.world.run.is_ended:
                break
            self.act()
            self.notice()
            self.nothing_took_effect_twice()
            self.no_loop_is_busy()
        self.finish()
        self.count()

    # --- what happens ---

    def act(self) -> None:
        """Let one thing happen, most often a good one."""
        if self.owner is None:
            self.takeover(stale=False)
            return
        doings = self.effects() if self.chance.random() < 0.8 else self.accidents()
        names = [name for name, (weight, _) in doings.items() for _ in range(weight)]
        doings[self.chance.choice(names)][1]()

    def effects(self) -> Doings:
        """What becomes of effects, and what people do; each as often as it says."""
        chance, stale, index = self.chance, self.chance.random() < 0.1, self.chance.randrange(8)
        calls = [(chance.choice(TOOLS), f'{{"n":{chance.randrange(9)}}}') for _ in range(chance.randint(1, 3))]
        found: Doings = {"time": (1, lambda: self.pass_time(chance.choice([1, 5])))}
        if self.has(CallModel):
            found |= {
                "well": (9, lambda: self.model_does_well(stale, index)),
                "calls": (1, lambda: self.model_calls(stale, calls, chance.randint(1, 6))),
                "speaks": (1, lambda: self.model_speaks(stale, chance.choice(["cut", "whole", UNFIT]))),
                "breaks": (1, lambda: self.model_breaks(stale, chance.randint(1, 8), chance.choice([0, 10, 100]))),
            }
        if self.has(CallTool):
            is_error, arrives, executed = chance.random() < 0.2, chance.random() < 0.5, chance.choice(executed_values())
            found |= {
                "sent": (1, lambda: self.send(stale, index)),
                "arrives": (2, lambda: self.arrive(stale, index)),
                "answers": (4, lambda: self.tool_answers(stale, index, is_error, arrives)),
                "fails": (2, lambda: self.tool_breaks(stale, index, chance.randint(1, 8), executed, arrives, 10)),
            }
        if self.has(AskStatus):
            found["told"] = (4, lambda: self.server_tells(stale, index, chance.random() < 0.7))
        if self.has_phase(Phase.ASKED):
            found["decided"] = (2, lambda: self.decide_approval(index, chance.choice([1, 1, 2]), chance.random() < 0.3))
        if self.has_phase(Phase.UNKNOWN):
            found["resolved"] = (2, lambda: self.resolve(index, chance.random() < 0.5, chance.random() < 0.5))
            found["late"] = (1, lambda: self.late_answer(index))
        return found

    def accidents(self) -> Doings:
        """What goes wrong, and what is done to it from outside."""
        chance, seconds = self.chance, self.chance.choice([5, 100])
        found: Doings = {
            "crash": (5, lambda: self.crash(chance.random() < 0.3)),
            "stolen": (4, lambda: self.takeover(stale=True)),
            "release": (2, self.release if self.is_live else self.nothing),
            "alarm": (4, lambda: self.pass_time_to_the_alarm(0)),
            "late": (1, lambda: self.pass_time_to_the_alarm(chance.choice([0, 0, 0, 1]))),
            "said": (2, lambda: self.say(chance.random() < 0.7) if self.is_live else None),
            "woken": (1, self.wake_for_nothing if self.is_live else self.nothing),
            "weather": (
                2,
                lambda: self.weather(chance.random() < 0.5, chance.random() < 0.5, seconds, chance.random()),
            ),
            "paused": (3, lambda: self.pause(chance.choice(TARGETS))),
        }
        if self.is_live and chance.random() < 0.2:
            found["cancel"] = (2, lambda: self.cancel(chance.random() < 0.3, chance.randint(0, 5)))
        if self.world.pauses:
            found["held"] = (3, lambda: self.stop_what_would_leave(False, chance.randrange(8)))
            found["lifted"] = (20, lambda: self.lift(chance.randrange(8), chance.random() < 0.7))
        return found

    def pass_time_to_the_alarm(self, beyond: int) -> None:
        """To the next one if it is near, and rarely to one that is far."""
        due_ns = self.world.alarm_ns()
        if beyond or due_ns < self.world.now_ns + 200 * SECOND:
            self.world.now_ns = max(self.world.now_ns, due_ns)

    def nothing(self) -> None:
        """Nothing happens."""

    def model_does_well(self, stale: bool, index: int) -> None:
        """A model does what its node asks of it."""
        found = self.flight(stale, index, CallModel)
        if found is not None and isinstance(found[1].effect, CallModel):
            effect = found[1].effect
            self.world.tell(found[0], ModelEnded(effect.step, effect.attempt, self.world.reply(effect)))

    def takeover(self, stale: bool) -> None:
        nodes = self.world.run.nodes
        if not self.world.run.is_ended:
            PLAYED["a takeover of two nodes at work"] += nodes is not None and len(nodes.lanes) > 1
            self.world.take(self.replica(stale))

    def flight(self, stale: bool, index: int, kind: type) -> tuple[Replica, Flight] | None:
        """One of the effects of a kind that a replica has in flight, after it has sent all of them."""
        replica = self.replica(stale)
        for effect in self.world.unsent(replica):
            if isinstance(effect, kind):
                self.world.send(replica, effect)
        flights = [flight for flight in replica.flights if isinstance(flight.effect, kind)]
        return (replica, self.chance.choice(flights)) if flights and replica.run is not None else None

    # --- what was played ---

    def notice(self) -> None:
        """Count what happens to several nodes at once."""
        nodes = self.world.run.nodes
        assert nodes is not None
        phases = [{call.phase for call in lane.step.calls} for lane in nodes.lanes.values()]
        PLAYED["two nodes at work"] += len(nodes.lanes) > 1
        PLAYED["two nodes wait for approvals"] += sum(Phase.ASKED in found for found in phases) > 1
        PLAYED["two nodes have calls in flight"] += sum(Phase.STARTED in found for found in phases) > 1

    def count(self) -> None:
        """Count what the log tells."""
        PLAYED.update(self.world.kinds)
        PLAYED.update((self.world.state, self.world.reason))
        for event, _ in self.world.log:
            if event.HasField("node_skipped") and event.node_skipped.visit:
                is_late = event.node_skipped.reason == NodeSkipReason.NODE_SKIP_REASON_OUTPACED
                PLAYED["a node at work is stopped"] += is_late
            if event.HasField("node_started"):
                PLAYED["a node is gone back to"] += event.node_started.edge > 0
                PLAYED["a node in a subgraph"] += event.node_started.scope > 0
                PLAYED["a tool does a node"] += event.node_started.HasField("call")


def play(seeds: range, steps: int) -> None:
    for seed in seeds:
        try:
            GraphRuns(Random(seed)).play(steps)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.timeout(120)
def test_graph_runs_keep_their_laws_in_a_hostile_world() -> None:  # C129 C131 N16
    PLAYED.clear()
    play(range(100), 60)
    tame = {name: PLAYED[name] for name, least in PLAYABLE.items() if PLAYED[name] < least}
    assert not tame, "the simulation has become too tame to prove anything"


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_graph_runs_keep_their_laws_for_long() -> None:  # C129 C131 N16
    first = int(os.environ.get("BEHEST_SEED", "1000"))
    play(range(first, first + int(os.environ.get("BEHEST_SIMULATIONS", "5000"))), 100)
