"""Spans of runs, made of the events that their drivers commit: run, step, attempt at a model, attempt at a tool call.

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
from behest.v1 import run_event_pb2 as events
from behest.v1 import tool_event_pb2 as tool
from behest.v1.chat_pb2 import FinishReason
from behest.v1.run_state_pb2 import RunState
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


class _Live:
    """What is known of the spans of a run that have not ended. Times are when they began."""

    __slots__ = ("calls", "endpoint", "is_resumed", "request_ns", "step", "step_ns", "summary_ns")

    def __init__(self) -> None:
        self.step = 0
        self.step_ns = 0
        self.request_ns = 0
        self.summary_ns = 0
        self.endpoint = ""
        self.calls: dict[str, tuple[int, tool.ToolStarted]] = {}
        self.is_resumed = False


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
        live.is_resumed = True
        live.step, live.step_ns, live.request_ns, live.summary_ns = run.step.number, now_ns, now_ns, now_ns
        live.endpoint = run.step.open.endpoint if run.step.open is not None else ""
        for call in run.step.calls:
            if call.started is not None:
                live.calls[call.call.id] = (call.first_start_ns or now_ns, call.started)

    def gone(self, run: Run) -> None:
        """See Listener."""
        self._live.pop((run.created.namespace, run.id), None)

    def first_delta(self, run: Run, now_ns: int) -> None:
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

    def _requested(self, live: _Live, run: Run, payload: model.ModelRequested, now_ns: int) -> None:
        if payload.step != live.step:
            self._end_step(live, run, now_ns)
            live.step, live.step_ns, live.is_resumed = payload.step, now_ns, False
        live.request_ns, live.endpoint = now_ns, payload.endpoint

    def _answered(self, live: _Live, run: Run, payload: model.ModelCompleted, now_ns: int) -> None:
        reason = FinishReason.Name(payload.finish_reason).removeprefix("FINISH_REASON_").lower()
        self._end_attempt(live, run, payload, now_ns, {names.FINISH_REASONS: (reason,)})

    def _failed(self, live: _Live, run: Run, payload: model.ModelFailed, now_ns: int) -> None:
        self._end_attempt(live, run, payload, now_ns, {}, payload.reason or "unknown")

    def _superseded(self, live: _Live, run: Run, payload: model.ModelSuperseded, now_ns: int) -> None:
        reason = model.SupersedeReason.Name(payload.reason).removeprefix("SUPERSEDE_REASON_").lower()
        self._end_attempt(live, run, payload, now_ns, {}, reason)

    def _end_attempt(self, live: _Live, run: Run, payload: Any, now_ns: int, more: Attributes, error: str = "") -> None:
        name, attributes = _chat(live.endpoint, payload)
        key, parent = w3c.model_key(run.id, payload.step, payload.attempt), self._step(run, payload.step)
        times = (live.request_ns, now_ns)
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

    def _end_step(self, live: _Live, run: Run, now_ns: int) -> None:
        if not live.step:
            return
        attributes = {names.STEP: live.step, names.RESUMED: live.is_resumed or None}
        key = w3c.step_key(run.id, live.step)
        self._recorder.record(Ended("step", _above(run), key, live.step_ns, now_ns, attributes))
        live.step = 0
        live.calls.clear()

    def _step(self, run: Run, step: int) -> str:
        """The context of a step, which its attempts stand under."""
        return w3c.under(run.created.traceparent, w3c.step_key(run.id, step))

    # --- tool calls ---

    def _tool_started(self, live: _Live, run: Run, payload: tool.ToolStarted, now_ns: int) -> None:
        live.calls[payload.call_id] = (now_ns, payload)

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
        begin_ns, started = begun
        attributes = {
            names.OPERATION: names.OPERATION_TOOL,
            names.TOOL: started.name,
            names.TOOL_CALL: payload.call_id,
            names.ATTEMPT: payload.attempt,
        }
        name, is_remote = f"{names.OPERATION_TOOL} {started.name}", bool(started.endpoint)
        parent, key = self._step(run, live.step), w3c.tool_key(started.key, payload.attempt)
        self._recorder.record(Ended(name, parent, key, begin_ns, now_ns, attributes, error, is_remote))

    # --- the run ---

    def _ended(self, live: _Live, run: Run, payload: Any, now_ns: int) -> None:
        self._end_step(live, run, now_ns)
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
    **dict.fromkeys(_ENDS, Spans._ended),
}
