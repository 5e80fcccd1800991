"""Graphs as JSON and TOML: what is written is read back as it was, and what is not of the form is refused."""

from __future__ import annotations

import json
import tomllib
from typing import Any, get_args

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from behest import graphs
from behest.v1.graph_pb2 import Graph, GraphEdge

FORMS: tuple[graphs.Form, ...] = get_args(graphs.Form)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ['"', '"""', "'''", "\\", "a\nb", "\n", "\r\n", "a\n\r\tb\x7f", 'say "no"', "C:\\x", 'x\n"""', '"\n"']
    ),
)
OUTPUT_ONLY = {"version", "create_time", "update_time"}
PLAN_SOLVE = """
format = 1
id = "plan-solve"
start = "plan"

[termination]
max_iterations = 10
timeout = "90s"

[[nodes]]
id = "plan"
operator = "plan"

[[nodes]]
id = "solve"
operator = "solve"
tools = ["fs.*"]

[nodes.sampling]
temperature = 0.2

[[nodes]]
id = "answer"
operator = "answer"

[[edges]]
from = "plan"
to = "solve"
kind = "pipeline"

[[edges]]
from = "solve"
to = "solve"
kind = "loop"
max_iterations = 3
until = "iteration > 2"

[[edges]]
from = "solve"
to = "answer"
kind = "branch"
condition = "success"
"""


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """Make values of a field, of an enum also such as have no name."""
    if field.enum_type is not None:
        numbers = [value.number for value in field.enum_type.values if value.number]
        return st.sampled_from([*numbers, 97])
    if field.message_type is not None:
        name = field.message_type.full_name
        if name == Duration.DESCRIPTOR.full_name:
            return st.builds(Duration, seconds=st.integers(0, 10**6), nanos=st.integers(0, 10**9 - 1))
        return messages(field.message_type._concrete_class, depth - 1)
    return {
        FieldDescriptor.CPPTYPE_STRING: TEXTS,
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False),
    }[field.cpp_type]


@st.composite
def messages(draw: st.DrawFn, kind: type[Message], depth: int = 4) -> Any:
    """Make a message with some fields set, whatever they say."""
    made = kind()
    for field in kind.DESCRIPTOR.fields:
        choice = field.containing_oneof
        is_taken = choice is not None and made.WhichOneof(choice.name) is not None
        if field.name in OUTPUT_ONLY or is_taken or not draw(st.booleans()):
            continue
        if field.message_type is not None and (
            depth == 0 or field.message_type.full_name == Timestamp.DESCRIPTOR.full_name
        ):
            continue
        held = getattr(made, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            held.update(draw(st.dictionaries(TEXTS, TEXTS, max_size=2)))
        elif field.is_repeated:
            held.extend(draw(st.lists(values(field, depth), max_size=2)))
        elif field.message_type is not None:
            held.SetInParent()
            held.CopyFrom(draw(values(field, depth)))
        else:
            setattr(made, field.name, draw(values(field, depth)))
    return made


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(graph=messages(Graph))
def test_a_graph_is_read_back_as_it_was_written(graph: Graph, form: graphs.Form) -> None:
    text = graphs.write(graph, form)
    assert graphs.read(text, form) == graph
    assert graphs.write(graphs.read(text, form), form) == text


@settings(max_examples=40, deadline=None)
@given(graph=messages(Graph))
def test_both_forms_are_the_same_document(graph: Graph) -> None:
    assert tomllib.loads(graphs.write(graph, "toml")) == json.loads(graphs.write(graph, "json"))


def test_a_graph_in_toml_is_what_its_keys_say() -> None:
    graph = graphs.read(PLAN_SOLVE, "toml")
    assert [(node.id, node.operator) for node in graph.nodes] == [
        ("plan", "plan"),
        ("solve", "solve"),
        ("answer", "answer"),
    ]
    assert [edge.WhichOneof("kind") for edge in graph.edges] == ["pipeline", "loop", "branch"]
    assert (graph.edges[1].loop.max_iterations, graph.edges[1].loop.until) == (3, "iteration > 2")
    assert graph.termination.timeout.seconds == 90
    assert graph.nodes[1].sampling.temperature == 0.2
    assert list(graph.nodes[1].tools) == ["fs.*"]
    assert graphs.read(PLAN_SOLVE.replace("0.2", "1"), "toml").nodes[1].sampling.temperature == 1.0


def test_what_only_the_daemon_sets_is_not_written() -> None:
    graph = graphs.read(PLAN_SOLVE, "toml")
    stored = Graph()
    stored.CopyFrom(graph)
    stored.version = 3
    stored.create_time.seconds = stored.update_time.seconds = 1
    assert graphs.write(stored, "json") == graphs.write(graph, "json")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("nodez = []", "nodez"),
        ("version = 3", "version"),
        ('nodes = [{id = "a"}, {id = "b", operater = "plan"}]', "nodes.2.operater"),
        ('nodes = [{id = "a", subgraph = {nodes = [{name = "b"}]}}]', "nodes.1.subgraph.nodes.1.name"),
        ('nodes = [{id = "a", operator = "plan", subgraph = {}}]', "nodes.1.subgraph"),
        ("nodes = [{id = 3}]", "nodes.1.id"),
        ("nodes = [3]", "nodes.1"),
        ("nodes = 3", "nodes"),
        ("nodes = [{sampling = 3}]", "nodes.1.sampling"),
        ('nodes = [{sampling = {temperature = "hot"}}]', "nodes.1.sampling.temperature"),
        ("nodes = [{sampling = {temperature = true}}]", "nodes.1.sampling.temperature"),
        ('nodes = [{sampling = {reasoning_effort = "huge"}}]', "nodes.1.sampling.reasoning_effort"),
        ("nodes = [{tools = [1]}]", "nodes.1.tools.1"),
        ("max_parallel_nodes = 1.0", "max_parallel_nodes"),
        ("max_parallel_nodes = 4294967296", "max_parallel_nodes"),
        ("[termination]\nmax_iterations = true", "termination.max_iterations"),
        ('[termination]\ntimeout = "soon"', "termination.timeout"),
        ("[termination]\ntimeout = 3", "termination.timeout"),
        ("[labels]\nteam = 3", "labels.team"),
        ('edges = [{from = "a", to = "b", kind = "pipe"}]', "edges.1.kind"),
        ('edges = [{from = "a", to = "b", kind = 3}]', "edges.1.kind"),
        ('edges = [{from = "a", kind = "pipeline", until = "x"}]', "edges.1.until"),
        ('edges = [{from = "a", until = "x"}]', "edges.1.until"),
        ('edges = [{from = "a", pipeline = {}}]', "edges.1.pipeline"),
        ('edges = [{kind = "branch", condition = "maybe"}]', "edges.1.condition"),
        ('edges = [{kind = "branch", condition = "unspecified"}]', "edges.1.condition"),
        ('edges = [{kind = "fan_in", mode = 2}]', "edges.1.mode"),
        ('operators = [{name = "x", target = "nowhere"}]', "operators.1.target"),
    ],
)  # fmt: skip
def test_what_is_not_of_the_form_is_refused_by_its_place(text: str, place: str) -> None:
    document = tomllib.loads(f"format = 1\n{text}")
    for form, written in (("toml", f"format = 1\n{text}"), ("json", json.dumps(document))):
        with pytest.raises(graphs.GraphFormError) as caught:
            graphs.read(written, form)  # type: ignore[arg-type]
        assert caught.value.place == place


@pytest.mark.parametrize("start", ["", "format = 2\n", "format = true\n", 'format = "1"\n'])
def test_another_version_of_the_form_is_refused(start: str) -> None:
    with pytest.raises(graphs.GraphFormError) as caught:
        graphs.read(start + 'id = "a"', "toml")
    assert caught.value.place == "format"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("{", "json"),
        ("[]", "json"),
        ('{"format": 1, "id": "a", "id": "b"}', "json"),
        ('{"format": 1, "id": "\\ud800"}', "json"),
        ('{"format": 1, "labels": {"\\ud800": ""}}', "json"),
        ("[" * 100_000, "json"),
        ('{"format": 1, "nodes": [{"subgraph": ' * 2_000, "json"),
        ('{"format": 1' + ', "nodes": [{"subgraph": {"format": 1' * 3 + "}}]" * 3 + "}", "json"),
        ("x =", "toml"),
        ("id = 'a'\nid = 'b'", "toml"),
        ("x = " + "[" * 20_000, "toml"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)  # fmt: skip
def test_a_text_that_is_no_document_of_the_form_is_refused(text: str, form: graphs.Form) -> None:
    with pytest.raises(graphs.GraphFormError):
        graphs.read(text, form)


def test_an_edge_may_be_without_a_kind_so_that_the_daemon_can_say_that_it_is_wrong() -> None:
    graph = Graph(edges=[GraphEdge(to="b")])
    assert graphs.read(graphs.write(graph, "toml"), "toml") == graph


@pytest.mark.parametrize(("name", "form"), [("a.json", "json"), ("dir.json/b.TOML", "toml")])
def test_the_form_is_told_by_the_name_of_a_file(name: str, form: graphs.Form) -> None:
    assert graphs.form_of(name) == form


@pytest.mark.parametrize("name", ["a.yaml", "json", "a"])
def test_a_name_that_tells_no_form_is_refused(name: str) -> None:
    with pytest.raises(graphs.GraphFormError):
        graphs.form_of(name)
