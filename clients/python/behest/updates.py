"""The client's rules of a watch: what is new in each frame, whatever broke in between.

Pure: no I/O, no clock. Above: `watch`, which brings the frames. Guarantees: events come out in sequence, each once, and
anything else is an error; a piece of an open step comes out once, however often a new stream sends the step from its
start; pieces of an attempt that counts no more are taken back by a Discarded before anything of the next one comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from behest.errors import WatchOrderError
from behest.v1 import delta_pb2, event_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from behest.v1 import run_service_pb2

    Frame: TypeAlias = run_service_pb2.WatchRunResponse | run_service_pb2.StreamRunResponse

TERMINAL = frozenset({"run_completed", "run_failed", "run_cancelled", "run_timed_out"})
TOOL_ENDS = frozenset({"tool_completed", "tool_failed", "tool_denied", "tool_outcome_unknown"})
NODE_ENDS = frozenset({"node_completed", "node_failed", "node_skipped"})
# The operator whose text is the answer of a graph.
ANSWER = "answer"
# How many steps are remembered: more than can be open, so that what comes late of one that is over is known as that.
STEPS = 256


@dataclass(frozen=True, slots=True)
class Discarded:
    """Everything that deltas have shown of this model attempt counts no more."""

    step: int
    attempt: int


Update: TypeAlias = event_pb2.Event | delta_pb2.Delta | Discarded


class Growth:
    """One growing text of the open attempt, and how much of it the present stream has repeated."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._held = ""
        self._repeated = 0

    def rewind(self) -> None:
        """Expect the text from its start again."""
        self._held = "".join(self._pieces)
        self._pieces = [self._held]
        self._repeated = 0

    def grow(self, piece: str) -> str | None:
        """Return what is new in a piece; None when the text is not the one that was held."""
        if self._repeated < len(self._held):
            known = self._held[self._repeated : self._repeated + len(piece)]
            if not piece.startswith(known):
                return None
            self._repeated += len(known)
            piece = piece[len(known) :]
        if piece:
            self._pieces.append(piece)
        return piece


class Step:
    """The model attempt of a step that is open or was last: its number, whether it is over, and what it has shown."""

    def __init__(self, visit: int = 0) -> None:
        # The visit of a graph's node that the step belongs to; 0 when it is none's, or not known.
        self.visit = visit
        self.attempt = 0
        self.is_over = False
        self.growths: dict[tuple[int, str], Growth] = {}


class Follower:
    """Turns frames into updates, from one sequence of one run on. Nodes of a graph have steps beside each other."""

    def __init__(self, run_id: str, after_sequence: int) -> None:
        self.run_id = run_id
        self.sequence = after_sequence
        self.terminal: event_pb2.Event | None = None
        # The steps that are open, and of those that are over the latest ones.
        self._steps: dict[int, Step] = {}
        # The latest progress told of each call: its attempt and index.
        self._progress: dict[str, tuple[int, int]] = {}

    def reopened(self) -> None:
        """Note that frames come from a new stream, which sends the open steps from their start."""
        for step in self._steps.values():
            for growth in step.growths.values():
                growth.rewind()

    def apply(self, frame: Frame) -> Iterator[Update]:
        """Yield what is new in a frame. Raises WatchOrderError on a gap, a repeat, another run, or after the end."""
        for event in frame.events:
            if not self.run_id:
                self.run_id = event.run_id
            if event.sequence != self.sequence + 1 or self.terminal is not None or event.run_id != self.run_id:
                raise WatchOrderError(self.run_id, self.sequence + 1, event.sequence)
            kind = event.WhichOneof("payload") or ""
            yield from self._before(event, kind)
            self.sequence = event.sequence
            if kind in TERMINAL:
                self.terminal = event
            yield event
        for delta in frame.deltas:
            yield from self._grown(delta)

    def _before(self, event: event_pb2.Event, kind: str) -> Iterator[Discarded]:
        if kind == "context_built":
            self._step(event.context_built.step).visit = event.context_built.visit
        elif kind == "model_requested":
            yield from self._begin(event.model_requested.step, event.model_requested.attempt)
        elif kind == "model_completed":
            # It repeats what deltas have shown: nothing is taken back.
            step = self._step(event.model_completed.step)
            step.growths.clear()
            step.attempt, step.is_over = event.model_completed.attempt, True
        elif kind == "model_failed":
            yield from self._void(event.model_failed.step, event.model_failed.attempt)
        elif kind == "model_superseded":
            yield from self._void(event.model_superseded.step, event.model_superseded.attempt)
        elif kind in NODE_ENDS:
            visit = getattr(event, kind).visit
            for number, step in self._steps.items():
                if visit and step.visit == visit:
                    yield from self._void(number, step.attempt)
        elif kind in TOOL_ENDS:
            self._progress.pop(getattr(event, kind).call_id, None)

    def _step(self, number: int) -> Step:
        step = self._steps.get(number)
        if step is None:
            if len(self._steps) >= STEPS:
                over = [each for each, known in self._steps.items() if known.is_over]
                for each in over[: STEPS // 2]:
                    del self._steps[each]
            step = self._steps[number] = Step()
        return step

    def _begin(self, number: int, attempt: int) -> Iterator[Discarded]:
        step = self._step(number)
        if attempt > step.attempt:
            yield from self._discard(number, step)
            step.attempt, step.is_over = attempt, False

    def _void(self, number: int, attempt: int) -> Iterator[Discarded]:
        step = self._step(number)
        if attempt >= step.attempt:
            yield from self._discard(number, step)
            step.attempt, step.is_over = attempt, True

    def _discard(self, number: int, step: Step) -> Iterator[Discarded]:
        if step.growths:
            step.growths.clear()
            yield Discarded(number, step.attempt)

    def _grown(self, delta: delta_pb2.Delta) -> Iterator[Update]:
        kind = delta.WhichOneof("kind") or ""
        if kind == "tool_progress":
            told = (delta.attempt, delta.index)
            if told > self._progress.get(delta.call_id, (0, -1)):
                self._progress[delta.call_id] = told
                yield delta
            return
        yield from self._begin(delta.step, delta.attempt)
        step = self._step(delta.step)
        if delta.attempt != step.attempt or step.is_over or not kind:
            return
        piece = delta.tool_call.arguments_json if kind == "tool_call" else getattr(delta, kind)
        key = (delta.part, kind)
        is_first = key not in step.growths
        fresh = step.growths.setdefault(key, Growth()).grow(piece)
        if fresh is None:
            # Not what was held: another process goes on with the attempt. The committed message has it all.
            yield from self._discard(delta.step, step)
            fresh = step.growths.setdefault(key, Growth()).grow(piece)
        if fresh == piece and (piece or is_first):
            yield delta
        elif fresh:
            yield shortened(delta, kind, fresh)


def shortened(delta: delta_pb2.Delta, kind: str, piece: str) -> delta_pb2.Delta:
    """Return the delta with only the end of its piece."""
    copy = delta_pb2.Delta()
    copy.CopyFrom(delta)
    if kind == "tool_call":
        copy.tool_call.Clear()
        copy.tool_call.arguments_json = piece
    else:
        setattr(copy, kind, piece)
    return copy


class Speech:
    """The text of the answers, in pieces, made whole by the committed messages.

    Of a run that follows a graph it is the answer alone, told by one node at a time and made whole by the run's output.
    """

    def __init__(self) -> None:
        self._said: dict[int, list[str]] = {}
        # Of a graph: the visits that answer, their steps, the step that is being told, and the last that was.
        self._is_graph = False
        self._visits: set[int] = set()
        self._steps: set[int] = set()
        self._teller = 0
        self._answer = ""

    def take(self, update: Update) -> str:
        """Return the text that an update adds; empty when it adds none."""
        match update:
            case Discarded() if self.tells(update.step):
                self._forget()
            case delta_pb2.Delta() if update.WhichOneof("kind") == "text":
                if self._begins(update.step):
                    self._said.setdefault(update.part, []).append(update.text)
                    return update.text
            case event_pb2.Event():
                return self._told(update)
            case _:
                pass
        return ""

    def tells(self, step: int) -> bool:
        """Return whether the text of a step is what is being told."""
        return not self._is_graph or step == self._teller

    def _told(self, event: event_pb2.Event) -> str:
        match event.WhichOneof("payload"):
            case "model_completed" if self._begins(event.model_completed.step):
                return self._rest(event)
            case "node_started" if event.node_started.operator == ANSWER and not event.node_started.scope:
                self._visits.add(event.node_started.visit)
            case "context_built" if event.context_built.visit:
                self._is_graph = True
                if event.context_built.visit in self._visits:
                    self._steps.add(event.context_built.step)
            case "run_completed" if self._is_graph:
                output = event.run_completed.output.text
                return "" if output.strip() == self._answer.strip() else output
        return ""

    def _begins(self, step: int) -> bool:
        """Whether a step is the one that is told, or becomes it."""
        if not self._teller and step in self._steps:
            self._teller = step
        return self.tells(step)

    def _rest(self, event: event_pb2.Event) -> str:
        rest, whole = [], []
        for number, part in enumerate(event.model_completed.message.parts):
            if part.WhichOneof("kind") == "text":
                said = "".join(self._said.get(number, ()))
                text = part.text.text
                whole.append(text)
                rest.append(text[len(said) :] if text.startswith(said) else text)
        self._answer = "".join(whole)
        self._forget()
        return "".join(rest)

    def _forget(self) -> None:
        self._said.clear()
        self._teller = 0
