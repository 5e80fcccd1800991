"""The table of what the payment tests found: one line a case."""

from __future__ import annotations

from dataclasses import dataclass

_HEAD = """| Server | Cut down | At | Tool | Sent | Took effect | Then |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """One case: sent and effects are counted by the ledger, the fate is what the log says last of the call."""

    mode: str
    what: str
    at: str
    tool: str
    sent: int
    effects: int
    fate: str

    def text(self) -> str:
        """The line as Markdown."""
        cells = (self.mode, self.what, self.at, self.tool, str(self.sent), str(self.effects), f"`{self.fate}`")
        return "| " + " | ".join(cells) + " |\n"


def table(lines: list[Line]) -> str:
    """All lines."""
    return _HEAD + "".join(line.text() for line in sorted(lines))
