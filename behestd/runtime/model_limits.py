"""The operator's limits for one model: requests and tokens a minute, and calls at once. Calls wait in turn.

Above: `health`, which holds one gate for each model that has limits. Who waits is woken when it is its turn, by the end
of a call or by one timer; nothing is polled. A wait that would be longer than its limit is a refusal with the time
after which it makes sense, as from a provider that asks to wait.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import islice
from math import inf

from behest.v1.usage_pb2 import Usage
from behestd.core.times import SECOND
from behestd.providers.failure import ProviderFailure
from behestd.runtime.clock import Clock

_BURST = 0.1
"""The part of a minute's worth that may go at once, so that in no minute more than 1.1 times the limit goes."""


class OverLimit(ProviderFailure):
    """Raised when a call would have to wait too long for the operator's limits; nothing was sent."""

    def __init__(self, seconds: float) -> None:
        text = f"the daemon's own limit for this model would be passed for {seconds:.3g} s"
        super().__init__("PROVIDER_RATE_LIMITED", text, retry_after_seconds=seconds, usage=Usage())


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may be asked of one model; 0 is no limit. Tokens are those of question and answer."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    calls: int = 0
    """Calls at once."""
    wait_seconds: float = 10.0
    """How long a call waits for its turn before it is refused."""


class Bucket:
    """A stock that refills with time, up to a burst. It may be overdrawn: the next taker waits for that."""

    __slots__ = ("_at_ns", "_burst", "_level", "_per_second")

    def __init__(self, per_minute: int, now_ns: int) -> None:
        self._per_second = per_minute / 60
        self._burst = max(per_minute * _BURST, 1.0)
        self._level = self._burst
        self._at_ns = now_ns

    def due_seconds(self, amount: float, now_ns: int) -> float:
        """How long until so much is there, or the burst where more is wanted. Not above 0: it is."""
        self._refill(now_ns)
        return (min(amount, self._burst) - self._level) / self._per_second

    def take(self, amount: float, now_ns: int) -> None:
        """Take so much out; a negative amount is put back."""
        self._refill(now_ns)
        self._level = min(self._level - amount, self._burst)

    def is_full(self, now_ns: int) -> bool:
        """Whether nothing was taken that has not come back."""
        self._refill(now_ns)
        return self._level >= self._burst

    def _refill(self, now_ns: int) -> None:
        elapsed_seconds = (now_ns - self._at_ns) / SECOND
        self._level = min(self._level + elapsed_seconds * self._per_second, self._burst)
        self._at_ns = now_ns


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    tokens: int
    turn: asyncio.Future[None]


class Gate:
    """Lets calls of one model through: namespaces in turn, of one of them who came first. Used on the loop alone."""

    __slots__ = ("_allowance", "_clock", "_in_flight", "_requests", "_timer", "_tokens", "_waiters")

    def __init__(self, allowance: Allowance, clock: Clock) -> None:
        now_ns = clock.now_ns()
        self._allowance = allowance
        self._clock = clock
        self._in_flight = 0
        self._requests = Bucket(allowance.requests_per_minute, now_ns) if allowance.requests_per_minute else None
        self._tokens = Bucket(allowance.tokens_per_minute, now_ns) if allowance.tokens_per_minute else None
        self._waiters: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        """By namespace, the one whose turn is next first."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many calls wait for their turn."""
        return sum(map(len, self._waiters.values()))

    async def enter(self, tokens: int, left_seconds: float, namespace: str = "") -> None:
        """Wait for a turn, with the tokens that the call is likely to need. To be followed by `leave`.

        Raises OverLimit when that takes longer than the limit or what is left.
        """
        if not self._waiters and self._due_seconds(tokens) <= 0:
            self._take(tokens)
            return
        limit_seconds = max(min(self._allowance.wait_seconds, left_seconds), 0.0)
        due_seconds = self._last_due_seconds(tokens, namespace)
        if due_seconds > limit_seconds:
            raise OverLimit(due_seconds)
        waiter = _Waiter(tokens, asyncio.get_running_loop().create_future())
        self._waiters.setdefault(namespace, deque()).append(waiter)
        self._serve()
        try:
            async with asyncio.timeout(limit_seconds):
                await waiter.turn
        except BaseException as error:
            if waiter.turn.done() and not waiter.turn.cancelled():
                self.leave(-tokens)
            else:
                self._waiters[namespace].remove(waiter)
                self._put_last(namespace, is_next=True)
                self._serve()
            if isinstance(error, TimeoutError):
                raise OverLimit(self._allowance.wait_seconds) from None
            raise

    def leave(self, tokens: int = 0) -> None:
        """End a call, which took so many tokens more than it was let in with."""
        self._in_flight -= 1
        if self._tokens is not None and tokens:
            self._tokens.take(tokens, self._clock.now_ns())
        self._serve()

    def _due_seconds(self, tokens: int) -> float:
        """How long until a call can be let through; infinite where another one has to end first."""
        if 0 < self._allowance.calls <= self._in_flight:
            return inf
        now_ns, due = self._clock.now_ns(), 0.0
        if self._requests is not None:
            due = self._requests.due_seconds(1, now_ns)
        if self._tokens is not None:
            due = max(due, self._tokens.due_seconds(tokens, now_ns))
        return due

    def _before(self, namespace: str) -> list[_Waiter]:
        """Those whose turn comes before that of a new call of a namespace."""
        own = len(self._waiters.get(namespace, ()))
        turns = ((waiters, own if name == namespace else own + 1) for name, waiters in self._waiters.items())
        return [waiter for waiters, count in turns for waiter in islice(waiters, count)]

    def _put_last(self, namespace: str, *, is_next: bool = False) -> None:
        """Let the other namespaces have their turns, unless this one still has to have its own."""
        if not self._waiters[namespace]:
            del self._waiters[namespace]
        elif not is_next:
            self._waiters.move_to_end(namespace)

    def _last_due_seconds(self, tokens: int, namespace: str) -> float:
        """How long a call behind those before it is likely to take, by requests and tokens alone."""
        now_ns, due, before = self._clock.now_ns(), 0.0, self._before(namespace)
        if self._requests is not None:
            ahead = len(before) * 60 / self._allowance.requests_per_minute
            due = self._requests.due_seconds(1, now_ns) + ahead
        if self._tokens is not None:
            wanted = sum(waiter.tokens for waiter in before)
            ahead = wanted * 60 / self._allowance.tokens_per_minute
            due = max(due, self._tokens.due_seconds(tokens, now_ns) + ahead)
        return due

    def _take(self, tokens: int) -> None:
        now_ns = self._clock.now_ns()
        self._in_flight += 1
        if self._requests is not None:
            self._requests.take(1, now_ns)
        if self._tokens is not None:
            self._tokens.take(tokens, now_ns)

    def _serve(self) -> None:
        """Let those through whose turn it is, and come back when the next one's is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiters:
            namespace, waiters = next(iter(self._waiters.items()))
            waiter = waiters[0]
            if waiter.turn.done():  # Cancelled, and about to take itself out.
                return
            due_seconds = self._due_seconds(waiter.tokens)
            if due_seconds > 0:
                if due_seconds < inf:
                    self._timer = asyncio.get_running_loop().call_later(due_seconds, self._serve)
                return
            waiters.popleft()
            self._put_last(namespace)
            self._take(waiter.tokens)
            waiter.turn.set_result(None)
