"""The session gate: at most one started run a session, a queue behind it, and the count of runs that work at once.

Plain data that the supervisor alone changes; nothing here waits. What it holds can be made again from the store.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

Key = tuple[str, str]
"""(namespace, id)."""


@dataclass(slots=True)
class Session:
    """What is known of a session that has runs: who is active, who queues, and the last index of those that ended."""

    active: str = ""
    queue: deque[str] = field(default_factory=deque)
    last_index: int = 0


class Gates:
    """The gates of all sessions with runs that have not ended, and the capacity of the daemon."""

    def __init__(
        self, capacity: Callable[[], int], share: Callable[[str, int], int] = lambda _, capacity: capacity
    ) -> None:
        """`capacity` tells how many runs may work at once, `share` how much of the capacity a namespace may have."""
        self.sessions: dict[Key, Session] = {}
        self._capacity = capacity
        self._share = share
        self._working: set[Key] = set()
        self._by_namespace: Counter[str] = Counter()
        """How many of those that work are of a namespace."""
        self._ready: OrderedDict[str, deque[Key]] = OrderedDict()
        """Runs whose session is free and which wait for capacity, by namespace, served round robin."""
        self._called_back: set[Key] = set()
        """Those of them that had begun before they had to wait."""

    # --- capacity ---

    @property
    def working(self) -> int:
        """How many runs work."""
        return len(self._working)

    def has_room(self, namespace: str) -> bool:
        """Whether one more run of a namespace may work."""
        capacity = self._capacity()
        return len(self._working) < capacity and self._by_namespace[namespace] < self._share(namespace, capacity)

    @property
    def waiting_for_room(self) -> int:
        """How many runs only wait for capacity."""
        return sum(len(runs) for runs in self._ready.values())

    def work(self, run: Key) -> None:
        """Count a run as working. Idempotent."""
        if run not in self._working:
            self._working.add(run)
            self._by_namespace[run[0]] += 1

    def rest(self, run: Key) -> None:
        """Count a run as not working, since it waits or has ended. Idempotent."""
        if run in self._working:
            self._working.remove(run)
            self._by_namespace[run[0]] -= 1
            if not self._by_namespace[run[0]]:
                del self._by_namespace[run[0]]

    def line_up(self, run: Key) -> None:
        """Let a run wait for capacity."""
        self._ready.setdefault(run[0], deque()).append(run)

    def call_back(self, run: Key) -> None:
        """Let a run that had begun and works no more wait for capacity to go on. Idempotent."""
        if run not in self._called_back:
            self._called_back.add(run)
            self.line_up(run)

    def is_called_back(self, run: Key) -> bool:
        """Whether a run that has got its turn had begun before: should it wait on, its turn ends. Told once."""
        was_called = run in self._called_back
        self._called_back.discard(run)
        return was_called

    def next_ready(self) -> Key | None:
        """Take the next run that waits for capacity, namespaces in turn; None when there is none, or no room.

        A namespace that has its share already is passed over, and keeps its turn.
        """
        if not self._ready or len(self._working) >= self._capacity():
            return None
        namespace = next((name for name in self._ready if self.has_room(name)), None)
        if namespace is None:
            return None
        runs = self._ready.pop(namespace)
        run = runs.popleft()
        if runs:
            self._ready[namespace] = runs
        return run

    def leave_line(self, run: Key) -> None:
        """Take a run out of those that wait for capacity. Idempotent."""
        self._called_back.discard(run)
        runs = self._ready.get(run[0])
        if runs is not None and run in runs:
            runs.remove(run)
            if not runs:
                del self._ready[run[0]]

    # --- sessions ---

    def look_at(self, session: Key) -> Session:
        """What is known of a session; an empty gate when that is nothing. Not to be changed."""
        return self.sessions.get(session) or Session()

    def count(self, session: Key, session_index: int) -> None:
        """Note the session_index of a run that has ended, 0 when it never started."""
        gate = self.sessions.get(session)
        if gate is not None:
            gate.last_index = max(gate.last_index, session_index)

    def release(self, session: Key, run_id: str) -> str:
        """Let go of a session, or of a place in its queue; gives the run that is next, empty when there is none.

        The next run holds the gate from here on.
        """
        gate = self.sessions.get(session)
        if gate is None:
            return ""
        if gate.active != run_id:
            if run_id in gate.queue:
                gate.queue.remove(run_id)
            return ""
        gate.active = gate.queue.popleft() if gate.queue else ""
        if not gate.active:
            del self.sessions[session]
        return gate.active
