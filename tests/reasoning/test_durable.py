"""Graph runs and crashes, over graphs that hypothesis makes up: from the log alone a run comes to the same end."""

from __future__ import annotations

import os
from random import Random
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from behest.v1.graph_pb2 import Graph
from behestd.core.nodes import Visit
from behestd.core.task import message
from behestd.reasoning.conduct import PARALLEL_NODES
from tests.reasoning.graph_stage import GraphStage, Reply, pinned
from tests.reasoning.made_up import graphs

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]
SOME = settings(max_examples=int(os.environ.get("EXAMPLES", "25")), deadline=None, suppress_health_check=CHECKS)
MANY = settings(max_examples=300, deadline=None, suppress_health_check=CHECKS)


def says(visit: Visit, turn: int) -> Reply:
    """What a node says depends on the node and on the round alone; about one in seven fails.

    Answers are all the same, since which of several is the first is chance.
    """
    key = f"{visit.started.node} in round {visit.started.iteration}"
    told = "so it is" if visit.started.operator == "answer" else f"{key} says {turn}"
    return None if crc32(key.encode()) % 7 == 0 else told


def played(graph: Graph, seed: int = 0) -> GraphStage:
    """A run of a graph to its end, its effects ending in some order."""
    drawn = Random(seed)
    return GraphStage(pinned(graph), says).play(lambda effects: drawn.choice(effects) if seed else effects[0])


def end_of(stage: GraphStage) -> tuple[object, ...]:
    """How a run ended, and the task that it came to; of one that failed, which of its faults was first is chance."""
    if stage.state != "COMPLETED":
        return (stage.state,)
    nodes = stage.run.nodes
    assert nodes is not None
    answered = nodes.scopes[0].answer
    found = message(nodes.after(answered)).artifacts if answered else []
    return stage.state, stage.text, [(entry.title, entry.content) for entry in found]


def holds_from_every_prefix(graph: Graph) -> None:
    whole = played(graph)
    for events in range(1, len(whole.log)):
        resumed = GraphStage.resumed(whole, events)
        finished = done(resumed)
        resumed.play()
        assert end_of(resumed) == end_of(whole), f"from event {events}"
        assert finished.items() <= done(resumed).items(), "what had finished stays as it was"


def done(stage: GraphStage) -> dict[int, bytes]:
    """The visits that have ended, and what they added. That none begins again is a law of the stage."""
    nodes = stage.run.nodes
    assert nodes is not None
    return {
        visit.number: visit.delta.SerializeToString(deterministic=True)
        for visit in nodes.visits
        if visit.delta is not None
    }


def holds_in_any_order(graph: Graph, seed: int) -> None:
    first, other = played(graph), played(graph, seed)
    assert (other.state, other.text) == (first.state, first.text)


@SOME
@given(graphs(is_fair=True))
def test_a_run_taken_up_from_any_event_of_its_log_comes_to_the_same_end(graph: Graph) -> None:  # C129, N16
    holds_from_every_prefix(graph)


@SOME
@given(graphs(is_fair=True), st.integers(1, 2**32))
def test_the_end_does_not_depend_on_who_is_first(graph: Graph, seed: int) -> None:  # C126
    holds_in_any_order(graph, seed)


@SOME
@given(graphs(), st.integers(1, 2**32))
def test_any_graph_comes_to_an_end_within_its_room(graph: Graph, seed: int) -> None:
    stage = played(graph, seed)
    assert stage.run.is_ended
    assert stage.laws.most_at_once <= PARALLEL_NODES


@pytest.mark.proof
@pytest.mark.timeout(1800)
@MANY
@given(graphs(is_fair=True), st.integers(1, 2**32))
def test_the_same_over_hundreds_of_graphs(graph: Graph, seed: int) -> None:
    holds_from_every_prefix(graph)
    holds_in_any_order(graph, seed)
