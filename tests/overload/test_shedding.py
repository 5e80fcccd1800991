"""While it is too much new runs are refused, quickly and by a reason, and nothing that was accepted suffers."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from behest.calls import Patience
from behest.client import Client
from behest.errors import BehestError, from_rpc
from behest.v1 import run_service_pb2 as runs
from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.approval_service_pb2 import DecideApprovalRequest
from behest.v1.run_service_pb2_grpc import RunServiceStub
from behest.v1.run_state_pb2 import RunState
from behestd.runtime.house import Limits
from behestd.runtime.overload import Limits as Load
from behestd.runtime.quotas import Quota, Rules
from tests import daemons
from tests.approvals.scenes import CAREFUL, asking, pay, payments
from tests.daemons import Served
from tests.runs.scenes import OPEN, PURE, Ledger, events_of, kinds, tools, until_kind
from tests.tenancy.callers import StillClock
from tests.tenancy.things import said

PATIENCE_SECONDS = 60.0
HELLO = runs.CreateRunRequest(spec=said("hello"))
STALL = runs.CreateRunRequest(spec=said("/stall"))
TOO_MUCH = Load(memory_bytes=1)


def press(served: Served, limits: Load) -> None:
    """Let the daemon find that it is too much, or that it is not any more."""
    load = served.daemon.house.intake.overload
    load.set(limits)
    load.sample()


async def failed(call: Any) -> grpc.aio.AioRpcError:
    """Wait for a call to fail."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    return caught.value


async def test_a_shed_create_tells_when_to_come_again_and_touches_neither_store_nor_supervisor() -> None:  # row 66
    async with daemons.serve("sqlite") as served:
        stub = RunServiceStub(served.channel)
        press(served, TOO_MUCH)
        before, drivers = served.daemon.log.store.statistics(), served.daemon.rooms.supervisor.runs()
        for request in (HELLO, STALL):
            error = await failed(stub.CreateRun(request))
            known = from_rpc(error)
            assert (error.code(), known.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RUNTIME_OVERLOADED")
            assert known.retry_seconds == 1.0
            assert dict(error.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "1000"
        after = served.daemon.log.store.statistics()
        assert (after.items, after.reads, after.commits) == (before.items, before.reads, before.commits)
        assert served.daemon.rooms.supervisor.runs() == drivers == []
        press(served, Load())
        await stub.CreateRun(HELLO)


async def test_a_repeat_of_a_request_is_answered_while_others_are_refused() -> None:
    async with daemons.serve("sqlite") as served:
        stub = RunServiceStub(served.channel)
        asked = runs.CreateRunRequest(spec=said("hello"), request_id="mine")
        first = await stub.CreateRun(asked)
        await events_of(served.client.watch(first.run.id))
        press(served, TOO_MUCH)
        repeated = await stub.CreateRun(asked)
        assert (repeated.run.id, repeated.replayed) == (first.run.id, True)
        before = served.daemon.log.store.statistics()
        error = await failed(stub.CreateRun(runs.CreateRunRequest(spec=said("hello"), request_id="other")))
        assert from_rpc(error).reason == "RUNTIME_OVERLOADED"
        after = served.daemon.log.store.statistics()
        assert (after.items - before.items, after.reads - before.reads) == (0, 1)


async def test_what_was_accepted_goes_on_and_control_is_answered_while_new_runs_are_refused() -> None:
    paid: list[tuple[str, int]] = []
    async with daemons.serve("sqlite", tools=payments(paid), operator=CAREFUL) as served:
        client = served.client
        run, asked = await asking(client, pay("joe", 1) + " /next /say done")
        stalled = await client.run("/stall")
        press(served, TOO_MUCH)
        error = await failed(RunServiceStub(served.channel).CreateRun(HELLO))
        assert from_rpc(error).reason == "RUNTIME_OVERLOADED"
        approved = ApprovalDecision.APPROVAL_DECISION_APPROVED
        decision = DecideApprovalRequest(call_id=asked[0].call_id, decision=approved, args_hash=asked[0].args_hash)
        await client.stubs.approvals.DecideApproval(decision)
        assert kinds(await events_of(run))[-1] == "run_completed"
        assert paid == [("joe", 1)]
        await stalled.cancel()
        assert kinds(await events_of(stalled))[-1] == "run_cancelled"
        status = await client.daemon.status()
        assert (status.accepting, list(status.refusing_reasons)) == (False, ["RUNTIME_OVERLOADED"])
        assert (list(status.overload_causes), status.refused_runs) == (["memory"], 1)
        press(served, Load())
        assert (await client.daemon.status()).accepting


async def test_fewer_lists_are_answered_at_once_while_new_runs_are_refused() -> None:
    async with daemons.serve() as served:
        admission = served.daemon.edge.admission
        press(served, TOO_MUCH)
        admission._in_flight["list"] += 125  # type: ignore[index]  # an eighth of a thousand
        stub = RunServiceStub(served.channel)
        assert from_rpc(await failed(stub.ListRuns(runs.ListRunsRequest()))).reason == "RUNTIME_OVERLOADED"
        press(served, Load())
        await stub.ListRuns(runs.ListRunsRequest())


@asynccontextmanager
async def small(**plan: Any) -> Any:
    """A daemon that works on four runs at once and lets eight wait."""
    limits = Limits(active_runs=4, queued_runs=8)
    async with daemons.serve("sqlite", limits=limits, **plan) as served:
        yield served


async def flood(served: Served, count: int) -> tuple[list[str], Counter[str]]:
    """Ask for so many runs at once: the ids of those that were accepted, and the refusals by reason."""
    accepted, refused = [], Counter[str]()
    stub = RunServiceStub(served.channel)

    async def ask(number: int) -> None:
        spec = said("/delay 10 /say done", run_id=f"flood-{number}")
        try:
            accepted.append((await stub.CreateRun(runs.CreateRunRequest(spec=spec))).run.id)
        except grpc.aio.AioRpcError as error:
            known = from_rpc(error)
            assert known.retry_seconds is not None
            refused[known.reason] += 1

    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(ask(number))
    return accepted, refused


async def test_of_a_flood_all_that_is_accepted_is_done_and_nothing_else_is_recorded() -> None:  # row 66
    async with small() as served:
        accepted, refused = await flood(served, 240)
        assert len(accepted) >= 12
        assert len(accepted) + refused["RUNTIME_OVERLOADED"] == 240
        assert refused.keys() == {"RUNTIME_OVERLOADED"}
        for run_id in accepted:
            assert kinds(await events_of(served.client.watch(run_id)))[-1] == "run_completed"
        listed = await served.client.stubs.runs.ListRuns(runs.ListRunsRequest(page_size=1_000))
        assert {run.id for run in listed.runs} == set(accepted)
        assert {run.state for run in listed.runs} == {RunState.RUN_STATE_COMPLETED}


async def test_a_cancel_amid_a_flood_waits_for_no_more_than_the_commits_before_it() -> None:  # row 66
    async with small() as served:
        run = await served.client.run("/stall")
        store = served.daemon.log.store
        async with asyncio.TaskGroup() as tasks:
            flooding = tasks.create_task(flood(served, 240))
            await asyncio.sleep(0)
            before = store.statistics().commits
            await run.cancel()
            between = store.statistics().commits - before
        # Each run that is accepted is two commits at least; the cancel shares one with whoever comes together with it.
        accepted, _ = flooding.result()
        assert between <= 2 * len(accepted) + 4
        assert kinds(await events_of(run))[-1] == "run_cancelled"


@pytest.mark.parametrize("way", ["run", "stream"])
async def test_a_client_that_is_patient_waits_as_long_as_it_is_told_and_then_its_order_is_taken(way: str) -> None:
    rules, clock = Rules(principal=Quota(runs_per_minute=60)), StillClock()  # C141
    async with daemons.serve(quotas=rules, clock=clock) as served:
        quotas = served.daemon.house.intake.quotas

        async def go_on() -> None:
            while not quotas.refused:
                await asyncio.sleep(0.01)
            clock.advance(1.0)

        patience = Patience(shed_seconds=PATIENCE_SECONDS)
        async with Client(served.daemon.addresses[0], patience=patience) as client, asyncio.TaskGroup() as tasks:
            for _ in range(6):
                await client.run("hello")
            assert quotas.refused == 0
            tasks.create_task(go_on())
            # A tenth of a minute's worth went at once, the seventh has to wait for its turn.
            handle = await client.run("hello") if way == "run" else client.stream("hello")
            assert kinds(await events_of(handle))[-1] == "run_completed"
        assert quotas.refused == 1


async def test_a_client_waits_for_no_longer_than_it_bears_and_by_default_not_at_all() -> None:
    rules = Rules(principal=Quota(runs_per_minute=1))
    async with daemons.serve(quotas=rules) as served:
        await served.client.run("hello")
        for number, patience in enumerate((Patience(), Patience(shed_seconds=20.0)), 1):
            async with Client(served.daemon.addresses[0], patience=patience) as client:
                with pytest.raises(BehestError) as caught:
                    await client.run("hello")
            assert (caught.value.reason, served.daemon.house.intake.refused) == ("AUTH_QUOTA_EXCEEDED", number)
            assert (caught.value.retry_seconds or 0) > 30


async def test_a_full_daemon_says_what_it_is_full_of_and_takes_runs_again_when_one_has_ended() -> None:
    ledger = Ledger()

    async def work() -> str:
        return await ledger.work("work")

    async with daemons.serve(tools=tools((work, PURE)), operator=OPEN, limits=Limits(1, 0)) as served:
        run = await served.client.run("/tool work /next /say done")
        await until_kind(run, "tool_started")
        error = await failed(RunServiceStub(served.channel).CreateRun(HELLO))
        assert from_rpc(error).reason == "RUNTIME_OVERLOADED"
        assert list((await served.client.daemon.status()).overload_causes) == ["runs"]
        ledger.opened.set()
        assert kinds(await events_of(run))[-1] == "run_completed"
        await served.client.run("hello")
