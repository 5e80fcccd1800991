"""Traces and metrics of graphs: a span for each visit, under it what its model and its tools did, and few labels."""

from __future__ import annotations

from behest.v1.graph_pb2 import FanInMode, GraphNode
from behest.v1.model_event_pb2 import ModelSuperseded
from behest.v1.run_event_pb2 import RunCancelled
from behest.v1.run_state_pb2 import RunState
from behestd.core.definition import Operator
from behestd.core.state import replace
from behestd.telemetry import names, w3c
from behestd.telemetry.port import Ended
from behestd.telemetry.settings import Settings
from behestd.telemetry.spans import Spans
from tests.reasoning.graph_stage import GraphStage, pinned
from tests.reasoning.house import chain
from tests.reasoning.mind import Says, thinking
from tests.reasoning.wide import SAYS, begin, wide
from tests.runs.scenes import OPEN, PURE, events_of, finished, only, tools, until_kind
from tests.telemetry.collector import Collector, Seen, collecting
from tests.telemetry.scrape import address_of, check_histograms, scrape

READ = Settings(prometheus="127.0.0.1:0")
FIRST = FanInMode.FAN_IN_MODE_FIRST
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NODES = "behest_node_duration_seconds_count"
ACTS: Says = {**SAYS, "act": '/tool look {"what": "it"}'}


def look(what: str) -> str:
    """Look at something."""
    return f"{what} is there"


def traced(collector: Collector) -> Settings:
    """Settings that send traces, and nothing else, to a collector."""
    return Settings(otlp=collector.address, has_metrics=False)


async def spans_of(collector: Collector) -> list[Seen]:
    """The spans of the only run, once it has ended."""
    await collector.named("invoke_agent default")
    return collector.spans


def below(spans: list[Seen], above: Seen, name: str = "") -> list[Seen]:
    """The spans right under another, of a name if one is given, in the order in which they began."""
    found = [span for span in spans if span.parent_id == above.span_id and span.name.startswith(name)]
    return sorted(found, key=lambda span: span.begin_ns)


async def test_each_visit_is_a_span_above_the_steps_of_its_node() -> None:  # C145
    async with collecting() as collector:
        async with thinking(ACTS, telemetry=traced(collector), tools=tools((look, PURE)), operator=OPEN) as (served, _):
            run = await begin(served, wide("reason", "act"))
            events = await events_of(served.client.watch(run.id))
            spans = await spans_of(collector)

    (whole,) = [span for span in spans if span.name == "invoke_agent default"]
    nodes = {span.attributes[names.NODE]: span for span in below(spans, whole)}
    assert nodes.keys() == {"analyze", "reason", "act", "answer"}
    for name, node in nodes.items():
        assert node.name == f"node {name}"
        assert (node.attributes[names.OPERATOR], node.attributes[names.OUTCOME]) == (name, "success")
        (step,) = below(spans, node)
        assert step.name == "step"
        assert below(spans, step, "chat mind/echo")
        assert node.begin_ns <= step.begin_ns <= step.end_ns <= node.end_ns
    (step,) = below(spans, nodes["act"])
    (tool,) = below(spans, step, "execute_tool look")
    assert tool.attributes[names.TOOL] == "look"
    # Those that work beside each other overlap.
    assert nodes["act"].begin_ns <= nodes["reason"].end_ns
    assert nodes["reason"].begin_ns <= nodes["act"].end_ns
    assert sorted(span.attributes[names.VISIT] for span in nodes.values()) == [
        started.visit for started in only(events, "node_started")
    ]
    assert not any(span.is_error for span in spans)


async def test_nodes_of_a_subgraph_stand_under_its_node() -> None:
    inner = chain(GraphNode(id="think", operator="reason"), GraphNode(id="say", operator="answer"))
    graph = chain(GraphNode(id="part", subgraph=inner), GraphNode(id="end", operator="answer"))
    async with collecting() as collector, thinking(SAYS, telemetry=traced(collector)) as (served, _):
        run = await begin(served, graph)
        await finished(served.client, run.id)
        spans = await spans_of(collector)
    (whole,) = [span for span in spans if span.name == "invoke_agent default"]
    part, end = below(spans, whole)
    assert (part.name, end.name) == ("node subgraph", "node answer")
    assert [span.attributes[names.NODE] for span in below(spans, part)] == ["part/think", "part/say"]


async def test_a_run_that_is_cancelled_ends_the_spans_of_its_nodes() -> None:
    async with collecting() as collector, thinking(SAYS, telemetry=traced(collector)) as (served, mind):
        for name in ("reason", "generate"):
            mind.shut(name)
        run = await begin(served, wide("reason", "generate"))
        await until_kind(served.client.watch(run.id), "model_requested", 3)
        await served.client.runs.cancel(run.id)
        spans = await spans_of(collector)
    (whole,) = [span for span in spans if span.name == "invoke_agent default"]
    stopped = below(spans, whole, "node reason") + below(spans, whole, "node generate")
    assert [span.is_error for span in stopped] == [True, True]
    for node in stopped:
        (step,) = below(spans, node)
        (attempt,) = below(spans, step)
        assert attempt.attributes[names.ERROR] == "cancel"


async def test_visits_are_counted_by_operator_and_outcome() -> None:  # C145
    says: Says = {
        **SAYS,
        "verify": '/json {"passed": false, "problems": ["it is wrong"]}',
        "explain": "/fail REQUEST_INVALID",
    }
    async with thinking(says, telemetry=READ, operator=Operator()) as (served, mind):
        gate = mind.shut("generate")
        run = await begin(served, wide("verify", "explain", "generate", mode=FIRST))
        await finished(served.client, run.id)
        found = await scrape(address_of(served))
        gate.set()
    counted = {
        (sample.labels["behest_operator"], sample.labels["behest_outcome"], sample.labels["error_type"]): sample.value
        for sample in found.samples(NODES)
    }
    assert counted.pop(("verify", "failure", "")) == 1
    assert counted.pop(("generate", "outpaced", "")) == 1
    assert counted.pop(("analyze", "success", "")) == counted.pop(("answer", "success", "")) == 1
    # It may be stopped before it has failed.
    assert list(counted) in ([("explain", "", "PROVIDER_REQUEST_INVALID")], [("explain", "outpaced", "")])
    assert check_histograms(found) >= 5
    assert run.id not in found.text
    assert found.value("behest_runs_ended_total", behest_run_state="completed") == 1


async def test_the_first_piece_of_each_parallel_attempt_is_timed() -> None:
    async with thinking(SAYS, telemetry=READ) as (served, _):
        run = await begin(served, wide())
        await finished(served.client, run.id)
        found = await scrape(address_of(served))
    chunks = "gen_ai_client_operation_time_to_first_chunk_seconds_count"
    assert found.value(chunks, gen_ai_request_model="mind/echo") == 5
    assert found.value("behest_run_time_to_first_delta_seconds_count") == 1


class Kept:
    """Keeps spans."""

    def __init__(self) -> None:
        self.spans: list[Ended] = []

    def record(self, ended: Ended) -> None:
        """Keep a span."""
        self.spans.append(ended)


def test_who_goes_on_with_a_graph_goes_on_with_the_spans_of_its_nodes() -> None:
    stage = GraphStage(pinned(wide("reason", "explain")), lambda visit, turn: "so", traceparent=PARENT)
    while len(stage.run.attempts) < 2:
        stage.end(stage.effects[0])
    kept, now_ns = Kept(), stage.now_ns
    followed = Spans(kept)
    followed.adopted(stage.run, now_ns + 1)
    steps = [step for step, _ in stage.run.attempts]
    lost = [ModelSuperseded(step=step, attempt=1) for step in steps]
    followed.committed(stage.run, lost, now_ns + 2)
    followed.committed(replace(stage.run, state=RunState.RUN_STATE_CANCELLED), [RunCancelled()], now_ns + 3)
    names_of = [ended.name for ended in kept.spans]
    assert names_of == [*["chat scripted/a"] * 2, "step", "node explain", "step", "node reason", "invoke_agent"]
    assert [each.attributes[names.RESUMED] for each in kept.spans if each.name == "step"] == [True, True]
    assert {each.key for each in kept.spans if each.name == "step"} == {w3c.step_key("run_1", step) for step in steps}
