"""What is counted, and the listener that counts it from the events of runs. docs/telemetry.md lists it all.

Above: the composition, which hands the listener to the runtime and the instruments to the exporters. Below:
`instruments`. Nothing that a client or a model wrote becomes a label but names: of namespaces, models, tools,
operators and states. Ids of runs are no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from behest.v1 import model_event_pb2 as model
from behest.v1 import node_event_pb2 as node
from behest.v1 import run_event_pb2 as events
from behest.v1 import tool_event_pb2 as tool
from behest.v1.run_state_pb2 import RunState
from behestd.core.asking import asked
from behestd.core.run import Payload
from behestd.core.state import TERMINAL, Run, state_name
from behestd.core.times import SECOND
from behestd.telemetry import names, w3c
from behestd.telemetry.instruments import (
    OTHER,
    QUICK_SECONDS,
    TOKENS,
    Counter,
    Description,
    Gauge,
    Histogram,
    Instrument,
    Labels,
)

Trace = tuple[str, str] | None

RUNS_CREATED = Description("behest.runs.created", "{run}", "Runs created.", (names.NAMESPACE,))
RUNS_ENDED = Description("behest.runs.ended", "{run}", "Runs ended, by state.", (names.NAMESPACE, names.STATE))
RUNS_CURRENT = Description(
    "behest.runs.current", "{run}", "Runs driven here that have not ended, by state.", (names.STATE,)
)
APPROVALS = Description("behest.approvals.pending", "{call}", "Calls of tools that wait for an approval.")
RUN_DURATION = Description("behest.run.duration", "s", "From a run's creation to its end.", (names.STATE,))
RUN_QUEUED = Description("behest.run.queue.duration", "s", "From a run's creation to its start.")
RUN_FIRST_DELTA = Description(
    "behest.run.time_to_first_delta", "s", "From a run's creation to the first piece of an answer."
)
MODEL_DURATION = Description(
    "gen_ai.client.operation.duration",
    "s",
    "Attempts at models, of runs or not; error.type says why one failed.",
    (names.OPERATION, names.PROVIDER, names.MODEL, names.NAMESPACE, names.ERROR),
)
MODEL_FIRST_CHUNK = Description(
    "gen_ai.client.operation.time_to_first_chunk",
    "s",
    "From the call of a model by a run to the first piece of its answer.",
    (names.MODEL, names.NAMESPACE),
)
MODEL_TOKENS = Description(
    "gen_ai.client.token.usage",
    "{token}",
    "Tokens of an attempt at a model: input or output.",
    (names.MODEL, names.NAMESPACE, names.TOKEN_TYPE),
)
TOOL_DURATION = Description(
    "behest.tool.duration",
    "s",
    "Attempts at calls of tools; error.type says why one failed.",
    (names.TOOL, names.NAMESPACE, names.ERROR),
)
NODE_DURATION = Description(
    "behest.node.duration",
    "s",
    "Visits of nodes of reasoning graphs, by what came of them; error.type says why one failed.",
    (names.OPERATOR, names.NAMESPACE, names.OUTCOME, names.ERROR),
)
RPC_DURATION = Description(
    "rpc.server.call.duration",
    "s",
    "Calls that were answered; a stream counts when it ends.",
    (names.RPC_METHOD, names.RPC_CODE),
)
RPC_REFUSED = Description(
    "behest.rpc.failures", "{call}", "Calls that were refused, shed or failed, by reason.", (names.REASON,)
)

_STATES: Mapping[int, str] = {
    state: state_name(state).lower() for state in RunState.values() if state and state not in TERMINAL
}
_ENDS = (events.RunCompleted, events.RunFailed, events.RunCancelled, events.RunTimedOut)
_OUTPUT, _INPUT = "output", "input"


class _Live:
    """What has to be remembered of a run until something of it ends."""

    __slots__ = ("asked", "has_spoken", "requested", "state", "tools")

    def __init__(self) -> None:
        self.state = self.asked = 0
        """As they are counted: its state, and how many of its calls wait for an approval."""
        self.requested: dict[int, tuple[int, str]] = {}
        """When the latest attempt of each open step was made, and at which model."""
        self.has_spoken = False
        self.tools: dict[str, str] = {}


class Metrics:
    """Counts. A Listener; used on the loop alone, and read from anywhere."""

    __slots__ = (
        "_live",
        "_says_traces",
        "instruments",
        "model_duration",
        "model_tokens",
        "node_duration",
        "rpc_duration",
        "rpc_refused",
        "runs",
        "tool_duration",
    )

    def __init__(self, *, says_traces: bool = False) -> None:
        self._live: dict[tuple[str, str], _Live] = {}
        self._says_traces = says_traces
        self.runs = _Runs()
        self.model_duration = Histogram(MODEL_DURATION)
        self.model_tokens = Histogram(MODEL_TOKENS, TOKENS)
        self.tool_duration = Histogram(TOOL_DURATION)
        self.node_duration = Histogram(NODE_DURATION)
        self.rpc_duration = Histogram(RPC_DURATION, (*QUICK_SECONDS, 30.0, 300.0))
        self.rpc_refused = Counter(RPC_REFUSED)
        runs = self.runs
        self.instruments: list[Instrument] = [
            *runs.current,
            *(runs.created, runs.ended, runs.duration, runs.queued, runs.first_delta, runs.first_chunk),
            *(self.model_duration, self.model_tokens, self.tool_duration, self.node_duration),
            *(self.rpc_duration, self.rpc_refused),
        ]

    def trace(self, traceparent: str, key: str = "") -> Trace:
        """What an exemplar says of a trace, and of the span that a key names in it. None where nothing is recorded."""
        if not self._says_traces or not w3c.is_recorded(traceparent):
            return None
        return w3c.trace_id(traceparent), w3c.span_of(key) if key else w3c.span_id(traceparent)

    # --- of runs ---

    def adopted(self, run: Run, now_ns: int) -> None:
        """See Listener."""
        live = self._live_of(run)
        live.tools = {call.call.id: call.call.name for call in run.calls}
        # What was said, was said in an earlier process.
        live.has_spoken = run.spend.attempts > 0
        self.runs.move(live, run.state, asked(run))

    def gone(self, run: Run) -> None:
        """See Listener."""
        live = self._live.pop((run.created.namespace, run.id), None)
        if live is not None:
            self.runs.move(live, 0, 0)

    def _live_of(self, run: Run) -> _Live:
        key = (run.created.namespace, run.id)
        live = self._live.get(key)
        if live is None:
            live = self._live[key] = _Live()
        return live

    def committed(self, after: Run, payloads: Sequence[Payload], now_ns: int) -> None:
        """See Listener."""
        live = self._live_of(after)
        for payload in payloads:
            count = _COUNTED.get(type(payload))
            if count is not None:
                count(self, live, after, payload, now_ns)
        waiting = asked(after) if after.step.calls or after.nodes is not None else 0
        if after.state != live.state or waiting != live.asked:
            self.runs.move(live, after.state, waiting)

    def first_delta(self, run: Run, step: int, now_ns: int) -> None:
        """See Listener."""
        live = self._live.get((run.created.namespace, run.id))
        if live is None:
            return
        trace = self.trace(run.created.traceparent, w3c.run_key(run.id))
        if step in live.requested:
            requested_ns, endpoint = live.requested[step]
            self.runs.first_chunk.observe((now_ns - requested_ns) / SECOND, (endpoint, run.created.namespace), trace)
        if not live.has_spoken:
            live.has_spoken = True
            self.runs.first_delta.observe((now_ns - run.life.create_ns) / SECOND, (), trace)

    def _created(self, live: _Live, run: Run, payload: Any, now_ns: int) -> None:
        self.runs.created.add((run.created.namespace,))

    def _started(self, live: _Live, run: Run, payload: Any, now_ns: int) -> None:
        self.runs.queued.observe((now_ns - run.life.create_ns) / SECOND)

    def _ended(self, live: _Live, run: Run, payload: Any, now_ns: int) -> None:
        state = state_name(run.state).lower()
        self.runs.ended.add((run.created.namespace, state))
        trace = self.trace(run.created.traceparent, w3c.run_key(run.id))
        self.runs.duration.observe((now_ns - run.life.create_ns) / SECOND, (state,), trace)

    def _requested(self, live: _Live, run: Run, payload: Any, now_ns: int) -> None:
        requested = (now_ns, payload.endpoint)
        if run.nodes is None:
            live.requested = {payload.step: requested}
            return
        open_steps = {step for step, _ in run.attempts}
        others = {step: known for step, known in live.requested.items() if step in open_steps}
        live.requested = {**others, payload.step: requested}

    def _tool_started(self, live: _Live, run: Run, payload: Any, now_ns: int) -> None:
        live.tools[payload.call_id] = payload.name

    def _tool_completed(self, live: _Live, run: Run, payload: Any, now_ns: int) -> None:
        self._tool(live, run, payload, "tool_error" if payload.is_error else "")

    def _tool_failed(self, live: _Live, run: Run, payload: Any, now_ns: int) -> None:
        self._tool(live, run, payload, payload.reason or OTHER)

    def _tool_unknown(self, live: _Live, run: Run, payload: Any, now_ns: int) -> None:
        self._tool(live, run, payload, payload.reason or "TOOL_OUTCOME_UNKNOWN")

    def _tool(self, live: _Live, run: Run, payload: Any, error: str) -> None:
        elapsed = payload.elapsed
        trace = self.trace(run.created.traceparent, w3c.run_key(run.id))
        # A call that never left may be of a tool that the model made up.
        name = live.tools.get(payload.call_id, OTHER) if payload.attempt else OTHER
        labels = (name, run.created.namespace, error)
        self.tool_duration.observe(elapsed.seconds + elapsed.nanos / SECOND, labels, trace)

    def _node_completed(self, live: _Live, run: Run, payload: node.NodeCompleted, now_ns: int) -> None:
        outcome = node.NodeOutcome.Name(payload.outcome).removeprefix("NODE_OUTCOME_").lower()
        self._node(run, payload.visit, now_ns, (outcome, ""))

    def _node_failed(self, live: _Live, run: Run, payload: node.NodeFailed, now_ns: int) -> None:
        self._node(run, payload.visit, now_ns, ("", payload.reason or OTHER))

    def _node_skipped(self, live: _Live, run: Run, payload: node.NodeSkipped, now_ns: int) -> None:
        if payload.visit:
            outcome = node.NodeSkipReason.Name(payload.reason).removeprefix("NODE_SKIP_REASON_").lower()
            self._node(run, payload.visit, now_ns, (outcome, ""))

    def _node(self, run: Run, number: int, now_ns: int, how: tuple[str, str]) -> None:
        if run.nodes is None:
            return
        visit = run.nodes.visit(number)
        labels = (visit.started.operator or names.SUBGRAPH, run.created.namespace, *how)
        trace = self.trace(run.created.traceparent, w3c.node_key(run.id, number))
        self.node_duration.observe((now_ns - visit.start_ns) / SECOND, labels, trace)

    # --- of everything else ---

    def model(self, operation: str, whose: tuple[str, str], seconds: float, error: str, trace: Trace) -> None:
        """Count an attempt at a model: `whose` is its namespace, empty for everybody's, and its id.

        `error` is empty when it ended well.
        """
        namespace, model_id = whose
        labels = (operation, model_id.partition("/")[0], model_id, namespace, error)
        self.model_duration.observe(seconds, labels, trace)

    def tokens(self, whose: tuple[str, str], input_tokens: int, output_tokens: int) -> None:
        """Count what an attempt at a model used."""
        namespace, model_id = whose
        self.model_tokens.observe(input_tokens, (model_id, namespace, _INPUT))
        self.model_tokens.observe(output_tokens, (model_id, namespace, _OUTPUT))


class _Runs:
    """The instruments of runs."""

    __slots__ = ("_asked", "_states", "created", "current", "duration", "ended", "first_chunk", "first_delta", "queued")

    def __init__(self) -> None:
        self._states = dict.fromkeys(_STATES, 0)
        self._asked = 0
        self.current = (Gauge(RUNS_CURRENT, self._by_state), Gauge(APPROVALS, lambda: {(): self._asked}))
        self.created = Counter(RUNS_CREATED)
        self.ended = Counter(RUNS_ENDED)
        self.duration = Histogram(RUN_DURATION)
        self.queued = Histogram(RUN_QUEUED)
        self.first_delta = Histogram(RUN_FIRST_DELTA)
        self.first_chunk = Histogram(MODEL_FIRST_CHUNK)

    def move(self, live: _Live, state: int, waiting: int) -> None:
        """Count a run in another state, 0 for none any more, and so many of its calls that wait for an approval."""
        states = self._states
        if live.state in states:
            states[live.state] -= 1
        if state in states:
            states[state] += 1
        self._asked += waiting - live.asked
        live.state, live.asked = state, waiting

    def _by_state(self) -> Mapping[Labels, float]:
        return {(name,): self._states[state] for state, name in _STATES.items()}


_COUNTED: dict[type, Callable[[Metrics, _Live, Run, Any, int], None]] = {
    events.RunCreated: Metrics._created,
    events.RunStarted: Metrics._started,
    **dict.fromkeys(_ENDS, Metrics._ended),
    model.ModelRequested: Metrics._requested,
    tool.ToolStarted: Metrics._tool_started,
    tool.ToolCompleted: Metrics._tool_completed,
    tool.ToolFailed: Metrics._tool_failed,
    tool.ToolOutcomeUnknown: Metrics._tool_unknown,
    node.NodeCompleted: Metrics._node_completed,
    node.NodeFailed: Metrics._node_failed,
    node.NodeSkipped: Metrics._node_skipped,
}
