"""Shows a run of a graph in a terminal: its nodes as they change, and below them the answer as it grows.

Above: `follow`, for runs of graphs whose output is a terminal. Below: `progress` and `behest.drawing`. What is shown
is drawn in place, a few times a second, and stays at the end as it is then, with the whole answer below it. What else
is to be said goes above it. Text of parallel nodes never mixes: only that of the node which answers is shown.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from typing import TYPE_CHECKING

import click

from behest import drawing
from behest.cli.progress import Progress
from behest.v1 import event_pb2

if TYPE_CHECKING:
    from behest.updates import Update
    from behest.v1 import graph_pb2, run_pb2

TICK_SECONDS = 0.1
# Lines of the answer that are shown below a drawing that leaves no room.
ANSWER_LINES = 4
# Larger graphs are not left behind as a drawing.
LARGEST_GRAPH = 100
_UP_AND_CLEAR = "\x1b[{}F\x1b[0J"


class Live:
    """Draws a run in place. `tick` is to be called now and then, `close` at the end."""

    def __init__(self, reasoning: run_pb2.Reasoning) -> None:
        self._progress = Progress(reasoning)
        self._nodes = count_nodes(reasoning.graph)
        self._answer = ""
        self._drawn = 0
        self._is_dirty = True

    def take(self, update: Update, text: str) -> None:
        """Take in an update, and the text of the answer that it adds."""
        if isinstance(update, event_pb2.Event):
            self._is_dirty |= self._progress.take(update)
        if text:
            self._answer += text
            self._is_dirty = True

    def begin_answer_again(self) -> None:
        """Forget the answer so far, which counts no more."""
        self._answer = ""
        self._is_dirty = True

    def tick(self) -> None:
        """Draw what has changed; times of what is at work change always."""
        if self._is_dirty or self._progress.at_work():
            self._is_dirty = False
            size = shutil.get_terminal_size()
            self._put(self.lines(size.columns, size.lines))

    def clear(self) -> None:
        """Take the drawing away, so that something can be printed where it stood."""
        self._put([])
        self._is_dirty = True

    def close(self) -> None:
        """Leave behind how the nodes ended, then the answer. Idempotent."""
        self._put([])
        if self._nodes <= LARGEST_GRAPH:
            click.echo(drawing.terminal(self._progress.graph, self._progress.as_of(time.time_ns())), nl=False)
        else:
            click.echo("\n".join(self._summary()))
        if self._answer:
            click.echo(self._answer, nl=not self._answer.endswith("\n"))
        self._answer, self._nodes = "", 0

    def lines(self, columns: int, rows: int) -> list[str]:
        """Return what is to be seen now, in lines that are narrower and fewer than the terminal."""
        room = rows - 1
        lines = self._summary()
        if self._nodes < room:
            drawn = drawing.terminal(self._progress.graph, self._progress.as_of(time.time_ns())).splitlines()
            lines = drawn if len(drawn) <= room else lines
        lines = [cropped(line, columns - 1) for line in lines]
        if self._answer:
            tail = max(room - len(lines), ANSWER_LINES)
            lines = lines[: max(room - tail, 0)] + wrapped(self._answer, columns - 1)[-tail:]
        return lines[:room]

    def _summary(self) -> list[str]:
        """Say in a few lines what is too large to be drawn."""
        at_work = self._progress.at_work()
        lines = [f"{self._progress.ended()} of {self._nodes} nodes ended, {len(at_work)} at work"]
        now = time.time_ns()
        for visit in at_work:
            seconds = max(now - visit.start_time.ToNanoseconds(), 0) / 1e9
            lines.append(f"▶ {visit.started.node}  {visit.started.operator}  {seconds:.1f} s")
        return lines

    def _put(self, lines: list[str]) -> None:
        if self._drawn or lines:
            above = _UP_AND_CLEAR.format(self._drawn) if self._drawn else ""
            click.echo(above + "".join(f"{line}\n" for line in lines), nl=False)
            self._drawn = len(lines)


def is_terminal() -> bool:
    """Return whether stdout can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def count_nodes(graph: graph_pb2.Graph) -> int:
    """Return the number of nodes, those of subgraphs included."""
    return sum(1 + count_nodes(node.subgraph) for node in graph.nodes)


def cells(letter: str) -> int:
    """Return how many columns a letter takes."""
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def cropped(line: str, columns: int) -> str:
    """Return a line, cut where it would be too wide."""
    [first, *rest] = wrapped(line, columns) or [""]
    return f"{first[:-1]}…" if rest else first


def wrapped(text: str, columns: int) -> list[str]:
    """Return the lines that a text takes, without what a terminal would obey."""
    lines = []
    for line in text.splitlines():
        held, width = "", 0
        for letter in line.expandtabs():
            shown = letter if letter.isprintable() else " "
            if width + cells(shown) > max(columns, 1):
                lines.append(held)
                held, width = "", 0
            held, width = held + shown, width + cells(shown)
        lines.append(held)
    return lines
