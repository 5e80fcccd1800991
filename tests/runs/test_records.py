"""Runs as records: listed, looked at as they were, forked, deleted."""

from __future__ import annotations

import asyncio
import json

from behest.v1.agent_pb2 import Agent
from behest.v1.definition_pb2 import Budgets
from behest.v1.run_service_pb2 import GetRunRequest, ListRunsRequest
from behest.v1.run_state_pb2 import RunState
from tests import daemons
from tests.daemons import Served, refused
from tests.runs.scenes import PURE, check_pairs, events_of, finished, kinds, only, put_agent, text_of, tools


def look_up(key: str) -> str:
    """Look a thing up."""
    return f"{key} is 42"


async def listed(served: Served, **fields: object) -> list[str]:
    return [run.id async for run in served.client.runs.list(ListRunsRequest(**fields))]  # type: ignore[arg-type]


async def test_runs_are_listed_by_page_newest_first_and_stable_while_others_come(stored: Served) -> None:  # C059
    old = [await stored.client.stream("hi", run_id=f"old-{n}").create() for n in range(7)]
    first = await stored.client.stubs.runs.ListRuns(ListRunsRequest(page_size=3))
    for n in range(3):
        await stored.client.run("hi", run_id=f"new-{n}")
    seen = [run.id for run in first.runs]
    token = first.next_page_token
    while token:
        page = await stored.client.stubs.runs.ListRuns(ListRunsRequest(page_size=3, page_token=token))
        seen += [run.id for run in page.runs]
        token = page.next_page_token

    assert seen == list(reversed(old))
    assert (await listed(stored))[:3] == ["new-2", "new-1", "new-0"]


async def test_runs_are_found_by_state_session_agent_time_and_label(stored: Served) -> None:  # C059
    await put_agent(stored, Agent(id="other", tools=["*"]))
    done = await stored.client.run("hi", run_id="done", labels={"k": "v"})
    await done.result()
    session_id = (await done.get()).session_id
    await events_of(await stored.client.run("/fail REQUEST_INVALID", run_id="failed", agent_id="other"))
    await stored.client.run("/stall", run_id="running")
    await stored.client.run("/stall", run_id="cancelled")
    await stored.client.runs.cancel("cancelled")
    await finished(stored.client, "cancelled")
    await events_of(await stored.client.run("/stall", run_id="late", timeout_seconds=0.1))
    holder = await stored.client.run("/stall", run_id="holder", session_id=session_id)
    await stored.client.run("hi", run_id="queued", session_id=session_id)
    middle = (await holder.get()).create_time

    by_state = {
        state: await listed(stored, states=[state])
        for state in (1, 2, 5, 6, 7, 8)  # QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED, TIMED_OUT
    }
    assert by_state == {
        1: ["queued"],
        2: ["holder", "running"],
        5: ["done"],
        6: ["failed"],
        7: ["cancelled"],
        8: ["late"],
    }
    assert await listed(stored, session_id=session_id) == ["queued", "holder", "done"]
    assert await listed(stored, agent_id="other") == ["failed"]
    assert await listed(stored, labels={"k": "v"}) == ["done"]
    assert await listed(stored, created_after=middle) == ["queued", "holder"]
    assert set(await listed(stored, created_before=middle)) == {"done", "failed", "running", "cancelled", "late"}


async def test_a_run_is_deleted_when_it_has_ended_and_not_before(stored: Served) -> None:  # C060
    active = await stored.client.run("/stall")
    assert (await refused(stored.client.runs.delete(active.run_id))).reason == "RUN_ACTIVE"
    done = await stored.client.run("hi")
    await done.result()

    for _ in range(2):
        await stored.client.runs.delete(done.run_id)

    assert await listed(stored) == [active.run_id]
    error = await refused(events_of(stored.client.watch(done.run_id)))
    assert error.reason == "WATCH_COMPACTED"
    assert error.metadata["oldestSequence"] == "8"


async def test_a_run_is_seen_as_it_was_at_every_sequence(stored: Served) -> None:  # C082
    run = await stored.client.run("/say one /finish length /next /say two")
    events = await events_of(run)

    states = []
    for sequence in range(1, len(events) + 1):
        request = GetRunRequest(run_id=run.run_id, at_sequence=sequence)
        was = (await stored.client.stubs.runs.GetRun(request)).run
        assert was.head_sequence == sequence
        states.append(was.state)
    assert states[:3] == [RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_RUNNING]
    assert set(states[3:-1]) == {RunState.RUN_STATE_RUNNING}
    assert states[-1] == RunState.RUN_STATE_COMPLETED
    last, now = [await stored.client.runs.get(run.run_id, at_sequence=at) for at in (len(events), 0)]
    assert [text_of(message) for message in last.messages] == [text_of(message) for message in now.messages]
    del last.messages[:], now.messages[:]
    assert last == now
    beyond = await refused(stored.client.runs.get(run.run_id, at_sequence=len(events) + 1))
    assert beyond.reason == "RUN_SEQUENCE_INVALID"


async def test_a_run_forks_at_every_sequence_with_a_history_that_is_whole() -> None:  # N13 C082
    async with daemons.serve(tools=tools((look_up, PURE))) as served:
        said = '/tool look_up {"key": "a"} /tool look_up {"key": "b"} /next /say done'
        source = await served.client.run(said, labels={"from": "source"})
        events = await events_of(source)
        for sequence in range(1, len(events) + 1):
            fork = await served.client.runs.fork(source.run_id, "/dump", sequence=sequence)
            got = await finished(served.client, fork.id)
            assert got.state == RunState.RUN_STATE_COMPLETED
            assert got.forked_from.run_id == source.run_id
            assert got.forked_from.sequence == sequence
            assert got.labels == {"from": "source"}
            assert got.session_id != (await source.get()).session_id
            assert got.usage.attempts == 1
            forked = only(await events_of(served.client.watch(fork.id)), "run_created")[0].forked_from
            check_pairs(forked.messages)
            assert text_of(forked.messages[0]) == said
            roles = [message["role"] for message in json.loads(got.output.text)["messages"]]
            assert roles[-1] == "ROLE_USER"
        assert len(await events_of(served.client.watch(source.run_id))) == len(events)


async def test_a_fork_is_made_with_another_model_and_goes_on_without_an_input(stored: Served) -> None:  # N13
    said = "/say second time lucky /repeat"
    source = await stored.client.run(said, model="scripted/echo", budgets=Budgets(max_total_tokens=1))
    assert kinds(await events_of(source))[-1] == "run_failed"

    fork = await stored.client.runs.fork(source.run_id, model="scripted/priced")
    got = await finished(stored.client, fork.id)

    assert got.output.text == "second time lucky"
    assert list(got.models) == ["scripted/priced"]


async def test_a_fork_is_made_once_for_a_request(stored: Served) -> None:  # N13 C058
    source = await stored.client.run("hi")
    await source.result()
    forks = await asyncio.gather(
        *(stored.client.runs.fork(source.run_id, "again", request_id="fork-1") for _ in range(20))
    )

    assert len({fork.id for fork in forks}) == 1
