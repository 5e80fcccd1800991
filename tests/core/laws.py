"""The laws that the log of one run must keep, checked event by event and apart from the fold.

A second opinion, which knows the log by its messages alone: I2 (density), I5, I6, I7, I11, I12, I13, I14.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import Any

from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.event_pb2 import Event
from behest.v1.run_state_pb2 import RunState
from behest.v1.tool_pb2 import Executed, SideEffect
from behestd.core.signals import AskStatus, CallModel, CallTool, CancelTool
from behestd.core.state import Run
from behestd.core.wanted import wanted
from behestd.core.window import is_valid

TERMINAL = {"run_completed", "run_failed", "run_cancelled", "run_timed_out"}
INTENTS = {"model_requested", "tool_started", "approval_requested", "run_waiting", "run_resumed", "context_built"}
NEEDS_PROOF = {SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE, SideEffect.SIDE_EFFECT_NON_IDEMPOTENT}


class Laws:
    """Sees every event of one run, and complains."""

    def __init__(self, definition: RunDefinition) -> None:
        self.declared = {tool.name for tool in definition.tools}
        self.sequence = 0
        self.epoch = 0
        self.ended = False
        self.ending = False
        self.attempts: Counter[Any] = Counter()
        self.results: Counter[str] = Counter()
        self.calls: dict[str, dict[str, Any]] = {}
        self.open: list[str] = []
        self.model: tuple[int, int] | None = None
        self.completed_steps: set[int] = set()

    def see(self, event: Event) -> None:
        """Take the next event."""
        kind = event.WhichOneof("payload") or ""
        payload = getattr(event, kind)
        self.sequence += 1
        assert event.sequence == self.sequence, "sequences are dense"
        assert event.epoch == self.epoch + (kind == "run_claimed"), "a claim raises the epoch, nothing else does"
        self.epoch = event.epoch
        assert not self.ended, f"{kind} after the end"
        self.ended = kind in TERMINAL
        assert not (self.ending and kind in INTENTS), f"{kind} after the run was told to end"
        self.ending = self.ending or kind in ("run_cancel_requested", "run_deadline_exceeded")
        check = getattr(self, f"_{kind}", None)
        if check is not None:
            check(payload)

    def check(self, run: Run) -> None:
        """Hold a state after a commit against what the log says."""
        effects = wanted(run)
        for effect in effects:
            match effect:
                case CallModel():
                    assert (effect.step, effect.attempt) == self.model, "a model call has its intent"
                case CallTool() | CancelTool() | AskStatus():
                    call = self.calls[effect.call_id]
                    assert call["attempt"] == effect.attempt, "a tool call has its intent"
                    assert effect.call_id not in self.results, "a call with a result is not called"
        if run.state == RunState.RUN_STATE_WAITING:
            followed = {call.call.id for call in run.step.calls if call.child is not None}
            wanted_calls = {effect.call_id for effect in effects if isinstance(effect, CallTool)}
            assert len(wanted_calls) == len(effects), "a waiting run wants nothing"
            assert wanted_calls <= followed, "a waiting run wants nothing but word of its child runs"
            assert self.model is None
            assert run.life.wait is not None
            assert run.life.wait.until_ns > 0
        else:
            assert run.life.wait is None
        assert run.is_ended == self.ended
        if run.is_ended:
            assert effects == ()
            assert is_valid(run.transcript), "every call has exactly one result"

    # --- model ---

    def _model_requested(self, payload: Any) -> None:
        assert self.model is None, "one model call at a time"
        self.attempts[payload.step] += 1
        assert payload.attempt == self.attempts[payload.step], "attempts are 1..k"
        assert payload.step not in self.completed_steps
        for call_id in self.open:
            assert self.results[call_id] == 1, "each call has one result before the next model call"
        self.model = (payload.step, payload.attempt)

    def _model_over(self, payload: Any) -> None:
        assert self.model == (payload.step, payload.attempt)
        self.model = None

    _model_failed = _model_over
    _model_superseded = _model_over

    def _model_completed(self, payload: Any) -> None:
        self._model_over(payload)
        self.completed_steps.add(payload.step)
        calls = [part.tool_call for part in payload.message.parts if part.WhichOneof("kind") == "tool_call"]
        self.open = [call.id for call in calls]
        for call in calls:
            assert call.id not in self.calls, "call ids are ours and unique"
            self.calls[call.id] = {"name": call.name, "arguments": call.arguments_json, "attempt": 0, "proved": True}

    def _run_completed(self, payload: Any) -> None:
        assert self.completed_steps, "an end needs an answer"
        assert self.model is None
        assert all(self.results[call_id] == 1 for call_id in self.open)

    # --- tools ---

    def _tool_started(self, payload: Any) -> None:
        call = self.calls[payload.call_id]
        assert payload.call_id in self.open
        assert payload.call_id not in self.results, "a call with a result is not sent again"
        assert payload.name == call["name"]
        assert payload.name in self.declared, "only declared tools are called"
        assert payload.attempt == call["attempt"] + 1, "attempts are 1..k"
        assert payload.arguments_json == call["arguments"], "what is sent is what was asked for or approved"
        assert payload.args_hash == sha256(payload.arguments_json.encode()).digest()
        assert payload.key == call.setdefault("key", payload.key), "one key for all attempts"
        assert sum(other.get("key") == payload.key for other in self.calls.values()) == 1, "one call for a key"
        assert payload.allowed_by, "something allowed it"
        assert call.get("approval") in (None, "approved"), "the word comes before the call"
        if payload.side_effect in NEEDS_PROOF:
            assert call["proved"], "what may have taken effect is never sent twice"
        call["attempt"], call["proved"] = payload.attempt, False

    def _result(self, call_id: str) -> None:
        self.results[call_id] += 1
        assert self.results[call_id] == 1, "one result for a call"

    def _tool_completed(self, payload: Any) -> None:
        assert payload.attempt == self.calls[payload.call_id]["attempt"]
        self._result(payload.call_id)

    def _tool_failed(self, payload: Any) -> None:
        call = self.calls[payload.call_id]
        assert payload.attempt == call["attempt"]
        call["proved"] = payload.executed == Executed.EXECUTED_NO
        if payload.is_final:
            self._result(payload.call_id)

    def _tool_denied(self, payload: Any) -> None:
        self._result(payload.call_id)

    def _tool_outcome_unknown(self, payload: Any) -> None:
        if not payload.HasField("until"):
            self._result(payload.call_id)

    def _tool_resolved(self, payload: Any) -> None:
        self.calls[payload.call_id]["proved"] = payload.executed == Executed.EXECUTED_NO
        if payload.HasField("result"):
            self._result(payload.call_id)

    def _approval_requested(self, payload: Any) -> None:
        call = self.calls[payload.call_id]
        assert "approval" not in call, "a call asks once"
        assert payload.args_hash == sha256(call["arguments"].encode()).digest()
        call["approval"] = "asked"

    def _approval_decided(self, payload: Any) -> None:
        call = self.calls[payload.call_id]
        assert call["approval"] == "asked", "an approval is used once"
        approved = payload.decision == ApprovalDecision.APPROVAL_DECISION_APPROVED
        call["approval"] = "approved" if approved else "refused"
        call["arguments"] = payload.arguments_json or call["arguments"]
