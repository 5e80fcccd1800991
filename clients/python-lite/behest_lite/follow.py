"""Follows a run to its end over as many streams as it takes.

Above: `client`. Below: grpclib. Guarantees: every event after the given sequence, in order, each once, then the end; or
an error. A stream that breaks, falls silent or ends too soon is opened again after the last event seen, until patience
is over.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import betterproto2
from grpclib.const import Status

from behest_lite.contract.behest.v1 import (
    Delta,
    Event,
    GetRunRequest,
    ModelCompleted,
    NodeState,
    Run,
    RunOutput,
    RunServiceStub,
    RunState,
    StreamRunRequest,
    StreamRunResponse,
    WatchRunRequest,
    WatchRunResponse,
)
from behest_lite.errors import BehestError, broken, translated

TERMINAL = frozenset({"run_completed", "run_failed", "run_cancelled", "run_timed_out"})
ENDED = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT})
# The operator whose text is the answer of a graph.
ANSWER = "answer"
NODE_STATES = {
    "node_started": NodeState.RUNNING,
    "node_completed": NodeState.COMPLETED,
    "node_failed": NodeState.FAILED,
    "node_skipped": NodeState.SKIPPED,
}
# The longest silence of an open watch: three heartbeats of the daemon.
SILENCE_SECONDS = 45.0
PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Reopened:
    """A new stream was opened: the deltas of the open step come again, from its start."""


Update = Event | Delta | Reopened
Frame = WatchRunResponse | StreamRunResponse


@dataclass(slots=True)
class Subject:
    """What is followed: an order until its run is known, then the run."""

    order: StreamRunRequest | None
    run_id: str = ""


class Backoff:
    """Pauses between attempts, with full jitter, until patience is over."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._attempts = 0
        self._failing_since: float | None = None

    def heard(self) -> None:
        """Note that the daemon is there."""
        self._attempts = 0
        self._failing_since = None

    async def pause(self, error: BehestError) -> None:
        """Wait before the next attempt. Raises the error when the daemon was not heard for longer than is bearable."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        delay = random.uniform(0, min(PAUSE_SECONDS, 0.1 * 2 ** min(self._attempts, 16)))
        self._attempts += 1
        if now + delay > self._failing_since + self._patience_seconds:
            raise error
        await asyncio.sleep(delay)


def kind_of(event: Event) -> str:
    """Return the name of an event's payload; empty for one that this version does not know."""
    return betterproto2.which_one_of(event, "payload")[0]


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A node of a run's graph has another state now. The rest is in the event."""

    # The node, with the subgraphs that it is in: "solve" or "inner/solve".
    node: str
    # The visit, counted from 1 within the run; 0 for a node that is left out before it began.
    visit: int
    state: NodeState
    event: Event


def change_of(event: Event) -> NodeChange | None:
    """Return what an event says of a node; None when it says nothing of one."""
    state = NODE_STATES.get(kind_of(event))
    told = event.node_started or event.node_completed or event.node_failed or event.node_skipped
    return NodeChange(told.node, told.visit, state, event) if state is not None and told is not None else None


class Following:
    """One following of one run."""

    def __init__(self, stub: RunServiceStub, subject: Subject, after_sequence: int, patience_seconds: float) -> None:
        self._stub = stub
        self._subject = subject
        self._sequence = after_sequence
        self._backoff = Backoff(patience_seconds)
        self.terminal: Event | None = None

    async def updates(self) -> AsyncGenerator[Update, None]:
        """Yield what comes until the run has ended. Raises BehestError."""
        while True:
            try:
                async with aclosing(self._stream()) as updates:
                    async for update in updates:
                        yield update
                if self.terminal is not None or await self._has_nothing_left():
                    return
                error = broken("the watch ended without its terminal event")
            except BehestError as exc:
                if self.terminal is not None:
                    return
                if not exc.is_undecided:
                    raise
                error = exc
            await self._backoff.pause(error)

    async def _stream(self) -> AsyncGenerator[Update, None]:
        yield Reopened()
        async with aclosing(self._frames()) as frames:
            async for frame in frames:
                self._backoff.heard()
                for event in frame.events:
                    self._check(event)
                    yield event
                for delta in frame.deltas:
                    yield delta

    async def _frames(self) -> AsyncGenerator[Frame, None]:
        subject = self._subject
        frames: AsyncGenerator[Frame, None]
        if subject.run_id or subject.order is None:
            request = WatchRunRequest(run_id=subject.run_id, after_sequence=self._sequence)
            frames = self._stub.watch_run(request)  # type: ignore[assignment]  # the stub says less than it gives
        else:
            # The request_id of the order makes this the same run, however often it is sent.
            frames = self._stub.stream_run(subject.order)  # type: ignore[assignment]
        with translated():
            async with aclosing(frames):
                while True:
                    async with asyncio.timeout(SILENCE_SECONDS if self.terminal is None else 1.0):
                        frame = await anext(frames, None)
                    if frame is None:
                        return
                    yield frame

    def _check(self, event: Event) -> None:
        subject = self._subject
        subject.run_id = subject.run_id or event.run_id
        if event.sequence != self._sequence + 1 or event.run_id != subject.run_id or self.terminal is not None:
            text = f"event {event.sequence} came where {self._sequence + 1} is next"
            raise BehestError(Status.DATA_LOSS, "WATCH_OUT_OF_ORDER", text)
        self._sequence = event.sequence
        if kind_of(event) in TERMINAL:
            self.terminal = event

    async def _has_nothing_left(self) -> bool:
        """Whether the run ended at or before the sequence that is followed, so that its end is no event to come."""
        if not self._subject.run_id:
            return False
        run = await self.get()
        return run.state in ENDED and run.head_sequence <= self._sequence

    async def get(self) -> Run:
        """Return the run as it is now. Raises BehestError."""
        with translated():
            response = await self._stub.get_run(GetRunRequest(run_id=self._subject.run_id), timeout=30.0)
        return response.run or Run()


class Speech:
    """The text of the answers, in pieces, each once, made whole by the committed messages.

    Of a run that follows a graph it is the answer alone, told by one node at a time and made whole by the run's output.
    """

    def __init__(self) -> None:
        self._attempt = (0, 0)
        self._done = (0, 0)
        self._said: dict[int, str] = {}
        # How much of each part the present stream has brought.
        self._brought: dict[int, int] = {}
        # Of a graph: the visits that answer, their steps, the step that is being told, and the last text that was.
        self._is_graph = False
        self._visits: set[int] = set()
        self._steps: dict[int, int] = {}
        self._teller = 0
        self._answer = ""

    def take(self, update: Update) -> str:
        """Return the text that an update adds; empty when it adds none."""
        match update:
            case Reopened():
                self._brought.clear()
            case Delta():
                if update.text is not None and self._begins(update.step):
                    return self._piece(update, update.text)
            case Event():
                return self._told(update)
        return ""

    def _told(self, event: Event) -> str:
        if event.model_completed is not None and self._begins(event.model_completed.step):
            return self._rest(event.model_completed)
        if event.node_started is not None:
            if event.node_started.operator == ANSWER and not event.node_started.scope:
                self._visits.add(event.node_started.visit)
        elif event.context_built is not None and event.context_built.visit:
            self._is_graph = True
            if event.context_built.visit in self._visits:
                self._steps[event.context_built.step] = event.context_built.visit
        elif (ended := event.node_failed or event.node_skipped) is not None:
            if ended.visit and self._steps.get(self._teller) == ended.visit:
                self._teller = 0
        elif event.run_completed is not None and self._is_graph:
            output = (event.run_completed.output or RunOutput()).text
            return "" if output.strip() == self._answer.strip() else output
        return ""

    def _begins(self, step: int) -> bool:
        """Whether the text of a step is what is being told, or becomes it."""
        if not self._teller and step in self._steps:
            self._teller, self._attempt, self._done = step, (0, 0), (0, 0)
        return not self._is_graph or step == self._teller

    def _piece(self, delta: Delta, text: str) -> str:
        attempt = (delta.step, delta.attempt)
        if attempt <= self._done or attempt < self._attempt:
            return ""
        if attempt != self._attempt:
            self._attempt = attempt
            self._said.clear()
            self._brought.clear()
        said, brought = self._said.get(delta.part, ""), self._brought.get(delta.part, 0)
        fresh = text[max(0, len(said) - brought) :]
        self._brought[delta.part] = brought + len(text)
        self._said[delta.part] = said + fresh
        return fresh

    def _rest(self, completed: ModelCompleted) -> str:
        rest, texts = [], []
        for number, part in enumerate(completed.message.parts if completed.message is not None else ()):
            if part.text is not None:
                said = self._said.get(number, "")
                whole = part.text.text
                texts.append(whole)
                rest.append(whole[len(said) :] if whole.startswith(said) else whole)
        self._done = (completed.step, completed.attempt)
        self._answer = "".join(texts)
        self._steps.pop(self._teller, None)
        self._teller = 0
        self._said.clear()
        self._brought.clear()
        return "".join(rest)
