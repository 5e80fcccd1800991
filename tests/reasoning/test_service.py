"""ReasoningService: graphs that are kept, what they are made of, and what is wrong with them, through a daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from behest.v1 import agent_service_pb2 as agents
from behest.v1 import reasoning_service_pb2 as pb
from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import Sampling
from behest.v1.graph_pb2 import (
    Branch,
    BranchCondition,
    FanOut,
    Graph,
    GraphNode,
    GraphProblemKind,
    StrategyChoice,
    Termination,
)
from behest.v1.message_pb2 import Role
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behest.v1.task_pb2 import Fact, Goal, Task, TaskContext
from tests.daemons import Served, refused, rejection, serve, writes
from tests.reasoning.house import chain, edge, simple
from tests.service.test_agents import tools

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ANSWER = GraphNode(id="say", operator="answer")
TASK = Task(goal=Goal(description="count the stars"))


def stub(served: Served) -> Any:
    return served.client.stubs.reasoning


async def create(served: Served, graph: Graph, **fields: Any) -> Graph:
    """Create a graph."""
    return (await stub(served).CreateGraph(pb.CreateGraphRequest(graph=graph, **fields))).graph


async def get(served: Served, graph_id: str, version: int = 0) -> Graph:
    """Get a graph."""
    return (await stub(served).GetGraph(pb.GetGraphRequest(graph_id=graph_id, version=version))).graph


async def status_of(call: Any) -> tuple[ErrorInfo, BadRequest]:
    """What a call was refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    info, fields = ErrorInfo(), BadRequest()
    for detail in Status.FromString(details).details:
        detail.Unpack(info)
        detail.Unpack(fields)
    return info, fields


# --- what graphs are made of ---


async def test_the_operators_that_every_graph_has_are_listed_by_name(served: Served) -> None:  # C121
    found = (await stub(served).ListOperators(pb.ListOperatorsRequest())).operators
    names = [operator.name for operator in found]
    assert names == sorted(names)
    assert len(names) == 25
    assert all(operator.intent and operator.target for operator in found)


async def test_each_strategy_that_is_listed_makes_a_graph_that_can_be_kept(served: Served) -> None:  # C130
    found = (await stub(served).ListStrategies(pb.ListStrategiesRequest())).strategies
    names = [strategy.name for strategy in found]
    assert names == sorted(names)
    for name in names:
        made = await stub(served).MakeGraph(pb.MakeGraphRequest(strategy=StrategyChoice(name=name)))
        kept = await create(served, made.graph)
        assert kept.version == 1
        assert kept.nodes == made.graph.nodes


async def test_a_strategy_that_is_not_there_is_not_found(served: Served) -> None:
    error = await rejection(stub(served).MakeGraph(pb.MakeGraphRequest(strategy=StrategyChoice(name="none"))))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "REASONING_STRATEGY_NOT_FOUND")


async def test_parameters_that_a_strategy_has_not_are_refused_by_name(served: Served) -> None:
    choice = StrategyChoice(name="react", parameters={"no_such": "1"})
    error = await rejection(stub(served).MakeGraph(pb.MakeGraphRequest(strategy=choice)))
    assert (error.reason, error.field) == ("REQUEST_INVALID", "strategy.parameters[no_such]")


# --- records ---


async def test_a_graph_is_stored_as_it_was_given_as_version_1(stored: Served) -> None:  # C131
    given = simple(id="two", display_name="Two", description="d", labels={"team": "a"}, max_parallel_nodes=3)
    made = await create(stored, given)
    assert made.version == 1
    assert made.create_time == made.update_time
    expected = Graph()
    expected.CopyFrom(made)
    for field in ("version", "create_time", "update_time"):
        expected.ClearField(field)
    assert expected == given
    assert await get(stored, "two") == made
    assert (await create(stored, simple())).id.startswith("gra_")


async def test_output_only_fields_of_a_new_graph_are_ignored(served: Served) -> None:
    made = await create(served, simple(id="a", version=9, create_time=Timestamp(seconds=1)))
    assert made.version == 1
    assert made.create_time.seconds > 1


async def test_a_taken_graph_id_is_refused(stored: Served) -> None:
    await create(stored, simple(id="a"))
    info, _ = await status_of(create(stored, simple(id="a")))
    assert info.reason == "REASONING_GRAPH_ID_TAKEN"
    assert dict(info.metadata) == {"graphId": "a"}


async def test_a_repeated_create_gives_the_first_graph_and_another_request_is_refused(stored: Served) -> None:
    request = pb.CreateGraphRequest(graph=simple(), request_id="r1")
    answers = await asyncio.gather(*(stub(stored).CreateGraph(request) for _ in range(5)))
    assert len({answer.graph.id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    other = pb.CreateGraphRequest(graph=simple(description="other"), request_id="r1")
    assert (await rejection(stub(stored).CreateGraph(other))).reason == "REQUEST_ID_REUSED"


async def test_an_update_makes_a_new_version_and_earlier_ones_stay(stored: Served) -> None:  # C131
    first = await create(stored, simple(id="a"))
    second = (await stub(stored).UpdateGraph(pb.UpdateGraphRequest(graph=simple(id="a", description="new")))).graph
    assert (second.version, second.create_time) == (2, first.create_time)
    assert await get(stored, "a") == await get(stored, "a", 2) == second
    assert await get(stored, "a", 1) == first
    missing = await rejection(get(stored, "a", 3))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "REASONING_GRAPH_NOT_FOUND")


async def test_an_update_may_name_the_fields_that_it_changes(stored: Served) -> None:  # C144
    await create(stored, simple(id="a", description="old", labels={"x": "y"}))
    changed = chain(ANSWER, id="a", description="new", termination=Termination(max_iterations=3))
    mask = FieldMask(paths=["description", "termination.max_iterations"])
    made = (await stub(stored).UpdateGraph(pb.UpdateGraphRequest(graph=changed, update_mask=mask))).graph
    expected = simple(id="a", description="new", labels={"x": "y"}, termination=Termination(max_iterations=3))
    for field in ("version", "create_time", "update_time"):
        made.ClearField(field)
    assert made == expected
    bad = pb.UpdateGraphRequest(graph=Graph(id="a"), update_mask=FieldMask(paths=["nodes"]))
    assert (await rejection(stub(stored).UpdateGraph(bad))).reason == "REASONING_GRAPH_INVALID"


@pytest.mark.parametrize(("method", "things"), [("ListOperators", "operators"), ("ListStrategies", "strategies")])
async def test_what_every_graph_has_is_listed_in_pages(method: str, things: str, served: Served) -> None:  # C144
    request = getattr(pb, f"{method}Request")
    whole = [thing.name for thing in getattr(await getattr(stub(served), method)(request()), things)]
    found, token = [], ""
    while True:
        page = await getattr(stub(served), method)(request(page_size=4, page_token=token))
        found += [thing.name for thing in getattr(page, things)]
        token = page.next_page_token
        if not token:
            break
    assert found == whole


async def test_an_update_that_changes_nothing_makes_no_version(stored: Served) -> None:
    made = await create(stored, simple(id="a", labels={"x": "y"}))
    before = writes(stored)
    again = (await stub(stored).UpdateGraph(pb.UpdateGraphRequest(graph=made))).graph
    assert again == made
    assert writes(stored) == before


async def test_an_update_of_another_version_than_the_newest_is_refused(stored: Served) -> None:
    await create(stored, simple(id="a"))
    for expected in (1, 0):
        changed = simple(id="a", description=str(expected))
        await stub(stored).UpdateGraph(pb.UpdateGraphRequest(graph=changed, expected_version=expected))
    call = stub(stored).UpdateGraph(pb.UpdateGraphRequest(graph=simple(id="a"), expected_version=1))
    info, _ = await status_of(call)
    assert info.reason == "REASONING_GRAPH_VERSION_MISMATCH"
    assert dict(info.metadata) == {"graphId": "a", "version": "3"}


async def test_updates_at_once_each_make_a_version(stored: Served) -> None:
    await create(stored, simple(id="a"))
    requests = [pb.UpdateGraphRequest(graph=simple(id="a", description=str(number))) for number in range(5)]
    made = await asyncio.gather(*(stub(stored).UpdateGraph(request) for request in requests))
    assert sorted(answer.graph.version for answer in made) == [2, 3, 4, 5, 6]


async def test_a_graph_that_is_not_there_is_not_updated(served: Served) -> None:
    error = await rejection(stub(served).UpdateGraph(pb.UpdateGraphRequest(graph=simple(id="none"))))
    assert error.reason == "REASONING_GRAPH_NOT_FOUND"


async def test_a_deleted_graph_is_gone_with_its_versions_and_its_id_is_free(stored: Served) -> None:
    await create(stored, simple(id="a"))
    await stub(stored).UpdateGraph(pb.UpdateGraphRequest(graph=simple(id="a", description="new")))
    for _ in range(2):
        await stub(stored).DeleteGraph(pb.DeleteGraphRequest(graph_id="a"))
    for version in (0, 1, 2):
        assert (await rejection(get(stored, "a", version))).reason == "REASONING_GRAPH_NOT_FOUND"
    assert (await create(stored, simple(id="a"))).version == 1
    assert (await rejection(get(stored, "a", 2))).reason == "REASONING_GRAPH_NOT_FOUND"


async def test_graphs_are_listed_by_id_in_pages_and_by_labels(stored: Served) -> None:  # C131
    for name in "cab":
        await create(stored, simple(id=name, labels={"kind": "even" if name == "b" else "odd"}))
    await stub(stored).UpdateGraph(pb.UpdateGraphRequest(graph=simple(id="c", description="new")))
    found, token = [], ""
    while True:
        page = await stub(stored).ListGraphs(pb.ListGraphsRequest(page_size=2, page_token=token))
        found += [(graph.id, graph.version) for graph in page.graphs]
        token = page.next_page_token
        if not token:
            break
    assert found == [("a", 1), ("b", 1), ("c", 2)]
    even = await stub(stored).ListGraphs(pb.ListGraphsRequest(labels={"kind": "even"}))
    assert [graph.id for graph in even.graphs] == ["b"]


async def test_graphs_are_there_after_a_restart(tmp_path: Path) -> None:  # C131
    async with serve("sqlite", tmp_path) as before:
        made = await create(before, simple(id="a"))
        await stub(before).UpdateGraph(pb.UpdateGraphRequest(graph=simple(id="a", description="new")))
    async with serve("sqlite", tmp_path) as after:
        assert await get(after, "a", 1) == made
        assert (await get(after, "a")).description == "new"


# --- what is wrong with them ---


def looping(**kind: Any) -> Graph:
    return Graph(nodes=[GraphNode(id="think", operator="reason"), ANSWER], edges=[edge("think", "say", **kind)])


def inner(*nodes: GraphNode) -> Graph:
    return chain(GraphNode(id="in", subgraph=chain(*nodes)), ANSWER)


Kind = GraphProblemKind
WRONG = [
    pytest.param(Graph(), "EMPTY", "", 0, id="empty"),
    pytest.param(chain(GraphNode(id="a", operator="plan")), "NO_ANSWER", "", 0, id="no answer"),
    pytest.param(
        Graph(
            nodes=[GraphNode(id="a", operator="plan"), GraphNode(id="b", operator="reason"), ANSWER],
            edges=[edge("a", "b"), edge("b", "a"), edge("b", "say")],
        ),
        "CYCLE",
        "a",
        0,
        id="cycle",
    ),
    pytest.param(
        Graph(nodes=[GraphNode(id="a", operator="plan"), GraphNode(id="alone", operator="plan"), ANSWER],
              edges=[edge("a", "say")]),
        "UNREACHABLE", "alone", 0, id="unreachable",
    ),
    pytest.param(
        Graph(nodes=[GraphNode(id="a", operator="plan"), ANSWER], edges=[edge("a", "say"), edge("a", "none")]),
        "BAD_EDGE", "a", 2, id="bad edge",
    ),
    pytest.param(looping(branch=Branch()), "BAD_BRANCH", "think", 1, id="bad branch"),
    pytest.param(
        looping(branch=Branch(condition=BranchCondition.BRANCH_CONDITION_EXPRESSION, expression="score >")),
        "BAD_BRANCH", "think", 1, id="bad expression",
    ),
    pytest.param(simple(loop_start="none"), "BAD_LOOP_START", "none", 0, id="bad loop start"),
    pytest.param(looping(fan_out=FanOut()), "NO_PARALLELISM", "think", 1, id="no parallelism"),
    pytest.param(inner(GraphNode(id="a", operator="plan")), "NO_ANSWER", "in", 0, id="subgraph"),
    pytest.param(chain(GraphNode(id="a"), ANSWER), "BAD_NODE", "a", 0, id="bad node"),
    pytest.param(chain(GraphNode(id="a", operator="none"), ANSWER), "BAD_OPERATOR", "a", 0, id="bad operator"),
    pytest.param(simple(start="none"), "BAD_START", "none", 0, id="bad start"),
    pytest.param(simple(termination=Termination(max_iterations=1001)), "OUT_OF_RANGE", "", 0, id="out of range"),
]  # fmt: skip


@pytest.mark.parametrize(("graph", "rule", "node", "place"), WRONG)
async def test_each_thing_that_is_wrong_with_a_graph_is_told_and_refused(  # C125
    graph: Graph, rule: str, node: str, place: int, served: Served
) -> None:
    told = (await stub(served).ValidateGraph(pb.ValidateGraphRequest(graph=graph))).problems
    kind = Kind.Value(f"GRAPH_PROBLEM_KIND_{rule}")
    found = [problem for problem in told if problem.kind == kind]
    assert found
    assert (found[0].node, found[0].edge) == (node, place)
    assert found[0].message
    before = writes(served)
    info, fields = await status_of(create(served, graph))
    first = told[0]
    assert info.reason == "REASONING_GRAPH_INVALID"
    assert info.metadata["rule"] == Kind.Name(first.kind).removeprefix("GRAPH_PROBLEM_KIND_")
    assert (info.metadata["node"], info.metadata["edge"]) == (first.node, str(first.edge))
    assert info.metadata["problems"] == str(len(told))
    assert [violation.description for violation in fields.field_violations] == [problem.message for problem in told[:8]]
    assert writes(served) == before


@pytest.mark.parametrize(
    ("graph", "field"),
    [
        pytest.param(Graph(), "graph", id="graph"),
        pytest.param(chain(GraphNode(id="a"), ANSWER), "graph.nodes[a]", id="node"),
        pytest.param(looping(branch=Branch()), "graph.edges[0]", id="edge"),
    ],
)
async def test_the_field_of_a_problem_is_its_node_or_edge(graph: Graph, field: str, served: Served) -> None:
    _, fields = await status_of(create(served, graph))
    assert fields.field_violations[0].field == field


async def test_the_field_of_a_problem_in_a_subgraph_names_the_subgraph(served: Served) -> None:
    graph = chain(GraphNode(id="in", subgraph=looping(branch=Branch())), ANSWER)
    _, fields = await status_of(create(served, graph))
    found = [violation.field for violation in fields.field_violations]
    assert found == ["graph.nodes[in]", "graph.nodes[in].subgraph.edges[0]"]


async def test_a_valid_graph_has_no_problems(served: Served) -> None:  # C125
    assert not (await stub(served).ValidateGraph(pb.ValidateGraphRequest(graph=simple()))).problems


@pytest.mark.parametrize(
    ("graph", "place"),
    [
        pytest.param(chain(GraphNode(id="say", operator="answer", reply_schema_json='{"type": 3}')), "say", id="node"),
        pytest.param(
            chain(
                GraphNode(id="own", operator="own"),
                ANSWER,
                operators=[
                    Operator(
                        name="own",
                        prompt="do",
                        reply_schema_json='{"$ref": "http://else.where/x"}',
                        target=ReplyTarget.REPLY_TARGET_STEP,
                    )
                ],
            ),
            "",
            id="operator",
        ),
    ],
)
async def test_schemas_that_are_not_taken_are_problems(graph: Graph, place: str, served: Served) -> None:  # C125
    told = (await stub(served).ValidateGraph(pb.ValidateGraphRequest(graph=graph))).problems
    assert [problem.node for problem in told] == [place]


async def test_an_operator_that_means_two_things_in_two_subgraphs_is_a_problem(served: Served) -> None:
    def own(prompt: str) -> Graph:
        operator = Operator(name="own", prompt=prompt, target=ReplyTarget.REPLY_TARGET_STEP)
        return chain(GraphNode(id="own", operator="own"), ANSWER, operators=[operator])

    nodes = [GraphNode(id="a", subgraph=own("one")), GraphNode(id="b", subgraph=own("two")), ANSWER]
    told = (await stub(served).ValidateGraph(pb.ValidateGraphRequest(graph=chain(*nodes)))).problems
    assert [(problem.kind, problem.node) for problem in told] == [(Kind.GRAPH_PROBLEM_KIND_BAD_OPERATOR, "b/own")]


async def test_what_a_create_refuses_by_its_field_is_a_problem_too(served: Served) -> None:
    graph = chain(GraphNode(id="say", operator="answer", sampling=Sampling(temperature=3)))
    told = (await stub(served).ValidateGraph(pb.ValidateGraphRequest(graph=graph))).problems
    assert [problem.kind for problem in told] == [Kind.GRAPH_PROBLEM_KIND_OUT_OF_RANGE]


async def test_tools_are_looked_up_where_an_agent_is_named(served: Served) -> None:  # C125
    graph = chain(GraphNode(id="act", operator="act", tools=["files_read"]), ANSWER)
    request = pb.ValidateGraphRequest(graph=graph)
    assert not (await stub(served).ValidateGraph(request)).problems
    await served.client.agents.create(Agent(id="bare"))
    told = (await stub(served).ValidateGraph(pb.ValidateGraphRequest(graph=graph, agent_id="bare"))).problems
    assert {(problem.kind, problem.node) for problem in told} == {(Kind.GRAPH_PROBLEM_KIND_UNDECLARED_TOOL, "act")}
    async with serve(tools=tools) as other:
        await other.client.agents.create(Agent(id="able", tools=["files_*"]))
        request = pb.ValidateGraphRequest(graph=graph, agent_id="able")
        assert not (await stub(other).ValidateGraph(request)).problems
    unknown = await rejection(stub(served).ValidateGraph(pb.ValidateGraphRequest(graph=graph, agent_id="none")))
    assert unknown.reason == "AGENT_NOT_FOUND"


# --- fields ---


def creating(**fields: Any) -> pb.CreateGraphRequest:
    return pb.CreateGraphRequest(graph=simple(**fields))


BAD = [
    ("CreateGraph", pb.CreateGraphRequest(), "graph"),
    ("CreateGraph", pb.CreateGraphRequest(graph=simple(), request_id="é"), "request_id"),
    ("CreateGraph", creating(id="a b"), "graph.id"),
    ("CreateGraph", creating(display_name="x" * 129), "graph.display_name"),
    ("CreateGraph", creating(labels={"": "x"}), "graph.labels"),
    ("CreateGraph", creating(termination=Termination(timeout=Duration(seconds=-1))), "graph.termination.timeout"),
    (
        "CreateGraph",
        pb.CreateGraphRequest(graph=chain(GraphNode(id="say", operator="answer", sampling=Sampling(temperature=3)))),
        "graph.nodes[0].sampling.temperature",
    ),
    (
        "CreateGraph",
        pb.CreateGraphRequest(graph=inner(GraphNode(id="say", operator="answer", timeout=Duration(nanos=-1)))),
        "graph.nodes[0].subgraph.nodes[0].timeout",
    ),
    ("GetGraph", pb.GetGraphRequest(), "graph_id"),
    ("GetGraph", pb.GetGraphRequest(graph_id="a", version=-1), "version"),
    ("ListGraphs", pb.ListGraphsRequest(page_size=-1), "page_size"),
    ("ListGraphs", pb.ListGraphsRequest(page_token="x"), "page_token"),
    ("ListGraphs", pb.ListGraphsRequest(labels={"": "x"}), "labels"),
    ("UpdateGraph", pb.UpdateGraphRequest(), "graph"),
    ("UpdateGraph", pb.UpdateGraphRequest(graph=simple()), "graph.id"),
    ("UpdateGraph", pb.UpdateGraphRequest(graph=simple(id="a"), expected_version=-1), "expected_version"),
    *(
        ("UpdateGraph", pb.UpdateGraphRequest(graph=simple(id="a"), update_mask=FieldMask(paths=[path])), "update_mask")
        for path in ("id", "version", "create_time", "nothing", "nodes.id")
    ),
    ("ListOperators", pb.ListOperatorsRequest(page_size=-1), "page_size"),
    ("ListStrategies", pb.ListStrategiesRequest(page_token="x"), "page_token"),
    ("DeleteGraph", pb.DeleteGraphRequest(), "graph_id"),
    ("ValidateGraph", pb.ValidateGraphRequest(), "graph"),
    ("ValidateGraph", pb.ValidateGraphRequest(graph=simple(), agent_id="/"), "agent_id"),
    ("MakeGraph", pb.MakeGraphRequest(), "strategy"),
    ("MakeGraph", pb.MakeGraphRequest(strategy=StrategyChoice()), "strategy.name"),
    ("PreviewNode", pb.PreviewNodeRequest(), "graph"),
    ("PreviewNode", pb.PreviewNodeRequest(graph=simple()), "node"),
    ("PreviewNode", pb.PreviewNodeRequest(graph=simple(), node="say"), "task"),
]


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    BAD,
    ids=[f"{number}-{method}-{field}" for number, (method, _, field) in enumerate(BAD)],
)
async def test_a_bad_field_is_named_and_nothing_is_written(
    method: str, request_: Any, field: str, served: Served
) -> None:
    before = writes(served)
    error = await rejection(getattr(stub(served), method)(request_))
    assert (error.code, error.field) == (INVALID, field)
    assert error.reason in ("REQUEST_INVALID", "REQUEST_PAGE_TOKEN_INVALID")
    assert writes(served) == before


async def test_a_graph_over_its_size_is_refused(served: Served) -> None:
    huge = simple()
    huge.nodes[0].prompt = "x" * 1024 * 1024
    error = await rejection(create(served, huge))
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
    error = await rejection(create(served, simple(description="x" * 4097)))
    assert (error.reason, error.field) == ("REQUEST_TOO_LARGE", "graph.description")


# --- previews ---


def texts(response: pb.PreviewNodeResponse) -> dict[int, str]:
    return {message.role: message.parts[0].text.text for message in response.messages}


async def test_a_preview_shows_what_the_model_of_a_node_would_be_told(served: Served) -> None:
    graph = inner(GraphNode(id="deep", operator="plan", instructions="Be quick.", prompt="Plan it."), ANSWER)
    task = Task(
        goal=Goal(description="count the stars"),
        context=TaskContext(facts=[Fact(text="there are many")], domain="astronomy"),
    )
    shown = await stub(served).PreviewNode(pb.PreviewNodeRequest(graph=graph, node="in/deep", task=task))
    told = texts(shown)
    assert "Be quick." in told[Role.ROLE_SYSTEM]
    for text in ("count the stars", "there are many", "astronomy", "Plan it."):
        assert text in told[Role.ROLE_USER]
    assert "steps" in shown.reply_schema_json


async def test_the_preview_of_an_operator_that_is_a_tool_is_what_the_tool_gets(served: Served) -> None:
    own = Operator(name="own", tool="counter", target=ReplyTarget.REPLY_TARGET_ARTIFACT)
    graph = chain(GraphNode(id="count", operator="own"), ANSWER, operators=[own])
    shown = await stub(served).PreviewNode(pb.PreviewNodeRequest(graph=graph, node="count", task=TASK))
    assert list(texts(shown)) == [Role.ROLE_USER]
    assert "count the stars" in texts(shown)[Role.ROLE_USER]
    assert not shown.reply_schema_json


@pytest.mark.parametrize("node", ["none", "in", "deep", "in/none"])
async def test_a_node_that_asks_nobody_has_no_preview(node: str, served: Served) -> None:
    graph = inner(GraphNode(id="deep", operator="plan"), ANSWER)
    error = await rejection(stub(served).PreviewNode(pb.PreviewNodeRequest(graph=graph, node=node, task=TASK)))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "REASONING_NODE_NOT_FOUND")


async def test_a_graph_that_is_not_valid_has_no_preview(served: Served) -> None:
    request = pb.PreviewNodeRequest(graph=chain(GraphNode(id="a", operator="plan")), node="a", task=TASK)
    assert (await rejection(stub(served).PreviewNode(request))).reason == "REASONING_GRAPH_INVALID"


# --- agents that name them ---


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"graph_id": "none"}, "agent.graph_id", id="no such graph"),
        pytest.param({"graph_id": "a b"}, "agent.graph_id", id="no id"),
        pytest.param({"graph_id": "a", "strategy": "react"}, "agent.strategy", id="both"),
        pytest.param({"strategy_parameters": {"a": "1"}}, "agent.strategy_parameters", id="no strategy"),
        pytest.param(
            {"strategy": "react", "strategy_parameters": {"no_such": "1"}},
            "agent.strategy_parameters[no_such]",
            id="no such parameter",
        ),
    ],
)
async def test_an_agent_names_a_graph_that_is_there_or_a_strategy(
    fields: dict[str, Any], field: str, served: Served
) -> None:
    error = await rejection(
        served.client.stubs.agents.CreateAgent(agents.CreateAgentRequest(agent=Agent(id="x", **fields)))
    )
    assert (error.reason, error.field) == ("REQUEST_INVALID", field)


async def test_an_agent_may_name_a_strategy_or_a_graph_that_is_kept(stored: Served) -> None:
    await create(stored, simple(id="a"))
    one = await stored.client.agents.create(Agent(id="one", graph_id="a"))
    two = await stored.client.agents.create(Agent(id="two", strategy="react"))
    assert (one.graph_id, two.strategy) == ("a", "react")
    mask = FieldMask(paths=["strategy", "graph_id", "strategy_parameters"])
    changed = Agent(id="two", strategy="debate", strategy_parameters={"rounds": "1"})
    request = agents.UpdateAgentRequest(agent=changed, update_mask=mask)
    two = (await stored.client.stubs.agents.UpdateAgent(request)).agent
    assert (two.strategy, dict(two.strategy_parameters)) == ("debate", {"rounds": "1"})
    changed.strategy_parameters["rounds"] = "99"
    request = agents.UpdateAgentRequest(agent=changed, update_mask=mask)
    error = await rejection(stored.client.stubs.agents.UpdateAgent(request))
    assert error.field == "agent.strategy_parameters[rounds]"
    await stub(stored).DeleteGraph(pb.DeleteGraphRequest(graph_id="a"))
    gone = await refused(stored.client.run("/say hello", agent_id="one"))
    assert gone.reason == "REASONING_GRAPH_NOT_FOUND"
