"""Places for tool calls: so many of all runs at once, no run may hold more than half of them, no namespace all.

Above: the tool performer. A place that becomes free goes to the namespace that holds fewest, and of its waiting runs to
the one that does, so neither one run with slow tools, nor many calls of one turn, nor a namespace with many runs keep
the tools of another one from starting. Plain data on one loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from behestd.runtime.gate import Key


class Turn(Enum):
    """What came of waiting for a place."""

    TAKEN = "taken"
    EXPIRED = "expired"
    SENT_AWAY = "sent away"


@dataclass(frozen=True, slots=True)
class Statistics:
    """Places held, and calls that wait for one."""

    held: int
    waiting: int


class Slots:
    """The places. Whoever took one gives it back."""

    def __init__(self, total: int, share: Callable[[int], int] = lambda total: total) -> None:
        """`share` tells how many of so many places one namespace may hold."""
        self._total = self._free = total
        self._share = max(1, total // 2)
        self._share_of_all = share
        self._held: Counter[Key] = Counter()
        self._of_namespace: Counter[str] = Counter()
        self._waiting: OrderedDict[Key, OrderedDict[str, asyncio.Future[Turn]]] = OrderedDict()

    async def take(self, run: Key, call: str, seconds: float) -> Turn:
        """Take a place for a call of a run, waiting so long. Only one that is TAKEN is given back."""
        if self._has_place(run) and run not in self._waiting:
            self._hold(run)
            return Turn.TAKEN
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[Turn] = loop.create_future()
        self._waiting.setdefault(run, OrderedDict())[call] = turn
        timer = loop.call_later(seconds, self._dismiss, run, call, Turn.EXPIRED)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result() is Turn.TAKEN:
                self.give(run)
            raise
        finally:
            timer.cancel()
            self._leave(run, call, turn)

    def give(self, run: Key) -> None:
        """Give a place back, to whoever waits for it."""
        self._free += 1
        self._held[run] -= 1
        if not self._held[run]:
            del self._held[run]
        self._of_namespace[run[0]] -= 1
        if not self._of_namespace[run[0]]:
            del self._of_namespace[run[0]]
        self._hand_out()

    def resize(self, total: int) -> None:
        """Have so many places from now on. Those that are held stay held, even where it is too many."""
        self._free += total - self._total
        self._total = total
        self._share = max(1, total // 2)
        self._hand_out()

    def _hand_out(self) -> None:
        """Give the free places to those who wait."""
        while (next_run := self._next()) is not None:
            _, turn = self._waiting[next_run].popitem(last=False)
            self._put_last(next_run)
            if not turn.done():
                self._hold(next_run)
                turn.set_result(Turn.TAKEN)

    def send_away(self, run: Key, call: str) -> bool:
        """Let a call that waits go without a place: whether it waited."""
        return self._dismiss(run, call, Turn.SENT_AWAY)

    def _dismiss(self, run: Key, call: str, why: Turn) -> bool:
        calls = self._waiting.get(run)
        turn = calls.get(call) if calls is not None else None
        if turn is None or turn.done():
            return False
        turn.set_result(why)
        self._leave(run, call, turn)
        return True

    def statistics(self) -> Statistics:
        """Counts."""
        return Statistics(self._held.total(), sum(len(calls) for calls in self._waiting.values()))

    def _has_place(self, run: Key) -> bool:
        is_left = self._free > 0 and self._held[run] < self._share
        return is_left and self._of_namespace[run[0]] < self._share_of_all(self._total)

    def _hold(self, run: Key) -> None:
        self._free -= 1
        self._held[run] += 1
        self._of_namespace[run[0]] += 1

    def _next(self) -> Key | None:
        """The waiting run that may have the next place.

        Of those whose namespace holds fewest, and who hold fewest themselves, the one that waits longest.
        """
        runs = [run for run in self._waiting if self._has_place(run)]
        return min(runs, key=lambda run: (self._of_namespace[run[0]], self._held[run]), default=None)

    def _put_last(self, run: Key) -> None:
        if self._waiting[run]:
            self._waiting.move_to_end(run)
        else:
            del self._waiting[run]

    def _leave(self, run: Key, call: str, turn: asyncio.Future[Turn]) -> None:
        calls = self._waiting.get(run)
        if calls is not None and calls.get(call) is turn:
            del calls[call]
            if not calls:
                del self._waiting[run]
