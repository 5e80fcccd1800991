"""Follows a run to its end over as many streams as it takes.

Above: `runs`. Below: `updates`, which knows what is new, and `calls`, which makes each stream. Guarantees: every event
after the given sequence, in order, each once, then the end; or an error. A stream that breaks, falls silent or ends
without the terminal event is opened again after the last sequence seen, until patience is over.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from behest.calls import Backoff
from behest.errors import BehestError, WatchOrderError, broken_stream
from behest.outcome import has_ended
from behest.updates import Follower
from behest.v1 import run_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from behest.calls import Calls
    from behest.updates import Update
    from behest.v1.run_service_pb2_grpc import RunServiceAsyncStub

# After the terminal event there is nothing to wait for but the OK.
END_SECONDS = 1.0


@dataclass(slots=True)
class Subject:
    """What is followed: an order until its run is known, then the run. Shared by the handle and its watches."""

    # Empty for a run that was found by its id.
    order: run_service_pb2.StreamRunRequest
    run_id: str = ""
    is_replayed: bool = False


class Watch:
    """One following of one run."""

    def __init__(self, stub: RunServiceAsyncStub, calls: Calls, subject: Subject, after_sequence: int) -> None:
        self._stub = stub
        self._calls = calls
        self._subject = subject
        self._follower = Follower(subject.run_id, after_sequence)

    async def batches(self) -> AsyncGenerator[list[Update], None]:
        """Yield what is new, as much as has come at once, until the run has ended. Raises BehestError."""
        patience, follower, subject = self._calls.patience, self._follower, self._subject
        backoff = Backoff(patience.pause_seconds, patience.drain_seconds)
        while True:
            try:
                async with aclosing(self._stream(backoff)) as batches:
                    async for batch in batches:
                        yield batch
                if follower.terminal is not None or await self._has_nothing_left():
                    return
                error: BehestError = broken_stream("the watch ended without its terminal event")
            except BehestError as exc:
                if follower.terminal is not None and not isinstance(exc, WatchOrderError):
                    return
                if not (exc.is_resumable if subject.run_id else exc.is_undecided or exc.is_shed):
                    raise
                error = exc
            limit = patience.watch_seconds if subject.run_id else patience.repeat_seconds
            if error.is_shed and not subject.run_id:
                limit = patience.shed_seconds
            await backoff.pause(error, give_up_seconds=limit)

    async def _stream(self, backoff: Backoff) -> AsyncGenerator[list[Update], None]:
        follower, subject = self._follower, self._subject
        call = self._open()
        follower.reopened()
        async with aclosing(self._calls.stream(call, silence_seconds=self._silence_seconds)) as frames:
            async for frame in frames:
                backoff.heard(progress=bool(frame.events or frame.deltas))
                batch = list(follower.apply(frame))
                if follower.run_id and not subject.run_id:
                    subject.run_id = follower.run_id
                    subject.is_replayed = await is_replay(call)
                if batch:
                    yield batch

    def _open(self) -> grpc.aio.UnaryStreamCall[Any, Any]:
        self._calls.ensure_open()
        subject, follower = self._subject, self._follower
        if subject.run_id:
            follower.run_id = subject.run_id
            request = run_service_pb2.WatchRunRequest(run_id=subject.run_id, after_sequence=follower.sequence)
            return self._stub.WatchRun(request)
        # The first stream, or one after it broke before its first event: the request_id makes it the same run.
        return self._stub.StreamRun(subject.order)

    def _silence_seconds(self) -> float:
        return self._calls.patience.silence_seconds if self._follower.terminal is None else END_SECONDS

    async def _has_nothing_left(self) -> bool:
        """Whether the run ended at or before the sequence that is followed, so that its end is no event to come."""
        if not self._subject.run_id:
            return False
        request = run_service_pb2.GetRunRequest(run_id=self._subject.run_id)
        run = (await self._calls.unary(self._stub.GetRun, request)).run
        return has_ended(run.state) and run.head_sequence <= self._follower.sequence


async def is_replay(call: grpc.aio.UnaryStreamCall[Any, Any]) -> bool:
    """Return whether the daemon says that the run existed already."""
    return any(key == "behest-replayed" and value == "true" for key, value in await call.initial_metadata() or ())
