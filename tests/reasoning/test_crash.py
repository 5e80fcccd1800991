"""Runs of graphs whose daemon is really killed, at every commit in which a node begins or ends: before it and after it.

What is expected is what the same graph came to in a daemon that nobody killed. Evidence is what is on the disk, and
the ledger of a tool server in a process of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from behest.client import Client
from behest.v1.agent_pb2 import Agent
from behest.v1.event_pb2 import Event
from behest.v1.graph_pb2 import Branch, BranchCondition, Graph, GraphNode, Race, Retry, StrategyChoice, SubgraphEntry
from behest.v1.message_pb2 import Part, TextPart, ToolResult
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behest.v1.tool_pb2 import Executed
from behestd.reasoning.strategies import STRATEGIES, make
from tests.crash.checker import check_ledger, check_run
from tests.crash.conftest import Tools
from tests.crash.harness import Remains, Site, site
from tests.reasoning.house import chain, edge
from tests.runs.scenes import kinds, only

ANSWER = GraphNode(id="answer", operator="answer")
SAID = "What is 17 + 23?"
SECONDS = 50.0
USE = "/tool queryable {}"
PASSED, FAILED = '/json {"problems": [], "passed": true}', '/json {"problems": ["not yet"], "passed": false}'
PLANNED = f"/json {json.dumps({'rationale': 'so', 'steps': ['add the tens', 'add the ones']})}"
BORN = ("create.before_commit", "create.after_commit")
BESIDE = ("node.before_commit", "node.after_commit")
ENDS = ("node_completed", "node_failed", "node_skipped")


@dataclass(frozen=True, slots=True)
class Way:
    """How a strategy is made, and what its models say whose reply turns the way; the others repeat what they see."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)


WAYS = {
    "chain_of_thought": Way(),
    "debate": Way({"debaters": "2", "rounds": "2"}),
    "diagnose_and_fix": Way(
        {"attempts": "1"}, {"observe": USE, "experiment": f"{USE} /next {PASSED}", "check": f"{USE} /next {FAILED}"}
    ),
    "generate_evaluate_select": Way({"candidates": "2"}),
    "least_to_most": Way({}, {"decompose": PLANNED}),
    "plan_and_solve": Way({}, {"plan": PLANNED}),
    "react": Way({"steps": "2"}, {"think": FAILED, "act": USE}),
    "reflexion": Way({"attempts": "2"}, {"evaluate": FAILED}),
    "self_consistency": Way({"samples": "2"}),
    "tree_of_thought": Way({"breadth": "2", "depth": "2"}),
}
EFFECTS = {"diagnose_and_fix": 3, "mixed": 2, "react": 2}
"""How often a tool takes effect in a graph."""


def scripted(node_id: str, operator: str, script: str) -> GraphNode:
    """A node whose model obeys a script."""
    return GraphNode(id=node_id, operator=operator, prompt=f"/begin {script} /end")


def graph_of(strategy: str, **says: str) -> Graph:
    """The graph of a strategy, with scripts for those of its models that have one."""
    way = WAYS[strategy]
    scripts = {**way.says, **says}
    made = make(StrategyChoice(name=strategy, parameters=way.parameters))
    nodes = [scripted(node.id, node.operator, scripts[node.id]) if node.id in scripts else node for node in made.nodes]
    return Graph(
        nodes=nodes,
        edges=made.edges,
        start=made.start,
        termination=made.termination,
        operators=made.operators,
        max_parallel_nodes=made.max_parallel_nodes if made.HasField("max_parallel_nodes") else None,
    )


async def dies(place: Site, point: str, run_id: str, *, skip: int = 0) -> None:
    """Let a daemon live until a point of a run kills it, which is proved."""
    armed = f"{point}=kill,run={run_id}" + (f",after:{skip}" if skip else "")
    (await place.start_to_die(armed)).assert_killed_at(point)


def mixed() -> Graph:
    """What no strategy has: a retry that does not help, a race, a subgraph, and an operator that is a tool."""
    inner = chain(scripted("try", "act", USE), GraphNode(id="tell", operator="answer"))
    return Graph(
        nodes=[
            scripted("odd", "reason", "/fail REQUEST_INVALID"),
            GraphNode(id="count", operator="count"),
            scripted("slow", "generate", "/stall"),
            GraphNode(id="fast", operator="generate"),
            GraphNode(id="part", subgraph=inner),
            ANSWER,
        ],
        edges=[
            edge("odd", "odd", retry=Retry(max_attempts=2)),
            edge("odd", "count", branch=Branch(condition=BranchCondition.BRANCH_CONDITION_FAILURE)),
            edge("count", "slow", race=Race()),
            edge("count", "fast", race=Race()),
            edge("slow", "answer"),
            edge("fast", "part", subgraph=SubgraphEntry()),
            edge("part", "answer"),
        ],
        operators=[Operator(name="count", tool="queryable", target=ReplyTarget.REPLY_TARGET_FACTS)],
    )


GRAPHS: Mapping[str, Callable[[], Graph]] = {
    **{strategy: partial(graph_of, strategy) for strategy in WAYS},
    "mixed": mixed,
}


# --- what is left ---


@dataclass(frozen=True, slots=True)
class Told:
    """What a run came to, without what is chance: when, by which attempt, and who of several was first."""

    answer: str
    visits: list[tuple[str, int, bytes]]
    """Node, round and what it adds, of each visit."""
    skipped: list[str]
    models: int
    """The answers of models."""
    effects: int


def told(remains: Remains, tools: Tools, run_id: str) -> Told:
    """Read what a run came to."""
    events = remains.events(run_id)
    rounds = {each.visit: each.iteration for each in only(events, "node_started")}
    (end,) = only(events, "run_completed")
    return Told(
        answer=end.output.text,
        visits=sorted(
            (each.node, rounds[each.visit], each.delta.SerializeToString(deterministic=True))
            for kind in ENDS[:2]
            for each in only(events, kind)
        ),
        skipped=sorted(each.node for each in only(events, "node_skipped")),
        models=len(only(events, "model_completed")),
        effects=tools.ledger.count(run_id, "effect"),
    )


def check(remains: Remains, tools: Tools, run_id: str) -> None:
    """Check that no node that had ended began again, and that nothing took effect twice."""
    check_run(remains, run_id)
    check_ledger(remains, tools.ledger, [run_id])
    events = remains.events(run_id)
    begun = Counter(each.visit for each in only(events, "node_started"))
    ended = Counter(each.visit for kind in ENDS for each in only(events, kind) if each.visit)
    assert begun == ended == Counter(range(1, len(begun) + 1)), kinds(events)
    at_work: set[int] = set()
    for event in events:
        kind = event.WhichOneof("payload") or ""
        visit = getattr(event, kind).visit if kind in ("node_started", "context_built", *ENDS) else 0
        if kind == "node_started":
            at_work.add(visit)
        elif kind in ENDS and visit:
            at_work.remove(visit)
        elif kind == "context_built":
            assert visit in at_work, "only a node at work asks its model"
    assert not at_work


def boundaries(remains: Remains, run_id: str) -> int:
    """The commits of a run in which a node begins, ends or is left out."""
    positions = remains.positions(run_id)
    return len({positions[event.sequence] for event in remains.events(run_id) if is_of_node(event)})


def is_of_node(event: Event) -> bool:
    """Whether an event is one of a node."""
    return (event.WhichOneof("payload") or "").startswith("node_")


# --- each boundary of each strategy ---


@pytest.fixture(scope="module")
def whole(tools: Tools) -> Mapping[str, Told]:
    """What each graph comes to in a daemon that nobody kills."""
    with TemporaryDirectory() as directory:
        return asyncio.run(run_all(Path(directory), tools))


async def run_all(home: Path, tools: Tools) -> Mapping[str, Told]:
    """Run each graph to its end."""
    async with site(home, tools=tools.address) as place, asyncio.timeout(SECONDS):
        await place.start()
        async with place.client() as client, asyncio.TaskGroup() as tasks:
            for name, graph in GRAPHS.items():
                tasks.create_task(client.stream(SAID, graph=graph(), run_id=f"whole-{name}").result())
        return {name: told(place.remains(), tools, f"whole-{name}") for name in GRAPHS}


def test_each_strategy_has_its_way() -> None:
    assert sorted(WAYS) == [strategy.name for strategy in STRATEGIES]


@pytest.mark.proof
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", GRAPHS)
async def test_a_graph_that_is_killed_at_each_boundary_of_its_nodes_comes_to_the_same_end(
    home: Path, tools: Tools, whole: Mapping[str, Told], name: str
) -> None:  # C129 N16
    run_id = f"killed-{name}"
    hits: Counter[str] = Counter()
    async with site(home, tools=tools.address) as place, place.client() as client, asyncio.timeout(280):
        creating = asyncio.ensure_future(client.stream(SAID, graph=GRAPHS[name](), run_id=run_id).create())
        try:
            for point in itertools.chain(BORN, itertools.cycle(BESIDE)):
                await dies(place, point, run_id)
                hits[point.partition(".")[2]] += 1
                if point == BESIDE[1] and place.remains().kinds(run_id)[-1] == "run_completed":
                    break
        finally:
            creating.cancel()
            await asyncio.gather(creating, return_exceptions=True)
        remains = place.remains()
        check(remains, tools, run_id)
        assert hits["before_commit"] == hits["after_commit"] == boundaries(remains, run_id)
        assert told(remains, tools, run_id) == whole[name]
        assert whole[name].effects == EFFECTS.get(name, 0)


@pytest.mark.proof
@pytest.mark.parametrize("point", ["child.before_create", "child.after_create", "child.before_commit"])
async def test_an_agent_that_a_node_calls_is_not_called_again_after_a_crash(home: Path, point: str) -> None:  # C129 N16
    graph = chain(scripted("act", "act", '/tool agent_inner {"order": "/say by the child"}'), ANSWER)
    async with site(home) as place, place.client() as client, asyncio.timeout(55):
        await place.start()
        await client.agents.create(Agent(id="inner", strategy="chain_of_thought"))
        await client.agents.create(Agent(id="outer", sub_agents=["inner"]))
        await place.running[-1].stop()
        order = client.stream(SAID, graph=graph, agent_id="outer", run_id="parent")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(order.create())
            await dies(place, point, "parent")
            await place.start()
        result = await order.result()
        events = place.remains().events("parent")
        (child,) = only(events, "child_run_started")
        assert place.remains().run_ids() == sorted(["parent", child.child_run_id])
        assert place.remains().kinds(child.child_run_id)[-1] == "run_completed"
    assert len(only(events, "node_started")) == len(only(events, "node_completed")) == 2
    assert "by the child" in result.text


# --- a few of them, always ---


async def test_after_a_crash_at_nodes_no_payment_is_made_again_and_what_goes_on_side_by_side_goes_on(
    home: Path, tools: Tools
) -> None:  # C129 N16
    paying, choosing = graph_of("react", act="/tool payment {}"), graph_of("generate_evaluate_select")
    async with site(home, tools=tools.address) as place, place.client() as client, asyncio.timeout(55):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(client.stream(SAID, graph=paying, run_id="paying").create())
            # It has paid, and nobody knows that its node has ended.
            await dies(place, "node.before_commit", "paying", skip=1)
            tasks.create_task(client.stream(SAID, graph=choosing, run_id="choosing").create())
            # One of two candidates is there, and then the other one almost.
            await dies(place, "node.after_commit", "choosing", skip=1)
            await dies(place, "node.before_commit", "choosing")
            await place.start()
        await client.watch("choosing").result()
        await settle(client, "paying", "effect 1")
        for run_id, graph in (("paying", paying), ("choosing", choosing)):
            await client.watch(run_id).result()
            await client.stream(SAID, graph=graph, run_id=f"whole-{run_id}").result()
            check(place.remains(), tools, run_id)
            assert told(place.remains(), tools, run_id) == told(place.remains(), tools, f"whole-{run_id}")
    assert tools.ledger.count("paying", "effect") == tools.ledger.count("paying", "dispatch") == 2


async def settle(client: Client, run_id: str, text: str) -> None:
    """Say of the only call in doubt that it was made, and what came of it."""
    async for event in client.watch(run_id).events():
        if event.HasField("tool_outcome_unknown"):
            result = ToolResult(parts=[Part(text=TextPart(text=text))])
            await client.tool_calls.resolve(event.tool_outcome_unknown.call_id, Executed.EXECUTED_YES, result=result)
            return
