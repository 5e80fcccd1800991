"""What watchers share with a live run: its log's tail, and the volatile deltas of what is open.

Deltas are a chain of stretches, one for each model attempt and one for the tools of each step. A watcher holds a
place in the chain, as it holds a sequence of the log; nothing is queued for it and nothing is dropped, and what no
watcher can reach any more is garbage. Deltas of a stretch are read after the events that opened it and before those
that closed it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from behest.v1.chat_service_pb2 import ChatDelta, ToolCallDelta
from behest.v1.delta_pb2 import Delta
from behest.v1.tool_pb2 import Progress
from behestd.log.frames import varint

_DELTA_TAG = b"\x12"
"""Field 2 of WatchRunResponse, length-delimited."""
PROGRESS_LIMIT_BYTES = 1024 * 1024
"""Above this, only the latest progress of each call is kept."""

Piece = tuple[str, int, str, str]
"""(kind, part, name of the tool, text) of a piece of a model's answer."""


class Stretch:
    """The deltas of one model attempt, or of the tools of one step. Grows until it is closed."""

    __slots__ = ("attempt", "closed_at", "next", "opened_at", "pieces", "progress", "progress_bytes", "step")

    def __init__(self, step: int, attempt: int, opened_at: int) -> None:
        self.step = step
        self.attempt = attempt
        self.opened_at = opened_at
        self.closed_at = 0
        self.pieces: list[Piece] = []
        self.progress: list[tuple[str, int, Progress]] = []
        self.progress_bytes = 0
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
            latest = {entry[0]: entry for entry in self.progress}
            self.progress = [entry for entry in latest.values() if entry[0] != call_id]
            self.progress_bytes = sum(entry[2].ByteSize() for entry in self.progress)
        self.progress.append((call_id, attempt, progress))


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
        """Encode what is new here, neighbouring pieces of one kind merged, and move past it."""
        stretch = self.stretch
        if len(stretch.pieces) == self.pieces and len(stretch.progress) <= self.progress:
            return b""
        deltas = _merge(stretch, self.pieces)
        self.pieces = len(stretch.pieces)
        deltas += [
            Delta(step=stretch.step, attempt=attempt, call_id=call_id, tool_progress=progress)
            for call_id, attempt, progress in stretch.progress[min(self.progress, len(stretch.progress)) :]
        ]
        self.progress = len(stretch.progress)
        return b"".join(_framed(delta) for delta in deltas)


def _merge(stretch: Stretch, start: int) -> list[Delta]:
    merged: list[Delta] = []
    pieces = stretch.pieces
    index = start
    while index < len(pieces):
        kind, part, name, _ = pieces[index]
        end = index + 1
        while end < len(pieces) and pieces[end][:2] == (kind, part) and not pieces[end][2]:
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
    return merged


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

    def close(self, sequence: int) -> None:
        """End the open stretch: the event of that sequence takes its place."""
        if not self.last.closed_at:
            self.last.closed_at = sequence

    def pulse(self) -> None:
        """Wake the watchers."""
        self._pulse()
