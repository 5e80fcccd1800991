"""What each method asks of its caller: a scope, and a share of the daemon. No row, no service.

Above it are the registered methods; below it nothing. One row a method of the contract and of the protocols
beside it (health, reflection); a test fails when an RPC of the contract has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from behestd.errors import Forbidden

if TYPE_CHECKING:
    from collections.abc import Mapping

ADMIN = "admin"
ANY_CALLER = ""
"""The scope of a method that every known caller may call."""


class Load(StrEnum):
    """Classes of work, the first is the last to be refused."""

    CONTROL = "control"
    CONTINUE = "continue"
    WATCH = "watch"
    CREATE = "create"
    LIST = "list"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a principal, the namespace that everything it names is looked up in, and what it may do."""

    principal: str
    namespace: str
    scopes: frozenset[str]

    def has(self, scope: str) -> bool:
        """Tell whether the caller may do what needs the scope. `admin` may all."""
        return scope == ANY_CALLER or scope in self.scopes or ADMIN in self.scopes


LOCAL = Caller("local", "default", frozenset({ADMIN}))
"""The caller in local mode: every listener is local and no credential is configured."""

NOBODY = Caller("", "", frozenset())
"""The caller of a public method, who was not asked for a credential."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The row of a method. `scope` None: public, no credential is asked for."""

    scope: str | None
    loads: tuple[Load, ...]


def authorise(caller: Caller, scope: str) -> None:
    """Let a caller pass that has the scope. Raises Forbidden."""
    if not caller.has(scope):
        raise Forbidden("AUTH_SCOPE_MISSING", f"this needs the scope {scope}", scope=scope)


def _rows(service: str, rows: Mapping[str, tuple[str | None, *tuple[Load, ...]]]) -> dict[str, Rule]:
    return {f"/{service}/{name}": Rule(row[0], row[1:]) for name, row in rows.items()}


RULES: Mapping[str, Rule] = {
    **_rows(
        "behest.v1.RunService",
        {
            "CreateRun": ("runs:create", Load.CREATE),
            "StreamRun": ("runs:create", Load.CREATE, Load.WATCH),
            "WatchRun": ("runs:read", Load.WATCH),
            "GetRun": ("runs:read", Load.LIST),
            "ListRuns": ("runs:read", Load.LIST),
            "CancelRun": ("runs:cancel", Load.CONTROL),
            "SendInput": ("runs:create", Load.CONTINUE),
            "ForkRun": ("runs:create", Load.CREATE),
            "DeleteRun": ("runs:cancel", Load.CONTINUE),
            "ExplainRun": ("runs:read", Load.LIST),
        },
    ),
    **_rows("behest.v1.EventService", {"WatchEvents": ("runs:read", Load.WATCH)}),
    **_rows(
        "behest.v1.ApprovalService",
        {
            "ListApprovals": ("runs:read", Load.LIST),
            "GetApproval": ("runs:read", Load.LIST),
            "DecideApproval": ("runs:approve", Load.CONTROL),
        },
    ),
    **_rows(
        "behest.v1.ToolCallService",
        {
            "ListToolCalls": ("runs:read", Load.LIST),
            "GetToolCall": ("runs:read", Load.LIST),
            "ResolveToolCall": ("runs:approve", Load.CONTROL),
        },
    ),
    **_rows(
        "behest.v1.SessionService",
        {
            "CreateSession": ("sessions:write", Load.CONTINUE),
            "GetSession": ("sessions:read", Load.LIST),
            "ListSessions": ("sessions:read", Load.LIST),
            "UpdateSession": ("sessions:write", Load.CONTINUE),
            "DeleteSession": ("sessions:write", Load.CONTINUE),
            "ForkSession": ("sessions:write", Load.CONTINUE),
            "ListMessages": ("sessions:read", Load.LIST),
            "CompactSession": ("sessions:write", Load.CONTINUE),
            "ExportSession": ("sessions:read", Load.LIST),
            "ImportSession": ("sessions:write", Load.CONTINUE),
        },
    ),
    **_rows(
        "behest.v1.SessionDataService",
        {
            "GetSessionData": ("data:read", Load.LIST),
            "SetSessionData": ("data:write", Load.CONTINUE),
            "DeleteSessionData": ("data:write", Load.CONTINUE),
            "ListSessionData": ("data:read", Load.LIST),
        },
    ),
    **_rows(
        "behest.v1.AgentService",
        {
            "CreateAgent": ("agents:write", Load.CONTINUE),
            "GetAgent": ("agents:read", Load.LIST),
            "ListAgents": ("agents:read", Load.LIST),
            "UpdateAgent": ("agents:write", Load.CONTINUE),
            "DeleteAgent": ("agents:write", Load.CONTINUE),
        },
    ),
    **_rows(
        "behest.v1.ChatService",
        {
            "CompleteChat": ("models:use", Load.CONTINUE),
            "StreamChat": ("models:use", Load.WATCH),
        },
    ),
    **_rows("behest.v1.EmbeddingService", {"Embed": ("models:use", Load.CONTINUE)}),
    **_rows(
        "behest.v1.ContextService",
        {
            "BuildContext": ("runs:create", Load.CONTINUE),
            "ListContextSources": (ANY_CALLER, Load.LIST),
            "ProvideContext": ("runs:create", Load.CONTINUE),
        },
    ),
    **_rows(
        "behest.v1.ModelService",
        {
            "ListProviders": (ANY_CALLER, Load.LIST),
            "ListModels": (ANY_CALLER, Load.LIST),
            "GetModel": (ANY_CALLER, Load.LIST),
        },
    ),
    **_rows(
        "behest.v1.ToolService",
        {
            "ListTools": (ANY_CALLER, Load.LIST),
            "GetTool": (ANY_CALLER, Load.LIST),
            "CallTool": ("runs:create", Load.CONTINUE),
            "CancelCall": ("runs:create", Load.CONTROL),
            "GetCallStatus": ("runs:create", Load.CONTINUE),
        },
    ),
    **_rows(
        "behest.v1.RegistryService",
        {
            "RegisterServer": ("tools:register", Load.CONTINUE),
            "GetServer": ("tools:register", Load.LIST),
            "ListServers": ("tools:register", Load.LIST),
            "UnregisterServer": ("tools:register", Load.CONTINUE),
            "AttachServer": ("tools:register", Load.CONTINUE),
        },
    ),
    **_rows(
        "behest.v1.ArtifactService",
        {
            "WriteArtifact": ("data:write", Load.CONTINUE),
            "ReadArtifact": ("data:read", Load.LIST),
            "GetArtifact": ("data:read", Load.LIST),
            "ListArtifacts": ("data:read", Load.LIST),
            "DeleteArtifact": ("data:write", Load.CONTINUE),
            "DeleteArtifacts": ("data:write", Load.CONTINUE),
        },
    ),
    **_rows("behest.v1.UsageService", {"QueryUsage": ("usage:read", Load.LIST)}),
    **_rows(
        "behest.v1.DaemonService",
        {
            "GetServerInfo": (ANY_CALLER, Load.CONTROL),
            "GetStatus": (ADMIN, Load.CONTROL),
            "GetConfig": (ADMIN, Load.CONTROL),
            "Reload": (ADMIN, Load.CONTROL),
            "Drain": (ADMIN, Load.CONTROL),
            "SetPaused": (ADMIN, Load.CONTROL),
        },
    ),
    **_rows(
        "grpc.health.v1.Health",
        {"Check": (None, Load.CONTROL), "Watch": (None, Load.WATCH)},
    ),
    **_rows("grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": (ADMIN, Load.LIST)}),
    **_rows("grpc.reflection.v1alpha.ServerReflection", {"ServerReflectionInfo": (ADMIN, Load.LIST)}),
}
