"""Agents that call agents: a child run does the work, its answer is the result, what it consumes is counted once."""

from __future__ import annotations

import asyncio
import json

import pytest

from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind
from behest.v1.definition_pb2 import PermissionRule
from behest.v1.delta_pb2 import Delta
from behest.v1.run_state_pb2 import RunState, WaitReason
from behest.v1.session_service_pb2 import ListSessionsRequest
from behest.v1.tool_pb2 import ToolErrorPolicy, ToolPolicy
from behestd.core.definition import Operator
from behestd.tools.catalog import Catalog
from behestd.tools.policy import Policies
from behestd.tools.schema import Validators
from tests import daemons
from tests.approvals.scenes import ALLOW, ASK, DENY
from tests.daemons import refused
from tests.runs.scenes import IDEMPOTENT, OPEN, PURE, check_pairs, kinds, only, tools, until_kind
from tests.subagents.scenes import children_of, ended, order, put_agents

BOSS = Agent(id="boss", sub_agents=["helper"])
HELPER = Agent(id="helper", description="Helps with everything.")
EVERY_SESSION = ListSessionsRequest(include_hidden=True)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_an_agent_is_a_tool_and_its_answer_the_result(store: str) -> None:  # C101
    async with daemons.serve(store) as served:
        await put_agents(served, BOSS, HELPER)
        said = f"{order('helper', '/usage 10 20 /say hello')} /next /usage 3 4 /say done"
        run = await served.client.run(said, agent_id="boss", labels={"team": "red"})
        parent, events = await ended(served.client, run.run_id)

        assert (parent.state, parent.output.text) == (RunState.RUN_STATE_COMPLETED, "done")
        check_pairs(parent.messages)
        result = parent.messages[2].parts[0].tool_result
        assert (result.name, result.is_error, result.parts[0].text.text) == ("agent_helper", False, "hello")
        (started,), (over,) = only(events, "child_run_started"), only(events, "child_run_ended")
        assert started.child_run_id == over.child_run_id
        places = kinds(events)
        assert places.index("child_run_started") == places.index("tool_started") + 1
        assert places.index("tool_completed") == places.index("child_run_ended") + 1

        child = await served.client.runs.get(started.child_run_id)
        assert (child.agent_id, child.state) == ("helper", RunState.RUN_STATE_COMPLETED)
        assert (child.parent.run_id, child.parent.call_id, child.parent.depth) == (run.run_id, started.call_id, 1)
        assert (child.principal, dict(child.labels)) == (parent.principal, {"team": "red"})
        assert (over.usage.input_tokens, over.usage.output_tokens, over.usage.attempts) == (10, 20, 1)
        own = only(events, "model_completed")
        counted = sum(each.usage.output_tokens for each in own) + 20
        assert (parent.usage.output_tokens, parent.usage.attempts) == (counted, 3)


async def test_the_session_of_a_child_run_is_hidden_and_goes_with_that_of_its_parent() -> None:
    async with daemons.serve("sqlite") as served:
        await put_agents(served, BOSS, Agent(id="helper", sub_agents=["helper"]))
        run = await served.client.run(order("helper", order("helper", "hello")), agent_id="boss")
        parent, _ = await ended(served.client, run.run_id)
        (first,) = await children_of(served.client, run.run_id)
        (second,) = await children_of(served.client, first.child_run_id)

        shown = [session.id async for session in served.client.sessions.list()]
        assert shown == [parent.session_id]
        everything = [session async for session in served.client.sessions.list(EVERY_SESSION)]
        assert len(everything) == 3
        assert sum(session.is_hidden for session in everything) == 2

        await served.client.sessions.delete(parent.session_id)
        assert [session async for session in served.client.sessions.list(EVERY_SESSION)] == []
        for run_id in (run.run_id, first.child_run_id, second.child_run_id):
            assert (await refused(served.client.runs.get(run_id))).reason == "RUN_NOT_FOUND"


async def test_the_session_of_a_child_run_stays_while_its_parent_needs_it() -> None:
    async with daemons.serve() as served:
        await put_agents(served, BOSS, HELPER)
        run = await served.client.run(order("helper", "/stall", "hello"), agent_id="boss")
        await until_kind(run, "child_run_ended")
        for child in await children_of(served.client, run.run_id):
            session_id = (await served.client.runs.get(child.child_run_id)).session_id
            assert (await refused(served.client.sessions.delete(session_id))).reason == "SESSION_BUSY"
        await run.cancel()


async def test_an_agent_that_answers_in_json_gives_json() -> None:
    schema = json.dumps({"type": "object", "properties": {"sum": {"type": "integer"}}})
    form = ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA, schema_json=schema)
    async with daemons.serve() as served:
        await put_agents(served, BOSS, Agent(id="helper", response_format=form))
        run = await served.client.run(order("helper", '/json {"sum": 7}') + " /next /dump", agent_id="boss")
        parent, _ = await ended(served.client, run.run_id)
        (part,) = parent.messages[2].parts[0].tool_result.parts
        assert json.loads(part.json.json) == {"sum": 7}


async def test_a_child_run_that_fails_is_an_error_with_its_reason() -> None:
    async with daemons.serve() as served:
        await put_agents(served, BOSS, HELPER)
        run = await served.client.run(f"{order('helper', '/fail CONTEXT_TOO_LONG')} /next /say sorry", agent_id="boss")
        parent, events = await ended(served.client, run.run_id)
        assert (parent.state, parent.output.text) == (RunState.RUN_STATE_COMPLETED, "sorry")
        (failed,), (over,) = only(events, "tool_failed"), only(events, "child_run_ended")
        assert over.state == RunState.RUN_STATE_FAILED
        assert (failed.reason, failed.is_final) == ("PROVIDER_CONTEXT_TOO_LONG", True)
        result = parent.messages[2].parts[0].tool_result
        assert result.is_error
        assert over.child_run_id in result.parts[0].text.text


async def test_an_agent_that_is_gone_is_an_error_and_nothing_begins() -> None:
    async with daemons.serve() as served:
        await put_agents(served, BOSS, HELPER)
        run = await served.client.run("/delay 300 " + order("helper", "hello") + " /next /say ok", agent_id="boss")
        await until_kind(run, "model_requested")
        await served.client.agents.delete("helper")
        parent, events = await ended(served.client, run.run_id)
        assert [event.reason for event in only(events, "tool_failed")] == ["AGENT_NOT_FOUND"]
        (over,) = only(events, "child_run_ended")
        assert (over.state, over.usage.attempts) == (RunState.RUN_STATE_UNSPECIFIED, 0)
        assert parent.state == RunState.RUN_STATE_COMPLETED


async def test_the_operator_may_have_a_failed_child_run_end_its_parent() -> None:
    policy = ToolPolicy(on_error=ToolErrorPolicy.TOOL_ERROR_POLICY_FAIL_RUN)

    def make(validators: Validators) -> Catalog:
        return Catalog(validators, Policies({"agent_*": policy}))

    async with daemons.serve(tools=make) as served:
        await put_agents(served, BOSS, HELPER)
        run = await served.client.run(order("helper", "/fail CONTEXT_TOO_LONG", "/stall"), agent_id="boss")
        parent, events = await ended(served.client, run.run_id)
        assert parent.state == RunState.RUN_STATE_FAILED
        # The other child run has lost its parent, and ends.
        for child in only(events, "child_run_started"):
            run_of_child, _ = await ended(served.client, child.child_run_id)
            assert run_of_child.state in (RunState.RUN_STATE_FAILED, RunState.RUN_STATE_CANCELLED)


async def test_the_name_of_an_agent_is_not_that_of_another_tool() -> None:
    async def agent_helper() -> str:
        """Help."""
        return "no agent"

    async with daemons.serve(tools=tools((agent_helper, PURE))) as served:
        await put_agents(served, BOSS, HELPER, Agent(id="other", sub_agents=["helper"], tools=["*"]))
        assert (await refused(served.client.run("hello", agent_id="other"))).reason == "TOOL_NAME_TAKEN"
        assert (await served.client.run("hello", agent_id="boss")).run_id


async def test_an_agent_that_names_one_that_is_not_there_makes_no_run() -> None:
    async with daemons.serve() as served:
        await served.client.agents.create(Agent(id="boss", sub_agents=["nobody"]))
        assert (await refused(served.client.run("hello", agent_id="boss"))).reason == "AGENT_NOT_FOUND"
        too_long = Agent(id="wordy", sub_agents=["x" * 60])
        assert (await refused(served.client.agents.create(too_long))).violations[0][0] == "agent.sub_agents[0]"


# --- permissions ---


async def test_a_child_run_may_do_nothing_that_its_parent_may_not() -> None:
    async def pay(amount: int) -> str:
        """Pay."""
        return f"paid {amount}"

    rules = [PermissionRule(tool="pay", action=DENY, reason="no payments today")]
    boss = Agent(id="boss", sub_agents=["middle"], permissions=rules)
    middle = Agent(id="middle", sub_agents=["helper"])
    allowed = [PermissionRule(tool="pay", action=ALLOW)]
    helper = Agent(id="helper", tools=["pay"], permissions=allowed)
    async with daemons.serve(tools=tools((pay, IDEMPOTENT)), operator=OPEN) as served:
        await put_agents(served, boss, middle, helper)
        paying = '/tool pay {"amount": 1}'
        run = await served.client.run(order("middle", order("helper", paying)), agent_id="boss")
        await ended(served.client, run.run_id)
        (first,) = await children_of(served.client, run.run_id)
        (second,) = await children_of(served.client, first.child_run_id)
        _, events = await ended(served.client, second.child_run_id)
        (denied,) = only(events, "tool_denied")
        assert denied.rule == "parent:agent:0:pay"

        alone = await served.client.run(paying, agent_id="helper")
        _, events = await ended(served.client, alone.run_id)
        assert only(events, "tool_denied") == []


async def test_a_rule_may_keep_agents_from_being_called() -> None:
    rules = Operator(permissions=[PermissionRule(tool="agent_*", action=DENY)])
    async with daemons.serve(operator=rules) as served:
        await put_agents(served, BOSS, HELPER)
        run = await served.client.run(order("helper", "hello"), agent_id="boss")
        _, events = await ended(served.client, run.run_id)
        assert len(only(events, "tool_denied")) == 1
        assert only(events, "child_run_started") == []


# --- waits ---


async def test_a_child_run_that_waits_is_seen_from_its_parent_whose_time_stands_still() -> None:  # C101
    async def pay(amount: int) -> str:
        """Pay."""
        return f"paid {amount}"

    helper = Agent(id="helper", tools=["pay"], permissions=[PermissionRule(tool="pay", action=ASK)])
    async with daemons.serve("sqlite", tools=tools((pay, IDEMPOTENT)), operator=OPEN) as served:
        await put_agents(served, BOSS, helper)
        said = order("helper", '/tool pay {"amount": 5}') + " /next /say settled"
        run = await served.client.run(said, agent_id="boss")
        waited = await until_kind(run, "run_waiting")
        assert waited[-1].run_waiting.reason == WaitReason.WAIT_REASON_CHILD
        parent = await run.get()
        assert (parent.state, parent.wait.reason) == (RunState.RUN_STATE_WAITING, WaitReason.WAIT_REASON_CHILD)
        assert not parent.HasField("deadline")

        (child,) = only(waited, "child_run_started")
        causes = (await served.client.runs.explain(run.run_id)).obstacles
        assert (causes[0].kind, causes[0].subject) == ("child_run", child.child_run_id)
        assert causes[1].kind == "approval"

        (pending,) = [approval async for approval in served.client.approvals.list()]
        assert pending.run_id == child.child_run_id
        await served.client.approvals.approve(pending)
        parent, events = await ended(served.client, run.run_id)
        assert parent.output.text == "settled"
        assert kinds(events).count("run_waiting") == kinds(events).count("run_resumed")
        assert "paid 5" in str(parent.messages[2].parts[0].tool_result)


async def test_those_who_watch_a_run_are_told_how_its_child_run_is() -> None:
    helper = Agent(id="helper", tools=["ask_user"])
    async with daemons.serve() as served:
        await put_agents(served, BOSS, helper)
        said = order("helper", '/tool ask_user {"question": "why?"} /next /say so') + " /next /say done"
        run = await served.client.run(said, agent_id="boss")
        waited = await until_kind(run, "run_waiting")
        (child,) = only(waited, "child_run_started")
        await served.client.runs.send_input(child.child_run_id, "because")
        parent, _ = await ended(served.client, run.run_id)
        assert parent.output.text == "done"

        shown = await served.client.run(said, agent_id="boss")
        async with asyncio.timeout(30):
            async for update in shown.updates():
                if isinstance(update, Delta) and update.HasField("tool_progress"):
                    break
        assert update.tool_progress.text.endswith("is WAITING")
        await shown.cancel()


async def test_a_parent_whose_child_run_waits_can_be_cancelled() -> None:
    async def pay() -> str:
        """Pay."""
        return "paid"

    helper = Agent(id="helper", tools=["pay"], permissions=[PermissionRule(tool="pay", action=ASK)])
    async with daemons.serve(tools=tools((pay, IDEMPOTENT)), operator=OPEN) as served:
        await put_agents(served, BOSS, helper)
        run = await served.client.run(order("helper", "/tool pay {}"), agent_id="boss")
        waited = await until_kind(run, "run_waiting")
        await run.cancel()
        parent, _ = await ended(served.client, run.run_id)
        assert parent.state == RunState.RUN_STATE_CANCELLED
        (child,) = only(waited, "child_run_started")
        assert (await served.client.runs.get(child.child_run_id)).state == RunState.RUN_STATE_CANCELLED
