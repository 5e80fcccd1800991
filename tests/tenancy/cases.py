"""Every method of the contract, and how one caller would reach for another's things through it.

One row a method: what it is asked, made of the things that are named. A request with several frames is a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from behest.v1 import agent_service_pb2 as agents
from behest.v1 import approval_service_pb2 as approvals
from behest.v1 import artifact_service_pb2 as artifacts
from behest.v1 import chat_service_pb2 as chat
from behest.v1 import context_service_pb2 as context
from behest.v1 import daemon_service_pb2 as daemon
from behest.v1 import embedding_service_pb2 as embedding
from behest.v1 import event_service_pb2 as events
from behest.v1 import model_service_pb2 as models
from behest.v1 import reasoning_service_pb2 as reasoning
from behest.v1 import registry_service_pb2 as registry
from behest.v1 import run_service_pb2 as runs
from behest.v1 import session_data_service_pb2 as data
from behest.v1 import session_service_pb2 as sessions
from behest.v1 import tool_call_service_pb2 as tool_calls
from behest.v1 import tool_service_pb2 as tools
from behest.v1 import usage_service_pb2 as usage
from behest.v1.agent_pb2 import Agent
from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.graph_pb2 import Graph, GraphNode, StrategyChoice
from behest.v1.message_pb2 import Message as Said
from behest.v1.message_pb2 import Part, Role, TextPart
from behest.v1.model_pb2 import Model, ModelCapabilities
from behest.v1.server_pb2 import Server, ServerConnection
from behest.v1.session_pb2 import Session
from behest.v1.task_pb2 import Task
from behest.v1.tool_pb2 import Executed, Tool
from tests.tenancy.things import Things, said

Asked = Message | tuple[Message, ...]
Case = Callable[[Things], Sequence[Asked]]


def _orders(it: Things) -> list[Any]:
    """Orders that name everything an order can name, each thing alone."""
    return [
        said("hello", session_id=it.session),
        said("hello", agent_id=it.agent),
        said("hello", model=it.model),
        said("hello", graph_id=it.graph),
        said("hello", tools=[it.tool]),
        said(f"/tool {it.tool} /next /say done"),
        said("hello", run_id=it.run),
    ]


def _create(it: Things) -> list[Asked]:
    repeat = runs.CreateRunRequest(spec=said("hello"), request_id=it.request_id)
    return [*(runs.CreateRunRequest(spec=spec) for spec in _orders(it)), repeat, repeat]


def _stream(it: Things) -> list[Asked]:
    named = [said("hello", session_id=it.session), said("hello", agent_id=it.agent), said("hello", model=it.model)]
    return [
        *(runs.StreamRunRequest(spec=spec) for spec in named),
        runs.StreamRunRequest(spec=said("hello", run_id=it.asking_run)),
        runs.StreamRunRequest(spec=said("hello"), request_id=f"{it.request_id}-2"),
    ]


def _fork(it: Things) -> list[Asked]:
    return [
        runs.ForkRunRequest(source_run_id=it.run, spec=said("hello")),
        runs.ForkRunRequest(source_run_id=it.run, sequence=3, spec=said("hello"), request_id=it.request_id),
        runs.ForkRunRequest(source_run_id=it.asking_run, spec=said("hello", session_id=it.session)),
    ]


def _chats(it: Things) -> list[chat.Chat]:
    message = Said(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])
    return [chat.Chat(model=it.model, messages=[message]), chat.Chat(messages=[message], run_id=it.run)]


def _approvals(it: Things) -> list[Asked]:
    approved = ApprovalDecision.APPROVAL_DECISION_APPROVED
    return [
        approvals.DecideApprovalRequest(call_id=it.approval, decision=approved, args_hash=it.args_hash),
        approvals.DecideApprovalRequest(call_id=it.tool_call, decision=approved, args_hash=it.args_hash),
    ]


def _sessions(it: Things) -> list[Asked]:
    return [
        sessions.CreateSessionRequest(session=Session(id=it.session, title="mine")),
        sessions.CreateSessionRequest(session=Session(agent_id=it.agent)),
        sessions.CreateSessionRequest(session=Session(title="mine"), request_id=it.request_id + "-3"),
    ]


def _session_fork(it: Things) -> list[Asked]:
    return [
        sessions.ForkSessionRequest(source_session_id=it.asking_run),
        sessions.ForkSessionRequest(source_session_id=it.server, upto_message_id=it.message),
    ]


def _agents(it: Things) -> list[Asked]:
    return [
        agents.CreateAgentRequest(agent=Agent(id="own", model=it.model)),
        agents.CreateAgentRequest(agent=Agent(id="other", sub_agents=[it.agent])),
        agents.CreateAgentRequest(agent=Agent(id="third", graph_id=it.graph)),
        agents.CreateAgentRequest(agent=Agent(id=it.agent), request_id=it.agent),
    ]


def _agent_updates(it: Things) -> list[Asked]:
    """The agent of that name is the caller's own by now: it was free."""
    mask = FieldMask(paths=["model"])
    return [
        agents.UpdateAgentRequest(agent=Agent(id=it.agent, model=it.model), update_mask=mask),
        agents.UpdateAgentRequest(agent=Agent(id=it.tool), update_mask=mask),
    ]


def _graph(graph_id: str) -> Graph:
    return Graph(id=graph_id, nodes=[GraphNode(id="say", operator="answer")])


def _graph_creations(it: Things) -> list[Asked]:
    """The id of another's graph is free, and so is what another called a request."""
    own = reasoning.CreateGraphRequest(graph=_graph("own"), request_id=it.request_id + "-4")
    return [own, own, reasoning.CreateGraphRequest(graph=_graph(it.graph))]


def _graph_updates(it: Things) -> list[Asked]:
    """The graph of that name is the caller's own by now: it was free."""
    return [
        reasoning.UpdateGraphRequest(graph=_graph(it.graph), expected_version=2),
        reasoning.UpdateGraphRequest(graph=_graph(it.tool)),
    ]


def _servers(it: Things) -> list[Asked]:
    attached = ServerConnection.SERVER_CONNECTION_ATTACHED
    return [
        registry.RegisterServerRequest(server=Server(name=it.server_name, connection=attached)),
        registry.RegisterServerRequest(server=Server(name=it.server_name, connection=attached), replace=True),
    ]


def _attach(it: Things) -> list[Asked]:
    """The names of another's server, tool and model are free."""
    offered = Tool(name=it.tool, input_schema_json='{"type": "object"}')
    model = Model(id=it.model.partition("/")[2], capabilities=ModelCapabilities(chat=True))
    hello = registry.AttachHello(server_name=it.server_name, tools=[offered], models=[model])
    return [(registry.AttachServerRequest(hello=hello),)]


def _calls(it: Things) -> list[Asked]:
    arguments = '{"what": "mine"}'
    return [
        tools.CallToolRequest(tool_name=it.tool, arguments_json="{}", idempotency_key="own", attempt=1),
        tools.CallToolRequest(tool_name="look", arguments_json=arguments, idempotency_key=it.call_key, attempt=1),
        tools.CallToolRequest(
            tool_name="look",
            arguments_json=arguments,
            idempotency_key="own-2",
            attempt=1,
            run_id=it.run,
            session_id=it.session,
            call_id=it.tool_call,
        ),
    ]


def _artifacts(it: Things) -> list[Asked]:
    def frames(**header: Any) -> tuple[Message, ...]:
        made = artifacts.WriteArtifactHeader(media_type="text/plain", **header)
        chunk = artifacts.WriteArtifactRequest(chunk=b"mine")
        return artifacts.WriteArtifactRequest(header=made), chunk

    return [
        frames(name="a", session_id=it.artifact),
        frames(name="b", request_id=it.artifact[:16]),
        frames(name="c", sha256=it.sha256),
        (artifacts.WriteArtifactRequest(header=artifacts.WriteArtifactHeader(name="d", sha256=it.sha256)),),
    ]


_EACH = ("run_id", "session_id", "agent_id")
CASES: Mapping[str, Case] = {
    # Listing first, while nothing is there that the caller has made itself.
    "RunService/ListRuns": lambda it: [
        runs.ListRunsRequest(),
        runs.ListRunsRequest(page_size=1, page_token=it.page_token),
        runs.ListRunsRequest(session_id=it.session),
        runs.ListRunsRequest(agent_id=it.agent),
    ],
    "RunService/GetRun": lambda it: [
        runs.GetRunRequest(run_id=it.run),
        runs.GetRunRequest(run_id=it.run, at_sequence=2),
        runs.GetRunRequest(run_id=it.asking_run),
    ],
    "RunService/WatchRun": lambda it: [
        runs.WatchRunRequest(run_id=it.run),
        runs.WatchRunRequest(run_id=it.run, after_sequence=3),
        runs.WatchRunRequest(run_id=it.asking_run, after_sequence=1_000),
    ],
    "RunService/ExplainRun": lambda it: [
        runs.ExplainRunRequest(run_id=it.run),
        runs.ExplainRunRequest(run_id=it.asking_run),
    ],
    "RunService/CancelRun": lambda it: [
        runs.CancelRunRequest(run_id=it.run),
        runs.CancelRunRequest(run_id=it.asking_run),
    ],
    "RunService/SendInput": lambda it: [
        runs.SendInputRequest(run_id=name, input=said("hello").input, request_id=it.request_id)
        for name in (it.run, it.asking_run)
    ],
    "RunService/DeleteRun": lambda it: [
        runs.DeleteRunRequest(run_id=it.run),
        runs.DeleteRunRequest(run_id=it.asking_run),
    ],
    "RunService/ForkRun": _fork,
    "EventService/WatchEvents": lambda it: [
        events.WatchEventsRequest(),
        events.WatchEventsRequest(after_cursor=it.cursor),
        events.WatchEventsRequest(session_ids=[it.session]),
        events.WatchEventsRequest(agent_ids=[it.agent]),
    ],
    "ApprovalService/ListApprovals": lambda it: [
        approvals.ListApprovalsRequest(),
        approvals.ListApprovalsRequest(page_token=it.page_token),
        *(approvals.ListApprovalsRequest(**{name: value}) for name, value in zip(_EACH, _three(it), strict=True)),
    ],
    "ApprovalService/GetApproval": lambda it: [approvals.GetApprovalRequest(call_id=it.approval)],
    "ApprovalService/DecideApproval": _approvals,
    "ToolCallService/ListToolCalls": lambda it: [
        tool_calls.ListToolCallsRequest(),
        tool_calls.ListToolCallsRequest(page_token=it.page_token),
        tool_calls.ListToolCallsRequest(session_id=it.session),
        tool_calls.ListToolCallsRequest(run_id=it.run),
        tool_calls.ListToolCallsRequest(message_id=it.message),
    ],
    "ToolCallService/GetToolCall": lambda it: [
        tool_calls.GetToolCallRequest(call_id=it.tool_call),
        tool_calls.GetToolCallRequest(call_id=it.approval),
    ],
    "ToolCallService/ResolveToolCall": lambda it: [
        tool_calls.ResolveToolCallRequest(call_id=it.tool_call, executed=Executed.EXECUTED_NO, reason="mine"),
        tool_calls.ResolveToolCallRequest(call_id=it.approval, executed=Executed.EXECUTED_NO, reason="mine"),
    ],
    "SessionService/ListSessions": lambda it: [
        sessions.ListSessionsRequest(include_hidden=True, include_archived=True),
        sessions.ListSessionsRequest(page_token=it.page_token),
    ],
    "SessionService/GetSession": lambda it: [sessions.GetSessionRequest(session_id=it.session)],
    "SessionService/ListMessages": lambda it: [
        sessions.ListMessagesRequest(session_id=it.session),
        sessions.ListMessagesRequest(session_id=it.session, page_token=it.page_token),
    ],
    "SessionService/CompactSession": lambda it: [sessions.CompactSessionRequest(session_id=it.session)],
    "SessionService/UpdateSession": lambda it: [
        sessions.UpdateSessionRequest(
            session=Session(id=it.session, title="mine"), update_mask=FieldMask(paths=["title"])
        )
    ],
    "SessionService/ExportSession": lambda it: [sessions.ExportSessionRequest(session_id=it.session)],
    "SessionService/ImportSession": lambda it: [
        (sessions.ImportSessionRequest(request_id=it.request_id, chunk=b"mine"),)
    ],
    "SessionService/ForkSession": lambda it: [
        sessions.ForkSessionRequest(source_session_id=it.session),
        sessions.ForkSessionRequest(source_session_id=it.session, upto_message_id=it.message),
        *_session_fork(it),
    ],
    "SessionService/DeleteSession": lambda it: [sessions.DeleteSessionRequest(session_id=it.session)],
    "SessionService/CreateSession": _sessions,
    "SessionDataService/GetSessionData": lambda it: [
        data.GetSessionDataRequest(session_id=it.server, key=it.data_key),
        data.GetSessionDataRequest(session_id=it.session, key=it.data_key),
    ],
    "SessionDataService/ListSessionData": lambda it: [data.ListSessionDataRequest(session_id=it.session)],
    "SessionDataService/SetSessionData": lambda it: [
        data.SetSessionDataRequest(session_id=it.run, key=it.data_key, value_json="1"),
        data.SetSessionDataRequest(session_id=it.run, key=it.data_key, value_json="1", expected_version=1),
    ],
    "SessionDataService/DeleteSessionData": lambda it: [
        data.DeleteSessionDataRequest(session_id=it.session, key=it.data_key),
        data.DeleteSessionDataRequest(session_id=it.run, key=it.data_key, expected_version=1),
    ],
    "AgentService/ListAgents": lambda it: [
        agents.ListAgentsRequest(include_hidden=True),
        agents.ListAgentsRequest(page_token=it.page_token),
    ],
    "AgentService/GetAgent": lambda it: [
        agents.GetAgentRequest(agent_id=it.agent),
        agents.GetAgentRequest(agent_id=it.agent, version=1),
    ],
    "AgentService/DeleteAgent": lambda it: [agents.DeleteAgentRequest(agent_id=it.agent)],
    "AgentService/CreateAgent": _agents,
    "AgentService/UpdateAgent": _agent_updates,
    "ReasoningService/ListOperators": lambda it: [reasoning.ListOperatorsRequest(page_token=it.page_token)],
    "ReasoningService/ListStrategies": lambda it: [reasoning.ListStrategiesRequest()],
    "ReasoningService/MakeGraph": lambda it: [
        reasoning.MakeGraphRequest(strategy=StrategyChoice(name=name)) for name in ("react", it.graph)
    ],
    "ReasoningService/ListGraphs": lambda it: [
        reasoning.ListGraphsRequest(),
        reasoning.ListGraphsRequest(page_token=it.page_token),
    ],
    "ReasoningService/GetGraph": lambda it: [
        reasoning.GetGraphRequest(graph_id=it.graph),
        reasoning.GetGraphRequest(graph_id=it.graph, version=1),
    ],
    "ReasoningService/DeleteGraph": lambda it: [reasoning.DeleteGraphRequest(graph_id=it.graph)],
    "ReasoningService/CreateGraph": _graph_creations,
    "ReasoningService/UpdateGraph": _graph_updates,
    "ReasoningService/ValidateGraph": lambda it: [
        reasoning.ValidateGraphRequest(graph=_graph(""), agent_id=it.agent),
        reasoning.ValidateGraphRequest(graph=_graph(it.graph), agent_id=it.tool),
    ],
    "ReasoningService/PreviewNode": lambda it: [
        reasoning.PreviewNodeRequest(graph=_graph(""), node="say", task=Task(goal={"description": "mine"})),
        reasoning.PreviewNodeRequest(graph=_graph(""), node=it.graph, task=Task(goal={"description": "mine"})),
    ],
    "ChatService/CompleteChat": lambda it: [chat.CompleteChatRequest(chat=each) for each in _chats(it)],
    "ChatService/StreamChat": lambda it: [chat.StreamChatRequest(chat=each) for each in _chats(it)],
    "EmbeddingService/Embed": lambda it: [
        embedding.EmbedRequest(model=it.model, inputs=["hello"]),
        embedding.EmbedRequest(inputs=["hello"], session_id=it.session),
    ],
    "ContextService/BuildContext": lambda it: [context.BuildContextRequest(spec=spec) for spec in _orders(it)],
    "ContextService/ListContextSources": lambda it: [
        context.ListContextSourcesRequest(),
        context.ListContextSourcesRequest(page_token=it.page_token),
    ],
    "ContextService/ProvideContext": lambda it: [
        context.ProvideContextRequest(source=it.server_name, run_id=it.run, session_id=it.session),
    ],
    "ModelService/ListProviders": lambda it: [
        models.ListProvidersRequest(),
        models.ListProvidersRequest(page_token=it.page_token),
    ],
    "ModelService/ListModels": lambda it: [
        models.ListModelsRequest(),
        models.ListModelsRequest(provider_id=it.server_name),
    ],
    "ModelService/GetModel": lambda it: [models.GetModelRequest(model=it.model)],
    "ToolService/ListTools": lambda it: [
        tools.ListToolsRequest(),
        tools.ListToolsRequest(page_token=it.page_token),
        tools.ListToolsRequest(server_id=it.server),
        tools.ListToolsRequest(name_glob=it.tool),
    ],
    "ToolService/GetTool": lambda it: [tools.GetToolRequest(tool_name=it.tool)],
    "ToolService/GetCallStatus": lambda it: [
        tools.GetCallStatusRequest(idempotency_key=it.call_key, attempt=1),
    ],
    "ToolService/CancelCall": lambda it: [tools.CancelCallRequest(idempotency_key=it.call_key)],
    "ToolService/CallTool": _calls,
    "RegistryService/ListServers": lambda it: [
        registry.ListServersRequest(),
        registry.ListServersRequest(name=it.server_name),
        registry.ListServersRequest(page_token=it.page_token),
    ],
    "RegistryService/GetServer": lambda it: [registry.GetServerRequest(server_id=it.server)],
    "RegistryService/UnregisterServer": lambda it: [registry.UnregisterServerRequest(server_id=it.server)],
    "RegistryService/RegisterServer": _servers,
    "RegistryService/AttachServer": _attach,
    "ArtifactService/ListArtifacts": lambda it: [
        artifacts.ListArtifactsRequest(),
        artifacts.ListArtifactsRequest(page_token=it.page_token),
        artifacts.ListArtifactsRequest(session_id=it.session),
        artifacts.ListArtifactsRequest(run_id=it.run),
    ],
    "ArtifactService/GetArtifact": lambda it: [artifacts.GetArtifactRequest(artifact_id=it.artifact)],
    "ArtifactService/ReadArtifact": lambda it: [
        artifacts.ReadArtifactRequest(artifact_id=it.artifact),
        artifacts.ReadArtifactRequest(artifact_id=it.artifact, offset_bytes=1_000),
    ],
    "ArtifactService/DeleteArtifact": lambda it: [artifacts.DeleteArtifactRequest(artifact_id=it.artifact)],
    "ArtifactService/DeleteArtifacts": lambda it: [artifacts.DeleteArtifactsRequest(session_id=it.session)],
    "ArtifactService/WriteArtifact": _artifacts,
    "UsageService/QueryUsage": lambda it: [
        usage.QueryUsageRequest(session_id=it.session),
        usage.QueryUsageRequest(run_id=it.run),
        usage.QueryUsageRequest(agent_id=it.agent),
        usage.QueryUsageRequest(model=it.model),
        usage.QueryUsageRequest(page_token=it.page_token),
    ],
    # Runs of the caller's own, last: nobody else's may be seen in what they say.
    "RunService/CreateRun": _create,
    "RunService/StreamRun": _stream,
    "DaemonService/GetServerInfo": lambda it: [daemon.GetServerInfoRequest()],
    "DaemonService/GetStatus": lambda it: [daemon.GetStatusRequest()],
    "DaemonService/GetConfig": lambda it: [daemon.GetConfigRequest()],
    "DaemonService/Reload": lambda it: [daemon.ReloadRequest()],
    "DaemonService/Drain": lambda it: [daemon.DrainRequest()],
    "DaemonService/SetPaused": lambda it: [
        daemon.SetPausedRequest(target=daemon.PauseTarget(tool_name=it.tool), paused=True, reason="mine"),
        daemon.SetPausedRequest(target=daemon.PauseTarget(namespace="alpha"), paused=True, reason="mine"),
    ],
}


def _three(it: Things) -> tuple[str, str, str]:
    return it.run, it.session, it.agent
