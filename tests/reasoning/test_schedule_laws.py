"""Laws of the scheduler over graphs as they come: it ends, keeps room, agrees with the reference, whoever is faster."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from behest.v1.graph_pb2 import Graph
from behestd.core.nodes import NodeStatus
from tests.reasoning.made_up import graphs
from tests.reasoning.oracle import Key, Oracle
from tests.reasoning.playing import Play
from tests.reasoning.reference import Reference

FAULTS = ("REASONING_NODE_FAILED", "REASONING_ITERATION_LIMIT")
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
few = settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
many = settings(max_examples=4_000, deadline=None, suppress_health_check=SLOW)
seeds = st.integers(0, 2**32)


def agrees_with_the_reference(made: Graph, seed: int) -> None:
    """One node after the other, the scheduler and the reference do the same."""
    oracle = Oracle(seed)
    played, reference = Play(made, oracle, room=1).play(), Reference(made, oracle)
    ending, steps = reference.run()
    assert played.visits == reference.visits
    assert (played.reason, played.steps) == (ending, steps)


def ends_in_any_order(made: Graph, seed: int) -> None:
    """Whoever is faster, the graph ends, and what every graph must keep is kept."""
    drawn = Random(seed)
    played = Play(made, Oracle(seed), room=drawn.choice([1, 2, 3, 16])).play(drawn.choice)
    if played.reason in ("completed", "REASONING_NO_ANSWER"):
        assert set(played.nodes.scopes[0].nodes) == {node.id for node in made.nodes}, "nothing is forgotten"
    assert not played.nodes.lanes
    assert set(played.nodes.scopes) == {0}


def does_not_depend_on_who_is_faster(made: Graph, seed: int) -> None:
    """Without races, what each visit begins with is the same in any order, and so is what comes of it all."""
    drawn = Random(seed)
    ways = [Play(made, Oracle(seed), room=drawn.choice([1, 2, 3, 16])).play(drawn.choice) for _ in range(3)]
    if any(played.reason in FAULTS for played in ways):
        assert all(played.reason in FAULTS for played in ways)
        return
    first, *others = (lasting(played) for played in ways)
    assert all(other == first for other in others)


def lasting(played: Play) -> tuple[str, set[tuple[Key, tuple[Key, ...], int]], dict[str, str], object]:
    """What must be the same: how it ends, and the visits, less those within what has failed."""
    failed = [number for number, visit in enumerate(played.nodes.visits, 1) if visit.status is NodeStatus.FAILED]
    within = tuple("{}#{}/".format(*played.keys[number]) for number in failed)
    visits = {visit for visit in played.visits if not visit[0][0].startswith(within)}
    fates = {node.id: played.fate(node.id) for node in played.graph.nodes}
    return played.reason, visits, fates, played.steps if played.reason == "completed" else None


LAWS: dict[str, tuple[Callable[[Graph, int], None], bool]] = {
    "agrees_with_the_reference": (agrees_with_the_reference, False),
    "ends_in_any_order": (ends_in_any_order, False),
    "does_not_depend_on_who_is_faster": (does_not_depend_on_who_is_faster, True),
}


def hold(name: str, bounds: settings) -> None:
    law, is_fair = LAWS[name]

    @bounds
    @given(graphs(is_fair=is_fair), seeds)
    def run(made: Graph, seed: int) -> None:
        law(made, seed)

    run()


@pytest.mark.parametrize("name", LAWS)
def test_the_law_holds_for_graphs_as_they_come(name: str) -> None:  # C126 C127 C128
    hold(name, few)


@pytest.mark.proof
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", LAWS)
def test_the_law_holds_for_very_many_graphs(name: str) -> None:  # C126 C127 C128
    hold(name, many)
