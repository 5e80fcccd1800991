"""What this daemon knows of the runs that it drives: whose children they are, whether they wait, who waits for them.

The supervisor tells of every turn; the core asks whether a child waits, and how many calls wait for an approval;
`children` waits for their ends. It can be made again from the runs, and nothing here is a promise. Plain data on one
loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from behest.v1.run_state_pb2 import RunState
from behestd.core import asking
from behestd.core.state import Run
from behestd.log.waiters import Waiters
from behestd.runtime.gate import Key


class Kin:
    """The child runs that are driven here, and a look at all runs that are."""

    __slots__ = ("_children", "_parents", "_resting", "_runs", "_waiters", "is_draining", "most_asked")

    def __init__(self) -> None:
        self._children: dict[Key, set[Key]] = {}
        self._parents: dict[Key, Key] = {}
        self._resting: dict[Key, int] = {}
        self._waiters: dict[Key, Waiters] = {}
        self._runs: Callable[[], Iterable[Run]] = list
        self.most_asked = 0
        """Most calls of a principal's runs that may wait for an approval; 0: any number."""
        self.is_draining = False
        """Whether nobody is to wait for a child run any more: the next owner does."""

    def serve(self, runs: Callable[[], Iterable[Run]], most_asked: int) -> None:
        """Begin to look at the runs that have not ended, and heed a limit of calls that wait for an approval."""
        self._runs, self.most_asked = runs, most_asked

    def saw(self, run: Run) -> None:
        """Take note of how a run is, if it is a child."""
        created = run.created
        if not created.HasField("parent"):
            return
        key, parent = (created.namespace, run.id), (created.namespace, created.parent.run_id)
        self._parents[key] = parent
        self._children.setdefault(parent, set()).add(key)
        wait = run.life.wait
        until_ns = wait.until_ns if run.state == RunState.RUN_STATE_WAITING and wait is not None else 0
        if self._resting.get(key, 0) != until_ns:
            self._resting[key] = until_ns
            self._wake(key)

    def gone(self, run: Run) -> None:
        """Take note that a run is not driven here any more."""
        key = (run.created.namespace, run.id)
        parent = self._parents.pop(key, None)
        if parent is None:
            return
        self._resting.pop(key, None)
        siblings = self._children[parent]
        siblings.discard(key)
        if not siblings:
            del self._children[parent]
        self._wake(key)

    def drain(self) -> None:
        """Send away all who wait for a child run."""
        self.is_draining = True
        for key in list(self._waiters):
            self._wake(key)

    async def change(self, key: Key, seconds: float) -> None:
        """Wait until a child run begins or ceases to wait, or is gone, at most so long."""
        waiters = self._waiters.setdefault(key, Waiters())
        try:
            await waiters.wait(seconds)
        finally:
            if not waiters and self._waiters.get(key) is waiters:
                del self._waiters[key]

    def _wake(self, key: Key) -> None:
        waiters = self._waiters.get(key)
        if waiters is not None:
            waiters.wake()

    # --- what is known ---

    def rests_until_ns(self, namespace: str, run_id: str) -> int:
        """Until when a child run waits at the longest, 0 when it does not. See `core.children.Kin`."""
        return self._resting.get((namespace, run_id), 0)

    def asked(self, namespace: str, principal: str, besides: str) -> int:
        """How many calls of a principal's runs wait for an approval. See `core.children.Kin`."""
        owner = (namespace, principal)
        others = (run for run in self._runs() if run.id != besides)
        return sum(asking.asked(run) for run in others if (run.created.namespace, run.created.principal) == owner)

    def of(self, parent: Key) -> list[Key]:
        """The child runs of a run."""
        return sorted(self._children.get(parent, ()))

    def parents(self) -> list[Key]:
        """All runs that have child runs here, whether they are here themselves or not."""
        return sorted(self._children)

    def __len__(self) -> int:
        """How many child runs there are."""
        return len(self._parents)
