"""All handlers of the contract by full method name: the one place that knows which services this daemon serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from behestd.runtime.admission import Admission
from behestd.runtime.agents import Agents
from behestd.runtime.approvals import Approvals
from behestd.runtime.artifacts import Artifacts
from behestd.runtime.context import Contexts
from behestd.runtime.direct_calls import DirectCalls
from behestd.runtime.house import House
from behestd.runtime.orders import Orders
from behestd.runtime.passthrough import Passthrough
from behestd.runtime.registry import Registry
from behestd.runtime.supervisor import Supervisor
from behestd.service.agents import AgentDefinitions
from behestd.service.approvals import ApprovalRequests
from behestd.service.artifacts import ArtifactFiles
from behestd.service.chat import Chats
from behestd.service.compaction import SessionCompaction
from behestd.service.configuration import ConfigurationInForce
from behestd.service.context import ContextPreviews
from behestd.service.daemon_info import Controls, DaemonInfo
from behestd.service.embeddings import Embeddings
from behestd.service.events import Events
from behestd.service.methods import Handler
from behestd.service.models import Models
from behestd.service.pauses import PauseSwitch
from behestd.service.reasoning import Reasoning
from behestd.service.registry import Servers
from behestd.service.runs import Runs
from behestd.service.session_data import SessionData
from behestd.service.session_files import SessionFiles
from behestd.service.sessions import Sessions
from behestd.service.settings import Settings
from behestd.service.tool_calls import ToolCalls
from behestd.service.tools import Tools
from behestd.service.usage import UsageSums
from behestd.service.watch import Watches


@dataclass(frozen=True, slots=True)
class Parts:
    """What the services are made of."""

    house: House
    supervisor: Supervisor
    orders: Orders
    agents: Agents
    artifacts: Artifacts
    approvals: Approvals
    admission: Admission
    watches: Watches
    edge: Settings
    registry: Registry
    calls: DirectCalls
    passthrough: Passthrough
    contexts: Contexts
    controls: Controls


def handlers(parts: Parts) -> Mapping[str, Handler]:
    """The handlers of every service, by full method name."""
    services = (
        AgentDefinitions(parts.house, parts.agents),
        ApprovalRequests(parts.approvals),
        ArtifactFiles(parts.house, parts.artifacts),
        Chats(parts.passthrough),
        ContextPreviews(parts.house, parts.orders, parts.contexts, parts.admission, parts.edge),
        ConfigurationInForce(parts.controls.reloading),
        DaemonInfo(parts.house, parts.supervisor, parts.calls, parts.edge, parts.controls),
        Embeddings(parts.passthrough, parts.edge),
        Events(parts.house.log, parts.watches),
        Models(parts.house),
        PauseSwitch(parts.house, parts.supervisor),
        Reasoning(parts.house, parts.orders),
        Runs(parts.house, parts.supervisor, parts.orders, parts.admission, parts.watches),
        Servers(parts.house, parts.registry, parts.edge),
        SessionCompaction(parts.house, parts.agents),
        SessionData(parts.house),
        SessionFiles(parts.house, parts.artifacts),
        Sessions(parts.house, parts.supervisor, parts.agents, parts.artifacts),
        ToolCalls(parts.house.log.store, parts.supervisor),
        Tools(parts.house, parts.calls, parts.edge),
        UsageSums(parts.house),
    )
    return {name: handler for service in services for name, handler in service.handlers().items()}
