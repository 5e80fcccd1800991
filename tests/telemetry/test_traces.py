"""Traces: one trace from a client to the last tool server, whoever begins it, over crashes, and with nobody's words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from behest import tracing
from behest.client import Client
from behest.tools import ToolServer
from behest.v1.agent_pb2 import Agent
from behest.v1.chat_service_pb2 import Chat, StreamChatRequest
from behest.v1.definition_pb2 import Compaction, Pruning
from behest.v1.run_service_pb2 import CreateRunRequest
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.tool_service_pb2 import CallToolRequest
from behestd.components import TELEMETRY
from behestd.core.definition import Operator
from behestd.providers.scripted import Scripted
from behestd.telemetry import names, w3c
from behestd.telemetry.settings import Settings
from tests.daemon_process import running
from tests.daemons import refused, serve
from tests.interop.common.languages import BUILD_SECONDS, GO, PYTHON, Language, program
from tests.providers.conformance import user
from tests.remote_models.model_peer import Frame, Seen, raw, scripted
from tests.runs.scenes import OPEN, PURE, tools
from tests.subagents.scenes import order, put_agents
from tests.telemetry.collector import Collector, collecting

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
UNRECORDED = f"00-{TRACE}-b7ad6b7169203331-00"
CLIENT, SERVER = 3, 2
"""Kinds of spans, as OTLP numbers them."""


def traced(collector: Collector, **more: Any) -> Settings:
    """Settings that send traces, and nothing else, to a collector."""
    return Settings(**({"otlp": collector.address, "has_metrics": False} | more))


@contextmanager
def spans_of(service: str, collector: Collector) -> Iterator[trace.Tracer]:
    """A program beside the daemon that makes spans of its own."""
    provider = TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
    processor = BatchSpanProcessor(OTLPSpanExporter(collector.address), schedule_delay_millis=50)
    provider.add_span_processor(processor)
    try:
        yield provider.get_tracer(service)
    finally:
        processor.shutdown()


def look_up(key: str) -> str:
    """Look a thing up."""
    return f"{key} is 42"


@pytest.mark.timeout(BUILD_SECONDS + 120)
@pytest.mark.parametrize("language", [GO, PYTHON], ids=str)
async def test_one_trace_goes_from_the_client_to_the_model_and_to_the_tool_server(  # C145
    language: Language, tmp_path: Path
) -> None:
    async with collecting() as collector:
        with spans_of("client", collector) as client_tracer, spans_of("model", collector) as model_tracer:
            answer = scripted(Scripted())

            async def play(chat: Chat, seen: Seen) -> AsyncIterator[Frame]:
                with tracing.continued(seen.metadata["traceparent"]), model_tracer.start_as_current_span("inference"):
                    frames = [frame async for frame in answer(chat, seen)]
                for frame in frames:
                    yield frame

            async with raw(play) as model, serve(telemetry=traced(collector), operator=OPEN) as served:
                await served.client.servers.register(model.registration())
                address = served.daemon.addresses[0]
                async with program(language, "tools", "attach", address, str(tmp_path / "calls"), "") as server:
                    await server.ready()
                    with client_tracer.start_as_current_span("question"):
                        run = await served.client.run('/tool keep {"text": "a"} /next /say done', model="far/m")
                    events = [event async for event in run.events()]
                spans = await collector.named(
                    "invoke_agent default", "question", "inference", "execute_tool keep", "step"
                )
            [kept] = [event for event in events if event.HasField("tool_completed")]
            told = json.loads(kept.tool_completed.result.parts[0].json.json)["trace"]

    question, called = spans["question"], spans["/behest.v1.RunService/CreateRun"]
    made, tool = spans["invoke_agent default"], spans["execute_tool keep"]
    ours = [span for span in collector.spans if span.trace_id == question.trace_id]
    steps = [span for span in ours if span.name == "step"]
    attempts = [span for span in ours if span.name == "chat far/m"]
    inferences = [span for span in ours if span.name == "inference"]
    # Who called whom, from the first to the last.
    assert called.parent_id == question.span_id
    assert made.parent_id == called.span_id
    assert [step.parent_id for step in steps] == [made.span_id, made.span_id]
    assert {attempt.parent_id for attempt in attempts} == {step.span_id for step in steps}
    assert {inference.parent_id for inference in inferences} == {attempt.span_id for attempt in attempts}
    assert tool.parent_id == steps[0].span_id
    assert told == f"00-{question.trace_id}-{tool.span_id}-01"
    assert {span.service for span in ours} == {"client", "behestd", "model"}
    assert {span.trace_id for span in (made, tool, *inferences)} == {question.trace_id}
    assert (called.kind, tool.kind, attempts[0].kind) == (SERVER, CLIENT, CLIENT)
    # Nothing ends before it begins, nor a part after the whole.
    assert all(made.begin_ns <= span.begin_ns <= span.end_ns <= made.end_ns for span in (*steps, *attempts, tool))
    assert made.attributes[names.RUN] == run.run_id
    assert made.attributes[names.STATE] == "completed"
    assert tool.attributes[names.TOOL] == "keep"
    assert attempts[0].attributes[names.MODEL] == "far/m"
    assert not any(span.is_error for span in ours)
    # The log says the same of the trace.
    assert {event.trace_id for event in events} == {question.trace_id}


async def test_a_tool_in_python_goes_on_in_the_trace_with_spans_of_its_own() -> None:
    async with collecting() as collector:
        with spans_of("workshop", collector) as tracer:
            server = ToolServer()

            @server.tool
            async def think(text: str) -> str:
                """Think."""
                with tracer.start_as_current_span("thinking"):
                    return text

            @server.tool
            def reckon(text: str) -> str:
                """Reckon, in a thread."""
                with tracer.start_as_current_span("reckoning"):
                    return text

            async with serve(telemetry=traced(collector), operator=OPEN) as served, server:
                await server.attach(served.daemon.addresses[0], name="workshop")
                called = '/tool think {"text": "a"} /tool reckon {"text": "b"} /next /say done'
                await (await served.client.run(called)).result()
            spans = await collector.named("thinking", "reckoning", "execute_tool think", "execute_tool reckon")
    assert spans["thinking"].parent_id == spans["execute_tool think"].span_id
    assert spans["reckoning"].parent_id == spans["execute_tool reckon"].span_id
    assert len({span.trace_id for span in spans.values() if span.name.endswith(("ing", "think"))}) == 1


async def test_a_run_without_a_client_that_traces_begins_a_trace_under_its_call() -> None:
    async with collecting() as collector:
        async with serve(telemetry=traced(collector)) as served:
            await (await served.client.run("hello")).result()
        spans = await collector.named("invoke_agent default", "/behest.v1.RunService/CreateRun")
    assert spans["invoke_agent default"].parent_id == spans["/behest.v1.RunService/CreateRun"].span_id
    assert spans["/behest.v1.RunService/CreateRun"].parent_id == ""


async def test_what_the_client_decides_about_recording_stands_and_is_handed_on() -> None:
    async with collecting() as collector, raw() as model:
        async with serve(telemetry=traced(collector, sampling=0.0)) as served:
            await served.client.servers.register(model.registration())
            for parent in (UNRECORDED, PARENT):
                request = CreateRunRequest(spec=RunSpec(input=user("hi").parts, model="far/m"))
                made = await served.client.stubs.runs.CreateRun(request, metadata=(("traceparent", parent),))
                async with asyncio.timeout(30):
                    await served.client.watch(made.run.id).result()
            await (await served.client.run("and one of our own", model="far/m")).result()
        spans = await collector.named("invoke_agent default")
    first, second, third = (seen.metadata["traceparent"] for seen in model.seen)
    assert (first[3:35], first[-2:]) == (TRACE, "00")
    assert (second[3:35], second[-2:]) == (TRACE, "01")
    # Nobody records it, but it is a trace all the same, for those who look at it elsewhere.
    assert third[3:35] != TRACE
    assert third[-2:] == "00"
    assert {span.trace_id for span in collector.spans} == {TRACE}
    assert spans["invoke_agent default"].trace_id == TRACE


async def test_the_share_of_traces_can_be_changed_while_it_runs() -> None:
    async with collecting() as collector:
        settings = traced(collector, sampling=0.0)
        async with serve(telemetry=settings) as served:
            await (await served.client.run("not recorded")).result()
            plan = served.daemon.plan
            served.daemon.lifecycle[TELEMETRY].prepare(replace(plan, telemetry=traced(collector)))()
            run = await served.client.run("recorded")
            await run.result()
        spans = await collector.named("invoke_agent default")
    assert spans["invoke_agent default"].attributes[names.RUN] == run.run_id
    assert len([span for span in collector.spans if span.name == "invoke_agent default"]) == 1


async def test_a_child_run_stands_under_the_call_that_it_serves() -> None:
    async with collecting() as collector:
        async with serve(telemetry=traced(collector)) as served:
            await put_agents(served, Agent(id="boss", sub_agents=["helper"]), Agent(id="helper"))
            run = await served.client.run(f"{order('helper', '/say hello')} /next /say done", agent_id="boss")
            await run.result()
        spans = {span.name: span for span in collector.spans}
    assert spans["invoke_agent helper"].parent_id == spans["execute_tool agent_helper"].span_id
    boss = spans["invoke_agent boss"]
    [step, _] = [span for span in collector.spans if span.name == "step" and span.parent_id == boss.span_id]
    assert spans["execute_tool agent_helper"].parent_id == step.span_id
    assert len({span.trace_id for span in collector.spans if span.attributes.get(names.OPERATION)}) == 1


async def test_a_summary_is_an_attempt_at_a_model_under_its_run() -> None:
    small = "scripted/small"
    operator = Operator(
        default_permission=OPEN.default_permission, compaction=Compaction(instructions="/recall"), pruning=Pruning()
    )
    async with collecting() as collector:
        async with serve(telemetry=traced(collector), operator=operator) as served:
            first = await served.client.run("fact city = Bern", model=small)
            await first.result()
            session_id = (await first.get()).session_id
            for _ in range(14):
                run = await served.client.run("word " * 150, session_id=session_id, model=small)
                events = [event async for event in run.events()]
                if any(event.HasField("context_compacted") for event in events):
                    break
        runs = {span.span_id: span for span in collector.spans if span.name == "invoke_agent default"}
        [summary] = [span for span in collector.spans if span.name == f"chat {small}" and span.parent_id in runs]
    assert runs[summary.parent_id].attributes[names.RUN] == run.run_id
    assert summary.span_id == w3c.span_of(w3c.summary_key(run.run_id, 1))
    assert not summary.is_error


async def test_calls_without_a_run_are_spans_under_their_rpc() -> None:
    async with collecting() as collector:
        async with serve(telemetry=traced(collector), tools=tools((look_up, PURE)), operator=OPEN) as served:
            metadata = (("traceparent", PARENT),)
            request = StreamChatRequest(chat=Chat(model="scripted/echo", messages=[user("hello")]))
            assert [frame async for frame in served.client.stubs.chat.StreamChat(request, metadata=metadata)]
            call = CallToolRequest(tool_name="look_up", arguments_json='{"key": "it"}')
            assert [frame async for frame in served.client.stubs.tools.CallTool(call, metadata=metadata)]
        spans = await collector.named("/behest.v1.ChatService/StreamChat", "/behest.v1.ToolService/CallTool")
    assert spans["chat scripted/echo"].parent_id == spans["/behest.v1.ChatService/StreamChat"].span_id
    assert spans["execute_tool look_up"].parent_id == spans["/behest.v1.ToolService/CallTool"].span_id
    assert {span.trace_id for span in collector.spans} == {TRACE}
    assert spans["chat scripted/echo"].attributes[names.OUTPUT_TOKENS] > 0


async def test_a_call_that_fails_says_its_reason_and_no_text() -> None:
    async with collecting() as collector:
        async with serve(telemetry=traced(collector)) as served:
            error = await refused(served.client.runs.get("canary-of-an-id"))
        spans = await collector.named("/behest.v1.RunService/GetRun")
    span = spans["/behest.v1.RunService/GetRun"]
    assert span.is_error
    assert span.attributes[names.ERROR] == error.reason == "RUN_NOT_FOUND"
    assert span.attributes["rpc.grpc.status_code"] == 5
    assert not any(b"canary" in data for data in collector.raw)


async def test_a_trace_goes_on_where_it_was_after_the_daemon_was_killed(tmp_path: Path) -> None:
    async with collecting() as collector:
        config = f'[telemetry]\notlp = "{collector.address}"\nmetrics = false\n[limits]\ndrain_seconds = 0.1\n'
        async with running(tmp_path, config=config) as daemon, Client(daemon.address) as client:
            request = CreateRunRequest(spec=RunSpec(input=user("/delay 1500 /say late").parts))
            made = await client.stubs.runs.CreateRun(request, metadata=(("traceparent", PARENT),))
            async with asyncio.timeout(30):
                async for event in client.watch(made.run.id).events():
                    if event.HasField("model_requested"):
                        break
            await daemon.kill()
            await daemon.start()
            async with asyncio.timeout(30):
                await client.watch(made.run.id).result()
            await collector.named("invoke_agent default", "step")
    spans = {span.span_id: span for span in collector.spans}
    run = spans[w3c.span_of(w3c.run_key(made.run.id))]
    step = spans[w3c.span_of(w3c.step_key(made.run.id, 1))]
    cut, again = (spans[w3c.span_of(w3c.model_key(made.run.id, 1, attempt))] for attempt in (1, 2))
    assert {span.trace_id for span in (run, step, cut, again)} == {TRACE}
    assert step.parent_id == run.span_id
    assert {cut.parent_id, again.parent_id} == {step.span_id}
    assert cut.attributes[names.ERROR] == "crash"
    assert step.attributes[names.RESUMED] is True
    assert not again.is_error


@pytest.mark.parametrize(
    "broken",
    ["", "01", PARENT.upper(), PARENT[:-1], f"{PARENT}-more", f"ff{PARENT[2:]}", PARENT.replace(TRACE, "0" * 32), "é"],
)
def test_what_is_no_trace_context_is_none(broken: str) -> None:  # S17
    assert w3c.valid(broken) == ""


def test_a_later_version_of_trace_context_is_read_as_far_as_it_is_known() -> None:
    assert w3c.valid(f"cc{PARENT[2:]}-what-comes\nnext") == PARENT
    assert w3c.valid(PARENT) == PARENT
