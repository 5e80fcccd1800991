"""The laws of a run with a graph: those of every run, and those of its nodes, checked event by event."""

from __future__ import annotations

from typing import Any

from behest.v1.definition_pb2 import RunDefinition
from behest.v1.event_pb2 import Event
from behest.v1.run_state_pb2 import RunState
from behestd.core.signals import AskStatus, CallModel, CallTool, CancelTool
from behestd.core.state import Run
from behestd.core.window import is_valid
from behestd.runtime.kinds import wanted
from tests.core.laws import Laws


class GraphLaws(Laws):
    """Sees every event of one run, and complains."""

    def __init__(self, definition: RunDefinition) -> None:
        super().__init__(definition)
        self.models: dict[int, int] = {}
        self.steps: dict[int, int] = {}
        """The visit of each step."""
        self.asked: dict[int, list[str]] = {}
        """The calls of each visit's open step."""
        self.visits: dict[int, tuple[int, str]] = {}
        """Scope and node of each visit that is at work."""
        self.count = 0
        self.done: dict[tuple[int, str], str] = {}
        """What became of the nodes of each scope, since they last began anew."""
        self.most_at_once = 0
        self.in_flight: set[str] = set()

    def check(self, run: Run) -> None:
        """Hold a state after a commit against what the log says."""
        effects = wanted(run)
        for effect in effects:
            match effect:
                case CallModel():
                    assert self.models.get(effect.step) == effect.attempt, "a model call has its intent"
                case CallTool() | CancelTool() | AskStatus():
                    assert self.calls[effect.call_id]["attempt"] == effect.attempt, "a tool call has its intent"
                    assert effect.call_id not in self.results, "a call with a result is not called"
        assert (run.life.wait is not None) == (run.state == RunState.RUN_STATE_WAITING)
        if run.state == RunState.RUN_STATE_WAITING:
            assert not self.models, "a waiting run asks no model"
            assert run.life.wait is not None
            assert run.life.wait.until_ns > 0
        assert run.is_ended == self.ended
        if run.is_ended:
            assert effects == ()
            assert is_valid(run.transcript), "every call has exactly one result"
            if run.state == RunState.RUN_STATE_COMPLETED:
                assert not self.visits, "nothing is at work at a good end"

    # --- nodes ---

    def _run_created(self, payload: Any) -> None:
        """A fork goes on from what became of the nodes of its source."""
        for event in payload.forked_from.nodes:
            kind = event.WhichOneof("payload")
            getattr(self, f"_node_{kind}")(getattr(event, kind))
        self.steps.clear()

    def _node_started(self, payload: Any) -> None:
        self.count += 1
        assert payload.visit == self.count, "visits are dense"
        for other in payload.again:
            self.done.pop((payload.scope, _full(payload, other)), None)
        key = (payload.scope, payload.node)
        assert key not in self.done, "a finished node is not begun again, unless it is gone back to"
        assert key not in self.visits.values(), "a node is at work once"
        assert payload.scope == 0 or payload.scope in self.visits, "a subgraph is at work"
        self.visits[payload.visit] = key
        self.asked[payload.visit] = []
        if payload.HasField("call"):
            self.steps[payload.step] = payload.visit
            self._asks(payload.visit, [payload.call])

    def _node_over(self, payload: Any) -> None:
        assert self.visits.pop(payload.visit)[1] == payload.node
        assert not any(self.steps[step] == payload.visit for step in self.models), "no model call outlives its node"

    def _node_completed(self, payload: Any) -> None:
        self.done[self.visits[payload.visit]] = "completed"
        assert all(self.results[call_id] == 1 for call_id in self.asked[payload.visit])
        self._node_over(payload)

    def _node_failed(self, payload: Any) -> None:
        self.done[self.visits[payload.visit]] = "failed"
        self._node_over(payload)

    def _node_skipped(self, payload: Any) -> None:
        key = (payload.scope, payload.node)
        assert key not in self.done
        self.done[key] = "skipped"
        if payload.visit:
            self._node_over(payload)

    # --- model ---

    def _context_built(self, payload: Any) -> None:
        assert payload.visit in self.visits
        assert payload.step not in self.steps, "steps count over the whole run"
        self.steps[payload.step] = payload.visit

    def _model_requested(self, payload: Any) -> None:
        visit = self.steps[payload.step]
        assert not any(self.steps[step] == visit for step in self.models), "one model call of a node at a time"
        self.attempts[payload.step] += 1
        assert payload.attempt == self.attempts[payload.step], "attempts are 1..k"
        assert payload.step not in self.completed_steps
        assert all(self.results[call_id] == 1 for call_id in self.asked[visit]), (
            "results come before the next model call"
        )
        self.models[payload.step] = payload.attempt
        self.most_at_once = max(self.most_at_once, len(self.models))

    def _model_over(self, payload: Any) -> None:
        assert self.models.pop(payload.step) == payload.attempt

    _model_failed = _model_over
    _model_superseded = _model_over

    def _model_completed(self, payload: Any) -> None:
        self._model_over(payload)
        self.completed_steps.add(payload.step)
        calls = [part.tool_call for part in payload.message.parts if part.WhichOneof("kind") == "tool_call"]
        self._asks(self.steps[payload.step], calls)

    def _asks(self, visit: int, calls: list[Any]) -> None:
        self.asked[visit] = [call.id for call in calls]
        for call in calls:
            assert call.id not in self.calls, "call ids are ours and unique"
            self.calls[call.id] = {"name": call.name, "arguments": call.arguments_json, "attempt": 0, "proved": True}
        self.open = [call_id for asked in self.asked.values() for call_id in asked]

    def _run_completed(self, payload: Any) -> None:
        assert not self.models
        assert not self.visits, "what is at work is stopped before the end"
        self._run_over(payload)

    # --- tools ---

    def _tool_started(self, payload: Any) -> None:
        super()._tool_started(payload)
        self.in_flight.add(payload.call_id)

    def _tool_completed(self, payload: Any) -> None:
        super()._tool_completed(payload)
        self.in_flight.discard(payload.call_id)

    def _tool_failed(self, payload: Any) -> None:
        super()._tool_failed(payload)
        self.in_flight.discard(payload.call_id)

    def _tool_outcome_unknown(self, payload: Any) -> None:
        super()._tool_outcome_unknown(payload)
        self.in_flight.discard(payload.call_id)

    def _run_over(self, payload: Any) -> None:
        assert not self.in_flight, "the log says of each call in flight what became of it"

    _run_failed = _run_over
    _run_cancelled = _run_over
    _run_timed_out = _run_over


def _full(payload: Any, name: str) -> str:
    """The path of a node beside the one of a payload."""
    path, slash, _ = payload.node.rpartition("/")
    return f"{path}{slash}{name}"


def kind_of(event: Event) -> str:
    """The kind of an event."""
    return event.WhichOneof("payload") or ""
