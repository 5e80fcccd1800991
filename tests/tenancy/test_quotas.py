"""Rates and quotas of principals and namespaces: what is over them is refused, and told when it is not any more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from behest.errors import from_rpc
from behest.v1 import artifact_service_pb2 as artifacts
from behest.v1 import daemon_service_pb2 as daemon
from behest.v1 import run_service_pb2 as runs
from behest.v1 import session_service_pb2 as sessions
from behest.v1.run_service_pb2_grpc import RunServiceStub
from behestd.runtime.house import Limits
from behestd.runtime.quotas import MOST_ACCOUNTS, Quota, QuotaExceeded, Quotas, Rules
from behestd.service.scopes import Caller
from tests.runs.scenes import OPEN, PURE, Ledger, tools
from tests.tenancy.callers import TENANT, StillClock, Tenant, serving
from tests.tenancy.things import said

CREATE, GET, CANCEL = (f"/behest.v1.RunService/{name}" for name in ("CreateRun", "GetRun", "CancelRun"))
STALL = runs.CreateRunRequest(spec=said("/stall"))
ONE = [Caller("one", "alpha", TENANT)]
TWO = [*ONE, Caller("two", "alpha", TENANT), Caller("three", "bravo", TENANT)]


def refused(quotas: Quotas, what: str, *who: str, **more: Any) -> QuotaExceeded:
    """What asking for something is refused with."""
    with pytest.raises(QuotaExceeded) as caught:
        getattr(quotas, what)(*who, **more)
    return caught.value


# --- the counters ---


def test_a_rate_lets_a_tenth_of_a_minute_through_at_once_and_the_rest_as_time_goes() -> None:  # C141
    clock = StillClock()
    quotas = Quotas(Rules(principal=Quota(runs_per_minute=60)), clock)
    for _ in range(6):
        quotas.take_run("alpha", "one")
    error = refused(quotas, "take_run", "alpha", "one")
    assert (error.reason, error.metadata) == (
        "AUTH_QUOTA_EXCEEDED",
        {"quota": "principal.runs_per_minute", "limit": "60"},
    )
    assert error.retry_seconds == pytest.approx(1.0)
    quotas.take_run("alpha", "two")
    clock.advance(1.0)
    quotas.take_run("alpha", "one")
    assert refused(quotas, "take_run", "alpha", "one").retry_seconds == pytest.approx(1.0)
    assert quotas.refused == 2


def test_a_refusal_of_the_namespace_takes_nothing_from_the_principal() -> None:
    clock = StillClock()
    quotas = Quotas(Rules(Quota(requests_per_minute=600), Quota(requests_per_minute=10)), clock)
    quotas.enter_call("alpha", "one", ())
    for _ in range(100):
        assert refused(quotas, "enter_call", "alpha", "one", kinds=()).metadata["quota"].startswith("namespace.")
    for _ in range(59):
        clock.advance(6.0)
        quotas.enter_call("alpha", "one", ())


def test_a_refused_stream_holds_no_place() -> None:
    quotas = Quotas(Rules(Quota(streams=2), Quota(watches=1)), StillClock())
    both = ("streams", "watches")
    quotas.enter_call("alpha", "one", both)
    for _ in range(3):
        assert refused(quotas, "enter_call", "alpha", "one", kinds=both).metadata["quota"] == "namespace.watches"
    quotas.enter_call("alpha", "one", ("streams",))
    assert refused(quotas, "enter_call", "alpha", "one", kinds=("streams",)).metadata["quota"] == "principal.streams"
    quotas.leave_call("alpha", "one", both)
    quotas.enter_call("alpha", "one", both)


def test_single_principals_and_namespaces_have_quotas_of_their_own() -> None:
    rules = Rules(Quota(watches=1), principals={"big": Quota(watches=3)})
    quotas = Quotas(rules, StillClock())
    for _ in range(3):
        quotas.enter_call("alpha", "big", ("watches",))
    quotas.enter_call("alpha", "small", ("watches",))
    for name in ("big", "small"):
        refused(quotas, "enter_call", "alpha", name, kinds=("watches",))


def test_other_quotas_take_effect_at_once_and_what_is_there_stays() -> None:
    quotas = Quotas(Rules(), StillClock())
    for _ in range(3):
        quotas.enter_call("alpha", "one", ("watches",))
    quotas.set(Rules(Quota(watches=2)))
    refused(quotas, "enter_call", "alpha", "one", kinds=("watches",))
    for _ in range(2):
        quotas.leave_call("alpha", "one", ("watches",))
    quotas.enter_call("alpha", "one", ("watches",))


def test_accounts_that_hold_nothing_are_dropped_and_the_others_are_not() -> None:
    clock = StillClock()
    quotas = Quotas(Rules(Quota(requests_per_minute=60)), clock)
    quotas.enter_call("alpha", "watcher", ("watches",))
    for number in range(3 * MOST_ACCOUNTS):
        clock.advance(1.0)
        quotas.enter_call("alpha", f"passer-by-{number}", ())
    assert len(quotas) <= MOST_ACCOUNTS + 1
    quotas.leave_call("alpha", "watcher", ("watches",))
    quotas.set(Rules(Quota(watches=1)))
    quotas.enter_call("alpha", "watcher", ("watches",))


def test_an_account_is_not_dropped_between_its_making_and_its_use() -> None:
    quotas = Quotas(Rules(Quota(watches=1)), StillClock())
    for number in range(MOST_ACCOUNTS - 2):  # with that of their namespace one less than are kept
        quotas.enter_call("alpha", f"passer-by-{number}", ())
    quotas.enter_call("beta", "watcher", ("watches",))
    with pytest.raises(QuotaExceeded):
        quotas.enter_call("beta", "watcher", ("watches",))


# --- through the door ---


async def over(tenant: Tenant, method: str, request: Any) -> dict[str, str]:
    """The metadata of a refusal for a quota."""
    outcome = await tenant.call(method, request)
    assert (outcome.code, outcome.reason) == ("RESOURCE_EXHAUSTED", "AUTH_QUOTA_EXCEEDED")
    return dict(outcome.metadata)


async def test_calls_beyond_the_rate_are_refused_and_control_is_not() -> None:  # C141, S13
    rules = Rules(principal=Quota(requests_per_minute=30))
    async with serving(TWO, quotas=rules, clock=StillClock()) as (_, (one, two, _third)):
        nothing = runs.GetRunRequest(run_id="nothing")
        for _ in range(3):
            assert (await one.call(GET, nothing)).code == "NOT_FOUND"
        assert await over(one, GET, nothing) == {"quota": "principal.requests_per_minute", "limit": "30"}
        assert (await two.call(GET, nothing)).code == "NOT_FOUND"
        for _ in range(20):
            assert (await one.call(CANCEL, runs.CancelRunRequest(run_id="nothing"))).code == "NOT_FOUND"


async def test_runs_beyond_a_quota_are_refused_until_one_ends_and_repeats_are_answered() -> None:  # C141, S21
    rules = Rules(principal=Quota(runs=2), namespace=Quota(runs=3))
    async with serving(TWO, quotas=rules) as (served, (one, two, three)):
        first = await one.one(CREATE, runs.CreateRunRequest(spec=said("/stall"), request_id="first"))
        await one.one(CREATE, STALL)
        assert await over(one, CREATE, STALL) == {"quota": "principal.runs", "limit": "2"}
        await two.one(CREATE, STALL)
        assert await over(two, CREATE, STALL) == {"quota": "namespace.runs", "limit": "3"}
        await three.one(CREATE, STALL)
        repeated = await one.one(CREATE, runs.CreateRunRequest(spec=said("/stall"), request_id="first"))
        assert (repeated.run.id, repeated.replayed) == (first.run.id, True)
        await one.one(CANCEL, runs.CancelRunRequest(run_id=first.run.id))
        async with asyncio.timeout(30):
            while served.daemon.house.intake.quotas.runs_of("alpha") > 2:
                await asyncio.sleep(0.01)
        await one.one(CREATE, STALL)


async def test_runs_beyond_the_rate_are_refused_with_the_time_after_which_they_are_not() -> None:  # C141
    clock = StillClock()
    async with serving(ONE, quotas=Rules(principal=Quota(runs_per_minute=10)), clock=clock) as (_, (one,)):
        await one.one(CREATE, STALL)
        stub = RunServiceStub(one.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateRun(STALL, metadata=[("authorization", f"Bearer {one.token}")])
        known = from_rpc(caught.value)
        assert known.metadata["quota"] == "principal.runs_per_minute"
        assert known.retry_seconds == pytest.approx(6.0, abs=0.5)
        pushback = dict(caught.value.trailing_metadata() or ())["grpc-retry-pushback-ms"]
        assert int(pushback) == pytest.approx(6_000, abs=500)
        clock.advance(6.0)
        await one.one(CREATE, STALL)


async def watching(tenant: Tenant, count: int, stack: AsyncExitStack) -> Sequence[Any]:
    """Open watches that have been answered, to be closed in the end."""
    stub = RunServiceStub(tenant.channel)
    created = await tenant.one(CREATE, STALL)
    calls = []
    for _ in range(count):
        metadata = [("authorization", f"Bearer {tenant.token}")]
        call = stub.WatchRun(runs.WatchRunRequest(run_id=created.run.id), metadata=metadata)
        stack.callback(call.cancel)
        await call.read()
        calls.append(call)
    return calls


@pytest.mark.parametrize("kind", ["watches", "streams"])
async def test_watches_beyond_a_quota_are_refused_until_one_ends(kind: str) -> None:  # S13, S21
    rules = Rules(principal=Quota(**{kind: 2}))
    async with serving(TWO, quotas=rules) as (_, (one, two, _third)), AsyncExitStack() as stack:
        info = await one.one("/behest.v1.DaemonService/GetServerInfo", daemon.GetServerInfoRequest())
        assert info.limits.watchers == (2 if kind == "watches" else 10_000)
        calls = await watching(one, 2, stack)
        watch = "/behest.v1.RunService/WatchRun"
        nothing = runs.WatchRunRequest(run_id="nothing")
        assert await over(one, watch, nothing) == {"quota": f"principal.{kind}", "limit": "2"}
        assert (await two.call(watch, nothing)).code == "NOT_FOUND"
        calls[0].cancel()
        async with asyncio.timeout(30):
            while (await one.call(watch, nothing)).code != "NOT_FOUND":
                await asyncio.sleep(0.01)


async def test_a_namespace_works_on_so_many_runs_and_the_rest_of_them_wait() -> None:  # C141
    ledger = Ledger()

    async def work(name: str) -> str:
        return await ledger.work(name)

    rules = Rules(namespaces={"alpha": Quota(active_runs=1)})
    plan = {"tools": tools((work, PURE)), "operator": OPEN, "limits": Limits(active_runs=3)}
    async with serving(TWO, quotas=rules, **plan) as (_, (one, _two, three)):
        for tenant, name in ((one, "a1"), (one, "a2"), (three, "b1"), (three, "b2")):
            spec = said(f'/tool work {{"name": "{name}"}}')
            await tenant.one(CREATE, runs.CreateRunRequest(spec=spec))
        async with asyncio.timeout(30):
            while len(ledger.calls) < 3:
                await asyncio.sleep(0.01)
        assert sorted(ledger.calls) == ["a1", "b1", "b2"]
        ledger.opened.set()
        async with asyncio.timeout(30):
            while len(ledger.calls) < 4:
                await asyncio.sleep(0.01)
        assert ledger.calls[-1] == "a2"


async def test_sessions_beyond_a_quota_are_refused_however_they_would_be_made() -> None:  # S21
    rules = Rules(namespaces={"alpha": Quota(sessions=3)})
    create, fork = (f"/behest.v1.SessionService/{name}" for name in ("CreateSession", "ForkSession"))
    async with serving(TWO, "sqlite", quotas=rules) as (_, (one, _two, three)):
        made = [await one.one(create, sessions.CreateSessionRequest(request_id=f"s{number}")) for number in range(3)]
        full = {"quota": "namespace.sessions", "limit": "3"}
        assert await over(one, create, sessions.CreateSessionRequest()) == full
        source = sessions.ForkSessionRequest(source_session_id=made[0].session.id)
        assert await over(one, fork, source) == full
        assert await over(one, CREATE, STALL) == full
        repeated = await one.one(create, sessions.CreateSessionRequest(request_id="s0"))
        assert (repeated.session.id, repeated.replayed) == (made[0].session.id, True)
        await one.one(CREATE, runs.CreateRunRequest(spec=said("hello", session_id=made[1].session.id)))
        await three.one(create, sessions.CreateSessionRequest())
        delete = sessions.DeleteSessionRequest(session_id=made[0].session.id)
        await one.one("/behest.v1.SessionService/DeleteSession", delete)
        await one.one(create, sessions.CreateSessionRequest())


async def test_sessions_of_a_principal_are_bounded_and_what_was_deleted_is_free_within_a_minute() -> None:  # S21
    names = ("CreateSession", "ForkSession", "DeleteSession")
    create, fork, delete = (f"/behest.v1.SessionService/{name}" for name in names)
    clock = StillClock()
    rules = Rules(principals={"one": Quota(sessions=2)})
    async with serving(TWO, "sqlite", clock=clock, quotas=rules) as (_, (one, two, _three)):
        made = (await one.one(create, sessions.CreateSessionRequest())).session
        assert made.principal == "one"
        await one.one(CREATE, runs.CreateRunRequest(spec=said("hello")))
        full = {"quota": "principal.sessions", "limit": "2"}
        assert await over(one, create, sessions.CreateSessionRequest()) == full
        assert await over(one, CREATE, STALL) == full
        assert await over(one, fork, sessions.ForkSessionRequest(source_session_id=made.id)) == full
        # Nobody else is bounded by that, and a run on a session that is there makes none.
        copy = (await two.one(fork, sessions.ForkSessionRequest(source_session_id=made.id))).session
        assert copy.principal == "two"
        await two.one(delete, sessions.DeleteSessionRequest(session_id=copy.id))
        clock.advance(61.0)
        assert await over(one, create, sessions.CreateSessionRequest()) == full
        await one.one(delete, sessions.DeleteSessionRequest(session_id=made.id))
        clock.advance(61.0)
        await one.one(create, sessions.CreateSessionRequest())


async def test_artifacts_beyond_a_quota_are_refused_and_what_was_deleted_is_free_again() -> None:  # S16, S21
    rules, clock = Rules(namespaces={"alpha": Quota(artifact_bytes=100)}), StillClock()
    write = "/behest.v1.ArtifactService/WriteArtifact"

    def content(size_bytes: int) -> list[Any]:
        header = artifacts.WriteArtifactHeader(name="a", media_type="text/plain")
        chunk = artifacts.WriteArtifactRequest(chunk=b"a" * size_bytes)
        return [artifacts.WriteArtifactRequest(header=header), chunk]

    async with serving(TWO, quotas=rules, clock=clock) as (_, (one, _two, three)):
        kept = await one.one(write, *content(60))
        for size_bytes in (41, 100):
            outcome = await one.call(write, *content(size_bytes))
            assert (outcome.reason, dict(outcome.metadata)["quota"]) == (
                "AUTH_QUOTA_EXCEEDED",
                "namespace.artifact_bytes",
            )
        await one.one(write, *content(40))
        assert (await one.call(write, *content(1))).reason == "AUTH_QUOTA_EXCEEDED"
        await three.one(write, *content(1_000))
        delete = artifacts.DeleteArtifactRequest(artifact_id=kept.artifact.id)
        await one.one("/behest.v1.ArtifactService/DeleteArtifact", delete)
        clock.advance(61.0)
        await one.one(write, *content(60))
