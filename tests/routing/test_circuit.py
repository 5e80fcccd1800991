"""Models that fail: circuits, probes and budgets of retries, through the whole daemon with a real HTTP server."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from behest.errors import BehestError
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.model_pb2 import ModelHealthState
from behest.v1.run_state_pb2 import RunState, WaitReason
from behestd.core.circuit import CircuitPolicy
from behestd.core.route import RoutePolicy
from behestd.core.times import SECOND
from behestd.providers.catalog import snapshot
from behestd.providers.scripted import Scripted
from behestd.runtime.clock import SystemClock
from tests import daemons
from tests.daemons import refused
from tests.routing.vendor import DOWN, FINE, Answer, vendor
from tests.runs.scenes import events_of, kinds, only, until_kind

AT_ONCE = RoutePolicy((), base_seconds=0.0)
OPENING = CircuitPolicy(failures=3, cool_down_seconds=60.0)


class HandClock:
    """A clock that a test can move ahead."""

    def __init__(self) -> None:
        self._system = SystemClock()
        self.ahead_seconds = 0.0

    def now_ns(self) -> int:
        return self._system.now_ns() + int(self.ahead_seconds * SECOND)


def chat(text: str = "hello", model: str = "v/m") -> Chat:
    return Chat(model=model, messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])])


async def test_after_so_many_failures_a_model_is_left_alone_and_its_health_says_so() -> None:  # C020
    async with vendor() as at:
        at.says(DOWN)
        models = snapshot([at.provider(), Scripted()], aliases={"pair": "v/m"}, default_model="v/m")
        parts = {"models": models, "fallbacks": {"pair": ["scripted/echo"]}}
        async with daemons.serve(retries=AT_ONCE, circuits=OPENING, **parts) as served:
            events = await events_of(await served.client.run("one"))
            assert (kinds(events)[-1], at.requests) == ("run_failed", 3)
            model = await served.client.models.get("v/m")
            assert model.health.state == ModelHealthState.MODEL_HEALTH_STATE_OPEN
            assert (model.health.reason, model.health.failures) == ("PROVIDER_UNAVAILABLE", 3)

            # A run waits, a call that somebody waits for fails at once, and a fallback answers.
            waiting = await served.client.run("two")
            (wait,) = only(await until_kind(waiting, "run_waiting"), "run_waiting")
            assert wait.reason == WaitReason.WAIT_REASON_BACKOFF
            assert wait.until.ToNanoseconds() >= model.health.retry_time.ToNanoseconds()
            error = await refused(served.client.chat.complete(chat()))
            assert error.reason == "PROVIDER_UNAVAILABLE"
            assert error.retry_seconds is not None
            assert error.retry_seconds > 1
            events = await events_of(await served.client.run("/say from the other", model="pair"))
            assert [each.endpoint for each in only(events, "model_requested")] == ["scripted/echo"]
            assert only(events, "model_completed")[0].endpoint == "scripted/echo"
            assert at.requests == 3


async def test_one_request_at_a_time_finds_out_whether_a_model_is_well_again() -> None:  # C020
    clock = HandClock()
    async with vendor() as at:
        at.says(DOWN)
        models = snapshot([at.provider()], default_model="v/m")
        async with daemons.serve(models=models, retries=AT_ONCE, circuits=OPENING, clock=clock) as served:
            assert (await refused(served.client.chat.complete(chat()))).reason == "PROVIDER_UNAVAILABLE"
            clock.ahead_seconds += 61
            at.says(Answer(200, hold=(held := asyncio.Event())))
            at.arrived.clear()
            probe = asyncio.ensure_future(served.client.chat.complete(chat()))
            await asyncio.wait_for(at.arrived.wait(), 10)
            for _ in range(5):
                assert (await refused(served.client.chat.complete(chat()))).reason == "PROVIDER_UNAVAILABLE"
            assert at.requests == 4
            held.set()
            await asyncio.wait_for(probe, 10)
            for _ in range(3):
                await served.client.chat.complete(chat())
            health = (await served.client.models.get("v/m")).health
            assert health.state == ModelHealthState.MODEL_HEALTH_STATE_HEALTHY


async def test_many_runs_ask_a_model_that_is_down_few_times_and_all_end_well_when_it_is_back() -> None:  # row 38
    runs, failures = 20, 30
    stubborn = RoutePolicy((), attempts_per_endpoint=1000, attempts_per_step=1000, base_seconds=0.01)
    circuits = CircuitPolicy(failures=5, cool_down_seconds=0.05, longest_cool_down_seconds=0.1)
    async with vendor() as at:
        at.act = lambda number: DOWN if number <= failures else FINE
        models = snapshot([at.provider()], default_model="v/m")
        async with daemons.serve(models=models, retries=stubborn, circuits=circuits) as served:
            handles = [await served.client.run(f"run {number}") for number in range(runs)]
            logs = await asyncio.gather(*(events_of(handle, seconds=50) for handle in handles))
        assert {kinds(events)[-1] for events in logs} == {"run_completed"}
        assert at.requests == failures + runs
        # What was held back here never left, and is told as that.
        left = [each for log in logs for each in only(log, "model_failed") if "left alone" not in each.message]
        assert len(left) == failures


async def test_an_outage_costs_no_more_requests_than_there_are_runs_and_failures_that_open_the_circuit() -> (
    None
):  # row 38
    runs = 40
    async with vendor() as at:
        at.says(DOWN)
        models = snapshot([at.provider()], default_model="v/m")
        circuits = CircuitPolicy(failures=10, cool_down_seconds=600.0)
        async with daemons.serve(models=models, circuits=circuits) as served:
            handles = [await served.client.run(f"run {number}") for number in range(runs)]
            for handle in handles:
                await until_kind(handle, "run_waiting")
            states = {(await handle.get()).state for handle in handles}
            assert states == {RunState.RUN_STATE_WAITING}
            assert at.requests < runs + 10


async def test_retries_of_many_calls_together_keep_to_their_budget() -> None:  # row 38
    calls, budget = 20, 5
    async with vendor() as at:
        at.says(DOWN)
        models = snapshot([at.provider()], default_model="v/m")
        circuits = CircuitPolicy(failures=0, retries=budget, retries_per_second=0.0001)
        async with daemons.serve(models=models, retries=AT_ONCE, circuits=circuits) as served:
            for _ in range(calls):
                with suppress(BehestError):
                    await served.client.chat.complete(chat())
            assert at.requests == calls + budget
            # A run waits for the budget rather than fail.
            run = await served.client.run("hello")
            await until_kind(run, "run_waiting")
            assert at.requests == calls + budget + 1
            assert (await run.get()).state == RunState.RUN_STATE_WAITING


async def test_refusals_of_the_request_open_no_circuit() -> None:  # C018 C020
    async with vendor() as at:
        at.says(*[Answer(status, code="x") for status in (400, 401, 404, 413, 422) * 3], FINE)
        models = snapshot([at.provider()], default_model="v/m")
        async with daemons.serve(models=models, retries=AT_ONCE, circuits=OPENING) as served:
            for number in range(15):
                events = await events_of(await served.client.run("hello"))
                assert (kinds(events)[-1], at.requests) == ("run_failed", number + 1)
            assert kinds(await events_of(await served.client.run("hello")))[-1] == "run_completed"
