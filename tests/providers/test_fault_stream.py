"""A model server that spoils its answers at every byte: what a run says is one attempt's, or the run says nothing.

The server is a process (`fault_server`); the daemon is whole, in this one. Each run asks for one fault at one byte.
"""

from __future__ import annotations

import asyncio
import json
import re
import selectors
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import httpx2
import pytest

from behest.v1.delta_pb2 import Delta
from behest.v1.event_pb2 import Event
from behest.v1.message_pb2 import Message
from behest.v1.model_pb2 import Model, ModelCapabilities
from behestd.core.circuit import CircuitPolicy
from behestd.core.route import RoutePolicy
from behestd.providers.anthropic import Anthropic, AnthropicSettings
from behestd.providers.catalog import snapshot
from behestd.providers.failure import NOT_SENT
from behestd.providers.openai import OpenAi, OpenAiSettings
from behestd.providers.provider import Provider, ProviderTimeouts
from tests import daemons
from tests.daemons import Served
from tests.providers.fault_server import KINDS, VENDORS, asking, recorded, serving
from tests.runs.scenes import OPEN, PURE, TERMINAL, events_of, kinds, only, tools, updates_of

ATTEMPTS = 3
"""Attempts of one step at one model."""
QUICK = RoutePolicy((), attempts_per_endpoint=ATTEMPTS, base_seconds=0.005)
PATIENCE_SECONDS = 20.0
"""What a busy machine may need for what has nothing to do with a fault."""
LIMITS = ProviderTimeouts(first_byte_seconds=PATIENCE_SECONDS, stall_seconds=1.0, total_seconds=40.0)
"""An answer that is well comes in one piece, so that only a stalled one meets the short limit, however slow we are."""
AT_ONCE = 48
STRIDE = 2 * len(KINDS)
"""Every so many bytes a kind has its turn in the short test; together they come to half of the bytes."""
REQUESTS_AT_MOST = 3 * ATTEMPTS
"""Of a run: the step that calls, the step that answers, and one that is asked again for what made no sense."""


@dataclass(frozen=True)
class Spoilt:
    """A fault at a byte of the first answer, and maybe one of the answer to the tool's result.

    `key` is the name under which the server counts.
    """

    kind: str
    position: int
    vendor: str
    late: int | None = None

    @property
    def key(self) -> str:
        return f"{self.kind}{self.position}{self.vendor}"


def provider(vendor: str, url: str) -> Provider:
    model = Model(
        id=f"{vendor}/m",
        provider_id=vendor,
        capabilities=ModelCapabilities(chat=True, streaming=True, tools=True, parallel_tool_calls=True),
    )
    if vendor == "anthropic":
        return Anthropic(AnthropicSettings(id=vendor, base_url=url, connect_seconds=PATIENCE_SECONDS), [model])
    interface: Literal["chat_completions", "responses"]
    interface = "responses" if vendor == "responses" else "chat_completions"
    settings = OpenAiSettings(id=vendor, base_url=url, connect_seconds=PATIENCE_SECONDS, interface=interface)
    return OpenAi(settings, [model])


@dataclass
class House:
    """A daemon, what its tool was called with, and the server of its models."""

    served: Served
    url: str
    vendor: str
    called: list[tuple[str, str]]


@asynccontextmanager
async def house(vendor: str, timeouts: ProviderTimeouts = LIMITS) -> AsyncIterator[House]:
    called: list[tuple[str, str]] = []

    def look_up(attempt: str, of: str) -> str:
        """Look a thing up."""
        called.append((attempt, of))
        return f"found by {attempt}"

    async with serving() as url:
        models = snapshot([provider(vendor, url)], default_model=f"{vendor}/m")
        async with daemons.serve(
            models=models,
            tools=tools((look_up, PURE)),
            operator=OPEN,
            retries=QUICK,
            circuits=CircuitPolicy(failures=0, retries=0.0),
            model_timeouts=timeouts,
        ) as served:
            yield House(served, url, vendor, called)


async def seen(url: str) -> dict[str, int]:
    """Ask the server how many requests there were, by key."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        return dict(json.loads((await client.get(url)).text))


def text_of(message: Message) -> str:
    return "".join(part.text.text for part in message.parts)


def never_left(event: Event) -> bool:
    """Whether an event ends an attempt that found no connection, of which the server cannot know."""
    return event.HasField("model_failed") and event.model_failed.failure_class == NOT_SENT


def check_answers(events: Sequence[Event], spoilt: Spoilt) -> None:
    """Each answer in the log is what the request of its own number was sent, and nothing of another."""
    number = 0
    for event in events:
        number += event.HasField("model_requested") - never_left(event)
        if not event.HasField("model_completed"):
            continue
        message = event.model_completed.message
        text = text_of(message)
        assert set(re.findall(r"\d+", text)) <= {f"{number:02d}"}, (spoilt, number, text)
        # What begins again in the middle of a line may read as a field that nobody knows, or as more of the same.
        if not spoilt.kind.startswith("repeat"):
            assert text in (f"try {number:02d} 世🦜", f"done {number:02d} 世🦜"), (spoilt, number, text)
        for part in message.parts:
            if part.HasField("tool_call") and not spoilt.kind.startswith("repeat"):
                assert part.tool_call.arguments_json == f'{{"attempt": "{number:02d}", "of": "é🦜"}}', spoilt


async def run_one(at: House, spoilt: Spoilt) -> list[Event]:
    """Run to the end with one fault, check all that must hold whatever it is, and return the log."""
    run = await at.served.client.run(asking(spoilt.kind, spoilt.position, spoilt.key, spoilt.late))
    events = await events_of(run, seconds=120)
    requested = len(only(events, "model_requested"))
    assert kinds(events)[-1] in TERMINAL, spoilt
    assert requested <= REQUESTS_AT_MOST, spoilt
    check_answers(events, spoilt)
    assert len(only(events, "tool_started")) <= 1, spoilt
    if completed := only(events, "run_completed"):
        final = completed[0].output.text
        assert final.startswith("done ") or spoilt.kind.startswith("repeat"), (spoilt, final)
    return events


async def run_all(at: House, faults: Iterable[Spoilt]) -> list[str]:
    """Run with each fault, some at once, compare with what the server counted, and return how the runs ended."""
    waiting = list(faults)
    ends: list[str] = []
    requested: dict[str, int] = {}

    async def work() -> None:
        while waiting:
            spoilt = waiting.pop()
            events = await run_one(at, spoilt)
            requested[spoilt.key] = len(only(events, "model_requested")) - sum(map(never_left, events))
            ends.append(kinds(events)[-1])

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    # The tool had whole arguments or none.
    assert {(len(attempt), of) for attempt, of in at.called} == {(2, "é🦜")}
    # Nobody asked but those who are in the log.
    assert await seen(at.url) == requested
    return ends


def every_byte(vendor: str, stride: int) -> list[Spoilt]:
    """Each kind of fault at every so many bytes of both answers, no two kinds at the same ones."""
    call_size, text_size = (len(recorded(vendor, name, 1)) for name in ("call", "text"))
    assert call_size >= text_size
    return [
        Spoilt(kind, at, vendor, at if at <= text_size else None)
        for offset, kind in enumerate(KINDS)
        for at in range(offset % stride, call_size + 1, stride)
    ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_fault_at_any_byte_leaves_one_attempt_s_answer(vendor: str) -> None:  # C021 C022 N11
    async with house(vendor) as at:
        ends = await run_all(at, every_byte(vendor, STRIDE))
    # A spoilt answer of each step is always survived.
    assert set(ends) == {"run_completed"}


@pytest.mark.proof
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("vendor", VENDORS)
async def test_every_fault_at_every_byte_leaves_one_attempt_s_answer(vendor: str) -> None:  # C021 C022 N11
    async with house(vendor) as at:
        ends = await run_all(at, every_byte(vendor, 1))
    assert set(ends) == {"run_completed"}


@pytest.mark.parametrize("vendor", VENDORS)
async def test_a_fault_that_stays_ends_the_run_after_its_attempts(vendor: str) -> None:  # C017
    middle = len(recorded(vendor, "call", 1)) // 2
    faults = [Spoilt(f"{kind}_always", middle, vendor) for kind in KINDS if kind not in ("split", "repeat")]
    async with house(vendor) as at:
        for spoilt in faults:
            events = await run_one(at, spoilt)
            assert kinds(events)[-1] == "run_failed", spoilt
            assert 1 < len(only(events, "model_requested")) <= ATTEMPTS, spoilt
            assert not only(events, "model_completed"), spoilt
        assert at.called == []
        assert sum((await seen(at.url)).values()) <= ATTEMPTS * len(faults)


@pytest.mark.parametrize("vendor", VENDORS)
async def test_what_is_shown_of_a_spoilt_attempt_is_never_mixed_with_the_next(vendor: str) -> None:  # C021
    async with house(vendor) as at:
        for kind in ("cut", "garble", "error"):
            position = recorded(vendor, "call", 1).index("🦜".encode()) + 2
            run = at.served.client.stream(asking(kind, position, f"shown{kind}"))
            updates = await updates_of(run)
            shown: dict[int, str] = {}
            for update in updates:
                if isinstance(update, Delta) and update.step == 1:
                    shown[update.attempt] = shown.get(update.attempt, "") + update.text
            assert shown[2] == "try 02 世🦜"
            assert "02" not in shown.get(1, "")


class CountingSelector(selectors.DefaultSelector):
    """A selector that knows how often its loop has turned."""

    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        return list(super().select(timeout))


@pytest.mark.parametrize("vendor", VENDORS)
def test_waiting_for_a_silent_model_turns_no_loop(vendor: str) -> None:  # C022
    selector = CountingSelector()
    turns: list[int] = []

    async def scene() -> None:
        middle = len(recorded(vendor, "call", 1)) // 2
        async with house(vendor, ProviderTimeouts(stall_seconds=2.0)) as at:
            async for update in (await at.served.client.run(asking("stall", middle, "silent"))).updates():
                if isinstance(update, Delta) or (isinstance(update, Event) and update.HasField("model_failed")):
                    turns.append(selector.turns)
                if isinstance(update, Event) and update.HasField("model_failed"):
                    return

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(asyncio.wait_for(scene(), 50))
    # What is left are timers of the daemon and the frames to the watcher: not a turn a millisecond.
    assert turns[-1] - turns[0] < 200
