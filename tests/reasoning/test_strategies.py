"""Strategies: listed with their papers, made within their ranges, valid whatever they are made with."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behest.v1.graph_pb2 import Graph, Strategy, StrategyChoice
from behestd.errors import BehestError
from behestd.reasoning.graph import MAX_DESCRIPTION_BYTES, validate
from behestd.reasoning.operators import operator_of
from behestd.reasoning.strategies import STRATEGIES, make

NAMES = (
    "chain_of_thought",
    "debate",
    "diagnose_and_fix",
    "generate_evaluate_select",
    "least_to_most",
    "plan_and_solve",
    "react",
    "reflexion",
    "self_consistency",
    "tree_of_thought",
)
BY_NAME = {strategy.name: strategy for strategy in STRATEGIES}


def made(name: str, **numbers: int) -> Graph:
    """Make the graph of a strategy."""
    return make(StrategyChoice(name=name, parameters={key: str(number) for key, number in numbers.items()}))


def edges(graph: Graph) -> set[str]:
    """Tell the edges of a graph in short."""
    return {f"{getattr(edge, 'from')} {edge.WhichOneof('kind')} {edge.to}" for edge in graph.edges}


def test_the_strategies_are_listed_in_alphabetical_order() -> None:
    # C130
    assert tuple(BY_NAME) == NAMES


@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_each_strategy_says_what_it_is_good_for_and_cites_its_paper(strategy: Strategy) -> None:
    # C130
    assert " For " in strategy.description
    assert re.search(r"[A-Z]\w+ et al\. 20\d\d, [A-Z].+, arXiv:\d{4}\.\d{5}", strategy.description)
    for parameter in strategy.parameters:
        assert parameter.description
        assert 1 <= parameter.minimum <= int(parameter.default) <= parameter.maximum


@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_the_graph_of_a_strategy_is_valid_at_the_ends_of_its_ranges(strategy: Strategy) -> None:
    # C130
    ranges = [
        sorted({parameter.minimum, int(parameter.default), parameter.maximum}) for parameter in strategy.parameters
    ]
    for numbers in itertools.product(*ranges):
        chosen = dict(zip([parameter.name for parameter in strategy.parameters], numbers, strict=True))
        graph = made(strategy.name, **chosen)
        assert validate(graph) == [], chosen
        assert len(graph.edges) < 500, "more are not drawn by Mermaid"
        assert validate(graph, ["look_up"]) == [], chosen
        assert graph.display_name == strategy.name
        assert graph.description == strategy.description
        assert len(graph.description.encode()) <= MAX_DESCRIPTION_BYTES


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_graph_of_a_strategy_is_valid_anywhere_in_its_ranges(data: st.DataObject) -> None:
    strategy = data.draw(st.sampled_from(STRATEGIES))
    numbers = {each.name: data.draw(st.integers(each.minimum, each.maximum)) for each in strategy.parameters}
    assert validate(made(strategy.name, **numbers)) == []


def test_a_strategy_is_made_with_its_defaults_unless_told_otherwise() -> None:
    for strategy in STRATEGIES:
        numbers = {parameter.name: int(parameter.default) for parameter in strategy.parameters}
        assert made(strategy.name) == made(strategy.name, **numbers)


def test_what_is_made_is_nobody_else_s() -> None:
    first = made("react")
    first.nodes[0].prompt = "changed"
    first.operators[0].prompt = "changed"
    assert made("react").nodes[0].prompt == ""
    assert made("react").operators[0].prompt != "changed"


def test_a_strategy_needs_tools_only_if_it_says_so() -> None:
    for strategy in STRATEGIES:
        problems = validate(made(strategy.name), [])
        assert bool(problems) == ("Needs tools." in strategy.description), strategy.name


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(BehestError) as caught:
        made("guess")
    assert caught.value.reason == "REASONING_STRATEGY_NOT_FOUND"
    assert caught.value.metadata == {"strategy": "guess"}


@pytest.mark.parametrize("text", ["1", "65", "", "-3", "+3", "3.0", " 3", "³", "٣", "9" * 400, "many"])
def test_a_parameter_out_of_its_range_is_refused(text: str) -> None:
    with pytest.raises(BehestError) as caught:
        make(StrategyChoice(name="self_consistency", parameters={"samples": text}))
    assert caught.value.reason == "REQUEST_INVALID"
    assert caught.value.metadata["field"] == "strategy.parameters[samples]"


@pytest.mark.parametrize(("strategy", "known"), [("react", "it has steps"), ("chain_of_thought", "it has none")])
def test_a_parameter_that_the_strategy_has_not_is_refused_with_those_that_it_has(strategy: str, known: str) -> None:
    with pytest.raises(BehestError) as caught:
        made(strategy, depth=3)
    assert caught.value.reason == "REQUEST_INVALID"
    assert known in str(caught.value)


# --- what the papers ask for ---


def test_react_takes_turns_between_thinking_and_acting_until_a_thought_can_answer() -> None:
    graph = made("react", steps=4)
    assert edges(graph) == {
        "think branch answer",
        "think branch act",
        "act pipeline observe",
        "observe loop think",
        "observe pipeline answer",
    }
    assert next(edge.loop.max_iterations for edge in graph.edges if edge.HasField("loop")) == 3
    assert not any(edge.HasField("loop") for edge in made("react", steps=1).edges)


def test_reflexion_learns_between_attempts() -> None:
    assert edges(made("reflexion")) == {
        "attempt pipeline evaluate",
        "evaluate branch answer",
        "evaluate branch reflect",
        "reflect loop attempt",
        "reflect pipeline answer",
    }


@pytest.mark.parametrize("strategy", ["plan_and_solve", "least_to_most"])
def test_a_plan_is_carried_out_step_by_step_until_it_is_done(strategy: str) -> None:
    graph = made(strategy)
    (loop,) = (edge for edge in graph.edges if edge.HasField("loop"))
    assert (getattr(loop, "from"), loop.to, loop.loop.until) == ("solve", "solve", "plan_done >= plan_steps")
    assert graph.termination.max_iterations == loop.loop.max_iterations + 1


def test_self_consistency_votes_on_solutions_that_know_nothing_of_each_other() -> None:
    graph = made("self_consistency", samples=3)
    samples = [node for node in graph.nodes if node.id.startswith("sample_")]
    assert len(samples) == 3
    assert len({node.prompt for node in samples}) == 1
    assert {f"understand fan_out {node.id}" for node in samples} <= edges(graph)
    assert {f"{node.id} fan_in vote" for node in samples} <= edges(graph)


def test_tree_of_thought_goes_on_from_the_best_of_each_level() -> None:
    graph = made("tree_of_thought", breadth=2, depth=2)
    assert {
        "evaluate_1_1 fan_in thought_2_1",
        "evaluate_1_1 fan_in thought_2_2",
        "evaluate_1_2 fan_in thought_2_1",
        "evaluate_1_2 fan_in thought_2_2",
        "evaluate_2_1 fan_in answer",
        "evaluate_2_2 fan_in answer",
    } <= edges(graph)
    assert {edge.fan_in.mode for edge in graph.edges if edge.HasField("fan_in")} == {3}
    assert len(graph.nodes) == 1 + 2 * 2 * 2 + 1


def test_debaters_read_each_other_from_the_second_round_on_and_a_judge_hears_the_last() -> None:
    graph = made("debate", debaters=2, rounds=3)
    assert {f"round_2_{one} fan_in round_3_{other}" for one in (1, 2) for other in (1, 2)} <= edges(graph)
    assert {"round_3_1 fan_in judge", "round_3_2 fan_in judge", "judge pipeline answer"} <= edges(graph)
    assert "debater 2 of 2" in next(node.prompt for node in graph.nodes if node.id == "round_3_2")


def test_candidates_are_each_judged_alone_before_one_is_selected() -> None:
    assert {"candidate_2 pipeline evaluate_2", "evaluate_2 fan_in select", "select pipeline answer"} <= edges(
        made("generate_evaluate_select")
    )


def test_a_fault_is_diagnosed_from_experiments_before_it_is_fixed() -> None:
    graph = made("diagnose_and_fix")
    operators = [operator_of(graph, node.operator) for node in graph.nodes]
    assert [operator.name for operator in operators if operator] == [
        "observe",
        "hypothesize",
        "test",
        "diagnose",
        "solve",
        "test",
        "reflect",
        "answer",
    ]
    assert "reflect loop hypothesize" in edges(graph)


def test_no_more_nodes_are_at_work_at_once_than_asked_for() -> None:
    graph = made("debate", debaters=4, parallelism=2)
    assert graph.max_parallel_nodes == 2
    assert {edge.fan_out.parallelism for edge in graph.edges if edge.HasField("fan_out")} == {2}
