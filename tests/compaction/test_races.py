"""What happens to a session while a summary of it is written on request: nothing is held up, and nothing is lost.

The model that writes is the scripted one, which waits until the test lets it go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from behest.errors import BehestError
from behest.v1.chat_service_pb2 import Chat
from behest.v1.session_pb2 import Session
from behest.v1.session_service_pb2 import CompactSessionResponse
from behestd.providers.catalog import snapshot
from behestd.providers.provider import Frame
from behestd.providers.scripted import Scripted
from tests.compaction.scenes import FILLER, answer, begin, fill, messages, say, serve, summaries_of
from tests.daemons import Served
from tests.runs.scenes import events_of, text_of, until_kind

LIMIT_SECONDS = 60.0


class Writer(Scripted):
    """The scripted provider under another id, each of whose answers waits for a word."""

    def __init__(self) -> None:
        super().__init__("writer")
        self.reached = asyncio.Semaphore(0)
        self.opened = asyncio.Event()

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        """Say that it is asked, wait, and answer."""
        self.reached.release()
        await self.opened.wait()
        async for frame in super().stream(chat):
            yield frame


@asynccontextmanager
async def writing() -> AsyncIterator[tuple[Served, Writer, str]]:
    """A daemon with a session of some length, and the writer."""
    writer = Writer()
    models = snapshot([Scripted(), writer], default_model="scripted/echo")
    async with serve(models=models) as served, asyncio.timeout(LIMIT_SECONDS):
        session_id = await begin(served, f"fact city = Bern {FILLER}")
        await fill(served, session_id, 3)
        yield served, writer, session_id


async def outcome(served: Served, session_id: str) -> CompactSessionResponse | str:
    """Ask for a summary: the response, or the reason for which there is none."""
    try:
        return await served.client.sessions.compact(session_id, model="writer/echo")
    except BehestError as error:
        return error.reason


async def test_a_run_that_is_active_when_the_summary_is_there_wins() -> None:  # C077
    async with writing() as (served, writer, session_id), asyncio.TaskGroup() as group:
        asked = group.create_task(outcome(served, session_id))
        await writer.reached.acquire()
        run = await served.client.run("/stall", session_id=session_id)
        await until_kind(run, "model_requested")
        writer.opened.set()

        assert await asked == "SESSION_BUSY"
        assert summaries_of(await messages(served, session_id, summaries=True)) == []
        await run.cancel()
        await events_of(run)
        assert await answer(served, session_id, "/recall city") == "fact city = Bern"


async def test_what_is_said_meanwhile_comes_behind_the_summary() -> None:  # C077
    async with writing() as (served, writer, session_id), asyncio.TaskGroup() as group:
        asked = group.create_task(outcome(served, session_id))
        await writer.reached.acquire()
        await say(served, session_id, "fact river = Aare")
        writer.opened.set()

        assert isinstance(await asked, CompactSessionResponse)
        found = await messages(served, session_id, summaries=True)
        (summary,) = (message for message in found if message.summary_upto_message_id)
        assert "river" not in text_of(summary)
        assert await answer(served, session_id, "/recall") == "fact city = Bern\nfact river = Aare"


async def test_of_two_summaries_that_are_asked_for_at_once_one_takes_effect() -> None:  # C077
    async with writing() as (served, writer, session_id), asyncio.TaskGroup() as group:
        asked = [group.create_task(outcome(served, session_id)) for _ in range(2)]
        for _ in asked:
            await writer.reached.acquire()
        writer.opened.set()

        got = [await each for each in asked]
        assert [each for each in got if isinstance(each, str)] == ["SESSION_VERSION_MISMATCH"]
        assert len(summaries_of(await messages(served, session_id, summaries=True))) == 1


@pytest.mark.parametrize(("change", "reason"), [("delete", "SESSION_NOT_FOUND"), ("title", "SESSION_VERSION_MISMATCH")])
async def test_a_session_that_changed_meanwhile_keeps_its_change(change: str, reason: str) -> None:  # C077
    async with writing() as (served, writer, session_id), asyncio.TaskGroup() as group:
        asked = group.create_task(outcome(served, session_id))
        await writer.reached.acquire()
        if change == "delete":
            await served.client.sessions.delete(session_id)
        else:
            await served.client.sessions.update(Session(id=session_id, title="new"), ["title"])
        writer.opened.set()

        assert await asked == reason
        if change == "title":
            assert (await served.client.sessions.get(session_id)).title == "new"
