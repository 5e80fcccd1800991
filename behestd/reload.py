"""Reading the configuration again, and swapping what follows from it into a daemon that runs, as a whole or not at all.

Above: DaemonService, SIGHUP and the composition, which lists the parts. Below: plans and configurations. First
everything is read and checked, and every part makes what it needs of the new plan; whatever is wrong until then leaves
all as it was. Then all parts swap in one turn of the loop. What exists keeps what it pinned, what begins from then on
goes by the new plan. One reload after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

import structlog

from behestd.config.source import ConfigInvalid, Entry, Problem
from behestd.errors import BehestError, Draining, Internal, Unsupported
from behestd.plan import Plan

logger = structlog.get_logger(__name__)

Prepare = Callable[[Plan], Callable[[], None]]
"""Makes what a part needs of a new plan. Raises BehestError, and nothing has changed. What it returns swaps that in: it
cannot fail, and waits for nothing."""

RESTART_KEYS = (
    "server.",
    "storage.",
    "extensions.",
    "limits.schema_",
    "telemetry.",
    "log.format",
)
"""What takes effect at the next start only: beginnings of keys."""
LIVE_KEYS = ("server.heartbeat_seconds", "server.tls.", "telemetry.sampling")
"""What takes effect at once all the same."""


class Witness(Protocol):
    """Hears of reloads, between which nothing else is told."""

    def begins(self, by: str) -> None:
        """Take note that a reload begins, and who asked for it."""
        ...

    def ended(self, by: str, outcome: Outcome | None, error: BehestError | None) -> None:
        """Take note of its end: what it changed, or why it changed nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reload changed. `restart_keys`, a part of the others, take effect at the next start only."""

    changed_keys: tuple[str, ...]
    restart_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Wish:
    """A reload that was asked for."""

    by: str
    outcome: asyncio.Future[Outcome]


class Changing(Protocol):
    """What can change in a daemon that runs."""

    @property
    def parts(self) -> Sequence[Prepare]:
        """All parts, in the order in which they swap."""
        ...

    @property
    def locks(self) -> Sequence[AbstractAsyncContextManager[object]]:
        """What nobody else may be changing meanwhile."""
        ...

    async def settle(self) -> None:
        """Do what could not be done at once, after the swap."""
        ...


class Reloading:
    """The configuration in force, and the way to another one. `run` is its life, once `begin` was called."""

    def __init__(self, plan: Plan, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.plan = plan
        """The plan in force."""
        self.config_time_ns = now_ns()
        """When it was read."""
        self.witnesses: list[Witness] = []
        self.restart_keys: tuple[str, ...] = ()
        """What waits for the next start."""
        self._now_ns = now_ns
        self._started = plan
        self._changing: Changing | None = None
        self._asked: asyncio.Queue[_Wish | None] = asyncio.Queue()
        self._is_closed = False

    def begin(self, changing: Changing) -> None:
        """Take what can change."""
        self._changing = changing

    def effective(self) -> tuple[Entry, ...]:
        """List every setting in force, in the order of the reference, secrets masked.

        What waits for the next start is shown as it was at this one. Raises Unsupported without a configuration.
        """
        current, first = self.plan.configuration, self._started.configuration
        if current is None or first is None:
            raise _without()
        started = {entry.key: entry for entry in first.effective()}
        return tuple(
            started.get(entry.key, entry) if needs_restart(entry.key) else entry for entry in current.effective()
        )

    def ask(self, by: str) -> asyncio.Future[Outcome]:
        """Ask for a reload; whoever wants to knows from the future what became of it."""
        wish = _Wish(by, asyncio.get_running_loop().create_future())
        self._asked.put_nowait(wish)
        return wish.outcome

    async def reload(self, by: str) -> Outcome:
        """Read and check everything, then swap it in. Goes on when its caller is gone.

        Raises ConfigInvalid, Unsupported, Draining; then the old stays.
        """
        if self._is_closed:
            raise Draining
        return await self.ask(by)

    async def run(self) -> None:
        """Do what was asked for, one after the other, until `close`."""
        while (wish := await self._asked.get()) is not None:
            outcome, error = await self._try(wish.by)
            if wish.outcome.done():
                continue
            if outcome is not None:
                wish.outcome.set_result(outcome)
            elif error is not None:
                wish.outcome.set_exception(error)
                # It was told; not everybody who asks waits for the answer.
                wish.outcome.exception()

    def close(self) -> None:
        """Begin no other reload."""
        self._is_closed = True
        while not self._asked.empty():
            wish = self._asked.get_nowait()
            if wish is not None and not wish.outcome.done():
                wish.outcome.set_exception(Draining())
                wish.outcome.exception()
        self._asked.put_nowait(None)

    async def _try(self, by: str) -> tuple[Outcome | None, BehestError | None]:
        for witness in self.witnesses:
            witness.begins(by)
        outcome: Outcome | None = None
        error: BehestError | None = None
        try:
            outcome = await self._reload()
        except BehestError as refusal:
            error = refusal
        except Exception:
            # A bug costs a reload, and not the daemon.
            logger.exception("reload failed by a fault")
            error = Internal("RUNTIME_INTERNAL", "a fault of the daemon; its log says more")
        if outcome is not None:
            changed, restart = (", ".join(keys) for keys in (outcome.changed_keys, outcome.restart_keys))
            logger.info("configuration reloaded", by=by, changed=changed, restart=restart)
        elif error is not None:
            problems = "; ".join(map(str, error.problems)) if isinstance(error, ConfigInvalid) else error.message
            logger.warning("configuration not reloaded; the one in force stays", by=by, problems=problems)
        for witness in self.witnesses:
            witness.ended(by, outcome, error)
        return outcome, error

    async def _reload(self) -> Outcome:
        before, changing = self.plan, self._changing
        if before.again is None or changing is None:
            raise _without()
        # Files are read, and much is parsed.
        after = await asyncio.to_thread(before.again, before)
        async with AsyncExitStack() as stack:
            for lock in changing.locks:
                await stack.enter_async_context(lock)
            swaps = [_prepared(prepare, after) for prepare in changing.parts]
            changed = changed_keys(before, after)
            for swap in swaps:
                swap()
            self.plan, self.config_time_ns = after, self._now_ns()
            self.restart_keys = tuple(key for key in changed_keys(self._started, after) if needs_restart(key))
        await changing.settle()
        return Outcome(changed, tuple(key for key in changed if needs_restart(key)))


def _prepared(prepare: Prepare, after: Plan) -> Callable[[], None]:
    try:
        return prepare(after)
    except ConfigInvalid:
        raise
    except BehestError as error:
        field = error.metadata.get("field", "")
        raise ConfigInvalid([Problem("", field, error.message.removeprefix(f"{field}: "))]) from error


def needs_restart(key: str) -> bool:
    """Whether a setting takes effect at the next start only."""
    return key.startswith(RESTART_KEYS) and not key.startswith(LIVE_KEYS)


def changed_keys(before: Plan, after: Plan) -> tuple[str, ...]:
    """Return the keys of settings that differ, and of secrets that do, in the order of the reference."""
    old, new = ({entry.key: entry.value for entry in _entries(plan)} for plan in (before, after))
    secrets = {
        key
        for key in {**before.secret_digests, **after.secret_digests}
        if before.secret_digests.get(key) != after.secret_digests.get(key)
    }
    differing = [key for key in {**new, **old} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    return tuple(dict.fromkeys([*differing, *sorted(secrets)]))


_ABSENT = object()


def _entries(plan: Plan) -> Sequence[Entry]:
    return plan.configuration.effective() if plan.configuration is not None else ()


def _without() -> Unsupported:
    return Unsupported(
        "REQUEST_UNSUPPORTED", "this daemon was not started from a configuration", feature="configuration"
    )
