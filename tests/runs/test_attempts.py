"""Attempts at models: how often, when, and that all of them are in the log."""

from __future__ import annotations

import asyncio
from pathlib import Path

from behest.v1.agent_pb2 import Agent
from behest.v1.delta_pb2 import Delta
from behest.v1.event_pb2 import Event
from behest.v1.model_event_pb2 import FailureClass
from behestd.core.route import RoutePolicy
from behestd.providers.catalog import snapshot
from behestd.providers.scripted import Scripted
from tests import daemons
from tests.runs.scenes import events_of, kinds, only, put_agent, until_kind, updates_of

QUICK = RoutePolicy((), base_seconds=0.02)


async def test_two_failures_and_a_success_are_three_attempts_in_the_log() -> None:  # C017
    async with daemons.serve(retries=QUICK) as served:
        run = await served.client.run("/fail UNAVAILABLE 2 /say third time")
        events = await events_of(run)
        got = await run.get()

    assert [each.attempt for each in only(events, "model_requested")] == [1, 2, 3]
    assert [each.reason for each in only(events, "model_failed")] == ["PROVIDER_UNAVAILABLE"] * 2
    assert all(each.HasField("retry_time") for each in only(events, "model_failed"))
    assert got.output.text == "third time"
    assert got.usage.attempts == 3
    assert got.steps == 1


async def test_a_provider_that_asks_to_wait_is_not_called_before() -> None:  # C017
    async with daemons.serve(retries=QUICK) as served:
        events = await events_of(await served.client.run("/fail RATE_LIMITED 1 0.4 /say late"))

    times = {event.sequence: event.record_time.ToNanoseconds() for event in events}
    failed = next(event for event in events if event.HasField("model_failed"))
    again = [event for event in events if event.HasField("model_requested")][1]
    assert failed.model_failed.failure_class == FailureClass.FAILURE_CLASS_THROTTLED
    assert times[again.sequence] - times[failed.sequence] >= 0.4e9
    assert times[again.sequence] >= failed.model_failed.retry_time.ToNanoseconds()


async def test_a_permanent_failure_is_one_attempt() -> None:  # C018
    async with daemons.serve(retries=QUICK) as served:
        for reason in ("REQUEST_INVALID", "CREDENTIALS_REJECTED", "CONTEXT_TOO_LONG"):
            events = await events_of(await served.client.run(f"/fail {reason} /say never"))
            assert len(only(events, "model_requested")) == 1
            assert f"PROVIDER_{reason}" in str(only(events, "run_failed")[0].error)


async def test_a_provider_that_never_recovers_fails_the_run_after_its_attempts() -> None:  # C017
    async with daemons.serve(retries=QUICK) as served:
        events = await events_of(await served.client.run("/fail UNAVAILABLE"))

    assert len(only(events, "model_requested")) == 3
    assert kinds(events)[-1] == "run_failed"


async def test_the_next_model_answers_when_the_first_is_down_and_the_log_says_who() -> None:  # C019
    models = snapshot([Scripted(), Scripted("second")], default_model="scripted/echo")
    async with daemons.serve(models=models, retries=QUICK) as served:
        await put_agent(served, Agent(id="pair", model="scripted/echo", fallback_models=["second/echo"]))
        events = await events_of(
            await served.client.run("/fail CREDENTIALS_REJECTED 1 /say from the other", agent_id="pair")
        )

    # Each provider counts its own strikes, so the second one fails once, too.
    endpoints = [each.endpoint for each in only(events, "model_requested")]
    assert endpoints[:2] == ["scripted/echo", "second/echo"]


async def test_a_broken_stream_is_never_mixed_with_the_next_one() -> None:  # C021 N11
    async with daemons.serve(retries=QUICK) as served:
        updates = await updates_of(served.client.stream("/delay 5 /cut 3 1 /say one two three four five"))

    events = [update for update in updates if isinstance(update, Event)]
    assert [each.reason for each in only(events, "model_failed")] == ["PROVIDER_STREAM_BROKEN"]
    second = "".join(update.text for update in updates if isinstance(update, Delta) and update.attempt == 2)
    assert second == "one two three four five"
    assert only(events, "run_completed")[0].output.text == second


async def test_a_long_wait_for_a_provider_parks_the_run_and_a_restart_does_not_shorten_it(tmp_path: Path) -> None:
    async with daemons.serve("sqlite", tmp_path, retries=QUICK) as served:  # row 36
        run = await served.client.run("/fail RATE_LIMITED 1 3600 /say in an hour", run_id="parked")
        events = await until_kind(run, "run_waiting")
        until = only(events, "run_waiting")[0].until
    async with daemons.serve("sqlite", tmp_path, retries=QUICK) as served:
        got = await served.client.runs.get("parked")
        assert got.wait.until == until
        obstacles = (await served.client.runs.explain("parked")).obstacles
        assert [obstacle.kind for obstacle in obstacles] == ["backoff"]
        await asyncio.wait_for(served.client.runs.cancel("parked"), 5)
