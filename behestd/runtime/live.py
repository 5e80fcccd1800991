"""What watchers share with a live run: its log's tail, and the volatile deltas of what is open.

Deltas are a chain of stretches in the order in which they were opened, one for each model attempt and one for the tools
of each step; a reasoning graph has several open at once. A watcher holds its places in those that are open where it is
in the log, as it holds a sequence of the log; nothing is queued for it and nothing is dropped, and what no watcher can
reach any more is garbage. Deltas of a stretch are read after the events that opened it and before those that closed it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from behest.v1.chat_service_pb2 import ChatDelta
from behest.v1.delta_pb2 import Delta
from behest.v1.tool_pb2 import Progress
from behestd.core.lanes import lane_of_call
from behestd.core.run import Payload
from behestd.core.state import TERMINAL, Run, Step
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

    __slots__ = (
        "__weakref__",
        "attempt",
        "closed_at",
        "opened_at",
        "pieces",
        "progress",
        "progress_bytes",
        "step",
        "told",
    )

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

    def add(self, deltas: Iterable[ChatDelta]) -> None:
        """Add pieces of the model's answer."""
        add = self.pieces.append
        for delta in deltas:
            kind = delta.WhichOneof("kind")
            if kind == "text":
                add(("text", delta.part, "", delta.text))
            elif kind == "reasoning":
                add(("reasoning", delta.part, "", delta.reasoning))
            elif kind == "tool_call":
                call = delta.tool_call
                add(("tool_call", delta.part, call.name, call.arguments_json))

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
    """A watcher's place in a stretch."""

    stretch: Stretch
    pieces: int = 0
    progress: int = 0

    @property
    def is_spent(self) -> bool:
        """Whether everything that the stretch holds by now is told."""
        return self.pieces == len(self.stretch.pieces) and self.progress == self.stretch.told

    def take(self, room: int = FRAME_CHARACTERS) -> bytes:
        """Encode what is new here, as much as there is room for, neighbouring pieces of one kind merged; move past it.

        What takes more room than there is goes whole when it is one piece, or progress.
        """
        stretch = self.stretch
        if len(stretch.pieces) == self.pieces and stretch.told == self.progress:
            return b""
        deltas, self.pieces = _merge(stretch, self.pieces, room)
        if stretch.told > self.progress:
            new = stretch.progress[bisect_left(stretch.progress, self.progress, key=_number) :]
            deltas += [
                Delta(step=stretch.step, attempt=attempt, call_id=call_id, index=number, tool_progress=progress)
                for number, call_id, attempt, progress in new
            ]
            self.progress = stretch.told
        return b"".join(map(_framed, deltas))


def _number(entry: tuple[int, str, int, Progress]) -> int:
    return entry[0]


def _merge(stretch: Stretch, start: int, room: int) -> tuple[list[Delta], int]:
    """Merge the pieces after a position, until the room is taken; with the position after them."""
    merged: list[Delta] = []
    pieces = stretch.pieces
    index, left = start, room
    while index < len(pieces) and left > 0:
        kind, part, name, text = pieces[index]
        texts, left, index = [text], left - len(text), index + 1
        while index < len(pieces) and left > 0:
            its_kind, its_part, its_name, more = pieces[index]
            if its_kind != kind or its_part != part or its_name:
                break
            texts.append(more)
            left, index = left - len(more), index + 1
        text = "".join(texts)
        delta = Delta()
        delta.step, delta.attempt, delta.part, delta.index = stretch.step, stretch.attempt, part, index - 1
        if kind == "text":
            delta.text = text
        elif kind == "reasoning":
            delta.reasoning = text
        else:
            delta.tool_call.name, delta.tool_call.arguments_json = name, text
        merged.append(delta)
    return merged, index


def _framed(delta: Delta) -> bytes:
    data = delta.SerializeToString()
    return _DELTA_TAG + varint(len(data)) + data


Key = tuple[int, int]
"""(step, attempt) of a stretch; attempt 0 is the tools of the step."""


class Link:
    """A stretch in the chain. Apart from it, so that one which is long open does not keep those after it."""

    __slots__ = ("next", "stretch")

    def __init__(self, stretch: Stretch) -> None:
        self.stretch = stretch
        self.next: Link | None = None


Mark = tuple[Link, Link, Mapping[Key, Stretch], tuple[Stretch, ...]]


class Deltas:
    """The stretches of one live run. The driver opens and closes; performers add; watchers read."""

    __slots__ = ("_before", "_closed", "_due", "_last", "_open", "pulse")

    def __init__(self, pulse: Callable[[], None] = lambda: None) -> None:
        self._last = self._before = Link(Stretch(0, 0, 0))
        # Replaced as a whole, never changed: a mark is what they were.
        self._open: Mapping[Key, Stretch] = {}
        self._due: tuple[Key, ...] = ()
        """The keys of what is open."""
        self._closed: tuple[Stretch, ...] = ()
        self.pulse = pulse
        """Wakes the watchers. Nothing of the run's driver: a cycle would leave each run to the garbage collector."""

    def of(self, step: int, attempt: int) -> Stretch:
        """The stretch of an open attempt, with attempt 0 that of a step's tools; else one that nobody reads."""
        return self._open.get((step, attempt)) or Stretch(step, attempt, 0)

    def of_call(self, run: Run, call_id: str) -> Stretch:
        """The stretch that a call's progress belongs to."""
        lane = lane_of_call(run, call_id)
        return self.of(lane.step.number if lane is not None else run.step.number, 0)

    def follow(self, payloads: Sequence[Payload], after: Run) -> None:
        """Open and close stretches as the state of the run after a commit says.

        A stretch closes with the first event of the commit, since frames do not split a commit.
        """
        due = _at_work(after)
        if due == self._due:
            self._before, self._closed = self._last, ()
            return
        first, last = after.head.sequence - len(payloads) + 1, after.head.sequence
        before, closed = self._open, []
        for key, stretch in before.items():
            if key not in due:
                stretch.closed_at = first
                closed.append(stretch)
        self._closed, self._before, self._due = tuple(closed), self._last, due
        self._open = {key: before.get(key) or self._begin(key, last) for key in due}

    def adopt(self, run: Run) -> None:
        """Open the stretches of the tools that were at work when the earlier owner of the run left."""
        self._due = tuple(key for key in _at_work(run) if not key[1])
        self._open = {key: self._begin(key, run.head.sequence) for key in self._due}

    def _begin(self, key: Key, sequence: int) -> Stretch:
        link = Link(Stretch(*key, sequence))
        self._last.next = link
        self._last = link
        return link.stretch

    def begin(self, head: int) -> tuple[list[Stretch], Link]:
        """Where a watcher begins at a head of the log: the stretches that are open, and the link that others follow."""
        found = (*self._closed, *self._open.values())
        at_work = [each for each in found if each.opened_at <= head and not 0 < each.closed_at <= head]
        return at_work, self._last if self._last.stretch.opened_at <= head else self._before

    def mark(self) -> Mark:
        """What is open and where the chain ends, for `go_back`."""
        return self._last, self._before, self._open, self._closed

    def go_back(self, mark: Mark) -> None:
        """Take back what was opened and closed since a mark: the commit that said so did not come to be."""
        self._last, self._before, self._open, self._closed = mark
        self._last.next, self._due = None, tuple(self._open)
        for stretch in self._open.values():
            stretch.closed_at = 0


def _at_work(run: Run) -> tuple[Key, ...]:
    """The stretches that are open in a state: of each step its attempt, or its tools."""
    if run.state in TERMINAL:
        return ()
    if run.nodes is not None:
        return tuple(key for lane in run.nodes.lanes.values() for key in _of_step(lane.step))
    return _of_step(run.step)


def _of_step(step: Step) -> tuple[Key, ...]:
    if step.open is not None:
        return ((step.number, step.open.number),)
    return ((step.number, 0),) if step.calls else ()
