"""Supervises all runs: creates them, finds their drivers, opens their sessions' gates, recovers them, lets them go.

Above: the services. Below: the drivers. Everything in memory here can be made again from the store; what is not, was
never promised. It never waits for a run, and no client can stop what it has begun: a run's first commit is its
driver's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from behest.v1.message_pb2 import Message
from behest.v1.run_state_pb2 import RunState, SessionPolicy
from behestd.core.signals import Signal, Wake
from behestd.core.state import Run
from behestd.errors import (
    BehestError,
    Draining,
    RequestIdReused,
    RunIdTaken,
    RunNotFound,
    SessionBusy,
    SessionQueueFull,
    StorageFailed,
    StorageFull,
)
from behestd.log.store import Committed, Full, Outcome, RecordChanged, RequestTaken, RunRow, SessionTaken
from behestd.runtime.adoption import Adoption, interrupt
from behestd.runtime.birth import Order, conceive
from behestd.runtime.children_orphans import cancel_orphans, forsake
from behestd.runtime.draining import wind_down
from behestd.runtime.driver import Birth, Driver, Lost
from behestd.runtime.gate import Gates, Key, Session
from behestd.runtime.house import House
from behestd.runtime.pauses import is_held_back
from behestd.runtime.performer import Performer
from behestd.runtime.reading import history_of
from behestd.telemetry import about, w3c
from behestd.values import dataclass

logger = structlog.get_logger(__name__)

_WORKING = (RunState.RUN_STATE_RUNNING, RunState.RUN_STATE_CANCELLING)


@dataclass(frozen=True, slots=True)
class Created:
    """A run that exists now. `driver` is None when it had ended before it was asked for again."""

    run_id: str
    replayed: bool
    driver: Driver | None


class Supervisor:
    """Supervises the runs of this daemon. `run` is its life; everything else may be called while that goes on."""

    def __init__(self, house: House, performer: Performer) -> None:
        self._house = house
        self._performer = performer
        self._drivers: dict[Key, Driver] = {}
        self._gates = Gates(lambda: house.limits.active_runs, house.intake.quotas.active_of)
        self._creating: dict[Key, asyncio.Event] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._is_draining = False
        self._quiet = asyncio.Event()
        self._adoption = Adoption(house, self._gates, self._drivers, self._begin)
        self._changed = asyncio.Event()

    # --- life ---

    async def run(self, ready: Callable[[], None]) -> None:
        """Recover what an earlier daemon left, say ready, and supervise until `drain` is over."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await self._sweep()
            ready()
            while not self._is_draining:
                self._changed.clear()
                try:
                    async with asyncio.timeout(self._house.limits.sweep_seconds):
                        await self._changed.wait()
                except TimeoutError:
                    await self._sweep()

    async def _sweep(self) -> None:
        """Take up what nobody drives, start what may start, and end what nobody waits for any more."""
        await self._adoption.adopt_all()
        self._start_free()
        await cancel_orphans(self._house, self._drivers)

    async def drain(self, seconds: float) -> int:
        """Begin nothing new, wait for what is in flight, then let go of every run. Gives how many were let go."""
        self._is_draining = True
        self._house.kin.drain()
        self._changed.set()
        return await wind_down(self._drivers, self._quiet, seconds)

    @property
    def is_draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._is_draining

    # --- creating ---

    async def create(self, order: Order) -> Created:
        """Create a run, durably. A repeat of a request gives the run that exists.

        Raises Draining, Overloaded, SessionNotFound, SessionBusy, SessionQueueFull, RunIdTaken, RequestIdReused,
        StorageFull, StorageFailed.
        """
        if not order.request_id:
            return await self._create(order)
        key = (order.namespace, order.request_id)
        while (earlier := self._creating.get(key)) is not None:
            await earlier.wait()
        self._creating[key] = asyncio.Event()
        try:
            return await self._create(order)
        except (RequestIdReused, StorageFailed, StorageFull):
            raise
        except BehestError:
            existing = await self.replay(order.namespace, order.request_id, order.digest)
            if existing is None:
                raise
            return existing
        finally:
            driver = self._drivers.get((order.namespace, order.run_id))
            if driver is None or driver.is_told or self._tasks is None:
                self._creating.pop(key).set()
            else:
                self._tasks.create_task(self._let_in(key, driver))

    async def _let_in(self, key: Key, driver: Driver) -> None:
        """Let the next request of the same id in when the fate of this one is known, whose client has left."""
        await driver.fate()
        self._creating.pop(key).set()

    async def _create(self, order: Order) -> Created:
        driver = await self._enter(order)
        outcome = await driver.fate()
        if outcome is None:
            raise StorageFailed
        if isinstance(outcome, Committed):
            if order.policy == SessionPolicy.SESSION_POLICY_INTERRUPT:
                for active in self._adoption.interrupted():
                    interrupt(active)
            return Created(order.run_id, False, driver)
        return await self._refused(order, outcome)

    async def _enter(self, order: Order) -> Driver:
        """Take the session's gate or a place in its queue, and begin the run."""
        if self._is_draining:
            raise Draining
        # A child run goes on with work that was accepted: it is not shed, and its parent holds a place while it waits.
        if order.parent is None:
            self._house.intake.check(order.namespace, order.principal)
        session = (order.namespace, order.session_id)
        gate = await self._gate(order)
        if (order.namespace, order.run_id) in self._drivers or order.run_id in (gate.active, *gate.queue):
            raise RunIdTaken(order.run_id)
        starts = self._take_place(gate, order)
        try:
            birth = await self._conceive(order, gate, starts)
            if self._is_draining:
                raise Draining
            driver = self._begin(birth)
        except BaseException:
            self._drop_place(session, order.run_id)
            raise
        if not starts and gate.active == order.run_id:
            self._start_next(session, order.run_id)
        return driver

    async def _gate(self, order: Order) -> Session:
        key = (order.namespace, order.session_id)
        gate = self._gates.sessions.get(key)
        if gate is None and order.is_new_session:
            gate = self._gates.sessions[key] = Session()
        elif gate is None:
            index = await self._house.log.store.last_session_index(*key)
            gate = self._gates.sessions.setdefault(key, Session(last_index=index))
        return gate

    def _take_place(self, gate: Session, order: Order) -> bool:
        """Take the session's gate, or a place in its queue. Whether the run starts at once."""
        limits = self._house.limits
        if not gate.active:
            gate.active = order.run_id
            return self._gates.has_room(order.namespace) or order.parent is not None
        if order.policy == SessionPolicy.SESSION_POLICY_REJECT:
            raise SessionBusy(order.session_id, gate.active)
        if len(gate.queue) >= limits.session_queue:
            raise SessionQueueFull(order.session_id, limits.session_queue)
        if order.policy == SessionPolicy.SESSION_POLICY_INTERRUPT:
            gate.queue.appendleft(order.run_id)
        else:
            gate.queue.append(order.run_id)
        return False

    def _drop_place(self, session: Key, run_id: str) -> None:
        """Give back what a run held that was not created."""
        self._gates.rest((session[0], run_id))
        self._gates.leave_line((session[0], run_id))
        self._start_next(session, self._gates.release(session, run_id))

    async def _conceive(self, order: Order, gate: Session, starts: bool) -> Birth:
        house = self._house
        history: tuple[Message, ...] = ()
        if starts:
            self._gates.work((order.namespace, order.run_id))
        if not order.is_new_session:
            limit = house.limits.history_messages
            history = tuple(await history_of(house.log.store, order.namespace, order.session_id, 0, limit))
        return conceive(order, house, history, gate.last_index + 1 if starts else 0)

    async def _refused(self, order: Order, outcome: Outcome) -> Created:
        if isinstance(outcome, Full):
            raise StorageFull
        if isinstance(outcome, RequestTaken):
            existing = await self.replay(order.namespace, order.request_id, order.digest)
            if existing is not None:
                return existing
        if isinstance(outcome, SessionTaken):
            raise SessionBusy(order.session_id, outcome.run_id)
        if isinstance(outcome, RecordChanged):
            raise order.session_gone(outcome)
        raise RunIdTaken(order.run_id)

    async def replay(self, namespace: str, request_id: str, digest: bytes) -> Created | None:
        """The run that an earlier request of the same id made. Raises RequestIdReused when that was another one."""
        claim = await self._house.log.store.request(namespace, request_id) if request_id else None
        if claim is None:
            return None
        if claim.digest != digest:
            raise RequestIdReused(request_id)
        return Created(claim.target, True, self.driver(namespace, claim.target))

    # --- drivers ---

    def _begin(self, birth: Birth) -> Driver:
        assert self._tasks is not None
        driver = Driver(self._house, birth, self._performer, self._tasks.create_task, self._on_turn)
        key = (birth.run.created.namespace, birth.run.id)
        if key in self._drivers:
            raise RunIdTaken(birth.run.id)
        self._drivers[key] = driver
        self._house.kin.saw(birth.run)
        self._house.intake.began(key[0], birth.run.created.principal)
        self._house.ledger.enter(birth.run)
        self._tasks.create_task(self._drive(key, driver))
        return driver

    async def _drive(self, key: Key, driver: Driver) -> None:
        created = driver.run.created
        about.say(key[1], created.session_id, w3c.trace_id(created.traceparent))
        try:
            await driver.live()
        except Lost:
            logger.warning("run lost to another owner", run_id=key[1])
        except StorageFailed:
            logger.error("run stopped with the store", run_id=key[1])
        except Exception:
            logger.exception("run ended by a fault", run_id=key[1])
            await self._condemn(driver)
        finally:
            self._end(key, driver)

    async def _condemn(self, driver: Driver) -> None:
        try:
            await driver.condemn()
        except (BehestError, Lost):
            logger.exception("run could not be ended", run_id=driver.run.id)

    def _end(self, key: Key, driver: Driver) -> None:
        """Forget a driver, and let the next run in."""
        del self._drivers[key]
        self._house.listener.gone(driver.run)
        self._house.kin.gone(driver.run)
        self._house.intake.ended(key[0], driver.run.created.principal)
        self._house.ledger.leave(driver.run)
        self._house.leases.unpin(key)
        self._quiet.set()
        session = (key[0], driver.run.created.session_id)
        if not driver.is_born:
            driver.say_born(None)
            self._drop_place(session, key[1])
            return
        self._gates.rest(key)
        if driver.run.is_ended:
            forsake(self._house, self._drivers, driver.run)
        if driver.run.is_ended or driver.is_lost:
            self._gates.leave_line(key)
            self._gates.count(session, driver.run.life.session_index)
            self._start_next(session, self._gates.release(session, key[1]))
        self._start_ready()
        self._look_at_suspects(driver)

    def _on_turn(self, driver: Driver) -> None:
        key = (driver.run.created.namespace, driver.run.id)
        self._house.kin.saw(driver.run)
        if driver.run.state in _WORKING:
            self._gates.work(key)
        else:
            self._gates.rest(key)
            self._start_ready()
        if self._is_draining:
            self._quiet.set()
        self._look_at_suspects(driver)

    def _look_at_suspects(self, driver: Driver) -> None:
        """Take up the next suspect when this run was one and has come through."""
        if self._adoption.has_come_through(driver) and self._tasks is not None and not self._is_draining:
            self._tasks.create_task(self._adoption.adopt_suspect())

    def _start_free(self) -> None:
        """Start the first in line of sessions that nobody holds, and interrupt those that are to make way."""
        for active in self._adoption.interrupted():
            interrupt(active)
        for session, gate in list(self._gates.sessions.items()):
            if not gate.active and gate.queue:
                gate.active = gate.queue.popleft()
                self._start_next(session, gate.active)
        self._start_ready()

    def _start_next(self, session: Key, run_id: str) -> None:
        """Start the run that has got its session's gate, or line it up for capacity."""
        key = (session[0], run_id)
        # One that is still on its way into being comes here by itself.
        if self._is_draining or key not in self._drivers:
            return
        if self._gates.has_room(key[0]):
            self._start(key)
        else:
            self._gates.line_up(key)

    def _start_ready(self) -> None:
        while not self._is_draining and (key := self._gates.next_ready()) is not None:
            self._start(key)

    def _start(self, key: Key) -> None:
        driver = self._drivers.get(key)
        if driver is None or driver.run.is_ended:
            return
        gate = self._gates.sessions[key[0], driver.run.created.session_id]
        self._gates.work(key)
        if self._gates.is_called_back(key):
            driver.tell(Wake())
        else:
            driver.begin(gate.last_index + 1)

    # --- finding ---

    def runs(self) -> list[Run]:
        """All runs that have not ended."""
        return [driver.run for driver in self._drivers.values()]

    def driver(self, namespace: str, run_id: str) -> Driver | None:
        """The driver of a run that exists and has not ended, if it is here."""
        driver = self._drivers.get((namespace, run_id))
        return driver if driver is not None and driver.is_born else None

    def holder(self, namespace: str, session_id: str) -> str:
        """The run that holds a session's gate, empty when none does."""
        return self._gates.look_at((namespace, session_id)).active

    def queued(self, namespace: str, session_id: str) -> tuple[str, ...]:
        """The runs that queue for a session, in order."""
        return tuple(self._gates.look_at((namespace, session_id)).queue)

    def unfit(self, namespace: str, run_id: str) -> BehestError | None:
        """Why a run cannot be driven, if that is so."""
        return self._adoption.unfit.get((namespace, run_id))

    async def command(self, namespace: str, run_id: str, signal: Signal) -> Run | RunRow:
        """Have a command decided. Gives the run after it, or the row of a run that had ended already.

        Raises RunNotFound, and what deciding raises.
        """
        driver = self.driver(namespace, run_id)
        if driver is None:
            row = await self._house.log.store.run(namespace, run_id)
            if row is None:
                raise RunNotFound(run_id)
            if row.is_ended:
                return row
            driver = self.driver(namespace, run_id) or await self._adoption.adopt(row)
        return await driver.ask(signal)

    def wake(self) -> None:
        """Have every run look again whether it can go on; those that a pause held back do so as there is room."""
        for key, driver in self._drivers.items():
            if is_held_back(driver.run):
                self._gates.call_back(key)
            else:
                driver.tell(Wake())
        self._start_ready()
