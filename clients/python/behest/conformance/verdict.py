"""What an examination comes to: checks, each with a verdict and the words of what was seen.

Above: the checks and the command line. Pure: no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn


class Verdict(StrEnum):
    """How a check ended."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"
    """The server offers nothing to try it on, or says that it does not promise this."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict of one check. `seen` says what was seen, or why nothing could be."""

    check: str
    verdict: Verdict
    seen: str


class Failed(Exception):
    """Raised by a check when the server breaks the contract. The text says how."""


class Skipped(Exception):
    """Raised by a check that cannot be made. The text says why, and what would help."""


def expect(is_right: bool, otherwise: str) -> None:
    """Go on when it is right. Raises Failed with the text otherwise."""
    if not is_right:
        raise Failed(otherwise)


def skip(why: str) -> NoReturn:
    """Give the check up. Raises Skipped."""
    raise Skipped(why)


def passes(findings: list[Finding], *, is_strict: bool = False) -> bool:
    """Whether nothing failed; if strict, whether nothing was skipped either."""
    bad = {Verdict.FAIL, Verdict.SKIP} if is_strict else {Verdict.FAIL}
    return not any(finding.verdict in bad for finding in findings)


def shown(text: str, limit: int = 120) -> str:
    """Return a server's text as one line that is safe to print, cut to a limit of characters."""
    line = "".join(character if character.isprintable() else " " for character in text[: 2 * limit])
    return line if len(line) <= limit else line[: limit - 1] + "…"
