"""Makes checks one after the other, whatever they are about. Above: the tables of checks, in `tools` and `models`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from behest.conformance.verdict import Failed, Finding, Skipped, Verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

Subject = TypeVar("Subject")

# The one check that has something to say of a server that lists nothing.
LISTS = "list.answers"


def picked(checks: Iterable[str], globs: Sequence[str]) -> list[str]:
    """Return the names that globs pick, all without any. Raises ValueError for a glob that picks none."""
    names = list(checks)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ValueError(f"{glob} is no check; there are {', '.join(names)}")
    return [name for name in names if not globs or any(fnmatchcase(name, glob) for glob in globs)]


async def make(
    checks: Mapping[str, Callable[[Subject], Awaitable[str]]],
    names: Iterable[str],
    subject: Subject,
    lacks: str,
    tell: Callable[[Finding], None],
) -> list[Finding]:
    """Make the named checks in this order, tell of each finding, and return them all.

    `lacks` says what the server does not list, so that what needs it is skipped; empty when nothing lacks.
    """
    found: list[Finding] = []
    for name in names:
        if lacks and name != LISTS:
            found.append(Finding(name, Verdict.SKIP, lacks))
        else:
            found.append(await _made(name, checks[name], subject))
        tell(found[-1])
    return found


async def _made(name: str, check: Callable[[Subject], Awaitable[str]], subject: Subject) -> Finding:
    try:
        return Finding(name, Verdict.PASS, await check(subject))
    except Failed as exc:
        return Finding(name, Verdict.FAIL, str(exc))
    except Skipped as exc:
        return Finding(name, Verdict.SKIP, str(exc))
