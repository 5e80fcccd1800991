"""Opens the channel to a daemon and gathers the generated stubs on it.

Above: `client`. Below: grpc.aio. Retries of grpc are off: each attempt is ours, so that it can be counted and resumed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from behest.security import check_token
from behest.tracing import TracedChannel
from behest.v1 import (
    agent_service_pb2_grpc,
    approval_service_pb2_grpc,
    artifact_service_pb2_grpc,
    chat_service_pb2_grpc,
    context_service_pb2_grpc,
    daemon_service_pb2_grpc,
    embedding_service_pb2_grpc,
    event_service_pb2_grpc,
    model_service_pb2_grpc,
    reasoning_service_pb2_grpc,
    registry_service_pb2_grpc,
    run_service_pb2_grpc,
    session_data_service_pb2_grpc,
    session_service_pb2_grpc,
    tool_call_service_pb2_grpc,
    tool_service_pb2_grpc,
    usage_service_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from behest.security import Tls
    from behest.v1.agent_service_pb2_grpc import AgentServiceAsyncStub
    from behest.v1.approval_service_pb2_grpc import ApprovalServiceAsyncStub
    from behest.v1.artifact_service_pb2_grpc import ArtifactServiceAsyncStub
    from behest.v1.chat_service_pb2_grpc import ChatServiceAsyncStub
    from behest.v1.context_service_pb2_grpc import ContextServiceAsyncStub
    from behest.v1.daemon_service_pb2_grpc import DaemonServiceAsyncStub
    from behest.v1.embedding_service_pb2_grpc import EmbeddingServiceAsyncStub
    from behest.v1.event_service_pb2_grpc import EventServiceAsyncStub
    from behest.v1.model_service_pb2_grpc import ModelServiceAsyncStub
    from behest.v1.reasoning_service_pb2_grpc import ReasoningServiceAsyncStub
    from behest.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub
    from behest.v1.run_service_pb2_grpc import RunServiceAsyncStub
    from behest.v1.session_data_service_pb2_grpc import SessionDataServiceAsyncStub
    from behest.v1.session_service_pb2_grpc import SessionServiceAsyncStub
    from behest.v1.tool_call_service_pb2_grpc import ToolCallServiceAsyncStub
    from behest.v1.tool_service_pb2_grpc import ToolServiceAsyncStub
    from behest.v1.usage_service_pb2_grpc import UsageServiceAsyncStub

_HAS_TRACES = find_spec("opentelemetry") is not None
"""Whether this program could make traces."""
DEFAULT_ADDRESS = "127.0.0.1:7717"
OPTIONS: tuple[tuple[str, int], ...] = (
    # The default of 4 MiB is less than one frame of a watch may hold.
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    # What GetServerInfo recommends by default; pings only while a call is open.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # grpc waits up to two minutes between connections; a daemon is back in a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Clients of one process share neither connections nor their backoff.
    ("grpc.use_local_subchannel_pool", 1),
    # A daemon on this machine is never behind the proxy that the environment names.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class Stubs:
    """The generated stubs, for what the client does not wrap. They raise grpc's own errors: see `errors.from_rpc`."""

    agents: AgentServiceAsyncStub
    approvals: ApprovalServiceAsyncStub
    artifacts: ArtifactServiceAsyncStub
    chat: ChatServiceAsyncStub
    context: ContextServiceAsyncStub
    daemon: DaemonServiceAsyncStub
    embeddings: EmbeddingServiceAsyncStub
    events: EventServiceAsyncStub
    models: ModelServiceAsyncStub
    reasoning: ReasoningServiceAsyncStub
    registry: RegistryServiceAsyncStub
    runs: RunServiceAsyncStub
    session_data: SessionDataServiceAsyncStub
    sessions: SessionServiceAsyncStub
    tool_calls: ToolCallServiceAsyncStub
    tools: ToolServiceAsyncStub
    usage: UsageServiceAsyncStub


def default_token() -> str:
    """Return the token that the environment names in BEHEST_TOKEN, empty when it names none."""
    return os.environ.get("BEHEST_TOKEN", "")


def default_address() -> str:
    """Return the address that the environment names in BEHEST_ADDRESS, else the one that daemons have by default."""
    return os.environ.get("BEHEST_ADDRESS") or DEFAULT_ADDRESS


def open_channel(
    address: str,
    *,
    token: str = "",
    tls: Tls | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, int | str]] = (),
) -> grpc.aio.Channel:
    """Open a channel to HOST:PORT or unix:PATH; connecting begins with the first call. Own options win over ours.

    Raises ValueError for a token that would leave this machine in the clear, and OSError for files that are not there.
    """
    check_token(token, address, has_tls=tls is not None or credentials is not None)
    every = [*OPTIONS, *(tls.options() if tls is not None else ()), *options]
    if tls is not None and credentials is None:
        credentials = tls.credentials()
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options=every)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options=every)
    return TracedChannel(channel, token) if token or _HAS_TRACES else channel


def stubs_on(channel: grpc.aio.Channel) -> Stubs:
    """Return all stubs on one channel."""
    return Stubs(
        agents=agent_service_pb2_grpc.AgentServiceStub(channel),
        approvals=approval_service_pb2_grpc.ApprovalServiceStub(channel),
        artifacts=artifact_service_pb2_grpc.ArtifactServiceStub(channel),
        chat=chat_service_pb2_grpc.ChatServiceStub(channel),
        context=context_service_pb2_grpc.ContextServiceStub(channel),
        daemon=daemon_service_pb2_grpc.DaemonServiceStub(channel),
        embeddings=embedding_service_pb2_grpc.EmbeddingServiceStub(channel),
        events=event_service_pb2_grpc.EventServiceStub(channel),
        models=model_service_pb2_grpc.ModelServiceStub(channel),
        reasoning=reasoning_service_pb2_grpc.ReasoningServiceStub(channel),
        registry=registry_service_pb2_grpc.RegistryServiceStub(channel),
        runs=run_service_pb2_grpc.RunServiceStub(channel),
        session_data=session_data_service_pb2_grpc.SessionDataServiceStub(channel),
        sessions=session_service_pb2_grpc.SessionServiceStub(channel),
        tool_calls=tool_call_service_pb2_grpc.ToolCallServiceStub(channel),
        tools=tool_service_pb2_grpc.ToolServiceStub(channel),
        usage=usage_service_pb2_grpc.UsageServiceStub(channel),
    )
