"""What the log lines of a task are about: the run that it works on. Set once a run, read by lines that are written.

Above: the supervisor, which says it in the task of each driver; the tasks of its effects inherit it. Below: nothing. A
line is told which run it is about only if it does not name another one.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

_NAMES = ("run_id", "session_id", "trace_id")
_ABOUT: ContextVar[tuple[str, str, str]] = ContextVar("behest_about", default=("", "", ""))


def say(run_id: str, session_id: str, trace_id: str) -> None:
    """Say what the lines of this task, and of those that it starts from now on, are about. Empty: nothing known."""
    _ABOUT.set((run_id, session_id, trace_id))


def add(fields: MutableMapping[str, Any]) -> None:
    """Add to a line what it is about; a line that names a run, or a trace, of its own is left as it is."""
    known = _ABOUT.get()
    if any(fields.get(name, value) != value for name, value in zip(_NAMES, known, strict=True) if value):
        return
    for name, value in zip(_NAMES, known, strict=True):
        if value:
            fields.setdefault(name, value)
