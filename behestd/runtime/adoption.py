"""Takes up runs that an earlier owner left: at start, and again and again. Part of the supervisor.

A run that may be what killed the daemon (twice in a row its owner vanished without bringing it forward) is a suspect:
suspects are taken up one at a time, the next when the one before has come forward, so that only the run that kills is
condemned. A log that does not fold is reported and left alone; it holds up nobody else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from behest.v1.run_event_pb2 import ClaimReason
from behest.v1.run_state_pb2 import CancelCause, CancelMode, RunState, SessionPolicy
from behestd.core.decide import claim_count
from behestd.core.signals import Cancel, Claim
from behestd.core.state import Run
from behestd.errors import BehestError, Corrupt, NewerFormat
from behestd.log.spending import charged_session
from behestd.log.store import RunRow
from behestd.runtime.children_orphans import cancel_of, has_lost_its_parent
from behestd.runtime.commit import Before
from behestd.runtime.driver import Birth, Driver
from behestd.runtime.gate import Gates, Key, Session
from behestd.runtime.house import House
from behestd.runtime.reading import history_of, read_run

logger = structlog.get_logger(__name__)

_AT_ONCE = 64
_PAGE = 500
_SUSPECT = 2
_WORKING = (RunState.RUN_STATE_RUNNING, RunState.RUN_STATE_CANCELLING)


class Adoption:
    """Finds runs without a driver and gives them one."""

    def __init__(
        self, house: House, gates: Gates, drivers: dict[Key, Driver], begin: Callable[[Birth], Driver]
    ) -> None:
        self.unfit: dict[Key, BehestError] = {}
        """Runs whose log does not fold, with the reason."""
        self._house = house
        self._gates = gates
        self._drivers = drivers
        self._begin = begin
        self._suspects: list[RunRow] = []
        self._under_watch: Key | None = None

    async def adopt_all(self) -> None:
        """Adopt every run that has not ended and has no driver; queued ones join their session's queue."""
        after = ("", "")
        while True:
            page = await self._house.log.store.unended(_PAGE, after)
            orphans = [row for row in page if self._is_orphan(row)]
            for start in range(0, len(orphans), _AT_ONCE):
                await self._adopt_some(orphans[start : start + _AT_ONCE])
            if len(page) < _PAGE:
                return
            after = (page[-1].namespace, page[-1].run_id)

    def _is_orphan(self, row: RunRow) -> bool:
        key = (row.namespace, row.run_id)
        is_suspect = any(row.run_id == suspect.run_id for suspect in self._suspects)
        return key not in self._drivers and key not in self.unfit and not is_suspect

    async def _adopt_some(self, rows: Sequence[RunRow]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for row in rows:
                tasks.create_task(self._try(row))

    async def _try(self, row: RunRow) -> None:
        key = (row.namespace, row.run_id)
        try:
            before = await read_run(self._house.log.store, row)
        except (Corrupt, NewerFormat) as error:
            self.unfit[key] = error
            logger.error("run left alone", run_id=row.run_id, reason=error.reason, **error.metadata)
            return
        if await self._has_moved(row):
            return
        if before.run is not None and claim_count(before.run) >= _SUSPECT:
            if self._under_watch is not None:
                self._suspects.append(row)
                # Nobody else of its session may start until its turn has come.
                (await self._gate(row.namespace, row.session_id)).active = row.run_id
                return
            self._under_watch = key
        await self._take_up(before)

    async def _has_moved(self, row: RunRow) -> bool:
        """Whether the run went on since its row was read: it had a driver then, and has ended by now."""
        now = await self._house.log.store.run(row.namespace, row.run_id)
        return now is None or now.last_sequence != row.last_sequence

    async def adopt(self, row: RunRow) -> Driver:
        """Give a run a driver, which claims it first, whatever it is suspected of. Raises Corrupt and NewerFormat."""
        return await self._take_up(await read_run(self._house.log.store, row))

    async def _take_up(self, before: Before) -> Driver:
        run = before.run
        assert run is not None
        store, created = self._house.log.store, run.created
        session = (created.namespace, created.session_id)
        limit = self._house.limits.history_messages
        history = await history_of(store, *session, run.life.session_index, limit)
        is_forsaken = await has_lost_its_parent(store, run)
        await self._house.ledger.open(store, created.namespace, charged_session(run))
        gate = await self._gate(*session)
        there = self._drivers.get((created.namespace, run.id))
        if there is not None:
            return there
        driver = self._begin(Birth(before, run, tuple(history), before.trace_id))
        self._house.listener.adopted(run, self._house.clock.now_ns())
        if run.state == RunState.RUN_STATE_QUEUED:
            self._line_up(gate, run)
            return driver
        gate.active = run.id
        if is_forsaken:
            # Before the claim, which would begin again what is to end.
            driver.tell(cancel_of(None))
        released = run.life.ownership.is_released
        reason = ClaimReason.CLAIM_REASON_RELEASED if released else ClaimReason.CLAIM_REASON_RECOVERY
        driver.tell(Claim(reason))
        return driver

    async def _gate(self, namespace: str, session_id: str) -> Session:
        gates = self._gates.sessions
        if (namespace, session_id) not in gates:
            index = await self._house.log.store.last_session_index(namespace, session_id)
            gates.setdefault((namespace, session_id), Session(last_index=index))
        return gates[namespace, session_id]

    def _line_up(self, gate: Session, run: Run) -> None:
        """Put a queued run into its session's queue: in order of creation, those that interrupt first."""
        if run.id in gate.queue or gate.active == run.id:
            return
        order = sorted([*gate.queue, run.id], key=lambda run_id: self._place(run.created.namespace, run_id))
        gate.queue = deque(order)

    def _place(self, namespace: str, run_id: str) -> tuple[bool, int, str]:
        run = self._drivers[namespace, run_id].run
        waits = run.created.session_policy != SessionPolicy.SESSION_POLICY_INTERRUPT
        return waits, run.life.create_ns if waits else -run.life.create_ns, run_id

    def has_come_through(self, driver: Driver) -> bool:
        """Whether this is the suspect under watch, and it came forward, rests or ended. It is then watched no more."""
        run = driver.run
        is_through = run.life.ownership.has_progressed or run.state not in _WORKING
        if (run.created.namespace, run.id) != self._under_watch or not is_through:
            return False
        self._under_watch = None
        return True

    async def adopt_suspect(self) -> None:
        """Take up the next suspect that still needs it."""
        while self._suspects and self._under_watch is None:
            await self._try(self._suspects.pop(0))

    def interrupted(self) -> list[Driver]:
        """The active runs whose session has a queued run that is to take their place."""
        found = []
        for (namespace, _), gate in self._gates.sessions.items():
            first = self._drivers.get((namespace, gate.queue[0])) if gate.queue else None
            active = self._drivers.get((namespace, gate.active))
            if first is None or active is None:
                continue
            wants = first.run.created.session_policy == SessionPolicy.SESSION_POLICY_INTERRUPT
            if wants and active.run.state != RunState.RUN_STATE_CANCELLING:
                found.append(active)
        return found


def interrupt(driver: Driver) -> None:
    """Have a run make way for a newer one of its session."""
    cause = CancelCause.CANCEL_CAUSE_INTERRUPT
    driver.tell(Cancel(CancelMode.CANCEL_MODE_GRACEFUL, cause, reason="a newer run takes its place"))
