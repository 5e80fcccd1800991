"""Graphs through the Python SDK: orders, the parts of a watch that lanes change, and runs of a daemon."""

from __future__ import annotations

import asyncio

import pytest

from behest.errors import BehestError
from behest.nodes import change_of
from behest.order import run_spec
from behest.runs import RunHandle
from behest.updates import Discarded, Follower, Speech, Update
from behest.v1 import context_event_pb2, delta_pb2, event_pb2, message_pb2, node_event_pb2, reasoning_service_pb2
from behest.v1.graph_pb2 import Graph, GraphProblemKind
from behest.v1.run_pb2 import NodeState, Reasoning
from behest.v1.run_service_pb2 import WatchRunResponse
from behest.v1.task_pb2 import Goal, Task, TaskArtifactKind
from tests.daemons import refused
from tests.reasoning.mind import ANSWER, THREE, thinking, three
from tests.sdk.daemon import BEGIN, Script, Tick, completed, end_completed, failed_attempt, requested

RUNNING, COMPLETED = NodeState.NODE_STATE_RUNNING, NodeState.NODE_STATE_COMPLETED


# --- orders ---


def test_an_order_carries_a_graph_a_strategy_and_a_task() -> None:
    task = Task(goal=Goal(description="add"))
    spec = run_spec("2 and 2", {"graph": three(), "task": task})
    assert (spec.graph, spec.task, spec.input[0].text.text) == (three(), task, "2 and 2")
    kept = run_spec((), {"graph_id": "three", "graph_version": 2})
    assert (kept.graph_id, kept.graph_version, len(kept.input)) == ("three", 2, 0)
    made = run_spec("x", {"strategy": "self_consistency", "strategy_parameters": {"samples": 5}}).strategy
    assert (made.name, dict(made.parameters)) == ("self_consistency", {"samples": "5"})
    with pytest.raises(ValueError, match="without a strategy"):
        run_spec("x", {"strategy_parameters": {"samples": 5}})


# --- what is new in a frame, and what of it is the answer ---


def begun(visit: int, node: str, *, operator: str = "", scope: int = 0) -> dict[str, object]:
    """A node begins."""
    started = node_event_pb2.NodeStarted(visit=visit, node=node, operator=operator or node, scope=scope)
    return {"node_started": started}


def built(step: int, visit: int) -> dict[str, object]:
    """A step of a visit is about to begin."""
    return {"context_built": context_event_pb2.ContextBuilt(step=step, visit=visit)}


def outpaced(visit: int, node: str) -> dict[str, object]:
    """A node that is at work is stopped."""
    return {"node_skipped": node_event_pb2.NodeSkipped(visit=visit, node=node)}


def played(ticks: list[Tick], follower: Follower | None = None) -> list[Update]:
    """Apply each tick as a frame of its own."""
    follower = follower or Follower("", 0)
    updates: list[Update] = []
    for tick in ticks:
        frame = WatchRunResponse()
        for item in tick:
            (frame.deltas if isinstance(item, delta_pb2.Delta) else frame.events).append(item)  # type: ignore[arg-type]
        updates += follower.apply(frame)
    return updates


def shown(updates: list[Update]) -> list[str]:
    """What deltas show and what is taken back, with their steps."""
    pieces = []
    for update in updates:
        if isinstance(update, Discarded):
            pieces.append(f"!{update.step}.{update.attempt}")
        elif isinstance(update, delta_pb2.Delta):
            pieces.append(f"{update.step}:{update.text}")
    return pieces


def said(updates: list[Update]) -> str:
    """The text of the answer."""
    speech = Speech()
    return "".join(map(speech.take, updates))


def fanned() -> Script:
    """Two nodes at work side by side, each with a step."""
    script = Script().events(*BEGIN)
    return script.events(begun(1, "a"), begun(2, "b"), built(1, 1), built(2, 2), requested(1, 1), requested(2, 1))


def test_steps_side_by_side_are_told_each_to_its_end() -> None:
    script = fanned().deltas("a1 ", step=1).deltas("b1 ", step=2).deltas("a2", step=1)
    script.events(completed(2, 1, "b1 b2")).deltas("a3", step=1).events(completed(1, 1, "a1 a2a3"))
    assert shown(played(script.ticks)) == ["1:a1 ", "2:b1 ", "1:a2", "1:a3"]


def test_an_attempt_that_fails_takes_back_its_own_text_alone() -> None:
    script = fanned().deltas("a1", step=1).deltas("b1", step=2).events(failed_attempt(1, 1), requested(1, 2))
    script.deltas("A1", step=1, attempt=2).deltas("b2", step=2).deltas("late", step=1)
    assert shown(played(script.ticks)) == ["1:a1", "2:b1", "!1.1", "1:A1", "2:b2"]


def test_a_node_that_is_stopped_takes_back_its_text() -> None:
    script = fanned().deltas("a1", step=1).deltas("b1", step=2).events(outpaced(2, "b")).deltas("late", step=2)
    assert shown(played(script.ticks)) == ["1:a1", "2:b1", "!2.1"]


def test_a_new_stream_repeats_every_open_step_and_nothing_is_told_twice() -> None:
    follower = Follower("", 0)
    played(fanned().deltas("a1 ", step=1).deltas("b1 ", step=2).ticks, follower)
    follower.reopened()
    again = Script().deltas("b1 b2", step=2).deltas("a1 a2", step=1)
    assert shown(played(again.ticks, follower)) == ["2:b2", "1:a2"]


def test_more_steps_than_are_remembered_leave_the_open_one_alone() -> None:
    script = fanned().deltas("a1", step=1)
    for step in range(3, 600):
        script.events(requested(step, 1), completed(step, 1, "x"))
    assert shown(played(script.deltas("a2", step=1).ticks)) == ["1:a1", "1:a2"]


def test_the_text_of_a_graph_is_that_of_the_node_which_answers() -> None:
    script = fanned().deltas("a1", step=1).deltas("b1", step=2).events(completed(1, 1, "a1"), completed(2, 1, "b1"))
    script.events(begun(3, "inner/answer", operator="answer", scope=2), built(3, 3), requested(3, 1))
    script.deltas("not this", step=3).events(completed(3, 1, "not this"))
    script.events(begun(4, "end", operator="answer"), built(4, 4), requested(4, 1)).deltas("fo", "ur", step=4)
    updates = played(script.events(completed(4, 1, "four!"), end_completed("four!")).ticks)
    assert said(updates) == "four!"


@pytest.mark.parametrize(("output", "text"), [("from y", "from y"), ("from x", "from yfrom x")], ids=["y", "x"])
def test_of_two_answers_at_once_the_first_is_told_and_the_output_of_the_run_stands(output: str, text: str) -> None:
    script = Script().events(*BEGIN).events(begun(1, "x", operator="answer"), begun(2, "y", operator="answer"))
    script.events(built(1, 1), built(2, 2), requested(1, 1), requested(2, 1))
    script.deltas("from ", step=2).deltas("other", step=1).deltas("y", step=2)
    assert said(played(script.events(completed(2, 1, "from y"), end_completed(output)).ticks)) == text


def test_an_answer_that_is_cut_off_begins_again() -> None:
    script = Script().events(*BEGIN).events(begun(1, "answer"), built(1, 1), requested(1, 1)).deltas("fo")
    script.events(failed_attempt(1, 1), requested(1, 2)).deltas("fo", attempt=2)
    updates = played(script.events(completed(1, 2, "four"), end_completed("four")).ticks)
    assert said(updates) == "fofour"


def test_an_event_of_a_node_says_what_became_of_it() -> None:
    events = [
        update for update in played(fanned().events(outpaced(2, "b")).ticks) if isinstance(update, event_pb2.Event)
    ]
    changes = [change for event in events if (change := change_of(event))]
    skipped = NodeState.NODE_STATE_SKIPPED
    assert [(change.node, change.visit, change.state) for change in changes] == [
        ("a", 1, RUNNING),
        ("b", 2, RUNNING),
        ("b", 2, skipped),
    ]


# --- with a daemon ---


async def test_graphs_are_kept_in_versions_and_checked() -> None:  # C131
    async with thinking(THREE) as (served, _):
        graphs = served.client.graphs
        made = await graphs.create(three())
        assert (made.id, made.version) == ("three", 1)
        assert (await refused(graphs.create(three()))).reason == "REASONING_GRAPH_ID_TAKEN"
        made.description = "adds"
        assert (await graphs.update(made, expected_version=1)).version == 2
        assert (await refused(graphs.update(three(), expected_version=1))).reason == "REASONING_GRAPH_VERSION_MISMATCH"
        assert (await graphs.get("three", version=1)).description == ""
        assert [graph.description async for graph in graphs.list()] == ["adds"]
        asked = reasoning_service_pb2.ListGraphsRequest(labels={"team": "a"})
        assert [graph async for graph in graphs.list(asked)] == []
        assert await graphs.validate(three()) == []
        [problem] = await graphs.validate(Graph())
        assert problem.kind == GraphProblemKind.GRAPH_PROBLEM_KIND_EMPTY
        await graphs.delete("three")
        assert (await refused(graphs.get("three"))).reason == "REASONING_GRAPH_NOT_FOUND"


async def test_operators_strategies_and_what_a_model_would_see_are_told() -> None:  # C130
    async with thinking(THREE) as (served, _):
        graphs = served.client.graphs
        names = [operator.name for operator in await graphs.operators()]
        assert (len(names), names) == (25, sorted(names))
        known = {strategy.name: strategy for strategy in await graphs.strategies()}
        assert "react" in known
        graph = await graphs.make("self_consistency", {"samples": 2})
        assert len((await graphs.make("self_consistency", {"samples": 3})).nodes) > len(graph.nodes)
        assert (await refused(graphs.make("none"))).reason == "REASONING_STRATEGY_NOT_FOUND"
        seen = await graphs.preview(three(), "plan", Task(goal=Goal(description="add two and two")))
        assert seen.messages[0].role == message_pb2.ROLE_SYSTEM
        assert "add two and two" in seen.messages[-1].parts[0].text.text
        assert seen.reply_schema_json


async def test_a_graph_runs_and_its_nodes_text_and_output_are_followed() -> None:  # C131
    task = Task(goal=Goal(description="add", success_criteria=["it is a number"]))
    async with thinking(THREE) as (served, mind), asyncio.timeout(30):
        run = served.client.stream("2 and 2", graph=three(), task=task)
        changes = [(change.node, change.visit, change.state) async for change in run.nodes()]
        assert changes == [
            (name, visit, state)
            for visit, name in enumerate(("plan", "solve", "answer"), start=1)
            for state in (RUNNING, COMPLETED)
        ]
        assert "".join([piece async for piece in run.text()]) == ANSWER
        assert (await run.result()).text == ANSWER
        record = await run.get()
        assert record.reasoning.task.artifacts[-1].kind == TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER
        assert [visit.started.node for visit in record.reasoning.visits] == ["plan", "solve", "answer"]
        assert mind.asked == ["plan", "solve", "answer"]
        again = await served.client.runs.fork(run.run_id, visit=2)
        assert (await served.client.watch(again.id).result()).text == ANSWER
        assert mind.asked[3:] == ["solve", "answer"]


async def test_a_kept_graph_and_a_strategy_run_and_a_graph_that_is_wrong_is_refused() -> None:
    async with thinking({**THREE, "reason": "/say think"}) as (served, _), asyncio.timeout(30):
        client = served.client
        await client.graphs.create(three())
        kept = await client.run("2 and 2", graph_id="three")
        made = await client.run("2 and 2", strategy="chain_of_thought")
        assert [(await run.result()).text for run in (kept, made)] == [ANSWER, ANSWER]
        with pytest.raises(BehestError) as caught:
            await client.run("2 and 2", graph=Graph(id="empty"))
        assert caught.value.reason == "REASONING_GRAPH_INVALID"


async def test_a_run_of_a_graph_is_cancelled_where_it_is() -> None:  # C131
    async with thinking(THREE) as (served, mind), asyncio.timeout(30):
        mind.shut("solve")
        run = await served.client.run("2 and 2", graph=three())
        async for change in run.nodes():
            if change.node == "solve":
                await run.cancel()
                break
        states = {visit.started.node: visit.state for visit in (await settled(run)).visits}
        assert states["plan"] == COMPLETED
        assert "answer" not in states


async def settled(run: RunHandle) -> Reasoning:
    """Wait until a run has ended, and return how far its graph was."""
    async for _ in run.events():
        pass
    return (await run.get()).reasoning
