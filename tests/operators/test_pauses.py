"""The kill switch on the whole daemon: nothing new of what is paused begins, runs wait and say why, and go on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from behest.v1 import daemon_service_pb2
from behest.v1.agent_pb2 import Agent
from behest.v1.chat_service_pb2 import Chat
from behest.v1.daemon_service_pb2 import PauseTarget
from behest.v1.daemon_service_pb2_grpc import DaemonServiceStub
from behest.v1.event_pb2 import Event
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.model_event_pb2 import SupersedeReason
from behest.v1.run_state_pb2 import RunState, WaitReason
from behestd.core.pauses import TOOL, Pause, Pauses
from behestd.core.times import nanoseconds
from behestd.runtime.house import Limits
from behestd.runtime.model_limits import Allowance
from tests import daemons
from tests.daemons import refused, rejection
from tests.operators.scenes import ALL, ECHO, LOOK, LOOK_UP, waiting
from tests.runs.scenes import NON_IDEMPOTENT, OPEN, PURE, Ledger, finished, kinds, only, tools, until_kind
from tests.subagents.scenes import order, put_agents

COMPLETED = RunState.RUN_STATE_COMPLETED
WAITING = RunState.RUN_STATE_WAITING
SAID = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])


async def events(client: object, run_id: str) -> list[Event]:
    """The whole log of a run that has ended."""
    return [event async for event in client.watch(run_id).events()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize(
    ("target", "subject"),
    [
        (ECHO, "model scripted/echo"),
        (LOOK, "tool look"),
        (PauseTarget(agent_id="default"), "agent default"),
        (PauseTarget(namespace="default"), "namespace default"),
        (ALL, "all"),
    ],
)
async def test_a_run_that_needs_what_is_paused_waits_and_goes_on_by_itself(  # N17
    store: str, target: PauseTarget, subject: str
) -> None:
    ledger = Ledger()

    async def look() -> str:
        return await ledger.work("look", wait=False)

    async with daemons.serve(store, tools=tools((look, NON_IDEMPOTENT)), operator=OPEN) as served:
        client = served.client
        pauses = await client.daemon.pause(target, "it misbehaves")
        assert [(each.target, each.reason, each.principal) for each in pauses] == [(target, "it misbehaves", "local")]
        run = await client.run(LOOK_UP)
        wait = await waiting(client, run.run_id)
        assert (wait.subject, wait.message) == (subject, "it misbehaves")
        now = await client.runs.get(run.run_id)
        day_ns = 24 * 3600 * 10**9
        assert now.state == WAITING
        assert 0 < nanoseconds(wait.until) - nanoseconds(pauses[0].create_time) < 2 * day_ns
        assert ledger.calls == []

        (obstacle,) = (await client.runs.explain(run.run_id)).obstacles  # N07
        assert (obstacle.kind, obstacle.subject) == ("paused", subject)
        assert "it misbehaves" in obstacle.message
        assert obstacle.until == wait.until
        status = await client.daemon.status()
        assert [each.target for each in status.pauses] == [target]

        assert list(await client.daemon.unpause(target)) == []
        ended = await finished(client, run.run_id)
        assert (ended.state, ended.output.text, ledger.calls) == (COMPLETED, "done", ["look"])
        resumed = only(await events(client, run.run_id), "run_resumed")
        assert [each.reason for each in resumed] == [WaitReason.WAIT_REASON_PAUSED]


async def test_what_is_in_flight_ends_as_it_would_and_nothing_follows() -> None:  # N17
    ledger = Ledger()

    async def look() -> str:
        return await ledger.work("look")

    said = "/tool look {} /next /tool look {} /next /say done"
    async with daemons.serve(tools=tools((look, NON_IDEMPOTENT)), operator=OPEN) as served:
        run = await served.client.run(said)
        async with asyncio.timeout(20):
            await ledger.reached.wait()
        await served.client.daemon.pause(LOOK, "enough")
        ledger.opened.set()
        await waiting(served.client, run.run_id)
        assert ledger.calls == ["look"]
        before = await served.client.runs.get(run.run_id)
        results = [part.tool_result for each in before.messages for part in each.parts if part.HasField("tool_result")]
        assert [each.is_error for each in results] == [False]
        await served.client.daemon.unpause(LOOK)
        assert (await finished(served.client, run.run_id)).state == COMPLETED
        assert ledger.calls == ["look", "look"]


async def test_runs_go_on_after_a_pause_as_there_is_room_and_all_of_them_in_the_end() -> None:  # N17
    ledger, opened = Ledger(), asyncio.Semaphore(0)

    async def look() -> str:
        await ledger.work("look", wait=False)
        ledger.running += 1
        ledger.most_at_once = max(ledger.most_at_once, ledger.running)
        await opened.acquire()
        ledger.running -= 1
        return "seen"

    async with daemons.serve(
        tools=tools((look, PURE)), operator=OPEN, limits=Limits(active_runs=2, queued_runs=20)
    ) as served:
        client = served.client
        await client.daemon.pause(LOOK, "enough")
        runs = [await client.run(LOOK_UP) for _ in range(6)]
        for run in runs:
            await waiting(client, run.run_id)
        await client.daemon.unpause(LOOK)
        fresh = await client.run("/say hello")
        for count in range(2, 9):
            async with asyncio.timeout(20):
                while len(ledger.calls) < min(count, 6):
                    await asyncio.sleep(0.01)
            assert ledger.running <= 2
            opened.release()
        for run in (*runs, fresh):
            assert (await finished(client, run.run_id)).state == COMPLETED
    assert ledger.most_at_once == 2


async def test_a_paused_tool_holds_back_its_calls_alone() -> None:  # N17
    ledger = Ledger()

    async def look() -> str:
        return await ledger.work("look", wait=False)

    async def read() -> str:
        return await ledger.work("read", wait=False)

    said = "/tool look {} /tool read {} /next /say done"
    async with daemons.serve(tools=tools((look, PURE), (read, PURE)), operator=OPEN) as served:
        await served.client.daemon.pause(LOOK, "wrong answers")
        run = await served.client.run(said)
        await waiting(served.client, run.run_id)
        assert ledger.calls == ["read"]
        status = await served.client.daemon.status()
        assert [(each.tool_name, each.in_flight, each.held) for each in status.load.tools] == [("look", 0, 1)]
        await served.client.daemon.unpause(LOOK)
        assert (await finished(served.client, run.run_id)).state == COMPLETED
        assert ledger.calls == ["read", "look"]


async def test_a_call_that_waits_for_a_place_when_its_tool_is_paused_never_leaves() -> None:  # N17
    ledger = Ledger()

    async def hold() -> str:
        return await ledger.work("hold")

    async def look() -> str:
        return await ledger.work("look", wait=False)

    async with daemons.serve(
        tools=tools((hold, PURE), (look, NON_IDEMPOTENT)), operator=OPEN, limits=Limits(tool_calls=1)
    ) as served:
        holder = await served.client.run("/tool hold {} /next /say held")
        async with asyncio.timeout(20):
            await ledger.reached.wait()
        run = await served.client.run(LOOK_UP)
        await until_kind(served.client.watch(run.run_id), "tool_started")
        await served.client.daemon.pause(LOOK, "stop")
        ledger.opened.set()
        await finished(served.client, holder.run_id)
        await waiting(served.client, run.run_id)
        assert "look" not in ledger.calls
        await served.client.daemon.unpause(LOOK)
        assert (await finished(served.client, run.run_id)).state == COMPLETED
        log = await events(served.client, run.run_id)
        (failed,) = only(log, "tool_failed")
        assert (failed.reason, failed.is_final) == ("RUNTIME_PAUSED", False)
        assert [each.attempt for each in only(log, "tool_started")] == [1, 2]
        assert ledger.calls == ["hold", "look"]


async def test_an_attempt_that_waits_for_the_models_limits_when_it_is_paused_never_leaves() -> None:  # N17
    limits = {"scripted/echo": Allowance(calls=1, wait_seconds=60)}
    async with daemons.serve(model_limits=limits) as served:
        client = served.client
        holder = await client.run("/delay 50 /words 100000")
        await until_kind(client.watch(holder.run_id), "model_requested")
        run = await client.run("hello")
        direct = asyncio.ensure_future(refused(client.chat.complete(Chat(model="scripted/echo", messages=[SAID]))))
        await until_kind(client.watch(run.run_id), "model_requested")
        async with asyncio.timeout(20):
            while served.daemon.house.endpoints.waiting("scripted/echo") < 2:
                await asyncio.sleep(0.01)
        await client.daemon.pause(ECHO, "stop")
        await client.runs.cancel(holder.run_id, force=True)
        assert (await waiting(client, run.run_id)).subject == "model scripted/echo"
        assert (await direct).reason == "RUNTIME_PAUSED"
        await client.daemon.unpause(ECHO)
        assert (await finished(client, run.run_id)).state == COMPLETED
        log = await events(client, run.run_id)
        (superseded,) = only(log, "model_superseded")
        assert superseded.reason == SupersedeReason.SUPERSEDE_REASON_PAUSED
        assert superseded.usage.input_tokens == 0
        assert [each.attempt for each in only(log, "model_requested")] == [1, 2]


async def test_calls_without_a_run_are_refused_while_what_they_need_is_paused() -> None:  # N17
    ledger = Ledger()

    async def look() -> str:
        return await ledger.work("look", wait=False)

    async with daemons.serve(tools=tools((look, PURE)), operator=OPEN) as served:
        client = served.client
        await client.daemon.pause(ALL, "an incident")
        refusals = [
            await refused(client.chat.complete(Chat(model="scripted/echo", messages=[SAID]))),
            await refused(client.embeddings.embed(["hello"], model="scripted/embed")),
            await refused(client.tools.call("look")),
        ]
        assert [(each.reason, each.metadata.get("subject")) for each in refusals] == [("RUNTIME_PAUSED", "all")] * 3
        assert ledger.calls == []
        await client.daemon.unpause(ALL)
        await client.tools.call("look")
        assert ledger.calls == ["look"]


async def test_a_direct_call_that_is_paused_while_it_is_journaled_never_leaves() -> None:  # N17
    ledger = Ledger()

    async def look() -> str:
        return await ledger.work("look", wait=False)

    async with daemons.serve("sqlite", tools=tools((look, NON_IDEMPOTENT)), operator=OPEN) as served:
        house = served.daemon.house
        commit, pauses = house.log.commit, Pauses({("default", TOOL, "look"): Pause(TOOL, "look", "stop")})

        async def slowly(item: Any) -> Any:
            outcome = await commit(item)
            house.switch.current = pauses
            return outcome

        house.log.commit = slowly  # type: ignore[method-assign]  # the pause comes between intent and call
        error = await refused(served.client.tools.call("look", idempotency_key="once"))
        assert (error.reason, error.metadata["subject"], ledger.calls) == ("RUNTIME_PAUSED", "tool look", [])
        house.log.commit = commit  # type: ignore[method-assign]
        house.switch.current = Pauses()
        await served.client.tools.call("look", idempotency_key="once")
        assert ledger.calls == ["look"]


async def test_pauses_are_durable_and_idempotent(tmp_path: Path) -> None:  # N17
    async with daemons.serve("sqlite", tmp_path / "data") as served:
        (first,) = await served.client.daemon.pause(ECHO, "one")
        assert list(await served.client.daemon.pause(ECHO, "one")) == [first]
        (second,) = await served.client.daemon.pause(ECHO, "two")
        assert (second.reason, second.create_time) == ("two", first.create_time)
        run = await served.client.run("hello")
        wait = await waiting(served.client, run.run_id)
    async with daemons.serve("sqlite", tmp_path / "data") as served:
        assert list((await served.client.daemon.status()).pauses) == [second]
        assert (await served.client.models.get("scripted/echo")).paused
        now = await served.client.runs.get(run.run_id)
        assert (now.state, now.wait.until) == (WAITING, wait.until)
        log = await until_kind(served.client.watch(run.run_id), "run_claimed", 2)
        assert kinds(log).count("run_waiting") == 1
        assert list(await served.client.daemon.unpause(ECHO)) == []
        assert list(await served.client.daemon.unpause(ECHO)) == []
        assert (await finished(served.client, run.run_id)).state == COMPLETED
    async with daemons.serve("sqlite", tmp_path / "data") as served:
        assert list((await served.client.daemon.status()).pauses) == []


async def test_a_child_run_of_a_paused_agent_does_not_begin() -> None:  # N17
    boss, helper = Agent(id="boss", sub_agents=["helper"]), Agent(id="helper", description="Helps.")
    async with daemons.serve() as served:
        await put_agents(served, boss, helper)
        await served.client.daemon.pause(PauseTarget(agent_id="helper"), "it spends too much")
        run = await served.client.run(f"{order('helper', '/say hi')} /next /say done", agent_id="boss")
        wait = await waiting(served.client, run.run_id)
        assert wait.subject == "agent helper"
        own = await served.client.run("hello", agent_id="helper")
        assert (await waiting(served.client, own.run_id)).subject == "agent helper"
        await served.client.daemon.unpause(PauseTarget(agent_id="helper"))
        ended = await finished(served.client, run.run_id)
        assert (ended.state, ended.output.text) == (COMPLETED, "done")
        assert (await finished(served.client, own.run_id)).state == COMPLETED


async def test_a_run_that_waits_for_a_pause_can_be_cancelled() -> None:
    async with daemons.serve() as served:
        await served.client.daemon.pause(ALL, "an incident")
        run = await served.client.run("hello")
        await waiting(served.client, run.run_id)
        await served.client.runs.cancel(run.run_id)
        assert (await finished(served.client, run.run_id)).state == RunState.RUN_STATE_CANCELLED


@pytest.mark.parametrize(
    ("target", "reason", "field"),
    [
        (PauseTarget(), "why", "target"),
        (PauseTarget(all=False), "why", "target.all"),
        (PauseTarget(model="echo"), "why", "target.model"),
        (PauseTarget(tool_name="no such name"), "why", "target.tool_name"),
        (PauseTarget(agent_id=""), "why", "target.agent_id"),
        (PauseTarget(namespace="a/b"), "why", "target.namespace"),
        (ALL, "", "reason"),
        (ALL, "x" * 1025, "reason"),
    ],
)
async def test_a_pause_that_makes_no_sense_is_refused(target: PauseTarget, reason: str, field: str) -> None:
    async with daemons.serve() as served:
        stub = DaemonServiceStub(served.channel)
        request = daemon_service_pb2.SetPausedRequest(target=target, paused=True, reason=reason)
        found = await rejection(stub.SetPaused(request))
        expected = "REQUEST_TOO_LARGE" if len(reason) > 1024 else "REQUEST_INVALID"
        assert (found.reason, found.field) == (expected, field)
        assert list((await served.client.daemon.status()).pauses) == []
