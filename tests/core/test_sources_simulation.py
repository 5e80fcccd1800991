"""Runs with context sources in a hostile world: owners crash and are taken over, sources answer late, twice or not."""

from __future__ import annotations

import random
from collections import Counter
from hashlib import sha256
from typing import Any

import pytest

from behest.v1.context_pb2 import ContextFailurePolicy, ContextSource, ContextSourceKind
from behest.v1.definition_pb2 import RunDefinition
from behestd.core.run import fold
from behestd.core.signals import (
    AskContext,
    CallModel,
    CallTool,
    Cancel,
    ContextGathered,
    Input,
    ModelEnded,
    Start,
    Wake,
)
from behestd.core.sources import HISTORY_SOURCE, Answer
from behestd.core.times import SECOND
from behestd.core.wanted import wanted
from behestd.core.window import compose
from tests.core.stage import answer, said
from tests.core.world import Replica, World, pinned

FUNCTION = ContextSourceKind.CONTEXT_SOURCE_KIND_FUNCTION
FAIL = ContextFailurePolicy.CONTEXT_FAILURE_POLICY_FAIL
CALLS = [[("pure", "{}")], [], [], [("idem", "{}"), ("pure", '{"a": 1}')]]


def with_sources() -> RunDefinition:
    made = RunDefinition()
    made.CopyFrom(pinned())
    strict = ContextSource(name="docs", kind=FUNCTION, on_failure=FAIL)
    made.sources.extend([HISTORY_SOURCE, ContextSource(name="news", kind=FUNCTION), strict])
    return made


class Asked(World):
    """The world of a run that has context sources."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(with_sources())
        self.chance = chance
        self.played: Counter[str] = Counter()

    def gathered(self, effect: AskContext) -> ContextGathered:
        """What the sources say, this time."""
        failed = Answer(reason="CONTEXT_SOURCE_FAILED", message="gone")
        told = Answer((said(f"news {self.chance.random()}"),))
        docs = failed if self.chance.random() < 0.03 else Answer((said("docs"),))
        return ContextGathered(effect.step, {"news": self.chance.choice([told, failed]), "docs": docs})

    def _serve(self, owner: Replica) -> bool:
        for effect in self.unsent(owner):
            if isinstance(effect, AskContext):
                self.tell(owner, ContextGathered(effect.step, {"docs": Answer((said("docs"),))}))
                return True
        return super()._serve(owner)

    def act(self) -> None:
        """Let something happen."""
        replica = self.chance.choice([each for each in self.replicas if each.run is not None] or [None])  # type: ignore[list-item]
        if replica is None or self.chance.random() < 0.1:
            self.take(self.chance.choice(self.replicas))
            return
        assert replica.run is not None
        effects = wanted(replica.run)
        effect = self.chance.choice(effects) if effects else None
        kind = self.chance.choice(["effect"] * 12 + ["crash", "release", "time", "say", "cancel", "start", "start"])
        self.played[type(effect).__name__ if kind == "effect" else kind] += 1
        if kind == "effect":
            self.answer(replica, effect)
        elif kind == "crash":
            self.drop(replica)
        elif kind == "release" and self.owner is replica and replica.run.head == self.run.head:
            self.let_go()
        elif kind == "start":
            self.tell(replica, Start(1))
        elif kind == "time":
            self.now_ns += int(self.chance.choice([1, 60, 4_000]) * SECOND) // 4
            self.tell(replica, Wake())
        elif kind == "say":
            self.tell(replica, Input(f"in_{self.chance.random()}", said("more"), "ann"))
        elif kind == "cancel" and self.chance.random() < 0.1:
            self.tell(replica, Cancel(1, 1, "ann"))

    def answer(self, replica: Replica, effect: Any) -> None:
        """Answer an effect, at times twice."""
        if isinstance(effect, AskContext):
            for _ in range(self.chance.choice([1, 1, 2])):
                self.tell(replica, self.gathered(effect))
                if replica.run is None:
                    return
        elif isinstance(effect, CallModel):
            calls = self.chance.choice(CALLS)
            self.tell(replica, ModelEnded(effect.step, effect.attempt, answer("" if calls else "text", *calls)))
        elif isinstance(effect, CallTool):
            if replica.run is not None and replica.run.head == self.run.head:
                self._serve(replica)

    def check(self) -> None:
        """Hold the run against what its log says about context."""
        built = [event.context_built for event, _ in self.log if event.WhichOneof("payload") == "context_built"]
        assert [each.step for each in built] == list(range(1, len(built) + 1))
        assert all([outcome.source for outcome in each.outcomes] == ["news", "docs"] for each in built)
        if self.run.step.open is not None:
            read = fold("run_1", self.log, self.definition)
            chat = compose(read, (), self.run.step.open.endpoint).chat
            asked = self.last("model_requested")
            assert sha256(chat.SerializeToString(deterministic=True)).digest() == asked.request_hash


def play(seeds: range, length: int) -> Counter[str]:
    """Play one world for each seed, and heal it: every run comes to its end."""
    played: Counter[str] = Counter()
    for seed in seeds:
        world = Asked(random.Random(seed))
        world.take(world.replicas[0])
        world.tell(world.replicas[0], Start(1))
        for _ in range(length):
            if world.run.is_ended:
                break
            world.act()
            world.check()
        world.heal()
        world.check()
        played += world.played
        played[world.state] += 1
        played[world.reason] += 1
    return played


def test_runs_with_sources_keep_their_laws_in_a_hostile_world() -> None:  # C102
    played = play(range(120), 40)
    for name in ("AskContext", "CallModel", "CallTool", "crash", "release", "COMPLETED", "CONTEXT_SOURCE_FAILED"):
        assert played[name] >= 5, (name, played)


@pytest.mark.proof
def test_thousands_of_runs_with_sources_keep_their_laws() -> None:
    assert play(range(1_000, 6_000), 60)["COMPLETED"] > 500
