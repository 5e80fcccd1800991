"""What is wrong with graphs: each problem by its kind, with its node or edge. Valid graphs have none."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from behest.v1.graph_pb2 import Branch, FanIn, FanOut, Graph, GraphEdge, GraphNode, GraphProblemKind, Termination
from behest.v1.operator_pb2 import Operator, ReplyTarget, ToolUse
from behestd.reasoning.graph import MAX_EDGES, MAX_NODES, MAX_PROBLEMS, MAX_TURNS, validate
from behestd.reasoning.graph_ways import MAX_CIRCLES
from tests.reasoning.made_up import edge, graph

STEP = ReplyTarget.REPLY_TARGET_STEP
AB = [edge("a", "b")]


def found(made: Graph, tools: list[str] | None = None) -> list[tuple[str, str, int]]:
    """The problems of a graph: kind, node, place of the edge."""
    problems = validate(made, tools)
    assert all(problem.message for problem in problems)
    prefix = "GRAPH_PROBLEM_KIND_"
    return [(GraphProblemKind.Name(one.kind).removeprefix(prefix), one.node, one.edge) for one in problems]


def ab(**fields: Any) -> Graph:
    """A valid graph of two nodes."""
    return graph("a b:answer", *AB, **fields)


def own(**fields: Any) -> Graph:
    """A graph with an operator of its own."""
    operator = Operator(**{"name": "mine", "prompt": "do it", "target": STEP, **fields})
    return graph("a:mine b:answer", *AB, operators=[operator])


def nested(inner: Graph, **fields: Any) -> Graph:
    """A graph whose node `in` is a graph."""
    nodes = [
        GraphNode(id="a", operator="plan"),
        GraphNode(id="in", subgraph=inner),
        GraphNode(id="z", operator="answer"),
    ]
    return Graph(nodes=nodes, edges=[edge("a", "in", "subgraph"), edge("in", "z")], **fields)


def deep(depth: int) -> Graph:
    """Graphs within graphs, that many around one another."""
    made = graph("z:answer")
    for _ in range(depth):
        made = nested(made)
    return made


def test_a_graph_with_every_kind_of_edge_is_valid() -> None:
    made = graph(
        "s a b j c d r q v z:answer",
        edge("s", "a", "fan_out", parallelism=2),
        edge("s", "b", "fan_out", parallelism=2),
        edge("a", "j", "fan_in", mode="best"),
        edge("b", "j", "fan_in", mode="best"),
        edge("j", "c", "branch", condition="expression", expression="score > 0.5"),
        edge("j", "d", "branch", condition="failure"),
        edge("c", "r", "race"),
        edge("c", "q", "race"),
        edge("r", "v", "fan_in", mode="first"),
        edge("q", "v", "fan_in", mode="first"),
        edge("d", "v", "fan_in", mode="first"),
        edge("v", "z"),
        edge("r", "r", "retry", max_attempts=3),
        edge("v", "s", "loop", max_iterations=5, until="score > 0.5"),
        termination=Termination(max_iterations=20, timeout=Duration(seconds=60)),
        max_parallel_nodes=64,
    )
    assert found(made) == []
    assert found(nested(made)) == []


def test_a_graph_without_nodes_is_empty() -> None:  # C125
    assert found(Graph()) == [("EMPTY", "", 0)]


def test_a_graph_has_a_node_that_answers() -> None:  # C125
    assert found(graph("a b", *AB)) == [("NO_ANSWER", "", 0)]
    gives = Operator(name="mine", prompt="say it", target=ReplyTarget.REPLY_TARGET_ANSWER)
    assert found(graph("a b:mine", *AB, operators=[gives])) == [], "any operator whose reply is the answer will do"


def test_a_graph_of_fixed_rounds_needs_no_answer() -> None:
    assert found(graph("a b", *AB, termination=Termination(fixed_iterations=2))) == []


def test_nodes_do_not_follow_each_other_in_a_circle() -> None:  # C125
    made = graph("a b c d:answer", edge("a", "b"), edge("b", "c"), edge("c", "b"), edge("c", "d"))
    assert found(made) == [("CYCLE", "b", 0)]
    assert "b to c to b" in validate(made)[0].message
    made = graph("a b:answer", *AB, edge("b", "b"))
    assert found(made) == [("CYCLE", "b", 0)]


def test_each_circle_is_told_once() -> None:
    made = graph(
        "a b c d e:answer",
        *(edge(*pair) for pair in ("ab", "bc", "cb", "cd", "de", "ed")),
    )
    assert found(made) == [("CYCLE", "b", 0), ("CYCLE", "d", 0)]


def test_not_all_of_very_many_circles_are_told() -> None:
    names = [f"n{number}" for number in range(50)]
    edges = [edge("z", name) for name in names] + [edge(name, name) for name in names]
    assert len(validate(graph(" ".join(["z:answer", *names]), *edges))) == MAX_CIRCLES


def test_a_circle_over_a_loop_or_a_retry_is_none() -> None:
    assert found(ab(labels={"a": "b"})) == []
    made = graph("a b:answer", *AB, edge("b", "a", "loop", max_iterations=2), edge("b", "a", "retry", max_attempts=2))
    assert found(made) == []


def test_every_node_can_be_reached_from_the_start() -> None:  # C125
    made = graph("a b:answer c d", *AB, edge("c", "d"))
    assert found(made) == [("UNREACHABLE", "c", 0), ("UNREACHABLE", "d", 0)]
    made = graph("a b:answer c", *AB, edge("b", "c", "loop", max_iterations=2))
    assert ("UNREACHABLE", "c", 0) in found(made), "a way back leads nowhere new"


@pytest.mark.parametrize(
    ("bad", "place"),
    [
        (edge("a", "x"), 2),
        (edge("x", "b"), 2),
        (GraphEdge(**{"from": "a"}, to="b"), 2),
        (edge("a", "b", "subgraph"), 2),
        (edge("a", "b", "fan_in", mode="unspecified"), 2),
        (edge("a", "b"), 2),
    ],
    ids=["to-nowhere", "from-nowhere", "of-no-kind", "no-subgraph", "no-mode", "twice"],
)
def test_an_edge_joins_two_nodes_in_a_known_way(bad: GraphEdge, place: int) -> None:  # C125
    assert found(graph("a b:answer", *AB, bad)) == [("BAD_EDGE", getattr(bad, "from"), place)]


def test_edges_that_belong_together_agree() -> None:  # C125
    widths = [edge("a", "b", "fan_out", parallelism=1), edge("a", "c", "fan_out", parallelism=2)]
    assert found(graph("a b:answer c", *widths)) == [("BAD_EDGE", "a", 2)]
    modes = [edge("b", "d", "fan_in", mode="all"), edge("c", "d", "fan_in", mode="best")]
    made = graph("a b c d:answer", edge("a", "b"), edge("a", "c"), *modes)
    assert found(made) == [("BAD_EDGE", "c", 4)]


def test_racers_do_not_follow_each_other() -> None:
    made = graph("a b c d:answer", edge("a", "b", "race"), edge("a", "d", "race"), edge("b", "c"), edge("c", "d"))
    assert found(made) == [("BAD_EDGE", "a", 1)]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (Branch(), "condition"),
        (Branch(condition=77), "condition"),  # type: ignore[arg-type]  # a number from the wire
        (Branch(condition=5), "at 1"),
        (Branch(condition=5, expression="score >"), "at 8"),
        (Branch(condition=5, expression="true" + " and true" * 200), "1024"),
        (Branch(condition=1, expression="true"), "EXPRESSION"),
    ],
    ids=["no-condition", "unknown", "no-expression", "unreadable", "too-long", "not-asked-for"],
)
def test_a_branch_has_a_condition_that_can_be_read(bad: Branch, text: str) -> None:  # C125
    made = graph("a b:answer", GraphEdge(**{"from": "a"}, to="b", branch=bad))
    assert found(made) == [("BAD_BRANCH", "a", 1)]
    assert text in validate(made)[0].message


def test_a_loop_ends_on_what_can_be_read() -> None:
    made = graph("a b:answer", *AB, edge("b", "a", "loop", max_iterations=2, until="(goal_achieved"))
    assert found(made) == [("BAD_BRANCH", "b", 2)]
    assert "at 15" in validate(made)[0].message


def test_a_loop_goes_back_to_what_comes_before() -> None:  # C125
    made = graph("a b c:answer", edge("a", "b"), edge("a", "c"), edge("c", "b", "loop", max_iterations=2))
    assert found(made) == [("BAD_LOOP_START", "c", 3)]
    made = graph("a b c:answer", edge("a", "b"), edge("a", "c"), edge("a", "c", "retry", max_attempts=2))
    assert found(made) == [("BAD_LOOP_START", "a", 3)]


def test_the_loop_start_is_a_node() -> None:  # C125
    assert found(ab(loop_start="x")) == [("BAD_LOOP_START", "x", 0)]
    assert found(ab(loop_start="b")) == []


def test_loops_do_not_cross_so_that_nodes_wait_for_each_other() -> None:
    loops = [edge("p", "t", "loop", max_iterations=2), edge("q", "u", "loop", max_iterations=2)]
    ways = [edge(*pair) for pair in ("st", "su", "tp", "tq", "up", "uq", "pz", "qz")]
    assert found(graph("s t u p q z:answer", *ways, *loops)) == [("BAD_LOOP_START", "p", 9)]
    assert found(graph("s t u p q z:answer", *ways, loops[0])) == []


def test_a_race_begins_anew_whole_or_with_the_racer_that_goes_back() -> None:
    race = [edge("s", "a", "race"), edge("s", "b", "race"), edge("a", "j"), edge("b", "j"), edge("j", "z")]
    nodes = "s a b j z:answer"
    assert found(graph(nodes, *race, edge("j", "a", "loop", max_iterations=2))) == [("BAD_LOOP_START", "j", 6)]
    assert found(graph(nodes, *race, edge("j", "s", "loop", max_iterations=2))) == []
    assert found(graph(nodes, *race, edge("a", "a", "retry", max_attempts=2))) == []
    assert found(graph(nodes, *race, loop_start="a")) == [("BAD_LOOP_START", "a", 0)]
    assert found(graph(nodes, *race, loop_start="s")) == []


def test_those_of_whom_the_first_counts_begin_anew_together() -> None:
    first = [
        edge("s", "a"),
        edge("s", "b"),
        *(edge(name, "j", "fan_in", mode="first") for name in "ab"),
        edge("j", "z"),
    ]
    nodes = "s a b j z:answer"
    assert found(graph(nodes, *first, edge("j", "a", "loop", max_iterations=2))) == [("BAD_LOOP_START", "j", 6)]
    assert found(graph(nodes, *first, edge("j", "s", "loop", max_iterations=2))) == []
    assert found(graph(nodes, *first, edge("a", "a", "loop", max_iterations=2))) == []
    assert found(graph(nodes, *first, loop_start="a")) == [("BAD_LOOP_START", "a", 0)]


@pytest.mark.parametrize("number", [0, -1])
def test_something_may_be_at_work(number: int) -> None:  # C125
    made = graph("a b:answer", GraphEdge(**{"from": "a"}, to="b", fan_out=FanOut(parallelism=number)))
    assert found(made) == [("NO_PARALLELISM", "a", 1)]
    assert found(ab(max_parallel_nodes=number)) == [("NO_PARALLELISM", "", 0)]


def test_a_subgraph_is_a_valid_graph_not_too_deep() -> None:  # C125
    assert found(nested(Graph())) == [("BAD_SUBGRAPH", "in", 0), ("EMPTY", "in", 0)]
    inner = graph("a b:answer", edge("a", "x"))
    assert found(nested(inner)) == [("BAD_SUBGRAPH", "in", 0), ("BAD_EDGE", "in/a", 1), ("UNREACHABLE", "in/b", 0)]
    assert found(nested(graph("a"))) == [("BAD_SUBGRAPH", "in", 0), ("NO_ANSWER", "in", 0)]
    assert found(deep(7)) == []
    assert found(deep(8)) == [("BAD_SUBGRAPH", "/".join(["in"] * 8), 0)]
    assert [kind for kind, _, _ in found(deep(40))] == ["BAD_SUBGRAPH"]


def test_a_node_uses_tools_that_the_run_has() -> None:  # C125
    made = Graph(
        nodes=[GraphNode(id="a", operator="act", tools=["read", "web_*"]), GraphNode(id="b", operator="answer")]
    )
    made.edges.append(AB[0])
    assert found(made) == [], "no tools are known"
    assert found(made, ["read", "web_get"]) == []
    assert found(made, ["read"]) == [("UNDECLARED_TOOL", "a", 0)]
    assert "'web_*'" in validate(made, ["read"])[0].message
    assert found(made, []) == [("UNDECLARED_TOOL", "a", 0)] * 3, "neither of them, and it cannot act without tools"


def test_an_operator_that_is_a_tool_is_one_that_the_run_has() -> None:
    made = own(prompt="", tool="judge")
    assert found(made) == found(made, ["judge"]) == []
    assert found(made, ["other"]) == [("UNDECLARED_TOOL", "a", 0)]


@pytest.mark.parametrize(
    "node",
    [
        GraphNode(operator="plan"),
        GraphNode(id="a b", operator="plan"),
        GraphNode(id="x" * 65, operator="plan"),
        GraphNode(id="ä", operator="plan"),
        GraphNode(id="b", operator="plan"),
        GraphNode(id="c"),
        GraphNode(id="c", operator=""),
        GraphNode(id="c", operator="plan", reply_schema_json="["),
        GraphNode(id="c", operator="plan", reply_schema_json="[]"),
        GraphNode(id="c", operator="plan", reply_schema_json='{"properties": {"rationale": {}}}'),
    ],
    ids=["no-id", "space", "long", "letter", "twice", "no-work", "no-operator", "no-json", "no-object", "no-steps"],
)
def test_a_node_has_an_id_of_its_own_and_something_to_do(node: GraphNode) -> None:  # C125
    made = Graph(nodes=[GraphNode(id="a", operator="plan"), GraphNode(id="b", operator="answer"), node])
    made.edges.extend([AB[0], *([] if node.id == "b" else [edge("b", node.id)])])
    assert ("BAD_NODE", node.id, 0) in found(made)


def test_the_schema_of_a_reply_asks_for_what_its_target_needs() -> None:
    for text in ('{"properties": {"steps": {"type": "array"}}}', '{"$ref": "#/$defs/plan"}'):
        made = ab()
        made.nodes[0].operator = "plan"
        made.nodes[0].reply_schema_json = text
        assert found(made) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "Mine"},
        {"name": ""},
        {"prompt": ""},
        {"target": 0},
        {"target": 99},
        {"tool_use": 99},
        {"tool": "judge", "tool_use": ToolUse.TOOL_USE_REPORT},
        {"reply_schema_json": "nothing"},
        {"target": ReplyTarget.REPLY_TARGET_SCORE, "reply_schema_json": '{"properties": {"reason": {}}}'},
    ],
    ids=["name", "no-name", "no-prompt", "no-target", "target", "use", "tool-with-tools", "no-json", "no-score"],
)
def test_an_operator_of_a_graph_is_well_made(fields: dict[str, Any]) -> None:  # C124
    made = own(**fields)
    made.nodes[0].operator = made.operators[0].name or "plan"
    assert found(made) == [("BAD_OPERATOR", "", 0)]


def test_a_node_names_an_operator_that_there_is() -> None:
    assert found(graph("a:dance b:answer", *AB)) == [("BAD_OPERATOR", "a", 0)]
    assert found(own()) == []
    assert found(nested(own())) == []


def test_operators_have_names_of_their_own_in_all_graphs_of_one() -> None:
    made = own()
    made.operators.append(made.operators[0])
    assert found(made) == [("BAD_OPERATOR", "", 0)] * 2
    inner = own(prompt="do it otherwise")
    made = nested(inner, operators=own().operators)
    assert found(made) == [], "nobody around it names it"
    made.nodes[0].operator = "mine"
    assert found(made) == [("BAD_OPERATOR", "in/a", 0)]


def node_with(**fields: Any) -> Graph:
    made = ab()
    made.nodes[0].MergeFrom(GraphNode(**fields))
    return made


OUT_OF_RANGE: dict[str, tuple[Callable[[], Graph], str, int]] = {
    "id": (lambda: ab(id="a b"), "", 0),
    "display_name": (lambda: ab(display_name="x" * 129), "", 0),
    "description": (lambda: ab(description="x" * 4097), "", 0),
    "labels": (lambda: ab(labels={str(number): "" for number in range(33)}), "", 0),
    "label": (lambda: ab(labels={"a": "x" * 257}), "", 0),
    "max_parallel_nodes": (lambda: ab(max_parallel_nodes=65), "", 0),
    "max_iterations": (lambda: ab(termination=Termination(max_iterations=1001)), "", 0),
    "no_iterations": (lambda: ab(termination=Termination(max_iterations=0)), "", 0),
    "fixed_iterations": (lambda: ab(termination=Termination(fixed_iterations=0)), "", 0),
    "fixed_beyond_max": (lambda: ab(termination=Termination(fixed_iterations=3, max_iterations=2)), "", 0),
    "tokens": (lambda: ab(termination=Termination(max_total_tokens=0)), "", 0),
    "cost": (lambda: ab(termination=Termination(max_cost_micro_usd=-1)), "", 0),
    "timeout": (lambda: ab(termination=Termination(timeout=Duration())), "", 0),
    "node_attempts": (lambda: node_with(max_attempts=17), "a", 0),
    "node_turns": (lambda: node_with(max_turns=0), "a", 0),
    "node_timeout": (lambda: node_with(timeout=Duration(seconds=-1)), "a", 0),
    "node_schema": (lambda: node_with(reply_schema_json=" " * 65_537), "a", 0),
    "operators": (
        lambda: ab(operators=[Operator(name=f"o{number}", prompt="x", target=STEP) for number in range(65)]),
        "",
        0,
    ),
    "operator_prompt": (lambda: own(prompt="x" * 16_385), "", 0),
    "operator_instructions": (lambda: own(instructions="x" * 16_385), "", 0),
    "operator_schema": (lambda: own(reply_schema_json=" " * 65_537), "", 0),
    "operator_turns": (lambda: own(max_turns=65), "", 0),
    "loop": (lambda: graph("a b:answer", *AB, edge("b", "a", "loop", max_iterations=0)), "b", 2),
    "long_loop": (lambda: graph("a b:answer", *AB, edge("b", "a", "loop", max_iterations=1001)), "b", 2),
    "retry": (lambda: graph("a b:answer", *AB, edge("b", "a", "retry", max_attempts=1)), "b", 2),
    "long_retry": (lambda: graph("a b:answer", *AB, edge("b", "a", "retry", max_attempts=101)), "b", 2),
    "parallelism": (lambda: graph("a b:answer", edge("a", "b", "fan_out", parallelism=65)), "a", 1),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_numbers_and_sizes_are_in_their_ranges(name: str) -> None:  # C125 C128
    make, node, place = OUT_OF_RANGE[name]
    assert found(make()) == [("OUT_OF_RANGE", node, place)]


def test_a_graph_that_is_too_large_is_told_so_and_not_looked_at() -> None:
    nodes = " ".join(f"n{number}" for number in range(MAX_NODES + 1))
    assert found(graph(nodes)) == [("OUT_OF_RANGE", "", 0)]
    assert found(nested(graph(nodes))) == [("OUT_OF_RANGE", "in", 0)], "those of subgraphs count"
    assert found(graph("a b", *(AB * (MAX_EDGES + 1)))) == [("OUT_OF_RANGE", "", 0)]
    back = [edge("b", "a", "loop", max_iterations=1)] * (MAX_TURNS + 1)
    assert found(graph("a b", *AB, *back)) == [("OUT_OF_RANGE", "", 0)]
    assert found(graph("a b", *AB, *back[:2]))[0] == ("BAD_EDGE", "b", 3)


def test_the_start_is_a_node_to_which_nothing_leads() -> None:  # C125
    assert found(ab(start="x")) == [("BAD_START", "x", 0)]
    assert found(graph("a b:answer", *AB, edge("b", "a"))) == [("CYCLE", "a", 0), ("BAD_START", "a", 0)]
    assert found(graph("b:answer a", *AB, start="a")) == []


def test_problems_are_told_in_the_order_of_nodes_and_edges_and_not_without_end() -> None:
    made = graph("a:x b:y", edge("a", "q"), edge("q", "b"))
    assert [(node, place) for _, node, place in found(made)][:4] == [("a", 0), ("b", 0), ("a", 1), ("q", 2)]
    many = graph(" ".join(f"n{number}:x" for number in range(MAX_PROBLEMS + 50)))
    assert len(validate(many)) == MAX_PROBLEMS


def test_a_fan_in_without_others_is_valid_and_unknown_modes_are_not() -> None:
    assert found(graph("a b:answer", edge("a", "b", "fan_in", mode="first"))) == []
    made = graph("a b:answer", GraphEdge(**{"from": "a"}, to="b", fan_in=FanIn(mode=9)))  # type: ignore[arg-type]  # from the wire
    assert found(made) == [("BAD_EDGE", "a", 1)]


def test_the_largest_graphs_are_looked_at_in_seconds() -> None:
    count = MAX_NODES
    chain = [edge(f"n{place}", f"n{place + 1}") for place in range(count - 1)]
    more = [edge(f"n{place}", f"n{place + step}") for step in (2, 3, 4) for place in range(0, count - 4)]
    back = [edge(f"n{count // 2 + place}", f"n{place}", "loop", max_iterations=1) for place in range(MAX_TURNS)]
    nodes = " ".join([*(f"n{place}" for place in range(count - 1)), f"n{count - 1}:answer"])
    began = process_time()
    validate(graph(nodes, *chain, *more, *back))
    assert process_time() - began < 10
