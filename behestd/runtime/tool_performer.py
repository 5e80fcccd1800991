"""Performs tool calls: one attempt at the executor the run was pinned to, its output cut to what a model is told.

Above: `performer`. Below: the tools' catalog and executors, blobs for output that is cut. What came is told as a
signal, failures with what is known of their effect.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from behest.v1.artifact_pb2 import Artifact
from behest.v1.message_pb2 import Part, TextPart, ToolResult
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed, Progress
from behestd.core.signals import AskStatus, CallTool, CancelTool, Signal, StatusKnown, ToolBroke, ToolEnded
from behestd.core.state import Call as CallState
from behestd.core.state import Run
from behestd.core.times import SECOND, nanoseconds
from behestd.errors import BehestError
from behestd.failpoint import failpoint
from behestd.runtime.artifacts import Artifacts
from behestd.runtime.clock import Clock
from behestd.runtime.live import Deltas
from behestd.tools.catalog import Catalog
from behestd.tools.policy import timeouts
from behestd.tools.tool import Answer, Call, CannotTell, Done, Executor, NeverSeen, Running, Timeouts, ToolFailure
from behestd.tools.truncate import Limits, cut, is_over

logger = structlog.get_logger(__name__)

_ASK_AGAIN_SECONDS = 5.0
_LOOK_AGAIN_SECONDS = 0.5
_STATUS_WAIT_SECONDS = 20.0


class ToolPerformer:
    """Performs the tool calls of all runs, so many at once."""

    __slots__ = ("_artifacts", "_catalog", "_clock", "_slots")

    def __init__(self, catalog: Catalog, artifacts: Artifacts, clock: Clock, slots: int) -> None:
        self._catalog = catalog
        self._artifacts = artifacts
        self._clock = clock
        self._slots = asyncio.Semaphore(slots)

    async def call(self, effect: CallTool, run: Run, deltas: Deltas) -> Signal:
        """Make one attempt."""
        state = run.call(effect.call_id)
        assert state is not None
        begun = time.monotonic_ns()
        stretch = deltas.last

        def show(progress: Progress) -> None:
            failpoint("tool.working", run.id)
            stretch.add_progress(effect.call_id, effect.attempt, progress)
            deltas.pulse()

        try:
            executor = self._executor(run, state)
            async with self._slots:
                failpoint("tool.before_send", run.id)
                answer = await executor.call(self._attempt(run, state), show)
            failpoint("tool.after_send", run.id)
            result = await self._result(run, state, answer)
            return ToolEnded(effect.call_id, effect.attempt, result, time.monotonic_ns() - begun)
        except ToolFailure as failure:
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

    def _executor(self, run: Run, state: CallState) -> Executor:
        """Who executes the call: the same server for each attempt, as long as it serves the tool that was pinned."""
        assert state.tool is not None
        assert state.started is not None
        tools = self._catalog.snapshot(run.created.namespace)
        return tools.route(state.call.name, state.tool.hash, state.started.key).executor

    def _attempt(self, run: Run, state: CallState) -> Call:
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
            timeouts=timeouts(state.tool.policy) if state.tool is not None else Timeouts(),
        )

    async def _result(self, run: Run, state: CallState, answer: Answer) -> ToolResult:
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
        return await self._artifacts.keep(run.created.namespace, about, text.encode(errors="replace"))

    async def cancel(self, effect: CancelTool, run: Run) -> bool:
        """Tell a call's server that it is cancelled; whether it acknowledged."""
        state = run.call(effect.call_id)
        if state is None or state.started is None:
            return False
        try:
            executor = self._executor(run, state)
            return await executor.cancel(state.started.key, run.head.epoch)
        except BehestError:
            return False

    async def ask_status(self, effect: AskStatus, run: Run) -> Signal:
        """Ask until somebody knows what became of a call, at least every 5 seconds; a driver ends it by cancelling."""
        state = run.call(effect.call_id)
        assert state is not None
        assert state.started is not None
        while True:
            try:
                executor = self._executor(run, state)
                # Of the attempt, not of the run: a server that never saw the key forbids it up to the epoch that asks.
                status = await executor.status(state.started.key, state.epoch, _STATUS_WAIT_SECONDS)
            except BehestError as error:
                logger.info("call status not known", run_id=run.id, call_id=effect.call_id, reason=error.reason)
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
                continue
            match status:
                case Running():
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)
                case NeverSeen():
                    return StatusKnown(effect.call_id, effect.attempt, None)
                case Done():
                    result = await self._result(run, state, status.answer)
                    return StatusKnown(effect.call_id, effect.attempt, result)
                case CannotTell():
                    ambiguous = FailureClass.FAILURE_CLASS_AMBIGUOUS
                    text = "the server keeps no record of its calls"
                    lost = ToolFailure(ambiguous, Executed.EXECUTED_UNKNOWN, "TOOL_UNAVAILABLE", text)
                    return _broke(effect, lost, 0)


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
