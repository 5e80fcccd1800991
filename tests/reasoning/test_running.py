"""Runs of graphs through the edge of a daemon: tools of a real server, people who decide, limits, lives that end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from behest.v1 import run_service_pb2 as runs
from behest.v1.agent_pb2 import Agent
from behest.v1.chat_service_pb2 import Chat
from behest.v1.graph_pb2 import (
    Branch,
    BranchCondition,
    FanIn,
    FanInMode,
    FanOut,
    Graph,
    GraphNode,
    Loop,
    Termination,
)
from behest.v1.node_event_pb2 import NodeOutcome
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behest.v1.run_pb2 import NodeState, Run
from behest.v1.run_state_pb2 import RunState
from behest.v1.task_pb2 import ObservationSource, StepStatus
from behestd.providers.catalog import snapshot
from behestd.providers.provider import Frame
from behestd.providers.scripted import Scripted
from tests.approvals.scenes import CAREFUL, DENY, listed, rule
from tests.daemons import Served, serve
from tests.lifecycle.stage import configured
from tests.reasoning.house import chain, edge, said
from tests.reasoning.yard import Yard, register, with_yard
from tests.runs.scenes import OPEN, events_of, finished, kinds, only, until_kind

PASSED = '/json {"problems": [], "passed": true}'
LOOK = '/tool look {"at": "the log"}'
PAY = '/tool pay {"to": "Ada"}'
SUCCESS, FAILURE = BranchCondition.BRANCH_CONDITION_SUCCESS, BranchCondition.BRANCH_CONDITION_FAILURE


def node(node_id: str, operator: str, script: str, **fields: Any) -> GraphNode:
    """A node whose model obeys a script."""
    return GraphNode(id=node_id, operator=operator, prompt=f"/begin {script} /end", **fields)


SAY = node("say", "answer", "/say the answer")


async def ordered(served: Served, graph: Graph, text: str = "find out", **fields: Any) -> Run:
    """Run a graph to its end."""
    made = await served.client.stubs.runs.CreateRun(runs.CreateRunRequest(spec=said(text, graph=graph, **fields)))
    return await finished(served.client, made.run.id)


def nodes_of(run: Run) -> list[str]:
    """The nodes that were visited, in the order in which they began."""
    return [visit.started.node for visit in run.reasoning.visits]


# --- tools ---


async def test_every_operator_that_uses_tools_has_them_called_on_a_real_server() -> None:  # C122
    graph = chain(
        node("act", "act", LOOK),
        node("observe", "observe", LOOK),
        node("search", "search", f"{LOOK} /next /say it was found"),
        node("test", "test", f"{LOOK} /next {PASSED}"),
        node("simulate", "simulate", f"{LOOK} {LOOK} /next /say it would hold"),
        SAY,
    )
    async with with_yard() as (served, yard):
        run = await ordered(served, graph)
        records = [record async for record in served.client.tool_calls.list()]
    assert (run.state, run.output.text, run.tool_calls) == (RunState.RUN_STATE_COMPLETED, "the answer", 6)
    assert yard.calls == ["look at the log"] * 6
    assert len(records) == 6
    task, told = run.reasoning.task, 'look({"at": "the log"}): the log is fine'
    assert [(each.tool, each.output, each.is_error) for each in task.actions] == [("look", "the log is fine", False)]
    assert [(each.provenance.node, each.content) for each in task.observations] == [
        ("observe", told),
        ("search", told),
        ("test", told),
        ("simulate", told),
        ("simulate", told),
        ("simulate", "it would hold"),
    ]
    assert [each.sequence for each in task.observations] == [1, 2, 3, 4, 5, 6]
    assert task.observations[0].source == ObservationSource.OBSERVATION_SOURCE_TOOL
    assert [fact.text for fact in task.context.facts] == ["it was found"]
    assert {visit.outcome for visit in run.reasoning.visits} == {NodeOutcome.NODE_OUTCOME_SUCCESS}


PAYING = Graph(
    nodes=[node("act", "act", PAY), node("well", "answer", "/say it is paid"), node("ill", "answer", "/say it is not")],
    edges=[edge("act", "well", branch=Branch(condition=SUCCESS)), edge("act", "ill", branch=Branch(condition=FAILURE))],
)
"""Pays, and says what came of it."""


async def test_a_call_that_the_rules_forbid_is_an_action_that_failed() -> None:  # C122
    async with with_yard() as (served, yard):
        await served.client.agents.create(Agent(id="poor", tools=["*"], permissions=[rule(DENY, "pay")]))
        run = await ordered(served, PAYING, agent_id="poor")
    (action,) = run.reasoning.task.actions
    assert (run.output.text, action.tool, action.is_error) == ("it is not", "pay", True)
    assert "the rules say so" in action.output
    assert not yard.calls


@pytest.mark.parametrize("is_approved", [True, False], ids=["approved", "denied"])
async def test_a_call_that_people_are_asked_about_is_made_when_they_say_so(is_approved: bool) -> None:  # C122
    async with with_yard(operator=CAREFUL) as (served, yard):
        made = await served.client.stubs.runs.CreateRun(runs.CreateRunRequest(spec=said(graph=PAYING)))
        await until_kind(served.client.watch(made.run.id), "run_waiting")
        (asked,) = await listed(served.client, run_id=made.run.id)
        assert (asked.tool_name, yard.calls) == ("pay", [])
        if is_approved:
            await served.client.approvals.approve(asked)
        else:
            await served.client.approvals.deny(asked.call_id, reason="too much")
        run = await finished(served.client, made.run.id)
    (action,) = run.reasoning.task.actions
    assert action.is_error is not is_approved
    assert run.output.text == ("it is paid" if is_approved else "it is not")
    assert yard.calls == ["pay Ada"] * is_approved


async def test_a_tool_of_a_server_is_an_operator_that_gets_the_task_and_keeps_its_schema() -> None:  # C124
    schema = '{"type": "object", "properties": {"stars": {"type": "integer"}}, "required": ["stars"]}'
    own = Operator(name="count", tool="measure", target=ReplyTarget.REPLY_TARGET_ARTIFACT, reply_schema_json=schema)
    graph = chain(GraphNode(id="count", operator="count"), SAY, operators=[own])
    async with with_yard() as (served, yard):
        run = await ordered(served, graph, "count the stars")
        failed = await ordered(served, graph, "count the trees")
    assert (run.state, run.reasoning.task.artifacts[0].content) == (RunState.RUN_STATE_COMPLETED, '{"stars": 7}')
    assert yard.calls == ["measure", "measure"]
    (visit,) = failed.reasoning.visits
    assert (failed.state, visit.state, visit.reason) == (
        RunState.RUN_STATE_FAILED,
        NodeState.NODE_STATE_FAILED,
        "REASONING_REPLY_INVALID",
    )
    assert failed.reasoning.task.steps[0].status == StepStatus.STEP_STATUS_FAILED


async def test_a_fork_from_a_node_calls_no_tool_of_the_nodes_before_it_again() -> None:  # C129
    graph = chain(node("act", "act", PAY), node("think", "reason", "/say it is paid"), SAY)
    async with with_yard() as (served, yard):
        source = await ordered(served, graph)
        asked = runs.ForkRunRequest(source_run_id=source.id, visit=2)
        fork = await finished(served.client, (await served.client.stubs.runs.ForkRun(asked)).run.id)
    assert (fork.state, fork.output.text) == (RunState.RUN_STATE_COMPLETED, "the answer")
    assert [action.output for action in fork.reasoning.task.actions] == ["paid Ada"]
    assert yard.calls == ["pay Ada"]


# --- side by side ---


class Waves(Scripted):
    """Holds the calls of `generate` until as many are open as may be, then lets them all go."""

    def __init__(self, calls: int, at_once: int) -> None:
        super().__init__("waves")
        self._left, self._at_once = calls, at_once
        self._gate = asyncio.Event()
        self.open = self.most_open = self.waves = 0

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        """Answer when the wave is full."""
        is_held = "make candidates" in chat.messages[0].parts[0].text.text
        if is_held:
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            gate = self._gate
            if self.open == min(self._at_once, self._left):
                self.waves += 1
                self._left -= self.open
                self._gate = asyncio.Event()
                gate.set()
            await gate.wait()
        async for frame in super().stream(chat):
            if is_held and frame.HasField("end"):
                self.open -= 1
            yield frame


async def test_eight_nodes_with_three_at_once_keep_three_calls_open_in_three_waves() -> None:  # C127
    names = [f"part_{number}" for number in range(1, 9)]
    graph = Graph(
        nodes=[GraphNode(id="start", operator="analyze"), *(GraphNode(id=each, operator="generate") for each in names)],
        edges=[edge("start", each, fan_out=FanOut(parallelism=3)) for each in names],
    )
    graph.nodes.append(SAY)
    graph.edges.extend(edge(each, "say", fan_in=FanIn(mode=FanInMode.FAN_IN_MODE_ALL)) for each in names)
    model = Waves(8, 3)
    async with serve(models=snapshot([Scripted(), model], default_model="waves/echo")) as served:
        run = await ordered(served, graph)
    assert run.state == RunState.RUN_STATE_COMPLETED
    assert (model.waves, model.most_open, model.open) == (3, 3, 0)
    assert [made.provenance.node for made in run.reasoning.task.artifacts] == [*names, "say"]


# --- limits ---


def rounds(**limits: Any) -> Graph:
    """Thinks again and again, and never answers: there is no way to the answer but by a failure."""
    return Graph(
        nodes=[node("think", "reason", "/say so"), node("look", "reason", "/words 40"), SAY],
        edges=[
            edge("think", "look"),
            edge("look", "think", loop=Loop(max_iterations=50)),
            edge("look", "say", branch=Branch(condition=FAILURE)),
        ],
        termination=Termination(**limits),
    )


@pytest.mark.parametrize(
    ("limits", "model", "reason"),
    [
        ({"max_iterations": 3}, "scripted/echo", "REASONING_ITERATION_LIMIT"),
        ({"max_total_tokens": 4_000}, "scripted/echo", "RUN_BUDGET"),
        ({"max_cost_micro_usd": 4_000}, "scripted/priced", "RUN_BUDGET"),
    ],
    ids=["iterations", "tokens", "cost"],
)
async def test_what_ends_a_graph_ends_its_run(
    served: Served, limits: dict[str, int], model: str, reason: str
) -> None:  # C128
    run = await ordered(served, rounds(**limits), model=model)
    assert run.state == RunState.RUN_STATE_FAILED
    assert reason in str(run.error)
    assert 2 <= len(run.reasoning.visits) < 100
    assert NodeState.NODE_STATE_RUNNING not in {visit.state for visit in run.reasoning.visits}


async def test_a_graph_that_takes_too_long_times_out(served: Served) -> None:  # C128
    graph = chain(node("think", "reason", "/say so"), node("wait", "reason", "/stall"), SAY)
    graph.termination.MergeFrom(Termination(timeout=Duration(nanos=300_000_000)))
    run = await ordered(served, graph)
    assert run.state == RunState.RUN_STATE_TIMED_OUT
    assert [visit.state for visit in run.reasoning.visits] == [
        NodeState.NODE_STATE_COMPLETED,
        NodeState.NODE_STATE_SKIPPED,
    ]


async def test_as_many_rounds_as_were_fixed_end_well_with_what_the_task_holds(served: Served) -> None:  # C128
    graph = chain(node("think", "reason", "/say so"), SAY, loop_start="think")
    graph.termination.MergeFrom(Termination(fixed_iterations=3))
    run = await ordered(served, graph)
    assert (run.state, run.output.text) == (RunState.RUN_STATE_COMPLETED, "the answer")
    assert (nodes_of(run), run.reasoning.iteration) == (["think", "say"] * 3, 3)
    assert len(run.reasoning.task.reflections) == 3


# --- what is seen of it ---

WIDE = Graph(
    nodes=[
        node("start", "analyze", "/say it is known"),
        node("left", "generate", "/say on the left"),
        node("right", "generate", "/stall"),
        SAY,
    ],
    edges=[
        edge("start", "left", fan_out=FanOut(parallelism=2)),
        edge("start", "right", fan_out=FanOut(parallelism=2)),
        edge("left", "say", fan_in=FanIn(mode=FanInMode.FAN_IN_MODE_ALL)),
        edge("right", "say", fan_in=FanIn(mode=FanInMode.FAN_IN_MODE_ALL)),
    ],
)
"""Two side by side, of which one never ends."""


async def test_a_cancelled_graph_shows_what_was_done_and_what_was_stopped(stored: Served) -> None:  # C131
    handle = stored.client.stream("find out", graph=WIDE)
    await until_kind(handle, "node_completed", 2)
    shown = await handle.get()
    assert [(visit.started.node, visit.state) for visit in shown.reasoning.visits] == [
        ("start", NodeState.NODE_STATE_COMPLETED),
        ("left", NodeState.NODE_STATE_COMPLETED),
        ("right", NodeState.NODE_STATE_RUNNING),
    ]
    await handle.cancel()
    run = await finished(stored.client, shown.id)
    assert run.state == RunState.RUN_STATE_CANCELLED
    assert [visit.state for visit in run.reasoning.visits] == [
        NodeState.NODE_STATE_COMPLETED,
        NodeState.NODE_STATE_COMPLETED,
        NodeState.NODE_STATE_SKIPPED,
    ]
    assert all(visit.HasField("end_time") for visit in run.reasoning.visits)
    assert [made.content for made in run.reasoning.task.artifacts] == ["on the left"]


async def test_a_run_is_shown_as_it_was_at_each_of_its_events(stored: Served) -> None:  # C131
    graph = chain(node("one", "reason", "/say first"), node("two", "reason", "/say second"), SAY)
    run = await ordered(stored, graph)
    begun, ended = 0, 0
    for event in await events_of(stored.client.watch(run.id)):
        begun += event.HasField("node_started")
        ended += event.HasField("node_completed")
        asked = runs.GetRunRequest(run_id=run.id, at_sequence=event.sequence)
        then = (await stored.client.stubs.runs.GetRun(asked)).run.reasoning
        states = [NodeState.NODE_STATE_COMPLETED] * ended + [NodeState.NODE_STATE_RUNNING] * (begun - ended)
        assert [visit.state for visit in then.visits] == states
        assert [each.content for each in then.task.reflections] == ["first", "second"][:ended]


async def test_a_stream_that_begins_anywhere_tells_the_same_events(stored: Served) -> None:  # C131
    everything = await events_of(stored.client.stream("find out", strategy="self_consistency"))
    run_id = everything[0].run_id
    for after in range(0, len(everything), 3):
        assert await events_of(stored.client.watch(run_id, after=after)) == everything[after:]


async def test_a_session_holds_the_order_and_the_answer_of_a_graph_and_goes_on_with_them(stored: Served) -> None:
    client = stored.client
    first = await finished(client, (await client.run("/say fact city = Bern")).run_id)
    graph = chain(node("think", "reason", "/say fact city = Rome"), node("say", "answer", "/say fact river = Aare"))
    run = await ordered(stored, graph, "where are we?", session_id=first.session_id)
    assert [message.parts[0].text.text for message in run.messages] == ["where are we?", "fact river = Aare"]
    known = await (await client.run("/recall", session_id=first.session_id)).result()
    assert known.text.splitlines() == ["fact city = Bern", "fact river = Aare"]


# --- lives that end ---


async def test_a_graph_at_work_is_drained_and_goes_on_where_it_was(tmp_path: Path) -> None:  # C129 C136
    graph = chain(
        node("pay", "act", PAY), node("think", "reason", "/delay 15 /words 40"), node("look", "observe", LOOK), SAY
    )
    yard, data = Yard(), tmp_path / "data"
    async with yard.served() as server:
        address = f"127.0.0.1:{await server.serve('127.0.0.1:0')}"
        async with serve("sqlite", data, operator=OPEN, drain_seconds=0.05) as served:
            await register(served, address)
            handle = await served.client.run("find out", graph=graph)
            seen = await until_kind(handle, "model_requested", 2)
        assert yard.calls == ["pay Ada"]
        async with serve("sqlite", data, operator=OPEN) as served:
            events = await events_of(served.client.watch(handle.run_id))
            run = await served.client.runs.get(handle.run_id)
    assert "run_released" in kinds(events)
    assert events[: len(seen)] == seen
    assert yard.calls == ["pay Ada", "look at the log"]
    assert (run.state, run.output.text) == (RunState.RUN_STATE_COMPLETED, "the answer")
    assert nodes_of(run) == ["pay", "think", "look", "say"]
    assert set(Counter(each.visit for each in only(events, "node_completed")).values()) == {1}


def with_server(address: str, default: str) -> str:
    """A file with a tool server, and what becomes of calls that no rule is about."""
    servers = f'[[tools.servers]]\nname = "yard"\naddress = "{address}"\n'
    return f'{servers}[tools.policies."*"]\nside_effect = "non_idempotent"\n[permissions]\ndefault = "{default}"\n'


async def test_a_graph_at_work_goes_on_as_it_was_pinned_while_the_daemon_is_reloaded(tmp_path: Path) -> None:  # C135
    yard = Yard()
    graph = chain(node("wait", "act", '/tool wait {"why": "so"}'), node("look", "act", LOOK), SAY)
    async with yard.served() as server:
        address = f"127.0.0.1:{await server.serve('127.0.0.1:0')}"
        async with configured(tmp_path, with_server(address, "allow")) as place:
            handle = await place.client.run("find out", graph=graph)
            await until_kind(handle, "tool_started")
            assert await place.reload(with_server(address, "deny")) == (["permissions.default"], [])
            yard.opened.set()
            run = await finished(place.client, handle.run_id)
            later = await ordered(place.served, graph)
    assert (run.state, run.output.text) == (RunState.RUN_STATE_COMPLETED, "the answer")
    assert [action.is_error for action in run.reasoning.task.actions] == [False, False]
    assert [action.is_error for action in later.reasoning.task.actions] == [True, True]
    assert yard.calls == ["wait so", "look at the log"]
