"""Hooks: functions that are asked about events, and whose merged answer is carried out by the public calls.

    hooks = Hooks()

    @hooks.on("approval_requested", priority=10)
    def no_payments(event: Event) -> Action | None:
        return Deny("payments are frozen") if is_payment(event) else None

    client.use(hooks, session_id=session.id)

Above: `Client.use`. Below: `subscription`, which brings the events. Guarantees: the hooks of an event are asked one
after the other, the highest priority first, equal ones as they were registered; one that raises is logged and counts as
silent; the merged answer is carried out once all were asked, also when the daemon is away for a while.
"""

from __future__ import annotations

import inspect
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, assert_never

from behest.calls import Backoff
from behest.errors import BehestError
from behest.subscription import kinds_of
from behest.v1.approval_pb2 import Approval

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from behest.client import Client
    from behest.v1.event_pb2 import Event

_log = logging.getLogger("behest.on")

PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel the run of the event. With `force` it ends at once, and what is in flight is left in doubt."""

    reason: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """Say something to the run of the event."""

    text: str


@dataclass(frozen=True, slots=True)
class Approve:
    """Let the call of an `approval_requested` go ahead, with other arguments if these are not empty."""

    reason: str = ""
    arguments_json: str = ""


@dataclass(frozen=True, slots=True)
class Deny:
    """Refuse the call of an `approval_requested`; the model is told the reason."""

    reason: str = ""


Action: TypeAlias = Cancel | Send | Approve | Deny
Answer: TypeAlias = "Action | Iterable[Action] | None"
Hook: TypeAlias = "Callable[[Event], Answer | Awaitable[Answer]]"
AnyHook = TypeVar("AnyHook", bound="Callable[[Any], Any]")


@dataclass(frozen=True, slots=True)
class Registered:
    """A hook, what it is asked about (empty: all), and when."""

    kinds: frozenset[str]
    priority: int
    hook: Hook


class Hooks:
    """A set of hooks. Complete before it is used."""

    def __init__(self) -> None:
        self._hooks: list[Registered] = []

    def on(self, kind: str | Iterable[str], *, priority: int = 0) -> Callable[[AnyHook], AnyHook]:
        """Register a hook, plain or async: `@hooks.on("tool_started")`; the highest priority is asked first.

        It returns an action, several, or None. Kinds are the names of the fields of `Event.payload`; empty: all.
        Raises ValueError for an unknown kind.
        """
        kinds = kinds_of(kind)

        def register(hook: AnyHook) -> AnyHook:
            self._hooks.append(Registered(kinds, priority, hook))
            self._hooks.sort(key=lambda each: -each.priority)
            return hook

        return register

    @property
    def kinds(self) -> frozenset[str]:
        """What the hooks are asked about; empty: everything."""
        kinds = [each.kinds for each in self._hooks]
        return frozenset().union(*kinds) if all(kinds) else frozenset()

    async def ask(self, event: Event) -> list[Action]:
        """Ask the hooks of an event, and return their merged answer."""
        kind = event.WhichOneof("payload") or ""
        actions: list[Action] = []
        for each in self._hooks:
            if each.kinds and kind not in each.kinds:
                continue
            try:
                given = each.hook(event)
                answer = await given if inspect.isawaitable(given) else given
                actions.extend(actions_of(answer))
            except Exception:  # noqa: BLE001  the border to code of others
                _log.exception("a hook of %s raised", kind, extra={"run_id": event.run_id})
        return merged(actions)


def actions_of(answer: Answer) -> list[Action]:
    """Return what a hook answered as a list. Raises TypeError for anything else."""
    actions = [] if answer is None else [answer] if isinstance(answer, Action) else list(answer)
    for action in actions:
        if not isinstance(action, Action):
            raise TypeError(f"{type(action).__name__} is no action")
    return actions


def merged(actions: Iterable[Action]) -> list[Action]:
    """Return one answer for many, given by descending priority: at most one word on the call, then texts or one cancel.

    A refusal beats an approval, and the first of its kind gives the reason; of approvals the first counts, with its
    arguments. A cancel beats texts, is forced if any of them is, and has the first reason.
    """
    every = list(actions)
    denials = [action for action in every if isinstance(action, Deny)]
    approvals = [action for action in every if isinstance(action, Approve)]
    cancels = [action for action in every if isinstance(action, Cancel)]
    whole: list[Action] = [*(denials or approvals)[:1]]
    if cancels:
        whole.append(Cancel(cancels[0].reason, any(cancel.force for cancel in cancels)))
    else:
        whole.extend(action for action in every if isinstance(action, Send))
    return whole


class Executor:
    """Carries out answers: the handler of the subscription that a set of hooks is."""

    def __init__(self, client: Client, hooks: Hooks) -> None:
        self._client = client
        self._hooks = hooks

    async def handle(self, event: Event) -> None:
        """Ask the hooks, and do what they say. An action that the daemon refuses is logged and skipped."""
        for number, action in enumerate(await self._hooks.ask(event)):
            backoff = Backoff(PAUSE_SECONDS)
            while True:
                try:
                    await self._do(event, action, number)
                    break
                except BehestError as exc:
                    if not exc.is_resumable:
                        name = type(action).__name__
                        _log.warning("%s was refused: %s", name, exc.reason, extra={"run_id": event.run_id})
                        break
                    await backoff.pause(exc, give_up_seconds=math.inf)

    async def _do(self, event: Event, action: Action, number: int) -> None:
        """Carry out one action; a repeat has the effect of the first. Raises BehestError."""
        asked = event.approval_requested
        match action:
            case Cancel():
                await self._client.runs.cancel(event.run_id, force=action.force, reason=action.reason)
            case Send():
                request_id = f"hook-{event.event_id}-{number}"
                await self._client.runs.send_input(event.run_id, action.text, request_id=request_id)
            case Approve() | Deny() if not event.HasField("approval_requested"):
                _log.warning("%s answers no request for approval", type(action).__name__)
            case Approve():
                approval = Approval(call_id=asked.call_id, args_hash=asked.args_hash)
                arguments = action.arguments_json
                await self._client.approvals.approve(approval, reason=action.reason, arguments_json=arguments)
            case Deny():
                await self._client.approvals.deny(asked.call_id, reason=action.reason)
            case _:
                assert_never(action)
