"""The handing over of a composed model call, from the decision that makes the attempt to whoever sends it.

Above: `turn`, which keeps, and the performer, which takes. To compose an open attempt again gives the same bytes, so
this only spares the work: after a crash there is nothing here, and the call is composed from the log.
"""

from __future__ import annotations

from behestd.core.window import Window

MOST = 64
"""Windows that are kept at most; of an attempt beyond them the call is composed again."""


class Composed:
    """The window of the attempt of each step that was decided on last, until it is taken. One a driver."""

    __slots__ = ("_windows",)

    def __init__(self) -> None:
        self._windows: dict[int, tuple[int, Window]] = {}

    def keep(self, step: int, attempt: int, window: Window) -> None:
        """Keep the window of an attempt, in the place of another of its step, or of all when there are too many."""
        if len(self._windows) >= MOST:
            self._windows.clear()
        self._windows[step] = (attempt, window)

    def take(self, step: int, attempt: int) -> Window | None:
        """Take the window of an attempt out, if it is that one's."""
        kept, window = self._windows.get(step, (0, None))
        if kept != attempt:
            return None
        del self._windows[step]
        return window
