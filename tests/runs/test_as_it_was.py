"""A run looked at as it was shows the messages that it had then, the very ones that are stored."""

from __future__ import annotations

import asyncio

from behest.v1.message_pb2 import Message
from behest.v1.run_state_pb2 import RunState
from tests import daemons
from tests.daemons import Served
from tests.runs.scenes import PURE, Ledger, events_of, tools, until_kind


def look_up(key: str) -> str:
    """Look a thing up."""
    return f"{key} is 42"


def check_whole(messages: list[Message], run_id: str) -> None:
    """Check that each message says who it is, whose, and since when."""
    assert all(message.id and message.run_id == run_id and message.HasField("create_time") for message in messages)
    assert len({message.id for message in messages}) == len(messages)


async def test_messages_of_a_run_as_it_was_are_those_of_the_run_as_it_is(stored: Served) -> None:  # C082
    async with daemons.serve(stored.daemon.log.store.name, tools=tools((look_up, PURE))) as served:
        run = await served.client.run('/tool look_up {"key": "it"} /next /say so it is 42')
        events = await events_of(run)
        now = list((await run.get()).messages)
        lengths = []
        for sequence in range(1, len(events) + 1):
            was = list((await served.client.runs.get(run.run_id, at_sequence=sequence)).messages)
            assert was == now[: len(was)]
            lengths.append(len(was))

    check_whole(now, run.run_id)
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (1, 4)


async def test_a_run_at_work_shows_its_messages_as_it_will_when_it_has_ended(stored: Served) -> None:
    ledger = Ledger()

    async def slow() -> str:
        """Work for long."""
        return await ledger.work("slow")

    async with daemons.serve(stored.daemon.log.store.name, tools=tools((slow, PURE))) as served:
        run = await served.client.run("/tool slow {} /next /say done")
        await until_kind(served.client.watch(run.run_id), "tool_started")
        working = list((await run.get()).messages)
        ledger.opened.set()
        await events_of(run)
        ended = list((await run.get()).messages)

    check_whole(working, run.run_id)
    assert working == ended[:2]


async def test_a_run_that_queues_shows_what_it_was_asked(stored: Served) -> None:
    holder = await stored.client.run("/stall")
    session_id = (await holder.get()).session_id
    queued = await stored.client.run("later", session_id=session_id)
    got = await queued.get()
    was = await stored.client.runs.get(queued.run_id, at_sequence=1)
    await asyncio.gather(*(stored.client.runs.cancel(run.run_id) for run in (queued, holder)))

    assert got.state == RunState.RUN_STATE_QUEUED
    check_whole(list(got.messages), queued.run_id)
    assert was.messages == got.messages
    assert got.messages[0].create_time == got.create_time


async def test_a_fork_shows_what_it_was_given(stored: Served) -> None:  # N13
    source = await stored.client.run("/say first")
    await source.result()
    fork = await stored.client.runs.fork(source.run_id, "/say second")
    handle = stored.client.watch(fork.id)
    events = await events_of(handle)
    now = list((await stored.client.runs.get(fork.id)).messages)
    was = list((await stored.client.runs.get(fork.id, at_sequence=len(events))).messages)

    check_whole(now, fork.id)
    assert was == now
