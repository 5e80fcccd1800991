"""Performs effects: calls the model or the tool, and puts what came of it into the driver's inbox. Never raises.

Above: the driver, which cancels an effect that is no longer wanted. Below: providers, tools, blobs. One attempt each;
whether there is another is decided by the core.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import field
from typing import Protocol

import structlog

from behest.v1.chat_service_pb2 import Chat, ChatEnd
from behest.v1.message_pb2 import Message
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.usage_pb2 import UsageSource
from behestd.core.children import is_child
from behestd.core.composed import Composed
from behestd.core.signals import (
    AskContext,
    AskStatus,
    CallModel,
    CallTool,
    CancelTool,
    ChildEnded,
    Effect,
    Held,
    ModelBroke,
    ModelEnded,
    Signal,
    Summarise,
    SummaryBroke,
)
from behestd.core.state import Run
from behestd.core.times import SECOND
from behestd.core.window import Window, compose
from behestd.errors import BehestError
from behestd.failpoint import failpoint
from behestd.providers.ambience import surround
from behestd.providers.catalog import check
from behestd.providers.failure import ProviderFailure
from behestd.providers.provider import guarded
from behestd.runtime.compaction_call import summarise
from behestd.runtime.context import Contexts
from behestd.runtime.health import Attempt
from behestd.runtime.house import House
from behestd.runtime.live import Deltas
from behestd.runtime.pauses import HeldBack
from behestd.runtime.tool_performer import ToolPerformer
from behestd.telemetry import w3c
from behestd.values import dataclass

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """What an effect needs of its run, and where its outcome goes."""

    run: Run
    history: tuple[Message, ...]
    deltas: Deltas
    tell: Callable[[Signal], None]
    acknowledge: Callable[[str], None]
    trace_id: str = ""
    """The trace that the run is part of. Empty: none."""
    composed: Composed = field(default_factory=Composed)


class AgentCalls(Protocol):
    """Performs calls of agents."""

    async def call(self, effect: CallTool, task: Task) -> Signal | None:
        """Make the call. None: nothing is to be told."""
        ...

    async def cancel(self, effect: CancelTool, run: Run) -> bool:
        """Cancel what the call does: whether it was told."""
        ...


class Performer:
    """Performs the effects of all runs."""

    __slots__ = ("_agents", "_clock", "_contexts", "_endpoints", "_house", "_tools")

    def __init__(self, house: House, tools: ToolPerformer, agents: AgentCalls, contexts: Contexts) -> None:
        self._house = house
        self._clock = house.clock
        self._endpoints = house.endpoints
        self._tools = tools
        self._agents = agents
        self._contexts = contexts

    async def perform(self, effect: Effect, task: Task) -> None:
        """Perform one effect and tell its outcome; nothing is told of an effect that is cancelled."""
        try:
            await self._perform(effect, task)
        except Exception:
            logger.exception("effect failed by a fault", run_id=task.run.id)

    async def _perform(self, effect: Effect, task: Task) -> None:  # noqa: C901  one case an effect
        state = task.run.call(effect.call_id) if isinstance(effect, CallTool | CancelTool) else None
        is_agent = state is not None and is_child(state)
        match effect:
            case CallTool() if is_agent:
                signal = await self._call_agent(effect, task)
                if signal is not None:
                    task.tell(signal)
            case CancelTool() if is_agent:
                if await self._agents.cancel(effect, task.run):
                    task.acknowledge(effect.call_id)
            case CallModel():
                task.tell(await self._call_model(effect, task))
            case CallTool():
                task.tell(await self._tools.call(effect, task.run, task.deltas, task.trace_id, self._house.switch))
            case CancelTool():
                if await self._tools.cancel(effect, task.run):
                    task.acknowledge(effect.call_id)
            case AskStatus():
                task.tell(await self._tools.ask_status(effect, task.run))
            case Summarise():
                task.tell(await self._summarise(effect, task))
            case AskContext():
                task.tell(await self._contexts.gather(effect, task.run))

    async def _summarise(self, effect: Summarise, task: Task) -> Signal:
        try:
            return await summarise(self._house, effect, task.run, task.history)
        except HeldBack:
            return Held(effect)
        except Exception:
            logger.exception("summary failed by a fault", run_id=task.run.id, endpoint=effect.endpoint)
            permanent = FailureClass.FAILURE_CLASS_PERMANENT
            return SummaryBroke(effect.attempt, permanent, "RUNTIME_INTERNAL", "a fault of the daemon")

    async def _call_agent(self, effect: CallTool, task: Task) -> Signal | None:
        try:
            return await self._agents.call(effect, task)
        except HeldBack:
            return Held(effect)
        except Exception:
            logger.exception("call of an agent failed by a fault", run_id=task.run.id)
            text = "a fault of the daemon"
            return ChildEnded(effect.call_id, effect.attempt, 0, reason="RUNTIME_INTERNAL", message=text)

    async def _call_model(self, effect: CallModel, task: Task) -> Signal:
        try:
            return await self._stream(effect, task)
        except HeldBack:
            return Held(effect)
        except ProviderFailure as failure:
            retry_after_ns = int((failure.retry_after_seconds or 0) * SECOND)
            return ModelBroke(
                effect.step,
                effect.attempt,
                failure.failure_class,
                failure.reason,
                failure.message,
                retry_after_ns,
                failure.usage,
            )
        except BehestError as error:
            permanent = FailureClass.FAILURE_CLASS_PERMANENT
            return ModelBroke(effect.step, effect.attempt, permanent, error.reason, error.message)
        except Exception:
            logger.exception("model call failed by a fault", run_id=task.run.id, endpoint=effect.endpoint)
            permanent = FailureClass.FAILURE_CLASS_PERMANENT
            return ModelBroke(effect.step, effect.attempt, permanent, "RUNTIME_INTERNAL", "a fault of the daemon")

    async def _stream(self, effect: CallModel, task: Task) -> Signal:
        window = task.composed.take(effect.step, effect.attempt)
        if window is None:
            window = compose(task.run, task.history, effect.endpoint)
        chat: Chat = window.chat
        resolved = self._house.resolved(task.run, effect.endpoint)
        check(chat, resolved.model)
        leased = self._house.leases.hold(resolved.provider)
        async with leased, self._attempt(effect, task.run, window, resolved.endpoint) as attempt:
            limits = self._house.model_timeouts.within(max(effect.deadline_ns - self._clock.now_ns(), 0) / SECOND)
            key, heard = w3c.model_key(task.run.id, effect.step, effect.attempt), False
            surround(w3c.under(w3c.of_run(task.run.created.traceparent, task.trace_id), key), limits.total_seconds)
            stretch = task.deltas.of(effect.step, effect.attempt)
            failpoint("model.before_send", task.run.id)
            self._house.switch.hold_model(task.run, effect.endpoint)
            async with aclosing(guarded(resolved.provider.stream(chat), limits)) as frames:
                async for frame in frames:
                    if deltas := frame.deltas[:]:
                        stretch.add(deltas)
                        task.deltas.pulse()
                        if not heard:
                            heard = True
                            self._house.listener.first_delta(task.run, effect.step, self._clock.now_ns())
                    if frame.HasField("end"):
                        end = frame.end
                        attempt.used(end.usage)
                        self._learn(resolved.endpoint, window.raw_tokens, end)
                        return ModelEnded(effect.step, effect.attempt, end)
            raise ProviderFailure("PROVIDER_STREAM_BROKEN", "the answer ended without its end marker")

    def _learn(self, endpoint: str, estimated: int, end: ChatEnd) -> None:
        """Learn how the model counts, from what it reports."""
        if end.usage_source == UsageSource.USAGE_SOURCE_REPORTED:
            self._house.calibration.note(endpoint, estimated, end.usage.input_tokens)

    def _attempt(self, effect: CallModel, run: Run, window: Window, endpoint: str) -> Attempt:
        failures = run.step.failures
        is_retry = bool(failures) and any(failure.endpoint == effect.endpoint for failure in failures)
        tokens = window.input_tokens if self._endpoints.has_limits else 0
        return self._endpoints.attempt(
            endpoint, effect.deadline_ns, is_retry=is_retry, tokens=tokens, namespace=run.created.namespace
        )
