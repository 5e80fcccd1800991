"""Follows the events of many runs over as many streams as it takes.

Above: `subscription`. Below: `calls`, which makes each stream. Guarantees: the events that pass the filters, those of a
run in order, each once; a stream that breaks, falls silent or ends is opened again after the last cursor, for as long
as it takes. Only what no repeat can change is an error: a history that was cut off, or is another one.
"""

from __future__ import annotations

import math
from contextlib import aclosing
from typing import TYPE_CHECKING

from behest.calls import Backoff
from behest.errors import BehestError, broken_stream
from behest.v1 import event_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from behest.calls import Calls
    from behest.v1 import event_pb2
    from behest.v1.event_service_pb2_grpc import EventServiceAsyncStub


class EventWatch:
    """One following of the events that pass a request's filters."""

    def __init__(
        self, stub: EventServiceAsyncStub, calls: Calls, request: event_service_pb2.WatchEventsRequest
    ) -> None:
        self._stub = stub
        self._calls = calls
        self._filters = request
        self.cursor = request.after_cursor

    async def batches(self) -> AsyncGenerator[Sequence[event_pb2.Event], None]:
        """Yield the events of each frame, some of them none, for ever. Raises BehestError.

        The cursor is that of a batch once the next one is asked for. The first batch comes at once.
        """
        backoff = Backoff(self._calls.patience.pause_seconds)
        while True:
            self._calls.ensure_open()
            try:
                call = self._stub.WatchEvents(self._request())
                frames = self._calls.stream(call, silence_seconds=lambda: self._calls.patience.silence_seconds)
                async with aclosing(frames):
                    async for frame in frames:
                        backoff.heard(progress=True)
                        yield frame.events
                        self.cursor = frame.cursor
                error: BehestError = broken_stream("the watch of events ended")
            except BehestError as exc:
                if not exc.is_resumable:
                    raise
                error = exc
            await backoff.pause(error, give_up_seconds=math.inf)

    def _request(self) -> event_service_pb2.WatchEventsRequest:
        request = event_service_pb2.WatchEventsRequest()
        request.CopyFrom(self._filters)
        if self.cursor:
            request.after_cursor, request.only_new = self.cursor, False
        return request
