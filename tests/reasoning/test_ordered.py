"""Runs of graphs as clients order them: with operators of their own, as child runs, forked, exported, cancelled."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from behest.v1 import reasoning_service_pb2 as pb
from behest.v1 import run_service_pb2 as runs
from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind
from behest.v1.definition_pb2 import PermissionAction, PermissionRule, RunDefinition
from behest.v1.event_pb2 import Event
from behest.v1.graph_pb2 import Graph, GraphNode, GraphProblemKind, StrategyChoice
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behest.v1.run_pb2 import Run
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.run_state_pb2 import RunState
from behest.v1.task_pb2 import TaskArtifactKind
from behestd.context.catalog import Sources
from behestd.planning.context import Registry
from behestd.tools.catalog import Catalog
from behestd.tools.function import load
from behestd.tools.schema import Validators
from tests.daemons import Served, refused, serve
from tests.data.test_files import changed
from tests.reasoning.house import chain, said
from tests.runs.scenes import events_of
from tests.service.test_agents import ALLOW

PATIENCE_SECONDS = 30.0
DATA = TaskArtifactKind.TASK_ARTIFACT_KIND_DATA
LETTERS = {"type": "object", "properties": {"letters": {"type": "integer"}}, "required": ["letters"]}


def scripted(node_id: str, operator: str, script: str, **fields: Any) -> GraphNode:
    """A node whose model obeys a script."""
    return GraphNode(id=node_id, operator=operator, prompt=f"/begin {script} /end", **fields)


SAY = scripted("say", "answer", "/say the answer")


async def followed(served: Served, run_id: str) -> Run:
    """A run when it has ended."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for _ in served.client.watch(run_id).events():
            pass
    return (await served.client.stubs.runs.GetRun(runs.GetRunRequest(run_id=run_id))).run


async def ordered(served: Served, spec: RunSpec) -> Run:
    """Order a run and wait for its end."""
    made = await served.client.stubs.runs.CreateRun(runs.CreateRunRequest(spec=spec))
    return await followed(served, made.run.id)


def nodes_in(events: list[Event], kind: str) -> list[str]:
    """The nodes that events of a kind are of."""
    return [getattr(event, kind).node for event in events if event.HasField(kind)]  # type: ignore[arg-type]


def _with_id(graph: Graph, graph_id: str) -> Graph:
    named = Graph(id=graph_id)
    named.MergeFrom(graph)
    return named


# --- operators of one's own ---


def count(task: str) -> dict[str, int]:
    """Counts the letters of what is shown.

    And nothing else.
    """
    return {"letters": sum(character.isalpha() for character in task)}


def extended(*seen: Callable[[Registry], None]) -> Callable[[Validators], Catalog]:
    """The tools of a daemon with extensions."""

    def made(validators: Validators) -> Catalog:
        catalog = Catalog(validators)
        for register in seen:
            register(Registry(catalog, Sources()))
        return catalog

    return made


def counting(registry: Registry) -> None:
    """An extension."""
    registry.operator(count, reply_schema=LETTERS)


async def test_a_function_of_an_extension_is_an_operator_that_graphs_name() -> None:  # C124
    async with serve(tools=extended(counting), operator=ALLOW) as served:
        stub = served.client.stubs.reasoning
        [own] = [one for one in (await stub.ListOperators(pb.ListOperatorsRequest())).operators if one.name == "count"]
        assert (own.intent, own.tool, own.target) == (
            "Counts the letters of what is shown.",
            "count",
            ReplyTarget.REPLY_TARGET_ARTIFACT,
        )
        graph = chain(GraphNode(id="in", subgraph=chain(GraphNode(id="c", operator="count"), SAY)), SAY)
        kept = (await stub.CreateGraph(pb.CreateGraphRequest(graph=graph))).graph
        assert not kept.nodes[0].subgraph.operators
        await stub.CreateGraph(pb.CreateGraphRequest(graph=chain(GraphNode(id="c", operator="count"), SAY, id="flat")))
        run = await ordered(served, said("abc", graph_id="flat"))
        assert run.state == RunState.RUN_STATE_COMPLETED
        [artifact] = [one for one in run.reasoning.task.artifacts if one.kind == DATA]
        assert '"letters":' in artifact.content
        assert run.tool_calls == 1
        deep = await ordered(served, said("abc", graph_id=kept.id))
        assert (deep.state, deep.tool_calls) == (RunState.RUN_STATE_COMPLETED, 1)


async def test_an_operator_of_an_extension_is_called_under_the_run_s_permissions() -> None:  # C122, C124
    async with serve(tools=extended(counting)) as served:
        rule = PermissionRule(tool="count", action=PermissionAction.PERMISSION_ACTION_DENY)
        await served.client.agents.create(Agent(id="strict", tools=["*"], permissions=[rule]))
        graph = chain(GraphNode(id="c", operator="count"), SAY)
        run = await ordered(served, said("abc", graph=graph, agent_id="strict"))
        assert run.state == RunState.RUN_STATE_FAILED
        assert not run.reasoning.task.artifacts


async def test_an_operator_of_an_extension_needs_its_tool() -> None:  # C124
    async with serve(tools=extended(counting)) as served:
        await served.client.agents.create(Agent(id="bare"))
        graph = chain(GraphNode(id="c", operator="count"), SAY)
        request = pb.ValidateGraphRequest(graph=graph, agent_id="bare")
        told = (await served.client.stubs.reasoning.ValidateGraph(request)).problems
        kinds = {(problem.kind, problem.node) for problem in told}
        assert kinds == {(GraphProblemKind.GRAPH_PROBLEM_KIND_UNDECLARED_TOOL, "c")}


def test_extensions_are_loaded_from_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # C124
    code = "def shout(task: str) -> str:\n    return task.upper()\n"
    code += "def register(registry):\n    registry.operator(shout, target='step')\n"
    (tmp_path / "shouting.py").write_text(code)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    catalog = Catalog(Validators())
    registry = Registry(catalog, Sources())
    load(["shouting"], registry)
    registry.close()
    assert catalog.operators["shout"] == Operator(name="shout", tool="shout", target=ReplyTarget.REPLY_TARGET_STEP)


@pytest.mark.parametrize(
    "fields",
    [{"name": "plan"}, {"name": "Count"}, {"name": ""}, {"target": "nowhere"}],
    ids=["built in", "capital", "none of a lambda", "no target"],
)
def test_an_operator_that_cannot_be_is_refused(fields: dict[str, str]) -> None:
    registry = Registry(Catalog(Validators()), Sources())
    with pytest.raises(ValueError, match=r"name|target|TARGET"):
        registry.operator(lambda task: task, **fields)
    registry.close()


def test_an_operator_needs_a_parameter_for_the_task() -> None:
    registry = Registry(Catalog(Validators()), Sources())
    with pytest.raises(ValueError, match="task"):
        registry.operator(lambda text: text, name="own")
    registry.close()


async def test_an_operator_is_made_of_a_prompt_a_schema_and_a_target(served: Served) -> None:  # C124
    own = Operator(
        name="count_letters",
        prompt='/begin /json {"letters": 3} /end',
        reply_schema_json='{"type": "object", "properties": {"letters": {"type": "integer"}}, "required": ["letters"]}',
        target=ReplyTarget.REPLY_TARGET_ARTIFACT,
    )
    graph = chain(GraphNode(id="c", operator="count_letters"), SAY, operators=[own])
    run = await ordered(served, said("abc", graph=graph))
    assert (run.state, run.output.text) == (RunState.RUN_STATE_COMPLETED, "the answer")
    [artifact] = [one for one in run.reasoning.task.artifacts if one.kind == DATA]
    assert artifact.content == '{"letters": 3}'
    assert artifact.provenance.node == "c"


async def test_an_operator_is_a_tool_that_gets_the_task(served: Served) -> None:  # C124
    def tools(validators: Validators) -> Catalog:
        catalog = Catalog(validators)
        Registry(catalog, Sources()).tool(measure)
        return catalog

    def measure(task: str) -> str:
        """Tell what was shown."""
        return "seen: " + ("count the stars" if "count the stars" in task else "nothing")

    own = Operator(name="own", tool="measure", target=ReplyTarget.REPLY_TARGET_FACTS)
    async with serve(tools=tools, operator=ALLOW) as other:
        run = await ordered(
            other,
            said("count the stars", graph=chain(GraphNode(id="m", operator="own"), SAY, operators=[own])),
        )
        assert [fact.text for fact in run.reasoning.task.context.facts] == ["seen: count the stars"]


async def test_a_model_that_keeps_no_schema_is_told_the_form_and_another_node_is_not(served: Served) -> None:  # C123
    schema = '{"type": "object", "properties": {"letters": {"type": "integer"}}, "required": ["letters"]}'
    fields = {"model": "scripted/text-only"}
    graph = chain(
        scripted("text", "reason", "/dump", **fields),
        scripted("json", "generate", '/json {"letters": 3}', reply_schema_json=schema, **fields),
        SAY,
    )
    run = await ordered(served, said("abc", graph=graph))
    assert run.state == RunState.RUN_STATE_COMPLETED
    assert run.reasoning.task.artifacts[0].content == '{"letters": 3}'


async def test_an_answer_in_a_form_is_the_run_s_json(served: Served) -> None:
    form = '{"type": "object", "properties": {"stars": {"type": "integer"}}, "required": ["stars"]}'
    graph = chain(scripted("think", "reason", "/say so"), scripted("say", "answer", '/json {"stars": 3}'))
    run = await ordered(served, said("count", graph=graph, output_schema_json=form))
    assert (run.state, run.output.json) == (RunState.RUN_STATE_COMPLETED, '{"stars": 3}')
    assert not (await ordered(served, said("count", graph=graph))).output.json
    answer = ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA, schema_json=form)
    await served.client.stubs.reasoning.CreateGraph(pb.CreateGraphRequest(graph=_with_id(graph, "g")))
    await served.client.agents.create(Agent(id="inner", graph_id="g", response_format=answer))
    await served.client.agents.create(Agent(id="outer", sub_agents=["inner"]))
    order = '/tool agent_inner {"order": "count"} /next /say done'
    events = await events_of(served.client.watch((await ordered(served, said(order, agent_id="outer"))).id))
    [result] = [event.tool_completed.result for event in events if event.HasField("tool_completed")]
    assert result.parts[0].json.json == '{"stars": 3}'


# --- life ---


async def test_a_graph_is_created_validated_listed_run_looked_at_and_cancelled(stored: Served) -> None:  # C131
    stubs = stored.client.stubs
    graph = chain(scripted("think", "reason", "/say so"), scripted("wait", "reason", "/delay 600000 /say never"), SAY)
    graph.id = "slow"
    assert not (await stubs.reasoning.ValidateGraph(pb.ValidateGraphRequest(graph=graph))).problems
    await stubs.reasoning.CreateGraph(pb.CreateGraphRequest(graph=graph))
    listed = await stubs.reasoning.ListGraphs(pb.ListGraphsRequest())
    assert [found.id for found in listed.graphs] == ["slow"]
    stream = stubs.runs.StreamRun(runs.StreamRunRequest(spec=said("go", graph_id="slow")))
    started: list[str] = []
    run_id = ""
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for frame in stream:
            for event in frame.events:
                run_id = event.run_id
                started += [event.node_started.node] if event.HasField("node_started") else []
            if started == ["think", "wait"]:
                break
    seen = (await stubs.runs.GetRun(runs.GetRunRequest(run_id=run_id))).run
    assert [visit.started.node for visit in seen.reasoning.visits] == ["think", "wait"]
    assert seen.reasoning.task.reflections[0].content == "so"
    await stubs.runs.CancelRun(runs.CancelRunRequest(run_id=run_id))
    stream.cancel()
    assert (await followed(stored, run_id)).state == RunState.RUN_STATE_CANCELLED


async def test_a_child_run_of_an_agent_follows_its_graph(served: Served) -> None:
    stub = served.client.stubs.reasoning
    graph = chain(scripted("think", "reason", "/say so"), SAY)
    graph.id = "small"
    await stub.CreateGraph(pb.CreateGraphRequest(graph=graph))
    await served.client.agents.create(Agent(id="inner", graph_id="small"))
    await served.client.agents.create(Agent(id="outer", sub_agents=["inner"]))
    order = '/tool agent_inner {"order": "count the stars"} /next /say done'
    run = await ordered(served, said(order, agent_id="outer"))
    events = await events_of(served.client.watch(run.id))
    [child_id] = [event.child_run_started.child_run_id for event in events if event.HasField("child_run_started")]
    child = await followed(served, child_id)
    assert (child.state, child.output.text) == (RunState.RUN_STATE_COMPLETED, "the answer")
    first = (await events_of(served.client.watch(child_id)))[0]
    assert first.run_created.task.goal.description == "count the stars"
    assert nodes_in(await events_of(served.client.watch(child_id)), "node_completed") == ["think", "say"]


async def test_a_node_may_call_an_agent_that_follows_a_strategy(served: Served) -> None:
    await served.client.agents.create(Agent(id="inner", strategy="chain_of_thought"))
    await served.client.agents.create(Agent(id="outer", sub_agents=["inner"]))
    act = scripted("a", "act", '/tool agent_inner {"order": "count"}')
    run = await ordered(served, said("go", agent_id="outer", graph=chain(act, SAY)))
    events = await events_of(served.client.watch(run.id))
    [child_id] = [event.child_run_started.child_run_id for event in events if event.HasField("child_run_started")]
    assert nodes_in(await events_of(served.client.watch(child_id)), "node_started")
    assert run.state == RunState.RUN_STATE_COMPLETED


async def test_a_run_keeps_the_graph_that_it_was_pinned_to(served: Served) -> None:
    stub = served.client.stubs.reasoning
    graph = chain(scripted("think", "reason", "/delay 100 /say so"), SAY)
    graph.id = "g"
    await stub.CreateGraph(pb.CreateGraphRequest(graph=graph))
    made = await served.client.stubs.runs.CreateRun(runs.CreateRunRequest(spec=said(graph_id="g")))
    changed = chain(scripted("other", "answer", "/say other"))
    changed.id = "g"
    await stub.UpdateGraph(pb.UpdateGraphRequest(graph=changed))
    await stub.DeleteGraph(pb.DeleteGraphRequest(graph_id="g"))
    assert (await followed(served, made.run.id)).output.text == "the answer"


# --- forks ---

THREE = chain(scripted("one", "reason", "/say first"), scripted("two", "reason", "/say second"), SAY)


async def forked(served: Served, source: Run, spec: RunSpec, **place: int) -> Run:
    """A fork of a run, when it has ended."""
    request = runs.ForkRunRequest(source_run_id=source.id, spec=spec, **place)
    return await followed(served, (await served.client.stubs.runs.ForkRun(request)).run.id)


async def test_a_fork_before_a_visit_keeps_what_was_done_and_goes_on_from_there(stored: Served) -> None:
    source = await ordered(stored, said("go", graph=THREE))
    fork = await forked(stored, source, RunSpec(), visit=2)
    assert (fork.state, fork.output.text) == (RunState.RUN_STATE_COMPLETED, "the answer")
    assert fork.forked_from.run_id == source.id
    events = await events_of(stored.client.watch(fork.id))
    assert nodes_in(events, "node_completed") == ["two", "say"]
    assert [event.started.node or event.completed.node for event in events[0].run_created.forked_from.nodes] == [
        "one"
    ] * 2
    assert [reflection.content for reflection in fork.reasoning.task.reflections] == ["first", "second"]
    again = await forked(stored, fork, RunSpec(), visit=3)
    assert nodes_in(await events_of(stored.client.watch(again.id)), "node_completed") == ["say"]


async def test_a_node_that_was_at_work_begins_anew_in_a_fork(served: Served) -> None:
    source = await ordered(served, said("go", graph=THREE))
    events = await events_of(served.client.watch(source.id))
    [middle] = [event.sequence for event in events if event.HasField("node_started") and event.node_started.visit == 2]
    fork = await forked(served, source, RunSpec(), sequence=middle)
    assert fork.state == RunState.RUN_STATE_COMPLETED
    assert nodes_in(await events_of(served.client.watch(fork.id)), "node_completed") == ["two", "say"]


async def test_a_fork_of_another_graph_begins_it_from_its_start(served: Served) -> None:
    source = await ordered(served, said("go", graph=THREE))
    fork = await forked(served, source, RunSpec(strategy=StrategyChoice(name="chain_of_thought")), visit=2)
    first = (await events_of(served.client.watch(fork.id)))[0]
    assert not first.run_created.forked_from.nodes
    assert first.run_created.task.goal.description == "go"


# --- files ---


async def test_a_session_with_a_run_of_a_graph_is_exported_and_imported(stored: Served) -> None:
    source = await ordered(stored, said("go", graph=THREE))
    file = [chunk async for chunk in stored.client.sessions.export(source.session_id)]
    async with serve() as other:
        await other.client.sessions.load(b"".join(file))
        there = (await other.client.stubs.runs.GetRun(runs.GetRunRequest(run_id=source.id))).run
        assert there.reasoning == source.reasoning
        assert there.output.text == "the answer"
        fork = await forked(other, there, RunSpec(), visit=3)
        assert fork.state == RunState.RUN_STATE_COMPLETED


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda graph: graph.ClearField("edges"), id="unreachable"),
        pytest.param(lambda graph: graph.ClearField("nodes"), id="empty"),
    ],
)
async def test_a_file_with_a_graph_that_is_not_valid_is_refused(
    change: Callable[[Graph], None], served: Served
) -> None:
    source = await ordered(served, said("go", graph=THREE))
    file = b"".join([chunk async for chunk in served.client.sessions.export(source.session_id)])

    def damage(row: dict[str, Any]) -> None:
        definition = RunDefinition.FromString(base64.b64decode(row["data"]))
        change(definition.graph)
        row["data"] = base64.b64encode(definition.SerializeToString(deterministic=True)).decode()

    async with serve() as other:
        error = await refused(other.client.sessions.load(changed(file, "definition", damage)))
        assert error.reason == "SESSION_FILE_INVALID"
        assert "graph" in error.message
