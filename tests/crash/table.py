"""The table of what the crash tests found: one line a case, in `docs/crash-table.md`, the same whenever it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PLACE = Path(__file__).parents[2] / "docs" / "crash-table.md"
_INTRODUCTION = """# What survives a crash

Each line is a daemon that was really killed, at a point that was proved to be hit, and started again on what it left.
Rows are those of the failure matrix. *Sent* and *took effect* are counted by the ledger of a tool server in a process
of its own, over both lives of the daemon. Made by `make test ARGS="tests/crash"` with `BEHEST_WRITE_TABLE=1`; a test
compares.

| Row | Killed at | Tool | State | The log ended at | Then | Sent | Took effect |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """One case. `sent` and `effects` are -1 where no tool is concerned."""

    row: int
    point: str
    tool: str
    state: str
    last: str
    outcome: str
    sent: int = -1
    effects: int = -1

    def text(self) -> str:
        """The line as Markdown."""
        counts = ["" if count < 0 else str(count) for count in (self.sent, self.effects)]
        cells = [str(self.row), f"`{self.point}`", self.tool, self.state, f"`{self.last}`", self.outcome, *counts]
        return "| " + " | ".join(cells) + " |\n"


def table(lines: list[Line]) -> str:
    """The whole document."""
    return _INTRODUCTION + "".join(line.text() for line in sorted(set(lines)))
