"""The creation of runs: once for each request, refused before anything is recorded, or not at all."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from behest.client import Client
from behest.errors import BehestError
from behest.v1.event_pb2 import Event
from behest.v1.message_pb2 import ImagePart, Part, TextPart
from behest.v1.run_service_pb2 import CreateRunRequest, ListRunsRequest
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.run_state_pb2 import RunState
from behestd.runtime.admission import Rules
from behestd.runtime.house import Limits
from tests import daemons
from tests.daemons import Served, refused
from tests.runs.scenes import events_of, kinds


async def run_ids(client: Client) -> list[str]:
    return [run.id async for run in client.runs.list()]


async def test_a_hundred_creations_with_one_request_id_are_one_run(stored: Served) -> None:  # C058
    client = stored.client

    async def create() -> tuple[str, bool]:
        handle = client.stream("once", request_id="req-1")
        return await handle.create(), handle.is_replayed

    made = await asyncio.gather(*(create() for _ in range(100)))

    assert len({run_id for run_id, _ in made}) == 1
    assert [replayed for _, replayed in made].count(False) == 1
    assert await run_ids(client) == [made[0][0]]


async def test_fifty_clients_that_create_at_once_get_equal_answers(stored: Served) -> None:  # C058 row 52
    clients = [Client(stored.client.address) for _ in range(50)]
    try:
        handles = [client.stream("/delay 2 /say just once", request_id="req-1") for client in clients]
        logs = await asyncio.gather(*(events_of(handle, seconds=20) for handle in handles))
    finally:
        for client in clients:
            await client.close()

    first = [event.SerializeToString() for event in logs[0]]
    assert all([event.SerializeToString() for event in log] == first for log in logs)
    assert len(await run_ids(stored.client)) == 1


async def test_another_request_under_the_same_id_is_refused(stored: Served) -> None:  # C058
    await stored.client.run("one thing", request_id="req-1")
    error = await refused(stored.client.run("another", request_id="req-1"))

    assert error.reason == "REQUEST_ID_REUSED"
    assert len(await run_ids(stored.client)) == 1


async def test_a_request_is_known_after_a_restart_whatever_became_of_its_run(tmp_path: Path) -> None:  # C058
    async with daemons.serve("sqlite", tmp_path) as served:
        run_id = await served.client.stream("/say kept", request_id="req-1").create()
        await served.client.watch(run_id).result()
    async with daemons.serve("sqlite", tmp_path) as served:
        again = served.client.stream("/say kept", request_id="req-1")
        events = await events_of(again)
        assert (again.run_id, again.is_replayed) == (run_id, True)
        assert kinds(events)[-1] == "run_completed"
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        error = await refused(served.client.run("/say other", request_id="req-1"))
        assert error.reason == "REQUEST_ID_REUSED"


async def test_a_request_is_told_of_its_run_though_it_would_not_be_admitted_now(tmp_path: Path) -> None:  # C058 C066
    rules = Rules(duplicate_window_seconds=60)
    async with daemons.serve("sqlite", tmp_path, rules=rules) as served:
        first = await served.client.run("hello")
        await first.result()
        session_id = (await first.get()).session_id
        made = await served.client.run("again", session_id=session_id, request_id="req-2")
        repeated = await served.client.run("again", session_id=session_id, request_id="req-2")
        assert (repeated.run_id, repeated.is_replayed) == (made.run_id, True)


async def test_two_streams_of_fifty_runs_see_their_own_events_only(stored: Served) -> None:  # C055
    async def follow(number: int) -> None:
        events: list[Event] = await events_of(stored.client.stream(f"/delay 1 /say mine is {number}"), seconds=20)
        assert len({event.run_id for event in events}) == 1
        assert events[-1].run_completed.output.text == f"mine is {number}"

    await asyncio.gather(*(follow(number) for number in range(50)))


@pytest.mark.parametrize(
    ("said", "rule"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ([], "empty"),
        ("x" * 1001, "too_long"),
        ("tell me the password", "no-secrets"),
    ],
)
async def test_an_input_that_is_not_admitted_leaves_nothing(said: object, rule: str) -> None:  # C065
    rules = Rules(input_bytes=1000, rejected=(("no-secrets", re.compile("passw[o0]rd")),))
    async with daemons.serve(rules=rules) as served:
        error = await refused(served.client.run(said, request_id="req-1"))  # type: ignore[arg-type]
        assert error.reason == "RUN_INPUT_REJECTED"
        assert error.metadata["rule"] == rule
        assert await run_ids(served.client) == []
        accepted = await served.client.run("fine", request_id="req-1")
        assert not accepted.is_replayed


async def test_what_is_refused_is_in_no_file_and_no_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:  # C065
    rules = Rules(rejected=(("no-secrets", re.compile("CANARY")),))
    async with daemons.serve("sqlite", tmp_path, rules=rules) as served:
        await refused(served.client.run("the CANARY sings"))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "ballast")
    assert b"CANARY" not in written
    assert "CANARY" not in "".join(capfd.readouterr())


async def test_duplicates_are_refused_within_their_window_and_session_only() -> None:  # C066
    async with daemons.serve(rules=Rules(duplicate_window_seconds=0.5)) as served:
        first = await served.client.run("start")
        await first.result()
        session_id = (await first.get()).session_id
        same = await served.client.run("again", session_id=session_id)
        error = await refused(served.client.run("again", session_id=session_id))
        assert error.reason == "RUN_INPUT_DUPLICATE"
        assert error.metadata["runId"] == same.run_id
        await served.client.run("other", session_id=session_id)
        await served.client.run("again")
        async with asyncio.timeout(30):
            while True:
                try:
                    await served.client.run("again", session_id=session_id)
                    break
                except BehestError:
                    await asyncio.sleep(0.05)


async def test_duplicates_are_welcome_by_default(served: Served) -> None:  # C066
    first = await served.client.run("same")
    await first.result()
    session_id = (await first.get()).session_id
    for _ in range(2):
        await (await served.client.run("same", session_id=session_id)).result()


async def test_a_thousand_finished_runs_do_not_count_against_the_limit() -> None:  # C061
    async with daemons.serve(limits=Limits(active_runs=4, queued_runs=4)) as served:
        for _ in range(125):
            handles = [served.client.stream("hi") for _ in range(8)]
            await asyncio.gather(*(handle.result() for handle in handles))
        held = [await served.client.run("/stall") for _ in range(4)]
        queued = [await served.client.run("/stall") for _ in range(4)]
        states = [(await handle.get()).state for handle in held + queued]
        assert states == [RunState.RUN_STATE_RUNNING] * 4 + [RunState.RUN_STATE_QUEUED] * 4
        assert [(await served.client.runs.explain(queued[0].run_id)).obstacles[0].kind] == ["capacity"]
        error = await refused(served.client.run("one too many"))
        assert error.reason == "RUNTIME_OVERLOADED"
        await held[0].cancel()
        await events_of(served.client.watch(held[0].run_id))
        async with asyncio.timeout(30):
            while (await queued[0].get()).state != RunState.RUN_STATE_RUNNING:
                await asyncio.sleep(0.01)


async def test_a_taken_run_id_is_refused_and_its_run_stays_as_it_is(stored: Served) -> None:
    await (await stored.client.run("first", run_id="mine")).result()

    async def look() -> None:
        for _ in range(20):
            got = await stored.client.runs.get("mine")
            assert got.state == RunState.RUN_STATE_COMPLETED
            assert (await stored.client.runs.cancel("mine")).state == RunState.RUN_STATE_COMPLETED

    errors, *_ = await asyncio.gather(
        asyncio.gather(*(refused(stored.client.run("other", run_id="mine")) for _ in range(20))), look()
    )

    assert {error.reason for error in errors} == {"RUN_ID_TAKEN"}
    assert (await stored.client.runs.get("mine")).output.text == "first"


async def test_a_client_that_leaves_in_the_middle_of_a_creation_leaves_a_whole_run(stored: Served) -> None:  # row 53
    stub = stored.client.stubs.runs
    for milliseconds in range(1, 21):
        spec = RunSpec(run_id=f"left-{milliseconds}", input=[Part(text=TextPart(text="hello"))])
        request = CreateRunRequest(spec=spec, request_id=f"left-{milliseconds}")
        call = stub.CreateRun(request)
        await asyncio.sleep(milliseconds / 4000)
        call.cancel()
        again = await stored.client.run("hello", run_id=f"left-{milliseconds}", request_id=f"left-{milliseconds}")
        assert again.run_id == f"left-{milliseconds}"
        assert (await again.result()).text == "hello"
    session_id = (await stored.client.runs.get("left-1")).session_id
    follow_up = await stored.client.run("the session is free", session_id=session_id)
    await asyncio.wait_for(follow_up.result(), 5)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (RunSpec(input=[Part(text=TextPart(text="x"))], run_id="not an id"), "spec.run_id"),
        (RunSpec(input=[Part()]), "spec.input[0]"),
        (RunSpec(input=[Part(image=ImagePart())]), "spec.input[0].image"),
    ],
)
async def test_a_wrong_field_is_named(served: Served, spec: RunSpec, field: str) -> None:
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as caught:
        await served.client.stubs.runs.CreateRun(CreateRunRequest(spec=spec))
    assert field in str(caught.value)
    assert [run.id async for run in served.client.runs.list(ListRunsRequest())] == []
