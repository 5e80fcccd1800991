"""The switch: what operators paused, in force from the moment that it is said, durable when it is answered.

Above: DaemonService, which sets it, and whatever begins an effect, which asks it. Below: the records of the store. A
pause counts in memory before it is committed, and a lifted one until its end is committed, so an effect whose intent
is committed after a pause never begins: its decision has seen the pause, or it is stopped where it would leave.
Without pauses all of it is one look at an empty mapping.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from behest.v1 import daemon_service_pb2 as pb
from behest.v1.run_state_pb2 import WaitReason
from behestd.core import pauses
from behestd.core.pauses import NONE, Key, Pause, Pauses
from behestd.core.state import Call, Run
from behestd.core.times import nanoseconds, timestamp
from behestd.errors import StorageFull, WrongState
from behestd.log.log import Log
from behestd.log.store import Change, Committed, Delete, Put, Record, Store
from behestd.runtime.whole import whole

logger = structlog.get_logger(__name__)

KIND = "pause"
HOME = "default"
"""The namespace of the record of the pause of all."""
_PAGE = 1000


class HeldBack(Exception):
    """Raised when an effect of a run is not to begin, since what it needs was paused after its intent."""


def refusal(pause: Pause) -> WrongState:
    """The error of a call without a run that needs what is paused."""
    text = f"{pause.subject} is paused: {pause.reason}"
    return WrongState("RUNTIME_PAUSED", text, subject=pause.subject)


class Switch:
    """The pauses of this daemon. `current` is replaced as a whole, never changed."""

    def __init__(self) -> None:
        self.current: Pauses = NONE
        # Two that set the same target would each take back what the other does.
        self._lock = asyncio.Lock()

    async def load(self, store: Store, now_ns: int) -> None:
        """Read what an earlier daemon left. To be called before anything begins."""
        found: dict[Key, Pause] = {}
        for namespace in await store.namespaces():
            after = ""
            while True:
                page = await store.records(namespace, KIND, after=after, limit=_PAGE, now_ns=now_ns)
                found |= dict(_stored(record) for record in page)
                if len(page) < _PAGE:
                    break
                after = page[-1].id
        self.current = Pauses(found) if found else NONE
        for pause in found.values():
            logger.warning("paused", subject=pause.subject, reason=pause.reason, principal=pause.principal)

    async def pause(self, log: Log, key: Key, pause: Pause) -> None:
        """Put a pause in force; one that is there keeps its time. Raises StorageFull and StorageFailed.

        In force at once, and again not when it cannot be made durable. Who gives up waiting leaves it in force.
        """
        async with self._lock:
            before = self.current
            old = before.in_force.get(key)
            if old is not None and (old.reason, old.principal) == (pause.reason, pause.principal):
                return
            if old is not None:
                pause = Pause(pause.kind, pause.name, pause.reason, pause.principal, old.since_ns)
            self.current = Pauses({**before.in_force, key: pause})
            try:
                await _commit(log, Change(puts=(Put(_record(key, pause)),)))
            except Exception:
                self.current = before
                raise
            logger.warning("paused", subject=pause.subject, reason=pause.reason, principal=pause.principal)

    async def lift(self, log: Log, key: Key) -> bool:
        """Take a pause back. Whether there was one. Raises StorageFailed."""
        async with self._lock:
            pause = self.current.in_force.get(key)
            if pause is None:
                return False
            await whole(self._lift(log, key))
            logger.warning("pause lifted", subject=pause.subject)
            return True

    async def _lift(self, log: Log, key: Key) -> None:
        await _commit(log, Change(deletes=(Delete(_home(key), KIND, _id(key)),)))
        left = {other: each for other, each in self.current.in_force.items() if other != key}
        self.current = Pauses(left) if left else NONE

    # --- what is about to leave ---

    def hold_model(self, run: Run, model: str) -> None:
        """Stop a call of a model that a run would make now. Raises HeldBack."""
        if self.current and self.current.of_run_model(run, model) is not None:
            raise HeldBack

    def hold_call(self, run: Run, call: Call) -> None:
        """Stop a call of a tool, or the beginning of a child run, that a run would make now. Raises HeldBack."""
        if self.current and self.current.of_call(run, call) is not None:
            raise HeldBack

    def refuse_model(self, namespace: str, model: str) -> None:
        """Refuse a call of a model without a run. Raises WrongState with RUNTIME_PAUSED."""
        pause = self.current.of_model(namespace, model) if self.current else None
        if pause is not None:
            raise refusal(pause)

    def refuse_tool(self, namespace: str, tool: str) -> None:
        """Refuse a call of a tool without a run. Raises WrongState with RUNTIME_PAUSED."""
        pause = self.current.of_tool(namespace, tool) if self.current else None
        if pause is not None:
            raise refusal(pause)

    # --- what is shown ---

    def shown(self, namespace: str) -> list[pb.Pause]:
        """The pauses in force as callers of a namespace see them, oldest first: of others only those as a whole."""
        whole = (pauses.ALL, pauses.NAMESPACE)
        seen = [each for key, each in self.current.in_force.items() if key[0] == namespace or key[1] in whole]
        return [message_of(each) for each in sorted(seen, key=lambda each: (each.since_ns, each.subject))]


_FIELDS = {pauses.TOOL: "tool_name", pauses.MODEL: "model", pauses.AGENT: "agent_id", pauses.NAMESPACE: "namespace"}


def key_of(target: pb.PauseTarget, namespace: str) -> Key:
    """What is meant by a target that is set, by a caller of a namespace."""
    field = target.WhichOneof("target")
    if field == "all" or field is None:
        return pauses.EVERYTHING
    name = str(getattr(target, field))
    if field == "namespace":
        return (name, pauses.NAMESPACE, name)
    kind = next(kind for kind, each in _FIELDS.items() if each == field)
    return (namespace, kind, name)


def target_of(pause: Pause) -> pb.PauseTarget:
    """The target of a pause as the contract has it."""
    if pause.kind == pauses.ALL:
        return pb.PauseTarget(all=True)
    return pb.PauseTarget(**{_FIELDS[pause.kind]: pause.name})  # type: ignore[arg-type]


def message_of(pause: Pause) -> pb.Pause:
    """A pause as the contract has it."""
    return pb.Pause(
        target=target_of(pause),
        reason=pause.reason,
        principal=pause.principal,
        create_time=timestamp(pause.since_ns),
    )


def _home(key: Key) -> str:
    return key[0] or HOME


def _id(key: Key) -> str:
    return f"{key[1]}:{key[2]}"


def _record(key: Key, pause: Pause) -> Record:
    body = message_of(pause).SerializeToString()
    return Record(_home(key), KIND, _id(key), body, create_time_ns=pause.since_ns)


def _stored(record: Record) -> tuple[Key, Pause]:
    stored = pb.Pause.FromString(record.body)
    key = key_of(stored.target, record.namespace)
    return key, Pause(key[1], key[2], stored.reason, stored.principal, nanoseconds(stored.create_time))


async def _commit(log: Log, change: Change) -> None:
    """Commit a change. Raises StorageFull, StorageFailed."""
    if change.puts and log.store.is_degraded:
        raise StorageFull
    if not isinstance(await log.commit(change), Committed):
        raise StorageFull


def waiting_calls(run: Run, current: Pauses) -> Sequence[Call]:
    """The open calls of a run that a pause holds back."""
    return [call for call in run.calls if current.holds(run, call) is not None]


def is_held_back(run: Run) -> bool:
    """Whether a run waits for a pause and needs a place to go on, as all do but children: their parents have one."""
    wait = run.life.wait
    return wait is not None and wait.reason == WaitReason.WAIT_REASON_PAUSED and not run.created.HasField("parent")
