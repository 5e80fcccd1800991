"""Agents as clients see them, and what they do to runs, through a daemon that lives in the test."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from behest.errors import RunFailedError
from behest.v1 import agent_service_pb2 as pb
from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind, Sampling, ToolChoice, ToolChoiceMode
from behest.v1.definition_pb2 import DoomLoop, Limits, PermissionAction, PermissionRule
from behestd.core.definition import Operator
from behestd.tools.catalog import Catalog
from behestd.tools.function import Functions
from behestd.tools.schema import Validators
from tests.daemons import Served, refused, rejection, serve, writes

INVALID = grpc.StatusCode.INVALID_ARGUMENT
TOO_MUCH = grpc.StatusCode.RESOURCE_EXHAUSTED
ALLOW = Operator(default_permission=PermissionAction.PERMISSION_ACTION_ALLOW)
DENY = PermissionAction.PERMISSION_ACTION_DENY
FULL = Agent(
    id="writer",
    display_name="Writer",
    description="writes",
    instructions="Write.",
    model="scripted/priced",
    fallback_models=["scripted/echo"],
    tools=["files_*"],
    permissions=[PermissionRule(tool="*", action=DENY, arguments={"path": "/*"}, reason="no")],
    limits=Limits(max_steps=2, timeout=Duration(seconds=5), doom_loop=DoomLoop(repeats=2)),
    sampling=Sampling(temperature=0.5, stop=["x"]),
    provider_options_json='{"a": 1}',
    labels={"team": "a"},
)


def tools(validators: Validators) -> Catalog:
    """Two functions, of which agents choose."""

    async def files_read(path: str) -> str:
        """Read a file."""
        return f"content of {path}"

    async def send(to: str) -> str:
        """Send a message."""
        return f"sent to {to}"

    catalog = Catalog(validators)
    functions = Functions(catalog)
    functions.tool(files_read)
    functions.tool(send)
    return catalog


async def ids(served: Served, **filters: Any) -> list[str]:
    """The agents that a list shows."""
    return [agent.id async for agent in served.client.agents.list(pb.ListAgentsRequest(**filters))]


async def default_of(served: Served) -> str:
    """The one agent that is the default."""
    found = [a.id async for a in served.client.agents.list(pb.ListAgentsRequest(include_hidden=True)) if a.is_default]
    assert len(found) == 1
    return found[0]


async def dump(served: Served, **order: Any) -> dict[str, Any]:
    """What a model was told of a run."""
    found: dict[str, Any] = json.loads((await served.client.stream("/dump", **order).result()).text)
    return found


# --- records ---


async def test_an_agent_is_stored_as_it_was_given_as_version_1(stored: Served) -> None:  # C098
    made = await stored.client.agents.create(FULL)
    assert made.version == 1
    assert made.create_time == made.update_time
    expected = Agent()
    expected.CopyFrom(made)
    for field in ("version", "create_time", "update_time"):
        expected.ClearField(field)
    assert expected == FULL
    assert await stored.client.agents.get("writer") == made
    assert (await stored.client.agents.create(Agent())).id


async def test_a_taken_agent_id_is_refused_and_that_of_the_built_in_one_always_is(stored: Served) -> None:  # C098
    await stored.client.agents.create(Agent(id="writer"))
    for name in ("writer", "default"):
        error = await refused(stored.client.agents.create(Agent(id=name)))
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "AGENT_ID_TAKEN")
        assert error.metadata == {"agentId": name}


async def test_output_only_fields_of_a_new_agent_are_ignored(served: Served) -> None:  # C098
    made = await served.client.agents.create(Agent(id="a", version=9, create_time=Timestamp(seconds=1)))
    assert made.version == 1
    assert made.create_time.seconds > 1


async def test_a_repeated_create_gives_the_first_agent_and_another_request_is_refused(stored: Served) -> None:
    stub = stored.client.stubs.agents
    request = pb.CreateAgentRequest(agent=Agent(instructions="a"), request_id="r1")
    answers = await asyncio.gather(*(stub.CreateAgent(request) for _ in range(5)))
    assert len({answer.agent.id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    other = pb.CreateAgentRequest(agent=Agent(instructions="b"), request_id="r1")
    assert (await rejection(stub.CreateAgent(other))).reason == "REQUEST_ID_REUSED"


async def test_each_update_makes_a_version_and_keeps_the_earlier_ones(stored: Served) -> None:  # C098
    agents = stored.client.agents
    first = await agents.create(FULL)
    second = await agents.update(Agent(id="writer", instructions="Write well.", tools=["x"]), ["instructions"])
    assert (second.version, second.instructions, list(second.tools)) == (2, "Write well.", ["files_*"])
    assert second.create_time == first.create_time
    third = await agents.update(Agent(id="writer", limits=Limits(max_steps=7)), ["limits.max_steps", "labels"])
    assert (third.version, third.limits.max_steps, third.limits.timeout.seconds, len(third.labels)) == (3, 7, 5, 0)
    fourth = await agents.update(Agent(id="writer"), ["limits.max_steps", "sampling"])
    assert not fourth.limits.HasField("max_steps")
    assert not fourth.HasField("sampling")
    assert await agents.get("writer", version=1) == first
    assert await agents.get("writer", version=2) == second
    assert await agents.get("writer", version=4) == await agents.get("writer") == fourth
    assert (await refused(agents.get("writer", version=5))).reason == "AGENT_NOT_FOUND"


async def test_an_update_that_changes_nothing_makes_no_version(stored: Served) -> None:  # C098
    made = await stored.client.agents.create(FULL)
    assert await stored.client.agents.update(FULL, ["instructions", "limits", "labels"]) == made


async def test_an_update_at_another_version_is_refused(stored: Served) -> None:  # C098
    agents = stored.client.agents
    await agents.create(Agent(id="a"))
    await agents.update(Agent(id="a", description="x"), ["description"], expected_version=1)
    error = await refused(agents.update(Agent(id="a", description="y"), ["description"], expected_version=1))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "AGENT_VERSION_MISMATCH")
    assert error.metadata == {"version": "2"}
    assert (await refused(agents.update(Agent(id="none"), ["tools"]))).reason == "AGENT_NOT_FOUND"


async def test_updates_at_the_same_time_lose_nothing(stored: Served) -> None:
    agents = stored.client.agents
    await agents.create(Agent(id="a"))
    changes = [Agent(id="a", description="x"), Agent(id="a", instructions="y"), Agent(id="a", display_name="z")]
    fields = ["description", "instructions", "display_name"]
    await asyncio.gather(*(agents.update(agent, [field]) for agent, field in zip(changes, fields, strict=True)))
    after = await agents.get("a")
    assert (after.description, after.instructions, after.display_name, after.version) == ("x", "y", "z", 4)


async def test_agents_are_listed_by_id_in_pages_without_the_hidden_ones(stored: Served) -> None:  # C098 C099
    agents = stored.client.agents
    for name, hidden, team in (("b", False, "x"), ("a", True, "x"), ("z", False, "y")):
        await agents.create(Agent(id=name, hidden=hidden, labels={"team": team}))
    assert await ids(stored) == ["b", "default", "z"]
    assert await ids(stored, page_size=1) == ["b", "default", "z"]
    assert await ids(stored, include_hidden=True, page_size=2) == ["a", "b", "default", "z"]
    assert await ids(stored, labels={"team": "x"}, include_hidden=True) == ["a", "b"]
    assert (await agents.get("a")).hidden
    assert (await stored.client.stream("still there", agent_id="a").result()).text == "still there"


async def test_a_long_list_stays_within_the_message_limit(served: Served) -> None:
    for number in range(16):
        await served.client.agents.create(Agent(id=f"a{number:02}", instructions="x" * 256 * 1024))
    page = await served.client.stubs.agents.ListAgents(pb.ListAgentsRequest(page_size=1000))
    assert 0 < len(page.agents) < 16
    assert len(await ids(served, page_size=1000)) == 17


async def test_a_deleted_agent_is_gone_with_its_versions_and_runs_of_it_go_on(stored: Served) -> None:  # C098
    agents = stored.client.agents
    await agents.create(Agent(id="a"))
    await agents.update(Agent(id="a", description="x"), ["description"])
    run = await stored.client.run("/delay 200 /words 3", agent_id="a")
    await agents.delete("a")
    await agents.delete("a")
    assert (await run.result()).text == "word1 word2 word3"
    assert (await refused(agents.get("a"))).reason == "AGENT_NOT_FOUND"
    assert (await refused(stored.client.run("hello", agent_id="a"))).reason == "AGENT_NOT_FOUND"
    again = await agents.create(Agent(id="a", description="new"))
    assert again.version == 1
    assert (await agents.get("a", version=1)).description == "new"
    assert (await refused(agents.get("a", version=2))).reason == "AGENT_NOT_FOUND"


async def test_deleting_a_session_of_the_same_name_leaves_an_agent_alone(stored: Served) -> None:
    await stored.client.agents.create(Agent(id="same"))
    await stored.client.sessions.delete("same")
    assert (await stored.client.agents.get("same", version=1)).id == "same"


async def test_agents_survive_a_restart(tmp_path: Path) -> None:  # C098
    async with serve("sqlite", tmp_path / "data") as served:
        made = await served.client.agents.create(FULL)
        await served.client.agents.update(Agent(id="writer", is_default=True), ["is_default"])
    async with serve("sqlite", tmp_path / "data") as served:
        assert await served.client.agents.get("writer", version=1) == made
        assert await default_of(served) == "writer"


# --- the default ---


async def test_the_built_in_agent_is_there_and_can_be_changed_but_not_deleted(stored: Served) -> None:  # C098
    agents = stored.client.agents
    first = await agents.get("default")
    assert (first.version, first.is_default, list(first.tools)) == (1, True, ["*"])
    after = await agents.update(Agent(id="default", instructions="Be brief."), ["instructions"], expected_version=1)
    assert (after.version, after.instructions, after.is_default, list(after.tools)) == (2, "Be brief.", True, ["*"])
    assert (await agents.get("default", version=1)).instructions == ""
    await agents.create(Agent(id="other", is_default=True))
    error = await refused(agents.delete("default"))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "AGENT_IN_USE")


async def test_the_default_moves_and_there_is_always_exactly_one(stored: Served) -> None:  # C098
    agents = stored.client.agents
    assert await default_of(stored) == "default"
    await agents.create(Agent(id="a", is_default=True))
    assert await default_of(stored) == "a"
    run = await stored.client.run("hello")
    assert (await run.get()).agent_id == "a"
    await agents.create(Agent(id="b"))
    await agents.update(Agent(id="b", is_default=True), ["is_default"])
    assert await default_of(stored) == "b"
    assert (await agents.get("a")).version == 2
    assert (await refused(agents.delete("b"))).reason == "AGENT_IN_USE"
    error = await refused(agents.update(Agent(id="b"), ["is_default"]))
    assert (error.reason, error.metadata["field"]) == ("REQUEST_INVALID", "agent.is_default")
    await agents.update(Agent(id="default", is_default=True), ["is_default"])
    assert await default_of(stored) == "default"
    await agents.delete("b")


async def test_of_many_that_become_the_default_at_once_one_is_it_in_the_end(stored: Served) -> None:  # C098
    agents = stored.client.agents
    for number in range(6):
        await agents.create(Agent(id=f"a{number}"))
    given = [Agent(id=f"a{number}", is_default=True) for number in range(6)]
    async with asyncio.timeout(20):
        await asyncio.gather(*(agents.update(agent, ["is_default"]) for agent in given))
    assert (await default_of(stored)).startswith("a")


async def test_an_unknown_agent_is_refused(served: Served) -> None:  # C098
    before = writes(served)
    error = await refused(served.client.run("hello", agent_id="nobody"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND")
    assert writes(served) == before


# --- in runs ---


async def test_an_agent_gives_a_run_its_prompt_model_tools_and_sampling() -> None:  # C099
    async with serve(tools=tools, operator=ALLOW) as served:
        plain = await dump(served)
        assert (plain["model"], [m["role"] for m in plain["messages"]]) == ("scripted/echo", ["ROLE_USER"])
        await served.client.agents.create(
            Agent(
                id="reader",
                instructions="Read.",
                model="scripted/priced",
                tools=["files_*"],
                sampling=Sampling(temperature=0.25),
                tool_choice=ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED),
                response_format=ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT),
                provider_options_json='{"a":1}',
            )
        )
        told = await dump(served, agent_id="reader")
        assert told["model"] == "scripted/priced"
        assert [message["role"] for message in told["messages"]] == ["ROLE_SYSTEM", "ROLE_USER"]
        assert "files_read" in json.dumps(told["tools"])
        assert "send" not in json.dumps(told["tools"])
        assert told["sampling"] == {"temperature": 0.25}
        assert told["tool_choice"]["mode"] == ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED
        assert told["response_format"]["kind"] == ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT
        assert told["provider_options_json"] == '{"a":1}'


async def test_an_agent_gives_a_run_its_limits() -> None:  # C099
    async with serve(tools=tools, operator=ALLOW) as served:
        await served.client.agents.create(Agent(id="short", tools=["*"], limits=Limits(max_steps=1)))
        order = '/tool files_read {"path": "a"} /next /say done'
        assert (await served.client.stream(order).result()).text == "done"
        with pytest.raises(RunFailedError) as failed:
            await served.client.stream(order, agent_id="short").result()
        assert failed.value.reason == "RUN_STEP_LIMIT"


async def test_an_agent_gives_a_run_its_permissions() -> None:  # C099 C100
    async with serve(tools=tools, operator=ALLOW) as served:
        rule = PermissionRule(tool="send", action=DENY, reason="not today")
        await served.client.agents.create(Agent(id="quiet", tools=["*"], permissions=[rule]))
        answer = await served.client.stream('/tool send {"to": "all"}', agent_id="quiet").result()
        assert "sent to all" not in answer.text
        assert "sent to all" in (await served.client.stream('/tool send {"to": "all"}').result()).text


async def test_a_run_keeps_the_version_that_it_was_created_with(stored: Served) -> None:  # C098
    agents = stored.client.agents
    await agents.create(Agent(id="a", instructions="one"))
    first = await stored.client.run("hello", agent_id="a")
    await agents.update(Agent(id="a", instructions="two"), ["instructions"])
    second = await stored.client.run("hello", agent_id="a")
    assert [(await run.get()).agent_version for run in (first, second)] == [1, 2]


# --- bad requests ---


def creating(**fields: Any) -> pb.CreateAgentRequest:
    """A request for an agent."""
    return pb.CreateAgentRequest(agent=Agent(**fields))


def updating(*paths: str, agent_id: str = "default", **fields: Any) -> pb.UpdateAgentRequest:
    """A request to change the built-in agent."""
    return pb.UpdateAgentRequest(agent=Agent(id=agent_id), update_mask=FieldMask(paths=paths), **fields)


def limited(**limits: Any) -> pb.CreateAgentRequest:
    """A request for an agent with limits."""
    return creating(limits=Limits(**limits))


JSON_SCHEMA = ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA
BAD: list[tuple[str, Any, str]] = [
    ("CreateAgent", pb.CreateAgentRequest(), "agent"),
    ("CreateAgent", pb.CreateAgentRequest(agent=Agent(), request_id="\n"), "request_id"),
    ("CreateAgent", creating(id="a/b"), "agent.id"),
    ("CreateAgent", creating(display_name="x" * 129), "agent.display_name"),
    ("CreateAgent", creating(model="scripted/none"), "agent.model"),
    ("CreateAgent", creating(model="nobody/none"), "agent.model"),
    ("CreateAgent", creating(fallback_models=["scripted/echo", "none"]), "agent.fallback_models[1]"),
    ("CreateAgent", creating(fallback_models=[""]), "agent.fallback_models[0]"),
    ("CreateAgent", creating(fallback_models=["scripted/echo"] * 9), "agent.fallback_models"),
    ("CreateAgent", creating(tools=["ok", "not ok"]), "agent.tools[1]"),
    ("CreateAgent", creating(tools=[""]), "agent.tools[0]"),
    ("CreateAgent", creating(tools=["t"] * 257), "agent.tools"),
    ("CreateAgent", creating(permissions=[PermissionRule(action=DENY)]), "agent.permissions[0].tool"),
    ("CreateAgent", creating(permissions=[PermissionRule(tool="*")]), "agent.permissions[0].action"),
    ("CreateAgent", creating(permissions=[PermissionRule(tool="*", action=9)]), "agent.permissions[0].action"),  # type: ignore[arg-type]
    ("CreateAgent", limited(max_steps=0), "agent.limits.max_steps"),
    ("CreateAgent", limited(max_tool_calls=-1), "agent.limits.max_tool_calls"),
    ("CreateAgent", limited(max_cost_micro_usd=-1), "agent.limits.max_cost_micro_usd"),
    ("CreateAgent", limited(timeout=Duration()), "agent.limits.timeout"),
    ("CreateAgent", limited(timeout=Duration(seconds=1, nanos=-1)), "agent.limits.timeout"),
    ("CreateAgent", limited(doom_loop=DoomLoop(repeats=1)), "agent.limits.doom_loop.repeats"),
    ("CreateAgent", limited(doom_loop=DoomLoop(warnings=-1)), "agent.limits.doom_loop.warnings"),
    ("CreateAgent", creating(sampling=Sampling(temperature=3)), "agent.sampling.temperature"),
    ("CreateAgent", creating(sampling=Sampling(top_p=float("nan"))), "agent.sampling.top_p"),
    (
        "CreateAgent",
        creating(tool_choice=ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_TOOL)),
        "agent.tool_choice.tool_name",
    ),
    ("CreateAgent", creating(response_format=ResponseFormat(kind=JSON_SCHEMA)), "agent.response_format.schema_json"),
    ("CreateAgent", creating(response_format=ResponseFormat(schema_json="1 2")), "agent.response_format.schema_json"),
    (
        "CreateAgent",
        creating(response_format=ResponseFormat(kind=JSON_SCHEMA, schema_json='{"type": 5}')),
        "agent.response_format.schema_json",
    ),
    ("CreateAgent", creating(provider_options_json="[1]"), "agent.provider_options_json"),
    ("CreateAgent", creating(context_sources=["nothing"]), "agent.context_sources[0]"),
    ("CreateAgent", creating(strategy="nothing"), "agent.strategy"),
    ("CreateAgent", creating(labels={"": "x"}), "agent.labels"),
    ("GetAgent", pb.GetAgentRequest(), "agent_id"),
    ("GetAgent", pb.GetAgentRequest(agent_id="default", version=-1), "version"),
    ("ListAgents", pb.ListAgentsRequest(page_size=-1), "page_size"),
    ("ListAgents", pb.ListAgentsRequest(page_token="x"), "page_token"),
    ("ListAgents", pb.ListAgentsRequest(labels={"": "x"}), "labels"),
    ("UpdateAgent", pb.UpdateAgentRequest(), "agent"),
    ("UpdateAgent", updating("tools", agent_id=""), "agent.id"),
    ("UpdateAgent", updating(), "update_mask"),
    *(
        ("UpdateAgent", updating(path), "update_mask")
        for path in ("id", "version", "create_time", "nothing", "limits.nothing", "tools.x", "labels.a", "limits.")
    ),
    ("UpdateAgent", updating("tools", expected_version=0), "expected_version"),
    ("UpdateAgent", updating("tools", expected_version=-1), "expected_version"),
    ("UpdateAgent", updating("is_default"), "agent.is_default"),
    ("DeleteAgent", pb.DeleteAgentRequest(), "agent_id"),
]
TOO_LARGE = [
    (creating(description="x" * 4097), "agent.description"),
    (creating(instructions="x" * (256 * 1024 + 1)), "agent.instructions"),
    (creating(provider_options_json='{"a":"' + "x" * 65_536 + '"}'), "agent.provider_options_json"),
]


async def test_bad_requests_are_refused_by_field_and_leave_nothing(served: Served) -> None:  # C098
    stub = served.client.stubs.agents
    before = writes(served)
    for method, request, field in BAD:
        found = await rejection(getattr(stub, method)(request))
        assert (found.code, found.field) == (INVALID, field), (method, request)
        assert found.reason in ("REQUEST_INVALID", "REQUEST_PAGE_TOKEN_INVALID")
    for request, field in TOO_LARGE:
        found = await rejection(stub.CreateAgent(request))
        assert (found.code, found.reason, found.field) == (TOO_MUCH, "REQUEST_TOO_LARGE", field)
    assert (await rejection(stub.GetAgent(pb.GetAgentRequest(agent_id="none")))).reason == "AGENT_NOT_FOUND"
    assert writes(served) == before
