"""What a daemon holds for bad requests to be about: runs, sessions, an agent, an artifact, and good requests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message as ProtoMessage
from grpc_health.v1.health_pb2 import HealthCheckRequest

from behest.v1 import (
    agent_service_pb2,
    approval_service_pb2,
    artifact_service_pb2,
    chat_service_pb2,
    context_service_pb2,
    daemon_service_pb2,
    embedding_service_pb2,
    event_service_pb2,
    model_service_pb2,
    reasoning_service_pb2,
    registry_service_pb2,
    run_service_pb2,
    session_data_service_pb2,
    session_service_pb2,
    tool_call_service_pb2,
    tool_service_pb2,
    usage_service_pb2,
)
from behest.v1.agent_pb2 import Agent
from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.run_state_pb2 import CancelMode
from behest.v1.tool_pb2 import Executed
from tests.daemons import Served
from tests.fuzz.wire import Pools

CONTRACTS = (
    agent_service_pb2, approval_service_pb2, artifact_service_pb2, chat_service_pb2,
    context_service_pb2, daemon_service_pb2,
    embedding_service_pb2, event_service_pb2, model_service_pb2, reasoning_service_pb2, registry_service_pb2,
    run_service_pb2,
    session_data_service_pb2, session_service_pb2, tool_call_service_pb2, tool_service_pb2, usage_service_pb2,
)  # fmt: skip
SERVICES: Mapping[str, ServiceDescriptor] = {
    service.full_name: service for module in CONTRACTS for service in module.DESCRIPTOR.services_by_name.values()
}
METHODS: Mapping[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method for service in SERVICES.values() for method in service.methods
}
"""Every method of the contract by full name."""
CALLS = '/tool look_up {"key": "it"} /tool look_up {"key": "that"} /next /say so it is'
LATER = {
    "/behest.v1.ArtifactService/WriteArtifact": b"\x12\x03abc",
    "/behest.v1.SessionService/ImportSession": b"\x12\x03abc",
    "/behest.v1.RegistryService/AttachServer": b"",
}
"""Good requests for methods that take many, from the second on."""
_GRAPH: dict[str, Any] = {
    "nodes": [{"id": "plan", "operator": "plan"}, {"id": "say", "operator": "answer"}],
    "edges": [{"from": "plan", "to": "say", "pipeline": {}}],
}
_numbers = itertools.count()


def look_up(key: str) -> str:
    """Look a thing up."""
    return f"{key} is 42"


class World:
    """What a daemon holds: a good request for each kind of request, texts worth trying by the name of their field."""

    def __init__(self, served: Served, live_run: str, good: Mapping[str, ProtoMessage], pools: Pools) -> None:
        self.served = served
        self.live_run = live_run
        self.good = good
        self.pools = pools

    async def leave(self) -> None:
        """End the run that goes on for ever."""
        request = run_service_pb2.CancelRunRequest(run_id=self.live_run, mode=CancelMode.CANCEL_MODE_FORCE)
        await self.served.client.stubs.runs.CancelRun(request)


async def populate(served: Served) -> World:
    """Make new things of every kind on a daemon."""
    client, number = served.client, next(_numbers)
    session = f"session-{number}"
    stubs = client.stubs
    await stubs.sessions.CreateSession(session_service_pb2.CreateSessionRequest(session={"id": session, "title": "t"}))
    agent = Agent(id=f"agent-{number}", instructions="Be brief.", tools=["look_*"])
    await stubs.agents.CreateAgent(agent_service_pb2.CreateAgentRequest(agent=agent))
    graph = {"id": f"graph-{number}", "nodes": [{"id": "say", "operator": "answer"}]}
    await stubs.reasoning.CreateGraph(reasoning_service_pb2.CreateGraphRequest(graph=graph))
    for ended in ("a", "b"):
        run = client.stream(CALLS, session_id=session, run_id=f"run-{ended}-{number}", agent_id=agent.id)
        async with asyncio.timeout(5):
            await run.result()
    # Not of the default agent, which an earlier request may have made what it likes.
    await client.run("/delay 600000 /say a b c", run_id=f"run-live-{number}", agent_id=agent.id)
    data = session_data_service_pb2.SetSessionDataRequest(session_id=session, key="key", value_json="{}")
    await stubs.session_data.SetSessionData(data)
    header = artifact_service_pb2.WriteArtifactHeader(session_id=session, name="file")
    frames = [artifact_service_pb2.WriteArtifactRequest(header=header), _chunk(b"content")]
    artifact = (await stubs.artifacts.WriteArtifact(iter(frames))).artifact.id
    calls = await stubs.tool_calls.ListToolCalls(tool_call_service_pb2.ListToolCallsRequest(session_id=session))
    messages = await stubs.sessions.ListMessages(session_service_pb2.ListMessagesRequest(session_id=session))
    names = _Names(number, session, agent.id, artifact, calls.tool_calls[0].id, messages.messages[1].id)
    return World(served, f"run-live-{number}", _good(names), _pools(names, await _tokens(served, session)))


@dataclass(frozen=True, slots=True)
class _Names:
    number: int
    session: str
    agent: str
    artifact: str
    call: str
    message: str

    @property
    def graph(self) -> str:
        return f"graph-{self.number}"

    @property
    def runs(self) -> list[str]:
        return [f"run-a-{self.number}", f"run-b-{self.number}", f"run-live-{self.number}"]


def _chunk(content: bytes) -> artifact_service_pb2.WriteArtifactRequest:
    return artifact_service_pb2.WriteArtifactRequest(chunk=content)


async def _tokens(served: Served, session: str) -> list[str]:
    """Tokens that the daemon made for lists, and one that it did not."""
    stubs = served.client.stubs
    runs = await stubs.runs.ListRuns(run_service_pb2.ListRunsRequest(page_size=1))
    messages = await stubs.sessions.ListMessages(
        session_service_pb2.ListMessagesRequest(session_id=session, page_size=1)
    )
    models = await stubs.models.ListModels(model_service_pb2.ListModelsRequest(page_size=1))
    made = [runs.next_page_token, messages.next_page_token, models.next_page_token]
    assert all(made)
    return [*made, made[0][:-1], "A" + made[0][1:], "A" * 100, "!", "=", "A" * 2049]


def _pools(names: _Names, tokens: list[str]) -> dict[str, list[str]]:
    ids = [names.session, names.agent, names.artifact, names.call, names.message, *names.runs, "default", "never-made"]
    models = ["scripted/echo", "scripted/priced", "scripted/none", "none/none", "scripted/", "/"]
    tools = ["look_up", "look_*", "no_such_tool", "look up", "*"]
    prompts = ["hello", CALLS, '/tool look_up {"key": 1} /next /say ok', "/tool none {} /next /say ok", "/dump", "  "]
    return {
        "": ids,
        "session_id": [names.session],
        "session_ids": [names.session],
        "source_session_id": [names.session],
        "run_id": names.runs,
        "source_run_id": names.runs,
        "agent_id": [names.agent],
        "agent_ids": [names.agent],
        "graph_id": [names.graph, "never-made"],
        "operator": ["plan", "act", "answer", "no_such_operator"],
        "strategy": ["react", "no_such_strategy"],
        "artifact_id": [names.artifact],
        "call_id": [names.call],
        "message_id": [names.message],
        "upto_message_id": [names.message],
        "model": models,
        "fallback_models": models,
        "provider_id": ["scripted", "none"],
        "tool_name": tools,
        "tools": tools,
        "tool": tools,
        "name_glob": tools,
        "source": ["history", "never-made", "server/source", "/"],
        "context_sources": ["history", "never-made", "server/source"],
        "key": ["key", "other"],
        "key_prefix": ["k", "other"],
        "request_id": ["request-1", "request-2", "é"],
        "idempotency_key": ["key-1", "key-2", "é"],
        "kinds": ["run_created", "run_completed", "no_kind"],
        "page_token": tokens,
        "after_cursor": tokens,
        "text": prompts,
        "media_type": ["image/png", "text/plain", "/"],
        "uri": ["http://127.0.0.1:1/x", "file:///etc/passwd", "data:,x", "x"],
        "address": ["127.0.0.1:1", "unix:/never/made", "127.0.0.1", ":1", "127.0.0.1:99999", "[::1", "%", "1:1"],
        "token_ref": ["env:NEVER_SET", "file:/never/made", "env:", "x"],
        "ca_ref": ["env:NEVER_SET", "file:/never/made"],
        "certificate_ref": ["env:NEVER_SET"],
        "key_ref": ["env:NEVER_SET"],
    }  # fmt: skip


def _good(names: _Names) -> dict[str, ProtoMessage]:
    """A good request for every method that needs something in it."""
    session, ended = names.session, names.runs[0]
    hello = Part(text=TextPart(text="hello"))
    spec = RunSpec(input=[hello])
    in_session = RunSpec(input=[hello], session_id=session, agent_id=names.agent, model="scripted/echo")
    chat = chat_service_pb2.Chat(model="scripted/echo", messages=[{"role": "ROLE_USER", "parts": [hello]}])
    runs, sessions, data = run_service_pb2, session_service_pb2, session_data_service_pb2
    artifacts, tools, agents = artifact_service_pb2, tool_service_pb2, agent_service_pb2
    reasoning = reasoning_service_pb2
    server = {"name": "server", "connection": "SERVER_CONNECTION_DIALLED", "address": "127.0.0.1:1"}
    offers = {"offers": ["SERVER_OFFER_TOOLS"]}
    requests: list[Any] = [
        runs.CreateRunRequest(spec=in_session),
        runs.StreamRunRequest(spec=spec),
        runs.WatchRunRequest(run_id=ended),
        runs.GetRunRequest(run_id=ended),
        runs.CancelRunRequest(run_id=ended),
        runs.SendInputRequest(run_id=names.runs[2], input=[hello]),
        runs.ForkRunRequest(source_run_id=ended, spec=spec),
        runs.DeleteRunRequest(run_id=ended),
        runs.ExplainRunRequest(run_id=ended),
        sessions.CreateSessionRequest(session={"title": "title", "labels": {"a": "b"}}),
        sessions.GetSessionRequest(session_id=session),
        sessions.UpdateSessionRequest(session={"id": session, "title": "new"}, update_mask={"paths": ["title"]}),
        sessions.DeleteSessionRequest(session_id=session),
        sessions.ForkSessionRequest(source_session_id=session),
        sessions.ListMessagesRequest(session_id=session),
        sessions.CompactSessionRequest(session_id=session),
        sessions.ExportSessionRequest(session_id=session),
        data.GetSessionDataRequest(session_id=session, key="key"),
        data.SetSessionDataRequest(session_id=session, key="key", value_json="{}"),
        data.DeleteSessionDataRequest(session_id=session, key="key"),
        data.ListSessionDataRequest(session_id=session),
        agents.CreateAgentRequest(agent={"display_name": "name", "model": "scripted/echo"}),
        agents.GetAgentRequest(agent_id=names.agent),
        agents.UpdateAgentRequest(agent={"id": names.agent, "hidden": True}, update_mask={"paths": ["hidden"]}),
        agents.DeleteAgentRequest(agent_id=names.agent),
        reasoning.MakeGraphRequest(strategy={"name": "react"}),
        reasoning.CreateGraphRequest(graph=_GRAPH),
        reasoning.GetGraphRequest(graph_id=names.graph),
        reasoning.UpdateGraphRequest(graph=_GRAPH | {"id": names.graph}),
        reasoning.DeleteGraphRequest(graph_id=names.graph),
        reasoning.ValidateGraphRequest(graph=_GRAPH, agent_id=names.agent),
        reasoning.PreviewNodeRequest(graph=_GRAPH, node="plan", task={"goal": {"description": "goal"}}),
        chat_service_pb2.CompleteChatRequest(chat=chat),
        chat_service_pb2.StreamChatRequest(chat=chat),
        context_service_pb2.BuildContextRequest(spec=in_session),
        context_service_pb2.ProvideContextRequest(source="history", run_id=ended),
        embedding_service_pb2.EmbedRequest(model="scripted/echo", inputs=["hello"]),
        model_service_pb2.GetModelRequest(model="scripted/echo"),
        tools.GetToolRequest(tool_name="look_up"),
        tools.CallToolRequest(tool_name="look_up", arguments_json='{"key": "it"}'),
        tools.GetCallStatusRequest(idempotency_key="key-1"),
        tools.CancelCallRequest(idempotency_key="key-1"),
        tool_call_service_pb2.GetToolCallRequest(call_id=names.call),
        tool_call_service_pb2.ResolveToolCallRequest(call_id=names.call, executed=Executed.EXECUTED_YES),
        registry_service_pb2.RegisterServerRequest(server=server | offers, replace=True),
        registry_service_pb2.GetServerRequest(server_id="server"),
        registry_service_pb2.UnregisterServerRequest(server_id="server"),
        artifacts.WriteArtifactRequest(header={"session_id": session, "name": "file"}),
        artifacts.ReadArtifactRequest(artifact_id=names.artifact),
        artifacts.GetArtifactRequest(artifact_id=names.artifact),
        artifacts.DeleteArtifactRequest(artifact_id=names.artifact),
        artifacts.DeleteArtifactsRequest(session_id=session),
        approval_service_pb2.DecideApprovalRequest(call_id=names.call, decision="APPROVAL_DECISION_DENIED"),
        approval_service_pb2.GetApprovalRequest(call_id=names.call),
        daemon_service_pb2.DrainRequest(),
    ]
    return {request.DESCRIPTOR.full_name: request for request in requests}


async def serves(served: Served) -> bool:
    """Tell whether a daemon still answers, within 5 s."""
    try:
        async with asyncio.timeout(5):
            info = await served.client.stubs.daemon.GetServerInfo(daemon_service_pb2.GetServerInfoRequest())
    except (grpc.aio.AioRpcError, TimeoutError):
        return False
    return bool(info.version)


async def services_of(channel: grpc.aio.Channel) -> frozenset[str]:
    """The services of the contract that a daemon has, as its health says."""
    found = set()
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    for name in SERVICES:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await check(HealthCheckRequest(service=name).SerializeToString(), timeout=5)
            found.add(name)
    return frozenset(found)
