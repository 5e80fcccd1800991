"""Handlers of events: what they are called for, in which order, and what breaks none of it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from behest.calls import Patience
from behest.client import Client
from behest.errors import BehestError
from behest.v1.agent_pb2 import Agent
from behest.v1.event_pb2 import Event
from behest.v1.session_pb2 import Session
from tests.daemon_process import running
from tests.daemons import Served

SECONDS = 20
ENDS = ["run_completed", "run_failed", "run_cancelled", "run_timed_out"]


class Heard:
    """A handler that keeps what it is called for."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._more = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._more.set()

    @property
    def kinds(self) -> list[str]:
        return [event.WhichOneof("payload") or "" for event in self.events]

    @property
    def runs(self) -> list[str]:
        return [event.run_id for event in self.events]

    async def until(self, count: int) -> None:
        """Wait until it was called so often."""
        async with asyncio.timeout(SECONDS):
            while len(self.events) < count:
                self._more.clear()
                await self._more.wait()


async def test_emitting_gives_a_handle_with_id_result_and_cancel(served: Served) -> None:  # C093
    run = await served.client.emit("say hello")
    assert run.run_id
    async with asyncio.timeout(SECONDS):
        assert (await run.result()).text == "say hello"
    endless = await served.client.emit("/delay 20 /words 100000")
    await endless.cancel(reason="enough")
    async with asyncio.timeout(SECONDS):
        with pytest.raises(BehestError):
            await endless.result()


async def test_an_order_that_is_refused_is_told_by_emit(served: Served) -> None:  # C093
    with pytest.raises(BehestError) as refused:
        await served.client.emit("hello", agent_id="nobody")
    assert refused.value.reason == "AGENT_NOT_FOUND"


async def test_the_handler_of_a_run_is_called_for_all_its_events_in_order(served: Served) -> None:  # C094
    heard = Heard()
    run = await served.client.emit("one two three")
    subscription = served.client.on("", heard, run_id=run.run_id)
    async with asyncio.timeout(SECONDS):
        await subscription.wait()
    assert [event.sequence for event in heard.events] == list(range(1, len(heard.events) + 1))
    assert heard.kinds[0] == "run_created"
    assert heard.kinds[-1] == "run_completed"
    assert set(heard.runs) == {run.run_id}


async def test_the_next_event_waits_until_the_handler_is_done(served: Served) -> None:  # C094
    log: list[str] = []

    async def handler(event: Event) -> None:
        log.append(f"begin {event.sequence}")
        await asyncio.sleep(0)
        log.append(f"end {event.sequence}")

    run = await served.client.emit("hello")
    async with asyncio.timeout(SECONDS):
        await served.client.on("", handler, run_id=run.run_id).wait()
    count = len(log) // 2
    assert log == [f"{word} {number}" for number in range(1, count + 1) for word in ("begin", "end")]


async def test_handlers_are_called_for_the_kinds_sessions_and_agents_that_they_name(served: Served) -> None:  # C094
    client = served.client
    await client.agents.create(Agent(id="helper", model="scripted/echo"))
    session = await client.sessions.create(Session(id="mine"))
    ends, of_session, of_agent, everything = Heard(), Heard(), Heard(), Heard()
    client.on("run_completed", ends)
    client.on(ENDS, of_session, session_id=session.id)
    client.on(["run_completed"], of_agent, agent_id="helper")
    client.on("", everything)
    mine = await client.emit("mine", session_id=session.id)
    await mine.result()
    helped = await client.emit("helped", agent_id="helper")
    await helped.result()
    other = await client.emit("other")
    await other.result()
    await ends.until(3)
    await of_session.until(1)
    await of_agent.until(1)
    assert ends.runs == [mine.run_id, helped.run_id, other.run_id]
    assert set(ends.kinds) == {"run_completed"}
    assert of_session.runs == [mine.run_id]
    assert of_agent.runs == [helped.run_id]
    await everything.until(sum([(await run.get()).head_sequence for run in (mine, helped, other)]))
    for run in (mine, helped, other):
        sequences = [event.sequence for event in everything.events if event.run_id == run.run_id]
        assert sequences == list(range(1, len(sequences) + 1))


async def test_a_handler_that_raises_is_logged_and_called_again(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:  # C094
    heard = Heard()

    def plain(event: Event) -> None:
        heard(event)
        raise ZeroDivisionError("a bug of the caller")

    async def later(event: Event) -> None:
        await asyncio.sleep(0)
        plain(event)

    run = await served.client.emit("hello")
    with caplog.at_level(logging.ERROR, logger="behest.on"):
        async with asyncio.timeout(SECONDS):
            await served.client.on("", plain, run_id=run.run_id).wait()
            await served.client.on("", later, run_id=run.run_id).wait()
    count = (await run.get()).head_sequence
    assert len(heard.events) == 2 * count
    assert len([record for record in caplog.records if record.exc_info]) == 2 * count
    assert {record.run_id for record in caplog.records} == {run.run_id}  # type: ignore[attr-defined]


async def test_a_slow_handler_delays_no_other(served: Served) -> None:  # C094
    stuck, heard = asyncio.Event(), Heard()

    async def slow(event: Event) -> None:
        await stuck.wait()

    served.client.on("", slow)
    served.client.on(ENDS, heard)
    runs = [await served.client.emit(f"hello {number}") for number in range(3)]
    await heard.until(3)
    assert sorted(heard.runs) == sorted(run.run_id for run in runs)
    stuck.set()


async def test_a_cancelled_handler_is_called_no_more(served: Served) -> None:  # C094
    heard, other = Heard(), Heard()
    subscription = served.client.on("run_completed", heard)
    served.client.on("run_completed", other)
    await served.client.emit("hello")
    await heard.until(1)
    subscription.cancel()
    async with asyncio.timeout(SECONDS):
        await subscription.wait()
    await served.client.emit("hello")
    await other.until(2)
    assert len(heard.events) == 1


async def test_a_later_client_goes_on_after_the_cursor(served: Served) -> None:  # C094
    heard, later = Heard(), Heard()
    subscription = served.client.on("run_completed", heard)
    runs = []
    for number in (1, 2):
        runs.append(await served.client.emit(f"hello {number}"))
        await heard.until(number)
    # The first was dealt with before the second was asked for.
    subscription.cancel()
    await (await served.client.emit("hello 3")).result()
    async with Client(served.client.address) as client:
        client.on("run_completed", later, after=subscription.cursor)
        await later.until(1)
        await later.until(1 if later.runs[0] != runs[1].run_id else 2)
    assert runs[0].run_id not in later.runs
    assert later.runs[-1] not in heard.runs


async def test_handlers_go_on_over_a_restart_and_see_each_event_once(tmp_path: Path) -> None:  # C094
    patience = Patience(pause_seconds=0.5)
    async with running(tmp_path) as daemon, Client(daemon.address, patience=patience) as client:
        heard, of_run = Heard(), Heard()
        client.on("", heard)
        first = await client.emit("/delay 25 /words 80")
        watched = client.on("", of_run, run_id=first.run_id)
        await heard.until(4)
        await daemon.kill()
        await daemon.start()
        second = await client.emit("hello")
        async with asyncio.timeout(SECONDS):
            await first.result()
            await second.result()
            await watched.wait()
            log = [event async for event in client.watch(first.run_id).events()]
        await heard.until(len(log) + (await second.get()).head_sequence)
    assert [event for event in heard.events if event.run_id == first.run_id] == log
    assert of_run.events == log


async def test_what_makes_no_sense_is_refused_at_once(served: Served) -> None:
    with pytest.raises(ValueError):
        served.client.on("run_exploded", print)
    with pytest.raises(ValueError):
        served.client.on("", print, run_id="run_1", session_id="ses_1")
    bare = Client(served.client.address)
    with pytest.raises(RuntimeError):
        bare.on("", print)
    await bare.close()


async def test_a_cursor_that_is_none_ends_the_handler_with_the_reason_and_stops_no_order(served: Served) -> None:
    subscription = served.client.on("run_completed", print, after="nonsense")
    async with asyncio.timeout(SECONDS):
        run = await served.client.emit("hello")
        assert (await run.result()).text == "hello"
        with pytest.raises(BehestError) as refused:
            await subscription.wait()
    assert refused.value.reason == "WATCH_CURSOR_INVALID"


async def test_a_handler_of_a_run_that_is_not_there_ends_with_the_reason(served: Served) -> None:
    subscription = served.client.on("", print, run_id="run_none")
    async with asyncio.timeout(SECONDS):
        with pytest.raises(BehestError) as refused:
            await subscription.wait()
    assert refused.value.reason == "RUN_NOT_FOUND"
    assert subscription.is_over
