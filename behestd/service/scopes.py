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
    STREAM = "stream"
    """Beside its other classes, each call that streams in either direction: bounded for each caller alone."""


class Audit(StrEnum):
    """Whether calls of a method are recorded in the audit log."""

    NONE = "none"
    """They change nothing."""
    NOTED = "noted"
    """They are, soon after their answer at the latest."""
    DURABLE = "durable"
    """They are, on the disk before they are answered; refused while that cannot be."""


SCOPES = frozenset(
    {
        *("runs:create", "runs:read", "runs:cancel", "runs:approve", "sessions:read", "sessions:write"),
        *("agents:read", "agents:write", "models:use", "data:read", "data:write", "usage:read", "tools:register"),
        ADMIN,
    }
)
"""Every scope there is."""

_READER = frozenset({"runs:read", "sessions:read", "agents:read", "data:read", "usage:read"})
ROLES: Mapping[str, frozenset[str]] = {
    "reader": _READER,
    "user": _READER | {"runs:create", "runs:cancel", "sessions:write", "models:use", "data:write"},
    "approver": frozenset({"runs:read", "runs:approve"}),
    "operator": _READER | {"runs:cancel", "runs:approve", "agents:write", "tools:register"},
    "tool_server": frozenset({"tools:register", "data:read", "data:write"}),
    "admin": frozenset({ADMIN}),
}
"""The roles that every daemon has. The configuration adds others."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a principal, the namespace that everything it names is looked up in, and what it may do."""

    principal: str
    namespace: str
    scopes: frozenset[str]
    credential: str = ""
    """What it was known by, for the audit: `token:ID`, `certificate:URI` or `jwt:KEY`. Never a secret. Empty: none."""
    expires_ns: int = 0
    """When the credential ends, in unix nanoseconds. 0: never."""

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
    audit: Audit = Audit.NONE


def authorise(caller: Caller, scope: str) -> None:
    """Let a caller pass that has the scope. Raises Forbidden."""
    if not caller.has(scope):
        raise Forbidden("AUTH_SCOPE_MISSING", f"this needs the scope {scope}", scope=scope)


def _rows(service: str, rows: Mapping[str, tuple[str | None, *tuple[Load | Audit, ...]]]) -> dict[str, Rule]:
    return {f"/{service}/{name}": _rule(row[0], row[1:]) for name, row in rows.items()}


def _rule(scope: str | None, marks: tuple[Load | Audit, ...]) -> Rule:
    loads = tuple(mark for mark in marks if isinstance(mark, Load))
    return Rule(scope, loads, next((mark for mark in marks if isinstance(mark, Audit)), Audit.NONE))


RULES: Mapping[str, Rule] = {
    **_rows(
        "behest.v1.RunService",
        {
            "CreateRun": ("runs:create", Load.CREATE, Audit.NOTED),
            "StreamRun": ("runs:create", Load.CREATE, Load.WATCH, Audit.NOTED),
            "WatchRun": ("runs:read", Load.WATCH),
            "GetRun": ("runs:read", Load.LIST),
            "ListRuns": ("runs:read", Load.LIST),
            "CancelRun": ("runs:cancel", Load.CONTROL, Audit.NOTED),
            "SendInput": ("runs:create", Load.CONTINUE, Audit.NOTED),
            "ForkRun": ("runs:create", Load.CREATE, Audit.NOTED),
            "DeleteRun": ("runs:cancel", Load.CONTINUE, Audit.DURABLE),
            "ExplainRun": ("runs:read", Load.LIST),
        },
    ),
    **_rows("behest.v1.EventService", {"WatchEvents": ("runs:read", Load.WATCH)}),
    **_rows(
        "behest.v1.ApprovalService",
        {
            "ListApprovals": ("runs:read", Load.LIST),
            "GetApproval": ("runs:read", Load.LIST),
            "DecideApproval": ("runs:approve", Load.CONTROL, Audit.DURABLE),
        },
    ),
    **_rows(
        "behest.v1.ToolCallService",
        {
            "ListToolCalls": ("runs:read", Load.LIST),
            "GetToolCall": ("runs:read", Load.LIST),
            "ResolveToolCall": ("runs:approve", Load.CONTROL, Audit.DURABLE),
        },
    ),
    **_rows(
        "behest.v1.SessionService",
        {
            "CreateSession": ("sessions:write", Load.CONTINUE, Audit.NOTED),
            "GetSession": ("sessions:read", Load.LIST),
            "ListSessions": ("sessions:read", Load.LIST),
            "UpdateSession": ("sessions:write", Load.CONTINUE, Audit.NOTED),
            "DeleteSession": ("sessions:write", Load.CONTINUE, Audit.DURABLE),
            "ForkSession": ("sessions:write", Load.CONTINUE, Audit.NOTED),
            "ListMessages": ("sessions:read", Load.LIST),
            "CompactSession": ("sessions:write", Load.CONTINUE, Audit.NOTED),
            "ExportSession": ("sessions:read", Load.LIST, Audit.DURABLE),
            "ImportSession": ("sessions:write", Load.CONTINUE, Audit.DURABLE),
        },
    ),
    **_rows(
        "behest.v1.SessionDataService",
        {
            "GetSessionData": ("data:read", Load.LIST),
            "SetSessionData": ("data:write", Load.CONTINUE, Audit.NOTED),
            "DeleteSessionData": ("data:write", Load.CONTINUE, Audit.NOTED),
            "ListSessionData": ("data:read", Load.LIST),
        },
    ),
    **_rows(
        "behest.v1.AgentService",
        {
            "CreateAgent": ("agents:write", Load.CONTINUE, Audit.DURABLE),
            "GetAgent": ("agents:read", Load.LIST),
            "ListAgents": ("agents:read", Load.LIST),
            "UpdateAgent": ("agents:write", Load.CONTINUE, Audit.DURABLE),
            "DeleteAgent": ("agents:write", Load.CONTINUE, Audit.DURABLE),
        },
    ),
    **_rows(
        "behest.v1.ReasoningService",
        {
            "ListOperators": (ANY_CALLER, Load.LIST),
            "ListStrategies": (ANY_CALLER, Load.LIST),
            "MakeGraph": (ANY_CALLER, Load.LIST),
            "CreateGraph": ("agents:write", Load.CONTINUE, Audit.DURABLE),
            "GetGraph": ("agents:read", Load.LIST),
            "ListGraphs": ("agents:read", Load.LIST),
            "UpdateGraph": ("agents:write", Load.CONTINUE, Audit.DURABLE),
            "DeleteGraph": ("agents:write", Load.CONTINUE, Audit.DURABLE),
            "ValidateGraph": ("agents:read", Load.LIST),
            "PreviewNode": ("agents:read", Load.LIST),
        },
    ),
    **_rows(
        "behest.v1.ChatService",
        {
            "CompleteChat": ("models:use", Load.CONTINUE, Audit.NOTED),
            "StreamChat": ("models:use", Load.WATCH, Audit.NOTED),
        },
    ),
    **_rows("behest.v1.EmbeddingService", {"Embed": ("models:use", Load.CONTINUE, Audit.NOTED)}),
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
            "CallTool": ("runs:create", Load.CONTINUE, Audit.NOTED),
            "CancelCall": ("runs:create", Load.CONTROL, Audit.NOTED),
            "GetCallStatus": ("runs:create", Load.CONTINUE, Audit.NOTED),
        },
    ),
    **_rows(
        "behest.v1.RegistryService",
        {
            "RegisterServer": ("tools:register", Load.CONTINUE, Audit.DURABLE),
            "GetServer": ("tools:register", Load.LIST),
            "ListServers": ("tools:register", Load.LIST),
            "UnregisterServer": ("tools:register", Load.CONTINUE, Audit.DURABLE),
            "AttachServer": ("tools:register", Load.CONTINUE, Audit.NOTED),
        },
    ),
    **_rows(
        "behest.v1.ArtifactService",
        {
            "WriteArtifact": ("data:write", Load.CONTINUE, Audit.NOTED),
            "ReadArtifact": ("data:read", Load.LIST),
            "GetArtifact": ("data:read", Load.LIST),
            "ListArtifacts": ("data:read", Load.LIST),
            "DeleteArtifact": ("data:write", Load.CONTINUE, Audit.DURABLE),
            "DeleteArtifacts": ("data:write", Load.CONTINUE, Audit.DURABLE),
        },
    ),
    **_rows("behest.v1.UsageService", {"QueryUsage": ("usage:read", Load.LIST)}),
    **_rows(
        "behest.v1.DaemonService",
        {
            "GetServerInfo": (ANY_CALLER, Load.CONTROL),
            "GetStatus": (ADMIN, Load.CONTROL),
            "GetConfig": (ADMIN, Load.CONTROL),
            "Reload": (ADMIN, Load.CONTROL, Audit.DURABLE),
            "Drain": (ADMIN, Load.CONTROL, Audit.DURABLE),
            "SetPaused": (ADMIN, Load.CONTROL, Audit.DURABLE),
        },
    ),
    **_rows(
        "grpc.health.v1.Health",
        {"Check": (None, Load.CONTROL), "Watch": (None, Load.WATCH)},
    ),
    **_rows("grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": (ADMIN, Load.LIST)}),
    **_rows("grpc.reflection.v1alpha.ServerReflection", {"ServerReflectionInfo": (ADMIN, Load.LIST)}),
}
