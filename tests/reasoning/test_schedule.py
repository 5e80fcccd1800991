"""What follows what: each kind of edge, each condition of branches, each way in which graphs end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from behest.v1.graph_pb2 import Graph, GraphNode, Termination
from behest.v1.node_event_pb2 import NodeSkipped, NodeSkipReason
from behestd.core.state import replace
from behestd.reasoning.graph import validate
from behestd.reasoning.schedule import Failed, ending, moves
from tests.reasoning.made_up import edge, graph
from tests.reasoning.oracle import Done
from tests.reasoning.playing import Play

OUTPACED = NodeSkipReason.NODE_SKIP_REASON_OUTPACED
NOT_TAKEN = NodeSkipReason.NODE_SKIP_REASON_NOT_TAKEN
ON = Termination(on_goal_achieved=False)


def said(**what: str) -> Any:
    """What becomes of visits: `said(a="failed success")` of the first and of all others; else "success"."""

    def say(path: str, count: int) -> Done:
        words = what.get(path, "success").split()
        outcome, _, score = words[min(count, len(words)) - 1].partition("/")
        return Done(outcome, float(score or 0))

    return say


def play(made: Graph, *, room: int = 16, last: bool = False, **what: str) -> Play:
    """Play a valid graph; `last`: the visits that began last end first."""
    assert validate(made) == []
    return Play(made, said(**what), room=room).play(max if last else min)


def begun(played: Play, node: str) -> list[tuple[str, ...]]:
    """The nodes whose tasks the visits of a node began with."""
    return [tuple(path for path, _ in inputs) for (path, _), inputs, _ in played.visits if path == node]


def skips(played: Play, reason: NodeSkipReason.ValueType) -> set[str]:
    """The nodes that were left out for a reason."""
    return {event.node for event in played.events if isinstance(event, NodeSkipped) and event.reason == reason}


# --- one kind of edge after the other ---


@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_pipeline_follows_what_completed_whatever_its_outcome(outcome: str) -> None:  # C126
    played = play(graph("a b c:answer", edge("a", "b"), edge("b", "c")), a=outcome)
    assert (played.story, played.reason) == ("a b c", "answered")
    assert begun(played, "b") == [("a",)]


def test_nothing_follows_a_failure_over_a_pipeline() -> None:  # C126
    played = play(graph("a b:answer", edge("a", "b")), a="failed")
    assert (played.story, played.reason) == ("a", "REASONING_NODE_FAILED")
    assert isinstance(played.end, Failed)
    assert (played.end.node, played.end.visit) == ("a", 1)


BRANCHES = graph(
    "a s f g n e z:answer",
    edge("a", "s", "branch", condition="success"),
    edge("a", "f", "branch", condition="failure"),
    edge("a", "g", "branch", condition="goal_achieved"),
    edge("a", "n", "branch", condition="goal_not_achieved"),
    edge("a", "e", "branch", condition="expression", expression="outcome == 'failed' or score >= 0.5"),
    *(edge(name, "z") for name in "sfgne"),
    termination=ON,
)


@pytest.mark.parametrize(
    ("outcome", "operator", "taken"),
    [
        ("success/0.2", "reason", "s n"),
        ("success/0.5", "reason", "s n e"),
        ("failure/0.2", "reason", "f n"),
        ("failure/0.9", "reason", "f n e"),
        ("failed", "reason", "f n e"),
        ("success/0.2", "answer", "s g"),
        ("failure/0.2", "answer", "f g"),
    ],
    ids=["success", "success-scored", "failure", "failure-scored", "failed", "answer", "doubtful-answer"],
)
def test_branch_follows_on_each_condition(outcome: str, operator: str, taken: str) -> None:  # C126
    made = Graph()
    made.CopyFrom(BRANCHES)
    made.nodes[0].operator = operator
    played = play(made, a=outcome)
    assert played.story == f"a {taken} z"
    assert skips(played, NOT_TAKEN) == set("sfgne") - set(taken.split())
    assert begun(played, "z") == [tuple(taken.split())], "in the order of the edges"


def test_a_failure_that_no_branch_takes_ends_the_graph() -> None:
    made = graph("a b:answer", edge("a", "b", "branch", condition="goal_achieved"))
    assert play(made, a="failed").reason == "REASONING_NODE_FAILED"
    made = graph("a b:answer", edge("a", "b", "branch", condition="goal_not_achieved"))
    assert play(made, a="failed").reason == "answered"


def test_a_failure_ends_the_graph_though_others_are_at_work() -> None:
    made = graph("s a b z:answer", edge("s", "a"), edge("s", "b"), edge("a", "z"), edge("b", "z"))
    played = play(made, a="failed")
    assert (played.story, played.reason, played.fate("b")) == ("s a b", "REASONING_NODE_FAILED", "skipped")


LOOP = graph("a b c d:answer", edge("a", "b"), edge("b", "c"), edge("c", "d"))


def looped(until: str = "", times: int = 3, **fields: Any) -> Graph:
    made = Graph()
    made.CopyFrom(LOOP)
    made.edges.append(edge("c", "b", "loop", max_iterations=times, until=until))
    made.MergeFrom(Graph(**fields))
    return made


def test_loop_goes_back_so_often_until_the_goal_is_achieved() -> None:  # C126
    played = play(looped(times=2))
    assert played.story == "a b c b c b c d"
    assert begun(played, "b") == [("a",), ("c",), ("c",)]
    assert [turn for _, _, turn in played.visits] == [1, 1, 1, 2, 2, 3, 3, 3]


def test_what_is_at_work_is_stopped_when_it_is_to_begin_anew() -> None:  # C126
    made = graph(
        "a b c d z:answer",
        *(edge(*pair) for pair in ("ab", "bc")),
        *(edge(one, "d", "fan_in", mode="first") for one in "ac"),
        *(edge(one, "z", "fan_in") for one in "bd"),
        edge("d", "a", "loop", max_iterations=1),
    )
    played = play(made, last=True)
    assert played.story == "a b d a b d z"
    assert [visit.status.name for visit in played.nodes.visits[:3]] == ["COMPLETED", "SKIPPED", "COMPLETED"]
    assert begun(played, "z") == [("b", "d")]


def test_loops_side_by_side_count_their_own_rounds() -> None:  # C126 C128
    made = graph(
        "s a b z:answer",
        *(edge("s", one) for one in "ab"),
        *(edge(one, "z", "fan_in") for one in "ab"),
        edge("a", "a", "loop", max_iterations=2),
        edge("b", "b", "loop", max_iterations=1),
        termination=Termination(max_iterations=3),
    )
    for last in (True, False):
        played = play(made, last=last)
        assert sorted((key, turn) for key, _, turn in played.visits) == [
            *((("a", count), count) for count in (1, 2, 3)),
            *((("b", count), count) for count in (1, 2)),
            (("s", 1), 1),
            (("z", 1), 3),
        ], "and where they meet, the latest holds"


def test_loop_goes_back_until_its_condition_holds() -> None:  # C126
    played = play(looped("score >= 0.5"), c="success/0.1 failure/0.5")
    assert played.story == "a b c b c d"
    assert play(looped("score >= 0.5"), c="success/0.7").story == "a b c d"


def test_loop_ends_with_an_answer() -> None:
    made = graph(
        "a b:answer c", edge("a", "b"), edge("b", "c"), edge("c", "a", "loop", max_iterations=5), termination=ON
    )
    assert play(made).story == "a b c"


def test_loop_does_not_go_back_after_a_failure() -> None:
    assert play(looped(), c="failed").reason == "REASONING_NODE_FAILED"


def test_what_leads_out_of_a_loop_is_followed_when_it_is_over() -> None:
    made = looped(times=2, termination=ON)
    made.nodes.append(GraphNode(id="x", operator="reason"))
    made.edges.append(edge("b", "x"))
    for last in (False, True):
        played = play(made, last=last)
        assert played.story == "a b c b c b c d x"
        assert begun(played, "x") == [("b",)]
        assert played.visits[-1][1] == (("b", 3),), "it sees the last round, whoever is faster"


def test_a_loop_over_parallel_nodes_begins_them_all_anew() -> None:
    made = graph(
        "s a b j z:answer",
        edge("s", "a"),
        edge("s", "b"),
        edge("a", "j"),
        edge("b", "j"),
        edge("j", "z"),
        edge("j", "s", "loop", max_iterations=1),
    )
    for last in (False, True):
        played = play(made, last=last)
        assert sorted(played.story.split()) == sorted("s a b j s a b j z".split())
        assert played.visits[7][1] == (("a", 2), ("b", 2))


def test_an_inner_loop_begins_to_count_anew_when_the_outer_goes_back() -> None:
    made = graph(
        "a b c z:answer",
        edge("a", "b"),
        edge("b", "c"),
        edge("c", "z"),
        edge("b", "b", "loop", max_iterations=2),
        edge("c", "a", "loop", max_iterations=1),
    )
    assert play(made).story == "a b b b c a b b b c z"


def test_two_loops_from_one_node_are_taken_in_their_order() -> None:
    made = graph(
        "a b c z:answer",
        edge("a", "b"),
        edge("b", "c"),
        edge("c", "z"),
        edge("c", "b", "loop", max_iterations=1),
        edge("c", "a", "loop", max_iterations=1),
    )
    assert play(made).story == "a b c b c a b c b c z"


def test_retry_goes_back_after_a_failure_so_often() -> None:  # C126
    made = graph("a b c:answer", edge("a", "b"), edge("b", "c"), edge("b", "b", "retry", max_attempts=3))
    played = play(made, b="failed failed success")
    assert (played.story, played.reason) == ("a b b b c", "answered")
    assert begun(played, "b") == [("a",), ("b",), ("b",)], "it knows of the failure"
    assert [turn for _, _, turn in played.visits] == [1] * 5, "an attempt is no round"
    assert play(made, b="failed").story == "a b b b"
    assert play(made, b="failed").reason == "REASONING_NODE_FAILED"
    assert play(made, b="failure").story == "a b c", "a bad outcome is no failure"


def test_retry_may_go_back_further_and_others_follow_when_it_has_come_to_nothing() -> None:
    made = graph(
        "a b c z:answer",
        edge("a", "b"),
        edge("b", "z"),
        edge("b", "c", "branch", condition="failure"),
        edge("c", "z"),
        edge("b", "a", "retry", max_attempts=2),
    )
    assert play(made, b="failed").story == "a b a b c z"
    assert play(made, b="failed success").story == "a b a b z"


def test_attempts_count_anew_when_a_loop_goes_back() -> None:
    made = graph(
        "a b z:answer",
        edge("a", "b"),
        edge("b", "z"),
        edge("a", "a", "retry", max_attempts=2),
        edge("b", "a", "loop", max_iterations=1),
    )
    assert play(made, a="failed success failed success").story == "a a b a a b z"


@pytest.mark.parametrize("width", [1, 3, 8])
def test_fan_out_has_so_many_at_work_at_once(width: int) -> None:  # C126 C127
    names = [f"w{number}" for number in range(8)]
    made = graph(
        " ".join(["s", *names, "z:answer"]),
        *(edge("s", name, "fan_out", parallelism=width) for name in names),
        *(edge(name, "z", "fan_in") for name in names),
    )
    played = play(made)
    assert played.most_at_work == width
    assert begun(played, "z") == [tuple(names)]


def test_a_way_back_to_one_of_a_fan_out_waits_for_its_turn() -> None:  # C127
    made = graph(
        "s a x b c z:answer",
        *(edge("s", name, "fan_out", parallelism=1) for name in "abc"),
        edge("a", "x"),
        *(edge(name, "z", "fan_in") for name in "xbc"),
        edge("x", "a", "loop", max_iterations=1),
    )
    played = Play(made, said()).play(lambda numbers: 3 if 3 in numbers else min(numbers))
    assert played.story == "s a x b a x c z"
    assert begun(played, "z") == [("x", "b", "c")]


def test_fan_outs_do_not_count_each_other_s_nodes() -> None:
    made = graph(
        "s t p q v w z:answer",
        edge("s", "t"),
        *(edge("s", name, "fan_out", parallelism=1) for name in "pq"),
        *(edge("t", name, "fan_out", parallelism=1) for name in "vw"),
        *(edge(name, "z", "fan_in") for name in "pqvw"),
    )
    assert play(made).most_at_work == 2


def test_room_bounds_what_is_at_work_in_all() -> None:  # C127
    names = [f"w{number}" for number in range(8)]
    made = graph(
        " ".join(["s", *names, "z:answer"]),
        *(edge("s", name) for name in names),
        *(edge(name, "z") for name in names),
    )
    for room in (1, 3, 16):
        played = play(made, room=room)
        assert played.most_at_work == min(room, 8)
        assert played.story == " ".join(["s", *names, "z"]), "in the order of the graph"


def joined(mode: str, *more: Any) -> Graph:
    """Three that are brought together."""
    return graph(
        "s a b c j z:answer",
        *(edge("s", name, "fan_out", parallelism=3) for name in "abc"),
        *(edge(name, "j", "fan_in", mode=mode) for name in "abc"),
        edge("j", "z"),
        *more,
        termination=ON,
    )


def test_fan_in_all_waits_for_all_and_leaves_out_who_failed() -> None:  # C126
    for last in (False, True):
        assert begun(play(joined("all"), last=last), "j") == [("a", "b", "c")], "in the order of the edges"
        assert begun(play(joined("all"), last=last, b="failed"), "j") == [("a", "c")]


def test_fan_in_best_keeps_the_highest_score() -> None:  # C126
    for last in (False, True):
        assert begun(play(joined("best"), last=last, a="success/0.2", b="failure/0.9", c="success/0.5"), "j") == [
            ("b",)
        ]
        assert begun(play(joined("best"), last=last, a="success/0.5", b="success/0.5"), "j") == [("a",)], (
            "of equals the first"
        )
        assert begun(play(joined("best"), last=last, a="failed/1.0", b="success/0.1"), "j") == [("b",)]


def test_fan_in_first_goes_on_with_the_first_and_stops_the_others() -> None:  # C126
    played = play(joined("first"), last=True)
    assert begun(played, "j") == [("c",)]
    assert skips(played, OUTPACED) == {"a", "b"}
    assert begun(play(joined("first")), "j") == [("a",)]
    assert begun(play(joined("first"), a="failed"), "j") == [("b",)], "a failure is not the first"
    assert begun(play(joined("first"), room=1), "j") == [("a",)], "those that have not begun are left out"


def test_fan_in_first_stops_those_too_that_work_for_the_others_alone() -> None:
    made = graph(
        "s a p q b j k z:answer",
        *(edge("s", name) for name in "apqk"),
        edge("p", "b"),
        edge("q", "b"),
        edge("q", "k"),
        *(edge(name, "j", "fan_in", mode="first") for name in "ab"),
        edge("j", "z"),
        edge("k", "z"),
    )
    played = Play(made, said())
    for number in (1, 2):
        played.follow()
        played.finish(number)
    played.follow()
    assert skips(played, OUTPACED) == {"p", "b"}, "k needs q"
    assert played.play().reason == "answered"


def test_what_all_have_failed_for_fails_the_graph_unless_others_answer() -> None:
    played = play(joined("all"), a="failed", b="failed", c="failed")
    assert isinstance(played.end, Failed)
    assert (played.end.reason, played.end.node) == ("REASONING_NODE_FAILED", "a")
    assert {"j", "z"} == skips(played, NOT_TAKEN)
    other = Graph()
    other.CopyFrom(joined("all"))
    other.nodes.append(GraphNode(id="y", operator="answer"))
    other.edges.append(edge("s", "y"))
    assert play(other, a="failed", b="failed", c="failed").reason == "completed"


def raced(*more: Any) -> Graph:
    return graph(
        "s a b c z:answer",
        *(edge("s", name, "race") for name in "abc"),
        *(edge(name, "z") for name in "abc"),
        *more,
        termination=ON,
    )


def test_race_goes_on_with_the_first_that_does_well_and_stops_the_others() -> None:  # C126
    played = play(raced(), last=True)
    assert begun(played, "z") == [("c",)]
    assert skips(played, OUTPACED) == {"a", "b"}
    played = play(raced(), a="failed", b="failure")
    assert begun(played, "z") == [("c",)], "neither a failure nor a bad outcome wins"
    assert skips(played, OUTPACED) == set()
    assert begun(play(raced(), room=1), "z") == [("a",)]


def test_a_race_without_a_winner_goes_on_with_who_completed_or_fails() -> None:
    assert begun(play(raced(), a="failure", b="failure", c="failure"), "z") == [("a", "b", "c")]
    assert play(raced(), a="failed", b="failed", c="failed").reason == "REASONING_NODE_FAILED"
    branches = [edge(name, "z", "branch", condition="failure") for name in "abc"]
    assert play(raced(*branches), a="failed", b="failed", c="failed").reason == "completed"


def test_what_follows_a_racer_that_has_not_won_waits_for_the_end_of_the_race() -> None:
    made = graph(
        "s a b x y z:answer",
        *(edge(*pair, "race") for pair in ("sa", "sb")),
        *(edge(*pair) for pair in ("ax", "by", "xz", "yz")),
    )
    played = play(made, a="failure")
    assert played.story == "s a b y z"
    assert skips(played, NOT_TAKEN) == {"x"}
    assert play(made, a="failure", b="failure").story == "s a b x y z"


def test_a_racer_is_retried_while_the_race_is_on() -> None:
    again = [edge(name, name, "retry", max_attempts=3) for name in "ab"]
    assert begun(play(raced(*again), a="failed", b="failed failed success", c="failure"), "z") == [("b",)]
    played = play(raced(*again), last=True, c="success", a="failed")
    assert played.story == "s a b c z"


def test_racers_that_answer_end_the_graph() -> None:
    made = graph("s a:answer b:answer", edge("s", "a", "race"), edge("s", "b", "race"))
    played = play(made, last=True)
    assert (played.reason, played.fate("a"), played.fate("b")) == ("answered", "skipped", "completed")


INNER = graph("p q:answer", edge("p", "q"))


def outer(inner: Graph, *more: Any, kind: str = "subgraph", **fields: Any) -> Graph:
    nodes = [
        GraphNode(id="a", operator="plan"),
        GraphNode(id="in", subgraph=inner),
        GraphNode(id="z", operator="answer"),
    ]
    return Graph(nodes=nodes, edges=[edge("a", "in", kind), edge("in", "z"), *more], **fields)


@pytest.mark.parametrize("kind", ["subgraph", "pipeline"])
def test_a_subgraph_is_played_to_its_answer(kind: str) -> None:  # C126
    played = play(outer(INNER, kind=kind))
    assert (played.story, played.reason) == ("a in in/p in/q z", "answered")
    assert played.steps == {("a", 1), ("in", 1), ("z", 1)}, "what its nodes did stays within"


def test_a_subgraph_has_rounds_of_its_own() -> None:
    inner = graph("p q:answer", edge("p", "q"), edge("p", "p", "loop", max_iterations=2))
    played = play(outer(inner, edge("in", "in", "loop", max_iterations=1)))
    assert played.story == "a in in/p in/p in/p in/q in in/p in/p in/p in/q z"
    assert [turn for (path, _), _, turn in played.visits if path.endswith("p")] == [1, 2, 3, 1, 2, 3]


def test_a_subgraph_has_a_limit_of_its_own_to_what_is_at_work() -> None:  # C127
    inner = graph("s a b c z:answer", *(edge("s", name) for name in "abc"), *(edge(name, "z") for name in "abc"))
    assert play(outer(inner)).most_at_work == 3
    inner.max_parallel_nodes = 2
    assert play(outer(inner)).most_at_work == 2
    inner.nodes[2].subgraph.CopyFrom(INNER)
    inner.max_parallel_nodes = 1
    assert play(outer(inner)).reason == "answered"


def test_a_subgraph_that_fails_is_a_node_that_failed() -> None:
    made = outer(INNER, edge("in", "in", "retry", max_attempts=2))
    assert play(made, **{"in#1/p": "failed"}).story == "a in in/p in in/p in/q z"
    assert play(outer(INNER), **{"in#1/p": "failed"}).reason == "REASONING_NODE_FAILED"


def test_a_subgraph_that_is_outpaced_is_stopped_with_all_in_it() -> None:
    made = Graph(
        nodes=[
            GraphNode(id="s", operator="plan"),
            GraphNode(id="in", subgraph=INNER),
            GraphNode(id="b", operator="reason"),
            GraphNode(id="z", operator="answer"),
        ],
        edges=[edge("s", "in", "race"), edge("s", "b", "race"), edge("in", "z"), edge("b", "z")],
    )
    played = Play(made, said()).play(lambda numbers: 3 if 3 in numbers else min(numbers))
    assert played.story == "s in b in/p z"
    assert skips(played, OUTPACED) == {"in"}
    assert skips(played, NodeSkipReason.NODE_SKIP_REASON_OVER) == {"in/p"}


# --- skipping ---


def test_what_follows_the_left_out_is_left_out_unless_another_way_leads_there() -> None:
    made = graph(
        "a b c d e z:answer",
        edge("a", "b", "branch", condition="failure"),
        edge("a", "c", "branch", condition="success"),
        edge("b", "d"),
        edge("d", "e"),
        edge("c", "e"),
        edge("e", "z"),
    )
    played = play(made)
    assert played.story == "a c e z"
    assert skips(played, NOT_TAKEN) == {"b", "d"}
    assert begun(played, "e") == [("c",)]


def test_two_edges_from_one_node_bring_its_task_once() -> None:
    both = [edge("a", "z"), edge("a", "z", "branch", condition="success")]
    assert begun(play(graph("a z:answer", *both)), "z") == [("a",)]


# --- ends ---


def test_the_first_answer_ends_the_graph_unless_it_says_otherwise() -> None:  # C128
    made = graph("s a:answer b c:answer", edge("s", "a"), edge("s", "b"), edge("b", "c"))
    played = play(made)
    assert (played.story, played.reason, played.fate("b")) == ("s a b", "answered", "skipped")
    made.termination.on_goal_achieved = False
    played = play(made)
    assert (played.story, played.reason) == ("s a b c", "completed")
    assert played.steps == {(name, 1) for name in "sabc"}, "with what all its ways have led to"


def test_an_answer_that_is_not_brought_along_is_none() -> None:  # C126 C128
    made = graph(
        "s a:answer b z", *(edge("s", one) for one in "ab"), *(edge(one, "z", "fan_in", mode="best") for one in "ab")
    )
    made.termination.on_goal_achieved = False
    assert play(made, a="success/0.9", b="success/0.1").reason == "completed"
    assert play(made, a="success/0.1", b="success/0.9").reason == "REASONING_NO_ANSWER"


def test_a_graph_that_runs_to_its_end_without_an_answer_fails() -> None:
    made = graph("a b:answer", edge("a", "b", "branch", condition="failure"))
    assert play(made).reason == "REASONING_NO_ANSWER"


def test_rounds_are_limited() -> None:  # C128
    made = looped(times=100, termination=Termination(max_iterations=3))
    played = play(made)
    assert (played.story, played.reason) == ("a b c b c b c", "REASONING_ITERATION_LIMIT")
    assert isinstance(played.end, Failed)
    assert played.end.iteration == 3
    assert len(play(looped(times=100)).visits) == 1 + 2 * 10, "ten, where nothing is said"


def test_loop_start_begins_a_round_until_there_is_an_answer_or_no_round_left() -> None:  # C128
    made = graph("a b c:answer", edge("a", "b"), edge("b", "c", "branch", condition="success"), loop_start="b")
    played = play(made, b="failure failure success")
    assert (played.story, played.reason) == ("a b b b c", "answered")
    assert begun(played, "b") == [("a",), ("b",), ("b",)]
    assert [turn for _, _, turn in played.visits] == [1, 1, 2, 3, 3]
    assert play(made, b="failure").reason == "REASONING_ITERATION_LIMIT"
    assert len(play(made, b="failure").visits) == 11


def test_a_round_begins_with_what_all_ends_of_the_last_have_left() -> None:
    made = graph(
        "a b c d:answer",
        edge("a", "b"),
        edge("a", "c"),
        edge("c", "d", "branch", condition="failure"),
        loop_start="a",
        termination=Termination(max_iterations=2),
    )
    assert begun(play(made), "a") == [(), ("b", "c")]


def test_fixed_rounds_end_well_with_what_the_task_holds() -> None:  # C128
    made = graph("a b", edge("a", "b"), loop_start="a", termination=Termination(fixed_iterations=3))
    played = play(made)
    assert (played.story, played.reason) == ("a b a b a b", "completed")
    assert played.steps == {(name, count) for name in "ab" for count in (1, 2, 3)}


def test_fixed_rounds_are_taken_whether_there_are_answers_or_not() -> None:  # C128
    made = graph("a b:answer", edge("a", "b"), loop_start="a", termination=Termination(fixed_iterations=2))
    assert (play(made).story, play(made).reason) == ("a b a b", "completed")
    made = graph(
        "a b:answer",
        edge("a", "b"),
        edge("b", "a", "loop", max_iterations=9),
        termination=Termination(fixed_iterations=3),
    )
    assert (play(made).story, play(made).reason) == ("a b a b a b", "completed")


def test_a_loop_beyond_the_fixed_rounds_is_not_taken_and_the_graph_goes_on() -> None:  # C128
    played = play(looped(times=9, termination=Termination(fixed_iterations=2)))
    assert (played.story, played.reason) == ("a b c b c d", "completed")


# --- asking ---


def test_nothing_moves_without_room_and_the_graph_has_not_ended() -> None:
    played = Play(LOOP, said())
    scope, nodes = played.nodes.scopes[0], played.nodes
    assert moves(nodes.shape, scope, nodes.after, nodes.score, 0) == []
    assert ending(nodes.shape, scope, nodes.after, nodes.score) is None
    assert [move.node for move in moves(nodes.shape, scope, nodes.after, nodes.score, 1)] == ["a"]


def test_a_way_back_waits_for_room() -> None:
    played = Play(looped(), said())
    played.follow()
    for number in (1, 2):
        played.finish(number)
        played.follow()
    played.finish(3)
    scope, nodes = played.nodes.scopes[0], played.nodes
    assert moves(nodes.shape, scope, nodes.after, nodes.score, 0) == []
    assert ending(nodes.shape, scope, nodes.after, nodes.score) is None
    (back,) = moves(nodes.shape, scope, nodes.after, nodes.score, 5)
    assert (back.node, getattr(back, "edge", 0), getattr(back, "again", ())) == ("b", 4, ("b", "c"))


class Looked(dict[str, Any]):
    """Records of nodes that count how often they are looked at."""

    looks = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.looks += 1
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.looks += 1
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.looks += 1
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("all nodes are looked at")


COUNT = 300
NAMES = [f"n{number}" for number in range(COUNT)]
CHAIN = graph(
    " ".join([*NAMES, "z:answer"]),
    *(edge(*pair) for pair in pairwise([*NAMES, "z"])),
    *(edge(name, name, "retry", max_attempts=2) for name in NAMES),
    *(edge(name, name, "loop", max_iterations=1, until="true") for name in NAMES),
)
WIDE = graph(
    " ".join(["s", *NAMES, "z:answer"]),
    *(edge("s", name, "fan_out", parallelism=3) for name in NAMES),
    *(edge(name, "z", "fan_in") for name in NAMES),
)


@pytest.mark.parametrize("made", [CHAIN, WIDE], ids=["chain", "wide"])
@pytest.mark.parametrize("last", [False, True], ids=["in-order", "in-disorder"])
def test_what_is_looked_at_for_one_event_does_not_grow_with_the_graph(made: Graph, last: bool) -> None:
    played = Play(made, said())
    looks = asked = 0
    while played.end is None:
        played.follow()
        if len(played.nodes.visits) % 15 == 0 and played.end is None:
            nodes = played.nodes
            records = Looked(nodes.scopes[0].nodes)
            moves(nodes.shape, replace(nodes.scopes[0], nodes=records), nodes.after, nodes.score, 16)
            looks, asked = max(looks, records.looks), asked + 1
        if played.nodes.lanes:
            played.finish((max if last else min)(played.nodes.lanes))
    assert asked > 15
    assert looks < 60
