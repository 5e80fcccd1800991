"""Performs tool calls: one attempt at the executor the run was pinned to, its output cut to what a model is told.

Above: `performer`. Below: the tools' catalog and executors, blobs for output that is cut. What came is told as a
signal, failures with what is known of their effect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog

from behest.v1.artifact_pb2 import Artifact
from behest.v1.message_pb2 import Part, TextPart, ToolResult
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed, Progress
from behestd.core.calls import REDOABLE
from behestd.core.signals import AskStatus, CallTool, CancelTool, Held, Signal, StatusKnown, ToolBroke, ToolEnded
from behestd.core.state import Call as CallState
from behestd.core.state import Phase, Run
from behestd.core.times import SECOND, nanoseconds
from behestd.errors import BehestError, StorageFull
from behestd.failpoint import failpoint
from behestd.runtime.artifacts import Artifacts
from behestd.runtime.clock import Clock
from behestd.runtime.live import Deltas
from behestd.runtime.pauses import HeldBack, Switch
from behestd.runtime.slots import Slots, Turn
from behestd.telemetry import w3c
from behestd.tools.catalog import Catalog
from behestd.tools.policy import timeouts
from behestd.tools.tool import (
    Answer,
    Call,
    CannotTell,
    Done,
    Executor,
    Late,
    NeverSeen,
    Running,
    Timeouts,
    ToolFailure,
)
from behestd.tools.truncate import Limits, cut, is_over

logger = structlog.get_logger(__name__)

_ASK_AGAIN_SECONDS = 5.0
_FULL_RETRY_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 0.5
_PATIENCE_SECONDS = 300.0
_STATUS_WAIT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Leftover:
    """An attempt that ran out of its time, and the answer that may still come to it."""

    namespace: str
    run_id: str
    call_id: str
    attempt: int
    key: str
    late: Late


class ToolPerformer:
    """Performs the tool calls of all runs, so many at once. Who takes the `leftovers` waits for late answers."""

    __slots__ = ("_artifacts", "_catalog", "_clock", "_slots", "leftovers")

    def __init__(self, catalog: Catalog, artifacts: Artifacts, clock: Clock, slots: Slots) -> None:
        self._catalog = catalog
        self._artifacts = artifacts
        self._clock = clock
        self._slots = slots
        self.leftovers: asyncio.Queue[Leftover] = asyncio.Queue()

    def set_slots(self, slots: int) -> None:
        """Perform so many calls at once from now on."""
        self._slots.resize(slots)

    async def call(self, effect: CallTool, run: Run, deltas: Deltas, trace_id: str, switch: Switch) -> Signal:
        """Make one attempt, as part of a trace, unless the switch is set by the time that it would leave."""
        state = run.call(effect.call_id)
        assert state is not None
        begun = time.monotonic_ns()
        stretch = deltas.of_call(run, effect.call_id)

        def show(progress: Progress) -> None:
            failpoint("tool.working", run.id)
            stretch.add_progress(effect.call_id, effect.attempt, progress)
            deltas.pulse()

        try:
            executor = self._executor(run, state)
            async with self._place(run, state):
                failpoint("tool.before_send", run.id)
                if not _is_resumed(run, state):
                    switch.hold_call(run, state)
                answer = await executor.call(self._attempt(run, state, trace_id), show)
            failpoint("tool.after_send", run.id)
            elapsed_ns = time.monotonic_ns() - begun
            return await self._ended(effect, run, state, answer, elapsed_ns)
        except HeldBack:
            return Held(effect)
        except ToolFailure as failure:
            if failure.late is not None:
                self._leave(run, state, failure.late)
            return _broke(effect, failure, time.monotonic_ns() - begun)
        except BehestError as error:
            permanent = FailureClass.FAILURE_CLASS_PERMANENT
            refused = ToolFailure(permanent, Executed.EXECUTED_NO, error.reason, error.message)
            return _broke(effect, refused, time.monotonic_ns() - begun)
        except Exception:
            logger.exception("tool call failed by a fault", run_id=run.id, tool=state.call.name)
            ambiguous = FailureClass.FAILURE_CLASS_AMBIGUOUS
            fault = ToolFailure(ambiguous, Executed.EXECUTED_UNKNOWN, "RUNTIME_INTERNAL", "a fault of the daemon")
            return _broke(effect, fault, time.monotonic_ns() - begun)

    def _leave(self, run: Run, state: CallState, late: Late) -> None:
        """Leave an attempt to who waits for late answers. The failure that it ends with is told before one can come."""
        assert state.started is not None
        key = state.started.key
        self.leftovers.put_nowait(Leftover(run.created.namespace, run.id, state.call.id, state.attempt, key, late))

    async def settle(self, run: Run, leftover: Leftover, answer: Answer) -> Signal:
        """Make the signal of an answer that came late."""
        state = run.call(leftover.call_id)
        assert state is not None
        return await self._ended(CallTool(leftover.call_id, leftover.attempt), run, state, answer, 0)

    async def join(self, run: Run, call_id: str) -> Signal | None:
        """Join a call of unknown outcome at the server that holds it, as long as its outcome is waited for.

        None when that brings nothing.
        """
        state = run.call(call_id)
        if state is None or state.started is None or state.phase is not Phase.UNKNOWN:
            return None
        effect = CallTool(call_id, state.attempt)
        left_seconds = max(state.due_ns - self._clock.now_ns(), 0) / SECOND
        attempt = self._attempt(run, state)
        limits = replace(attempt.timeouts, start_to_close_seconds=left_seconds)
        joined = replace(attempt, timeouts=limits, resumed_lease=state.started.lease_id)
        try:
            answer = await self._executor(run, state).call(joined, _show_nobody)
            return await self._ended(effect, run, state, answer, 0)
        except BehestError as error:
            logger.info("late answer not had", run_id=run.id, call_id=call_id, reason=error.reason)
            return None

    async def _ended(
        self, effect: CallTool, run: Run, state: CallState, answer: Answer, elapsed_ns: int
    ) -> ToolEnded | ToolBroke:
        """Tell the result of a call that was executed, whatever keeps the runtime from keeping it."""
        try:
            result = await self.result(run, state, answer)
        except BehestError as error:
            permanent = FailureClass.FAILURE_CLASS_PERMANENT
            lost = ToolFailure(permanent, Executed.EXECUTED_YES, error.reason, error.message)
            return _broke(effect, lost, elapsed_ns)
        return ToolEnded(effect.call_id, effect.attempt, result, elapsed_ns)

    @asynccontextmanager
    async def _place(self, run: Run, state: CallState) -> AsyncIterator[None]:
        """Hold one of the places for calls at once. Raises ToolFailure when the call did not get one in its time.

        A call that an earlier owner sent had its place, and is not held up.
        """
        assert state.started is not None
        if _is_resumed(run, state):
            yield
            return
        key = (run.created.namespace, run.id)
        left_seconds = max(nanoseconds(state.started.deadline) - self._clock.now_ns(), 0) / SECOND
        turn = await self._slots.take(key, state.call.id, left_seconds)
        if turn is not Turn.TAKEN:
            transient = FailureClass.FAILURE_CLASS_TRANSIENT
            reason = "TOOL_TIMEOUT" if turn is Turn.EXPIRED else "TOOL_CANCELLED"
            text = "the call waited for others to end and did not leave"
            raise ToolFailure(transient, Executed.EXECUTED_NO, reason, text)
        try:
            yield
        finally:
            self._slots.give(key)

    def _executor(self, run: Run, state: CallState) -> Executor:
        """Who executes the attempt: the server that was journaled, if it serves the tool as it was pinned."""
        assert state.tool is not None
        assert state.started is not None
        tools = self._catalog.snapshot(run.created.namespace)
        try:
            return tools.route_to(state.call.name, state.tool.hash, state.started.endpoint).executor
        except ToolFailure as failure:
            if not _is_resumed(run, state):
                raise
            # It left with an earlier owner, and may have taken effect whoever serves the tool now.
            ambiguous = FailureClass.FAILURE_CLASS_AMBIGUOUS
            raise ToolFailure(ambiguous, Executed.EXECUTED_UNKNOWN, "TOOL_UNAVAILABLE", failure.message) from failure

    def _attempt(self, run: Run, state: CallState, trace_id: str = "") -> Call:
        started = state.started
        assert started is not None
        return Call(
            namespace=run.created.namespace,
            run_id=run.id,
            session_id=run.created.session_id,
            call_id=state.call.id,
            name=state.call.name,
            arguments_json=state.call.arguments_json,
            key=started.key,
            attempt=state.attempt,
            epoch=run.head.epoch,
            side_effect=started.side_effect,
            tool_hash=started.tool_hash,
            deadline_ns=nanoseconds(started.deadline),
            traceparent=w3c.under(
                w3c.of_run(run.created.traceparent, trace_id), w3c.tool_key(started.key, state.attempt)
            ),
            timeouts=self._timeouts(run, state),
            wants_late=started.side_effect not in REDOABLE,
            resumed_lease=started.lease_id if _is_resumed(run, state) else None,
        )

    def _timeouts(self, run: Run, state: CallState) -> Timeouts:
        """The limits of the attempt, within those of all attempts; one that was sent before has what is left of it."""
        assert state.started is not None
        limits = timeouts(state.tool.policy) if state.tool is not None else Timeouts()
        end_ns = nanoseconds(state.started.deadline)
        if not _is_resumed(run, state):
            end_ns = state.first_start_ns + int(limits.schedule_to_close_seconds * SECOND)
        left_seconds = max(end_ns - self._clock.now_ns(), 0) / SECOND
        return replace(limits, start_to_close_seconds=min(limits.start_to_close_seconds, left_seconds))

    async def result(self, run: Run, state: CallState, answer: Answer) -> ToolResult:
        """The answer as the model is told it: texts cut to the run's limits, the whole kept as an artifact."""
        bounds = run.definition.limits
        limits = Limits(max(bounds.tool_output_lines, 3), max(bounds.tool_output_bytes, 512))
        result = answer.result(state.call.id, state.call.name)
        parts: list[Part] = []
        for part in result.parts:
            if part.WhichOneof("kind") != "text" or not is_over(part.text.text, limits):
                parts.append(part)
                continue
            artifact = await self._keep(run, state, part.text.text)
            result.artifact_id, result.truncated = artifact.id, True
            parts.append(Part(text=TextPart(text=cut(part.text.text, artifact.id, limits))))
        del result.parts[:]
        result.parts.extend(parts)
        return result

    async def _keep(self, run: Run, state: CallState, text: str) -> Artifact:
        about = Artifact(
            session_id=run.created.session_id,
            run_id=run.id,
            call_id=state.call.id,
            name=f"{state.call.name}-{state.call.id}.txt",
            media_type="text/plain; charset=utf-8",
        )
        content = text.encode(errors="replace")
        while True:
            try:
                return await self._artifacts.keep(run.created.namespace, about, content)
            except StorageFull:
                # The call took effect: its result is held until there is space.
                logger.warning("disk full", run_id=run.id, call_id=state.call.id)
                await asyncio.sleep(_FULL_RETRY_SECONDS)

    async def cancel(self, effect: CancelTool, run: Run) -> bool:
        """Tell a call's server that it is cancelled; whether it acknowledged."""
        state = run.call(effect.call_id)
        if state is None or state.started is None:
            return False
        if self._slots.send_away((run.created.namespace, run.id), effect.call_id):
            return True
        try:
            executor = self._executor(run, state)
            return await executor.cancel(state.started.key, run.head.epoch)
        except BehestError:
            return False

    async def ask_status(self, effect: AskStatus, run: Run) -> Signal:
        """Ask until somebody knows what became of a call, at least every 5 seconds; a driver ends it by cancelling.

        A server that gives no answer for as long as the call may take in all is not asked any more: it is in doubt.
        """
        state = run.call(effect.call_id)
        assert state is not None
        assert state.started is not None
        heard_ns = self._clock.now_ns()
        while True:
            try:
                executor = self._executor(run, state)
                # Epoch and number of the attempt, not of the run: what the server never saw it forbids up to these.
                status = await executor.status(state.started.key, state.epoch, _STATUS_WAIT_SECONDS, state.attempt)
            except BehestError as error:
                logger.info("call status not known", run_id=run.id, call_id=effect.call_id, reason=error.reason)
                left_seconds = _patience_seconds(state) - (self._clock.now_ns() - heard_ns) / SECOND
                if left_seconds <= 0:
                    return _unknown(effect, "the server could not be asked")
                await asyncio.sleep(min(_ASK_AGAIN_SECONDS, left_seconds))
                continue
            heard_ns = self._clock.now_ns()
            match status:
                case Running():
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)
                case NeverSeen():
                    return StatusKnown(effect.call_id, effect.attempt, None)
                case Done():
                    result = await self.result(run, state, status.answer)
                    return StatusKnown(effect.call_id, effect.attempt, result)
                case CannotTell(text):
                    return _unknown(effect, text)


def _show_nobody(_progress: Progress) -> None:
    """Show no progress: a watcher of a run that waits has no open step to show it in."""


def _is_resumed(run: Run, state: CallState) -> bool:
    """Whether an earlier owner of the run sent the attempt."""
    return state.epoch < run.head.epoch


def _patience_seconds(state: CallState) -> float:
    """How long a server that does not answer is asked about a call."""
    told = 0.0 if state.tool is None else timeouts(state.tool.policy).schedule_to_close_seconds
    return told or _PATIENCE_SECONDS


def _unknown(effect: AskStatus, text: str) -> ToolBroke:
    ambiguous = FailureClass.FAILURE_CLASS_AMBIGUOUS
    return _broke(effect, ToolFailure(ambiguous, Executed.EXECUTED_UNKNOWN, "TOOL_OUTCOME_UNKNOWN", text), 0)


def _broke(effect: CallTool | AskStatus, failure: ToolFailure, elapsed_ns: int) -> ToolBroke:
    return ToolBroke(
        effect.call_id,
        effect.attempt,
        failure.failure_class,
        failure.executed,
        failure.reason,
        failure.message,
        int((failure.retry_seconds or 0) * SECOND),
        elapsed_ns,
    )
