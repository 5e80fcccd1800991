"""Runs that call tools inside the daemon."""

from __future__ import annotations

import asyncio
import json

import pytest

from behest.v1.agent_pb2 import Agent
from behest.v1.definition_pb2 import DoomLoop, DoomLoopAction, Limits
from behest.v1.message_pb2 import Role
from behest.v1.run_state_pb2 import RunState
from behest.v1.tool_pb2 import Executed, SideEffect, ToolErrorPolicy, ToolPolicy, ToolTimeouts
from behestd.core.times import duration
from behestd.tools.function import Context
from tests import daemons
from tests.runs.scenes import (
    NON_IDEMPOTENT,
    OPEN,
    PURE,
    Ledger,
    check_pairs,
    events_of,
    kinds,
    only,
    put_agent,
    text_of,
    tools,
    updates_of,
)


def look_up(key: str) -> str:
    """Look a thing up."""
    return f"{key} is 42"


async def test_a_call_its_tool_and_the_answer_take_two_steps_and_match() -> None:  # C045 C023
    async with daemons.serve(tools=tools((look_up, PURE))) as served:
        run = await served.client.run('/tool look_up {"key": "it"} /next /say so it is 42')
        events = await events_of(run)
        got = await run.get()

    assert kinds(events)[3:] == [
        "context_built",
        "model_requested",
        "model_completed",
        "tool_started",
        "tool_completed",
        "context_built",
        "model_requested",
        "model_completed",
        "run_completed",
    ]
    assert got.steps == 2
    assert got.tool_calls == 1
    assert got.output.text == "so it is 42"
    check_pairs(got.messages)
    assert [message.role for message in got.messages] == [
        Role.ROLE_USER,
        Role.ROLE_ASSISTANT,
        Role.ROLE_TOOL,
        Role.ROLE_ASSISTANT,
    ]
    assert got.messages[2].parts[0].tool_result.parts[0].text.text == "it is 42"


async def test_a_tool_turn_costs_two_commits_more() -> None:
    async with daemons.serve(tools=tools((look_up, PURE))) as served:
        await (await served.client.run("warm")).result()
        before = served.daemon.log.statistics().batches
        await (await served.client.run('/tool look_up {"key": "it"} /next /say done')).result()
        assert served.daemon.log.statistics().batches - before <= 5


async def test_calls_are_executed_though_the_model_says_stop() -> None:  # C052
    async with daemons.serve(tools=tools((look_up, PURE))) as served:
        output = await (await served.client.run('/tool look_up {"key": "it"} /finish stop')).result()

    assert output.text == "look_up: it is 42"


async def test_results_keep_the_order_of_the_calls_whatever_order_they_come_in() -> None:  # C053 C029
    async def wait(ms: int) -> str:
        """Wait."""
        await asyncio.sleep(ms / 1000)
        return str(ms)

    waits = [8, 2, 6, 0, 4]
    said = " ".join(f'/tool wait {{"ms": {ms}}}' for ms in waits)
    async with daemons.serve(tools=tools((wait, PURE))) as served:
        for _ in range(100):
            run = await served.client.run(said)
            await run.result()
            got = await run.get()
            check_pairs(got.messages)
            results = [part.tool_result.parts[0].text.text for part in got.messages[2].parts]
            assert results == [str(ms) for ms in waits]


async def test_calls_of_a_turn_overlap_up_to_the_limit_and_one_that_is_exclusive_runs_alone() -> None:  # C029
    ledger = Ledger()

    async def shared(n: int) -> str:
        """Work beside others."""
        return await ledger.work(f"shared {n}")

    async def alone() -> str:
        """Work alone."""
        assert ledger.running == 0
        return await ledger.work("alone", wait=False)

    exclusive = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE, exclusive=True)
    said = " ".join(f'/tool shared {{"n": {n}}}' for n in range(6)) + " /tool alone {}"
    async with daemons.serve(tools=tools((shared, PURE), (alone, exclusive))) as served:
        run = await served.client.run(said)
        async with asyncio.timeout(30):
            while ledger.running < 4:
                await asyncio.sleep(0.005)
        ledger.opened.set()
        events = await events_of(run)

    assert ledger.most_at_once == 4
    assert ledger.calls[-1] == "alone"
    assert len(only(events, "tool_completed")) == 7
    assert not any(each.is_error for each in only(events, "tool_completed"))


async def test_slow_tools_of_one_run_do_not_hold_up_another_s() -> None:  # C030
    ledger = Ledger()

    async def slow(n: int) -> str:
        """Work for long."""
        return await ledger.work(f"slow {n}")

    async with daemons.serve(tools=tools((slow, PURE), (look_up, PURE))) as served:
        greedy = await served.client.run(" ".join(f'/tool slow {{"n": {n}}}' for n in range(8)))
        await asyncio.wait_for(ledger.reached.wait(), 5)
        output = await asyncio.wait_for((await served.client.run('/tool look_up {"key": "x"}')).result(), 5)
        assert output.text == "look_up: x is 42"
        assert ledger.running == 4
        ledger.opened.set()
        await greedy.result()


async def test_wrong_arguments_are_an_error_that_names_their_path_and_nothing_is_called() -> None:  # C027 C032
    async with daemons.serve(tools=tools((look_up, PURE))) as served:
        run = await served.client.run('/tool look_up {"key": 7} /next /say sorry')
        events = await events_of(run)

    assert kinds(events).count("tool_started") == 0
    (failed,) = only(events, "tool_failed")
    assert failed.reason == "TOOL_ARGUMENTS_INVALID"
    assert failed.executed == Executed.EXECUTED_NO
    assert json.loads(failed.message)["errors"][0]["path"] == "/key"
    assert kinds(events)[-1] == "run_completed"


async def test_a_sleeping_tool_is_stopped_at_its_own_limit() -> None:  # C028 C032
    ledger = Ledger()

    async def sleepy() -> str:
        """Sleep."""
        return await ledger.work("sleepy")

    policy = ToolPolicy(
        side_effect=SideEffect.SIDE_EFFECT_PURE,
        timeouts=ToolTimeouts(start_to_close=duration(0.2)),
        max_attempts=1,
    )
    async with daemons.serve(tools=tools((sleepy, policy))) as served:
        events = await events_of(await served.client.run("/tool sleepy {} /next /say gave up"))

    (failed,) = only(events, "tool_failed")
    assert failed.reason == "TOOL_TIMEOUT"
    assert 0.2 <= failed.elapsed.ToTimedelta().total_seconds() < 1.0
    assert ledger.stopped == ["sleepy"]
    assert only(events, "run_completed")[0].output.text == "gave up"


@pytest.mark.parametrize("fails", [True, False])
async def test_an_error_of_a_tool_ends_the_run_only_where_the_operator_says_so(fails: bool) -> None:  # C031 C032
    async def broken() -> str:
        """Break."""
        raise ValueError("no such thing")

    on_error = ToolErrorPolicy.TOOL_ERROR_POLICY_REPORT_TO_MODEL
    if fails:
        on_error = ToolErrorPolicy.TOOL_ERROR_POLICY_FAIL_RUN
    policy = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE, on_error=on_error)
    async with daemons.serve(tools=tools((broken, policy))) as served:
        run = await served.client.run("/tool broken {}")
        events = await events_of(run)
        got = await run.get()

    (completed,) = only(events, "tool_completed")
    assert completed.is_error
    if fails:
        assert got.state == RunState.RUN_STATE_FAILED
        assert "TOOL_FAILED" in str(got.error)
    else:
        assert got.state == RunState.RUN_STATE_COMPLETED
        assert "no such thing" in got.output.text
    check_pairs(got.messages)


async def test_progress_of_a_tool_is_shown_while_it_works() -> None:
    async def paint(context: Context) -> str:
        """Paint."""
        context.progress("half", current=1, total=2)
        await asyncio.sleep(0.02)
        return "painted"

    async with daemons.serve(tools=tools((paint, PURE))) as served:
        updates = await updates_of(served.client.stream("/delay 1 /tool paint {}"))

    told = [update for update in updates if getattr(update, "tool_progress", None) and update.tool_progress.text]
    assert [(each.tool_progress.text, each.tool_progress.total) for each in told] == [("half", 2)]


async def test_long_output_is_cut_for_the_model_and_kept_whole_as_an_artifact() -> None:  # C035 C036
    lines = [f"line {number} äöü €" for number in range(100_000)]

    async def read() -> str:
        """Read a long file."""
        return "\n".join(lines)

    async with daemons.serve(tools=tools((read, PURE))) as served:
        run = await served.client.run("/tool read {} /next /say read")
        events = await events_of(run)
        (completed,) = only(events, "tool_completed")
        result = completed.result
        whole = await served.client.artifacts.read(result.artifact_id)

    assert completed.truncated
    text = result.parts[0].text.text
    assert len(text.encode()) <= 51_200 + 512
    assert len(text.splitlines()) <= 2_001
    assert text.startswith("line 0 ")
    assert text.endswith("line 99999 äöü €")
    assert result.artifact_id in text
    assert whole.decode() == "\n".join(lines)


async def test_a_doom_loop_stops_the_run_and_names_the_cycle() -> None:  # C067
    async with daemons.serve(tools=tools((look_up, PURE))) as served:
        run = await served.client.run('/tool look_up {"key": "same"} /repeat')
        events = await events_of(run)
        got = await run.get()

    (detected,) = only(events, "doom_loop_detected")
    assert list(detected.cycle) == ["look_up"]
    assert detected.repeats == 3
    assert "RUN_DOOM_LOOP" in str(got.error)
    assert kinds(events).count("tool_started") == 2
    check_pairs(got.messages)


async def test_a_cycle_of_two_calls_is_a_doom_loop_and_other_arguments_are_not() -> None:  # C068
    turns = ['/tool look_up {"key": "a"}', '/tool look_up {"key": "b"}'] * 3
    others = [f'/tool look_up {{"key": "{number}"}}' for number in range(6)]
    async with daemons.serve(tools=tools((look_up, PURE))) as served:
        looping = await events_of(await served.client.run(" /next ".join(turns)))
        going = await events_of(await served.client.run(" /next ".join([*others, "/say done"])))

    assert list(only(looping, "doom_loop_detected")[0].cycle) == ["look_up", "look_up"]
    assert kinds(looping)[-1] == "run_failed"
    assert not only(going, "doom_loop_detected")
    assert kinds(going)[-1] == "run_completed"


async def test_a_model_can_be_warned_first_and_polling_tools_are_exempt() -> None:  # C067
    async def poll() -> str:
        """Look whether it is there."""
        return "not yet"

    exempt = ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE, doom_loop_exempt=True)
    loop = DoomLoop(action=DoomLoopAction.DOOM_LOOP_ACTION_STOP, warnings=1)
    async with daemons.serve(tools=tools((look_up, PURE), (poll, exempt))) as served:
        await put_agent(served, Agent(id="warned", tools=["*"], limits=Limits(doom_loop=loop, max_steps=8)))
        warned = await served.client.run('/tool look_up {"key": "a"} /repeat', agent_id="warned")
        events = await events_of(warned)
        messages = (await warned.get()).messages
        polling = await events_of(await served.client.run("/tool poll {} /repeat", agent_id="warned"))

    assert [each.stopped for each in only(events, "doom_loop_detected")] == [False, True]
    assert any("Do not repeat them" in text_of(message) for message in messages)
    check_pairs([message for message in messages if "Do not repeat them" not in text_of(message)])
    assert not only(polling, "doom_loop_detected")
    assert "RUN_STEP_LIMIT" in str(only(polling, "run_failed")[0].error)


async def test_a_tool_that_needs_a_word_parks_the_run() -> None:  # C037
    async def pay() -> str:
        """Pay."""
        raise AssertionError("nobody allowed it")

    async with daemons.serve(tools=tools((pay, NON_IDEMPOTENT))) as served:
        run = await served.client.run("/tool pay {}")
        async with asyncio.timeout(30):
            async for event in run.events():
                if event.WhichOneof("payload") == "run_waiting":
                    break
        got = await run.get()
        assert got.state == RunState.RUN_STATE_WAITING
        assert [pending.call.name for pending in got.pending_approvals] == ["pay"]
        obstacles = (await served.client.runs.explain(run.run_id)).obstacles
        assert [obstacle.kind for obstacle in obstacles] == ["approval"]


async def test_two_runs_with_different_tools_never_see_each_other_s() -> None:  # C034
    def other(key: str) -> str:
        """Look elsewhere."""
        return key

    async with daemons.serve(tools=tools((look_up, PURE), (other, PURE)), operator=OPEN) as served:
        await put_agent(served, Agent(id="one", tools=["look_up"]))
        await put_agent(served, Agent(id="two", tools=["other"]))
        first = await served.client.run("/delay 2 /dump", agent_id="one")
        second = await served.client.run("/delay 2 /dump", agent_id="two")
        offered = [json.loads((await run.result()).text)["tools"] for run in (first, second)]
        narrowed = await (await served.client.run("/dump", tools=["other"])).result()
        foreign = await events_of(await served.client.run('/tool other {"key": "x"} /next /say no', agent_id="one"))
        error = await daemons.refused(served.client.run("hi", agent_id="one", tools=["other"]))

    assert ["look_up" in json.dumps(each) for each in offered] == [True, False]
    assert ["other" in json.dumps(each) for each in offered] == [False, True]
    assert "look_up" not in json.dumps(json.loads(narrowed.text)["tools"])
    assert only(foreign, "tool_failed")[0].reason == "TOOL_NOT_FOUND"
    assert error.reason == "TOOL_NOT_FOUND"
