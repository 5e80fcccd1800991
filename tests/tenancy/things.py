"""Everything of a tenant that a request can name, and the same that nobody has."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import dataclass, replace
from typing import Any

from behest.v1 import agent_service_pb2 as agents
from behest.v1 import approval_service_pb2 as approvals
from behest.v1 import artifact_service_pb2 as artifacts
from behest.v1 import event_service_pb2 as events
from behest.v1 import reasoning_service_pb2 as reasoning
from behest.v1 import registry_service_pb2 as registry
from behest.v1 import run_service_pb2 as runs
from behest.v1 import session_data_service_pb2 as data
from behest.v1 import session_service_pb2 as sessions
from behest.v1 import tool_call_service_pb2 as tool_calls
from behest.v1 import tool_service_pb2 as tools
from behest.v1.agent_pb2 import Agent
from behest.v1.graph_pb2 import Graph, GraphNode
from behest.v1.message_pb2 import Part, TextPart
from behest.v1.model_pb2 import Model, ModelCapabilities
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.session_pb2 import Session
from behest.v1.tool_pb2 import Tool
from tests.tenancy.callers import PATIENCE_SECONDS, Tenant

CANARY = "canary-of-alpha"
"""In every text of the tenant whose things these are."""


@dataclass(frozen=True, slots=True)
class Things:
    """What requests name."""

    run: str
    asking_run: str
    session: str
    agent: str
    graph: str
    artifact: str
    sha256: bytes
    approval: str
    args_hash: bytes
    tool_call: str
    server: str
    server_name: str
    tool: str
    model: str
    message: str
    request_id: str
    call_key: str
    data_key: str
    page_token: str
    cursor: str

    def names(self) -> dict[str, str]:
        """The texts by what they are the name of."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {value.hex() if isinstance(value, bytes) else value: f"<{name}>" for name, value in found.items()}


def unknown(things: Things) -> Things:
    """The same things of nobody: of the same form, and never given out."""

    def other(name: str, value: str | bytes) -> str | bytes:
        if isinstance(value, bytes):
            return secrets.token_bytes(len(value))
        prefix, _, rest = value.partition("_")
        if len(rest) == 32:
            return f"{prefix}_{rest[:12]}{secrets.token_hex(10)}"
        if name in {"page_token", "cursor"}:
            return secrets.token_urlsafe(len(value))[: len(value)]
        return value.replace("alpha", "nobod")

    return replace(things, **{name: other(name, getattr(things, name)) for name in Things.__slots__})


def said(text: str, **fields: Any) -> RunSpec:
    """An order of a text."""
    return RunSpec(input=[Part(text=TextPart(text=text))], **fields)


async def made_by(tenant: Tenant) -> Things:
    """Have a tenant make one of everything."""
    session = await tenant.one(
        "/behest.v1.SessionService/CreateSession",
        sessions.CreateSessionRequest(session=Session(title=CANARY), request_id="session-of-alpha"),
    )
    session_id = session.session.id
    agent = Agent(id="agent-of-alpha", instructions=CANARY, tools=["*"])
    await tenant.one(
        "/behest.v1.AgentService/CreateAgent", agents.CreateAgentRequest(agent=agent, request_id="agent-of-alpha")
    )
    graph = Graph(id="graph-of-alpha", description=CANARY, nodes=[GraphNode(id="say", operator="answer")])
    await tenant.one("/behest.v1.ReasoningService/CreateGraph", reasoning.CreateGraphRequest(graph=graph))
    called = said(f'/tool look {{"what": "{CANARY}"}} /next /say {CANARY}', session_id=session_id, agent_id=agent.id)
    stream = runs.StreamRunRequest(spec=called, request_id="request-of-alpha")
    outcome = await tenant.call("/behest.v1.RunService/StreamRun", stream)
    run_id = outcome.frames[0].events[0].run_id  # type: ignore[attr-defined]  # frames of a watch
    value = data.SetSessionDataRequest(session_id=session_id, key="key-of-alpha", value_json=f'"{CANARY}"')
    await tenant.one("/behest.v1.SessionDataService/SetSessionData", value)
    written = await _artifact(tenant, session_id)
    server = await _server(tenant)
    asked = await _asked(tenant)
    made = await tenant.one("/behest.v1.ToolCallService/ListToolCalls", tool_calls.ListToolCallsRequest(run_id=run_id))
    listed = await tenant.one(
        "/behest.v1.SessionService/ListMessages", sessions.ListMessagesRequest(session_id=session_id)
    )
    await tenant.one(
        "/behest.v1.ToolService/CallTool",
        tools.CallToolRequest(
            tool_name="look", arguments_json=f'{{"what": "{CANARY}"}}', idempotency_key="call-of-alpha", attempt=1
        ),
    )
    await tenant.one("/behest.v1.RunService/StreamRun", runs.StreamRunRequest(spec=said(CANARY)))
    page = await tenant.one("/behest.v1.RunService/ListRuns", runs.ListRunsRequest(page_size=1))
    seen = await tenant.one("/behest.v1.EventService/WatchEvents", events.WatchEventsRequest())
    return Things(
        run=run_id,
        asking_run=asked.run_id,
        session=session_id,
        agent=agent.id,
        graph=graph.id,
        artifact=written.id,
        sha256=written.sha256,
        approval=asked.call_id,
        args_hash=asked.args_hash,
        tool_call=made.tool_calls[0].id,
        server=server.id,
        server_name="server-of-alpha",
        tool="tool_of_alpha",
        model="server-of-alpha/model-of-alpha",
        message=listed.messages[0].id,
        request_id="request-of-alpha",
        call_key="call-of-alpha",
        data_key="key-of-alpha",
        page_token=page.next_page_token,
        cursor=seen.cursor,
    )


async def _artifact(tenant: Tenant, session_id: str) -> Any:
    header = artifacts.WriteArtifactHeader(
        request_id="artifact-of-alpha", session_id=session_id, name=CANARY, media_type="text/plain"
    )
    frames = [
        artifacts.WriteArtifactRequest(header=header),
        artifacts.WriteArtifactRequest(chunk=CANARY.encode()),
    ]
    answer = await tenant.one("/behest.v1.ArtifactService/WriteArtifact", *frames)
    assert answer.artifact.sha256 == hashlib.sha256(CANARY.encode()).digest()
    return answer.artifact


async def _server(tenant: Tenant) -> Any:
    """Attach a server, which goes away at once: what it offers stays for the window."""
    offered = Tool(name="tool_of_alpha", description=CANARY, input_schema_json='{"type": "object"}')
    model = Model(id="model-of-alpha", display_name=CANARY, capabilities=ModelCapabilities(chat=True, streaming=True))
    hello = registry.AttachHello(server_name="server-of-alpha", tools=[offered], models=[model])
    frame = await tenant.one("/behest.v1.RegistryService/AttachServer", registry.AttachServerRequest(hello=hello))
    return frame.welcome.server


async def _asked(tenant: Tenant) -> Any:
    """Begin a run that waits for an approval."""
    order = runs.CreateRunRequest(spec=said(f'/tool pay {{"to": "{CANARY}", "amount": 1}}'))
    created = await tenant.one("/behest.v1.RunService/CreateRun", order)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            request = approvals.ListApprovalsRequest(run_id=created.run.id)
            listed = await tenant.one("/behest.v1.ApprovalService/ListApprovals", request)
            if listed.approvals:
                return listed.approvals[0]
            await asyncio.sleep(0.02)
