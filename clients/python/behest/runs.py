"""A run as its caller holds it: order it, follow it, cancel it, take its result.

Above: users of the client. Below: `watch`. Guarantees: one handle is one run, however often its creation is asked for,
since each asking carries the same request_id; every following of it sees every event once and in order, across broken
connections and restarts of the daemon.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from behest.nodes import change_of
from behest.order import parts
from behest.outcome import outcome_of_event, outcome_of_run
from behest.services.ids import new_request_id
from behest.updates import TERMINAL, Speech
from behest.v1 import event_pb2, run_service_pb2, run_state_pb2
from behest.watch import Subject, Watch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from behest.calls import Calls
    from behest.nodes import NodeChange
    from behest.order import Input
    from behest.updates import Update
    from behest.v1 import run_pb2
    from behest.v1.run_service_pb2_grpc import RunServiceAsyncStub


class RunHandle:
    """A run, known by its id or ordered under a request_id. Nothing is sent before the first method is awaited."""

    def __init__(self, stub: RunServiceAsyncStub, calls: Calls, subject: Subject, *, after_sequence: int = 0) -> None:
        self._stub = stub
        self._calls = calls
        self._subject = subject
        self._start = after_sequence
        self._sequence = after_sequence
        self._terminal: event_pb2.Event | None = None

    @property
    def run_id(self) -> str:
        """The run's id; empty until the daemon has told it: await `create()` to be sure."""
        return self._subject.run_id

    @property
    def request_id(self) -> str:
        """The request_id that the run was ordered under; empty for a run that was found by its id."""
        return self._subject.order.request_id

    @property
    def is_replayed(self) -> bool:
        """Whether the run existed already, made by an earlier request with the same request_id."""
        return self._subject.is_replayed

    @property
    def sequence(self) -> int:
        """The sequence of the last event that has arrived; it may be a few ahead of the one that was yielded last."""
        return self._sequence

    async def create(self) -> str:
        """Make sure that the run exists, and return its id. Idempotent. Raises BehestError when it is refused."""
        subject = self._subject
        if not subject.run_id:
            request = run_service_pb2.CreateRunRequest(spec=subject.order.spec, request_id=subject.order.request_id)
            response = await self._calls.unary(self._stub.CreateRun, request)
            subject.run_id, subject.is_replayed = response.run.id, response.replayed
        return subject.run_id

    async def updates(self) -> AsyncGenerator[Update, None]:
        """Yield everything, as it happens, until the run has ended: events, deltas, and Discarded.

        Events begin after the sequence that the handle was made with. A delta is shown once; Discarded takes back those
        of an attempt that counts no more, and the event model_completed repeats the whole. Raises BehestError.
        """
        async with aclosing(self._batches(self._start)) as batches:
            async for batch in batches:
                for update in batch:
                    yield update

    async def events(self) -> AsyncGenerator[event_pb2.Event, None]:
        """Yield the committed events, in order, each once, until the run has ended. Raises BehestError."""
        async with aclosing(self._batches(self._start)) as batches:
            async for batch in batches:
                for update in batch:
                    if isinstance(update, event_pb2.Event):
                        yield update

    async def nodes(self) -> AsyncGenerator[NodeChange, None]:
        """Yield how the nodes of the run's graph fare, in order, until the run has ended. Raises BehestError."""
        async with aclosing(self.events()) as events:
            async for event in events:
                if change := change_of(event):
                    yield change

    async def text(self) -> AsyncGenerator[str, None]:
        """Yield the text of the model's answers as it comes, whole once the run has ended.

        When an attempt is given up after some of its text was shown, the text of the next one follows from its start;
        where that matters, read `updates()`. Of a run of a graph it is the answer alone. Raises BehestError, but does
        not judge how the run ended: ask `result()`.
        """
        speech = Speech()
        async with aclosing(self._batches(self._start)) as batches:
            async for batch in batches:
                for update in batch:
                    if piece := speech.take(update):
                        yield piece

    async def result(self) -> run_state_pb2.RunOutput:
        """Wait for the end of the run and return its output.

        Raises RunFailedError, RunCancelledError or RunTimedOutError when the run ended so, BehestError when it cannot
        be known. May be called again, and beside or after any following.
        """
        if self._terminal is None:
            async with aclosing(self._batches(self._sequence)) as batches:
                async for _ in batches:
                    pass
        # None still: the run had ended before the sequence that is followed.
        return outcome_of_run(await self.get()) if self._terminal is None else outcome_of_event(self._terminal)

    async def get(self) -> run_pb2.Run:
        """Return the run as it is now, with messages and pending approvals. Raises BehestError."""
        request = run_service_pb2.GetRunRequest(run_id=await self.create())
        return (await self._calls.unary(self._stub.GetRun, request)).run

    async def cancel(self, *, force: bool = False, reason: str = "") -> run_pb2.Run:
        """Cancel the run, and return it once that is durable: a promise that it will end, not that it has.

        Waits for the reply of the run's own creation first, so that a run whose creation is in doubt is found and
        cancelled. Idempotent, and no error when the run has ended. Raises BehestError.
        """
        mode = run_state_pb2.CANCEL_MODE_FORCE if force else run_state_pb2.CANCEL_MODE_GRACEFUL
        request = run_service_pb2.CancelRunRequest(run_id=await self.create(), mode=mode, reason=reason)
        return (await self._calls.unary(self._stub.CancelRun, request)).run

    async def send(self, said: Input, *, request_id: str = "") -> int:
        """Say something to the run, and return the sequence of its event. Raises BehestError, such as RUN_ENDING."""
        request = run_service_pb2.SendInputRequest(
            run_id=await self.create(), input=parts(said), request_id=request_id or new_request_id()
        )
        return (await self._calls.unary(self._stub.SendInput, request)).sequence

    async def _batches(self, after_sequence: int) -> AsyncGenerator[list[Update], None]:
        watch = Watch(self._stub, self._calls, self._subject, after_sequence)
        async with aclosing(watch.batches()) as batches:
            async for batch in batches:
                for update in reversed(batch):
                    if isinstance(update, event_pb2.Event):
                        self._sequence = max(self._sequence, update.sequence)
                        if update.WhichOneof("payload") in TERMINAL:
                            self._terminal = update
                        break
                yield batch
