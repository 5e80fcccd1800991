"""Spans of runs, made of the events that their drivers commit: run, node, step, attempt at a model or a tool call.

Above: the composition, which hands the listener to the runtime when there is a collector. Below: a tracer. A span is
made when it ends, of what is in the log and of when it began; its id is named by something in the log (`w3c`), so that
servers were told the same id, and an owner that goes on after a crash ends the spans that the one before it began. No
text of a client, a model or a tool is in a span, but names and ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.rpc.error_details_pb2 import ErrorInfo
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, Tracer

from behest.v1 import context_event_pb2 as context
from behest.v1 import model_event_pb2 as model
from behest.v1 import node_event_pb2 as node
from behest.v1 import run_event_pb2 as events
from behest.v1 import tool_event_pb2 as tool
from behest.v1.chat_pb2 import FinishReason
from behest.v1.run_state_pb2 import RunState
from behestd.core.lanes import lane_of_call
from behestd.core.nodes import NodeStatus
from behestd.core.run import Payload
from behestd.core.state import Run, state_name
from behestd.telemetry import names, w3c
from behestd.telemetry.otlp import NamedIds
from behestd.telemetry.port import Ended, Recorder

_OK = (RunState.RUN_STATE_COMPLETED, RunState.RUN_STATE_CANCELLED)
_ENDS = (events.RunCompleted, events.RunFailed, events.RunCancelled, events.RunTimedOut)
Attributes = Mapping[str, Any]


class TracerRecorder:
    """Makes spans with ids that are given. Used on the loop alone."""

    __slots__ = ("_ids", "_tracer")

    def __init__(self, tracer: Tracer, ids: NamedIds) -> None:
        self._tracer = tracer
        self._ids = ids

    def record(self, ended: Ended) -> None:
        """Make a span under its parent, and hand it to the exporter."""
        above = SpanContext(
            trace_id=int(w3c.trace_id(ended.parent), 16),
            span_id=int(w3c.span_id(ended.parent), 16),
            is_remote=True,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )
        self._ids.next_id = int(w3c.span_of(ended.key), 16)
        attributes = {name: value for name, value in ended.attributes.items() if value not in ("", None)}
        if ended.error:
            attributes[names.ERROR] = ended.error
        span = self._tracer.start_span(
            ended.name,
            context=trace.set_span_in_context(NonRecordingSpan(above)),
            kind=SpanKind.CLIENT if ended.is_remote else SpanKind.INTERNAL,
            attributes=attributes,
            start_time=ended.begin_ns,
        )
        if ended.error:
            span.set_status(Status(StatusCode.ERROR))
        span.end(max(ended.end_ns, ended.begin_ns))


class _Step:
    """What is known of a step whose span has not ended. Times are when it, and its latest attempt, began."""

    __slots__ = ("begin_ns", "endpoint", "is_resumed", "request_ns", "visit")

    def __init__(self, visit: int, begin_ns: int) -> None:
        self.visit = visit
        self.begin_ns = self.request_ns = begin_ns
        self.endpoint = ""
        self.is_resumed = False


class _Live:
    """What is known of the spans of a run that have not ended."""

    __slots__ = ("calls", "steps", "summary_ns", "visits")

    def __init__(self) -> None:
        self.steps: dict[int, _Step] = {}
        """By number. A run without a graph has one at a time, of visit 0."""
        self.summary_ns = 0
        self.calls: dict[str, tuple[int, int, tool.ToolStarted]] = {}
        """When an attempt at a call began, and its step."""
        self.visits: list[int] = []
        """Of a graph's nodes, in the order in which they began."""


class Spans:
    """Turns events of runs into spans. A Listener."""

    __slots__ = ("_live", "_recorder")

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._live: dict[tuple[str, str], _Live] = {}

    def adopted(self, run: Run, now_ns: int) -> None:
        """See Listener. What was open when the earlier owner left, is taken to have begun when this one came."""
        if not w3c.is_recorded(run.created.traceparent):
            return
        live = self._live[run.created.namespace, run.id] = _Live()
        live.summary_ns = now_ns
        lanes = run.nodes.lanes.values() if run.nodes is not None else ()
        visits = run.nodes.visits if run.nodes is not None else ()
        live.visits = [visit.number for visit in visits if visit.status is NodeStatus.RUNNING]
        for visit, step in ((lane.visit, lane.step) for lane in lanes) if lanes else ((0, run.step),):
            if step.number:
                known = live.steps[step.number] = _Step(visit, now_ns)
                known.endpoint, known.is_resumed = step.open.endpoint if step.open is not None else "", True
            for call in step.calls:
                if call.started is not None:
                    live.calls[call.call.id] = (call.first_start_ns or now_ns, step.number, call.started)

    def gone(self, run: Run) -> None:
        """See Listener."""
        self._live.pop((run.created.namespace, run.id), None)

    def first_delta(self, run: Run, step: int, now_ns: int) -> None:
        """See Listener."""

    def committed(self, after: Run, payloads: Sequence[Payload], now_ns: int) -> None:
        """See Listener."""
        if not w3c.is_recorded(after.created.traceparent):
            return
        key = (after.created.namespace, after.id)
        live = self._live.get(key)
        if live is None:
            live = self._live[key] = _Live()
        for payload in payloads:
            follow = _FOLLOWED.get(type(payload))
            if follow is not None:
                follow(self, live, after, payload, now_ns)

    # --- steps and attempts at models ---

    def _built(self, live: _Live, run: Run, payload: context.ContextBuilt, now_ns: int) -> None:
        if payload.visit:
            self._end_steps(live, run, payload.visit, now_ns)
            live.steps[payload.step] = _Step(payload.visit, now_ns)

    def _requested(self, live: _Live, run: Run, payload: model.ModelRequested, now_ns: int) -> None:
        step = live.steps.get(payload.step)
        if step is None:
            self._end_steps(live, run, 0, now_ns)
            step = live.steps[payload.step] = _Step(0, now_ns)
        step.request_ns, step.endpoint = now_ns, payload.endpoint

    def _answered(self, live: _Live, run: Run, payload: model.ModelCompleted, now_ns: int) -> None:
        reason = FinishReason.Name(payload.finish_reason).removeprefix("FINISH_REASON_").lower()
        self._end_attempt(live, run, payload, now_ns, {names.FINISH_REASONS: (reason,)})

    def _failed(self, live: _Live, run: Run, payload: model.ModelFailed, now_ns: int) -> None:
        self._end_attempt(live, run, payload, now_ns, {}, payload.reason or "unknown")

    def _superseded(self, live: _Live, run: Run, payload: model.ModelSuperseded, now_ns: int) -> None:
        reason = model.SupersedeReason.Name(payload.reason).removeprefix("SUPERSEDE_REASON_").lower()
        self._end_attempt(live, run, payload, now_ns, {}, reason)

    def _end_attempt(self, live: _Live, run: Run, payload: Any, now_ns: int, more: Attributes, error: str = "") -> None:
        step = live.steps.get(payload.step)
        if step is None:
            return
        name, attributes = _chat(step.endpoint, payload)
        key, parent = w3c.model_key(run.id, payload.step, payload.attempt), self._step(run, payload.step)
        times = (step.request_ns, now_ns)
        self._recorder.record(Ended(name, parent, key, *times, {**attributes, **more}, error, is_remote=True))

    def _summary_requested(self, live: _Live, run: Run, payload: Any, now_ns: int) -> None:
        live.summary_ns = now_ns

    def _summarised(self, live: _Live, run: Run, payload: context.ContextCompacted, now_ns: int) -> None:
        self._end_summary(live, run, payload, now_ns, "")

    def _summary_failed(self, live: _Live, run: Run, payload: context.ContextCompactionFailed, now_ns: int) -> None:
        self._end_summary(live, run, payload, now_ns, payload.reason or "superseded")

    def _end_summary(self, live: _Live, run: Run, payload: Any, now_ns: int, error: str) -> None:
        if not payload.attempt or not live.summary_ns:
            return
        name, attributes = _chat(payload.endpoint, payload)
        key, parent = w3c.summary_key(run.id, payload.attempt), _above(run)
        times = (live.summary_ns, now_ns)
        self._recorder.record(Ended(name, parent, key, *times, attributes, error, is_remote=True))

    def _end_steps(self, live: _Live, run: Run, visit: int, now_ns: int) -> None:
        """End the steps of a visit, of which there is one at most; 0: that of a run without a graph."""
        for number in [number for number, step in live.steps.items() if step.visit == visit]:
            step = live.steps.pop(number)
            attributes = {names.STEP: number, names.RESUMED: step.is_resumed or None}
            above = _node(run, visit) if visit else _above(run)
            self._recorder.record(Ended("step", above, w3c.step_key(run.id, number), step.begin_ns, now_ns, attributes))
            for call_id in [call_id for call_id, (_, of, _) in live.calls.items() if of == number]:
                del live.calls[call_id]

    def _step(self, run: Run, step: int) -> str:
        """The context of a step, which its attempts stand under."""
        return w3c.under(run.created.traceparent, w3c.step_key(run.id, step))

    # --- tool calls ---

    def _tool_started(self, live: _Live, run: Run, payload: tool.ToolStarted, now_ns: int) -> None:
        lane = lane_of_call(run, payload.call_id)
        step = lane.step.number if lane is not None else next(iter(live.steps), 0)
        live.calls[payload.call_id] = (now_ns, step, payload)

    def _tool_completed(self, live: _Live, run: Run, payload: tool.ToolCompleted, now_ns: int) -> None:
        self._end_call(live, run, payload, now_ns, "tool_error" if payload.is_error else "")

    def _tool_failed(self, live: _Live, run: Run, payload: tool.ToolFailed, now_ns: int) -> None:
        self._end_call(live, run, payload, now_ns, payload.reason or "unknown")

    def _tool_unknown(self, live: _Live, run: Run, payload: tool.ToolOutcomeUnknown, now_ns: int) -> None:
        self._end_call(live, run, payload, now_ns, payload.reason or "TOOL_OUTCOME_UNKNOWN")

    def _end_call(self, live: _Live, run: Run, payload: Any, now_ns: int, error: str) -> None:
        begun = live.calls.pop(payload.call_id, None)
        if begun is None or not payload.attempt:
            return
        begin_ns, step, started = begun
        attributes = {
            names.OPERATION: names.OPERATION_TOOL,
            names.TOOL: started.name,
            names.TOOL_CALL: payload.call_id,
            names.ATTEMPT: payload.attempt,
        }
        name, is_remote = f"{names.OPERATION_TOOL} {started.name}", bool(started.endpoint)
        parent, key = self._step(run, step), w3c.tool_key(started.key, payload.attempt)
        self._recorder.record(Ended(name, parent, key, begin_ns, now_ns, attributes, error, is_remote))

    # --- nodes ---

    def _node_started(self, live: _Live, run: Run, payload: node.NodeStarted, now_ns: int) -> None:
        live.visits.append(payload.visit)
        if payload.step:
            live.steps[payload.step] = _Step(payload.visit, now_ns)

    def _node_completed(self, live: _Live, run: Run, payload: node.NodeCompleted, now_ns: int) -> None:
        outcome = node.NodeOutcome.Name(payload.outcome).removeprefix("NODE_OUTCOME_").lower()
        self._end_node(live, run, payload.visit, now_ns, {names.OUTCOME: outcome})

    def _node_failed(self, live: _Live, run: Run, payload: node.NodeFailed, now_ns: int) -> None:
        self._end_node(live, run, payload.visit, now_ns, {}, payload.reason or "unknown")

    def _node_skipped(self, live: _Live, run: Run, payload: node.NodeSkipped, now_ns: int) -> None:
        if payload.visit:
            outcome = node.NodeSkipReason.Name(payload.reason).removeprefix("NODE_SKIP_REASON_").lower()
            self._end_node(live, run, payload.visit, now_ns, {names.OUTCOME: outcome})

    def _end_node(self, live: _Live, run: Run, number: int, now_ns: int, more: Attributes, error: str = "") -> None:
        if run.nodes is None:
            return
        visit = run.nodes.visit(number)
        live.visits = [other for other in live.visits if other != number]
        self._end_steps(live, run, number, now_ns)
        started = visit.started
        operator = started.operator or names.SUBGRAPH
        attributes = {
            names.NODE: started.node,
            names.OPERATOR: operator,
            names.VISIT: number,
            names.INPUT_TOKENS: visit.spend.input_tokens,
            names.OUTPUT_TOKENS: visit.spend.output_tokens,
            **more,
        }
        above = _node(run, started.scope) if started.scope else _above(run)
        key, times = w3c.node_key(run.id, number), (visit.start_ns, now_ns)
        self._recorder.record(Ended(f"node {operator}", above, key, *times, attributes, error))

    # --- the run ---

    def _ended(self, live: _Live, run: Run, payload: Any, now_ns: int) -> None:
        for visit in reversed(live.visits):
            self._end_node(live, run, visit, now_ns, {}, state_name(run.state).lower())
        self._end_steps(live, run, 0, now_ns)
        created, agent = run.created, run.definition.agent_id
        error = "" if run.state in _OK else _reason(run)
        attributes = {
            names.OPERATION: names.OPERATION_RUN,
            names.RUN: run.id,
            names.CONVERSATION: created.session_id,
            names.NAMESPACE: created.namespace,
            names.AGENT: agent,
            names.STATE: state_name(run.state).lower(),
            names.INPUT_TOKENS: run.spend.input_tokens,
            names.OUTPUT_TOKENS: run.spend.output_tokens,
        }
        name = f"{names.OPERATION_RUN} {agent}" if agent else names.OPERATION_RUN
        key, times = w3c.run_key(run.id), (run.life.create_ns, now_ns)
        self._recorder.record(Ended(name, created.traceparent, key, *times, attributes, error))


def _above(run: Run) -> str:
    """The context of a run's span, which its steps stand under."""
    return w3c.under(run.created.traceparent, w3c.run_key(run.id))


def _node(run: Run, visit: int) -> str:
    """The context of a node's span, which its steps, and the nodes of a subgraph, stand under."""
    return w3c.under(run.created.traceparent, w3c.node_key(run.id, visit))


def _chat(endpoint: str, payload: Any) -> tuple[str, dict[str, Any]]:
    """The name and the attributes of an attempt at a model."""
    return f"{names.OPERATION_CHAT} {endpoint}", {
        names.OPERATION: names.OPERATION_CHAT,
        names.PROVIDER: endpoint.partition("/")[0],
        names.MODEL: endpoint,
        names.ATTEMPT: payload.attempt,
        names.INPUT_TOKENS: payload.usage.input_tokens,
        names.OUTPUT_TOKENS: payload.usage.output_tokens,
    }


def _reason(run: Run) -> str:
    """Why a run failed: the name of a reason, never its text."""
    info = ErrorInfo()
    for detail in run.life.error.details if run.life.error is not None else ():
        if detail.Unpack(info):
            return info.reason
    return state_name(run.state).lower()


_FOLLOWED: dict[type, Callable[[Spans, _Live, Run, Any, int], None]] = {
    context.ContextBuilt: Spans._built,
    model.ModelRequested: Spans._requested,
    model.ModelCompleted: Spans._answered,
    model.ModelFailed: Spans._failed,
    model.ModelSuperseded: Spans._superseded,
    context.ContextCompactionRequested: Spans._summary_requested,
    context.ContextCompacted: Spans._summarised,
    context.ContextCompactionFailed: Spans._summary_failed,
    tool.ToolStarted: Spans._tool_started,
    tool.ToolCompleted: Spans._tool_completed,
    tool.ToolFailed: Spans._tool_failed,
    tool.ToolOutcomeUnknown: Spans._tool_unknown,
    node.NodeStarted: Spans._node_started,
    node.NodeCompleted: Spans._node_completed,
    node.NodeFailed: Spans._node_failed,
    node.NodeSkipped: Spans._node_skipped,
    **dict.fromkeys(_ENDS, Spans._ended),
}
