"""What a run of a graph leaves is what any run leaves: views, files, sums; and GetRun shows how far its graph is."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from behest.v1.approval_pb2 import ApprovalState
from behest.v1.approval_service_pb2 import ListApprovalsRequest
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.event_pb2 import Event
from behest.v1.graph_pb2 import FanInMode, GraphNode, Termination
from behest.v1.node_event_pb2 import NodeCompleted, NodeFailed, NodeOutcome, NodeSkipped, NodeSkipReason, NodeStarted
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behest.v1.run_event_pb2 import RunClaimed, RunCreated, RunStarted
from behest.v1.run_pb2 import NodeState, Reasoning
from behest.v1.run_service_pb2 import DeleteRunRequest
from behest.v1.run_state_pb2 import RunState
from behest.v1.task_pb2 import TaskArtifactKind
from behest.v1.tool_call_pb2 import ToolCallState
from behest.v1.tool_call_service_pb2 import ListToolCallsRequest
from behestd.core.run import KIND
from behestd.core.times import nanoseconds
from behestd.errors import LogCorrupt
from behestd.log import fsck
from behestd.log.frames import chunk
from behestd.log.rebuild import rebuild
from behestd.log.store import Chunk
from behestd.runtime.importing_log import follow
from behestd.runtime.session_file import FileInvalid
from tests import daemons
from tests.approvals.scenes import ALL_STATES, CAREFUL
from tests.daemons import Served
from tests.reasoning.graph_stage import pinned
from tests.reasoning.house import chain, edge
from tests.reasoning.mind import Says, thinking
from tests.reasoning.wide import SAYS, begin, got, wide
from tests.runs.scenes import NON_IDEMPOTENT, OPEN, PURE, Ledger, events_of, finished, only, tools, until_kind

FIRST = FanInMode.FAN_IN_MODE_FIRST
TWO_CALLS = '/tool pay {"note": "one"} /tool look {"what": "two"}'
ACTS: Says = {**SAYS, "act": TWO_CALLS, "search": '/tool look {"what": "three"}'}


def pay(note: str) -> str:
    """Pay, which needs an approval."""
    return f"paid {note}"


def look(what: str) -> str:
    """Look at something."""
    return f"{what} is there"


HANDS = tools((pay, NON_IDEMPOTENT), (look, PURE))


async def test_get_run_shows_each_visit_and_the_task_as_it_is() -> None:  # C131
    async with thinking(SAYS) as (served, mind):
        gate = mind.shut("explain")
        run = await begin(served, wide("reason", "explain"))
        await until_kind(served.client.watch(run.id), "node_completed", 2)
        half = await got(served, run.id)
        gate.set()
        await finished(served.client, run.id)
        whole = await got(served, run.id)

    states = {visit.started.node: visit.state for visit in half.reasoning.visits}
    assert states == {
        "analyze": NodeState.NODE_STATE_COMPLETED,
        "reason": NodeState.NODE_STATE_COMPLETED,
        "explain": NodeState.NODE_STATE_RUNNING,
    }
    working = half.reasoning.visits[2]
    assert not working.HasField("end_time")
    assert not working.HasField("delta")
    assert half.steps == 3
    assert [visit.started.node for visit in whole.reasoning.visits] == ["analyze", "reason", "explain", "answer"]
    for visit in whole.reasoning.visits:
        assert visit.outcome == NodeOutcome.NODE_OUTCOME_SUCCESS
        assert visit.usage.attempts == 1
        assert nanoseconds(whole.start_time) <= nanoseconds(visit.start_time) <= nanoseconds(visit.end_time)
    reasoning = whole.reasoning
    assert {node.id for node in reasoning.graph.nodes} == {"analyze", "reason", "explain", "answer"}
    assert reasoning.iteration == 1
    assert [step.operator for step in reasoning.task.steps] == ["analyze", "reason", "explain", "answer"]
    assert reasoning.task.artifacts[-1].kind == TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER
    assert (whole.steps, whole.usage.attempts) == (4, 4)
    assert whole.output.text == "here it is"


async def test_the_task_of_rounds_that_were_fixed_is_what_all_ends_came_to() -> None:  # C128
    says: Says = {**SAYS, "answer": "/say an answer"}
    graph = wide("reason", "explain", termination=Termination(fixed_iterations=1))
    del graph.edges[-1]  # The end of `explain` is one of the graph's.
    async with thinking(says) as (served, _):
        run = await begin(served, graph)
        await finished(served.client, run.id)
        whole = await got(served, run.id)
    assert whole.state == RunState.RUN_STATE_COMPLETED
    assert sorted(step.operator for step in whole.reasoning.task.steps) == ["analyze", "answer", "explain", "reason"]


async def test_lists_of_runs_say_that_there_is_reasoning_and_no_more() -> None:
    async with thinking(SAYS) as (served, _):
        run = await begin(served, wide())
        await finished(served.client, run.id)
        (listed,) = [each async for each in served.client.runs.list()]
        assert (listed.id, listed.steps) == (run.id, 5)
        assert listed.HasField("reasoning")
        assert listed.reasoning == Reasoning()


async def test_calls_of_nodes_have_records_in_places_of_their_own() -> None:
    async with thinking(ACTS, tools=HANDS, operator=OPEN) as (served, _):
        run = await begin(served, wide("act", "search"))
        events = await events_of(served.client.watch(run.id))
        listed = await served.client.stubs.tool_calls.ListToolCalls(ListToolCallsRequest(run_id=run.id))
    steps = {completed.message.id: completed.step for completed in only(events, "model_completed")}
    found = sorted((call.step, call.index, call.tool_name) for call in listed.tool_calls)
    assert [name for _, _, name in found] == ["pay", "look", "look"]
    assert len({(step, index) for step, index, _ in found}) == 3
    assert all(steps[call.message_id] == call.step for call in listed.tool_calls)
    assert {call.state for call in listed.tool_calls} == {ToolCallState.TOOL_CALL_STATE_COMPLETED}


async def test_a_node_whose_work_a_tool_does_has_its_call_recorded() -> None:  # C124
    operator = Operator(name="peek", tool="peer", target=ReplyTarget.REPLY_TARGET_ARTIFACT)
    graph = chain(GraphNode(id="peek", operator="peek"), GraphNode(id="end", operator="answer"), operators=[operator])

    def peer(task: str) -> str:
        """Peer at a task."""
        return "it is deep"

    async with thinking(SAYS, tools=tools((peer, PURE)), operator=OPEN) as (served, _):
        run = await begin(served, graph)
        events = await events_of(served.client.watch(run.id))
        (call,) = (await served.client.stubs.tool_calls.ListToolCalls(ListToolCallsRequest(run_id=run.id))).tool_calls
        assert await served.daemon.log.store.check() == []
    (started, _) = only(events, "node_started")
    assert (call.id, call.step, call.index, call.message_id) == (started.call.id, started.step, 0, "")
    assert (call.tool_name, call.state) == ("peer", ToolCallState.TOOL_CALL_STATE_COMPLETED)


@pytest.mark.parametrize("operator", [CAREFUL, OPEN], ids=["asked", "in_flight"])
async def test_what_a_stopped_node_left_open_is_recorded_as_ended(operator: object, tmp_path: Path) -> None:
    ledger = Ledger()

    async def pay(note: str) -> str:
        """Pay, which takes for ever."""
        return await ledger.work(note)

    async def look(what: str) -> str:
        """Look, which takes for ever."""
        return await ledger.work(what)

    data, catalog = tmp_path / "data", tools((pay, NON_IDEMPOTENT), (look, PURE))
    async with thinking(ACTS, store="sqlite", data_dir=data, tools=catalog, operator=operator) as (served, mind):
        gate = mind.shut("reason")
        run = await begin(served, wide("reason", "act", mode=FIRST))
        await until_kind(served.client.watch(run.id), "approval_requested" if operator is CAREFUL else "tool_started")
        gate.set()
        events = await events_of(served.client.watch(run.id))
        skipped = {event.node: event.reason for event in only(events, "node_skipped")}
        assert skipped == {"act": NodeSkipReason.NODE_SKIP_REASON_OUTPACED}
        assert (await got(served, run.id)).state == RunState.RUN_STATE_COMPLETED
        calls = (await served.client.stubs.tool_calls.ListToolCalls(ListToolCallsRequest(run_id=run.id))).tool_calls
        assert len(calls) == 2
        assert all(call.HasField("end_time") for call in calls)
        asked = [each async for each in served.client.approvals.list(ListApprovalsRequest(states=ALL_STATES))]
        assert [each.state for each in asked] == [ApprovalState.APPROVAL_STATE_CANCELLED] * (operator is CAREFUL)
    assert fsck.check(data).problems == ()


async def act_out(served: Served) -> str:
    """Run a graph that calls, loops nowhere and answers; gives its session."""
    graph = wide("reason", "act", "search", termination=Termination(max_iterations=3))
    run = await begin(served, graph, run_id="run-graph")
    assert (await finished(served.client, run.id)).state == RunState.RUN_STATE_COMPLETED
    return run.session_id


async def test_a_directory_with_runs_of_graphs_is_sound_and_can_be_made_anew(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with thinking(ACTS, store="sqlite", data_dir=data, tools=HANDS, operator=OPEN) as (served, _):
        await act_out(served)
        shown = await got(served, "run-graph")
    assert fsck.check(data).problems == ()
    fsck.rebuild(data)
    assert fsck.check(data).problems == ()
    async with daemons.serve("sqlite", data) as served:
        assert await got(served, "run-graph") == shown


async def test_a_session_with_runs_of_graphs_goes_into_a_file_and_comes_out_as_it_was() -> None:  # C110
    async with thinking(ACTS, tools=HANDS, operator=OPEN) as (served, _):
        session = await act_out(served)
        file = b"".join([chunk async for chunk in served.client.sessions.export(session)])
        shown = await got(served, "run-graph")
    async with daemons.serve() as served:
        await served.client.sessions.load(file)
        again = b"".join([chunk async for chunk in served.client.sessions.export(session)])
        assert again == file
        assert (await got(served, "run-graph")).reasoning == shown.reasoning
        await served.client.stubs.runs.DeleteRun(DeleteRunRequest(run_id="run-graph"))
        await served.client.sessions.delete(session)
        assert [each async for each in served.client.runs.list()] == []


def log_of(pinned: RunDefinition, *payloads: object) -> tuple[list[Chunk], bytes]:
    """A log of one commit that nobody wrote, and the definition that it is pinned to."""
    body = pinned.SerializeToString(deterministic=True)
    first = RunCreated(session_id="ses_1", namespace="default", definition_hash=sha256(body).digest())
    digest, events = b"", list[bytes]()
    for sequence, payload in enumerate((first, RunClaimed(), RunStarted(session_index=1), *payloads), start=1):
        event = Event(run_id="run_1", session_id="ses_1", sequence=sequence, prev_hash=digest, epoch=int(sequence > 1))
        getattr(event, KIND[type(payload)]).CopyFrom(payload)
        events.append(event.SerializeToString(deterministic=True))
        digest = sha256(events[-1]).digest()
    return [chunk(1, events)], body


def test_a_log_of_nodes_that_do_not_exist_is_damaged_and_a_graph_that_is_none_is_refused() -> None:
    sound, broken = pinned(wide()), pinned(wide())
    broken.graph.edges.append(edge("answer", "analyze"))
    strange = [
        NodeStarted(visit=1, node="analyze", scope=7, iteration=1),
        NodeStarted(visit=1, node="analyze", inputs=[3], iteration=1),
        NodeCompleted(visit=2, node="analyze"),
        NodeFailed(visit=9, node="analyze"),
        NodeSkipped(node="analyze", scope=4),
    ]
    chunks, body = log_of(broken)
    with pytest.raises(FileInvalid):
        follow(("run_1", "default"), chunks, {sha256(body).digest(): body}.get, 1)
    for payload in strange:
        chunks, body = log_of(sound, payload)
        with pytest.raises(FileInvalid):
            follow(("run_1", "default"), chunks, {sha256(body).digest(): body}.get, 1)
        with pytest.raises(LogCorrupt):
            rebuild("run_1", chunks, {sha256(body).digest(): body}.get)
    chunks, body = log_of(sound, NodeStarted(visit=1, node="analyze", iteration=1, operator="analyze"))
    made, _ = follow(("run_1", "default"), chunks, lambda digest: body, 1)
    assert made.run.nodes is not None
    assert len(made.run.nodes.visits) == 1
