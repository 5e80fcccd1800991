"""The built-in tool `ask_user`: a run asks, waits, and takes the next input for the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from behest.v1.agent_pb2 import Agent
from behest.v1.run_state_pb2 import RunState, WaitReason
from behest.v1.tool_pb2 import SideEffect
from behestd.core.definition import Operator
from behestd.daemon import Daemon
from behestd.tools.catalog import Catalog, ToolNameTaken
from behestd.tools.function import Functions
from behestd.tools.schema import Validators
from tests import daemons
from tests.approvals.scenes import ALLOW, ASK, DENY, asking, events_of, finished, rule, until_kind
from tests.approvals.test_flow import DAY, AheadClock
from tests.daemons import Served, refused, serve
from tests.runs.scenes import PURE, Ledger, check_pairs, kinds, only, put_agent, text_of, tools

CURIOUS = Agent(id="curious", tools=["ask_user", "*"])
QUESTION = '/tool ask_user {"question": "red or blue?", "options": ["red", "blue"]}'


@pytest.fixture(params=["memory", "sqlite"])
async def curious(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """A daemon on each store in turn, with an agent that may ask."""
    async with serve(request.param) as served:
        await put_agent(served, CURIOUS)
        yield served


async def asked(served: Served, said: str = QUESTION) -> Any:
    """A run that waits for its user."""
    run = await served.client.run(said, agent_id="curious")
    await until_kind(run, "run_waiting")
    return run


async def test_a_question_parks_the_run_and_the_next_input_is_its_answer(curious: Served) -> None:
    run = await asked(curious, QUESTION + " /next /say thanks")
    waiting = await run.get()
    assert (waiting.state, waiting.wait.reason) == (RunState.RUN_STATE_WAITING, WaitReason.WAIT_REASON_INPUT)
    (obstacle,) = (await curious.client.runs.explain(run.run_id)).obstacles
    assert obstacle.kind == "input"

    await run.send("blue")
    ended = await finished(curious.client, run.run_id)
    assert (ended.state, ended.output.text) == (RunState.RUN_STATE_COMPLETED, "thanks")
    check_pairs(ended.messages)
    result = ended.messages[2].parts[0].tool_result
    assert (result.name, result.is_error, result.parts[0].text.text) == ("ask_user", False, "blue")
    assert [text_of(message) for message in ended.messages if text_of(message) == "blue"] == []
    events = await events_of(curious.client.watch(run.run_id))
    (started,) = only(events, "tool_started")
    assert started.side_effect == SideEffect.SIDE_EFFECT_PURE
    assert "red or blue?" in started.arguments_json
    assert kinds(events)[-8:-4] == ["run_waiting", "input_received", "run_resumed", "tool_completed"]


async def test_the_same_input_again_answers_nothing_more(curious: Served) -> None:
    run = await asked(curious, f"{QUESTION} {QUESTION} /next /say thanks")
    first = await run.send("blue", request_id="say-1")
    await until_kind(curious.client.watch(run.run_id), "run_waiting", 2)
    assert await run.send("blue", request_id="say-1") == first
    assert (await run.get()).state == RunState.RUN_STATE_WAITING
    await run.send("red", request_id="say-2")
    ended = await finished(curious.client, run.run_id)
    answers = [part.tool_result.parts[0].text.text for part in ended.messages[2].parts]
    assert answers == ["blue", "red"]


async def test_a_question_waits_while_other_tools_work(curious: Served) -> None:
    ledger = Ledger()

    async def work(name: str) -> str:
        """Work."""
        return await ledger.work(name)

    async with serve(tools=tools((work, PURE))) as served:
        await put_agent(served, CURIOUS)
        run = await served.client.run(f'{QUESTION} /tool work {{"name": "it"}} /next /say done', agent_id="curious")
        await until_kind(run, "tool_started", 2)
        await ledger.reached.wait()
        await run.send("blue")
        ledger.opened.set()
        ended = await finished(served.client, run.run_id)
        assert [part.tool_result.parts[0].text.text for part in ended.messages[2].parts] == ["blue", "done it"]
        assert "run_waiting" not in kinds(await events_of(served.client.watch(run.run_id)))


async def test_a_question_outlives_its_daemon(tmp_path: Path) -> None:
    home = tmp_path / "data"
    async with serve("sqlite", home) as served:
        await put_agent(served, CURIOUS)
        run = await asked(served, QUESTION + " /next /say thanks")
    async with serve("sqlite", home) as served:
        assert (await served.client.runs.get(run.run_id)).wait.reason == WaitReason.WAIT_REASON_INPUT
        await served.client.watch(run.run_id).send("blue")
        ended = await finished(served.client, run.run_id)
        assert ended.output.text == "thanks"
        events = await events_of(served.client.watch(run.run_id))
        assert len(only(events, "tool_started")) == 1


async def test_a_question_that_nobody_answers_fails_the_run(tmp_path: Path) -> None:
    home = tmp_path / "data"
    async with serve("sqlite", home) as served:
        await put_agent(served, CURIOUS)
        run = await asked(served)
        plan = served.daemon.plan
    async with Daemon(plan, AheadClock(DAY + 60)) as daemon, daemons.Client(daemon.addresses[0]) as client:
        ended = await finished(client, run.run_id)
        assert ended.state == RunState.RUN_STATE_FAILED
        assert "nobody gave the input" in ended.error.message
        check_pairs(ended.messages)
        assert (await refused(client.watch(run.run_id).send("blue"))).reason == "RUN_ENDING"


async def test_a_run_that_asks_can_be_cancelled(curious: Served) -> None:
    run = await asked(curious)
    await run.cancel()
    ended = await finished(curious.client, run.run_id)
    assert ended.state == RunState.RUN_STATE_CANCELLED
    check_pairs(ended.messages)
    (record,) = [call async for call in curious.client.tool_calls.list()]
    assert record.tool_name == "ask_user"


async def test_an_agent_that_does_not_list_the_tool_cannot_ask(served: Served) -> None:
    await put_agent(served, Agent(id="all", tools=["*"]))
    run = await served.client.run(QUESTION + " /next /say over", agent_id="all")
    ended = await finished(served.client, run.run_id)
    assert ended.state == RunState.RUN_STATE_COMPLETED
    assert ended.messages[2].parts[0].tool_result.is_error


async def test_nobody_else_offers_a_tool_of_that_name_and_nobody_calls_it_without_a_run(served: Served) -> None:
    def ask_user(question: str) -> str:
        """Ask."""
        return question

    with pytest.raises(ToolNameTaken):
        Functions(Catalog(Validators())).tool(ask_user, policy=PURE)
    error = await refused(served.client.tools.call("ask_user", '{"question": "who?"}'))
    assert error.reason == "TOOL_NOT_FOUND"


@pytest.mark.parametrize("action", [ASK, DENY, ALLOW])
async def test_rules_hold_for_questions_too(action: Any) -> None:
    async with serve(operator=Operator([rule(action, "ask_user")])) as served:
        await put_agent(served, CURIOUS)
        said = QUESTION + " /next /say over"
        if action == DENY:
            ended = await finished(served.client, (await served.client.run(said, agent_id="curious")).run_id)
            assert "the rules say so" in ended.messages[2].parts[0].tool_result.parts[0].text.text
            return
        if action == ASK:
            run, (request,) = await asking(served.client, said, agent_id="curious")
            await served.client.approvals.approve(request)
            await until_kind(served.client.watch(run.run_id), "run_waiting", 2)
        else:
            run = await asked(served, said)
        await run.send("blue")
        assert (await finished(served.client, run.run_id)).output.text == "over"
