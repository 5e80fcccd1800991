"""The handing over of a composed model call, from the decision that makes the attempt to whoever sends it.

Above: `turn`, which keeps, and the performer, which takes. To compose an open attempt again gives the same bytes, so
this only spares the work: after a crash there is nothing here, and the call is composed from the log.
"""

from __future__ import annotations

from behestd.core.window import Window


class Composed:
    """The window of the attempt that was decided on last, until it is taken. One a driver."""

    __slots__ = ("_attempt", "_window")

    def __init__(self) -> None:
        self._attempt = (0, 0)
        self._window: Window | None = None

    def keep(self, step: int, attempt: int, window: Window) -> None:
        """Keep the window of an attempt, in the place of any other."""
        self._attempt, self._window = (step, attempt), window

    def take(self, step: int, attempt: int) -> Window | None:
        """Take the window of an attempt out, if it is that one's."""
        if self._attempt != (step, attempt):
            return None
        window, self._window = self._window, None
        return window
