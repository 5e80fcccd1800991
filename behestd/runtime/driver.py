"""The driver of one run: its only writer. Signals in, commits out, effects reconciled after each commit.

    events  = decide(run, given, signal)     pure
    outcome = await log.commit(append)       persist first
    run     = after                          then change your mind
    reconcile(wanted(run))                   then act: start what lacks, stop what is no longer wanted

Above: the supervisor, which makes drivers and hears when they end. Below: `commit`, the performer, the log. A fault in
here ends this run alone, FAILED with RUNTIME_INTERNAL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import field
from math import inf

import structlog

from behest.v1.message_pb2 import Message
from behest.v1.run_event_pb2 import ClaimReason, RunReleased
from behest.v1.run_state_pb2 import RunState
from behestd.core.composed import Composed
from behestd.core.run import Payload
from behestd.core.signals import (
    BEGINNINGS,
    CallTool,
    CancelTool,
    Claim,
    Condemn,
    Effect,
    Given,
    Release,
    Signal,
    Start,
    Wake,
)
from behestd.core.state import Phase, Run
from behestd.core.times import SECOND
from behestd.errors import BehestError, Draining, StorageFailed, StorageFull
from behestd.failpoint import failpoint
from behestd.log.store import Committed, Fenced, Full, Outcome
from behestd.log.tail import Tail
from behestd.log.waiters import Waiters
from behestd.runtime import full_disk, points
from behestd.runtime.commit import NO_EXTRAS, Before, Prepared, prepare
from behestd.runtime.house import House
from behestd.runtime.inbox import Command, Inbox
from behestd.runtime.kinds import alarm_ns, decide, seen_by, wanted
from behestd.runtime.live import Deltas
from behestd.runtime.performer import Performer, Task
from behestd.runtime.reading import history_of
from behestd.values import dataclass

logger = structlog.get_logger(__name__)

_UNSENT = (Phase.NEW, Phase.ALLOWED)

Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]
"""Starts a task whose parent is the supervisor."""


class Lost(Exception):
    """Raised when another owner appended to the run; the driver's state is worth nothing any more."""


@dataclass(frozen=True, slots=True)
class Birth:
    """How a driver begins: with a run that is to be created (`first` is its first append), or with one that exists."""

    before: Before
    run: Run
    history: tuple[Message, ...] = ()
    trace_id: str = ""
    first: Prepared | None = None
    composed: Composed = field(default_factory=Composed)


class Driver:
    """Keeps one run going until it ends, is released, or another owner takes it."""

    __slots__ = (
        "_acknowledged",
        "_alarm",
        "_before",
        "_birth",
        "_effects",
        "_fate",
        "_history",
        "_house",
        "_inbox",
        "_is_draining",
        "_is_released",
        "_on_turn",
        "_performer",
        "_spawn",
        "_told",
        "deltas",
        "is_lost",
        "is_told",
        "run",
        "tail",
    )

    def __init__(
        self, house: House, birth: Birth, performer: Performer, spawn: Spawn, on_turn: Callable[[Driver], None]
    ) -> None:
        self.run = birth.run
        self.is_told = False
        self._fate: Outcome | None = None
        self._told = Waiters()
        self.deltas = Deltas()
        self.tail: Tail | None = None
        self._on_turn = on_turn
        self._spawn = spawn
        self._house = house
        self._birth = birth
        self._history = birth.history
        self._before = birth.before
        self._performer = performer
        self._effects: dict[Effect, asyncio.Task[None]] = {}
        self._acknowledged: set[str] = set()
        self._inbox = Inbox()
        self._alarm: asyncio.TimerHandle | None = None
        self._is_draining = False
        self._is_released = False
        self.is_lost = False
        """Whether another owner appended to the run."""

    # --- what others say ---

    def tell(self, signal: Signal) -> None:
        """Put an outcome into the inbox."""
        self._inbox.put(signal)

    def acknowledge(self, call_id: str) -> None:
        """Note that a call's server acknowledged its cancellation."""
        self._acknowledged.add(call_id)

    def begin(self, session_index: int) -> None:
        """Let a queued run begin."""
        self.tell(Claim(ClaimReason.CLAIM_REASON_CREATED))
        self.tell(Start(session_index))

    async def ask(self, signal: Signal) -> Run:
        """Have a command decided and committed, and get the run after it.

        Raises what `decide` raises, StorageFull, StorageFailed.
        """
        done: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        self._inbox.put(Command(signal, done))
        return await done

    def drain(self) -> None:
        """Begin nothing new from here on."""
        self._is_draining = True

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight and nothing is left to decide."""
        return not self._inbox and all(task.done() for task in self._effects.values())

    # --- its life ---

    async def live(self) -> None:
        """Drive the run until it has ended or is released. Raises Lost when another owner has it."""
        if not await self._be_born():
            return
        try:
            if not self._inbox:
                self._reconcile()
            while not self.run.is_ended and not self._is_released:
                await self._inbox.wait()
                await self._turn()
        finally:
            self._close()

    async def _be_born(self) -> bool:
        """Commit the run's creation, if that is what the driver begins with."""
        first, created = self._birth.first, self.run.created
        if first is not None:
            failpoint("create.before_commit", self.run.id)
            outcome = await self._house.log.commit(first.append)
            if not isinstance(outcome, Committed):
                self.say_born(outcome)
                return False
            failpoint("create.after_commit", self.run.id)
            self.run, self._before = first.run, Before(first.run, first.calls)
            self._house.listener.committed(first.run, first.payloads, first.run.life.create_ns)
        self.tail = await self._house.log.tail(created.namespace, self.run.id)
        self.deltas.pulse = self.tail.pulse
        if first is not None:
            self.deltas.follow(first.payloads, self.run)
        else:
            self.deltas.adopt(self.run)
        self.say_born(Committed())
        return True

    @property
    def is_born(self) -> bool:
        """Whether the run exists."""
        return self.tail is not None

    def say_born(self, outcome: Outcome | None) -> None:
        """Tell what came of the first commit, once."""
        if not self.is_told:
            self.is_told, self._fate = True, outcome
            self._told.wake()

    async def fate(self) -> Outcome | None:
        """Wait for what comes of the first commit, None: nobody knows. The driver ends when that is not Committed."""
        if not self.is_told:
            await self._told.wait()
        return self._fate

    async def condemn(self) -> None:
        """End the run by reason of a fault of the daemon."""
        condemned = Condemn("RUNTIME_INTERNAL", "a fault of the daemon ended the run")
        now_ns = self._house.clock.now_ns()
        self._house.ledger.undo(self.run)
        payloads, after = self._house.ledger.decide(self.run, self._given(now_ns), condemned)
        if payloads:
            await self._commit(payloads, after, now_ns)

    def _close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        for task in self._effects.values():
            task.cancel()
        while self._inbox:
            item = self._inbox.pop()
            if isinstance(item, Command):
                self._answer_late(item)

    def _answer_late(self, command: Command) -> None:
        """Answer a command that came when the run had ended or was let go."""
        if not self.run.is_ended:
            command.refuse(Draining() if self._is_released else StorageFailed())
            return
        try:
            decide(self.run, self._given(self._house.clock.now_ns()), command.signal)
        except BehestError as error:
            command.refuse(error)
        else:
            command.answer(self.run)

    async def _turn(self) -> None:
        """Decide on everything in the inbox, commit it at once, then act on it."""
        if self._inbox.holds(Start):
            await self._read_history()
        # One time for decisions and events: a fold of the log must come to the same state.
        now_ns = self._house.clock.now_ns()
        payloads, run, answered, heard = self._decide(now_ns)
        if payloads:
            try:
                is_durable = await self._commit(payloads, run, now_ns, is_asked=bool(answered))
            except BehestError as error:
                for command in answered:
                    command.refuse(error)
                raise
            if not is_durable:
                for command in answered:
                    command.refuse(StorageFull())
                self._inbox.put_back(heard)
                return
        for command in answered:
            command.answer(self.run)
        if self.run.calls and any(call.phase in _UNSENT for call in self.run.calls):
            failpoint("tool.before_started", self.run.id)
        self._reconcile()
        self._on_turn(self)

    def _decide(self, now_ns: int) -> tuple[list[Payload], Run, list[Command], list[Signal]]:
        """Decide on what is in the inbox: what to commit, the run after it, whom to answer then, what else was said."""
        run, payloads, answered, heard = self.run, list[Payload](), list[Command](), list[Signal]()
        while self._inbox:
            item = self._inbox.pop()
            signal = item.signal if isinstance(item, Command) else item
            try:
                decided, run = self._house.ledger.decide(run, self._given(now_ns), signal)
            except BehestError as error:
                if not isinstance(item, Command):
                    raise
                if payloads:  # What refuses it is not durable yet: it is heard again after the commit.
                    self._inbox.put_back([item])
                    break
                item.refuse(error)
                continue
            payloads += decided
            if isinstance(item, Command):
                answered.append(item)
            else:
                heard.append(item)
            points.hit_before_commit(signal, run.id)
            if isinstance(signal, Release):
                break
        return payloads, run, answered, heard

    async def _read_history(self) -> None:
        """Read what the session holds by now: other runs went before while this one queued."""
        created, limit = self.run.created, self._house.limits.history_messages
        store = self._house.log.store
        self._history = tuple(await history_of(store, created.namespace, created.session_id, 0, limit))

    def _given(self, now_ns: int) -> Given:
        house, created = self._house, self.run.created
        namespace = created.namespace
        return Given(
            now_ns=now_ns,
            random=house.rng.random(),
            replica=house.replica,
            validate=house.validate,
            history=self._history,
            health=house.health(namespace),
            retries=house.retries,
            model_timeout_ns=int(house.model_timeouts.total_seconds * SECOND),
            places=house.tools,
            kin=house.kin,
            pauses=house.switch.current,
            calibration=house.calibration.ratios(namespace),
            composed=self._birth.composed,
            circuit=house.circuits.of(namespace, created.session_id),
            cancel_grace_ns=int(house.limits.cancel_grace_seconds * SECOND),
            is_draining=self._holds_back,
            acknowledged=frozenset(self._acknowledged),
        )

    @property
    def _holds_back(self) -> bool:
        """Whether nothing new is to begin: the daemon stops, or the disk is full."""
        return self._is_draining or self._house.log.store.is_degraded

    async def _commit(self, payloads: list[Payload], after: Run, now_ns: int, *, is_asked: bool = False) -> bool:
        """Make the decision durable. False: the disk is full, and it was asked for. Else space is waited for."""
        house = self._house
        tells = after.compaction is not self.run.compaction
        extras = house.circuits.extras(after, payloads, now_ns) if tells else NO_EXTRAS
        prepared = prepare(self._before, after, payloads, (house.ids, now_ns, self._birth.trace_id), extras)
        # Before the commit: its watchers are woken before this task is.
        mark = self.deltas.mark()
        self.deltas.follow(payloads, after)
        points.hit_at_nodes("node.before_commit", payloads, after)
        outcome = await full_disk.commit(house, prepared.append, self._inbox, is_asked=is_asked)
        if isinstance(outcome, Full):
            self.deltas.go_back(mark)
            house.ledger.undo(self.run)
            return False
        if not isinstance(outcome, Committed):
            logger.warning("run taken over", run_id=self.run.id, is_fenced=isinstance(outcome, Fenced))
            self.is_lost = True
            raise Lost(self.run.id)
        points.hit_at_nodes("node.after_commit", payloads, after)
        house.circuits.saw(extras.puts)
        house.ledger.keep(prepared.run)
        self.run, self._before = prepared.run, Before(prepared.run, prepared.calls)
        house.listener.committed(self.run, payloads, now_ns)
        self._is_released = isinstance(payloads[-1], RunReleased)
        return True

    # --- effects ---

    def _reconcile(self) -> None:
        """Start what is wanted and not going on; stop what goes on and is not wanted."""
        wishes = wanted(self.run)
        if self._effects:
            for effect in [effect for effect in self._effects if effect not in wishes]:
                self._stop(effect)
        for effect in wishes:
            if effect not in self._effects and not (self._holds_back and isinstance(effect, BEGINNINGS)):
                self._effects[effect] = self._perform(effect)
        self._set_alarm()

    def _perform(self, effect: Effect) -> asyncio.Task[None]:
        birth, run = self._birth, seen_by(self.run, effect)
        task = Task(run, self._history, self.deltas, self.tell, self.acknowledge, birth.trace_id, birth.composed)
        return self._spawn(self._performer.perform(effect, task))

    def _stop(self, effect: Effect) -> None:
        """Stop an effect. A tool that works on is told so; nobody waits for what it says."""
        task = self._effects.pop(effect)
        if isinstance(effect, CallTool) and not task.done():
            self._perform(CancelTool(effect.call_id, effect.attempt))
        task.cancel()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        grace_ns = int(self._house.limits.cancel_grace_seconds * SECOND)
        # While draining nothing would be decided about a run that works, so nothing wakes it.
        sleeps = self.run.is_ended or (self._is_draining and self.run.state == RunState.RUN_STATE_RUNNING)
        now_ns = self._house.clock.now_ns()
        pauses = self._house.switch.current
        due_ns = 0 if sleeps else alarm_ns(self.run, grace_ns, pauses, lambda: self._given(now_ns))
        delay = max(due_ns - now_ns, 0) / SECOND if due_ns else inf
        if self._house.log.store.is_degraded and not self.run.is_ended:
            delay = min(delay, self._house.limits.full_retry_seconds)
        if delay < inf:
            self._alarm = asyncio.get_running_loop().call_later(delay, self._inbox.put, Wake())
