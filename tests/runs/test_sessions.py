"""The gate of a session: who waits, who is refused, who makes way."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

from behest.v1.run_service_pb2 import ListRunsRequest
from behest.v1.run_state_pb2 import CancelCause, RunState, SessionPolicy
from behestd.runtime.house import Limits
from tests import daemons
from tests.daemons import Served, refused
from tests.runs.scenes import events_of, finished, kinds, only, until_kind

REJECT = SessionPolicy.SESSION_POLICY_REJECT
INTERRUPT = SessionPolicy.SESSION_POLICY_INTERRUPT


async def a_session(served: Served) -> str:
    """A session with one run that has ended."""
    run = await served.client.run("first")
    await run.result()
    return (await run.get()).session_id


async def test_a_busy_session_refuses_and_names_its_holder(stored: Served) -> None:  # C062
    session_id = await a_session(stored)
    holder = await stored.client.run("/stall", session_id=session_id)

    error = await refused(stored.client.run("second", session_id=session_id, session_policy=REJECT))

    assert error.reason == "RUN_SESSION_BUSY"
    assert error.metadata["activeRunId"] == holder.run_id
    await holder.cancel()
    await events_of(stored.client.watch(holder.run_id))
    await (await stored.client.run("third", session_id=session_id, session_policy=REJECT)).result()


async def test_queued_runs_start_in_the_order_in_which_they_came(stored: Served) -> None:  # C063
    session_id = await a_session(stored)
    runs = [await stored.client.run(f"/delay 5 /say number {n}", session_id=session_id) for n in range(3)]
    got = [await finished(stored.client, run.run_id) for run in runs]

    assert [run.session_index for run in got] == [2, 3, 4]
    assert all(a.end_time.ToNanoseconds() <= b.start_time.ToNanoseconds() for a, b in itertools.pairwise(got))
    assert [len(run.messages) for run in got] == [2, 2, 2]


async def test_the_sixteenth_run_queues_and_the_seventeenth_is_refused(served: Served) -> None:
    session_id = await a_session(served)
    await served.client.run("/stall", session_id=session_id)
    for _ in range(16):
        await served.client.run("later", session_id=session_id)

    error = await refused(served.client.run("too late", session_id=session_id))

    assert error.reason == "RUN_SESSION_QUEUE_FULL"


async def test_a_run_that_interrupts_starts_when_the_other_has_ended(stored: Served) -> None:
    session_id = await a_session(stored)
    old = await stored.client.run("/stall", session_id=session_id)
    queued = await stored.client.run("/say last", session_id=session_id)
    new = await stored.client.run("/say now", session_id=session_id, session_policy=INTERRUPT)
    got = {run.run_id: await finished(stored.client, run.run_id) for run in (old, new, queued)}

    assert got[old.run_id].state == RunState.RUN_STATE_CANCELLED
    cancelled = only(await events_of(stored.client.watch(old.run_id)), "run_cancelled")[0]
    assert cancelled.cause == CancelCause.CANCEL_CAUSE_INTERRUPT
    assert got[old.run_id].end_time.ToNanoseconds() <= got[new.run_id].start_time.ToNanoseconds()
    assert got[new.run_id].session_index < got[queued.run_id].session_index


async def test_a_refused_creation_leaves_no_hole_in_the_order_of_its_session(stored: Served) -> None:  # I10
    session_id = await a_session(stored)
    await (await stored.client.run("taken", run_id="taken")).result()

    results = await asyncio.gather(
        *(
            coroutine
            for n in range(10)
            for coroutine in (
                stored.client.run("no", run_id="taken", session_id=session_id),
                stored.client.run(f"yes {n}", session_id=session_id),
            )
        ),
        return_exceptions=True,
    )
    good = [result.run_id for result in results if not isinstance(result, BaseException)]
    indexes = sorted([(await finished(stored.client, run_id)).session_index for run_id in good])

    assert len(good) == 10
    assert indexes == list(range(2, 12))


async def test_a_queued_run_that_is_cancelled_never_starts(stored: Served) -> None:
    session_id = await a_session(stored)
    holder = await stored.client.run("/stall", session_id=session_id)
    waiting = await stored.client.run("hi", session_id=session_id)
    obstacles = (await stored.client.runs.explain(waiting.run_id)).obstacles

    assert (await waiting.cancel()).state == RunState.RUN_STATE_CANCELLED
    assert [obstacle.kind for obstacle in obstacles] == ["session_busy"]
    assert obstacles[0].subject == holder.run_id
    assert kinds(await events_of(stored.client.watch(waiting.run_id))) == [
        "run_created",
        "run_cancel_requested",
        "run_cancelled",
    ]
    await holder.cancel()
    assert (await finished(stored.client, holder.run_id)).state == RunState.RUN_STATE_CANCELLED
    await (await stored.client.run("free", session_id=session_id)).result()


async def test_a_run_that_queues_too_long_times_out() -> None:
    async with daemons.serve(limits=Limits(queue_seconds=0.2)) as served:
        session_id = await a_session(served)
        await served.client.run("/stall", session_id=session_id)
        waiting = await served.client.run("hi", session_id=session_id)
        got = await finished(served.client, waiting.run_id)

    assert got.state == RunState.RUN_STATE_TIMED_OUT
    assert "RUN_QUEUE_EXPIRED" in str(got.error)


async def test_the_order_of_a_queue_survives_a_restart(tmp_path: Path) -> None:  # C063
    async with daemons.serve("sqlite", tmp_path) as served:
        session_id = await a_session(served)
        first = await served.client.run("/delay 30 /words 5", session_id=session_id)
        queued = [await served.client.run(f"number {n}", session_id=session_id) for n in range(5)]
        await until_kind(served.client.watch(first.run_id), "model_requested")
    async with daemons.serve("sqlite", tmp_path) as served:
        got = [await finished(served.client, run.run_id) for run in [first, *queued]]

    assert [run.session_index for run in got] == [2, 3, 4, 5, 6, 7]
    assert [run.output.text for run in got[1:]] == [f"number {n}" for n in range(5)]


async def test_what_is_said_to_a_run_joins_its_next_step_once(stored: Served) -> None:
    run = await stored.client.run("/delay 20 /say a b c /finish length /next /dump")
    await until_kind(run, "model_requested")
    sequences = [await run.send("and this too", request_id="in-1") for _ in range(2)]
    events = await events_of(run)

    assert sequences[0] == sequences[1]
    (received,) = only(events, "input_received")
    assert received.input_id == "in-1"
    assert len(only(events, "model_requested")) == 2
    assert await run.send("and this too", request_id="in-1") == sequences[0]
    error = await refused(run.send("too late"))
    assert error.reason == "RUN_ENDING"


async def test_a_repeated_creation_does_not_open_the_gate_of_its_own_session(stored: Served) -> None:  # I10 C058
    session_id = await a_session(stored)
    spec = {"session_id": session_id, "run_id": "held", "request_id": "req-held"}
    holder = await stored.client.run("/stall", **spec)  # type: ignore[arg-type]
    waiting = await stored.client.run("hi", session_id=session_id)

    assert (await stored.client.run("/stall", **spec)).is_replayed  # type: ignore[arg-type]
    other = await refused(stored.client.run("/stall", session_id=session_id, run_id="held"))

    assert other.reason == "RUN_ID_TAKEN"
    assert (await waiting.get()).state == RunState.RUN_STATE_QUEUED
    await holder.cancel()
    assert (await waiting.result()).text == "hi"


async def test_a_repeated_creation_does_not_lose_its_place_among_those_who_wait_for_room() -> None:  # C058 C061
    async with daemons.serve(limits=Limits(active_runs=1)) as served:
        holder = await served.client.run("/stall")
        waiting = await served.client.run("hi", run_id="waits", request_id="req-waits")
        assert (await served.client.run("hi", run_id="waits", request_id="req-waits")).is_replayed
        await holder.cancel()
        assert (await asyncio.wait_for(waiting.result(), 5)).text == "hi"


async def test_a_run_that_is_cancelled_as_it_starts_leaves_no_hole_in_the_order_of_its_session(
    stored: Served,
) -> None:  # I10
    session_id = await a_session(stored)
    for _ in range(10):
        holder = await stored.client.run("/stall", session_id=session_id)
        waiting = await stored.client.run("hi", session_id=session_id)
        await asyncio.gather(holder.cancel(), waiting.cancel(), waiting.cancel())
        await asyncio.gather(finished(stored.client, holder.run_id), finished(stored.client, waiting.run_id))
    last = await stored.client.run("last", session_id=session_id)
    await last.result()

    runs = [run async for run in stored.client.runs.list(ListRunsRequest(session_id=session_id))]
    indexes = sorted(run.session_index for run in runs if run.session_index)
    assert indexes == list(range(1, len(indexes) + 1))
