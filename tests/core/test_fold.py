"""The fold: which event is allowed in which state, what damages a log, and that both ways of applying events agree."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from behest.v1.definition_pb2 import RunDefinition
from behest.v1.event_pb2 import Event
from behest.v1.graph_pb2 import Graph, GraphNode, Pipeline
from behest.v1.message_pb2 import ToolCall
from behest.v1.node_event_pb2 import NodeCompleted, NodeFailed, NodeSkipped, NodeStarted
from behest.v1.run_event_pb2 import ChildRunEnded, RunCreated, RunReleased
from behest.v1.run_service_pb2 import WatchRunResponse
from behest.v1.run_state_pb2 import RunState
from behest.v1.usage_pb2 import Usage
from behestd.core.decide import decide
from behestd.core.nodes import begin, started
from behestd.core.run import KIND, TRANSITIONS, apply, evolve, fold, stored_bytes
from behestd.core.signals import ModelEnded
from behestd.core.state import Call, Run, Step, replace, state_name
from behestd.core.times import timestamp
from behestd.errors import LogCorrupt, NewerFormat
from tests.core.stage import T0, Stage, answer, said

LIVE = ("QUEUED", "RUNNING", "WAITING", "CANCELLING")
STATES = (*LIVE, "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


def stay(*states: str) -> dict[str, str]:
    return {state: state for state in states}


# The table of transitions, written down a second time.
EXPECTED: dict[str, dict[str, str]] = {
    "run_created": {},
    "run_claimed": stay(*LIVE),
    "run_released": stay(*LIVE),
    "run_started": {"QUEUED": "RUNNING"},
    "run_waiting": {"RUNNING": "WAITING"},
    "run_resumed": {"WAITING": "RUNNING"},
    "input_received": stay("QUEUED", "RUNNING", "WAITING"),
    "run_cancel_requested": dict.fromkeys(("QUEUED", "RUNNING", "WAITING"), "CANCELLING"),
    "run_deadline_exceeded": {"RUNNING": "CANCELLING"},
    "run_completed": {"RUNNING": "COMPLETED"},
    "run_failed": {"RUNNING": "FAILED", "WAITING": "FAILED"},
    "run_cancelled": {"CANCELLING": "CANCELLED"},
    "run_timed_out": {"QUEUED": "TIMED_OUT", "CANCELLING": "TIMED_OUT"},
    "child_run_started": stay("RUNNING"),
    "child_run_ended": stay("RUNNING", "WAITING", "CANCELLING"),
    "doom_loop_detected": stay("RUNNING"),
    "model_requested": stay("RUNNING"),
    "model_bound": stay("RUNNING"),
    "model_completed": stay("RUNNING"),
    "model_failed": stay("RUNNING"),
    "model_superseded": stay("RUNNING", "WAITING", "CANCELLING"),
    "answer_rejected": stay("RUNNING"),
    "tool_started": stay("RUNNING"),
    "tool_completed": stay("RUNNING", "CANCELLING"),
    "tool_failed": stay("RUNNING", "WAITING", "CANCELLING"),
    "tool_denied": stay("RUNNING", "WAITING"),
    "tool_outcome_unknown": stay("RUNNING", "CANCELLING"),
    "tool_resolved": stay("RUNNING", "WAITING", "CANCELLING"),
    "approval_requested": stay("RUNNING"),
    "approval_decided": stay("RUNNING", "WAITING"),
    "context_built": stay("RUNNING"),
    "context_compacted": stay("RUNNING"),
    "compaction_circuit_opened": stay("RUNNING"),
    "context_compaction_requested": stay("RUNNING"),
    "context_compaction_failed": stay("RUNNING", "WAITING", "CANCELLING"),
    "node_started": stay("RUNNING"),
    "node_completed": stay("RUNNING"),
    "node_failed": stay("RUNNING"),
    "node_skipped": stay("RUNNING"),
}

NODES = {
    "node_started": NodeStarted(visit=2, node="second", operator="answer", inputs=[1], iteration=1),
    "node_completed": NodeCompleted(visit=1, node="first"),
    "node_failed": NodeFailed(visit=1, node="first"),
    "node_skipped": NodeSkipped(visit=1, node="first"),
}
"""Events of the nodes of `with_graph`."""


def in_state(state: str) -> Run:
    """A run in a state, with one open call."""
    run = Stage().run
    calls = (Call(ToolCall(id="c", name="look"), run.definition.tools[0]),)
    return replace(run, state=RunState.Value(f"RUN_STATE_{state}"), step=Step(number=1, answered=True, calls=calls))


def with_graph(run: Run) -> Run:
    """The run as one of a graph, whose first node is at work."""
    graph = Graph(nodes=[GraphNode(id="first", operator="reason"), GraphNode(id="second", operator="answer")])
    graph.edges.add(to="second", pipeline=Pipeline(), **{"from": "first"})
    nodes = begin(RunDefinition(graph=graph), RunCreated())
    assert nodes is not None
    first = NodeStarted(visit=1, node="first", operator="reason", iteration=1)
    return replace(run, nodes=started(nodes, first, T0), step=Step())


def payload_of(kind: str) -> Any:
    """An event's payload with nothing but its call, or that of a node."""
    if kind in NODES:
        return NODES[kind]
    made = {name: payload for payload, name in KIND.items()}[kind]()
    if hasattr(made, "call_id") and kind not in ("child_run_started", "child_run_ended"):
        made.call_id = "c"
    return made


def test_every_kind_of_the_contract_has_a_row() -> None:
    contract = {field.name for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields}
    assert contract == set(EXPECTED) == set(TRANSITIONS)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", EXPECTED)
def test_an_event_leads_where_the_table_says_or_is_refused(kind: str, state: str) -> None:
    run = with_graph(in_state(state)) if kind in NODES else in_state(state)
    after = EXPECTED[kind].get(state)
    if after is None:
        with pytest.raises(LogCorrupt) as raised:
            apply(run, payload_of(kind), T0)
        assert raised.value.reason == "RUN_LOG_CORRUPT"
        return
    assert state_name(apply(run, payload_of(kind), T0).state) == after


@pytest.mark.parametrize("kind", NODES)
def test_a_run_without_a_graph_has_no_events_of_nodes(kind: str) -> None:
    with pytest.raises(LogCorrupt):
        apply(in_state("RUNNING"), payload_of(kind), T0)


def test_a_claim_alone_raises_the_epoch() -> None:
    run = in_state("RUNNING")
    assert apply(run, payload_of("run_claimed"), T0).head.epoch == run.head.epoch + 1
    assert apply(run, payload_of("run_released"), T0).head.epoch == run.head.epoch


def played() -> Stage:
    """A run with some history."""
    stage = Stage()
    stage.model("", ("look", "{}"))
    stage.tool()
    stage.say("and?")
    return stage


def test_the_fold_of_the_bytes_is_the_run_in_memory() -> None:
    stage = played()
    assert fold("run_1", stage.log, stage.definition) == stage.run


def test_the_fold_of_a_prefix_goes_on_to_the_fold_of_the_whole() -> None:
    stage = played()
    for length in range(1, len(stage.log)):
        run = fold("run_1", stage.log[:length], stage.definition)
        for event, data in stage.log[length:]:
            run = evolve(run, event, data)
        assert run == stage.run


def test_a_fold_is_the_same_each_time() -> None:
    stage = played()
    assert fold("run_1", stage.log, stage.definition) == fold("run_1", stage.log, stage.definition)
    assert hash(stage.run.head) == hash(fold("run_1", stage.log, stage.definition).head)


def test_a_decision_leaves_the_run_that_it_is_given_as_it_was() -> None:
    stage = played()
    before = stage.run
    copy = fold("run_1", stage.log, stage.definition)
    decide(before, stage.given(), ModelEnded(2, 1, answer("bye")))
    assert before == copy


def next_event(stage: Stage, **changes: Any) -> tuple[Event, bytes]:
    head = stage.run.head
    fields: dict[str, Any] = {
        "sequence": head.sequence + 1,
        "epoch": head.epoch,
        "prev_hash": head.hash,
        "record_time": timestamp(T0),
        "run_released": RunReleased(),
    }
    event = Event(**fields | changes)
    return event, event.SerializeToString()


def test_the_next_event_is_taken_and_chained() -> None:
    stage = played()
    event, data = next_event(stage)
    run = evolve(stage.run, event, data)
    assert run.head.hash == sha256(data).digest()
    assert run.head.log_bytes == stage.run.head.log_bytes + stored_bytes(data)


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 3_000_000])
def test_the_stored_size_of_an_event_counts_tag_and_length(size: int) -> None:
    data = Event(event_id="x" * size).SerializeToString()
    assert stored_bytes(data) == len(WatchRunResponse(events=[Event.FromString(data)]).SerializeToString())


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence": 1},
        {"sequence": 99},
        {"prev_hash": b""},
        {"prev_hash": b"x" * 32},
        {"epoch": 0},
        {"epoch": 2},
        {"run_released": None, "run_created": payload_of("run_created")},
        {"run_released": None, "tool_completed": payload_of("tool_completed")},
    ],
    ids=[
        "again",
        "gap",
        "no hash",
        "other hash",
        "old epoch",
        "epoch without claim",
        "second creation",
        "no such call",
    ],
)
def test_a_damaged_log_is_told(changes: dict[str, Any]) -> None:
    stage = played()
    with pytest.raises(LogCorrupt) as raised:
        evolve(stage.run, *next_event(stage, **changes))
    assert raised.value.reason == "RUN_LOG_CORRUPT"


def test_a_log_that_does_not_begin_with_its_creation_is_damaged() -> None:
    stage = played()
    for log in ([], stage.log[1:], [next_event(stage)]):
        with pytest.raises(LogCorrupt):
            fold("run_1", log, stage.definition)


def test_an_event_of_an_unknown_kind_is_of_a_newer_version() -> None:
    stage = played()
    unknown = b"\xfa\x3f\x02hi"  # field 1023, of no kind that this version knows
    event, data = next_event(stage, run_released=None)
    event, data = Event.FromString(data + unknown), data + unknown
    with pytest.raises(NewerFormat) as raised:
        evolve(stage.run, event, data)
    assert raised.value.reason == "RUN_NEWER_FORMAT"


def test_a_kind_without_a_row_is_of_a_newer_version(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = played()
    monkeypatch.delitem(TRANSITIONS, "run_released")
    with pytest.raises(NewerFormat):
        evolve(stage.run, *next_event(stage))


def test_the_log_is_sealed_by_its_end() -> None:
    stage = Stage()
    stage.model("bye")
    with pytest.raises(LogCorrupt):
        evolve(stage.run, *next_event(stage))


def test_what_a_child_run_consumed_counts() -> None:
    run = apply(in_state("RUNNING"), ChildRunEnded(usage=Usage(input_tokens=3, attempts=2)), T0)
    assert (run.spend.input_tokens, run.spend.attempts) == (3, 2)


def test_what_was_said_too_late_is_part_of_the_transcript_all_the_same() -> None:
    stage = Stage()
    stage.say("wait")
    stage.cancel()
    assert stage.run.transcript[-1] == said("wait")
