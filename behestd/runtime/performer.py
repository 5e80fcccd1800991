"""Performs effects: calls the model or the tool, and puts what came of it into the driver's inbox. Never raises.

Above: the driver, which cancels an effect that is no longer wanted. Below: providers, tools, blobs. One attempt each;
whether there is another is decided by the core.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import Message
from behest.v1.model_event_pb2 import FailureClass
from behestd.core.signals import AskStatus, CallModel, CallTool, CancelTool, Effect, ModelBroke, ModelEnded, Signal
from behestd.core.state import Run
from behestd.core.times import SECOND
from behestd.core.window import compose
from behestd.errors import BehestError
from behestd.failpoint import failpoint
from behestd.providers.catalog import Catalog, check
from behestd.providers.failure import ProviderFailure
from behestd.providers.provider import ProviderTimeouts, guarded
from behestd.runtime.clock import Clock
from behestd.runtime.live import Deltas
from behestd.runtime.tool_performer import ToolPerformer

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """What an effect needs of its run, and where its outcome goes."""

    run: Run
    history: tuple[Message, ...]
    deltas: Deltas
    tell: Callable[[Signal], None]
    acknowledge: Callable[[str], None]


class Performer:
    """Performs the effects of all runs."""

    __slots__ = ("_clock", "_models", "_timeouts", "_tools")

    def __init__(self, models: Catalog, timeouts: ProviderTimeouts, clock: Clock, tools: ToolPerformer) -> None:
        self._models = models
        self._timeouts = timeouts
        self._clock = clock
        self._tools = tools

    async def perform(self, effect: Effect, task: Task) -> None:
        """Perform one effect and tell its outcome; nothing is told of an effect that is cancelled."""
        try:
            await self._perform(effect, task)
        except Exception:
            logger.exception("effect failed by a fault", run_id=task.run.id)

    async def _perform(self, effect: Effect, task: Task) -> None:
        match effect:
            case CallModel():
                task.tell(await self._call_model(effect, task))
            case CallTool():
                task.tell(await self._tools.call(effect, task.run, task.deltas))
            case CancelTool():
                if await self._tools.cancel(effect, task.run):
                    task.acknowledge(effect.call_id)
            case AskStatus():
                task.tell(await self._tools.ask_status(effect, task.run))

    async def _call_model(self, effect: CallModel, task: Task) -> Signal:
        try:
            return await self._stream(effect, task)
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
        chat: Chat = compose(task.run, task.history, effect.endpoint).chat
        resolved = self._models.current.resolve(effect.endpoint)
        check(chat, resolved.model)
        left_seconds = max(effect.deadline_ns - self._clock.now_ns(), 0) / SECOND
        stretch = task.deltas.last
        failpoint("model.before_send", task.run.id)
        async with aclosing(guarded(resolved.provider.stream(chat), self._timeouts.within(left_seconds))) as frames:
            async for frame in frames:
                for delta in frame.deltas:
                    stretch.add(delta)
                if frame.deltas:
                    task.deltas.pulse()
                if frame.HasField("end"):
                    return ModelEnded(effect.step, effect.attempt, frame.end)
        raise ProviderFailure("PROVIDER_STREAM_BROKEN", "the answer ended without its end marker")
