"""Graph runs and crashes, over graphs that hypothesis makes up: from the log alone a run comes to the same end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from random import Random
from zlib import crc32

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from behest.v1.graph_pb2 import Graph
from behest.v1.run_pb2 import NodeState, Reasoning
from behest.v1.task_pb2 import Provenance
from behestd.core.nodes import Visit
from behestd.reasoning.conduct import PARALLEL_NODES
from behestd.reasoning.report import reasoning
from tests.reasoning.graph_stage import GraphStage, Reply, as_json, pinned
from tests.reasoning.made_up import graphs

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]
SOME = settings(max_examples=int(os.environ.get("EXAMPLES", "25")), deadline=None, suppress_health_check=CHECKS)
MANY = settings(max_examples=300, deadline=None, suppress_health_check=CHECKS)


WORK = ("reason", "analyze", "plan", "revise", "prioritize", "solve", "generate", "evaluate", "select", "verify")
"""Operators that add to each part of a task, and change those that can be changed."""


def says(visit: Visit, turn: int) -> Reply:
    """What a node says depends on the node, the round and the task that it starts from; about one in seven fails."""
    key = f"{visit.started.node} in round {visit.started.iteration}"
    number = crc32(key.encode())
    if number % 7 == 0:
        return None
    match visit.started.operator:
        case "plan" | "revise":
            return as_json(rationale=key, steps=["begin", key, "end"][: 1 + number % 3])
        case "prioritize":
            count = len(visit.task.plan.steps) if visit.task.plan is not None else 0
            return as_json(reason=key, order=[1 + (place + number) % count for place in range(count)])
        case "evaluate":
            return as_json(reason=key, score=number % 5 / 4)
        case "select":
            return as_json(reason=key, choice=1 + number % max(len(visit.task.artifacts), 1))
        case "verify":
            return as_json(problems=[key] * (number % 2), passed=not number % 2)
        case _:
            return f"{key} says {turn}"


def played(graph: Graph, seed: int = 0) -> GraphStage:
    """A run of a graph to its end, its nodes doing work of all kinds, its effects ending in some order."""
    made, drawn = Graph(), Random(seed)
    made.CopyFrom(graph)
    _put_to_work(made)
    return GraphStage(pinned(made), says).play(lambda effects: drawn.choice(effects) if seed else effects[0])


def _put_to_work(graph: Graph) -> None:
    for node in graph.nodes:
        if node.HasField("subgraph"):
            _put_to_work(node.subgraph)
        elif node.operator == "reason":
            node.operator = WORK[crc32(f"{node.id} of {len(graph.nodes)} and {len(graph.edges)}".encode()) % len(WORK)]


def seen(stage: GraphStage) -> Reasoning:
    """What there is to see of the run's graph, without times and what attempts that were made twice have cost."""
    found = reasoning(stage.run)
    assert found is not None
    _without(found, "time", "start_time", "end_time", "usage")
    return found


def _without(message: Message, *names: str) -> None:
    for field, value in message.ListFields():
        if field.name in names:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                if isinstance(each, Message):
                    _without(each, *names)


def lasting(stage: GraphStage) -> tuple[object, ...]:
    """What must be the same in any order; visits are told by their node and how often it was visited.

    Which of its faults a graph fails for is chance, and so is what else was at work in it then.
    """
    if stage.state != "COMPLETED":
        return (stage.state,)
    found = seen(stage)
    names, counts = {0: ""}, Counter[str]()
    for visit in found.visits:
        name = f"{names[visit.started.scope]}/{visit.started.node}"
        counts[name] += 1
        names[visit.started.visit] = f"{name}#{counts[name]}"
    failed = {
        visit.started.visit
        for visit in found.visits
        if visit.state == NodeState.NODE_STATE_FAILED and not visit.started.operator
    }
    within = tuple(f"{names[number]}/" for number in failed)
    visits = {
        names[visit.started.visit]: (
            [names[number] for number in visit.started.inputs],
            visit.started.iteration,
            visit.state,
            None if visit.started.visit in failed else visit.delta.SerializeToString(deterministic=True),
        )
        for visit in found.visits
        if not names[visit.started.visit].startswith(within)
    }
    for step in found.task.steps:
        if step.provenance.visit in failed:
            step.ClearField("output")
    return stage.state, stage.text, found.iteration, visits, _told(found.task, names)


def _told(message: Message, names: Mapping[int, str]) -> object:
    """A message as plain values, its visits by their names."""
    if isinstance(message, Provenance):
        return names[message.visit]
    return {
        field.name: [_told(each, names) if isinstance(each, Message) else each for each in value]
        if field.is_repeated
        else _told(value, names)
        if isinstance(value, Message)
        else value
        for field, value in message.ListFields()
    }


def holds_from_every_commit(graph: Graph) -> None:
    """Taken up after any commit, a run goes on as it would have, with races too."""
    whole = played(graph)
    for events in whole.ends[:-1]:
        resumed = GraphStage.resumed(whole, events)
        finished = done(resumed)
        resumed.play()
        assert (resumed.state, resumed.text, seen(resumed)) == (whole.state, whole.text, seen(whole)), (
            f"from event {events}"
        )
        assert finished.items() <= done(resumed).items(), "what had finished stays as it was"


def holds_from_every_event(graph: Graph, seed: int) -> None:
    """Without races it comes to the same from any event of its log, even when others are faster from then on."""
    whole, drawn = played(graph), Random(seed)
    for events in range(1, len(whole.log)):
        resumed = GraphStage.resumed(whole, events).play(drawn.choice)
        assert lasting(resumed) == lasting(whole), f"from event {events}"


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
    """Without races the end does not depend on who is faster."""
    assert lasting(played(graph, seed)) == lasting(played(graph))


@SOME
@given(graphs())
def test_a_run_taken_up_after_any_commit_goes_on_as_it_would_have(graph: Graph) -> None:  # C129, N16
    holds_from_every_commit(graph)


@SOME
@given(graphs(is_fair=True), st.integers(1, 2**32))
def test_a_run_taken_up_from_any_event_comes_to_the_same_whoever_is_faster(graph: Graph, seed: int) -> None:  # C129
    holds_from_every_event(graph, seed)


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
@given(graphs())
def test_from_every_commit_over_hundreds_of_graphs(graph: Graph) -> None:
    holds_from_every_commit(graph)


@pytest.mark.proof
@pytest.mark.timeout(1800)
@MANY
@given(graphs(is_fair=True), st.integers(1, 2**32))
def test_from_every_event_in_any_order_over_hundreds_of_graphs(graph: Graph, seed: int) -> None:
    holds_from_every_event(graph, seed)
    holds_in_any_order(graph, seed)
