"""What a run of a graph is pinned to when it is ordered, and what no run is pinned to, through a daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from behest.v1 import context_service_pb2 as contexts
from behest.v1 import reasoning_service_pb2 as pb
from behest.v1 import run_service_pb2 as runs
from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind
from behest.v1.definition_pb2 import Budgets, Limits, RunDefinition
from behest.v1.graph_pb2 import Graph, GraphNode, StrategyChoice, Termination
from behest.v1.message_pb2 import ImagePart, JsonPart, Part, TextPart
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.task_pb2 import (
    Constraint,
    Fact,
    Goal,
    Observation,
    Plan,
    PlanStep,
    Provenance,
    Task,
    TaskArtifact,
    TaskArtifactKind,
    TaskContext,
    TaskMetadata,
)
from behestd.core import structured
from behestd.core.definition import GRAPH_STEPS
from behestd.providers.catalog import Weighted, snapshot
from behestd.providers.scripted import Scripted
from tests.daemons import Served, rejection, serve
from tests.reasoning.house import Queued, chain, queue, read, said, simple
from tests.service.test_agents import tools

ANSWER = GraphNode(id="say", operator="answer")
JSON_SCHEMA = ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA
SCHEMA = '{"type": "object", "properties": {"stars": {"type": "integer"}}, "required": ["stars"]}'
OWN = Operator(name="own", prompt="Do it your way.", target=ReplyTarget.REPLY_TARGET_STEP)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A daemon whose runs need not come to an end."""
    async with serve(drain_seconds=0.0) as made:
        yield made


@pytest.fixture(params=["memory", "sqlite"])
async def stored(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """Such a daemon on each store in turn."""
    async with serve(request.param, drain_seconds=0.0) as made:
        yield made


async def refusal(served: Served, spec: RunSpec) -> Any:
    """What a run was refused with."""
    return await rejection(served.client.stubs.runs.CreateRun(runs.CreateRunRequest(spec=spec)))


async def keep(served: Served, graph: Graph) -> Graph:
    """Create a graph."""
    return (await served.client.stubs.reasoning.CreateGraph(pb.CreateGraphRequest(graph=graph))).graph


async def update(served: Served, graph: Graph) -> None:
    """Update a graph."""
    await served.client.stubs.reasoning.UpdateGraph(pb.UpdateGraphRequest(graph=graph))


def nodes_of(pinned: Queued) -> list[str]:
    """The ids of the nodes of the graph that a run is pinned to."""
    return [node.id for node in pinned.definition.graph.nodes]


# --- which graph ---


async def test_a_run_without_a_graph_is_pinned_to_none(served: Served) -> None:
    pinned = await queue(served, said())
    assert not pinned.definition.HasField("graph")
    assert not pinned.definition.node_models
    assert not pinned.created.HasField("task")


async def test_a_run_is_pinned_to_the_graph_in_its_order(stored: Served) -> None:  # C131
    pinned = await queue(stored, said(graph=simple(display_name="two")))
    assert nodes_of(pinned) == ["think", "say"]
    assert pinned.definition.graph.display_name == "two"


async def test_a_run_is_pinned_to_a_version_of_a_graph_that_is_kept(stored: Served) -> None:  # C131
    await keep(stored, simple(id="a", labels={"x": "y"}))
    await update(stored, chain(ANSWER, id="a"))
    newest, first = [await queue(stored, said(graph_id="a", graph_version=version)) for version in (0, 1)]
    assert (nodes_of(newest), newest.definition.graph.version) == (["say"], 2)
    assert (nodes_of(first), first.definition.graph.version) == (["think", "say"], 1)
    assert not first.definition.graph.labels
    await stored.client.stubs.reasoning.DeleteGraph(pb.DeleteGraphRequest(graph_id="a"))
    await keep(stored, chain(GraphNode(id="other", operator="answer"), id="a"))
    assert nodes_of(await queue(stored, said(graph_id="a"))) == ["other"]


async def test_a_run_is_pinned_to_the_graph_of_a_strategy(served: Served) -> None:  # C130
    choice = StrategyChoice(name="plan_and_solve")
    made = await served.client.stubs.reasoning.MakeGraph(pb.MakeGraphRequest(strategy=choice))
    pinned = await queue(served, said(strategy=choice))
    assert nodes_of(pinned) == [node.id for node in made.graph.nodes]


async def test_an_agent_s_graph_and_strategy_are_its_runs_unless_they_name_another(served: Served) -> None:
    await keep(served, chain(ANSWER, id="a"))
    await served.client.agents.create(Agent(id="one", graph_id="a"))
    await served.client.agents.create(Agent(id="two", strategy="plan_and_solve"))
    assert nodes_of(await queue(served, said(agent_id="one"))) == ["say"]
    assert len(nodes_of(await queue(served, said(agent_id="two")))) > 1
    assert nodes_of(await queue(served, said(agent_id="two", graph=simple()))) == ["think", "say"]
    await update(served, simple(id="a"))
    assert nodes_of(await queue(served, said(agent_id="one"))) == ["think", "say"]


CHOICE = StrategyChoice(name="react")
BAD: Mapping[str, tuple[dict[str, Any], str]] = {
    "graph and strategy": ({"graph": simple(), "strategy": CHOICE}, "spec.strategy"),
    "id and graph": ({"graph_id": "a", "graph": simple()}, "spec.graph"),
    "no id": ({"graph_id": "a b"}, "spec.graph_id"),
    "version of nothing": ({"graph_version": 1}, "spec.graph_version"),
    "negative version": ({"graph_id": "a", "graph_version": -1}, "spec.graph_version"),
    "no name": ({"strategy": StrategyChoice()}, "spec.strategy.name"),
    "parameter": ({"strategy": StrategyChoice(name="react", parameters={"x": "1"})}, "spec.strategy.parameters[x]"),
    "graph with labels": ({"graph": simple(labels={"": "x"})}, "spec.graph.labels"),
    "task of no graph": ({"task": Task(goal=Goal(description="x"))}, "spec.task"),
}


@pytest.mark.parametrize(("fields", "field"), BAD.values(), ids=BAD)
async def test_a_bad_field_of_an_order_is_named(fields: dict[str, Any], field: str, served: Served) -> None:
    error = await refusal(served, said(**fields))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")
    assert error.field == field


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"graph_id": "none"}, "REASONING_GRAPH_NOT_FOUND", id="graph"),
        pytest.param({"strategy": StrategyChoice(name="none")}, "REASONING_STRATEGY_NOT_FOUND", id="strategy"),
        pytest.param({"graph": Graph()}, "REASONING_GRAPH_INVALID", id="invalid"),
    ],
)
async def test_no_run_follows_what_is_not_there_or_not_valid(fields: Any, reason: str, served: Served) -> None:  # C125
    assert (await refusal(served, said(**fields))).reason == reason


async def test_a_repeated_order_is_the_same_run_and_another_graph_is_another_order(stored: Served) -> None:
    stub = stored.client.stubs.runs
    first = await queue(stored, said(graph=simple()), request_id="r1")
    spec = said(graph=simple(), session_id=first.run.session_id)
    again = await stub.CreateRun(runs.CreateRunRequest(spec=spec, request_id="r1"))
    assert (again.run.id, again.replayed) == (first.run.id, True)
    for fields in ({"graph": chain(ANSWER)}, {"strategy": CHOICE}, {"graph": simple(), "task": Task(goal=Goal())}):
        other = said(session_id=first.run.session_id, **fields)
        error = await rejection(stub.CreateRun(runs.CreateRunRequest(spec=other, request_id="r1")))
        assert error.reason == "REQUEST_ID_REUSED"


# --- operators, tools ---


async def test_the_operators_that_nodes_name_are_pinned_and_no_others(served: Served) -> None:
    deep = chain(GraphNode(id="p", operator="plan"), GraphNode(id="o", operator="own"), ANSWER, operators=[OWN])
    unused = Operator(name="unused", prompt="x", target=ReplyTarget.REPLY_TARGET_STEP)
    graph = chain(GraphNode(id="in", subgraph=deep), GraphNode(id="r", operator="reason"), ANSWER, operators=[unused])
    pinned = (await queue(served, said(graph=graph))).definition.graph
    assert [operator.name for operator in pinned.operators] == ["answer", "own", "plan", "reason"]
    assert OWN in pinned.operators
    assert [operator.name for operator in pinned.nodes[0].subgraph.operators] == ["answer", "own", "plan"]


async def test_an_operator_of_a_graph_stands_in_the_place_of_one_that_every_graph_has(served: Served) -> None:  # C124
    mine = Operator(name="plan", prompt="Mine.", target=ReplyTarget.REPLY_TARGET_STEP)
    graph = chain(GraphNode(id="p", operator="plan"), ANSWER, operators=[mine])
    pinned = (await queue(served, said(graph=graph))).definition.graph
    assert mine in pinned.operators


async def test_globs_of_tools_become_names() -> None:
    async with serve(tools=tools, drain_seconds=0.0) as served:
        nodes = [GraphNode(id="a", operator="act", tools=["file*", "send"]), GraphNode(id="b", operator="act"), ANSWER]
        pinned = (await queue(served, said(graph=chain(*nodes)))).definition
        assert [tool.name for tool in pinned.tools] == ["files_read", "send"]
        assert list(pinned.graph.nodes[0].tools) == ["files_read", "send"]
        assert not pinned.graph.nodes[1].tools
        inner = chain(
            GraphNode(id="in", subgraph=chain(GraphNode(id="a", operator="act", tools=["s*"]), ANSWER)), ANSWER
        )
        pinned = (await queue(served, said(graph=inner))).definition
        assert list(pinned.graph.nodes[0].subgraph.nodes[0].tools) == ["send"]


TOOLLESS = {
    "name": GraphNode(id="a", operator="act", tools=["none"]),
    "glob": GraphNode(id="a", operator="act", tools=["none_*"]),
    "outside of the agent's": GraphNode(id="a", operator="act", tools=["send"]),
    "operator": GraphNode(id="a", operator="own"),
}


@pytest.mark.parametrize("node", TOOLLESS.values(), ids=TOOLLESS)
async def test_a_node_that_names_a_tool_that_the_run_has_not_is_refused(node: GraphNode) -> None:  # C125
    own = Operator(name="own", tool="send", target=ReplyTarget.REPLY_TARGET_STEP)
    async with serve(tools=tools, drain_seconds=0.0) as served:
        await served.client.agents.create(Agent(id="reader", tools=["files_*"]))
        graph = chain(node, ANSWER, operators=[own])
        error = await refusal(served, said(graph=graph, agent_id="reader"))
        assert (error.reason, error.field) == ("REASONING_GRAPH_INVALID", "spec.graph.nodes[a]")


async def test_an_operator_that_needs_tools_is_refused_where_there_are_none(served: Served) -> None:  # C125
    error = await refusal(served, said(graph=chain(GraphNode(id="a", operator="act"), ANSWER)))
    assert error.reason == "REASONING_GRAPH_INVALID"


async def test_an_operator_whose_tool_does_not_take_the_task_is_refused() -> None:  # C122
    own = Operator(name="own", tool="send", target=ReplyTarget.REPLY_TARGET_STEP)
    graph = chain(GraphNode(id="a", operator="own"), ANSWER, operators=[own])
    inner = chain(GraphNode(id="in", subgraph=graph), ANSWER)
    async with serve(tools=tools, drain_seconds=0.0) as served:
        for made, node in ((graph, "a"), (inner, "in/a")):
            error = await refusal(served, said(graph=made))
            assert (error.reason, error.field) == ("REASONING_GRAPH_INVALID", f"spec.graph.nodes[{node}]")


# --- models ---


async def test_models_of_nodes_become_endpoints_with_their_prices_and_limits() -> None:
    models = snapshot(
        [Scripted()],
        default_model="scripted/echo",
        aliases={"dear": "scripted/priced", "any": [Weighted("scripted/small", 1)]},
    )
    async with serve(models=models, drain_seconds=0.0) as served:
        nodes = [
            GraphNode(id="a", operator="plan", model="dear"),
            GraphNode(id="b", operator="reason", model="scripted/priced"),
            GraphNode(id="c", operator="reason", model="any"),
            GraphNode(id="d", subgraph=chain(GraphNode(id="e", operator="answer", model="scripted/text-only"))),
            ANSWER,
        ]
        pinned = (await queue(served, said(graph=chain(*nodes)))).definition
        named = [node.model for node in pinned.graph.nodes]
        assert named == ["scripted/priced", "scripted/priced", "scripted/small", "", ""]
        assert pinned.graph.nodes[3].subgraph.nodes[0].model == "scripted/text-only"
        assert list(pinned.models) == ["scripted/echo"]
        facts = {model.endpoint: model for model in pinned.node_models}
        assert list(facts) == ["scripted/priced", "scripted/small", "scripted/text-only"]
        assert facts["scripted/priced"].price.output_micro_usd == 2_000_000
        assert facts["scripted/small"].limits.context_window_tokens == 4_096
        assert [model.is_emulating for model in facts.values()] == [False, False, True]


@pytest.mark.parametrize(
    ("model", "reason"),
    [("scripted/none", "PROVIDER_MODEL_NOT_FOUND"), ("none/none", "PROVIDER_NOT_FOUND")],
)
async def test_an_unknown_model_of_a_node_is_refused_as_unknown_models_are(
    model: str, reason: str, served: Served
) -> None:
    graph = chain(GraphNode(id="say", operator="answer", model=model))
    assert (await refusal(served, said(graph=graph))).reason == reason
    assert (await refusal(served, said(model=model))).reason == reason


async def test_a_model_that_calls_no_tools_is_refused_for_nodes_that_do_and_taken_for_others() -> None:
    async with serve(tools=tools, drain_seconds=0.0) as served:
        acting = chain(GraphNode(id="a", operator="act"), ANSWER)
        error = await refusal(served, said(graph=acting, model="scripted/text-only"))
        assert error.reason == "PROVIDER_CAPABILITY_MISSING"
        acting.nodes[0].model = "scripted/text-only"
        assert (await refusal(served, said(graph=acting))).reason == "PROVIDER_CAPABILITY_MISSING"
        acting.nodes[0].model = "scripted/echo"
        pinned = (await queue(served, said(graph=acting, model="scripted/text-only"))).definition
        assert list(pinned.models) == ["scripted/text-only"]
        assert list(pinned.emulating_models) == ["scripted/text-only"]


def test_a_model_is_told_a_form_only_where_there_is_one() -> None:
    text = RunDefinition(instructions="Be brief.", emulating_models=["a/b"])
    assert structured.instructions(text, "a/b") == "Be brief."


# --- limits, forms ---


async def test_what_ends_a_graph_lowers_the_limits_of_its_run(served: Served) -> None:  # C128
    end = Termination(max_total_tokens=500, max_cost_micro_usd=9, timeout=Duration(seconds=60))
    pinned = await queue(served, said(graph=simple(termination=end)))
    limits = pinned.definition.limits
    assert (limits.max_total_tokens, limits.max_cost_micro_usd, limits.timeout.seconds) == (500, 9, 60)
    assert pinned.created.timeout.seconds == 60
    agent = Agent(id="tight", limits=Limits(max_total_tokens=100, max_cost_micro_usd=5, timeout=Duration(seconds=7)))
    await served.client.agents.create(agent)
    limits = (await queue(served, said(graph=simple(termination=end), agent_id="tight"))).definition.limits
    assert (limits.max_total_tokens, limits.max_cost_micro_usd, limits.timeout.seconds) == (100, 5, 7)


async def test_a_run_of_a_graph_has_as_many_steps_as_its_agent_says_and_else_many(served: Served) -> None:
    pinned = await queue(served, said(graph=simple(), budgets=Budgets(max_steps=7)))
    assert pinned.definition.limits.max_steps == GRAPH_STEPS
    assert not pinned.definition.limits.HasField("max_tool_calls")
    assert pinned.created.budgets.max_steps == 7
    await served.client.agents.create(Agent(id="brief", limits=Limits(max_steps=3)))
    assert (await queue(served, said(graph=simple(), agent_id="brief"))).definition.limits.max_steps == 3


@pytest.mark.parametrize(
    ("fields", "schema"),
    [
        pytest.param({"output_schema_json": SCHEMA}, SCHEMA, id="schema"),
        pytest.param(
            {"response_format": ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT)},
            '{"type": "object"}',
            id="object",
        ),
    ],
)
async def test_the_form_of_the_answer_is_that_of_the_nodes_that_answer(
    fields: dict[str, Any], schema: str, served: Served
) -> None:
    inner = chain(GraphNode(id="deep", operator="answer"))
    graph = chain(GraphNode(id="think", operator="reason"), GraphNode(id="in", subgraph=inner), ANSWER)
    pinned = (await queue(served, said(graph=graph, **fields))).definition
    assert [node.reply_schema_json for node in pinned.graph.nodes] == ["", "", schema]
    assert not pinned.graph.nodes[1].subgraph.nodes[0].reply_schema_json
    assert not pinned.HasField("response_format")


async def test_a_node_that_answers_in_a_form_of_its_own_keeps_it(served: Served) -> None:
    own = '{"type": "object"}'
    graph = chain(GraphNode(id="say", operator="answer", reply_schema_json=own))
    await served.client.agents.create(
        Agent(id="strict", response_format=ResponseFormat(kind=JSON_SCHEMA, schema_json=SCHEMA))
    )
    pinned = (await queue(served, said(graph=graph, agent_id="strict"))).definition
    assert pinned.graph.nodes[0].reply_schema_json == own


async def test_runs_of_one_graph_share_a_definition_and_others_do_not(served: Served) -> None:
    first = await queue(served, said(graph=simple()))
    second = await queue(served, said("/say other", graph=simple()))
    third = await queue(served, said(graph=simple(display_name="third")))
    hashes = [pinned.run.definition_hash for pinned in (first, second, third)]
    assert hashes[0] == hashes[1] != hashes[2]


async def test_a_large_graph_is_pinned_anew_for_each_run(served: Served) -> None:
    large = chain(*(GraphNode(id=f"n{number}", operator="reason") for number in range(1_500)), ANSWER)
    for node in large.nodes:
        node.prompt = "think about one more side of it"
    first, second = await queue(served, said(graph=large)), await queue(served, said(graph=large))
    assert first.definition == second.definition
    assert first.definition.ByteSize() > 64 * 1024


# --- the task ---


async def test_an_order_s_text_is_the_goal(served: Served) -> None:  # C120
    pinned = await queue(served, said("count the stars", graph=simple()))
    assert pinned.created.task == Task(goal=Goal(description="count the stars"))
    assert pinned.created.input.parts[0].text.text == "count the stars"


async def test_an_order_s_text_is_what_is_worked_on_where_the_task_has_a_goal(served: Served) -> None:  # C120
    task = Task(goal=Goal(description="count"), constraints=[Constraint(text="be quick")])
    pinned = await queue(served, said("a b c", graph=simple(), task=task))
    expected = Task()
    expected.CopyFrom(task)
    expected.context.input = "a b c"
    assert pinned.created.task == expected
    task.context.input = "d e f"
    assert (await queue(served, said("a b c", graph=simple(), task=task))).created.task == task


async def test_json_is_text_too_and_an_image_is_not_taken(served: Served) -> None:
    parts = [Part(text=TextPart(text="count")), Part(json=JsonPart(json='{"a": 1}'))]
    pinned = await queue(served, RunSpec(input=parts, graph=simple()))
    assert pinned.created.task.goal.description == 'count\n{"a": 1}'
    parts.append(Part(image=ImagePart(uri="http://127.0.0.1/x.png", media_type="image/png")))
    assert (await refusal(served, RunSpec(input=parts, graph=simple()))).field == "spec.input[2]"


async def test_what_a_task_brings_along_counts_as_given(served: Served) -> None:  # C120
    source = Provenance(node="elsewhere", visit=3)
    task = Task(
        goal=Goal(description="count"),
        context=TaskContext(facts=[Fact(text="f", provenance=source)], input="x"),
        plan=Plan(steps=[PlanStep(description="p")], provenance=source),
        observations=[Observation(content=text, sequence=7, provenance=source) for text in "ab"],
        artifacts=[TaskArtifact(kind=TaskArtifactKind.TASK_ARTIFACT_KIND_TEXT, content="c", provenance=source)],
        metadata=TaskMetadata(iteration=9),
    )
    made = (await queue(served, said(graph=simple(), task=task))).created.task
    assert [observation.sequence for observation in made.observations] == [1, 2]
    assert not made.HasField("metadata")
    entries = [*made.context.facts, made.plan, *made.observations, *made.artifacts]
    assert not any(entry.HasField("provenance") for entry in entries)


TASKS: Mapping[str, tuple[Task, str, str]] = {
    "goal": (Task(goal=Goal(description="x" * 65_537)), "spec.task.goal.description", "REQUEST_TOO_LARGE"),
    "input": (
        Task(goal=Goal(description="x"), context=TaskContext(input="x" * 262_145)),
        "spec.task.context.input",
        "REQUEST_TOO_LARGE",
    ),
    "criteria": (
        Task(goal=Goal(description="x", success_criteria=["c"] * 65)),
        "spec.task.goal.success_criteria",
        "REQUEST_INVALID",
    ),
    "constraint": (
        Task(constraints=[Constraint(text="x" * 4_097)]),
        "spec.task.constraints[0].text",
        "REQUEST_TOO_LARGE",
    ),
    "no constraint": (Task(constraints=[Constraint()]), "spec.task.constraints[0].text", "REQUEST_INVALID"),
    "strength": (
        Task(constraints=[Constraint(text="x", strength=9)]),  # type: ignore[arg-type]  # no strength
        "spec.task.constraints[0].strength",
        "REQUEST_INVALID",
    ),
    "status": (
        Task(plan=Plan(steps=[PlanStep(status=9)])),  # type: ignore[arg-type]  # no status
        "spec.task.plan.steps[0].status",
        "REQUEST_INVALID",
    ),
    "answer": (
        Task(artifacts=[TaskArtifact(kind=TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER, content="42")]),
        "spec.task.artifacts[0].kind",
        "REQUEST_INVALID",
    ),
    "size": (Task(context=TaskContext(facts=[Fact(text="x" * 1_100_000)])), "spec.task", "REQUEST_TOO_LARGE"),
}  # fmt: skip


@pytest.mark.parametrize(("task", "field", "reason"), TASKS.values(), ids=TASKS)
async def test_a_task_that_no_run_is_to_start_from_is_refused(
    task: Task, field: str, reason: str, served: Served
) -> None:
    error = await refusal(served, said(graph=simple(), task=task))
    assert (error.field, error.reason) == (field, reason)


async def test_an_order_that_is_too_long_for_a_goal_is_refused(served: Served) -> None:
    error = await refusal(served, said("x" * 65_537, graph=simple()))
    assert (error.field, error.reason) == ("spec.task.goal.description", "REQUEST_TOO_LARGE")


# --- forks, previews ---


async def test_a_fork_follows_the_graph_that_its_source_was_pinned_to(served: Served) -> None:
    await keep(served, chain(GraphNode(id="o", operator="own"), ANSWER, id="a", operators=[OWN]))
    source = await queue(served, said("count", graph_id="a"))
    await update(served, chain(ANSWER, id="a"))
    made = await fork(served, source, RunSpec())
    assert made.definition.graph == source.definition.graph
    assert made.created.task == source.created.task
    again = await fork(served, made, RunSpec())
    assert again.run.definition_hash == made.run.definition_hash


async def test_a_fork_may_have_a_graph_and_a_task_of_its_own(served: Served) -> None:
    source = await queue(served, said("count", graph=simple()))
    made = await fork(served, source, RunSpec(graph=chain(ANSWER)))
    assert nodes_of(made) == ["say"]
    assert made.created.task == source.created.task
    task = Task(goal=Goal(description="other"))
    made = await fork(served, source, RunSpec(task=task))
    assert (nodes_of(made), made.created.task) == (["think", "say"], task)


async def test_what_a_fork_says_takes_the_place_of_what_its_source_said(served: Served) -> None:
    source = await queue(served, said("count", graph=simple()))
    made = await fork(served, source, said("count again"))
    assert made.created.task == Task(goal=Goal(description="count again"))
    task = Task(goal=Goal(description="count"))
    source = await queue(served, said("a b", graph=simple(), task=task))
    made = await fork(served, source, said("c d"))
    assert (made.created.task.goal.description, made.created.task.context.input) == ("count", "c d")


async def test_a_visit_that_is_not_there_is_not_forked_from(served: Served) -> None:
    source = await queue(served, said("count", graph=simple()))
    stub = served.client.stubs.runs
    call = stub.ForkRun(runs.ForkRunRequest(source_run_id=source.run.id, visit=9, spec=RunSpec()))
    error = await rejection(call)
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "REASONING_NODE_NOT_FOUND")
    for fields in ({"visit": -1}, {"visit": 1, "sequence": 1}):
        call = stub.ForkRun(runs.ForkRunRequest(source_run_id=source.run.id, spec=RunSpec(), **fields))
        assert (await rejection(call)).field == "visit"


async def fork(served: Served, source: Queued, spec: RunSpec) -> Queued:
    """Fork a run into a session that is busy."""
    busy = await served.client.run("/delay 600000 /say never", agent_id="default")
    behind = RunSpec(session_id=(await busy.get()).session_id)
    behind.MergeFrom(spec)
    request = runs.ForkRunRequest(source_run_id=source.run.id, spec=behind)
    return await read(served, (await served.client.stubs.runs.ForkRun(request)).run)


async def test_the_context_of_a_run_of_a_graph_is_shown_node_by_node(served: Served) -> None:
    request = contexts.BuildContextRequest(spec=said(graph=simple()))
    error = await rejection(served.client.stubs.context.BuildContext(request))
    assert (error.reason, error.field) == ("REQUEST_INVALID", "spec")
