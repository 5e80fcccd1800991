"""The client's rules of a watch: what is new in each frame, whatever broke in between.

Pure: no I/O, no clock. Above: `watch`, which brings the frames. Guarantees: events come out in sequence, each once, and
anything else is an error; a piece of the open step comes out once, however often a new stream sends the step from its
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


class Follower:
    """Turns frames into updates, from one sequence of one run on."""

    def __init__(self, run_id: str, after_sequence: int) -> None:
        self.run_id = run_id
        self.sequence = after_sequence
        self.terminal: event_pb2.Event | None = None
        # The model attempt that is open or was last, and whether it is over.
        self._attempt = (0, 0)
        self._is_over = False
        self._growths: dict[tuple[int, str], Growth] = {}
        # The latest progress told of each call: its attempt and index.
        self._progress: dict[str, tuple[int, int]] = {}

    def reopened(self) -> None:
        """Note that frames come from a new stream, which sends the open step from its start."""
        for growth in self._growths.values():
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
        if kind == "model_requested":
            yield from self._begin((event.model_requested.step, event.model_requested.attempt))
        elif kind == "model_completed":
            # It repeats what deltas have shown: nothing is taken back.
            self._growths.clear()
            self._attempt = (event.model_completed.step, event.model_completed.attempt)
            self._is_over = True
        elif kind == "model_failed":
            yield from self._void((event.model_failed.step, event.model_failed.attempt))
        elif kind == "model_superseded":
            yield from self._void((event.model_superseded.step, event.model_superseded.attempt))
        elif kind in TOOL_ENDS:
            self._progress.pop(getattr(event, kind).call_id, None)

    def _begin(self, attempt: tuple[int, int]) -> Iterator[Discarded]:
        if attempt > self._attempt:
            yield from self._discard()
            self._attempt = attempt
            self._is_over = False

    def _void(self, attempt: tuple[int, int]) -> Iterator[Discarded]:
        if attempt >= self._attempt:
            yield from self._discard()
            self._attempt = attempt
            self._is_over = True

    def _discard(self) -> Iterator[Discarded]:
        if self._growths:
            self._growths.clear()
            yield Discarded(*self._attempt)

    def _grown(self, delta: delta_pb2.Delta) -> Iterator[Update]:
        kind = delta.WhichOneof("kind") or ""
        if kind == "tool_progress":
            told = (delta.attempt, delta.index)
            if told > self._progress.get(delta.call_id, (0, -1)):
                self._progress[delta.call_id] = told
                yield delta
            return
        attempt = (delta.step, delta.attempt)
        yield from self._begin(attempt)
        if attempt != self._attempt or self._is_over or not kind:
            return
        piece = delta.tool_call.arguments_json if kind == "tool_call" else getattr(delta, kind)
        key = (delta.part, kind)
        is_first = key not in self._growths
        fresh = self._growths.setdefault(key, Growth()).grow(piece)
        if fresh is None:
            # Not what was held: another process goes on with the attempt. The committed message has it all.
            yield from self._discard()
            fresh = self._growths.setdefault(key, Growth()).grow(piece)
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
    """The text of the answers, in pieces, made whole by the committed messages."""

    def __init__(self) -> None:
        self._said: dict[int, list[str]] = {}

    def take(self, update: Update) -> str:
        """Return the text that an update adds; empty when it adds none."""
        match update:
            case Discarded():
                self._said.clear()
            case delta_pb2.Delta() if update.WhichOneof("kind") == "text":
                self._said.setdefault(update.part, []).append(update.text)
                return update.text
            case event_pb2.Event() if update.WhichOneof("payload") == "model_completed":
                return self._rest(update)
        return ""

    def _rest(self, event: event_pb2.Event) -> str:
        rest = []
        for number, part in enumerate(event.model_completed.message.parts):
            if part.WhichOneof("kind") == "text":
                said = "".join(self._said.get(number, ()))
                text = part.text.text
                rest.append(text[len(said) :] if text.startswith(said) else text)
        self._said.clear()
        return "".join(rest)
