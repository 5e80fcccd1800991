"""Events brought to a handler, one after the other.

Above: `Client.on` and `hooks`. Below: `events` for many runs, `watch` for one. Guarantees: the handler is called for
one event at a time, those of a run in order, each once while the process lives; what it raises is logged and goes no
further; a daemon that restarts is waited for. A slow handler delays itself alone.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeAlias

from behest.calls import Backoff
from behest.errors import BehestError
from behest.v1 import event_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence

    from behest.events import EventWatch
    from behest.runs import RunHandle

    Handler: TypeAlias = Callable[[event_pb2.Event], Awaitable[Any] | None]

_log = logging.getLogger("behest.on")

KINDS = frozenset(field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields)


class Subscription:
    """A handler that is called for events, until it is cancelled, its run has ended, or the client is closed."""

    def __init__(self, source: Source, kinds: frozenset[str], handler: Handler) -> None:
        self._source = source
        self._kinds = kinds
        self._handler = handler
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._over = asyncio.Event()
        self._error: BehestError | None = None

    @property
    def cursor(self) -> str:
        """Where a later subscription with the same filters goes on, as `after`: behind the last event dealt with.

        Empty until the daemon was heard, and for the subscription of one run, which always begins at its start.
        """
        return self._source.cursor

    @property
    def is_over(self) -> bool:
        """Whether the handler is called no more."""
        return self._over.is_set()

    async def ready(self) -> None:
        """Wait until the daemon was heard, so that no later event is missed. Raises BehestError when it refused."""
        await self._ready.wait()
        self._raise()

    async def wait(self) -> None:
        """Wait until the handler is called no more. Raises BehestError when the daemon ended it, as WATCH_COMPACTED."""
        await self._over.wait()
        self._raise()

    def cancel(self) -> None:
        """Call the handler no more; one that is being called is cancelled. Idempotent."""
        if self._task is not None:
            self._task.cancel()

    def started(self, task: asyncio.Task[None]) -> None:
        """Take note of the task that `run` is, so that it can be cancelled."""
        self._task = task

    async def run(self) -> None:
        """Bring the events. What ends it is kept for `ready` and `wait`."""
        try:
            async with aclosing(self._source.batches()) as batches:
                async for batch in batches:
                    self._ready.set()
                    for event in batch:
                        await self._handle(event)
        except BehestError as exc:
            self._error = exc
            if not exc.is_final:
                _log.warning("a handler is called no more: %s", exc.reason)
        finally:
            self._ready.set()
            self._over.set()

    async def _handle(self, event: event_pb2.Event) -> None:
        kind = event.WhichOneof("payload") or ""
        if self._kinds and kind not in self._kinds:
            return
        try:
            given = self._handler(event)
            if inspect.isawaitable(given):
                await given
        except Exception:  # noqa: BLE001  the border to code of others
            _log.exception("a handler of %s raised", kind, extra={"run_id": event.run_id})

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


class RunEvents:
    """The events of one run, from its start to its end, however long the daemon is away."""

    cursor = ""

    def __init__(self, watch: Callable[[int], RunHandle], pause_seconds: float) -> None:
        self._watch = watch
        self._pause_seconds = pause_seconds

    async def batches(self) -> AsyncGenerator[Sequence[event_pb2.Event], None]:
        """Yield the events, each alone. Raises BehestError, such as RUN_NOT_FOUND."""
        sequence = 0
        yield ()
        while True:
            try:
                async with aclosing(self._watch(sequence).events()) as events:
                    async for event in events:
                        yield (event,)
                        sequence = event.sequence
                return
            except BehestError as exc:
                if not exc.is_resumable:
                    raise
                await Backoff(self._pause_seconds).pause(exc, give_up_seconds=float("inf"))


Source: TypeAlias = "EventWatch | RunEvents"


def kinds_of(kind: str | Iterable[str]) -> frozenset[str]:
    """Return kinds of events by the names of the fields of `Event.payload`; empty: all. Raises ValueError."""
    kinds = frozenset([kind] if isinstance(kind, str) else kind) - {""}
    if unknown := sorted(kinds - KINDS):
        raise ValueError(f"{', '.join(unknown)}: no kind of event, such as run_completed or tool_started")
    return kinds
