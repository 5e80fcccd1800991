"""What tests of runs share: tools inside the daemon, agents, and short words for what a run did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from behest.client import Client
from behest.runs import RunHandle
from behest.updates import Update
from behest.v1.agent_pb2 import Agent
from behest.v1.definition_pb2 import PermissionAction
from behest.v1.event_pb2 import Event
from behest.v1.message_pb2 import Message, Role
from behest.v1.run_pb2 import Run
from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from behestd.core.definition import Operator
from behestd.log.store import Change, Put, Record
from behestd.tools.catalog import Catalog
from behestd.tools.function import Functions
from behestd.tools.schema import Validators
from tests.daemons import Served

PURE = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE)
IDEMPOTENT = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_IDEMPOTENT)
NON_IDEMPOTENT = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_NON_IDEMPOTENT)
OPEN = Operator(default_permission=PermissionAction.PERMISSION_ACTION_ALLOW)
"""An operator who asks for nothing to be approved."""
TERMINAL = frozenset({"run_completed", "run_failed", "run_cancelled", "run_timed_out"})


@dataclass
class Ledger:
    """What the tools of a test did, told from inside them."""

    calls: list[str] = field(default_factory=list)
    running: int = 0
    most_at_once: int = 0
    stopped: list[str] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self, name: str, wait: bool = True) -> str:
        """Note a call, say that it is there, and wait until tools may go on."""
        self.calls.append(name)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        self.reached.set()
        try:
            if wait:
                await self.opened.wait()
        except asyncio.CancelledError:
            self.stopped.append(name)
            raise
        finally:
            self.running -= 1
        return f"done {name}"


def tools(*added: tuple[Callable[..., Any], ToolPolicy]) -> Callable[[Validators], Catalog]:
    """Make the `tools` of a plan: functions with their policies."""

    def make(validators: Validators) -> Catalog:
        catalog = Catalog(validators)
        functions = Functions(catalog)
        for function, policy in added:
            functions.tool(function, policy=policy)
        return catalog

    return make


async def put_agent(served: Served, agent: Agent) -> None:
    """Define an agent, before the first run of the daemon."""
    record = Record("default", "agent", agent.id, agent.SerializeToString())
    await served.daemon.log.commit(Change(puts=(Put(record),)))


async def events_of(handle: RunHandle, *, seconds: float = 20.0) -> list[Event]:
    """Follow a run to its end, within a bound."""
    async with asyncio.timeout(seconds):
        return [event async for event in handle.events()]


async def updates_of(handle: RunHandle, *, seconds: float = 20.0) -> list[Update]:
    """Follow a run to its end, deltas included."""
    async with asyncio.timeout(seconds):
        return [update async for update in handle.updates()]


async def until_kind(handle: RunHandle, kind: str, count: int = 1) -> list[Event]:
    """Follow a run until it has had an event of a kind so many times, and leave it."""
    seen: list[Event] = []
    async with asyncio.timeout(20):
        async for event in handle.events():
            seen.append(event)
            if sum(kind_of(each) == kind for each in seen) >= count:
                return seen
    raise AssertionError(f"no {kind} in {kinds(seen)}")


def kind_of(event: Event) -> str:
    """The kind of an event."""
    return event.WhichOneof("payload") or ""


def kinds(events: Iterable[Event]) -> list[str]:
    """The kinds of events, in order."""
    return [kind_of(event) for event in events]


def only(events: Iterable[Event], kind: str) -> list[Any]:
    """The payloads of one kind, in order."""
    return [getattr(event, kind) for event in events if kind_of(event) == kind]


def text_of(message: Message) -> str:
    """The text of a message."""
    return "".join(part.text.text for part in message.parts)


def check_pairs(messages: Iterable[Message]) -> None:
    """Check that every tool call has exactly one result, in the next message."""
    open_calls: list[str] = []
    for message in messages:
        results = [part.tool_result.call_id for part in message.parts if part.HasField("tool_result")]
        assert results == open_calls
        open_calls = [part.tool_call.id for part in message.parts if part.HasField("tool_call")]
        assert not open_calls or message.role == Role.ROLE_ASSISTANT
    assert open_calls == []


async def finished(client: Client, run_id: str) -> Run:
    """Wait for a run to end, however it does, and get it."""
    await events_of(client.watch(run_id))
    return await client.runs.get(run_id)
