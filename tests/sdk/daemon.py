"""A scripted daemon for tests of the client: it keeps the contract of RunService and breaks streams where a test says.

A script is a list of ticks, each one frame's worth of events or deltas. The world moves on by a tick whenever a stream
needs the next one, and never back, so a stream that is opened later finds history: the events after the sequence that
it asks for, and the open step's deltas from their start, in one frame. Plans say how each stream ends, in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from behest.v1 import (
    chat_pb2,
    delta_pb2,
    event_pb2,
    message_pb2,
    model_event_pb2,
    run_event_pb2,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    run_state_pb2,
    tool_event_pb2,
    tool_pb2,
)
from tests import ports

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

Tick = list[event_pb2.Event] | list[delta_pb2.Delta]
RUN_ID, SESSION_ID = "run_1", "ses_1"


def status(code: grpc.StatusCode, reason: str, message: str = "as the test says", **metadata: str) -> status_pb2.Status:
    """Return an error as the daemon makes it."""
    info = AnyMessage()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="behest", metadata=metadata))
    return status_pb2.Status(code=code.value[0], message=message, details=[info])


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: status_pb2.Status) -> None:
    """End a call as the daemon does."""
    code = next(code for code in grpc.StatusCode if code.value[0] == error.code)
    trailer = ("grpc-status-details-bin", error.SerializeToString())
    await context.abort(code, error.message, trailing_metadata=(trailer,))


def with_retry(error: status_pb2.Status, seconds: int) -> status_pb2.Status:
    """Return the error with a RetryInfo."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=seconds)))
    return status_pb2.Status(code=error.code, message=error.message, details=[*error.details, detail])


DRAINING = status(grpc.StatusCode.UNAVAILABLE, "RUNTIME_DRAINING")
STALLED = status(grpc.StatusCode.ABORTED, "WATCH_STALLED")
# Without details: what a proxy or a dying connection says.
RESET = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message="stream removed")


@dataclass(frozen=True)
class Plan:
    """How one stream ends: after so many frames (None: at its own end), with an error, with OK, or in silence."""

    frames: int | None = None
    error: status_pb2.Status | None = None
    is_silent: bool = False


@dataclass
class FakeDaemon(run_service_pb2_grpc.RunServiceServicer):
    """One run, scripted."""

    ticks: list[Tick]
    plans: list[Plan] = field(default_factory=list)
    reached: int = 0
    created_by: str = ""
    calls: list[str] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    refusal: status_pb2.Status | None = None

    def log(self) -> list[event_pb2.Event]:
        """Return what is committed."""
        return [item for tick in self.ticks[: self.reached] for item in tick if isinstance(item, event_pb2.Event)]

    def open_deltas(self) -> list[delta_pb2.Delta]:
        """Return the deltas of the open step, from its start."""
        since: list[delta_pb2.Delta] = []
        for tick in self.ticks[: self.reached]:
            for item in tick:
                if isinstance(item, delta_pb2.Delta):
                    since.append(item)
                elif item.WhichOneof("payload") != "tool_started":
                    since.clear()
        return since

    def run(self) -> run_pb2.Run:
        """Return the run's record, as far as tests look at it."""
        log = self.log()
        states = {"run_completed": "COMPLETED", "run_failed": "FAILED", "run_cancelled": "CANCELLED"}
        kind = log[-1].WhichOneof("payload") if log else ""
        state = run_state_pb2.RunState.Value(f"RUN_STATE_{states.get(kind or '', 'RUNNING')}")
        run = run_pb2.Run(id=RUN_ID, session_id=SESSION_ID, state=state, head_sequence=len(log))
        if kind == "run_completed":
            run.output.CopyFrom(log[-1].run_completed.output)
        return run

    async def frames(self, after: int) -> AsyncGenerator[run_service_pb2.WatchRunResponse, None]:
        """Yield what a watcher from a sequence gets."""
        known, log = self.reached, self.log()
        yield run_service_pb2.WatchRunResponse(
            events=[event for event in log if event.sequence > after],
            deltas=self.open_deltas(),
            head_sequence=len(log),
        )
        for number in range(known, len(self.ticks)):
            self.reached = max(self.reached, number + 1)
            tick = self.ticks[number]
            head = len(self.log())
            if isinstance(tick[0], event_pb2.Event):
                yield run_service_pb2.WatchRunResponse(events=tick, head_sequence=head)
            else:
                yield run_service_pb2.WatchRunResponse(deltas=tick, head_sequence=head)

    async def follow(
        self, after: int, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[run_service_pb2.WatchRunResponse]:
        """Serve one stream by the next plan."""
        plan = self.plans.pop(0) if self.plans else Plan()
        sent = 0
        async with contextlib.aclosing(self.frames(after)) as frames:
            async for frame in frames:
                if sent == plan.frames:
                    break
                yield frame
                sent += 1
        if plan.is_silent:
            await asyncio.Event().wait()
        if plan.error is not None:
            await abort(context, plan.error)

    async def CreateRun(
        self, request: run_service_pb2.CreateRunRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> run_service_pb2.CreateRunResponse:
        await self.noted("CreateRun", request, context)
        return run_service_pb2.CreateRunResponse(run=self.run(), replayed=not self.is_new(request.request_id))

    async def StreamRun(
        self, request: run_service_pb2.StreamRunRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[run_service_pb2.StreamRunResponse]:
        await self.noted("StreamRun", request, context)
        replayed = "false" if self.is_new(request.request_id) else "true"
        await context.send_initial_metadata((("behest-replayed", replayed),))
        async for frame in self.follow(0, context):
            yield run_service_pb2.StreamRunResponse.FromString(frame.SerializeToString())

    async def WatchRun(
        self, request: run_service_pb2.WatchRunRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[run_service_pb2.WatchRunResponse]:
        await self.noted("WatchRun", request, context)
        async for frame in self.follow(request.after_sequence, context):
            yield frame

    async def GetRun(
        self, request: run_service_pb2.GetRunRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> run_service_pb2.GetRunResponse:
        await self.noted("GetRun", request, context)
        return run_service_pb2.GetRunResponse(run=self.run())

    async def ListRuns(
        self, request: run_service_pb2.ListRunsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> run_service_pb2.ListRunsResponse:
        """Serve three runs, two a page."""
        await self.noted("ListRuns", request, context)
        first = int(request.page_token or 1)
        runs = [run_pb2.Run(id=f"run_{n}", state=run_state_pb2.RUN_STATE_COMPLETED) for n in range(first, 4)[:2]]
        return run_service_pb2.ListRunsResponse(runs=runs, next_page_token="3" if first == 1 else "")

    async def CancelRun(
        self, request: run_service_pb2.CancelRunRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> run_service_pb2.CancelRunResponse:
        """Cut the script short: the run ends cancelled, in a tick that a waiting stream gets."""
        await self.noted("CancelRun", request, context)
        return run_service_pb2.CancelRunResponse(run=self.run())

    async def ForkRun(
        self, request: run_service_pb2.ForkRunRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> run_service_pb2.ForkRunResponse:
        await self.noted("ForkRun", request, context)
        return run_service_pb2.ForkRunResponse(run=self.run())

    async def noted(self, name: str, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Record the call, and refuse it if the test says so."""
        self.calls.append(name)
        self.requests.append(request)
        if self.refusal is not None:
            await abort(context, self.refusal)

    def is_new(self, request_id: str) -> bool:
        """Whether this request creates the run."""
        new = not self.created_by
        self.created_by = self.created_by or request_id
        assert self.created_by == request_id, "the client made a second run"
        return new


@contextlib.asynccontextmanager
async def served(daemon: FakeDaemon, port: int = 0) -> AsyncGenerator[int, None]:
    """Serve on a loopback port, and stop at once afterwards, cutting what is open."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    run_service_pb2_grpc.add_RunServiceServicer_to_server(daemon, server)
    port = server.add_insecure_port(f"127.0.0.1:{port or ports.reserved()}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


class Script:
    """Builds ticks with events numbered from 1."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []
        self._sequence = 0

    def events(self, *payloads: dict[str, Any]) -> Script:
        """Add a commit."""
        tick = []
        for payload in payloads:
            self._sequence += 1
            tick.append(
                event_pb2.Event(
                    event_id=f"evt_{self._sequence}",
                    run_id=RUN_ID,
                    session_id=SESSION_ID,
                    sequence=self._sequence,
                    epoch=1,
                    **payload,
                )
            )
        self.ticks.append(tick)
        return self

    def deltas(self, *pieces: str, step: int = 1, attempt: int = 1, first: int = 0) -> Script:
        """Add text deltas of a model attempt, a tick each."""
        for number, piece in enumerate(pieces, start=first):
            self.ticks.append([delta_pb2.Delta(step=step, attempt=attempt, index=number, text=piece)])
        return self

    def progress(self, call_id: str, text: str, index: int) -> Script:
        """Add progress of a tool."""
        told = tool_pb2.Progress(text=text)
        self.ticks.append([delta_pb2.Delta(step=1, attempt=1, call_id=call_id, index=index, tool_progress=told)])
        return self


def requested(step: int, attempt: int) -> dict[str, Any]:
    """Return the intent of a model attempt."""
    return {"model_requested": model_event_pb2.ModelRequested(step=step, attempt=attempt)}


def completed(step: int, attempt: int, text: str) -> dict[str, Any]:
    """Return the end of a model attempt."""
    said = message_pb2.Message(
        role=message_pb2.ROLE_ASSISTANT, parts=[message_pb2.Part(text=message_pb2.TextPart(text=text))]
    )
    return {"model_completed": model_event_pb2.ModelCompleted(step=step, attempt=attempt, message=said)}


def failed_attempt(step: int, attempt: int) -> dict[str, Any]:
    """Return the failure of a model attempt."""
    event = model_event_pb2.ModelFailed(step=step, attempt=attempt, reason="PROVIDER_STREAM_BROKEN", message="cut")
    return {"model_failed": event}


BEGIN: tuple[dict[str, Any], ...] = (
    {"run_created": run_event_pb2.RunCreated(session_id=SESSION_ID)},
    {"run_claimed": run_event_pb2.RunClaimed(replica="a")},
    {"run_started": run_event_pb2.RunStarted(session_index=1)},
)
TOOL_STARTED = {
    "tool_started": tool_event_pb2.ToolStarted(call_id="call_1", attempt=1, name="add", arguments_json="{}")
}
TOOL_COMPLETED = {"tool_completed": tool_event_pb2.ToolCompleted(call_id="call_1", attempt=1)}


def end_completed(text: str) -> dict[str, Any]:
    """Return a good end."""
    output = run_state_pb2.RunOutput(text=text, finish_reason=chat_pb2.FINISH_REASON_STOP)
    return {"run_completed": run_event_pb2.RunCompleted(output=output)}


END_FAILED = {
    "run_failed": run_event_pb2.RunFailed(error=status(grpc.StatusCode.FAILED_PRECONDITION, "RUN_STEP_LIMIT"))
}
END_CANCELLED = {"run_cancelled": run_event_pb2.RunCancelled(cause=run_state_pb2.CANCEL_CAUSE_CLIENT)}
END_TIMED_OUT = {
    "run_timed_out": run_event_pb2.RunTimedOut(
        error=status(grpc.StatusCode.DEADLINE_EXCEEDED, "RUN_DEADLINE_EXCEEDED", timeoutSeconds="1")
    )
}


def story() -> list[Tick]:
    """Return a run with a tool, a failed attempt and a second answer: 12 events."""
    return (
        Script()
        .events(*BEGIN)
        .events(requested(1, 1))
        .deltas("Hel", "lo ")
        .events(completed(1, 1, "Hello "), TOOL_STARTED)
        .progress("call_1", "half", 0)
        .progress("call_1", "done", 1)
        .events(TOOL_COMPLETED, requested(2, 1))
        .deltas("wo", "r", step=2)
        .events(failed_attempt(2, 1), requested(2, 2))
        .deltas("wor", "ld", step=2, attempt=2)
        .events(completed(2, 2, "world"), end_completed("world"))
        .ticks
    )
