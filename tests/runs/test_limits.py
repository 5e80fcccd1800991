"""The limits of a run, and how each of them ends it."""

from __future__ import annotations

import asyncio

import pytest

from behest.errors import RunFailedError, RunTimedOutError
from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import FinishReason
from behest.v1.definition_pb2 import Budgets, DoomLoop, DoomLoopAction, Limits
from behest.v1.event_pb2 import Event
from behest.v1.run_state_pb2 import RunState
from behestd.core.route import RoutePolicy
from behestd.core.times import duration
from behestd.providers.provider import ProviderTimeouts
from tests import daemons
from tests.daemons import Served
from tests.runs.scenes import PURE, TERMINAL, Ledger, check_pairs, events_of, kinds, only, put_agent, tools

NO_DOOM_LOOP = DoomLoop(action=DoomLoopAction.DOOM_LOOP_ACTION_OFF)


def look_up(key: str) -> str:
    """Look a thing up."""
    return key


async def test_endless_calls_stop_at_the_limit_of_steps() -> None:  # C046
    async with daemons.serve(tools=tools((look_up, PURE))) as served:
        await put_agent(served, Agent(id="free", tools=["*"], limits=Limits(doom_loop=NO_DOOM_LOOP)))
        run = await served.client.run('/tool look_up {"key": "a"} /repeat', agent_id="free")
        with pytest.raises(RunFailedError) as caught:
            await run.result()
        got = await run.get()

    assert caught.value.reason == "RUN_STEP_LIMIT"
    assert caught.value.metadata["limit"] == "10"
    assert got.steps == 10
    check_pairs(got.messages)


async def test_a_request_can_lower_a_limit_of_its_agent_and_not_raise_it(served: Served) -> None:  # C046 C095
    await put_agent(served, Agent(id="short", limits=Limits(max_length_recoveries=9, max_steps=4)))
    steps = {}
    for budget in (2, 4, 9):
        run = await served.client.run(
            "/say x /finish length /repeat", agent_id="short", budgets=Budgets(max_steps=budget)
        )
        with pytest.raises(RunFailedError):
            await run.result()
        steps[budget] = (await run.get()).steps

    assert steps == {2: 2, 4: 4, 9: 4}


async def test_a_budget_of_tokens_stops_a_run_before_a_call_that_would_pass_it(served: Served) -> None:  # C047
    run = await served.client.run(
        "/say x /finish length /usage 500 500 /repeat", budgets=Budgets(max_total_tokens=1_500)
    )
    events = await events_of(run)

    assert "RUN_BUDGET" in str(only(events, "run_failed")[0].error)
    assert len(only(events, "model_requested")) == 2


async def test_an_input_that_is_over_the_budget_is_never_sent(served: Served) -> None:  # C047
    events = await events_of(await served.client.run("word " * 2_000, budgets=Budgets(max_total_tokens=100)))

    assert "RUN_BUDGET" in str(only(events, "run_failed")[0].error)
    assert not only(events, "model_requested")


async def test_a_budget_of_money_stops_a_run_and_needs_a_price(served: Served) -> None:  # C047 C116
    said = "/say x /finish length /usage 1000 0 /repeat"
    budgets = Budgets(max_cost_micro_usd=2_500)
    priced = await events_of(await served.client.run(said, model="scripted/priced", budgets=budgets))
    unpriced = await events_of(await served.client.run("hi", model="scripted/unpriced", budgets=budgets))

    assert "RUN_BUDGET" in str(only(priced, "run_failed")[0].error)
    # What is reserved is the input; the last call may pass the budget by what it brings.
    assert len(only(priced, "model_completed")) == 3
    assert "PROVIDER_PRICE_UNKNOWN" in str(only(unpriced, "run_failed")[0].error)
    assert not only(unpriced, "model_requested")


async def test_a_budget_of_calls_stops_a_run() -> None:  # C047
    async with daemons.serve(tools=tools((look_up, PURE))) as served:
        said = '/tool look_up {"key": "a"} /next /tool look_up {"key": "b"} /next /tool look_up {"key": "c"}'
        run = await served.client.run(said, budgets=Budgets(max_tool_calls=2))
        events = await events_of(run)
        messages = (await run.get()).messages

    assert len(only(events, "tool_started")) == 2
    assert "RUN_BUDGET" in str(only(events, "run_failed")[0].error)
    check_pairs(messages)


async def test_a_run_past_its_deadline_times_out_in_the_middle_of_a_model_call(stored: Served) -> None:  # C048 C095
    run = await stored.client.run("/stall", timeout_seconds=0.2)
    with pytest.raises(RunTimedOutError) as caught:
        await asyncio.wait_for(run.result(), 5)
    events = await events_of(stored.client.watch(run.run_id))

    assert caught.value.reason == "RUN_DEADLINE_EXCEEDED"
    assert kinds(events)[-3:] == ["run_deadline_exceeded", "model_superseded", "run_timed_out"]
    assert (await run.get()).state == RunState.RUN_STATE_TIMED_OUT


async def test_a_run_past_its_deadline_stops_its_tools() -> None:  # C048
    ledger = Ledger()

    async def sleepy() -> str:
        """Sleep."""
        return await ledger.work("sleepy")

    async with daemons.serve(tools=tools((sleepy, PURE))) as served:
        events = await events_of(await served.client.run("/tool sleepy {}", timeout_seconds=0.2))

    assert kinds(events)[-1] == "run_timed_out"
    assert ledger.stopped == ["sleepy"]


async def test_a_reply_cut_by_length_is_continued_and_then_completes_with_that_reason(served: Served) -> None:  # C051
    run = await served.client.run("/say piece /finish length /repeat")
    output = await run.result()

    assert output.finish_reason == FinishReason.FINISH_REASON_LENGTH
    assert output.text == "piece" * 4
    assert (await run.get()).steps == 4


async def test_a_reply_that_is_whole_after_one_continuation_completes_with_stop(served: Served) -> None:  # C051
    output = await (await served.client.run("/say one and /finish length /next /say two")).result()

    assert output.finish_reason == FinishReason.FINISH_REASON_STOP
    assert output.text == "one andtwo"


FAILURES = [
    "/fail REQUEST_INVALID",
    "/fail CREDENTIALS_REJECTED",
    "/garbage look_up /repeat",
    '/tool nowhere {"a": 1} /repeat',
    '/tool look_up {"key": 1} /repeat',
    '/tool look_up {"key": "a"} /repeat',
    "/cut 2",
    "/say x /next /say y",
    "/fail UNAVAILABLE 1 /say late",
    "/fail CONTEXT_TOO_LONG",
]


@pytest.mark.parametrize("said", FAILURES)
async def test_whatever_goes_wrong_there_is_exactly_one_end_and_it_is_last(said: str) -> None:  # C049 C050
    async with daemons.serve(tools=tools((look_up, PURE)), retries=RoutePolicy((), base_seconds=0.01)) as served:
        run = await served.client.run(said)
        events = await events_of(run)
        got = await run.get()
        follow_up = await served.client.run("/dump", session_id=got.session_id)
        next_events = await events_of(follow_up)

    assert kinds(next_events)[-1] == ("run_failed" if "/repeat" in said else "run_completed")
    ends = [kind for kind in kinds(events) if kind in TERMINAL]
    assert ends == kinds(events)[-1:]
    assert got.state in (RunState.RUN_STATE_COMPLETED, RunState.RUN_STATE_FAILED)
    check_pairs(got.messages)


async def test_a_full_log_ends_the_run(served: Served) -> None:
    await put_agent(served, Agent(id="brief", limits=Limits(max_events=12, max_length_recoveries=100, max_steps=100)))
    events: list[Event] = await events_of(await served.client.run("/say x /finish length /repeat", agent_id="brief"))

    assert "RUN_HISTORY_LIMIT" in str(only(events, "run_failed")[0].error)
    assert len(events) <= 16


async def test_the_time_of_an_agent_binds_when_the_request_asks_for_more(served: Served) -> None:  # C095
    await put_agent(served, Agent(id="quick", limits=Limits(timeout=duration(0.2))))
    run = await served.client.run("/stall", agent_id="quick", timeout_seconds=60)
    with pytest.raises(RunTimedOutError):
        await asyncio.wait_for(run.result(), 5)


async def test_a_stream_that_falls_silent_ends_the_attempt_and_the_next_one_answers() -> None:  # C022
    async with daemons.serve(model_timeouts=ProviderTimeouts(first_byte_seconds=0.2, stall_seconds=0.2)) as served:
        events = await events_of(await served.client.run("/say once /stall 1 /say more"))

    (failed,) = only(events, "model_failed")
    assert failed.reason == "PROVIDER_TIMEOUT"
    assert kinds(events)[-1] == "run_completed"
    assert [each.attempt for each in only(events, "model_requested")] == [1, 2]
