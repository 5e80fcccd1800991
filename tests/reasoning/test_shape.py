"""Shapes: what precedes and follows nodes, what begins anew, what waits for the end of a loop."""

from __future__ import annotations

from time import process_time

from behest.v1.graph_pb2 import Graph, GraphNode
from behestd.core.shape import Shape
from tests.reasoning.made_up import edge, graph

LOOP = graph(
    "a b c d x",
    edge("a", "b"),
    edge("b", "c"),
    edge("c", "d"),
    edge("c", "a", "loop", max_iterations=2),
    edge("b", "x"),
    edge("d", "d", "retry", max_attempts=2),
)


def names(edges: object) -> list[int]:
    return [one.place for one in edges]  # type: ignore[attr-defined]  # edges of a shape


def test_edges_are_found_by_their_nodes_in_the_order_of_the_graph() -> None:
    shape = Shape(LOOP)
    assert names(shape.leaving("b")) == [2, 5]
    assert names(shape.leaving("c")) == [3, 4]
    assert names(shape.back("c")) == [4]
    assert names(shape.entering("a")) == [], "going back is no way in"
    assert names(shape.entering("d")) == [3]
    assert [(one.kind, one.is_back) for one in shape.leaving("c")] == [("pipeline", False), ("loop", True)]


def test_a_node_has_each_follower_once() -> None:
    shape = Shape(graph("a b", edge("a", "b"), edge("a", "b", "branch", condition="failure")))
    assert shape.successors("a") == ("b",)
    assert shape.predecessors("b") == ("a",)
    assert shape.successors("b") == ()


def test_a_graph_begins_with_its_first_node_unless_it_says_another() -> None:
    assert Shape(LOOP).start == "a"
    assert Shape(graph("a b", edge("b", "a"), start="b")).start == "b"


def test_below_a_node_is_what_follows_it_in_the_order_of_the_graph() -> None:
    assert Shape(LOOP).below("b") == ("b", "c", "d", "x")
    assert Shape(LOOP).below("d") == ("d",)


def test_what_begins_anew_lies_on_ways_from_where_an_edge_leads_to_where_it_leaves() -> None:
    shape = Shape(LOOP)
    assert shape.body(shape.edges[3]) == ("a", "b", "c")
    assert shape.body(shape.edges[5]) == ("d",)


def test_what_leads_out_of_a_loop_waits_for_its_end() -> None:
    shape = Shape(LOOP)
    assert shape.guards(shape.edges[4]) == ("c",)
    assert shape.guards(shape.edges[2]) == (), "it leaves where the loop ends"
    assert shape.guards(shape.edges[0]) == (), "it stays within"


def test_what_leads_out_of_a_loop_waits_for_what_goes_back_to_its_end_too() -> None:
    shape = Shape(
        graph(
            "a b c x",
            edge("a", "b"),
            edge("b", "c"),
            edge("a", "x"),
            edge("b", "a", "loop", max_iterations=2),
            edge("c", "b", "loop", max_iterations=2),
        )
    )
    assert shape.guards(shape.edges[2]) == ("b", "c")


def test_a_subgraph_has_a_shape_of_its_own_below_its_node() -> None:
    inner = graph("p q", edge("p", "q"))
    middle = Graph(nodes=[GraphNode(id="inner", subgraph=inner)])
    shape = Shape(Graph(nodes=[GraphNode(id="outer", subgraph=middle), GraphNode(id="z", operator="answer")]))
    assert list(shape.inner) == ["outer"]
    found = shape.at("outer/inner/")
    assert (found.path, found.start, found.successors("p")) == ("outer/inner/", "p", ("q",))
    assert shape.at("") is shape


def test_pivots_are_the_ends_of_loops_racers_and_those_of_whom_the_first_counts() -> None:
    shape = Shape(
        graph(
            "s a b j z",
            edge("s", "a", "race"),
            edge("s", "b", "race"),
            edge("s", "j", "fan_in", mode="first"),
            edge("a", "j", "fan_in", mode="first"),
            edge("j", "z"),
            edge("z", "z", "loop", max_iterations=2),
        )
    )
    assert [name for name in shape.nodes if shape.is_pivot(name)] == ["s", "a", "b", "z"]
    assert [name for name in shape.nodes if shape.takes_first(name)] == ["j"]


def test_a_node_of_one_fan_out_knows_beside_whom_it_works() -> None:
    shape = Shape(graph("s a b", *(edge("s", name, "fan_out", parallelism=1) for name in "ab")))
    assert shape.fans == {"a": "s", "b": "s"}


def test_those_who_come_before_are_told_in_an_order_in_which_one_that_is_missing_is_found_soon() -> None:
    count = 1_000
    wide = graph(
        " ".join(["s", *(f"n{place}" for place in range(count)), "j"]),
        *(edge(f"n{place}", "j", "fan_in") for place in range(count)),
    )
    told = Shape(wide).predecessors("j")
    for order in (range(count), reversed(range(count))):
        missing, looks = {f"n{place}" for place in range(count)}, 0
        for place in order:
            missing.discard(f"n{place}")
            looks += next((turn for turn, name in enumerate(told, 1) if name in missing), count)
        assert looks < 20 * count, "never all of them again for each that ends"


def test_a_shape_is_made_in_time_linear_in_the_graph() -> None:
    def seconds(count: int) -> float:
        chain = graph(
            " ".join(f"n{place}" for place in range(count)),
            *(edge(f"n{place}", f"n{place + 1}") for place in range(count - 1)),
        )
        best = 1e9
        for _ in range(5):
            began = process_time()
            Shape(chain)
            best = min(best, process_time() - began)
        return best

    assert seconds(2_000) < 40 * seconds(200), "ten times the nodes, four times over"
