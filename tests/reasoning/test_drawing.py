"""Drawings show each node and each edge of a graph once, what a run tells of them, and no text breaks out of them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behest import drawing, graphs
from behest.v1.graph_pb2 import Graph
from behest.v1.node_event_pb2 import NodeOutcome, NodeSkipped, NodeSkipReason, NodeStarted
from behest.v1.run_pb2 import NodeState, NodeVisit, Reasoning
from behest.v1.usage_pb2 import Usage
from tests.reasoning.drawn import Drawn, read_dot, read_mermaid

HOSTILE = (
    *(
        '"',
        "#",
        'a"b',
        "end",
        "--> x",
        "|",
        "[x]",
        "{",
        "(x)",
        "<b>",
        "&lt;",
        "#quot;",
        "`md`",
        "style a:#1;",
        "%%{x}%%",
    ),
    *(
        "a\nb",
        "\\",
        '\\"',
        "\\n",
        "é☃",
        ";",
        "---",
        "a:::b",
        "\x1b[31m",
        '"]\nn1-->n2',
        '"];\n"x" -> "y',
        "}",
        "//",
        "/*",
    ),
)
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=6))
IDS = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=6))

LOOPING = """
format = 1
display_name = "think and act"
nodes = [
  { id = "think", operator = "reason" },
  { id = "act", operator = "act" },
  { id = "answer", operator = "answer" },
]
edges = [
  { from = "think", to = "act", kind = "branch", condition = "failure" },
  { from = "think", to = "answer", kind = "branch", condition = "success" },
  { from = "act", to = "think", kind = "loop", max_iterations = 4, until = "score > 1" },
  { from = "act", to = "act", kind = "retry", max_attempts = 3 },
  { from = "act", to = "answer", kind = "pipeline" },
]
"""
BRANCHING = """
format = 1
id = "wide"
loop_start = "split"
nodes = [
  { id = "split", operator = "analyze" },
  { id = "a", operator = "solve" },
  { id = "b", subgraph = { nodes = [{ id = "x", operator = "plan" }, { id = "y", operator = "answer" }], edges = [{ from = "x", to = "y", kind = "pipeline" }] } },
  { id = "b2", operator = "verify" },
  { id = "join", operator = "reduce" },
  { id = "answer", operator = "answer" },
  { id = "lost", operator = "plan" },
]
edges = [
  { from = "split", to = "a", kind = "fan_out", parallelism = 2 },
  { from = "split", to = "b", kind = "fan_out", parallelism = 2 },
  { from = "a", to = "join", kind = "fan_in", mode = "best" },
  { from = "b", to = "b2", kind = "pipeline" },
  { from = "b2", to = "join", kind = "fan_in", mode = "best" },
  { from = "join", to = "answer", kind = "branch", condition = "expression", expression = "score >= 0.5" },
  { from = "lost", to = "nowhere", kind = "race" },
]
"""  # noqa: E501  # an inline table is one line


CHAIN = """
format = 1
id = "simple"
nodes = [{ id = "plan", operator = "plan" }, { id = "solve", operator = "solve" }, { id = "end", operator = "answer" }]
edges = [{ from = "plan", to = "solve", kind = "pipeline" }, { from = "solve", to = "end", kind = "pipeline" }]
"""


def test_a_chain_stands_below_each_other() -> None:
    assert drawing.terminal(graphs.read(CHAIN, "toml")) == lines("""
        simple
        ○ plan   plan
        │
        ○ solve  solve
        │
        ○ end    answer
        """)


def test_loops_and_branches_are_arrows_to_names() -> None:
    assert drawing.terminal(graphs.read(LOOPING, "toml")) == lines("""
        think and act
        ○ think    reason
        ├→ answer  on success
        │          on failure
        ○ act      act
        ├→ think   loop, 4 times at most, until score > 1
        ├→ act     retry, 3 attempts at most
        └→ answer
        ○ answer   answer
        """)


def test_ways_that_part_stand_side_by_side_and_graphs_in_nodes_inside_them() -> None:
    assert drawing.terminal(graphs.read(BRANCHING, "toml")) == lines("""
        wide
        ○ split     analyze  rounds begin here
        ├─○ a       solve    fan-out, 2 at once
        │ └→ join   fan-in, best
        └─○ b       graph    fan-out, 2 at once
          ┊ ○ x     plan
          ┊ │
          ┊ ○ y     answer
          │
          ○ b2      verify
          └→ join   fan-in, best
        ○ join      reduce
        │           if score >= 0.5
        ○ answer    answer
        ○ lost      plan     cannot be reached
        └→ nowhere  race; no such node
        """)


def lines(text: str) -> str:
    """Return a text without its first line end and what its lines are indented by."""
    return textwrap.dedent(text).lstrip("\n")


def visit(node: str, number: int, **fields: object) -> NodeVisit:
    """Make a visit that took two seconds and cost something."""
    made = NodeVisit(
        started=NodeStarted(visit=number, node=node, edge=int(fields.pop("edge", 0))),  # type: ignore[call-overload]
        usage=Usage(input_tokens=100, output_tokens=20, cost_micro_usd=1500),
        **{"state": NodeState.NODE_STATE_COMPLETED, **fields},  # type: ignore[arg-type]
    )
    made.start_time.FromSeconds(1000)
    if made.state != NodeState.NODE_STATE_RUNNING:
        made.end_time.FromSeconds(1002)
    return made


RUN = Reasoning(
    visits=[
        visit("think", 1, outcome=NodeOutcome.NODE_OUTCOME_FAILURE),
        visit("act", 2),
        visit("think", 3, edge=3, outcome=NodeOutcome.NODE_OUTCOME_FAILURE),
        visit("act", 4, state=NodeState.NODE_STATE_FAILED, reason="TOOL_FAILED"),
        visit("act", 5, edge=4, state=NodeState.NODE_STATE_RUNNING),
    ],
    skipped=[NodeSkipped(node="answer", reason=NodeSkipReason.NODE_SKIP_REASON_NOT_TAKEN)],
)


def test_a_run_shows_states_visits_times_and_costs_of_its_nodes() -> None:
    assert drawing.terminal(graphs.read(LOOPING, "toml"), RUN) == lines("""
        think and act
        ✔ think    reason  completed (found a failure), 2 visits, 4.0 s, 240 tokens, $0.003
        ├→ answer  on success
        │          on failure
        ▶ act      act     running, 3 visits, 4.0 s, 360 tokens, $0.0045
        ├→ think   loop, 4 times at most, until score > 1; gone back once
        ├→ act     retry, 3 attempts at most; gone back once
        └→ answer
        – answer   answer  skipped (not taken)
        """)


def test_a_run_that_has_not_begun_shows_nodes_as_pending() -> None:
    lines = drawing.terminal(graphs.read(LOOPING, "toml"), Reasoning()).splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("○")] == ["pending"] * 3


def test_a_node_that_was_visited_is_not_shown_as_left_out_and_unknown_costs_not_at_all() -> None:
    bare = NodeVisit(started=NodeStarted(visit=1, node="think"), state=NodeState.NODE_STATE_FAILED, reason="REASON")
    skipped = NodeSkipped(node="think", reason=NodeSkipReason.NODE_SKIP_REASON_OUTPACED)
    drawn = drawing.terminal(graphs.read(LOOPING, "toml"), Reasoning(visits=[bare], skipped=[skipped]))
    assert "✘ think    reason  failed (REASON), 0.0 s\n" in drawn


def test_mermaid_and_dot_show_a_run_as_the_terminal_does() -> None:
    graph = graphs.read(LOOPING, "toml")
    mermaid, dot = read_mermaid(drawing.mermaid(graph, RUN)), read_dot(drawing.dot(graph, RUN))
    told = "running, 3 visits, 4.0 s, 360 tokens, $0.0045"
    assert mermaid.nodes["n2"] == dot.nodes["act"] == f"act\nact\n{told}"
    assert mermaid.states == {"n1": "completed", "n2": "running", "n3": "skipped"}
    assert [label for _, _, label in mermaid.edges] == [label for _, _, label in dot.edges]
    assert mermaid.edges[2] == ("n2", "n1", "loop, 4 times at most, until score > 1; gone back once")


def test_nodes_of_graphs_in_nodes_are_told_by_their_paths() -> None:
    graph = graphs.read(BRANCHING, "toml")
    run = Reasoning(visits=[visit("b", 1, state=NodeState.NODE_STATE_RUNNING), visit("b/x", 2, score=0.25)])
    told = "completed, 2.0 s, 120 tokens, $0.0015, score 0.25"
    assert f"┊ ✔ x     plan     {told}\n" in drawing.terminal(graph, run)
    assert read_mermaid(drawing.mermaid(graph, run)).nodes["n3_1"] == f"x\nplan\n{told}"
    dot = read_dot(drawing.dot(graph, run))
    assert dot.nodes["b/x"] == f"x\nplan\n{told}"
    assert ("b", "b/x", "") in dot.edges


@st.composite
def any_graphs(draw: st.DrawFn, depth: int = 1) -> Graph:
    """Make a graph, most likely a wrong one, whose texts try to break out of a drawing."""
    names = draw(st.lists(IDS, max_size=5, unique=True))
    nodes: list[dict[str, object]] = []
    for name in names:
        inner = depth > 0 and draw(st.integers(0, 4)) == 0
        nodes.append(
            {"id": name, "subgraph": draw(any_graphs(depth - 1))} if inner else {"id": name, "operator": draw(TEXTS)}
        )
    kinds = st.one_of(
        st.just({"pipeline": {}}),
        st.builds(lambda text: {"branch": {"condition": 5, "expression": text}}, TEXTS),
        st.builds(lambda text: {"loop": {"max_iterations": 2, "until": text}}, TEXTS),
        st.just({"fan_out": {"parallelism": 2}}),
        st.just({"fan_in": {"mode": 3}}),
        st.just({"retry": {"max_attempts": 2}}),
        st.just({}),
    )
    ends = st.sampled_from([*names, "nobody"])
    edges = [{"from": draw(ends), "to": draw(ends), **draw(kinds)} for _ in range(draw(st.integers(0, 6)))]
    return Graph(display_name=draw(TEXTS), nodes=nodes, edges=edges, start=draw(ends) if draw(st.booleans()) else "")  # type: ignore[arg-type]


def paths(graph: Graph, path: str = "") -> dict[str, str]:
    """Map the paths of all nodes to what they do."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        found[path + node.id] = "graph" if node.HasField("subgraph") else node.operator
        found |= paths(node.subgraph, f"{path}{node.id}/")
    return found


def drawn_edges(graph: Graph) -> int:
    """Count the edges between nodes that are there."""
    known = {node.id for node in graph.nodes}
    own = sum(edge.to in known and getattr(edge, "from") in known for edge in graph.edges)
    return own + sum(drawn_edges(node.subgraph) for node in graph.nodes)


@settings(max_examples=60, deadline=None)
@given(graph=any_graphs())
def test_whatever_texts_a_graph_has_its_drawings_can_be_read(graph: Graph) -> None:
    told = Reasoning(visits=[visit(path, 1) for path in paths(graph)])
    for run in (None, told):
        mermaid, dot = read_mermaid(drawing.mermaid(graph, run)), read_dot(drawing.dot(graph, run))
        assert len(mermaid.edges) == drawn_edges(graph)
        assert len(mermaid.nodes) == len(paths(graph))
        shown = [label.split("\n")[0] for label in mermaid.nodes.values()]
        assert all(name.isprintable() for name in shown)
        assert len(dot.nodes) == len(paths(graph))
        assert all(line.isprintable() for line in drawing.terminal(graph, run).split("\n"))


@settings(max_examples=60, deadline=None)
@given(graph=any_graphs(depth=0))
def test_each_node_and_each_edge_is_drawn_once(graph: Graph) -> None:
    dot = read_dot(drawing.dot(graph))
    assert sorted(dot.nodes) == sorted(re.sub(r"[^\n]", _printable, name) for name in paths(graph))
    rows = drawing.terminal(graph).split("\n")[1:-1]
    nodes = [row for row in rows if re.match(r"[│┊├└─ ]*○ ", row)]
    arrows = [row for row in rows if re.match(r"[│┊ ]*[├└]→ ", row)]
    lines = [row for row in rows if re.match(r"[│┊ ]*(│(  .*)?$|[├└]─○ )", row)]
    known = {node.id for node in graph.nodes}
    assert len(nodes) == len(known)
    assert len(arrows) + len(lines) == sum(getattr(edge, "from") in known for edge in graph.edges)
    assert len(rows) == len(nodes) + len(arrows) + sum(1 for row in lines if "○" not in row)


def _printable(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else "�"


@pytest.mark.parametrize("draw", [drawing.terminal, drawing.mermaid, drawing.dot], ids=lambda draw: draw.__name__)
def test_a_thousand_nodes_are_drawn_one_below_the_other(draw: Callable[[Graph], str]) -> None:
    names = [f"n{number}" for number in range(1000)]
    graph = Graph(
        nodes=[{"id": name, "operator": "reason"} for name in names],  # type: ignore[arg-type]
        edges=[{"from": one, "to": next_one, "pipeline": {}} for one, next_one in pairwise(names)],  # type: ignore[arg-type]
    )
    assert len(draw(graph).splitlines()) >= 1999
    assert max(map(len, draw(graph).splitlines())) < 80


def test_an_empty_graph_is_drawn_as_its_name() -> None:
    assert drawing.terminal(Graph(id="none")) == "none\n"
    assert read_mermaid(drawing.mermaid(Graph())) == Drawn(title="graph")
    assert read_dot(drawing.dot(Graph())) == Drawn(title="graph")
