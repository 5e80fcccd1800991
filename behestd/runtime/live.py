"""What watchers share with a live run: its log's tail, and the volatile deltas of what is open.

Deltas are a chain of stretches, one for each model attempt and one for the tools of each step. A watcher holds a
place in the chain, as it holds a sequence of the log; nothing is queued for it and nothing is dropped, and what no
watcher can reach any more is garbage. Deltas of a stretch are read after the events that opened it and before those
that closed it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from behest.v1.chat_service_pb2 import ChatDelta, ToolCallDelta
from behest.v1.delta_pb2 import Delta
from behest.v1.model_event_pb2 import ModelCompleted, ModelFailed, ModelRequested, ModelSuperseded
from behest.v1.tool_pb2 import Progress
from behestd.core.run import Payload
from behestd.core.state import Run
from behestd.log.frames import varint

_DELTA_TAG = b"\x12"
"""Field 2 of WatchRunResponse, length-delimited."""
FRAME_CHARACTERS = 256 * 1024
"""Text that one frame takes at most; a piece that is larger goes whole."""
PROGRESS_LIMIT_BYTES = 1024 * 1024
"""Above this, only the latest progress of each call is kept."""

Piece = tuple[str, int, str, str]
"""(kind, part, name of the tool, text) of a piece of a model's answer."""


class Stretch:
    """The deltas of one model attempt, or of the tools of one step. Grows until it is closed."""

    __slots__ = ("attempt", "closed_at", "next", "opened_at", "pieces", "progress", "progress_bytes", "step", "told")

    def __init__(self, step: int, attempt: int, opened_at: int) -> None:
        self.step = step
        self.attempt = attempt
        self.opened_at = opened_at
        self.closed_at = 0
        self.pieces: list[Piece] = []
        self.progress: list[tuple[int, str, int, Progress]] = []
        """(number, call, attempt, progress), by ascending number."""
        self.progress_bytes = 0
        self.told = 0
        """How much progress there was, what is not kept included."""
        self.next: Stretch | None = None

    def add(self, delta: ChatDelta) -> None:
        """Add a piece of the model's answer."""
        kind = delta.WhichOneof("kind")
        if kind == "text":
            self.pieces.append(("text", delta.part, "", delta.text))
        elif kind == "reasoning":
            self.pieces.append(("reasoning", delta.part, "", delta.reasoning))
        elif kind == "tool_call":
            call = delta.tool_call
            self.pieces.append(("tool_call", delta.part, call.name, call.arguments_json))

    def add_progress(self, call_id: str, attempt: int, progress: Progress) -> None:
        """Add a tool's progress; past the limit it takes the place of the call's earlier ones."""
        self.progress_bytes += progress.ByteSize()
        if self.progress_bytes > PROGRESS_LIMIT_BYTES:
            latest = {entry[1]: entry for entry in self.progress}
            self.progress = sorted((entry for entry in latest.values() if entry[1] != call_id), key=_number)
            self.progress_bytes = sum(entry[3].ByteSize() for entry in self.progress) + progress.ByteSize()
        self.progress.append((self.told, call_id, attempt, progress))
        self.told += 1


@dataclass(slots=True)
class Place:
    """A watcher's place in the chain."""

    stretch: Stretch
    pieces: int = 0
    progress: int = 0

    def move(self, stretch: Stretch) -> None:
        """Go to another stretch's beginning."""
        self.stretch, self.pieces, self.progress = stretch, 0, 0

    def take(self) -> bytes:
        """Encode what is new here, as much as a frame takes, neighbouring pieces of one kind merged; move past it."""
        stretch = self.stretch
        if len(stretch.pieces) == self.pieces and stretch.told == self.progress:
            return b""
        deltas, self.pieces = _merge(stretch, self.pieces)
        deltas += [
            Delta(step=stretch.step, attempt=attempt, call_id=call_id, index=number, tool_progress=progress)
            for number, call_id, attempt, progress in stretch.progress[
                bisect_left(stretch.progress, self.progress, key=_number) :
            ]
        ]
        self.progress = stretch.told
        return b"".join(_framed(delta) for delta in deltas)


def _number(entry: tuple[int, str, int, Progress]) -> int:
    return entry[0]


def _merge(stretch: Stretch, start: int) -> tuple[list[Delta], int]:
    """Merge the pieces after a position, until a frame is full; with the position after them."""
    merged: list[Delta] = []
    pieces = stretch.pieces
    index, left = start, FRAME_CHARACTERS
    while index < len(pieces) and left > 0:
        kind, part, name, text = pieces[index]
        end, left = index + 1, left - len(text)
        while end < len(pieces) and left > 0 and pieces[end][:2] == (kind, part) and not pieces[end][2]:
            left -= len(pieces[end][3])
            end += 1
        text = "".join(piece[3] for piece in pieces[index:end])
        delta = Delta(step=stretch.step, attempt=stretch.attempt, part=part, index=end - 1)
        if kind == "text":
            delta.text = text
        elif kind == "reasoning":
            delta.reasoning = text
        else:
            delta.tool_call.CopyFrom(ToolCallDelta(name=name, arguments_json=text))
        merged.append(delta)
        index = end
    return merged, index


def _framed(delta: Delta) -> bytes:
    data = delta.SerializeToString()
    return _DELTA_TAG + varint(len(data)) + data


class Deltas:
    """The chain of one live run. The driver opens and closes; performers add; watchers read."""

    __slots__ = ("_pulse", "last")

    def __init__(self, pulse: Callable[[], None]) -> None:
        self.last = Stretch(0, 0, 0)
        self.last.closed_at = 1
        self._pulse = pulse

    def open(self, step: int, attempt: int, sequence: int) -> Stretch:
        """Begin a stretch whose opening event is committed; the one before it is closed by then."""
        if not self.last.closed_at:
            self.close(sequence)
        stretch = Stretch(step, attempt, sequence)
        self.last.next = stretch
        self.last = stretch
        return stretch

    def follow(self, payloads: Sequence[Payload], after: Run) -> None:
        """Open and close stretches of deltas as the events of a commit say, by the sequences that they have or get.

        A stretch closes with the first event of the commit, since frames do not split a commit.
        """
        first = after.head.sequence - len(payloads) + 1
        for sequence, payload in enumerate(payloads, start=first):
            kind = type(payload)
            if kind is ModelRequested:
                self.close(first)
                self.open(payload.step, payload.attempt, sequence)
            elif kind is ModelCompleted:
                self.close(first)
                if after.step.calls:
                    self.open(payload.step, 0, sequence)
            elif kind in (ModelFailed, ModelSuperseded):
                self.close(first)
        if after.is_ended:
            self.close(first)

    def mark(self) -> tuple[Stretch, int]:
        """Where the chain ends, for `go_back`."""
        return self.last, self.last.closed_at

    def go_back(self, mark: tuple[Stretch, int]) -> None:
        """Take back what was opened and closed since a mark: the commit that said so did not come to be."""
        self.last, closed_at = mark
        self.last.closed_at, self.last.next = closed_at, None

    def close(self, sequence: int) -> None:
        """End the open stretch: the event of that sequence takes its place."""
        if not self.last.closed_at:
            self.last.closed_at = sequence

    def pulse(self) -> None:
        """Wake the watchers."""
        self._pulse()
